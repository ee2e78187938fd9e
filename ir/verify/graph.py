"""Invariants of graphs. A group's body is a graph of its own.

G1  names consist of letters, digits, `_` and `.`; dimensions are sizes or symbols.
G2  a value is defined once.
G3  a value is defined before it is used, in the same graph.
G4  a use has the type and space of its definition.
G5  every op has a record.
G6  attributes are of the record's class, and every field of its declared type.
G7  the number of operands is one that the record allows.
G8  result types are what the record infers (except of groups).
G9  a group and only a group has a body, whose parameters and results have the types of the op's operands and results.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import OpDef
from ppuc.ir.types import TensorType
from ppuc.ir.verify.findings import IDENTIFIER, Findings

_OWN_TYPES = ("group",)
"""Ops whose result types do not follow from operand types."""


def check_graph(graph: Graph, findings: Findings) -> None:
    """Check `graph` and the bodies of its groups."""
    outside, findings.where = findings.where, f"{findings.where}@{graph.name} "
    defined: dict[str, Value] = {}
    for param in graph.params:
        _define(param, defined, findings, None)
    for op in graph.ops:
        _check_op(op, defined, findings)
    for value in graph.results:
        known = defined.get(value.name)
        if known is None:
            findings.add("G3", f"{value}", "is a result of the graph but not defined in it")
        elif known is not value and known != value:
            findings.add("G4", f"{value}", f"is a result of type {_typed(value)} but defined as {_typed(known)}")
    findings.where = outside


def _typed(value: Value) -> str:
    return f"{value.type}" + (f" @{value.space}" if value.space is not None else "")


def _show(op: Op) -> Callable[[], str]:
    def show() -> str:
        from ppuc.ir.text.print import print_op

        return print_op(op)

    return show


def _define(value: Value, defined: dict[str, Value], findings: Findings, op: Op | None) -> None:
    show = None if op is None else _show(op)
    if not IDENTIFIER.fullmatch(value.name):
        message = "the name has characters other than letters, digits, '_' and '.'"
        findings.add("G1", f"'{value}'", message, show)
    if value.name in defined:
        findings.add("G2", f"{value}", "is defined twice", show)
    defined[value.name] = value
    for dim in value.type.shape:
        if dim < 0 if isinstance(dim, int) else not dim.isidentifier():
            findings.add(
                "G1", f"{value}", f"type {value.type} has a dimension that is neither a size nor a symbol", show
            )


def _check_op(op: Op, defined: dict[str, Value], findings: Findings) -> None:
    entity = f"%{op.results[0].name}" if op.results else f"{op.name}"
    for i, operand in enumerate(op.operands):
        known = defined.get(operand.name)
        if known is None:
            findings.add("G3", entity, f"operand {i} ({operand}) is not defined before this op", _show(op))
        elif known is not operand and known != operand:
            message = f"operand {i} ({operand}) has type {_typed(operand)} but is defined as {_typed(known)}"
            findings.add("G4", entity, message, _show(op))
    if not findings.checked.holds(op):
        _check_alone(op, entity, findings)
    if op.body is not None and not findings.checked.holds(op.body):
        check_graph(op.body, findings)
    for result in op.results:
        _define(result, defined, findings, op)


def _check_alone(op: Op, entity: str, findings: Findings) -> None:
    """The rules of one op that do not depend on the rest of the graph, without those inside its body."""
    record = OPS.get(op.name)
    if record is None:
        findings.add("G5", entity, f"there is no op '{op.name}'", _show(op))
    else:
        _check_record(op, record, entity, findings)
    if op.body is not None:
        _check_body_types(op, op.body, entity, findings)
    if (op.body is None) == (op.name == "group"):
        findings.add("G9", entity, "a group has a body, no other op has one", _show(op))


def _check_record(op: Op, record: OpDef, entity: str, findings: Findings) -> None:
    if type(op.attrs) is not record.attrs:
        message = f"attributes are {type(op.attrs).__name__}, expected {record.attrs.__name__}"
        findings.add("G6", entity, message)
        return
    for name, fits, expected in _field_checks(record.attrs):
        if not fits(value := getattr(op.attrs, name)):
            findings.add("G6", entity, f"attribute '{name}' is {value!r}, expected {expected}")
            return
    low, high = _operand_range(record.operands)
    if not low <= len(op.operands) <= high:
        findings.add("G7", entity, f"has {len(op.operands)} operands, expected ({record.operands})", _show(op))
        return
    if op.name in _OWN_TYPES:
        return
    try:
        inferred = record.infer(op.attrs, [v.type for v in op.operands])
    except (ValueError, IndexError) as error:
        findings.add("G8", entity, f"operands do not fit: {error}", _show(op))
        return
    actual = tuple(v.type for v in op.results)
    if inferred != actual:
        message = f"results have types {_types(actual)}, expected {_types(inferred)}"
        findings.add("G8", entity, message, _show(op))


def _types(found: tuple[TensorType, ...]) -> str:
    return f"({', '.join(map(str, found))})"


def _check_body_types(op: Op, body: Graph, entity: str, findings: Findings) -> None:
    for what, outer, inner in (("operand", op.operands, body.params), ("result", op.results, body.results)):
        if [v.type for v in outer] != [v.type for v in inner]:
            seen, given = (_types(tuple(v.type for v in side)) for side in (inner, outer))
            findings.add("G9", entity, f"body has {what}s {seen}, the op has {given}", _show(op))


_RANGES: dict[str, tuple[int, int]] = {}
_CHECKS: dict[type, tuple[tuple[str, Callable[[Any], bool], str], ...]] = {}


def _operand_range(signature: str) -> tuple[int, int]:
    """Fewest and most operands that a record's `operands` allows."""
    if signature not in _RANGES:
        names = [n.strip() for n in signature.split(",")] if signature else []
        fixed = [n for n in names if not n.endswith("...")]
        low = sum(not n.endswith("?") for n in fixed)
        _RANGES[signature] = (low, len(fixed) if len(fixed) == len(names) else 1 << 30)
    return _RANGES[signature]


def _field_checks(cls: type) -> tuple[tuple[str, Callable[[Any], bool], str], ...]:
    if cls not in _CHECKS:
        hints = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls)
        _CHECKS[cls] = tuple((f.name, _matcher(hints[f.name]), str(f.type)) for f in fields)
    return _CHECKS[cls]


def _matcher(hint: Any) -> Callable[[Any], bool]:
    """A predicate for values of the type `hint`; an int is a float, a bool is neither."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [_matcher(h) for h in typing.get_args(hint)]
        return lambda value: any(fits(value) for fits in options)
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        each = [_matcher(h) for h in arguments if h is not Ellipsis]
        if len(each) < len(arguments):
            return lambda value: isinstance(value, tuple) and all(map(each[0], value))
        return lambda value: (
            isinstance(value, tuple) and len(value) == len(each) and all(f(v) for f, v in zip(each, value, strict=True))
        )
    if hint is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    return lambda value: isinstance(value, hint)
