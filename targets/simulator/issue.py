"""The head of a queue: blocking conditions and issue.

Invariant: a condition of a blocked head, once true, stays true until the head issues (only the queue's own instructions
could undo it), so a retried head resumes at the condition that blocked it.
"""

from __future__ import annotations

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.cursor import seek, set_masks
from ppuc.targets.simulator.engines import log_begin
from ppuc.targets.simulator.events import E_ISSUE, E_START, account, schedule
from ppuc.targets.simulator.records import (
    Core,
    Group,
    Instruction,
    Mover,
    Numbers,
    Range,
    Stat,
    Stream,
    Sync,
    Use,
)
from ppuc.targets.simulator.tables import (
    B_AFTER,
    B_BLOCK,
    B_COUNTER,
    B_DATA,
    B_NONE,
    B_ROOM,
    B_SPACE,
    CLAIM,
    COPY,
    LOAD,
    MMA,
    STORE,
    VEC,
    WAIT,
    Code,
    Machine,
    State,
)
from ppuc.targets.simulator.transfers import queue_transfer
from ppuc.targets.simulator.work import measure_box


@helper
def _retired(c: Code, st: State, u: int, r: int) -> bool:
    """Whether a ring of the unit is retired: all its pushes and pops are done."""
    total = c.total[u, r]
    if st.filled[u, r].pushed < total:
        return False
    for q in range(4):  # noqa: SIM110 - compiled
        if c.ring[r].consumers >> q & 1 and st.reader[u, r, q].popped < total:
            return False
    return True


@helper
def _ring_block(c: Code, st: State, u: int, q: int, use: Use) -> int:
    """What blocks a claim or wait; B_NONE if nothing."""
    r = use.ring
    if use.kind == WAIT:
        return B_NONE if st.filled[u, r].pushed > st.reader[u, r, q].waited else B_DATA
    claimed, ring = st.filled[u, r].claimed, c.ring[r]
    for other in range(4):
        if ring.consumers >> other & 1 and claimed - st.reader[u, r, other].popped >= ring.depth:
            return B_SPACE
    if claimed == 0:
        for j in range(ring.after_lo, ring.after_hi):
            if not _retired(c, st, u, c.after[j]):
                return B_AFTER
    return B_NONE


@helper
def _missing(c: Code, st: State, sync: Sync, low: int, high: int) -> bool:
    """Whether a counter of a wait's group is incomplete."""
    group: Group = c.group[sync.group]
    lo, hi = 0, group.count - 1
    if sync.touched:
        if high < low:
            return False
        lo, hi = low // group.block, min(hi, high // group.block)
    for j in range(lo, hi + 1):  # noqa: SIM110 - compiled
        if st.counter[group.first + j] < c.base[group.at + j] + c.expect[group.at + j]:
            return True
    return False


@helper
def _tile_missing(c: Code, st: State, q: Stream, ins: Instruction) -> bool:
    """Whether a load opens a tile before an earlier group of its kernel's tiles is stored. Tiles that share a unit
    start together and stay in step, so none of them loads while another stores."""
    around = c.kernel[ins.kernel].around
    if around < 0 or ins.depth < around or (q.first >> around) != (1 << (ins.depth - around)) - 1:
        return False
    slots = c.kernel[ins.kernel].slots
    return bool(st.tiles[q.unit, ins.kernel] < q.tile // len(st.filled) // slots * slots)


@helper
def _measure(c: Code, st: State, s: int, ins: Instruction) -> None:
    """Set the head's box."""
    q: Stream = st.stream[s]
    q.measured = 1
    if ins.kind in (LOAD, STORE):
        measure_box(c, st, s, ins.desc, ins.depth)
    elif ins.kind == COPY:
        copy: Range = c.copy[ins.desc]
        q.moved = q.fetched = q.run = q.row = copy.count
        q.low, q.high, q.pitch = copy.first, copy.first + copy.count - 1, 0


@helper
def _find_block(c: Code, m: Machine, st: State, s: int) -> int:
    """What blocks the head (B_*); `what` is set to the ring or group."""
    q: Stream = st.stream[s]
    ins: Instruction = c.ins[q.head]
    mover: Mover = m.mover[ins.queue]
    if q.next - q.oldest >= mover.room:
        return B_ROOM
    if ins.kind == LOAD and not q.measured and _tile_missing(c, st, q, ins):
        return B_BLOCK
    while q.use < ins.use_hi:
        use: Use = c.use[q.use]
        if use.kind in (CLAIM, WAIT) and q.first & use.mask == use.mask:
            cause = _ring_block(c, st, q.unit, ins.queue, use)
            if cause != B_NONE:
                q.what = use.ring
                return cause
        q.use += 1
    if not q.measured:
        _measure(c, st, s, ins)
    while q.wait < ins.wait_hi:
        sync: Sync = c.sync[q.wait]
        if _missing(c, st, sync, q.low, q.high):
            q.what = sync.group
            q.waiter, st.waiting[sync.group] = st.waiting[sync.group], s
            return B_COUNTER
        q.wait += 1
    return B_NONE


@helper
def _take_head(c: Code, st: State, s: int) -> bool:
    """Find the stream's next instruction; False at its end."""
    if not seek(c, st, s):
        return False
    q: Stream = st.stream[s]
    ins: Instruction = c.ins[q.head]
    set_masks(c, st, s)
    q.use, q.wait, q.measured, q.low, q.high = ins.use_lo, ins.wait_lo, 0, 0, -1
    return True


@helper
def _begin_rings(c: Code, st: State, q: Stream, ins: Instruction) -> int:
    """Claim and wait; returns the number of ring operations of this instance."""
    n = 0
    for j in range(ins.use_lo, ins.use_hi):
        use: Use = c.use[j]
        when = q.first if use.kind in (CLAIM, WAIT) else q.last
        if when & use.mask != use.mask:
            continue
        n += 1
        if use.kind == CLAIM:
            st.filled[q.unit, use.ring].claimed += 1
        elif use.kind == WAIT:
            st.reader[q.unit, use.ring, ins.queue].waited += 1
    return n


@helper
def try_head(c: Code, m: Machine, st: State, s: int) -> None:
    """Issue the head of a stream, or block it."""
    q: Stream = st.stream[s]
    k: Core = st.core[0]
    if q.head < 0 and not _take_head(c, st, s):
        k.done += 1
        return
    cause = _find_block(c, m, st, s)
    account(c, st, s)
    q.cause = cause
    if cause != B_NONE:
        return
    numbers: Numbers = m.numbers[0]
    ins: Instruction = c.ins[q.head]
    stat: Stat = st.stat[q.head]
    now = k.now
    clk = numbers.issue + numbers.ring_op * _begin_rings(c, st, q, ins)
    st.begun[ins.kernel] = min(st.begun[ins.kernel], now)
    stat.start = min(stat.start, now)
    if ins.kind in (MMA, VEC):
        start = max(now + clk, q.free_at)
        stat.busy += start - max(now, q.free_at)
        schedule(st, start, E_START, s)
        return
    log_begin(c, st, s)
    queue_transfer(c, m, st, s, clk)
    schedule(st, now + clk, E_ISSUE, s)
