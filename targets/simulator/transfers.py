"""Transfers: queueing, data phases and completion.

Transfers of a queue issue in order; their starts and latencies overlap; their data phases pass through the engine in
order and share bandwidth (bandwidth.py). Rings advance at the end of the data phase, counters on completion.

Invariant: transfers of a queue land in order.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import array_helper, helper
from ppuc.targets import cost
from ppuc.targets.simulator.bandwidth import add_flow, remove_flow
from ppuc.targets.simulator.cache import served_by, take_store, write_back
from ppuc.targets.simulator.engines import end_rings
from ppuc.targets.simulator.events import E_LAND, E_READY, account, log_end, schedule, wake
from ppuc.targets.simulator.records import (
    Box,
    Core,
    Flight,
    Group,
    Instruction,
    Mover,
    Numbers,
    Stat,
    Stream,
    Sync,
)
from ppuc.targets.simulator.tables import (
    B_BLOCK,
    B_ROOM,
    BANDWIDTH,
    COPY,
    F_FIN,
    F_STREAM,
    F_UPD,
    IN_FLIGHT,
    LOAD,
    MEM_HBM,
    MEM_L2,
    STORE,
    Code,
    Machine,
    State,
)
from ppuc.targets.simulator.work import in_ticks

_flow_cap = helper(cost.flow_cap)
_visit_weight = helper(cost.visit_weight)


@helper
def _hop(m: Machine, q: Stream) -> float:
    """Deviation from the mean latency for a stream's position on the network."""
    return float(m.hop[q.unit]) if q.unit >= 0 else 0.0


@helper
def queue_transfer(c: Code, m: Machine, st: State, s: int, clk: float) -> None:
    """Queue the head, a transfer, at its engine."""
    q: Stream = st.stream[s]
    ins: Instruction = c.ins[q.head]
    stat: Stat = st.stat[q.head]
    flight: Flight = st.flight[s, q.next % IN_FLIGHT]
    mover: Mover = m.mover[ins.kind]
    size = c.copy[ins.desc].size if ins.kind == COPY else c.box[ins.desc].size
    moved, fetched, run, rows = q.moved * size, q.fetched * size, q.run * size, q.fetched // q.row
    flight.instr, flight.last, flight.low, flight.high, flight.bytes, flight.l1 = (
        q.head,
        q.last,
        q.low,
        q.high,
        fetched,
        moved,
    )
    flight.cap = _flow_cap(float(fetched), float(moved), float(rows), mover.row, mover.rate)
    flight.weight, flight.land, flight.memory = 1.0, np.inf, ins.memory
    if ins.kind != COPY:
        box: Box = c.box[ins.desc]
        numbers: Numbers = m.numbers[0]
        visit = _visit_weight(run, q.pitch * size, box.gather_dim >= 0, numbers.burst, numbers.activate)
        flight.weight = box.weight * visit
        if numbers.cached and ins.memory == MEM_HBM and fetched > 0:
            _through_cache(m, st, q, ins, stat, flight)
    # A store makes no request to the memory before its data arrives there.
    latency = 0.0
    if ins.kind != STORE:
        latency = m.latency[flight.memory if flight.memory >= 0 else MEM_L2] + _hop(m, q)
    if ins.kind == LOAD and q.next == 0:
        latency += q.unit * m.numbers[0].dispatch
    flight.ready = st.core[0].now + clk + mover.start + latency
    stat.bytes += fetched
    if ins.kind == LOAD:
        stat.l1_written += moved
    elif ins.kind == STORE:
        stat.l1_read += moved
    q.next += 1
    if q.data == q.next - 1:
        schedule(st, flight.ready, E_READY, s)


@helper
def _through_cache(m: Machine, st: State, q: Stream, ins: Instruction, stat: Stat, flight: Flight) -> None:
    """Pass a transfer through a cached l2, which may write dirty bytes back to device memory at the transfer's cost."""
    size, fetched = flight.bytes, 0.0
    if ins.kind == LOAD:
        flight.memory = served_by(m, st, q, ins.tensor, size)
        if flight.memory == MEM_HBM:
            fetched = flight.weight
        else:
            stat.held += size
    else:
        back = m.numbers[0].write_back != 0
        take_store(st, q, ins.tensor, size, back)
        if not back:
            return
        flight.memory = MEM_L2
        stat.held += size
    evicted = write_back(m, st)
    if evicted > 0.0:
        stat.evicted += int(evicted)
        flight.memory = MEM_HBM
        flight.weight = fetched + evicted / size


@helper
def start_flow(c: Code, m: Machine, st: State, s: int) -> None:
    """Begin the data phase of the transfer at the engine's head."""
    account(c, st, s)
    q: Stream = st.stream[s]
    k: Core = st.core[0]
    flight: Flight = st.flight[s, q.data % IN_FLIGHT]
    memory, second = flight.memory, c.ins[flight.instr].second
    if m.numbers[0].cached and memory == MEM_HBM and q.unit >= 0:
        second = MEM_L2
    if q.unit >= 0:
        st.l1[q.unit] = max(st.l1[q.unit], k.now) + in_ticks(flight.l1 / m.numbers[0].l1_rate)
    q.flow, q.began = k.flows, k.now
    add_flow(m, st, s, memory, second, flight)


@array_helper
def _first_until(ends: np.ndarray, first: int, n: int, now: float) -> int:
    """The first of the flows from `first` on that ends by `now`; `n` if none does."""
    rest = ends[first:n]
    for j in range(len(rest)):
        if rest[j] <= now:
            return first + j
    return n


@helper
def end_flows(c: Code, m: Machine, st: State) -> None:
    """End the data phases that are complete."""
    k: Core = st.core[0]
    j = 0
    while True:
        j = _first_until(st.course[F_FIN], j, k.flows, k.now)
        if j == k.flows:
            break
        if st.course[F_UPD, j] < 0:
            j += 1
            continue
        s = st.flow[F_STREAM, j]
        remove_flow(m, st, j)
        _end_flow(c, m, st, s)
    k.finish = np.inf


@helper
def _end_flow(c: Code, m: Machine, st: State, s: int) -> None:
    q: Stream = st.stream[s]
    flight: Flight = st.flight[s, q.data % IN_FLIGHT]
    i, now = flight.instr, st.core[0].now
    ins: Instruction = c.ins[i]
    alone = in_ticks(min(flight.bytes / flight.cap, now - q.began)) if flight.bytes else 0.0
    st.stat[i].busy += alone
    st.stall[i, BANDWIDTH] += now - q.began - alone
    q.flow = -1
    q.mark = now
    q.data += 1
    land = now
    if ins.kind == STORE:
        land += m.latency[flight.memory] + _hop(m, q)
    if _bumps(c, ins, flight.last):
        land += m.numbers[0].bump
    if q.data - 1 > q.oldest:
        land = max(land, st.flight[s, (q.data - 2) % IN_FLIGHT].land)
    flight.land = land
    schedule(st, land, E_LAND, s)
    log_end(st, s, 2 if ins.kind == STORE else 1)
    if ins.ends_tile:
        st.tiles[q.unit, ins.kernel] += 1
        load = s - s % 4 + LOAD
        if st.stream[load].cause == B_BLOCK:
            wake(st, load)
    end_rings(c, st, s, i, flight.last)
    if q.data < q.next:
        schedule(st, max(now, st.flight[s, q.data % IN_FLIGHT].ready), E_READY, s)


@helper
def _bumps(c: Code, ins: Instruction, last: int) -> bool:
    """Whether this instance bumps any counter."""
    for j in range(ins.bump_lo, ins.bump_hi):  # noqa: SIM110 - compiled
        if c.sync[j].touched or last == ins.done_mask:
            return True
    return False


@helper
def land(c: Code, st: State, s: int) -> None:
    """Complete the oldest transfer of a queue and bump its counters."""
    q: Stream = st.stream[s]
    flight: Flight = st.flight[s, q.oldest % IN_FLIGHT]
    ins: Instruction = c.ins[flight.instr]
    if ins.kind == STORE:
        log_end(st, s, 1)
    stat: Stat = st.stat[flight.instr]
    stat.end = max(stat.end, st.core[0].now)
    account(c, st, s)
    q.oldest += 1
    if q.cause == B_ROOM:
        wake(st, s)
    for j in range(ins.bump_lo, ins.bump_hi):
        _bump(c, st, c.sync[j], ins, flight)


@helper
def _bump(c: Code, st: State, sync: Sync, ins: Instruction, flight: Flight) -> None:
    """Bump counters of a group; a complete one wakes the streams that wait for the group."""
    group: Group = c.group[sync.group]
    lo, hi = 0, 0
    if sync.touched:
        if flight.high < flight.low:
            return
        lo, hi = flight.low // group.block, min(group.count - 1, flight.high // group.block)
    elif flight.last != ins.done_mask:
        return
    complete = False
    for j in range(lo, hi + 1):
        st.counter[group.first + j] += 1
        complete = complete or st.counter[group.first + j] >= c.base[group.at + j] + c.expect[group.at + j]
    if complete:
        waiter, st.waiting[sync.group] = st.waiting[sync.group], -1
        while waiter >= 0:
            wake(st, waiter)
            waiter = st.stream[waiter].waiter
