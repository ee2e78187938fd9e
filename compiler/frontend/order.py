"""Topological order of a graph's nodes, and the structural rules of ONNX graphs.

Rules checked here: every tensor is defined once (1), every node input and graph output is defined (2), no node depends
on itself (3). Files store nodes in topological order (`out_of_order` finds those that do not); `ordered` takes any.

Invariant: the result keeps the given order if it is valid, and omits dead nodes.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import onnx

from ppuc.compiler.frontend.place import node_place, output_place
from ppuc.ir.errors import Entity, EntityKind, ModelError

Labelled = tuple[str, onnx.NodeProto]
"""A node and its name in messages and locs."""


def ordered(nodes: Sequence[onnx.NodeProto], defined: Set[str], outputs: Sequence[str], where: str) -> list[Labelled]:
    """The nodes that `outputs` need, each after its dependences. `defined` are the names known before the first one.
    Raises ModelError if a rule is broken."""
    labels = [node.name or f"{node.op_type}_{index}" for index, node in enumerate(nodes)]
    producers = _producers(nodes, labels, defined, where)
    needs = [set(_inputs(node)) for node in nodes]
    for index, node in enumerate(nodes):
        for name in sorted(n for n in needs[index] if n not in producers and n not in defined):
            close = difflib.get_close_matches(name, [*producers, *defined], 1)
            raise node_place(where, labels[index], node.op_type).error(
                f"input '{name}' is never defined",
                hint=f"did the exporter mean '{close[0]}'?" if close else None,
                about=(Entity(EntityKind.TENSOR, name),),
            )
    for name in outputs:
        if name not in producers and name not in defined:
            raise output_place(where, name).error("no node defines it")
    before = [{producers[n] for n in names if n in producers} for names in needs]
    live = _reachable(before, [producers[n] for n in outputs if n in producers])
    return [(labels[i], nodes[i]) for i in _sorted(before, labels, where) if i in live]


def out_of_order(nodes: Sequence[onnx.NodeProto]) -> tuple[int, int, str] | None:
    """The first node that reads a tensor of a later one, that one, and the tensor's name; None if there is none, or if
    no order of the nodes would do."""
    first: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            first.setdefault(name, index)
    late = next(((i, first[n], n) for i, node in enumerate(nodes) for n in _inputs(node) if first.get(n, i) > i), None)
    return late if late is not None and _topological(_needed(nodes, first)) is not None else None


def sort_nodes(nodes: Any) -> None:
    """Bring a repeated field of nodes, which depend on each other in no cycle, into topological order."""
    kept = list(nodes)
    order = _topological(_needed(kept, {name: i for i, node in enumerate(kept) for name in node.output if name}))
    assert order is not None, "the nodes depend on each other in a cycle"
    del nodes[:]
    nodes.extend(kept[i] for i in order)


def _needed(nodes: Sequence[onnx.NodeProto], producers: Mapping[str, int]) -> list[set[int]]:
    """For each node, those whose results it reads."""
    return [{producers[n] for n in _inputs(node) if n in producers} for node in nodes]


def _producers(nodes: Sequence[onnx.NodeProto], labels: Sequence[str], defined: Set[str], where: str) -> dict[str, int]:
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producers or name in defined:
                first = f"node '{labels[producers[name]]}'" if name in producers else "an input or initializer"
                raise node_place(where, labels[index], node.op_type).error(
                    f"'{name}' is defined twice", got=f"also by {first}", about=(Entity(EntityKind.TENSOR, name),)
                )
            producers[name] = index
    return producers


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, including outer names in its subgraphs."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        yield from captured(graph)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph reads without defining them."""
    inside = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    inside |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in _inputs(node)} | {o.name for o in graph.output}
    return read - inside


def _reachable(before: Sequence[Set[int]], roots: Iterable[int]) -> set[int]:
    live: set[int] = set()
    todo = list(roots)
    while todo:
        index = todo.pop()
        if index not in live:
            live.add(index)
            todo.extend(before[index] - live)
    return live


def _sorted(before: Sequence[Set[int]], labels: Sequence[str], where: str) -> list[int]:
    """The nodes in topological order. Raises ModelError if there is none."""
    order = _topological(before)
    if order is None:
        names = [labels[i] for i in _cycle(before)]
        nodes = Entity.each(EntityKind.NODE, names)
        raise ModelError.of(where, "the graph has a cycle", got=" -> ".join([*names, names[0]]), entities=nodes)
    return order


def _topological(before: Sequence[Set[int]]) -> list[int] | None:
    """Kahn's algorithm, always taking the first ready node; None if there is a cycle."""
    order = _ready(before)
    return order if len(order) == len(before) else None


def _ready(before: Sequence[Set[int]]) -> list[int]:
    """The nodes that no cycle holds back, in topological order."""
    after: list[list[int]] = [[] for _ in before]
    for index, sources in enumerate(before):
        for source in sources:
            after[source].append(index)
    open_inputs = [len(sources) for sources in before]
    ready = [index for index, count in enumerate(open_inputs) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for successor in after[index]:
            open_inputs[successor] -= 1
            if open_inputs[successor] == 0:
                heapq.heappush(ready, successor)
    return order


def _cycle(before: Sequence[Set[int]]) -> list[int]:
    """One cycle, in data-flow direction."""
    left = set(range(len(before))) - set(_ready(before))
    path = {(at := min(left)): 0}
    while (at := min(before[at] & left)) not in path:
        path[at] = len(path)
    cycle = [*path][path[at] :][::-1]
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]
