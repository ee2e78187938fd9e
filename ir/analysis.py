"""Use analysis of graphs: the readers of a value, and the number of its uses.

Invariant: functions are pure, and results depend only on the order of `graph.ops`.
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
    """Value name -> its number of uses as an operand or graph result."""
    counts = Counter([v.name for op in graph.ops for v in op.operands])
    counts.update(v.name for v in graph.results)
    return counts
