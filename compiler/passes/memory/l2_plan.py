"""Plans addresses in l2: which values share bytes, and how long bytes are reserved.

A result may overwrite an operand that nothing reads afterwards, tile by tile: a residual sum needs no second tensor of
its size. Where there is room, bytes stay reserved for some steps after their last reader, so that the next writer
rarely waits.

Invariants: values that share bytes are an operand and a result of one group that reads each element of the operand
once, at the point at which it writes the result's element. Memory-space assignment and `allocate` make the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ppuc.compiler.lowering.kinds import group_kind
from ppuc.compiler.passes.memory.live_ranges import PLACEMENTS, assign, live_ranges, storage_roots
from ppuc.compiler.passes.memory.minimalloc import max_live
from ppuc.compiler.passes.memory.ranges import Range, padded
from ppuc.ir.graph import Graph, Op
from ppuc.ir.ops.base import OPS, Kind

SLACKS = (2, 1, 0)
"""Steps that bytes stay reserved after their last reader: the first value for which everything fits is used."""


def overwritten(graph: Graph) -> dict[str, str]:
    """Result -> the operand that it may overwrite, both by storage root: an operand of the same type, not used later,
    and read elementwise at the points where the result is written."""
    roots = storage_roots(graph)
    live = live_ranges(graph, roots)
    own = {r.name: r.type for op in graph.ops if op.name == "group" for r in op.results if roots[r.name] == r.name}
    kept = {roots[v.name] for v in graph.results}
    kept |= {roots[r.name] for op in graph.ops if op.name == "group" for r in op.results if roots[r.name] != r.name}
    found: dict[str, str] = {}
    for step, op in enumerate(graph.ops):
        kind = group_kind(op)
        if op.body is None or len(op.results) != 1 or kind is None or not kind.overwrites:
            continue
        result = op.results[0]
        if result.name not in own or result.name in kept or not _elementwise_after_all(op.body):
            continue
        for operand, param in zip(op.operands, op.body.params, strict=True):
            root = roots[operand.name]
            alone = sum(roots[v.name] == root for v in op.operands) == 1
            dying = root in own and root not in kept and live[root][1] == step
            same = dying and operand.type == result.type and padded(own[root]) == padded(result.type)
            if alone and same and _read_in_place(op.body, param.name):
                found[result.name] = root
                break
    return found


def _elementwise_after_all(body: Graph) -> bool:
    return all(OPS[op.name].kind not in (Kind.REDUCTION, Kind.SCAN) for op in body.ops)


def _read_in_place(body: Graph, param: str) -> bool:
    """Whether `param` is read by one elementwise op of its own shape, whose result reaches the group's result only
    through ops of that shape."""
    readers = [op for op in body.ops if any(v.name == param for v in op.operands)]
    dims = body.results[0].type.dims
    if len(readers) != 1 or not _pointwise(readers[0], dims):
        return False
    reached = {readers[0].results[0].name}
    for op in body.ops:
        if any(v.name in reached for v in op.operands):
            if not _pointwise(op, dims):
                return False
            reached.add(op.results[0].name)
    return body.results[0].name in reached


def _pointwise(op: Op, dims: tuple[int, ...]) -> bool:
    return OPS[op.name].kind is Kind.ELEMENTWISE and op.results[0].type.dims == dims


def plan_l2(
    ranges: Mapping[str, Range], shared: Mapping[str, str], capacity: int, *, search: bool = True
) -> tuple[dict[str, int], list[str]]:
    """Addresses of `ranges` by name, and the names of those that do not fit. `shared` holds pairs from `overwritten`; a
    pair is separated if its joint live range does not fit. Without `search`, only greedy orders are tried."""
    pairs = {new: old for new, old in shared.items() if new in ranges and old in ranges}
    for slack in SLACKS:
        members, items = _united(ranges.values(), pairs, slack)
        if slack != SLACKS[-1] and max_live(items) > capacity:
            continue
        at, failed = assign(items, capacity, PLACEMENTS if search and slack == SLACKS[-1] else 0)
        if not failed:
            return _addresses(members, at), []
    lost = {name for item in failed for name in members[item]}
    members, items = _united(ranges.values(), {n: o for n, o in pairs.items() if n not in lost and o not in lost}, 0)
    at, failed = assign(items, capacity, PLACEMENTS if search else 0)
    return _addresses(members, at), [name for item in failed for name in members[item]]


def _united(ranges: Iterable[Range], pairs: Mapping[str, str], slack: int) -> tuple[dict[str, list[str]], list[Range]]:
    """One range per set of values that share bytes, named after its first member, and the members by that name."""
    head: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    united: dict[str, Range] = {}
    for item in sorted(ranges, key=lambda r: (r.start, r.name)):
        first = head[pairs[item.name]] if item.name in pairs else item.name
        head[item.name] = first
        members.setdefault(first, []).append(item.name)
        known = united.get(first, item)
        united[first] = replace(known, end=max(known.end, item.end), rank=min(known.rank, item.rank))
    return members, [replace(r, end=r.end + slack) for r in united.values()]


def _addresses(members: Mapping[str, list[str]], at: Mapping[str, int]) -> dict[str, int]:
    return {name: at[first] for first, names in members.items() if first in at for name in names}
