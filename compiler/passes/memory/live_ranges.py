"""Aliasing, live ranges in kernel steps, and address assignment.

A *step* is the position of a group (or stage copy) among those of the graph. Invariant: values whose live ranges
overlap never share bytes; counters, which emit adds, guard the reuse of bytes whose last reader may still be running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering.kinds import group_anchor, group_kind
from ppuc.compiler.lowering.tiling.body import Resolver
from ppuc.compiler.passes.memory.minimalloc import Plan, plan
from ppuc.compiler.passes.memory.ranges import Assigner, Range
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph, Op

PLACEMENTS = 200_000
"""Limit of the exact search for addresses: about 0.3 seconds."""


def updated_operand(op: Op) -> int | None:
    """Position of the operand that a group updates in place; None for other ops."""
    kind, anchor = group_kind(op), group_anchor(op)
    if kind is None or kind.updates is None or anchor is None or op.body is None:
        return None
    data = Resolver(op.body).external(anchor.operands[kind.updates])
    if data is None:
        raise InternalError(f"{kind.name} {op.results[0]} does not update a parameter")
    return [p.name for p in op.body.params].index(data.value.name)


def inserted_operands(op: Op) -> dict[int, int]:
    """Result of a group -> the operand whose memory it inserts its part into."""
    if op.body is None:
        return {}
    position = {p.name: i for i, p in enumerate(op.body.params)}
    inserts = {inner.results[0].name: inner.operands[0].name for inner in op.body.ops if inner.name == "insert"}
    return {i: position[inserts[r.name]] for i, r in enumerate(op.body.results) if r.name in inserts}


def storage_roots(graph: Graph) -> dict[str, str]:
    """Value name -> the value whose memory it shares: reshapes alias their operand, a scatter updates its first operand
    in place, an insert stores into its base."""
    roots: dict[str, str] = {p.name: p.name for p in graph.params}
    for op in graph.ops:
        updated = 0 if op.name == "reshape" else updated_operand(op)
        inserted = inserted_operands(op)
        for i, r in enumerate(op.results):
            shared = inserted.get(i, updated)
            roots[r.name] = r.name if shared is None else roots[op.operands[shared].name]
    return roots


def live_ranges(graph: Graph, roots: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Storage root -> (first step that writes it, last step that accesses it). Parameters and constants live from
    before the first step to the end, because a program runs more than once; results live to the end."""
    steps = len(graph.ops)
    found: dict[str, tuple[int, int]] = {p.name: (-1, steps) for p in graph.params}
    for step, op in enumerate(graph.ops):
        for v in op.operands:
            start, _ = found[roots[v.name]]
            found[roots[v.name]] = (start, max(step, found[roots[v.name]][1]))
        for r in op.results:
            root = roots[r.name]
            start = -1 if op.name == "const" else step
            end = steps if op.name == "const" else step
            found[root] = (min(start, found[root][0]), max(end, found[root][1])) if root in found else (start, end)
    for v in graph.results:
        start, _ = found[roots[v.name]]
        found[roots[v.name]] = (start, steps)
    return found


def assign(ranges: Sequence[Range], capacity: int, placements: int = PLACEMENTS) -> tuple[dict[str, int], list[str]]:
    """Addresses for `ranges`, and the names of those that do not fit: first fit, large ones first. If that fails
    although the live bytes fit, other orders and an exact search of at most `placements` are tried."""
    assigner = Assigner.of(ranges, capacity)
    placed: dict[str, int] = {}
    failed: list[str] = []
    for item in sorted(ranges, key=lambda r: (r.rank, -r.bytes, r.start, r.name)):
        at = assigner.place(item)
        if at is None:
            failed.append(item.name)
        else:
            placed[item.name] = at
    if failed:
        found = plan(ranges, capacity, placements=placements)
        if isinstance(found, Plan):
            return found.offsets, []
    return placed, failed
