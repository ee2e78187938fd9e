"""`--alias past=present`: an output that extends an input shares the input's memory.

Serving systems keep keys and values in a buffer and write only the new token's rows. So the parameter becomes the
buffer, with the output's shape; the input is its leading slice, and the output is the buffer with the new part
inserted.

Invariant: only bytes after the input's end are written, and results are unchanged; callers pass the input in its
declared shape (`grown` lays it out).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from ppuc.ir.errors import Diagnostic, Entity, EntityKind, UsageError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.movement import ConcatAttrs, InsertAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import TensorType, parse_type

OPTION = "alias."
"""Module options and artifact metadata of this prefix, by input name: the output that shares its memory."""

DECLARED = "declared."
"""Module options and artifact metadata of this prefix, by input name: the type that the model gives the input."""


def aliases_of(options: Mapping[str, str]) -> dict[str, str]:
    """Input -> output, from a module's options or an artifact's metadata."""
    return {name.removeprefix(OPTION): output for name, output in options.items() if name.startswith(OPTION)}


def declared_type(name: str, type: TensorType, options: Mapping[str, str]) -> TensorType:
    """The type that the model gives input `name`, whose parameter has `type`."""
    text = options.get(DECLARED + name)
    return parse_type(text) if text is not None else type


def grown(array: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """`array` as the leading part of a buffer of shape `dims`; itself when it has that shape."""
    if array.shape == dims:
        return array
    buffer = np.zeros(dims, array.dtype)
    buffer[tuple(slice(n) for n in array.shape)] = array
    return buffer


def aliased(module: Module, aliases: Mapping[str, str]) -> Module:
    """`module` (as imported) with every output of `aliases` in the memory of its input. Raises UsageError for names
    that are unknown or used twice and for outputs that do not extend their input."""
    if not aliases:
        return module
    inputs, outputs = dict(module.inputs), dict(module.outputs)
    check_names(aliases, inputs, outputs)
    graph, options, values = module.graph, dict(module.options), dict(module.outputs)
    for past, present in aliases.items():
        param = next(p for p in graph.params if p.name == inputs[past])
        before, graph = graph, _shared(graph, param, outputs[present], past, present)
        renamed = {v.name: new.name for v, new in zip(before.results, graph.results, strict=True)}
        values = {name: renamed[value] for name, value in values.items()}
        options |= {OPTION + past: present, DECLARED + past: str(param.type)}
    return replace(module, graph=graph, outputs=tuple(values.items()), options=tuple(sorted(options.items())))


def check_names(aliases: Mapping[str, str], inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raise UsageError for names that a model with these inputs and outputs does not have, or that are used twice."""
    faults = [*_unknown("input", aliases, inputs), *_unknown("output", aliases.values(), outputs)]
    twice = sorted({o for o in aliases.values() if list(aliases.values()).count(o) > 1})
    faults += [
        Diagnostic(
            "--alias",
            f"output '{o}' would share the memory of several inputs",
            entities=(Entity(EntityKind.OUTPUT, o),),
        )
        for o in twice
    ]
    if faults:
        raise UsageError(faults)


def _unknown(what: str, names: Iterable[str], having: Iterable[str]) -> list[Diagnostic]:
    known, found = list(having), []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else None
            listed = ", ".join(known) or f"a model with {what}s"
            about = (Entity(EntityKind(what), name),)
            found.append(Diagnostic("--alias", f"no {what} is called '{name}'", None, listed, hint, about))
    return found


def _shared(graph: Graph, param: Value, result: str, past: str, present: str) -> Graph:
    """`graph` with `result` in the memory of `param`."""
    op = next((op for op in graph.ops if any(r.name == result for r in op.results)), None)
    value = next(v for v in graph.results if v.name == result)
    pair = f"{past}={present}"
    about = (Entity(EntityKind.INPUT, past), Entity(EntityKind.OUTPUT, present))
    if value.type.dtype is not param.type.dtype or value.type.rank != param.type.rank:
        raise UsageError.of(
            "--alias",
            f"'{pair}' aliases tensors of different types",
            got=f"{param.type} and {value.type}",
            entities=about,
        )
    if op is None or op.name != "concat" or op.operands[0] != param or param in op.operands[1:]:
        raise UsageError.of(
            "--alias",
            f"'{present}' does not extend '{past}'",
            got=f"{value.type} computed by {', '.join(op.loc) or op.name}" if op is not None else "another input",
            expected=f"a concatenation that begins with '{past}' ({param.type})",
            entities=about,
        )
    assert isinstance(op.attrs, ConcatAttrs)
    axis = op.attrs.axis
    builder = Builder(all_names(graph), op.loc)
    buffer = Value(param.name, value.type)
    start = tuple(param.type.dims[axis] if i == axis else 0 for i in range(param.type.rank))
    rank = param.type.rank
    old = builder("slice", buffer, attrs=SliceAttrs((0,) * rank, param.type.dims, (1,) * rank), hint=param.name)
    ops: list[Op] = list(builder.ops)
    for other in graph.ops:
        if other is not op:
            ops.append(replace(other, operands=tuple(old if v == param else v for v in other.operands)))
            continue
        builder.ops = []
        new = op.operands[1] if len(op.operands) == 2 else builder("concat", *op.operands[1:], attrs=op.attrs)
        ops += [*builder.ops, Op("insert", InsertAttrs(start), (buffer, new), op.results, op.loc)]
    params = tuple(buffer if p == param else p for p in graph.params)
    results = tuple(old if v == param else v for v in graph.results)
    return Graph(graph.name, params, results, tuple(ops))
