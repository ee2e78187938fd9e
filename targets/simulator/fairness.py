"""Max-min fair shares of bandwidth, for the flows whose shares may have changed.

A flow crosses one memory (a copy two), and a unit's flow also its CE port and its unit port. Water filling: all rates
grow together; a flow stops at its own cap or when a resource on its way is full. A flow in short bursts weighs more
on device memory (`cost.visit_weight`).

Invariant: after `refill`, no resource carries more than its capacity and no flow could get more without taking from
one that has no more. Device memory has less to share while reads and writes mix (`cost.mixed_rate`). CE ports are
independent of each other while no memory is oversubscribed even at full demand; then only flows of CEs that changed
are refilled, which gives the same shares.
"""

from __future__ import annotations

import numpy as np

from ppuc.targets import cost
from ppuc.targets.simulator.jit import helper
from ppuc.targets.simulator.tables import MEM_HBM, Machine, State

mixed_rate = helper(cost.mixed_rate)

TICKS = 4096.0
"""Flow ends are rounded up to 1/TICKS cycle, so that equal transfers end in one batch."""
_TINY = 1e-9


@helper
def ce_of(m: Machine, s: int) -> int:
    """CE of a stream; stage queues count as one CE beyond the last."""
    return s // 4 // m.cu_per_ce if s < 4 * m.units else m.ces


@helper
def _oversubscribed(st: State, m: Machine) -> bool:
    """Whether some memory could not serve every flow at its cap, were CE ports the only other limit. Sets the rate of
    device memory for the present mix of flows."""
    st.demand[:] = 0.0
    reads, writes = 0.0, 0.0
    for i in range(st.num[1]):
        s = st.act[i]
        ce = ce_of(m, s)
        for j in range(2):
            mem = st.mem[s, j]
            if mem < 0:
                continue
            want = st.cap[s] * (st.wgt[s] if mem == MEM_HBM else 1.0)
            st.demand[ce, mem] += want
            if mem == MEM_HBM:
                if j == 1 or (ce < m.ces and s % 4 == 1):
                    writes += want
                else:
                    reads += want
    st.now[2] = mixed_rate(m.capacity[MEM_HBM], reads, writes, m.turnaround)
    for mem in range(3):
        total = 0.0
        for ce in range(m.ces + 1):
            demand = st.demand[ce, mem]
            if ce < m.ces and mem != MEM_HBM:
                demand = min(demand, m.capacity[3 + ce])
            total += demand
        if total > (st.now[2] if mem == MEM_HBM else m.capacity[mem]) * (1 + _TINY):
            return True
    return False


@helper
def _resource(st: State, m: Machine, s: int, j: int) -> int:
    """The j-th resource on the way of stream s, or -1."""
    if j < 2:
        return int(st.mem[s, j])
    if s >= 4 * m.units:
        return -1
    return 3 + s // 4 // m.cu_per_ce if j == 2 else 3 + m.ces + s // 4


@helper
def _set_rate(st: State, s: int, rate: float) -> None:
    now = st.now[0]
    if rate != st.rate[s] or st.upd[s] < 0:
        if st.upd[s] >= 0:
            st.rem[s] = max(0.0, st.rem[s] - st.rate[s] * (now - st.upd[s]))
        st.upd[s] = now
        st.rate[s] = rate
        st.fin[s] = now if st.rem[s] <= 0 else np.ceil((now + st.rem[s] / rate) * TICKS) / TICKS


@helper
def refill(st: State, m: Machine) -> None:
    """Give every flow its share and find the next one to end."""
    over = _oversubscribed(st, m)
    everyone = over or st.num[6] != 0
    n = 0
    for i in range(st.num[1]):
        s = st.act[i]
        if everyone or s >= 4 * m.units or st.dirty[ce_of(m, s)]:
            st.sub[n] = s
            n += 1
            for j in range(4):
                r = _resource(st, m, s, j)
                if r >= 0:
                    st.left[r] = st.now[2] if r == MEM_HBM else m.capacity[r]
                    st.load[r] = 0.0
    for i in range(n):
        for j in range(4):
            r = _resource(st, m, st.sub[i], j)
            if r >= 0:
                st.load[r] += st.wgt[st.sub[i]] if r == MEM_HBM else 1.0
    while n > 0:
        n = _freeze(st, m, n)
    st.num[6] = over
    st.num[5] = 0
    st.dirty[:] = 0
    first = np.inf
    for i in range(st.num[1]):
        first = min(first, st.fin[st.act[i]])
    st.now[1] = first


@helper
def _freeze(st: State, m: Machine, n: int) -> int:
    """One round of water filling over the flows `sub[:n]`; returns how many still grow."""
    level, lowest = np.inf, np.inf
    for i in range(n):
        s = st.sub[i]
        lowest = min(lowest, st.cap[s])
        for j in range(4):
            r = _resource(st, m, s, j)
            if r >= 0:
                level = min(level, st.left[r] / st.load[r])
    by_cap = lowest <= level
    for i in range(n):
        s = st.sub[i]
        stop = by_cap and st.cap[s] <= level
        if not by_cap:
            for j in range(4):
                r = _resource(st, m, s, j)
                if r >= 0 and st.left[r] <= level * st.load[r] * (1 + _TINY):
                    stop = True
        st.fix[s] = -1.0 if not stop else st.cap[s] if by_cap else level
    return _settle(st, m, n)


@helper
def _settle(st: State, m: Machine, n: int) -> int:
    """Take the rates just fixed off the resources and close ranks."""
    kept = 0
    for i in range(n):
        s = st.sub[i]
        rate = st.fix[s]
        if rate < 0:
            st.sub[kept] = s
            kept += 1
            continue
        for j in range(4):
            r = _resource(st, m, s, j)
            if r >= 0:
                weight = st.wgt[s] if r == MEM_HBM else 1.0
                st.left[r] = max(0.0, st.left[r] - rate * weight)
                st.load[r] -= weight
        _set_rate(st, s, rate)
    return kept
