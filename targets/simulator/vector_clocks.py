"""Vector clocks of the hazard checker, and the accesses that they order.

A queue has one component for compute queues and two for transfers: issued instructions (at which reads happen) and
completed ones (at which writes happen). A component's value n stands for the queue's n-th instruction. A queue's clock
has two parts: `local` for its own unit's components, and `far`, the number of an immutable vector of all components,
which changes only at waits for counters. Signals (pushes, pops) carry both; counters carry a whole vector.

An edge counts only if the wait requires the signal: a claim joins the pops of its slot, a wait the push of its slot, a
first claim all pops of the rings before it, a counter wait all bumps of the blocks that it waits for. Bumps are kept by
block number (counters.py), not by counter: a wait for a group does not imply bumps of later groups by its counters.

Invariant: a `far` vector never changes once it has a number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.tables import Code, Machine

PER_UNIT = 6
"""Components of a unit: load issued, load completed, store issued, store completed, tensor, vector."""

RAW, WAR, WAW, EARLY = range(4)
"""Kinds of hazards; EARLY: a bump of a counter whose earlier group is not known to be complete."""

FOUND_ROWS = 64


class Checker(NamedTuple):
    """State of the hazard checker. C components; a stamp is component << 52 | instruction << 32 | number."""

    num: np.ndarray  # [4] far vectors in use, hazards found, unused, unused
    seq: np.ndarray  # [S] instructions started
    released: np.ndarray  # [S] instructions that have released their slots
    done: np.ndarray  # [S] instructions completed
    local: np.ndarray  # [S, PER_UNIT]
    far: np.ndarray  # [S]
    pool: np.ndarray  # [P, C] far vectors
    memo: np.ndarray  # [M, 3] recent joins
    snap: np.ndarray  # [S, IN_FLIGHT, PER_UNIT + 5] of instructions in flight: local, far, instruction, last mask, box
    ring_n: np.ndarray  # [U, R, 2 + 2 * 4] claims, pushes, then waits and pops by queue
    push_l: np.ndarray  # [U, slots, PER_UNIT]
    push_f: np.ndarray  # [U, slots]
    pop_l: np.ndarray  # [U, slots, 4, PER_UNIT]
    pop_f: np.ndarray  # [U, slots, 4]
    slot0: np.ndarray  # [R] number of a ring's first slot
    bumps: np.ndarray  # [blocks, C]
    bumped: np.ndarray  # [blocks] number of bumps
    # l1 and acc, as intervals between the ends of slots
    iv: np.ndarray  # [slots, 2] first interval and end
    iv_w: np.ndarray  # [U, intervals] stamp of the last write
    iv_r: np.ndarray  # [U, intervals, PER_UNIT] stamps of the last reads
    # tensors that the segment writes, or that share bytes with one
    t_of: np.ndarray  # [I, 2] tracked tensor that an instruction reads, and writes (-1: none)
    t_gran: np.ndarray  # [T, 3] elements of a granule, first granule, written by the segment
    t_r: np.ndarray  # [T, C] stamps of the last reads
    t_w: np.ndarray  # [T, C] stamps of the last writes
    t_n: np.ndarray  # [T] accesses
    cleared: np.ndarray  # [S, T, 2] accesses of a tensor that were ordered before a stream's last read, write there
    last: np.ndarray  # [granules, 2] stamps of the last write and the last read
    ov_ptr: np.ndarray  # [T + 1]
    ov: np.ndarray  # [.] tensors that share bytes
    scratch: np.ndarray  # [3, 16]
    found: np.ndarray  # [FOUND_ROWS, 5] kind, first, second instruction, place (slot or tensor), is tensor (EARLY:
    # first is 0, place a block number)


@helper
def component(m: Machine, s: int, completed: bool) -> int:
    """The component of a stream's issues or completions."""
    if s >= 4 * len(m.hop):
        return PER_UNIT * len(m.hop) + 2 * (s - 4 * len(m.hop)) + completed
    q = s % 4
    return PER_UNIT * (s // 4) + (2 * q + completed if q < 2 else 2 + q)


@helper
def knows(k: Checker, m: Machine, s: int, stamp: int) -> bool:
    """Whether the access of `stamp` happened before the instruction that stream s starts now."""
    if stamp == 0:
        return True
    comp, number = stamp >> 52, stamp & 0xFFFFFFFF
    unit = s // 4 if s < 4 * len(m.hop) else -1
    if unit >= 0 and comp // PER_UNIT == unit and k.local[s, comp % PER_UNIT] >= number:
        return True
    return bool(k.pool[k.far[s], comp] >= number)


@helper
def ordered(k: Checker, m: Machine, s: int, stamp: int, write: bool) -> bool:
    """Whether an earlier access is ordered before one of the instruction that stream s starts. A queue's own accesses
    are ordered, except that a transfer may read before an earlier one has written."""
    if stamp == 0:
        return True
    comp = stamp >> 52
    if comp == component(m, s, False) or (write and comp == component(m, s, True)):
        return True
    return knows(k, m, s, stamp)


@helper
def join_far(k: Checker, a: int, b: int) -> int:
    """Number of the join of vectors a and b."""
    if a == b or b == 0:
        return a
    if a == 0:
        return b
    slot = (a * 7919 + b) % len(k.memo)
    if k.memo[slot, 0] == a and k.memo[slot, 1] == b:
        return int(k.memo[slot, 2])
    more, less = False, False
    for c in range(k.pool.shape[1]):
        more = more or k.pool[a, c] > k.pool[b, c]
        less = less or k.pool[a, c] < k.pool[b, c]
    if not less:
        result = a
    elif not more:
        result = b
    else:
        result = k.num[0]
        k.num[0] += 1
        for c in range(k.pool.shape[1]):
            k.pool[result, c] = max(k.pool[a, c], k.pool[b, c])
    k.memo[slot, 0], k.memo[slot, 1], k.memo[slot, 2] = a, b, result
    return result


@helper
def join_counter(c: Code, k: Checker, s: int, block: int) -> None:
    """Join all bumps of a block that stream s has waited for. The counter of a block without bumps was waited for as
    the earlier block left it."""
    if c.expect[block] == 0 and c.before[block] >= 0:
        block = c.before[block]
    a, news = k.far[s], False
    for j in range(k.pool.shape[1]):
        news = news or k.bumps[block, j] > k.pool[a, j]
    if news:
        new = k.num[0]
        k.num[0] += 1
        for j in range(k.pool.shape[1]):
            k.pool[new, j] = max(k.pool[a, j], k.bumps[block, j])
        k.far[s] = new


@helper
def _join_pops(c: Code, k: Checker, s: int, u: int, r: int, slot: int, most: int) -> None:
    """Join the last pops of a slot by consumers with at most `most` pops of the ring; other consumers' pops belong to a
    later turn, which does not imply the one waited for."""
    for q in range(4):
        if c.ring[r].consumers >> q & 1 and k.ring_n[u, r, 6 + q] <= most:
            for j in range(PER_UNIT):
                k.local[s, j] = max(k.local[s, j], k.pop_l[u, slot, q, j])
            k.far[s] = join_far(k, k.far[s], k.pop_f[u, slot, q])


@helper
def claim(c: Code, k: Checker, s: int, r: int) -> None:
    """Stream s claims the next slot of a ring."""
    u = s // 4
    n, depth = k.ring_n[u, r, 0], c.ring[r].depth
    k.ring_n[u, r, 0] = n + 1
    if n >= depth:
        _join_pops(c, k, s, u, r, k.slot0[r] + n % depth, n)
    elif n == 0:
        for j in range(c.ring[r].after_lo, c.ring[r].after_hi):
            before = c.after[j]
            for i in range(c.ring[before].depth):
                _join_pops(c, k, s, u, before, k.slot0[before] + i, 1 << 62)


@helper
def wait(c: Code, k: Checker, s: int, r: int) -> None:
    """Stream s waits for the next filled slot of a ring. A producer that did not wait may have refilled the slot by
    then: that push does not imply the one waited for."""
    u, q = s // 4, s % 4
    n, depth = k.ring_n[u, r, 2 + q], c.ring[r].depth
    slot = k.slot0[r] + n % depth
    k.ring_n[u, r, 2 + q] = n + 1
    if k.ring_n[u, r, 1] - n > depth:
        return
    for j in range(PER_UNIT):
        k.local[s, j] = max(k.local[s, j], k.push_l[u, slot, j])
    k.far[s] = join_far(k, k.far[s], k.push_f[u, slot])


@helper
def signal(c: Code, k: Checker, m: Machine, s: int, r: int, push: bool, entry: np.ndarray, number: int) -> None:
    """Push or pop a ring on completion of the instruction of `entry` (a row of snap)."""
    u, q = s // 4, s % 4
    at = 1 if push else 6 + q
    slot = k.slot0[r] + k.ring_n[u, r, at] % c.ring[r].depth
    k.ring_n[u, r, at] += 1
    own = component(m, s, True) % PER_UNIT
    for j in range(PER_UNIT):
        value = max(entry[j], number) if j == own else entry[j]
        if push:
            k.push_l[u, slot, j] = value
        else:
            k.pop_l[u, slot, q, j] = value
    if push:
        k.push_f[u, slot] = entry[PER_UNIT]
    else:
        k.pop_f[u, slot, q] = entry[PER_UNIT]


@helper
def report(k: Checker, kind: int, stamp: int, instr: int, place: int, tensor: bool) -> None:
    """Record a hazard between the access of `stamp` and an instruction, once per pair."""
    first = stamp >> 32 & 0xFFFFF
    for i in range(k.num[1]):
        if k.found[i, 0] == kind and k.found[i, 1] == first and k.found[i, 2] == instr:
            return
    if k.num[1] < FOUND_ROWS:
        row = k.found[k.num[1]]
        row[0], row[1], row[2], row[3], row[4] = kind, first, instr, place, tensor
        k.num[1] += 1


@helper
def bump(c: Code, k: Checker, m: Machine, s: int, block: int, entry: np.ndarray, number: int) -> None:
    """Bump the counter of a block on completion of the instruction of `entry`. The earlier block of that counter must
    be complete, and its bumps known to the instruction."""
    before, far = c.before[block], entry[PER_UNIT]
    if before >= 0 and (k.bumped[before] < c.expect[before] or not _knows_bumps(k, m, s, before, entry, number)):
        report(k, EARLY, 0, entry[PER_UNIT + 1], block, False)
    k.bumped[block] += 1
    for j in range(k.pool.shape[1]):
        k.bumps[block, j] = max(k.bumps[block, j], k.pool[far, j])
    if s < 4 * len(m.hop):
        base = PER_UNIT * (s // 4)
        for j in range(PER_UNIT):
            k.bumps[block, base + j] = max(k.bumps[block, base + j], entry[j])
    for completed in range(2):
        own = component(m, s, completed == 1)
        k.bumps[block, own] = max(k.bumps[block, own], number)


@helper
def _knows_bumps(k: Checker, m: Machine, s: int, block: int, entry: np.ndarray, number: int) -> bool:
    """Whether all bumps of a block happened before the instruction of `entry` completes."""
    far, base = entry[PER_UNIT], PER_UNIT * (s // 4) if s < 4 * len(m.hop) else -PER_UNIT
    issued, completed = component(m, s, False), component(m, s, True)
    for j in range(k.pool.shape[1]):
        value = k.pool[far, j]
        if base <= j < base + PER_UNIT:
            value = max(value, entry[j - base])
        if j in (issued, completed):
            value = max(value, number)
        if k.bumps[block, j] > value:
            return False
    return True
