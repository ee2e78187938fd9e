"""Max-min fair bandwidth sharing, recomputed for the flows whose shares may have changed.

A flow crosses one memory (a copy two), and a unit's flow also its CE port and its unit port. Rates are those of water
filling (water_filling.py). Short bursts have more weight on device memory (`cost.visit_weight`).

Invariant: after `refill`, no resource exceeds its capacity, and no flow can get more without taking from one with no
larger share. The capacity of device memory falls when reads and writes mix (`cost.mixed_rate`) and with the number of
open streams (`cost.stream_rate`). CE ports are independent of each other while no memory is oversubscribed even at full
demand; then only flows of CEs that changed are refilled, which gives the same shares.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import array_helper, helper, sum_helper
from ppuc.targets import cost
from ppuc.targets.simulator.records import Core, Flight, Numbers, Stream
from ppuc.targets.simulator.tables import (
    F_CE,
    F_FILLED,
    F_FIN,
    F_KEPT,
    F_LINK,
    F_NEW,
    F_PATH,
    F_PORT,
    F_RATE,
    F_READS,
    F_REM,
    F_STREAM,
    F_UPD,
    F_WRITES,
    MEM_HBM,
    MEM_HOST,
    MEM_L2,
    O_CHANGED,
    O_FILLED,
    P_CAP,
    P_HBM,
    P_HOST,
    P_L2,
    P_PORTS,
    R_FLOWS,
    R_LEFT,
    R_LOAD,
    TICKS,
    Machine,
    State,
)
from ppuc.targets.simulator.water_filling import fill, least

_mixed_rate = helper(cost.mixed_rate)
_stream_rate = helper(cost.stream_rate)

_TINY = 1e-9

_SAME, _MOVED, _CHANGED = range(3)
"""Of a CE's flows since the last filling: nothing, only their order, or some started or ended."""


_WHOLE = float(1 << 52)
"""From here on, floats are whole; a smaller one that this is added to loses its fraction."""


@array_helper
def _ceil(value: float) -> float:
    """`value`, which is not negative, rounded up. The baseline processor has no instruction for it, so np.ceil would be
    a call, and no loop with a call is vectorised."""
    whole = (value + _WHOLE) - _WHOLE
    whole += 1.0 if whole < value else 0.0
    return whole if value < _WHOLE else value


@array_helper
def _set_rates(
    rem: np.ndarray, upd: np.ndarray, rate: np.ndarray, fin: np.ndarray, new: np.ndarray, n: int, now: float
) -> None:
    """Let the first `n` flows go on at the rates `new`; the arguments are rows of State.course. Without branches, so
    that it is vectorised."""
    for i in range(n):
        rem[i], upd[i], rate[i], fin[i] = _at_rate(rem[i], upd[i], rate[i], fin[i], new[i], now)


@array_helper
def _set_rates_of(
    rem: np.ndarray, upd: np.ndarray, rate: np.ndarray, fin: np.ndarray, new: np.ndarray, order: np.ndarray,
    n: int, now: float,
) -> None:  # fmt: skip
    """Like `_set_rates`, for the `n` flows in the columns `order`, whose rates are the first of `new`."""
    for j in range(n):
        i = order[j]
        rem[i], upd[i], rate[i], fin[i] = _at_rate(rem[i], upd[i], rate[i], fin[i], new[j], now)


@array_helper
def _at_rate(
    left: float, since: float, old: float, end: float, new: float, now: float
) -> tuple[float, float, float, float]:
    """What is left of a flow, from when on, its rate and its end, if it goes on at the rate `new`."""
    fresh = since < 0.0
    changed = (new != old) | fresh
    later = max(0.0, left - old * (now - since))
    left = later if changed & (not fresh) else left
    later = now + _ceil(left / new * TICKS) / TICKS
    later = now if left <= 0.0 else later
    return left, now if changed else since, new, later if changed else end


@helper
def add_flow(m: Machine, st: State, s: int, memory: int, second: int, flight: Flight) -> None:
    """Start the data phase of a stream's transfer between `memory` and `second` (-1: none)."""
    k: Core = st.core[0]
    q: Stream = st.stream[s]
    i = k.flows
    k.flows += 1
    flow, course, none = st.flow, st.course, st.resource.shape[1] - 1
    flow[F_STREAM, i], flow[F_CE, i] = s, q.ce
    flow[F_PORT, i] = q.port if q.port >= 0 else none
    flow[F_LINK, i] = q.link if q.link >= 0 else none
    course[F_REM, i], course[F_UPD, i], course[F_RATE, i] = flight.bytes, -1.0, 0.0
    course[F_PATH + P_CAP, i] = flight.cap
    course[F_PATH + P_HBM, i] = ((memory == MEM_HBM) + (second == MEM_HBM)) * flight.weight
    course[F_PATH + P_L2, i] = (memory == MEM_L2) + (second == MEM_L2)
    course[F_PATH + P_HOST, i] = (memory == MEM_HOST) + (second == MEM_HOST)
    want = flight.cap * flight.weight
    writes = q.unit >= 0 and s % 4 == 1
    course[F_READS, i] = want if memory == MEM_HBM and not writes else 0.0
    course[F_WRITES, i] = want if second == MEM_HBM or (memory == MEM_HBM and writes) else 0.0
    _count(st, i, 1)


@helper
def remove_flow(m: Machine, st: State, i: int) -> None:
    """End a data phase; the last one takes its column."""
    k: Core = st.core[0]
    _count(st, i, -1)
    k.flows -= 1
    n = k.flows
    if i == n:
        return
    for row in range(len(st.flow)):
        st.flow[row, i] = st.flow[row, n]
    for row in range(F_KEPT):
        st.course[row, i] = st.course[row, n]
    st.stream[st.flow[F_STREAM, i]].flow = i
    _mark(st, st.flow[F_CE, i], _MOVED)


@helper
def _count(st: State, i: int, change: int) -> None:
    """Count a flow that starts or ends."""
    k: Core = st.core[0]
    flow, course, resource = st.flow, st.course, st.resource
    reads, writes = course[F_READS, i] > 0.0, course[F_WRITES, i] > 0.0
    k.stale = 1
    k.streams += change * (reads + writes)
    k.writers += change * writes
    _mark(st, flow[F_CE, i], _CHANGED)
    for row in (F_PORT, F_LINK):
        r = flow[row, i]
        if r < resource.shape[1] - 1:
            resource[R_FLOWS, r] += change
            resource[R_LOAD, r] = resource[R_FLOWS, r]


@helper
def _mark(st: State, ce: int, what: int) -> None:
    """Note what happened to flows of a CE, whose demand is to be summed anew."""
    st.changed[ce] = max(st.changed[ce], what)
    st.demand[MEM_HBM, ce] = st.demand[MEM_L2, ce] = st.demand[MEM_HOST, ce] = 0.0


@helper
def _list_flows(m: Machine, st: State, ce: int, n: int) -> int:
    """Add the flows of a CE to the `n` that O_CHANGED lists in the order of columns; returns their number."""
    order, numbers = st.order, m.numbers[0]
    width = 4 * numbers.cu_per_ce
    end = len(st.stream) if ce == numbers.ces else min(4 * numbers.units, ce * width + width)
    for s in range(ce * width if ce < numbers.ces else 4 * numbers.units, end):
        i, j = st.stream[s].flow, n
        if i < 0:
            continue
        while j > 0 and order[O_CHANGED, j - 1] > i:
            order[O_CHANGED, j] = order[O_CHANGED, j - 1]
            j -= 1
        order[O_CHANGED, j] = i
        n += 1
    return int(n)


@helper
def _recount(m: Machine, st: State) -> int:
    """Sum the demand of the CEs whose flows changed, in the order of all flows, and share their ports among these.
    Lists these flows in O_CHANGED and returns their number."""
    demand, flow, course, order = st.demand, st.flow, st.course, st.order
    left, load = st.resource[R_LEFT], st.resource[R_LOAD]
    n = 0
    for ce in range(len(st.changed)):
        if st.changed[ce] != _SAME:
            n = _list_flows(m, st, ce, n)
    for j in range(n):
        i = order[O_CHANGED, j]
        ce, port, link, cap = flow[F_CE, i], flow[F_PORT, i], flow[F_LINK, i], course[F_PATH + P_CAP, i]
        demand[MEM_HBM, ce] += course[F_READS, i] + course[F_WRITES, i]
        demand[MEM_L2, ce] += cap * course[F_PATH + P_L2, i]
        demand[MEM_HOST, ce] += cap * course[F_PATH + P_HOST, i]
        course[F_PATH + P_PORTS, i] = min(left[port] / load[port], left[link] / load[link])
    return n


@array_helper
def _totals(reads: np.ndarray, writes: np.ndarray, n: int) -> tuple[float, float]:
    """The sums of the first `n` values of two rows."""
    x, y = 0.0, 0.0
    for i in range(n):
        x += reads[i]
        y += writes[i]
    return x, y


@sum_helper
def _demands(
    hbm: np.ndarray, l2: np.ndarray, host: np.ndarray, ports: np.ndarray, n: int
) -> tuple[float, float, float]:
    """About the demand of the first `n` CEs by memory: what their ports let through, which the sum for device memory
    leaves out."""
    x, y, z = 0.0, 0.0, 0.0
    for ce in range(n):
        x += hbm[ce]
        y += min(l2[ce], ports[ce])
        z += min(host[ce], ports[ce])
    return x, y, z


@helper
def _open(m: Machine, st: State, streams: int) -> float:
    """Share of device memory's bandwidth that remains with this many live streams."""
    if st.open[streams] == 0.0:
        numbers: Numbers = m.numbers[0]
        rate = _stream_rate(streams, numbers.banks, numbers.interleave, numbers.activate)
        st.open[streams] = min(1.0, rate / numbers.open_rows)
    return float(st.open[streams])


@helper
def _oversubscribed(st: State, m: Machine) -> bool:
    """Whether some memory cannot serve every flow at its cap, limited by CE ports only. Sets the rate of device memory
    for the current mix of flows."""
    k: Core = st.core[0]
    rate = m.capacity[MEM_HBM]
    if k.writers > 0:
        reads, writes = _totals(st.course[F_READS], st.course[F_WRITES], k.flows)
        rate = _mixed_rate(rate, reads, writes, m.numbers[0].turnaround)
    k.hbm_rate = rate * _open(m, st, k.streams)
    ces = m.numbers[0].ces
    demand, ports = st.demand, m.capacity[MEM_HOST + 1 :]
    hbm, l2, host = _demands(demand[MEM_HBM], demand[MEM_L2], demand[MEM_HOST], ports, ces)
    hbm, l2, host = hbm + demand[MEM_HBM, ces], l2 + demand[MEM_L2, ces], host + demand[MEM_HOST, ces]
    much = 1 + _TINY
    return bool(hbm > k.hbm_rate * much or l2 > m.capacity[MEM_L2] * much or host > m.capacity[MEM_HOST] * much)


@helper
def refill(m: Machine, st: State) -> None:
    """Compute every flow's share and find the next one to end."""
    k: Core = st.core[0]
    course, listed = st.course, _recount(m, st)
    over = _oversubscribed(st, m)
    everyone = over or k.over != 0
    n = _choose(st, listed, everyone)
    fill(m, st, n, F_PATH if everyone else F_FILLED)
    k.over = over
    k.stale = 0
    st.changed[:] = _SAME
    rows = course[F_REM], course[F_UPD], course[F_RATE], course[F_FIN], course[F_NEW]
    if everyone:
        _set_rates(*rows, k.flows, k.now)
    else:
        _set_rates_of(*rows, st.order[O_FILLED], n, k.now)
    k.finish = least(course[F_FIN], k.flows)


@helper
def _choose(st: State, listed: int, everyone: bool) -> int:
    """List the flows to fill: all, or those of CEs with flows that started or ended. Returns their number."""
    order, flow, course, flows = st.order, st.flow, st.course, st.core[0].flows
    if everyone:
        for i in range(flows):
            order[O_FILLED, i] = i
        return int(flows)
    n = 0
    for j in range(listed):
        order[O_FILLED, n] = order[O_CHANGED, j]
        n += st.changed[flow[F_CE, order[O_CHANGED, j]]] == _CHANGED
    for j in range(n):
        for row in range(P_PORTS + 1):
            course[F_FILLED + row, j] = course[F_PATH + row, order[O_FILLED, j]]
    return n


__all__ = ["add_flow", "refill", "remove_flow"]
