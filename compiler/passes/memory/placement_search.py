"""Exact search for addresses: canonical branch and bound (the method of MiniMalloc, ASPLOS 2023).

Time is divided into sections, one per maximal set of buffers live together. Buffers are placed one after another, each
at its *resting offset* (the top of what lies below it), with non-decreasing offsets: for every feasible plan, an equal
or lower one can be built this way. A branch is pruned if in some section the lowest resting offset plus the remaining
sizes exceed the capacity, or if a buffer would leave a gap that another one fits into (dominance). After every
placement, the remaining buffers split into components that share no section; they are solved one by one, and an
infeasible one prunes the branch. Exhausted states are remembered by a 64-bit hash, also across restarts.

A frame of the explicit stack is a component. Its buffers are rows [BEGIN, END) of `buffer` and `rank` in an arena,
sorted by resting offset, then rank; the components left by its latest placement lie behind it. Invariant: the trail
from TRAIL on records every change that a frame has made to `offset` and `resting` since it placed its candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppuc.ir.jit.decorators import entry, helper

SOLVED, INFEASIBLE, EXHAUSTED, TOO_LARGE = range(4)
"""What `search` returns; EXHAUSTED: the node limit was reached, TOO_LARGE: the arena was full."""

ORDERS = 3
"""Orders in which candidates of equal offset are tried: lifetime-area-total, total-area-lifetime,
total-lifetime-area, each descending; total is the fullest section of the component that a buffer lives in."""

BEGIN, END, CURSOR, LOW, RANK, TRAIL, PLACED, CEILING, FIRST, LAST, NEXT, EARLY, LATE, OPEN, FIELDS = range(15)
"""Fields of a frame: arena rows; next candidate; least offset and rank of candidates; trail mark; buffer placed (-1:
none); offset from which candidates would leave a gap; children and the next one of them; sections [EARLY, LATE);
whether its candidate is placed and its children are being solved."""

C_BEGIN, C_END, C_EARLY, C_LATE, C_FIELDS = range(5)
"""Fields of a child: arena rows, sections."""

_FAR = 1 << 60


class Problem(NamedTuple):
    """n buffers over s sections. Sizes are in units of the alignment."""

    size: np.ndarray  # [n] i64
    lifetime: np.ndarray  # [n] i64
    early: np.ndarray  # [n] i64 first section
    late: np.ndarray  # [n] i64 section after the last
    overlap_ptr: np.ndarray  # [n + 1] i64
    overlap: np.ndarray  # i32, the buffers live together with each
    capacity: int


class Work(NamedTuple):
    """Mutable state of a search."""

    offset: np.ndarray  # [n] i64, -1: not placed
    resting: np.ndarray  # [n] i64
    fullest: np.ndarray  # [n] i64 the key `total`
    buffer: np.ndarray  # [arena] i32
    rank: np.ndarray  # [arena] i32
    frames: np.ndarray  # [n + 2, FIELDS] i64
    hashes: np.ndarray  # [n + 2, 2] u64: of the state, of the component whose order gave the ranks
    children: np.ndarray  # [2n + 4, C_FIELDS] i64
    trail: np.ndarray  # [.., 2] i64: buffer, resting offset before (-1: it was not placed)
    total: np.ndarray  # [s] i64 sizes still to be placed
    lowest: np.ndarray  # [s] i64 lowest resting offset of these
    bridges: np.ndarray  # [s] i64 buffers that also live in the next section
    component: np.ndarray  # [s] i64
    slot: np.ndarray  # [s] i64 next arena row of a component
    failed: np.ndarray  # [power of two] u64 hashes of states without a solution


@helper
def _mixed(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@helper
def _before(p: Problem, fullest: np.ndarray, order: int, a: int, b: int) -> bool:
    """Whether `a` comes before `b` in an order."""
    long = p.lifetime[a] - p.lifetime[b]
    full = fullest[a] - fullest[b]
    area = p.lifetime[a] * p.size[a] - p.lifetime[b] * p.size[b]
    first = long if order == 0 else full
    second = long if order == 2 else area
    third = full if order == 0 else (long if order == 1 else area)
    if first != 0:
        return bool(first > 0)
    if second != 0:
        return bool(second > 0)
    return bool(third > 0) if third != 0 else a < b


@helper
def _rank(p: Problem, w: Work, f: np.ndarray, order: int) -> None:
    """Ranks for a new component, from its own totals."""
    for s in range(f[EARLY], f[LATE]):
        w.total[s] = 0
    for i in range(f[BEGIN], f[END]):
        b = w.buffer[i]
        for s in range(p.early[b], p.late[b]):
            w.total[s] += p.size[b]
    for i in range(f[BEGIN], f[END]):
        b = w.buffer[i]
        w.fullest[b] = 0
        for s in range(p.early[b], p.late[b]):
            w.fullest[b] = max(w.fullest[b], w.total[s])
    for i in range(f[BEGIN] + 1, f[END]):
        b, j = w.buffer[i], i
        while j > f[BEGIN] and _before(p, w.fullest, order, b, w.buffer[j - 1]):
            w.buffer[j] = w.buffer[j - 1]
            j -= 1
        w.buffer[j] = b
    for i in range(f[BEGIN], f[END]):
        w.rank[i] = i - f[BEGIN]


@helper
def _sort(p: Problem, w: Work, f: np.ndarray) -> None:
    """Sort candidates by resting offset, then rank (insertion sort: nearly sorted), and set the offset from which they
    leave a gap."""
    f[CEILING] = _FAR
    for i in range(f[BEGIN], f[END]):
        b, r, j = w.buffer[i], w.rank[i], i
        at = w.resting[b]
        f[CEILING] = min(f[CEILING], at + p.size[b])
        while j > f[BEGIN]:
            other = w.resting[w.buffer[j - 1]]
            if other < at or (other == at and w.rank[j - 1] < r):
                break
            w.buffer[j], w.rank[j] = w.buffer[j - 1], w.rank[j - 1]
            j -= 1
        w.buffer[j], w.rank[j] = b, r


@helper
def _state(w: Work, f: np.ndarray) -> np.uint64:
    """Order-independent hash of the remaining buffers and their resting offsets."""
    found = np.uint64(1)
    for i in range(f[BEGIN], f[END]):
        b = w.buffer[i]
        at = _mixed(np.uint64(w.resting[b]) + np.uint64(12345))
        found += _mixed(np.uint64(b + 1) * np.uint64(0x9E3779B97F4A7C15) + at)
    return found


@helper
def _enter(p: Problem, w: Work, depth: int, order: int) -> bool:
    """Push the next child of the frame at `depth` as a frame. False if its state is known to be infeasible."""
    parent, f = w.frames[depth], w.frames[depth + 1]
    child = w.children[parent[NEXT]]
    parent[NEXT] += 1
    f[BEGIN], f[END], f[EARLY], f[LATE] = child[C_BEGIN], child[C_END], child[C_EARLY], child[C_LATE]
    f[CURSOR], f[PLACED], f[OPEN] = f[BEGIN], -1, 0
    state = _state(w, f)
    if depth > 0 and parent[LAST] - parent[FIRST] == 1:  # the same component continues: same order, no lower offset
        f[LOW], f[RANK] = w.offset[parent[PLACED]], w.rank[parent[CURSOR]]
        w.hashes[depth + 1, 1] = w.hashes[depth, 1]
        state += _mixed(np.uint64(f[LOW]) * np.uint64(5) + np.uint64(f[RANK]) + _mixed(w.hashes[depth, 1]))
    else:
        f[LOW], f[RANK] = 0, -1
        w.hashes[depth + 1, 1] = state + np.uint64(order)
        _rank(p, w, f, order)
    w.hashes[depth + 1, 0] = state
    _sort(p, w, f)
    return bool(w.failed[state & np.uint64(len(w.failed) - 1)] != state)


@helper
def _choose(w: Work, f: np.ndarray) -> bool:
    """Move the cursor to the next candidate; False when there is none."""
    while f[CURSOR] < f[END]:
        at = w.resting[w.buffer[f[CURSOR]]]
        if at >= f[CEILING]:
            return False
        if at > f[LOW] or (at == f[LOW] and w.rank[f[CURSOR]] >= f[RANK]):
            return True
        f[CURSOR] += 1
    return False


@helper
def _put(p: Problem, w: Work, f: np.ndarray, trail: int) -> int:
    """Place the candidate at its resting offset and raise those that overlap it. Returns the end of the trail."""
    b = w.buffer[f[CURSOR]]
    f[TRAIL], f[PLACED] = trail, b
    w.trail[trail, 0], w.trail[trail, 1] = b, -1
    trail += 1
    w.offset[b] = w.resting[b]
    top = w.resting[b] + p.size[b]
    for j in range(p.overlap_ptr[b], p.overlap_ptr[b + 1]):
        other = p.overlap[j]
        if w.offset[other] < 0 and w.resting[other] < top:
            w.trail[trail, 0], w.trail[trail, 1] = other, w.resting[other]
            trail += 1
            w.resting[other] = top
    return trail


@helper
def _take_back(w: Work, f: np.ndarray, trail: int) -> int:
    """Undo everything since the frame's placement, and pass on to the next candidate."""
    while trail > f[TRAIL]:
        trail -= 1
        b, before = w.trail[trail, 0], w.trail[trail, 1]
        if before < 0:
            w.offset[b] = -1
        else:
            w.resting[b] = before
    f[OPEN] = 0
    f[CURSOR] += 1
    return trail


@helper
def _fits(p: Problem, w: Work, f: np.ndarray) -> bool:
    """Total the remaining sizes of the frame's component; returns whether every section can still hold them."""
    for s in range(f[EARLY], f[LATE]):
        w.total[s], w.lowest[s], w.bridges[s] = 0, _FAR, 0
    for i in range(f[BEGIN], f[END]):
        b = w.buffer[i]
        if w.offset[b] >= 0:
            continue
        for s in range(p.early[b], p.late[b]):
            w.total[s] += p.size[b]
            w.lowest[s] = min(w.lowest[s], w.resting[b])
            w.bridges[s] += 1
        w.bridges[p.late[b] - 1] -= 1
    low = w.offset[f[PLACED]] if f[PLACED] >= 0 else 0
    for s in range(f[EARLY], f[LATE]):
        if w.total[s] > 0 and max(w.lowest[s], low) + w.total[s] > p.capacity:
            return False
    return True


@helper
def _split(p: Problem, w: Work, depth: int) -> bool:
    """Make the components of the remaining buffers the frame's children. False if the arena is full."""
    f = w.frames[depth]
    f[FIRST] = w.frames[depth - 1, LAST] if depth > 0 else 0
    row = w.children[f[FIRST] - 1, C_END] if depth > 0 else f[END]
    last, s = f[FIRST], f[EARLY]
    while s < f[LATE]:
        if w.total[s] == 0:
            s += 1
            continue
        w.children[last, C_EARLY] = s
        w.component[s] = last
        while w.bridges[s] > 0:
            s += 1
            w.component[s] = last
        s += 1
        w.children[last, C_LATE] = s
        last += 1
    f[LAST], f[NEXT], f[OPEN] = last, f[FIRST], 1
    for c in range(last - f[FIRST]):
        w.slot[c] = 0
    for i in range(f[BEGIN], f[END]):
        if w.offset[w.buffer[i]] < 0:
            w.slot[w.component[p.early[w.buffer[i]]] - f[FIRST]] += 1
    for c in range(f[FIRST], last):
        w.children[c, C_BEGIN] = row
        row += w.slot[c - f[FIRST]]
        w.children[c, C_END] = row
        w.slot[c - f[FIRST]] = w.children[c, C_BEGIN]
    if row > len(w.buffer):
        return False
    for i in range(f[BEGIN], f[END]):
        if w.offset[w.buffer[i]] < 0:
            c = w.component[p.early[w.buffer[i]]] - f[FIRST]
            w.buffer[w.slot[c]], w.rank[w.slot[c]] = w.buffer[i], w.rank[i]
            w.slot[c] += 1
    return True


@entry
def search(p: Problem, w: Work, order: int, limit: int) -> tuple[int, int]:
    """Search with one order within `limit` placements. Returns the outcome and the placements tried; after SOLVED the
    plan is in `w.offset`. `w.failed` may come from earlier searches of the same problem."""
    n = len(p.size)
    for b in range(n):
        w.offset[b], w.resting[b], w.buffer[b], w.rank[b] = -1, 0, b, 0
    root = w.frames[0]
    root[BEGIN], root[END], root[EARLY], root[LATE], root[PLACED] = 0, n, 0, len(w.total), -1
    if not _fits(p, w, root):
        return INFEASIBLE, 0
    if not _split(p, w, 0):
        return TOO_LARGE, 0
    depth, trail, nodes = 0, 0, 0
    failure = False
    while True:
        f = w.frames[depth]
        if f[OPEN] and not failure:
            if f[NEXT] < f[LAST]:
                failure = not _enter(p, w, depth, order)
                depth += 0 if failure else 1
            elif depth == 0:
                return SOLVED, nodes
            else:
                depth -= 1
            continue
        if failure:
            if depth == 0:
                return INFEASIBLE, nodes
            trail = _take_back(w, f, trail)
            failure = False
        if not _choose(w, f):
            state = w.hashes[depth, 0]
            w.failed[state & np.uint64(len(w.failed) - 1)] = state
            depth -= 1
            failure = True
            continue
        nodes += 1
        if nodes > limit:
            return EXHAUSTED, nodes
        trail = _put(p, w, f, trail)
        if not _fits(p, w, f):
            trail = _take_back(w, f, trail)
        elif not _split(p, w, depth):
            return TOO_LARGE, nodes
