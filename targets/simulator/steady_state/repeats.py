"""Finds repetition in a segment: kernels that are equal up to a shift of all their numbers.

A network repeats its layers. Two kernels are alike when their streams, rings and descriptions are equal, with rings,
loops, nodes and descriptions counted from the first of the kernel and queue. Counter groups do not shift uniformly:
replay.py pairs them.

Invariant: alike kernels behave the same, at the same relative times, from the same relative state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import MARKS, FlatSegment
from ppuc.targets.simulator.steady_state.once import once_a_segment

LEAST = 4
"""Minimum number of repetitions."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """Kernels k and k + `period` are alike for k in [`first`, `last`)."""

    period: int
    first: int
    last: int


@once_a_segment
def find_repeats(flat: FlatSegment) -> Repeats | None:
    """The repetition that covers most kernels; None if none is worthwhile."""
    kernels = len(flat.segment.kernels)
    if kernels < LEAST:
        return None
    sizes = np.diff(flat.marks, axis=1).transpose(1, 0, 2).reshape(kernels, -1)
    kinds = np.unique(sizes, axis=0, return_inverse=True)[1].ravel()
    if _best(kinds) is None:
        return None
    number: dict[bytes, int] = {}
    return _best(np.array([number.setdefault(key, len(number)) for key in _keys(flat)]))


def _best(kinds: np.ndarray) -> Repeats | None:
    best: Repeats | None = None
    for period in range(1, len(kinds) // LEAST + 1):
        first, last = _longest(kinds[:-period] == kinds[period:])
        gain = last - first - (best.last - best.first if best else 0)
        if last - first >= (LEAST - 1) * period and gain > (period if best else 0):
            best = Repeats(period, first, last)
    return best


def _longest(same: np.ndarray) -> tuple[int, int]:
    """Begin and end of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    at = int(np.argmax(ends - starts))
    return int(starts[at]), int(ends[at])


def _keys(flat: FlatSegment) -> list[bytes]:
    """Per kernel, its complete description as bytes, with relative numbers."""
    c, marks, kernels = flat.code, flat.marks, len(flat.segment.kernels)
    tables = _relative(flat)
    facts = np.column_stack([_ints(c.kernel)[:, :5], c.radix, c.trips])
    rings, after = _ints(c.ring), c.after - np.repeat(_ring_base(flat), c.ring["after_hi"] - c.ring["after_lo"])
    bounds = np.searchsorted(flat.ring_kernel, np.arange(kernels + 1))
    keys = []
    for k in range(kernels):
        r0, r1 = bounds[k], bounds[k + 1]
        a0, a1 = (rings[r0, 3], rings[r1 - 1, 4]) if r1 > r0 else (0, 0)
        counts = rings[r0:r1, 4] - rings[r0:r1, 3]
        parts = [facts[k], rings[r0:r1, :3], counts, after[a0:a1], np.ascontiguousarray(c.total[:, r0:r1])]
        for name, table in tables.items():
            i = MARKS.index(name)
            parts += [table[marks[q, k, i] : marks[q, k + 1, i]] for q in range(4)]
        keys.append(b"|".join(np.ascontiguousarray(part).tobytes() for part in parts))
    return keys


def _relative(flat: FlatSegment) -> dict[str, np.ndarray]:
    """The tables that marks count, as int64 [rows, columns], numbers counted from the first of kernel and queue."""
    c, kernels = flat.code, len(flat.segment.kernels)
    start = {name: flat.marks[:, :-1, i].ravel() for i, name in enumerate(MARKS)}
    ring0 = np.tile(np.searchsorted(flat.ring_kernel, np.arange(kernels)), 4)

    def block(name: str, rows: int) -> np.ndarray:
        """Kernel and queue of each row."""
        found, i = np.zeros(rows, np.int64), MARKS.index(name)
        for q in range(4):
            at = flat.marks[q, :, i]
            found[at[0] : at[-1]] = np.repeat(np.arange(q * kernels, (q + 1) * kernels), np.diff(at))
        return found

    node, loop, ins, use, sync, op = (_ints(x) for x in (c.node, c.loop, c.ins, c.use, c.sync, c.op))
    mma, vec, term, traffic = (_ints(x) for x in (c.mma, c.vec, c.term, c.traffic))
    b = block("node", len(node))
    looping = (node[:, 0] == t.NODE_LOOP) | (node[:, 0] == t.NODE_END)
    node[:, 1] -= np.where(looping, start["loop"][b], np.where(node[:, 0] == t.NODE_INSTR, start["ins"][b], node[:, 1]))
    b = block("loop", len(loop))
    loop[:, [5, 6, 8]] -= start["node"][b][:, None]
    loop[:, 7] = 0
    b = block("ins", len(ins))
    ins[:, [0, 4, 8]] = 0
    for columns, name in (((10, 11), "use"), ((12, 13, 14, 15), "sync"), ((16, 17), "op")):
        ins[:, columns] -= start[name][b][:, None]
    use[:, 1] -= ring0[block("use", len(use))]
    op[:, 0] -= ring0[block("op", len(op))]
    sync[:, 0] = 0
    mma[:, 0] = 0
    vec[:, 0] = 0
    vec[:, 2:4] -= start["term"][block("vec", len(vec))][:, None]
    vec[:, 4:6] -= start["traffic"][block("vec", len(vec))][:, None]
    boxes = [_ints(x).reshape(len(c.box), -1) for x in (c.box, c.dim, c.axis, c.coef)]
    return {
        "node": node, "loop": loop, "ins": ins, "use": use, "sync": sync, "op": op, "box": np.hstack(boxes),
        "extent": np.hstack([_ints(c.extent), c.extent_coef]), "mma": mma, "vec": vec, "term": term, "traffic": traffic,
    }  # fmt: skip


def _ring_base(flat: FlatSegment) -> np.ndarray:
    """Per ring, the first ring of its kernel."""
    owners = np.array(flat.ring_kernel, np.int64)
    return np.searchsorted(owners, owners)


def _ints(table: np.ndarray) -> np.ndarray:
    """A copy as int64 [rows, columns]; floats by their bits."""
    if table.dtype == np.int64:
        return table.copy()
    columns = table.dtype.itemsize // np.dtype(np.int64).itemsize  # given: a table without rows does not tell
    return np.ascontiguousarray(table).view(np.int64).reshape(*table.shape, columns).copy()


__all__ = ["LEAST", "Repeats", "find_repeats"]
