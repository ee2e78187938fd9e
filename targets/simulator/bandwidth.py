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
from ppuc.targets.simulator.jit import helper
from ppuc.targets.simulator.records import Core, Numbers, Share, Stream
from ppuc.targets.simulator.tables import MEM_HBM, TICKS, Machine, State

_mixed_rate = helper(cost.mixed_rate)
_stream_rate = helper(cost.stream_rate)

_TINY = 1e-9


@helper
def _oversubscribed(st: State, m: Machine) -> bool:
    """Whether some memory cannot serve every flow at its cap, limited by CE ports only. Sets the rate of device memory
    for the current mix of flows."""
    k: Core = st.core[0]
    numbers: Numbers = m.numbers[0]
    demand, ces = st.demand, numbers.ces
    for ce in range(ces + 1):
        demand[ce, 0] = demand[ce, 1] = demand[ce, 2] = 0.0
    reads, writes, streams = 0.0, 0.0, 0
    for i in range(k.flows):
        s = st.listed[i].flow
        q: Stream = st.stream[s]
        if q.memory >= 0:
            want = q.cap * (q.weight if q.memory == MEM_HBM else 1.0)
            demand[q.ce, q.memory] += want
            if q.memory == MEM_HBM:
                streams += 1
                if q.unit >= 0 and s % 4 == 1:
                    writes += want
                else:
                    reads += want
        if q.second >= 0:
            want = q.cap * (q.weight if q.second == MEM_HBM else 1.0)
            demand[q.ce, q.second] += want
            if q.second == MEM_HBM:
                writes += want
                streams += 1
    open_rows = _stream_rate(streams, numbers.banks, numbers.interleave, numbers.activate)
    part = min(1.0, open_rows / numbers.open_rows)
    k.hbm_rate = _mixed_rate(m.capacity[MEM_HBM], reads, writes, numbers.turnaround) * part
    for memory in range(3):
        total = 0.0
        for ce in range(ces + 1):
            want = demand[ce, memory]
            if ce < ces and memory != MEM_HBM:
                want = min(want, m.capacity[3 + ce])
            total += want
        if total > (k.hbm_rate if memory == MEM_HBM else m.capacity[memory]) * (1 + _TINY):
            return True
    return False


@helper
def _way(q: Stream, j: int) -> int:
    """The j-th resource on the path of a flow, or -1."""
    if j < 2:
        return q.memory if j == 0 else q.second
    return q.port if j == 2 else q.link


@helper
def _set_rate(q: Stream, now: float, rate: float) -> None:
    if rate != q.rate or q.upd < 0:
        if q.upd >= 0:
            q.rem = max(0.0, q.rem - q.rate * (now - q.upd))
        q.upd = now
        q.rate = rate
        q.fin = now if q.rem <= 0 else now + np.ceil(q.rem / rate * TICKS) / TICKS


@helper
def refill(m: Machine, st: State) -> None:
    """Compute every flow's share and find the next one to end."""
    k: Core = st.core[0]
    over = _oversubscribed(st, m)
    everyone = over or k.over != 0
    n = 0
    for i in range(k.flows):
        s = st.listed[i].flow
        q: Stream = st.stream[s]
        if everyone or q.unit < 0 or st.demand[q.ce, 3] > 0:
            st.listed[n].sub = s
            n += 1
            for j in range(4):
                r = _way(q, j)
                if r >= 0:
                    st.share[r].left = k.hbm_rate if r == MEM_HBM else m.capacity[r]
                    st.share[r].load = 0.0
    for i in range(n):
        q = st.stream[st.listed[i].sub]
        for j in range(4):
            r = _way(q, j)
            if r >= 0:
                st.share[r].load += q.weight if r == MEM_HBM else 1.0
    while n > 0:
        n = _freeze(st, n)
    k.over = over
    k.stale = 0
    st.demand[:, 3] = 0.0
    first = np.inf
    for i in range(k.flows):
        first = min(first, st.stream[st.listed[i].flow].fin)
    k.finish = first


@helper
def _freeze(st: State, n: int) -> int:
    """One round of water filling over the first `n` flows of the list; returns the number that still grow."""
    level, lowest = np.inf, np.inf
    for i in range(n):
        q: Stream = st.stream[st.listed[i].sub]
        lowest = min(lowest, q.cap)
        for j in range(4):
            r = _way(q, j)
            if r >= 0:
                level = min(level, st.share[r].left / st.share[r].load)
    by_cap = lowest <= level
    for i in range(n):
        q = st.stream[st.listed[i].sub]
        stop = by_cap and q.cap <= level
        if not by_cap:
            for j in range(4):
                r = _way(q, j)
                if r >= 0 and st.share[r].left <= level * st.share[r].load * (1 + _TINY):
                    stop = True
        q.fix = -1.0 if not stop else q.cap if by_cap else level
    return _settle(st, n)


@helper
def _settle(st: State, n: int) -> int:
    """Subtract the rates just frozen from the resources and compact the list."""
    kept, now = 0, st.core[0].now
    for i in range(n):
        s = st.listed[i].sub
        q: Stream = st.stream[s]
        rate = q.fix
        if rate < 0:
            st.listed[kept].sub = s
            kept += 1
            continue
        for j in range(4):
            r = _way(q, j)
            if r >= 0:
                weight = q.weight if r == MEM_HBM else 1.0
                share: Share = st.share[r]
                share.left = max(0.0, share.left - rate * weight)
                share.load -= weight
        _set_rate(q, now, rate)
    return kept
