"""Facts about a graph that passes ask for: who reads a value, and how often.

Invariant: nothing here changes a graph, and every answer follows from the order of `graph.ops` alone.
"""

from __future__ import annotations

from collections import Counter

from ppuc.ir.graph import Graph, Op


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
