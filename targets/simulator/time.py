"""The event loop: when every instruction of a segment starts and ends.

A stream (an instruction queue of a unit, or a stage queue) tries its head; the head is blocked until its rings have
room or data, its counters are complete and its queue has room. Compute queues decode one instruction ahead: issue
costs overlap with the execution of the instruction before. Transfers issue one after another, their starts and
latencies overlap, their data phases pass through the engine in order and share bandwidth (fairness.py). What an
instruction does to rings and counters happens when it completes.

Events of one time are handled together: completions, then starts, then heads that may go on, and then bandwidth is
shared anew. Same-time order is by event kind and stream number, so a run is deterministic.

Invariant: every wake-up comes from the push, pop, bump or retirement that can satisfy the blocked head; `run` may
return with FULL after any event and be called again. A log row is written before the state that it describes changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppuc.targets import cost, vector_cost
from ppuc.targets.simulator import fairness, tables, work
from ppuc.targets.simulator.fairness import ce_of, refill
from ppuc.targets.simulator.jit import entry, helper, source_digest
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
    DATA,
    IN_FLIGHT,
    LATENCY,
    LOAD,
    LOG_ENV,
    MEM_HBM,
    MEM_L2,
    MMA,
    NODE_END,
    NODE_INSTR,
    NODE_KERNEL,
    NODE_LOOP,
    POP,
    PUSH,
    SPACE,
    STORE,
    SYNC,
    WAIT,
    Code,
    Machine,
    State,
)
from ppuc.targets.simulator.work import flow_cap, measure_box, mma_clk, vec_clk, visit_weight

DONE, FULL, DEADLOCK = range(3)
"""What `run` returns."""

E_COMPLETE, E_LAND, E_READY, E_START, E_ISSUE = range(5)
"""Event kinds, in the order in which those of one time are handled."""


# Events and heads to try.


@helper
def _schedule(st: State, time: float, kind: int, s: int) -> None:
    """Insert an event into the heap, ordered by time, kind and stream."""
    n, code = st.num[0], kind * (1 << 20) + s
    st.num[0] = n + 1
    while n > 0:
        up = (n - 1) // 2
        if st.heap_t[up] < time or (st.heap_t[up] == time and st.heap_c[up] <= code):
            break
        st.heap_t[n], st.heap_c[n] = st.heap_t[up], st.heap_c[up]
        n = up
    st.heap_t[n], st.heap_c[n] = time, code


@helper
def _next_event(st: State) -> int:
    """Remove the first event and return its code."""
    result, n = st.heap_c[0], st.num[0] - 1
    st.num[0] = n
    time, code, at = st.heap_t[n], st.heap_c[n], 0
    while True:
        down = 2 * at + 1
        if down >= n:
            break
        right = down + 1
        if right < n and (
            st.heap_t[right] < st.heap_t[down]
            or (st.heap_t[right] == st.heap_t[down] and st.heap_c[right] < st.heap_c[down])
        ):
            down = right
        if time < st.heap_t[down] or (time == st.heap_t[down] and code <= st.heap_c[down]):
            break
        st.heap_t[at], st.heap_c[at] = st.heap_t[down], st.heap_c[down]
        at = down
    st.heap_t[at], st.heap_c[at] = time, code
    return int(result)


@helper
def _put_back(st: State, s: int) -> None:
    """Let a head try when the other events of this time are done."""
    st.stack[st.num[2]] = s
    st.num[2] += 1


@helper
def _wake(st: State, s: int) -> None:
    """Let a blocked head try again when the present event is done."""
    if not st.waking[s]:
        st.waking[s] = 1
        st.wakes[st.num[8]] = s
        st.num[8] += 1


@helper
def _wake_all(c: Code, st: State) -> None:
    """Unblock the heads that events have woken, in their order; the time that they waited goes to what blocked them."""
    for j in range(st.num[8]):
        s = st.wakes[j]
        _account(c, st, s)
        st.block[s, 0] = B_NONE
        st.waking[s] = 0
        _put_back(st, s)
    st.num[8] = 0


@helper
def _wake_unit(st: State, unit: int, ring: int) -> None:
    """A push or pop happened on a ring of a unit."""
    for s in range(4 * unit, 4 * unit + 4):
        cause = st.block[s, 0]
        if cause == B_AFTER or (cause in (B_DATA, B_SPACE) and st.block[s, 1] == ring):
            _wake(st, s)


# Where the time of a queue goes.


@helper
def _account(c: Code, st: State, s: int) -> None:
    """Charge the time since `mark` of a queue that executes nothing to its blocked head or its oldest transfer. Must
    run before anything about the stream changes."""
    now = st.now[0]
    begin, st.mark[s] = st.mark[s], now
    i, cause = _charged(c, st, s)
    if cause < 0:
        return
    kernel = c.ins[i, 0]
    begin = max(begin, st.free_at[s], st.k_start[kernel])
    if begin < now:
        st.stall[i, cause] += now - begin


@helper
def _charged(c: Code, st: State, s: int) -> tuple[int, int]:
    """(instruction, stall cause) that the present state of a queue is charged to; cause -1 if it does not stall."""
    transfers = s >= 4 * (len(st.claimed)) or s % 4 < 2
    if transfers and st.q[s, 2] > st.q[s, 0]:
        if st.flowing[s]:
            return 0, -1
        return st.q_i[s, st.q[s, 0] % IN_FLIGHT, 0], LATENCY
    cause = st.block[s, 0]
    if cause == B_NONE:
        return 0, -1
    i = c.node_arg[st.pc[s]]
    if cause == B_DATA:
        return i, DATA
    if cause == B_COUNTER:
        return i, SYNC
    if cause == B_ROOM:
        return i, LATENCY
    return i, SPACE


# Streams.


@helper
def _enter_loop(c: Code, st: State, s: int, loop: int) -> bool:
    """Start a loop for this unit; False when it has no iteration."""
    start, stop, step, axis, d = c.lp[loop, 0], c.lp[loop, 1], c.lp[loop, 2], c.lp[loop, 3], c.lp[loop, 4]
    if axis >= 0:
        start += st.coord[s, axis] * step
        step *= st.radix[s, axis]
    st.trips[s, d] = max(0, -((start - stop) // step))
    st.it[s, d] = 0
    st.env[s, d] = start
    return bool(st.trips[s, d] > 0)


@helper
def _enter_tile(c: Code, st: State, s: int, loop: int) -> bool:
    """Start one of the loops around the stream's present tile; False when the unit has run its tiles. Tiles are dealt
    in order over all units."""
    kernel, d = c.lp[loop, 7], c.lp[loop, 4]
    number, count = st.tile[s], 1
    for j in range(c.k_block[kernel, 0] - 1, -1, -1):
        n = c.k_trips[kernel, j]
        if j == d:
            st.it[s, d], st.trips[s, d] = number // count % n, n
        count *= n
    st.env[s, d] = c.lp[loop, 0] + st.it[s, d] * c.lp[loop, 2]
    return bool(number < count)


@helper
def _enter_kernel(c: Code, st: State, s: int, kernel: int) -> bool:
    """Set this unit's coordinates in a kernel's grid; False when it is not part of it."""
    unit = s // 4
    if unit >= c.k_units[kernel]:
        return False
    st.tile[s] = unit
    for a in range(c.k_radix.shape[1] - 1, -1, -1):
        n = c.k_radix[kernel, a]
        st.coord[s, a] = unit % n
        st.radix[s, a] = n
        unit //= n
    return True


@helper
def _seek(c: Code, st: State, s: int) -> bool:
    """Run loops until the stream's next instruction; False at its end."""
    pc = st.pc[s]
    while True:
        op, arg = c.node_op[pc], c.node_arg[pc]
        if op == NODE_INSTR:
            st.pc[s] = pc
            return True
        if op == NODE_KERNEL:
            pc = pc + 1 if _enter_kernel(c, st, s, arg) else c.k_end[arg, s % 4]
        elif op == NODE_LOOP:
            around = c.k_block[c.lp[arg, 7], 0]
            entered = _enter_tile(c, st, s, arg) if c.lp[arg, 4] < around else _enter_loop(c, st, s, arg)
            pc = c.lp[arg, 5] if entered else c.lp[arg, 6]
        elif op == NODE_END and c.lp[arg, 4] < c.k_block[c.lp[arg, 7], 0]:
            st.tile[s] += len(st.claimed)
            pc = c.lp[arg, 8]
        elif op == NODE_END:
            d = c.lp[arg, 4]
            st.it[s, d] += 1
            if st.it[s, d] < st.trips[s, d]:
                axis = c.lp[arg, 3]
                st.env[s, d] += c.lp[arg, 2] * (st.radix[s, axis] if axis >= 0 else 1)
                pc = c.lp[arg, 5]
            else:
                pc += 1
        else:
            st.pc[s] = pc
            return False


@helper
def _masks(c: Code, st: State, s: int, i: int) -> tuple[int, int]:
    """Bit d is set when loop d is in its first (last) iteration; of loops around tiles that run as blocks, when the
    unit is at its first (last) tile."""
    first, last, outer = 0, 0, 0
    kernel = c.ins[i, 0]
    if kernel >= 0 and c.k_block[kernel, 0] >= 0:
        outer = min(c.ins[i, 3], c.k_block[kernel, 0])
        tiles = 1
        for d in range(outer):
            tiles *= c.k_trips[kernel, d]
        if st.tile[s] < len(st.claimed):
            first = (1 << outer) - 1
        if st.tile[s] + len(st.claimed) >= tiles:
            last = (1 << outer) - 1
    for d in range(outer, c.ins[i, 3]):
        if st.it[s, d] == 0:
            first |= 1 << d
        if st.it[s, d] == st.trips[s, d] - 1:
            last |= 1 << d
    return first, last


# Conditions of the head.


@helper
def _retired(c: Code, st: State, u: int, r: int) -> bool:
    """Whether the unit has pushed and popped everything it ever will on a ring."""
    total = c.rg_total[u, r]
    if st.pushed[u, r] < total:
        return False
    for q in range(4):  # noqa: SIM110 - compiled
        if c.rg[r, 1] >> q & 1 and st.popped[u, r, q] < total:
            return False
    return True


@helper
def _ring_block(c: Code, st: State, u: int, q: int, kind: int, r: int) -> int:
    """What keeps a claim or wait from happening now."""
    if kind == WAIT:
        return B_NONE if st.pushed[u, r] > st.waited[u, r, q] else B_DATA
    claimed = st.claimed[u, r]
    for other in range(4):
        if c.rg[r, 1] >> other & 1 and claimed - st.popped[u, r, other] >= c.rg[r, 0]:
            return B_SPACE
    if claimed == 0:
        for j in range(c.af_ptr[r], c.af_ptr[r + 1]):
            if not _retired(c, st, u, c.af[j]):
                return B_AFTER
    return B_NONE


@helper
def _counter_missing(c: Code, st: State, group: int, touched: bool, first: int, last: int) -> int:
    """The first counter of a group that a wait still misses, or -1."""
    lo, hi = 0, c.gp[group, 2] - 1
    if touched:
        if last < first:
            return -1
        lo, hi = first // c.gp[group, 1], min(hi, last // c.gp[group, 1])
    for j in range(c.gp[group, 0] + lo, c.gp[group, 0] + hi + 1):
        if st.counter[j] < c.expect[j]:
            return j
    return -1


@helper
def _tile_missing(c: Code, st: State, s: int, i: int, first_mask: int) -> bool:
    """Whether a load opens a tile while an earlier group of its kernel's tiles is not stored yet. Tiles that share a
    unit start together and stay in step, so none of them loads while another stores."""
    kernel = c.ins[i, 0]
    around, depth = c.k_block[kernel, 0], c.ins[i, 3]
    if around < 0 or depth < around or (first_mask >> around) != (1 << (depth - around)) - 1:
        return False
    slots = c.k_block[kernel, 1]
    group = st.tile[s] // len(st.claimed) // slots
    return bool(st.tiles[s // 4, kernel] < group * slots)


@helper
def _find_block(c: Code, m: Machine, st: State, s: int, i: int, first_mask: int) -> bool:
    """Whether the head must wait; records why and on what."""
    q, kind = c.ins[i, 1], c.ins[i, 2]
    if st.q[s, 2] - st.q[s, 0] >= m.room[q]:
        st.block[s, 0] = B_ROOM
        return True
    if kind == LOAD and _tile_missing(c, st, s, i, first_mask):
        st.block[s, 0] = B_BLOCK
        return True
    for j in range(c.use_ptr[i], c.use_ptr[i + 1]):
        use, r, mask = c.use[j, 0], c.use[j, 1], c.use[j, 2]
        if use in (CLAIM, WAIT) and first_mask & mask == mask:
            cause = _ring_block(c, st, s // 4, q, use, r)
            if cause != B_NONE:
                st.block[s, 0], st.block[s, 1] = cause, r
                return True
    if kind in (LOAD, STORE):
        measure_box(c, st, s, c.ins[i, 4], c.ins[i, 3])
    elif kind == COPY:
        v = c.ins[i, 4]
        st.box[0] = st.box[1] = st.box[2] = c.cp[v, 1]
        st.box[3], st.box[4] = c.cp[v, 0], c.cp[v, 0] + c.cp[v, 1] - 1
    for j in range(c.wt_ptr[i], c.wt_ptr[i + 1]):
        group = c.wt[j, 0]
        if _counter_missing(c, st, group, c.wt[j, 1] != 0, st.box[3], st.box[4]) >= 0:
            st.block[s, 0], st.block[s, 1] = B_COUNTER, group
            st.g_next[s], st.g_head[group] = st.g_head[group], s
            return True
    return False


# Issue.


@helper
def _try(c: Code, m: Machine, st: State, s: int) -> None:
    """Issue the head of a stream, or block it."""
    if not _seek(c, st, s):
        st.num[4] += 1
        return
    i = c.node_arg[st.pc[s]]
    first, last = _masks(c, st, s, i)
    now = st.now[0]
    blocked = _find_block(c, m, st, s, i, first)
    cause, st.block[s, 0] = st.block[s, 0], B_NONE
    _account(c, st, s)
    if blocked:
        st.block[s, 0] = cause
        return
    clk = m.issue + m.ring_op * _begin_rings(c, st, s, i, first, last)
    kernel = c.ins[i, 0]
    st.k_start[kernel] = min(st.k_start[kernel], now)
    st.span[i, 0] = min(st.span[i, 0], now)
    if c.ins[i, 2] == MMA or (c.ins[i, 2] > STORE and c.ins[i, 2] != COPY):
        start = max(now + clk, st.free_at[s])
        st.busy[i] += start - max(now, st.free_at[s])
        _schedule(st, start, E_START, s)
        return
    _begin(c, st, s, i, first, last)
    _queue_transfer(c, m, st, s, i, last, clk)
    _schedule(st, now + clk, E_ISSUE, s)


@helper
def _begin_rings(c: Code, st: State, s: int, i: int, first: int, last: int) -> int:
    """Claim and wait; returns how many ring operations this instance makes."""
    u, q, n = s // 4, c.ins[i, 1], 0
    for j in range(c.use_ptr[i], c.use_ptr[i + 1]):
        use, r, mask = c.use[j, 0], c.use[j, 1], c.use[j, 2]
        when = first if use in (CLAIM, WAIT) else last
        if when & mask != mask:
            continue
        n += 1
        if use == CLAIM:
            st.claimed[u, r] += 1
        elif use == WAIT:
            st.waited[u, r, q] += 1
    return n


@helper
def _begin(c: Code, st: State, s: int, i: int, first: int, last: int) -> None:
    """An instruction reads its operands now: log it with the slots it names, then move on from those it pops or
    pushes."""
    u, q, depth = s // 4, c.ins[i, 1], c.ins[i, 3]
    st.n[i, 0] += 1
    if st.num[7]:
        row = st.num[3]
        st.num[3] = row + 1
        st.log_t[row] = st.now[0]
        log = st.log_i[row]
        log[0], log[1], log[2], log[3], log[4] = 0, s, i, first, last
        log[5], log[6] = st.box[3], st.box[4]
        for d in range(depth):
            log[LOG_ENV + d] = st.env[s, d]
        at = LOG_ENV + st.env.shape[1]
        for j in range(c.op_ptr[i], c.op_ptr[i + 1]):
            r = c.op[j, 0]
            held = c.rg[r, 2] != q or st.waited[u, r, q] > st.released[u, r, q]
            ordinal = st.released[u, r, q] if held and c.op[j, 1] == 0 else st.filled[u, r]
            log[at] = ordinal % c.rg[r, 0]
            at += 1
    for j in range(c.use_ptr[i], c.use_ptr[i + 1]):
        if last & c.use[j, 2] == c.use[j, 2]:
            if c.use[j, 0] == POP:
                st.released[u, c.use[j, 1], q] += 1
            elif c.use[j, 0] == PUSH:
                st.filled[u, c.use[j, 1]] += 1


@helper
def _start_compute(c: Code, m: Machine, st: State, s: int) -> None:
    """An mma or vec starts to execute; the next instruction may be decoded."""
    i = c.node_arg[st.pc[s]]
    first, last = _masks(c, st, s, i)
    _begin(c, st, s, i, first, last)
    slot = st.q[s, 2] % IN_FLIGHT
    st.q[s, 2] += 1
    st.q_i[s, slot, 0], st.q_i[s, slot, 1] = i, last
    mma = c.ins[i, 2] == MMA
    clk = mma_clk(c, m, st, s, i, first) if mma else vec_clk(c, m, st, s, i)
    st.busy[i] += clk
    st.mark[s] = st.now[0]
    st.free_at[s] = st.now[0] + clk
    _schedule(st, st.free_at[s] + (float(c.mma[c.ins[i, 4], 10]) if mma else 0.0), E_COMPLETE, s)
    st.pc[s] += 1
    _put_back(st, s)


@helper
def _slot(st: State, key: int) -> int:
    """Where a cached l2 remembers a tile."""
    return ((key ^ (key >> 17) ^ (key >> 31)) * 0x5BD1E995 >> 7) & (len(st.cache_key) - 1)


@helper
def _served_by(m: Machine, st: State, s: int, tensor: int, size: int) -> int:
    """Which memory serves a load of the box in st.box where l2 is a cache: device memory, l2 if some unit read the tile
    before, or none (-1) if it shares the read of a neighbour in its CE."""
    key = (tensor * 0x1F3D5B79 + st.box[3]) * 0x2545F491 + st.box[4]
    if m.multicast:
        unit = s // 4
        near = key * 0x9E3779B1 + unit // m.cu_per_ce
        slot = _slot(st, near)
        if st.near_key[slot] == near and st.near_by[slot] != unit:
            st.near_key[slot] = -1
            return -1
        st.near_key[slot], st.near_by[slot] = near, unit
    slot = _slot(st, key)
    held = st.cache_key[slot] == key and st.now[3] - st.cache_at[slot] <= m.l2_bytes
    if not held:
        st.now[3] += size
    st.cache_key[slot], st.cache_at[slot] = key, st.now[3]
    return MEM_L2 if held else MEM_HBM


@helper
def _hop(m: Machine, s: int) -> float:
    """Latency of a stream's position on the network, beyond the mean."""
    return float(m.hop[s // 4]) if s < 4 * m.units else 0.0


@helper
def _queue_transfer(c: Code, m: Machine, st: State, s: int, i: int, last: int, clk: float) -> None:
    """Put a transfer, whose box is in st.box, behind those of its engine."""
    kind, v, slot = c.ins[i, 2], c.ins[i, 4], st.q[s, 2] % IN_FLIGHT
    size = c.cp[v, 2] if kind == COPY else c.bx[v, 2]
    moved, fetched, run = st.box[0] * size, st.box[1] * size, st.box[2] * size
    entry, times = st.q_i[s, slot], st.q_f[s, slot]
    memory = c.ins[i, 5]
    if m.cached and memory == MEM_HBM and kind == LOAD:
        memory = _served_by(m, st, s, c.ins[i, 8], fetched)
        if memory != MEM_HBM:
            st.n[i, 10] += fetched
    entry[0], entry[1], entry[2], entry[3], entry[4], entry[5] = i, last, st.box[3], st.box[4], fetched, memory
    # A store asks nothing of the memory before its data arrives there.
    latency = 0.0 if kind == STORE else m.latency[memory if memory >= 0 else MEM_L2] + _hop(m, s)
    if kind == LOAD and st.q[s, 2] == 0:
        latency += s // 4 * m.dispatch
    times[0] = st.now[0] + clk + m.start[kind] + latency
    times[1] = flow_cap(float(fetched), float(moved), float(fetched // run), m.row[kind], m.rate[kind])
    times[2] = 1.0
    if kind != COPY:
        pitch = st.box[5] * size
        times[2] = c.bx_channels[v] * visit_weight(run, pitch, c.bx[v, 4] >= 0, m.burst, m.activate)
    times[3] = np.inf
    st.n[i, 1] += fetched
    if kind == LOAD:
        st.n[i, 3] += moved
    elif kind == STORE:
        st.n[i, 2] += moved
    st.q[s, 2] += 1
    if st.q[s, 1] == st.q[s, 2] - 1:
        _schedule(st, times[0], E_READY, s)


# Data phases.


@helper
def _start_flow(c: Code, m: Machine, st: State, s: int) -> None:
    """The data phase of the transfer at the engine's head begins."""
    _account(c, st, s)
    slot = st.q[s, 1] % IN_FLIGHT
    i = st.q_i[s, slot, 0]
    st.flowing[s] = 1
    st.rem[s], st.cap[s], st.wgt[s] = st.q_i[s, slot, 4], st.q_f[s, slot, 1], st.q_f[s, slot, 2]
    st.upd[s], st.rate[s], st.began[s] = -1.0, 0.0, st.now[0]
    st.mem[s, 0], st.mem[s, 1] = st.q_i[s, slot, 5], c.ins[i, 6]
    if m.cached and st.mem[s, 0] == MEM_HBM and s < 4 * m.units:
        st.mem[s, 1] = MEM_L2
    st.act[st.num[1]] = s
    st.num[1] += 1
    st.num[5] = 1
    st.dirty[ce_of(m, s)] = 1


@helper
def _end_flows(c: Code, m: Machine, st: State) -> None:
    """End the data phases that are over by now."""
    k = 0
    while k < st.num[1]:
        s = st.act[k]
        if st.fin[s] > st.now[0] or st.upd[s] < 0:
            k += 1
            continue
        st.num[1] -= 1
        st.act[k] = st.act[st.num[1]]
        st.num[5] = 1
        st.dirty[ce_of(m, s)] = 1
        _end_flow(c, m, st, s)
    st.now[1] = np.inf


@helper
def _end_tile(st: State, s: int, kernel: int) -> None:
    """A tile has left its unit, which may begin another."""
    st.tiles[s // 4, kernel] += 1
    load = s - s % 4 + LOAD
    if st.block[load, 0] == B_BLOCK:
        _wake(st, load)


@helper
def _end_flow(c: Code, m: Machine, st: State, s: int) -> None:
    slot = st.q[s, 1] % IN_FLIGHT
    i, last, size = st.q_i[s, slot, 0], st.q_i[s, slot, 1], st.q_i[s, slot, 4]
    now, kind = st.now[0], c.ins[i, 2]
    alone = min(size / st.cap[s], now - st.began[s]) if size else 0.0
    st.busy[i] += alone
    st.stall[i, 2] += now - st.began[s] - alone
    st.flowing[s] = 0
    st.mark[s] = now
    st.q[s, 1] += 1
    land = now
    if kind == STORE:
        land += m.latency[c.ins[i, 5]] + _hop(m, s)
    if _bumps(c, i, last):
        land += m.bump
    if st.q[s, 1] - 1 > st.q[s, 0]:
        land = max(land, st.q_f[s, (st.q[s, 1] - 2) % IN_FLIGHT, 3])
    st.q_f[s, slot, 3] = land
    _schedule(st, land, E_LAND, s)
    _log_end(st, s, 2 if kind == STORE else 1)
    if c.ins[i, 9]:
        _end_tile(st, s, c.ins[i, 0])
    _end_rings(c, st, s, i, last)
    if st.q[s, 1] < st.q[s, 2]:
        _schedule(st, max(now, st.q_f[s, st.q[s, 1] % IN_FLIGHT, 0]), E_READY, s)


@helper
def _bumps(c: Code, i: int, last: int) -> bool:
    """Whether this instance bumps any counter."""
    for j in range(c.bp_ptr[i], c.bp_ptr[i + 1]):  # noqa: SIM110 - compiled
        if c.bp[j, 1] or last == c.ins[i, 7]:
            return True
    return False


@helper
def _land(c: Code, st: State, s: int) -> None:
    """The oldest transfer of a queue has landed and leaves it: count it."""
    slot = st.q[s, 0] % IN_FLIGHT
    i, last, first_e, last_e = st.q_i[s, slot, 0], st.q_i[s, slot, 1], st.q_i[s, slot, 2], st.q_i[s, slot, 3]
    if c.ins[i, 2] == STORE:
        _log_end(st, s, 1)
    st.span[i, 1] = max(st.span[i, 1], st.now[0])
    _account(c, st, s)
    st.q[s, 0] += 1
    if st.block[s, 0] == B_ROOM:
        _wake(st, s)
    for j in range(c.bp_ptr[i], c.bp_ptr[i + 1]):
        group = c.bp[j, 0]
        lo, hi, base = 0, 0, c.gp[group, 0]
        if c.bp[j, 1]:
            if last_e < first_e:
                continue
            lo, hi = first_e // c.gp[group, 1], min(c.gp[group, 2] - 1, last_e // c.gp[group, 1])
        elif last != c.ins[i, 7]:
            continue
        complete = False
        for k in range(base + lo, base + hi + 1):
            st.counter[k] += 1
            complete = complete or st.counter[k] == c.expect[k]
        if complete:
            waiter, st.g_head[group] = st.g_head[group], -1
            while waiter >= 0:
                _wake(st, waiter)
                waiter = st.g_next[waiter]


# Completion.


@helper
def _log_end(st: State, s: int, what: int) -> None:
    if st.num[7]:
        row = st.num[3]
        st.num[3] = row + 1
        st.log_t[row] = st.now[0]
        st.log_i[row, 0], st.log_i[row, 1] = what, s


@helper
def _end_rings(c: Code, st: State, s: int, i: int, last: int) -> None:
    """Push and pop."""
    u, q = s // 4, c.ins[i, 1]
    for j in range(c.use_ptr[i], c.use_ptr[i + 1]):
        use, r, mask = c.use[j, 0], c.use[j, 1], c.use[j, 2]
        if use == PUSH and last & mask == mask:
            st.pushed[u, r] += 1
            _wake_unit(st, u, r)
        elif use == POP and last & mask == mask:
            st.popped[u, r, q] += 1
            _wake_unit(st, u, r)


@helper
def _complete(c: Code, st: State, s: int) -> None:
    """The oldest mma or vec of a queue has written its results."""
    slot = st.q[s, 0] % IN_FLIGHT
    i, last = st.q_i[s, slot, 0], st.q_i[s, slot, 1]
    st.q[s, 0] += 1
    _log_end(st, s, 1)
    st.span[i, 1] = max(st.span[i, 1], st.now[0])
    _end_rings(c, st, s, i, last)
    if st.block[s, 0] == B_ROOM:
        _wake(st, s)


# The loop.


@helper
def _handle(c: Code, m: Machine, st: State, code: int) -> None:
    kind, s = code >> 20, code & ((1 << 20) - 1)
    if kind == E_COMPLETE:
        _complete(c, st, s)
    elif kind == E_LAND:
        _land(c, st, s)
    elif kind == E_READY:
        _start_flow(c, m, st, s)
    elif kind == E_START:
        _start_compute(c, m, st, s)
    else:
        st.pc[s] += 1
        _put_back(st, s)


def _entry_point(digest: str) -> Callable[[Code, Machine, State], int]:
    @entry
    def run(c: Code, m: Machine, st: State) -> int:
        """Run until everything is done, the log is full (empty it and call again) or nothing can move any more."""
        if len(digest) == 0:
            return DEADLOCK
        rows = len(st.log_t) - len(st.pc) - 8
        while True:
            now = st.now[0]
            if st.num[7] and st.num[3] > rows:
                return FULL
            if st.num[0] > 0 and st.heap_t[0] <= now:
                _handle(c, m, st, _next_event(st))
            elif st.now[1] <= now:
                _end_flows(c, m, st)
            elif st.num[8] > 0:
                _wake_all(c, st)
            elif st.num[2] > 0:
                st.num[2] -= 1
                _try(c, m, st, st.stack[st.num[2]])
            elif st.num[5]:
                refill(st, m)
            else:
                time = min(st.now[1], st.heap_t[0] if st.num[0] > 0 else np.inf)
                if time == np.inf:
                    return DONE if st.num[4] == len(st.pc) else DEADLOCK
                st.now[0] = time

    return run


run = _entry_point(
    source_digest(__file__, fairness.__file__, work.__file__, tables.__file__, cost.__file__, vector_cost.__file__)
)

__all__ = ["DEADLOCK", "DONE", "FULL", "run"]
