"""Parsers of whole texts: modules, single graphs, kernels, vector programs and programs.

Invariant: `parse_*` returns an object equal to the printed one; any other text is a TextError with a location. Parsing
checks names and types within the text; the verifier checks the invariants of each level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ppuc.ir.errors import Diagnostic, TextError
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel
from ppuc.ir.module import Module, Placement
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.ir.text.literals import ResourceLookup
from ppuc.ir.text.nodes import (
    Done,
    GraphHeader,
    InOut,
    KernelHeader,
    ModuleHeader,
    Option,
    Pipeline,
    PlacementHeader,
    ProgramHeader,
    Target,
    VectorHeader,
)
from ppuc.ir.text.parse_graph import memory, read_graph
from ppuc.ir.text.parse_kernel import read_kernel, read_vector
from ppuc.ir.text.parse_program import read_program
from ppuc.ir.text.reader import Line, Reader
from ppuc.ir.vector import VectorProgram

Resources = Mapping[str, Resource] | Callable[[str], Resource]
"""Lookup of constants by key; a function raises KeyError for a missing one."""

_Item = TypeVar("_Item")


def parse_module(text: str, resources: Resources, filename: str = "") -> Module:
    """Parse the output of `print_module`. Raises TextError with file, line, column and a caret."""
    reader = Reader(text, filename)
    items: dict[type, list[Any]] = {kind: [] for kind in _READERS}
    while (line := reader.line()) is not None:
        node = _top(reader, line)
        if isinstance(node, ModuleHeader | GraphHeader | ProgramHeader) and items[type(node)]:
            raise reader.error_at(line.number, 1, len(line.text), f"a module has one {_NOUNS[type(node)]}")
        items[type(node)].append(_READERS[type(node)](reader, line, node, _lookup(resources)))
    for kind in (ModuleHeader, GraphHeader):
        if not items[kind]:
            raise TextError(Diagnostic(reader.filename, f"the text has no {_NOUNS[kind]}"))
    return Module(
        **items[ModuleHeader][0],
        graph=items[GraphHeader][0],
        kernels=tuple(items[KernelHeader]),
        vectors=tuple(items[VectorHeader]),
        placement=tuple(p for block in items[PlacementHeader] for p in block),
        program=next(iter(items[ProgramHeader]), None),
    )


def parse_graph(text: str, resources: Resources | None = None, filename: str = "") -> Graph:
    """Read one graph. Raises TextError."""
    return _single(
        text, filename, GraphHeader, lambda reader, line, node: read_graph(reader, line, node, _lookup(resources or {}))
    )


def parse_kernel(text: str, filename: str = "") -> Kernel:
    """Read one kernel. Raises TextError."""
    return _single(text, filename, KernelHeader, read_kernel)


def parse_vector(text: str, filename: str = "") -> VectorProgram:
    """Read one vector program. Raises TextError."""
    return _single(text, filename, VectorHeader, read_vector)


def parse_program(text: str, filename: str = "") -> Program:
    """Read one program. Raises TextError."""
    return _single(text, filename, ProgramHeader, read_program)


def _lookup(resources: Resources) -> ResourceLookup:
    return resources if callable(resources) else resources.__getitem__


def _top(reader: Reader, line: Line) -> Any:
    if line.text.strip() == "}":
        column = line.text.index("}") + 1
        raise reader.error_at(line.number, column, 1, "this brace closes nothing")
    return reader.parse(line, "top_line")


def _single(text: str, filename: str, kind: type, read: Callable[[Reader, Line, Any], _Item]) -> _Item:
    reader = Reader(text, filename)
    line = reader.line()
    if line is None:
        raise TextError(Diagnostic(reader.filename, f"the text has no {_NOUNS[kind]}"))
    node = _top(reader, line)
    if not isinstance(node, kind):
        column = len(line.text) - len(line.text.lstrip()) + 1
        raise reader.error_at(line.number, column, 1, f"expected a {_NOUNS[kind]}, found a {_NOUNS[type(node)]}")
    item = read(reader, line, node)
    rest = reader.line()
    if rest is not None:
        column = len(rest.text) - len(rest.text.lstrip()) + 1
        raise reader.error_at(rest.number, column, 1, f"text after the end of the {_NOUNS[kind]}")
    return item


def _read_header(reader: Reader, line: Line, node: ModuleHeader, lookup: ResourceLookup) -> dict[str, Any]:
    fields: dict[str, list[Any]] = {"options": [], "inputs": [], "outputs": [], "pipeline": [], "done": []}
    target: Target | None = None
    for inner in reader.block(line):
        match reader.parse(inner, "module_line"):
            case Target() as target:
                pass
            case Option(name, value):
                fields["options"].append((name, value))
            case InOut(kind, name, value):
                fields[f"{kind}s"].append((name, str(value[1:])))
            case Pipeline(passes):
                fields["pipeline"] += passes
            case Done(passes):
                fields["done"] += passes
    if target is None:
        reader.fail(node.token, "the module names no target", line=line, expected='target "name" "hash"')
    return {"target": target.name, "target_hash": target.hash, **{k: tuple(v) for k, v in fields.items()}}


def _read_placement(reader: Reader, line: Line, node: PlacementHeader, lookup: ResourceLookup) -> tuple[Placement, ...]:
    found = []
    for inner in reader.block(line):
        p = reader.parse(inner, "placement_line")
        found.append(Placement(p.name, memory(reader, p.space), p.address, p.bytes))
    return tuple(found)


_NOUNS: dict[type, str] = {
    ModuleHeader: "module header",
    GraphHeader: "graph",
    KernelHeader: "kernel",
    VectorHeader: "vector program",
    PlacementHeader: "placement",
    ProgramHeader: "program",
}
_READERS: dict[type, Callable[[Reader, Line, Any, ResourceLookup], Any]] = {
    ModuleHeader: _read_header,
    GraphHeader: read_graph,
    KernelHeader: lambda reader, line, node, lookup: read_kernel(reader, line, node),
    VectorHeader: lambda reader, line, node, lookup: read_vector(reader, line, node),
    PlacementHeader: _read_placement,
    ProgramHeader: lambda reader, line, node, lookup: read_program(reader, line, node),
}
