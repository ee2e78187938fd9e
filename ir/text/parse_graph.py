"""Parses graphs. Operands resolve to the Value objects of their definitions; a group's body is its own scope."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.text.literals import LiteralError, ResourceLookup, build_attrs
from ppuc.ir.text.nodes import Decl, GraphHeader, GraphLine, Signature, Token
from ppuc.ir.text.reader import Line, Reader
from ppuc.ir.types import Space, TensorType, parse_type

_SPACES = {f"@{space.value}": space for space in Space}


def read_graph(reader: Reader, line: Line, node: GraphHeader, lookup: ResourceLookup) -> Graph:
    """The graph that starts at `line`."""
    return _read_block(reader, line, node.signature, lookup)


def symbol_name(token: Token) -> str:
    """The name in `@name` or `@"name"`."""
    text = str(token[1:])
    return str(json.loads(text)) if text.startswith('"') else text


def memory(reader: Reader, token: Token) -> Space:
    """The Space of a token such as `@l2`. Raises TextError for an unknown memory."""
    space = _SPACES.get(token)
    if space is None:
        reader.fail(token, f"unknown memory '{token}'", expected=", ".join(_SPACES))
    return space


def tensor_type(reader: Reader, token: Token) -> TensorType:
    """The tensor type of a token. Raises TextError."""
    try:
        return parse_type(str(token))
    except ValueError as error:
        reader.fail(token, str(error))


def closest(name: str, known: Iterable[str]) -> str | None:
    """A hint with the known name closest to `name`, if one is close."""
    match = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{match[0]}'?" if match else None


def _read_block(reader: Reader, line: Line, header: Signature, lookup: ResourceLookup) -> Graph:
    scope: dict[str, Value] = {}
    params = tuple(_define(reader, scope, decl) for decl in header.params)
    declared = [(decl.name, _value(reader, decl)) for decl in header.results]
    ops: list[Op] = []
    for inner in reader.block(line):
        node: GraphLine = reader.parse(inner, "graph_line")
        ops.append(_read_op(reader, inner, node, scope, lookup))
    results = tuple(_result(reader, line, scope, *result) for result in declared)
    return Graph(symbol_name(header.name), params, results, tuple(ops))


def _read_op(reader: Reader, line: Line, node: GraphLine, scope: dict[str, Value], lookup: ResourceLookup) -> Op:
    record = OPS.get(node.op)
    if record is None:
        reader.fail(node.op, f"unknown op '{node.op}'", hint=closest(node.op, OPS))
    operands = tuple(_use(reader, scope, token) for token in node.operands)
    try:
        attrs = build_attrs(record.attrs, node.attrs, lookup, node.op, f"op '{node.op}'")
    except LiteralError as error:
        reader.fail(error.token, error.what, got=error.got, expected=error.expected)
    results = tuple(_define(reader, scope, decl) for decl in node.results)
    body = None if node.body is None else _read_block(reader, line, node.body, lookup)
    return Op(record.name, attrs, operands, results, node.loc, body)


def _value(reader: Reader, decl: Decl) -> Value:
    space = None if decl.space is None else memory(reader, decl.space)
    return Value(str(decl.name[1:]), tensor_type(reader, decl.type), space)


def _define(reader: Reader, scope: dict[str, Value], decl: Decl) -> Value:
    value = _value(reader, decl)
    if value.name in scope:
        reader.fail(decl.name, f"{decl.name} is defined twice")
    scope[value.name] = value
    return value


def _use(reader: Reader, scope: dict[str, Value], token: Token) -> Value:
    value = scope.get(token[1:])
    if value is None:
        reader.fail(token, f"{token} is not defined before this line", hint=closest(token, (f"%{n}" for n in scope)))
    return value


def _result(reader: Reader, line: Line, scope: dict[str, Value], token: Token, shown: Value) -> Value:
    defined = scope.get(shown.name)
    if defined is None:
        reader.fail(token, f"{token} is not defined in this graph", line=line)
    if shown != defined:
        got, expected = (str(v.type) + (f" @{v.space}" if v.space else "") for v in (shown, defined))
        reader.fail(token, f"{token} is defined with another type", line=line, got=got, expected=expected)
    return defined
