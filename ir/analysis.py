"""Facts about a graph that passes ask for: users, live ranges, reachability.

Invariant: nothing here changes a graph, and every answer follows from the order of `graph.ops` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from ppuc.ir.graph import Graph, Op, Value


def users(graph: Graph) -> dict[str, tuple[Op, ...]]:
    """Value name -> the ops that read it, in order; an op that reads a value twice appears once. Every value has an
    entry."""
    found: dict[str, list[Op]] = {p.name: [] for p in graph.params}
    for op in graph.ops:
        for name in dict.fromkeys(v.name for v in op.operands):
            found[name].append(op)
        found.update((r.name, []) for r in op.results)
    return {name: tuple(ops) for name, ops in found.items()}


def use_counts(graph: Graph) -> Counter[str]:
    """Value name -> how many operands and graph results it is."""
    counts = Counter(v.name for op in graph.ops for v in op.operands)
    counts.update(v.name for v in graph.results)
    return counts


@dataclass(frozen=True, slots=True)
class LiveRange:
    """A value exists from op `start` (-1 for a parameter) to op `end`, both inclusive, as indices into `graph.ops`;
    graph results live until `len(graph.ops)`."""

    start: int
    end: int

    def overlaps(self, other: LiveRange) -> bool:
        """Whether both exist at some op."""
        return self.start <= other.end and other.start <= self.end


def live_ranges(graph: Graph) -> dict[str, LiveRange]:
    """Value name -> its live range; a value that nothing reads dies where it is born."""
    starts = {p.name: -1 for p in graph.params}
    ends = dict(starts)
    for index, op in enumerate(graph.ops):
        ends.update((v.name, index) for v in op.operands)
        for result in op.results:
            starts[result.name] = ends[result.name] = index
    ends.update((v.name, len(graph.ops)) for v in graph.results)
    return {name: LiveRange(start, ends[name]) for name, start in starts.items()}


def as_networkx(graph: Graph) -> nx.DiGraph:
    """The graph as a networkx DiGraph: nodes are indices into `graph.ops` with attribute `op`, an edge i -> j with
    attribute `values` (names) says that op j reads results of op i."""
    view = nx.DiGraph()
    producer: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        view.add_node(index, op=op)
        for value in op.operands:
            if (source := producer.get(value.name)) is None:
                continue
            names = view.edges[source, index]["values"] if view.has_edge(source, index) else ()
            view.add_edge(source, index, values=tuple(dict.fromkeys((*names, value.name))))
        producer.update((r.name, index) for r in op.results)
    return view


def ancestors(graph: Graph, values: Iterable[Value]) -> frozenset[str]:
    """Names of all values that `values` are computed from, themselves included."""
    reached = {v.name for v in values}
    for op in reversed(graph.ops):
        if any(r.name in reached for r in op.results):
            reached.update(v.name for v in op.operands)
    return frozenset(reached)


def descendants(graph: Graph, values: Iterable[Value]) -> frozenset[str]:
    """Names of all values that are computed from `values`, themselves included."""
    reached = {v.name for v in values}
    for op in graph.ops:
        if any(v.name in reached for v in op.operands):
            reached.update(r.name for r in op.results)
    return frozenset(reached)


def reaches(graph: Graph, source: Value, target: Value) -> bool:
    """Whether `target` is computed from `source` (or is it)."""
    return target.name in descendants(graph, (source,))
