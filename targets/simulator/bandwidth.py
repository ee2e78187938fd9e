"""Max-min fair bandwidth sharing, recomputed for the flows whose shares may have changed.

A flow crosses one memory (a copy two), and a unit's flow also its CE port and its unit port. Water filling: all rates
grow together; a flow freezes at its own cap or when a resource on its path is full. Short bursts have more weight on
device memory (`cost.visit_weight`).

Invariant: after `refill`, no resource exceeds its capacity, and no flow can get more without taking from one with no
larger share. The capacity of device memory falls when reads and writes mix (`cost.mixed_rate`) and with the number of
open streams (`cost.stream_rate`). CE ports are independent of each other while no memory is oversubscribed even at full
demand; then only flows of CEs that changed are refilled, which gives the same shares.
"""

from __future__ import annotations

import numpy as np

from ppuc.targets import cost
from ppuc.targets.simulator.jit import array_helper, helper
from ppuc.targets.simulator.records import Core, Flight, Numbers, Share, Stream
from ppuc.targets.simulator.tables import (
    F_CAP,
    F_CE,
    F_FIN,
    F_FIX,
    F_LINK,
    F_MEMORY,
    F_PORT,
    F_RATE,
    F_REM,
    F_SECOND,
    F_STREAM,
    F_UPD,
    F_WEIGHT,
    F_WRITES,
    MEM_HBM,
    MEM_HOST,
    MEM_L2,
    NO_RESOURCE,
    TICKS,
    Machine,
    State,
)

_mixed_rate = helper(cost.mixed_rate)
_stream_rate = helper(cost.stream_rate)

_TINY = 1e-9


@array_helper
def _least(values: np.ndarray, n: int) -> float:
    """The least of the first `n` values; inf without any."""
    least = np.inf
    for i in range(n):
        least = min(least, values[i])
    return least


@array_helper
def _set_rates(
    rem: np.ndarray, upd: np.ndarray, rate: np.ndarray, fin: np.ndarray, fix: np.ndarray, n: int, now: float
) -> None:
    """Let the first `n` flows go on at the rates `fix`; the arguments are rows of State.course. Without branches, so
    that it is vectorised."""
    for i in range(n):
        left, since, old, new, end = rem[i], upd[i], rate[i], fix[i], fin[i]
        fresh = since < 0.0
        changed = (new != old) | fresh
        later = max(0.0, left - old * (now - since))
        left = later if changed & (not fresh) else left
        later = now + np.ceil(left / new * TICKS) / TICKS
        later = now if left <= 0.0 else later
        rem[i] = left
        upd[i] = now if changed else since
        rate[i] = new
        fin[i] = later if changed else end


@helper
def add_flow(m: Machine, st: State, s: int, memory: int, second: int, flight: Flight) -> None:
    """Start the data phase of a stream's transfer between `memory` and `second` (-1: none)."""
    k: Core = st.core[0]
    q: Stream = st.stream[s]
    i = k.flows
    k.flows += 1
    flow, course = st.flow, st.course
    flow[F_STREAM, i], flow[F_CE, i], flow[F_WRITES, i] = s, q.ce, q.unit >= 0 and s % 4 == 1
    none = len(st.level) - 1
    flow[F_MEMORY, i] = memory if memory >= 0 else none
    flow[F_SECOND, i] = second if second >= 0 else none
    flow[F_PORT, i] = q.port if q.port >= 0 else none
    flow[F_LINK, i] = q.link if q.link >= 0 else none
    course[F_REM, i], course[F_UPD, i], course[F_RATE, i] = flight.bytes, -1.0, 0.0
    course[F_CAP, i], course[F_WEIGHT, i] = flight.cap, flight.weight
    _count(m, st, q, 1.0)


@helper
def remove_flow(m: Machine, st: State, i: int) -> None:
    """End a data phase; the last one takes its column."""
    k: Core = st.core[0]
    k.flows -= 1
    n = k.flows
    _count(m, st, st.stream[st.flow[F_STREAM, i]], -1.0)
    for row in range(len(st.flow)):
        st.flow[row, i] = st.flow[row, n]
    for row in range(len(st.course)):
        st.course[row, i] = st.course[row, n]
    if i < n:
        st.stream[st.flow[F_STREAM, i]].flow = i


@helper
def _count(m: Machine, st: State, q: Stream, change: float) -> None:
    """Count a flow of a stream on its port and link, whose CE is to be filled again."""
    st.core[0].stale = 1
    st.demand[q.ce, 3] = 1.0
    if q.port >= 0:
        st.share[q.port].flows += change
        _set_whole(m, st, q.port)
        st.share[q.link].flows += change
        _set_whole(m, st, q.link)


@helper
def _set_whole(m: Machine, st: State, r: int) -> None:
    """Give a port or link its capacity, for all its flows."""
    share: Share = st.share[r]
    share.left, share.load = m.capacity[r], share.flows
    share.whole = share.left / share.load if share.load > 0.0 else np.inf
    st.level[r] = share.whole


@helper
def _oversubscribed(st: State, m: Machine) -> bool:
    """Whether some memory cannot serve every flow at its cap, limited by CE ports only. Sets the rate of device memory
    for the current mix of flows."""
    k: Core = st.core[0]
    numbers: Numbers = m.numbers[0]
    demand, ces, flow = st.demand, numbers.ces, st.flow
    for ce in range(ces + 1):
        demand[ce, 0] = demand[ce, 1] = demand[ce, 2] = 0.0
    reads, writes, streams = 0.0, 0.0, 0
    for i in range(k.flows):
        ce, memory, second, cap = flow[F_CE, i], flow[F_MEMORY, i], flow[F_SECOND, i], st.course[F_CAP, i]
        if memory == MEM_HBM:
            want = cap * st.course[F_WEIGHT, i]
            demand[ce, MEM_HBM] += want
            streams += 1
            if flow[F_WRITES, i]:
                writes += want
            else:
                reads += want
        elif memory <= MEM_HOST:
            demand[ce, memory] += cap
        if second == MEM_HBM:
            want = cap * st.course[F_WEIGHT, i]
            demand[ce, MEM_HBM] += want
            writes += want
            streams += 1
        elif second <= MEM_HOST:
            demand[ce, second] += cap
    open_rows = _stream_rate(streams, numbers.banks, numbers.interleave, numbers.activate)
    part = min(1.0, open_rows / numbers.open_rows)
    k.hbm_rate = _mixed_rate(m.capacity[MEM_HBM], reads, writes, numbers.turnaround) * part
    return bool(_exceeded(st, m))


@helper
def _exceeded(st: State, m: Machine) -> bool:
    """Whether the demand for some memory, limited by CE ports, exceeds its rate."""
    demand, ces = st.demand, m.numbers[0].ces
    hbm, l2, host = 0.0, 0.0, 0.0
    for ce in range(ces):
        port = m.capacity[3 + ce]
        hbm += demand[ce, MEM_HBM]
        l2 += min(demand[ce, MEM_L2], port)
        host += min(demand[ce, MEM_HOST], port)
    hbm, l2, host = hbm + demand[ces, MEM_HBM], l2 + demand[ces, MEM_L2], host + demand[ces, MEM_HOST]
    much = 1 + _TINY
    return bool(
        hbm > st.core[0].hbm_rate * much or l2 > m.capacity[MEM_L2] * much or host > m.capacity[MEM_HOST] * much
    )


@helper
def refill(m: Machine, st: State) -> None:
    """Compute every flow's share and find the next one to end."""
    k: Core = st.core[0]
    over = _oversubscribed(st, m)
    n = _list_flows(st, over or k.over != 0)
    _open_memories(m, st, n)
    settled = False
    while n > 0:
        growing = _freeze(st, n)
        if growing > 0:
            _settle(st, growing, n - growing)
            settled = True
        n = growing
    if settled:
        _restore(m, st)
    k.over = over
    k.stale = 0
    st.demand[:, 3] = 0.0
    course = st.course
    _set_rates(
        course[F_REM],
        course[F_UPD],
        course[F_RATE],
        course[F_FIN],
        course[F_FIX],
        k.flows,
        k.now,
    )
    k.finish = _least(course[F_FIN], k.flows)


@helper
def _list_flows(st: State, everyone: bool) -> int:
    """List the flows to fill: all, or those of CEs that changed; the others keep their rates."""
    n = 0
    for i in range(st.core[0].flows):
        if everyone or st.flow[F_PORT, i] == len(st.level) - 1 or st.demand[st.flow[F_CE, i], 3] > 0:
            st.listed[n].sub = i
            n += 1
        else:
            st.course[F_FIX, i] = st.course[F_RATE, i]
    return n


@helper
def _open_memories(m: Machine, st: State, n: int) -> None:
    """Give the memories their rates, for the first `n` flows of the list."""
    hbm, l2, host = 0.0, 0.0, 0.0
    for j in range(n):
        i = st.listed[j].sub
        for row in (F_MEMORY, F_SECOND):
            memory = st.flow[row, i]
            if memory == MEM_HBM:
                hbm += st.course[F_WEIGHT, i]
            elif memory == MEM_L2:
                l2 += 1.0
            elif memory == MEM_HOST:
                host += 1.0
    _open(st, MEM_HBM, st.core[0].hbm_rate, hbm)
    _open(st, MEM_L2, m.capacity[MEM_L2], l2)
    _open(st, MEM_HOST, m.capacity[MEM_HOST], host)


@helper
def _open(st: State, r: int, left: float, load: float) -> None:
    share: Share = st.share[r]
    share.left, share.load = left, load
    st.level[r] = left / load if load > 0.0 else np.inf


@helper
def _freeze(st: State, n: int) -> int:
    """One round of water filling over the first `n` flows of the list: fix the rates of those that stop growing and
    move them to the list `stopped`. Returns the number of the others. Without branches, which would be taken at
    random."""
    flow, fix, level_of = st.flow, st.course[F_FIX], st.level
    level, lowest, growing = np.inf, np.inf, 0
    for j in range(n):
        i = np.uint64(st.listed[j].sub)
        lowest = min(lowest, st.course[F_CAP, i])
        memories = min(level_of[np.uint64(flow[F_MEMORY, i])], level_of[np.uint64(flow[F_SECOND, i])])
        ports = min(level_of[np.uint64(flow[F_PORT, i])], level_of[np.uint64(flow[F_LINK, i])])
        fix[i] = min(memories, ports)  # the level at which the first resource on its path is full
        level = min(level, fix[i])
    by_cap, full = lowest <= level, level * (1 + _TINY)
    for j in range(n):
        i = np.uint64(st.listed[j].sub)
        cap = st.course[F_CAP, i]
        stop = cap <= level if by_cap else fix[i] <= full
        fix[i] = cap if by_cap else level
        st.listed[np.uint64(growing)].sub = st.listed[np.uint64(j - growing)].stopped = i
        growing += not stop
    return growing


@helper
def _settle(st: State, growing: int, stopped: int) -> None:
    """Subtract the rates just fixed from the resources that growing flows cross."""
    flow, share = st.flow, st.share
    for j in range(growing):
        i = np.uint64(st.listed[j].sub)
        for row in (F_MEMORY, F_SECOND, F_PORT, F_LINK):
            share[np.uint64(flow[row, i])].crossed = 1.0
    share[NO_RESOURCE].crossed = 0.0
    for j in range(stopped):
        i = np.uint64(st.listed[j].stopped)
        rate = st.course[F_FIX, i]
        for row in (F_MEMORY, F_SECOND, F_PORT, F_LINK):
            r = np.uint64(flow[row, i])
            crossed: Share = share[r]
            weight = (st.course[F_WEIGHT, i] if r == MEM_HBM else 1.0) * crossed.crossed
            crossed.left = max(0.0, crossed.left - rate * weight)
            crossed.load -= weight
    for j in range(growing):
        i = np.uint64(st.listed[j].sub)
        for row in (F_MEMORY, F_SECOND, F_PORT, F_LINK):
            r = np.uint64(flow[row, i])
            if share[r].load > 0.0:
                st.level[r] = share[r].left / share[r].load


@helper
def _restore(m: Machine, st: State) -> None:
    """Make all ports and links whole that growing flows crossed."""
    for r in range(len(m.capacity)):
        share: Share = st.share[r]
        if share.crossed > 0.0:
            share.left, share.load, share.crossed = m.capacity[r], share.flows, 0.0
            st.level[r] = share.whole


__all__ = ["add_flow", "refill", "remove_flow"]
