"""Rules about names in the graphs of a model.

M7   a tensor is defined once, and a graph inside a node does not define a tensor that it can see outside
M10  the nodes of a graph or function stand in topological order

Names that later nodes define are not seen, and inputs of a graph inside a node may hide outer names, as ONNX's checker
and ONNX Runtime have it. Names that the main graph or a function defines twice are found when its nodes are ordered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import onnx

from ppuc.compiler.frontend.conformance.findings import Finding
from ppuc.compiler.frontend.order import out_of_order, sort_nodes, subgraphs
from ppuc.ir.errors import Entity, EntityKind

EXPECTED = "a name of its own"


def scope_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """Violations of rules M7 and M10."""
    graph = model.graph
    yield from _order("", graph.node)
    for function in model.functions:
        yield from _order(f"{function.name}/", function.node)
    seen = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    yield from _stored_twice(graph)
    yield from _inside(graph.node, seen)
    for function in model.functions:
        yield from _inside(function.node, set(function.input))


def _order(prefix: str, nodes: Any) -> Iterator[Finding]:
    """M10, for `nodes` and the graphs inside them."""
    late = out_of_order(nodes)
    labels = [prefix + (node.name or f"{node.op_type}_{index}") for index, node in enumerate(nodes)]
    if late is not None:
        at, producer, name = late
        yield Finding(
            f"node '{labels[at]}' ({nodes[at].op_type})",
            f"it reads '{name}', which a later node defines",
            f"'{labels[producer]}' stands behind it",
            "nodes in topological order",
            partial(sort_nodes, nodes),
            (Entity(EntityKind.NODE, labels[at]), Entity(EntityKind.TENSOR, name)),
        )
    for label, node in zip(labels, nodes, strict=True):
        for graph in subgraphs(node):
            yield from _order(f"{label}/", graph.node)


def _inside(nodes: object, seen: set[str]) -> Iterator[Finding]:
    """Violations in the graphs inside `nodes`, which see `seen` and what the nodes before define."""
    for node in nodes:  # type: ignore[attr-defined]
        for graph in subgraphs(node):
            yield from _of_graph(graph, seen)
        seen.update(name for name in node.output if name)


def _stored_twice(graph: onnx.GraphProto) -> Iterator[Finding]:
    """Initializers of the same name."""
    for name, count in Counter(t.name for t in graph.initializer).items():
        if count > 1:
            about = (Entity(EntityKind.TENSOR, name),)
            yield Finding(f"tensor '{name}'", "it is stored twice", f"{count} initializers", EXPECTED, about=about)


def _of_graph(graph: onnx.GraphProto, outer: set[str]) -> Iterator[Finding]:
    yield from _stored_twice(graph)
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
