"""Rule M7: a tensor is defined once, and a graph inside a node does not define a tensor that it can see outside.

Names that later nodes define are not seen, and inputs of a graph inside a node may hide outer names, as ONNX's checker
and ONNX Runtime have it. Names that the main graph or a function defines twice are found when its nodes are ordered.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding
from ppuc.compiler.frontend.order import subgraphs
from ppuc.ir.errors import Entity, EntityKind

EXPECTED = "a name of its own"


def scope_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """Violations of rule M7."""
    graph = model.graph
    seen = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    yield from _inside(graph.node, seen)
    for function in model.functions:
        yield from _inside(function.node, set(function.input))


def _inside(nodes: object, seen: set[str]) -> Iterator[Finding]:
    """Violations in the graphs inside `nodes`, which see `seen` and what the nodes before define."""
    for node in nodes:  # type: ignore[attr-defined]
        for graph in subgraphs(node):
            yield from _of_graph(graph, seen)
        seen.update(name for name in node.output if name)


def _of_graph(graph: onnx.GraphProto, outer: set[str]) -> Iterator[Finding]:
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    visible = outer | own
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _of_graph(inner, visible)
        for name in filter(None, node.output):
            if name in visible:
                what = "it is defined twice in the graph" if name in own else "an outer graph defines it too"
                place = f"tensor '{name}' in graph '{graph.name}'"
                yield Finding(place, what, f"node '{node.name or node.op_type}'", EXPECTED,
                              about=(Entity(EntityKind.TENSOR, name),))  # fmt: skip
            own.add(name)
            visible.add(name)
