"""Prints modules and graphs. The parsers of this package read the output back.

Invariant: the text depends only on the object. Every attribute is written, including defaults, so that a dump keeps its
meaning if a default changes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module, Placement
from ppuc.ir.text.layout import header_lines
from ppuc.ir.text.literals import format_attrs, quote, symbol
from ppuc.ir.text.print_kernel import format_loc, print_kernel, print_vector
from ppuc.ir.text.print_program import print_program


def print_module(module: Module) -> str:
    """The whole module: header, graph, and kernels, vector programs, placement and program if present."""
    parts = ["\n".join(_header(module)) + "\n", print_graph(module.graph)]
    parts += [print_kernel(k) for k in module.kernels]
    parts += [print_vector(v) for v in module.vectors]
    if module.placement:
        parts.append("\n".join(["placement {", *map(_placement, module.placement), "}", ""]))
    if module.program is not None:
        parts.append(print_program(module.program))
    return "\n".join(parts)


def _header(module: Module) -> Iterator[str]:
    yield "module {"
    yield f"  target {quote(module.target)} {quote(module.target_hash)}"
    yield from (f"  option {quote(name)} = {quote(value)}" for name, value in module.options)
    yield from (f"  input {quote(name)} = %{value}" for name, value in module.inputs)
    yield from (f"  output {quote(name)} = %{value}" for name, value in module.outputs)
    yield from (f"  pipeline {quote(step)}" for step in module.pipeline)
    yield from (f"  done {quote(step)}" for step in module.done)
    yield "}"


def _placement(placement: Placement) -> str:
    p = placement
    return f"  {quote(p.name)} @{p.space} at {p.address} bytes {p.bytes}"


def print_graph(graph: Graph) -> str:
    """A graph with the bodies of its groups; ends in a newline."""
    lines = _signature("graph ", graph)
    _body(graph, "  ", lines)
    return "\n".join([*lines, "}", ""])


def print_op(op: Op) -> str:
    """One op on one line, without its body."""
    return _op(op)


def _signature(start: str, graph: Graph) -> list[str]:
    end = f") -> ({', '.join(map(_decl, graph.results))}) {{"
    return header_lines(f"{start}{symbol(graph.name)}(", [_decl(p) for p in graph.params], end)


def _body(graph: Graph, indent: str, lines: list[str]) -> None:
    for op in graph.ops:
        if op.body is None:
            lines.append(indent + _op(op))
            continue
        lines += _signature(f"{indent}{_op(op)} body ", op.body)
        _body(op.body, indent + "  ", lines)
        lines.append(indent + "}")


def _op(op: Op) -> str:
    results = ", ".join(map(_decl, op.results))
    operands = ", ".join([f"%{v.name}" for v in op.operands])
    return f"{results} = {op.name}({operands}){format_attrs(op.attrs)}{format_loc(op.loc)}"


def _decl(value: Value) -> str:
    text = f"%{value.name}: {value.type}"
    return text if value.space is None else f"{text} @{value.space}"
