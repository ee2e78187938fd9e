"""Water filling: the rates at which flows share resources, max-min fairly.

All flows grow together; a flow freezes at its own cap or when a resource on its path is full. Steps pass over rows of
State.course from end to end, without branches, so that they are vectorised: a row that holds 0 for flows that grow and
inf for others takes the place of a list. Sums whose rounding depends on the order run over the flows one by one.

Invariant: before and after, `left` and `load` of ports are those of all their flows.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import array_helper, helper, sum_helper
from ppuc.targets.simulator.tables import (
    F_AT,
    F_GROWS,
    F_LEFT,
    F_LIMIT,
    F_LINK,
    F_NEW,
    F_PORT,
    F_STOPS,
    MEM_HBM,
    MEM_HOST,
    MEM_L2,
    O_FILLED,
    O_GROWING,
    O_STOPPED,
    P_CAP,
    P_HBM,
    P_HOST,
    P_L2,
    P_PORTS,
    R_FLOWS,
    R_LEFT,
    R_LOAD,
    Machine,
    State,
)

_TINY = 1e-9


@array_helper
def _less(x: float, y: float) -> float:
    return x if x < y else y


@array_helper
def least(values: np.ndarray, n: int) -> float:
    """The least of the first `n` values; inf without any. Four minima, because each step of one waits for the last."""
    a, b, c, d = np.inf, np.inf, np.inf, np.inf
    end = n & ~3
    for i in range(0, end, 4):
        a, b = _less(values[i], a), _less(values[i + 1], b)
        c, d = _less(values[i + 2], c), _less(values[i + 3], d)
    for i in range(end, n):
        a = _less(values[i], a)
    return _less(_less(a, b), _less(c, d))


@array_helper
def copy_row(source: np.ndarray, to: np.ndarray, n: int) -> None:
    """Copy the first `n` values."""
    for i in range(n):
        to[i] = source[i]


@array_helper
def _sums(x: np.ndarray, y: np.ndarray, z: np.ndarray, n: int) -> tuple[float, float, float]:
    """The sums of the first `n` values of three rows."""
    a, b, c = 0.0, 0.0, 0.0
    for i in range(n):
        a += x[i]
        b += y[i]
        c += z[i]
    return a, b, c


@array_helper
def _levels(
    share: np.ndarray, hbm: np.ndarray, l2: np.ndarray, host: np.ndarray, grows: np.ndarray, to: np.ndarray,
    n: int, at_hbm: float, at_l2: float, at_host: float,
) -> None:  # fmt: skip
    """The level at which the first resource on each flow's path is full; inf for a flow that does not grow."""
    for i in range(n):
        level = min(share[i], at_hbm if hbm[i] > 0.0 else np.inf)
        other = min(at_l2 if l2[i] > 0.0 else np.inf, at_host if host[i] > 0.0 else np.inf)
        to[i] = min(level, other) + grows[i]


@array_helper
def _masked(values: np.ndarray, grows: np.ndarray, to: np.ndarray, n: int) -> None:
    """The values of growing flows; inf for the others."""
    for i in range(n):
        to[i] = values[i] + grows[i]


@array_helper
def _stop_at_caps(
    at: np.ndarray, cap: np.ndarray, grows: np.ndarray, new: np.ndarray, stops: np.ndarray, n: int, bound: float
) -> int:
    """Freeze the growing flows that stop `at` a level of `bound` or less, at their caps. Returns the number of those
    that go on."""
    growing = 0
    for i in range(n):
        grew = grows[i] == 0.0
        stop = grew & (at[i] <= bound)
        stops[i] = 1.0 if stop else 0.0
        new[i] = cap[i] if stop else new[i]
        grows[i] = np.inf if stop else grows[i]
        growing += grew & (not stop)
    return growing


@array_helper
def _take_caps(cap: np.ndarray, grows: np.ndarray, new: np.ndarray, n: int) -> None:
    """Give all growing flows their caps."""
    for i in range(n):
        new[i] = cap[i] if grows[i] == 0.0 else new[i]


@array_helper
def _stop_at(
    at: np.ndarray, grows: np.ndarray, new: np.ndarray, stops: np.ndarray, n: int, bound: float, level: float
) -> int:
    """Like `_stop_at_caps`, but at `level`."""
    growing = 0
    for i in range(n):
        grew = grows[i] == 0.0
        stop = grew & (at[i] <= bound)
        stops[i] = 1.0 if stop else 0.0
        new[i] = level if stop else new[i]
        grows[i] = np.inf if stop else grows[i]
        growing += grew & (not stop)
    return growing


@array_helper
def _short(cap: np.ndarray, share: np.ndarray, grows: np.ndarray, n: int) -> int:
    """The number of growing flows whose cap is above their share."""
    short = 0
    for i in range(n):
        short += (grows[i] == 0.0) & (cap[i] > share[i])
    return short


@sum_helper
def _demand(cap: np.ndarray, weights: np.ndarray, grows: np.ndarray, n: int) -> tuple[float, float]:
    """About the sums over growing flows of weights, and of weights times caps."""
    weight, demand = 0.0, 0.0
    for i in range(n):
        mine = weights[i] * (1.0 if grows[i] == 0.0 else 0.0)
        weight += mine
        demand += mine * cap[i]
    return weight, demand


@helper
def fill(m: Machine, st: State, n: int, at: int) -> None:
    """Set F_NEW of the first `n` flows, whose paths are the rows of State.course from `at` on and whose columns are
    State.order[O_FILLED]."""
    course, resource = st.course, st.resource
    hbm, l2, host = _sums(course[at + P_HBM], course[at + P_L2], course[at + P_HOST], n)
    _open(st, MEM_HBM, st.core[0].hbm_rate, hbm)
    _open(st, MEM_L2, m.capacity[MEM_L2], l2)
    _open(st, MEM_HOST, m.capacity[MEM_HOST], host)
    copy_row(course[at + P_PORTS], course[F_LEFT], n)
    course[F_GROWS, :n] = 0.0
    settled = False
    while _freeze(st, n, at) > 0:
        _settle(st, n, at)
        settled = True
    if settled:
        first = MEM_HOST + 1
        ports = resource.shape[1] - first
        copy_row(m.capacity[first:], resource[R_LEFT, first:], ports - 1)
        copy_row(resource[R_FLOWS, first:], resource[R_LOAD, first:], ports)


@helper
def _open(st: State, memory: int, left: float, load: float) -> None:
    st.resource[R_LEFT, memory], st.resource[R_LOAD, memory] = left, load


@helper
def _level_of(st: State, r: int) -> float:
    """The level at which a resource is full; inf if no flow grows on it."""
    load = st.resource[R_LOAD, r]
    return float(max(0.0, st.resource[R_LEFT, r]) / load if load > 0.0 else np.inf)


@helper
def _freeze(st: State, n: int, at: int) -> int:
    """One round: freeze the flows that stop growing first, and the others if nothing limits them. Returns the number of
    flows that still grow."""
    course = st.course
    cap, grows, new, stops, levels = course[at + P_CAP], course[F_GROWS], course[F_NEW], course[F_STOPS], course[F_AT]
    _levels(
        course[F_LEFT], course[at + P_HBM], course[at + P_L2], course[at + P_HOST], grows, levels,
        n, _level_of(st, MEM_HBM), _level_of(st, MEM_L2), _level_of(st, MEM_HOST),
    )  # fmt: skip
    _masked(cap, grows, course[F_LIMIT], n)
    level, lowest = least(levels, n), least(course[F_LIMIT], n)
    if lowest <= level:
        return int(_stop_at_caps(course[F_LIMIT], cap, grows, new, stops, n, level))
    growing = _stop_at(levels, grows, new, stops, n, level * (1 + _TINY), level)
    if growing > 0 and _reach_caps(st, n, at, level):
        _take_caps(cap, grows, new, n)
        return 0
    return int(growing)


@helper
def _reach_caps(st: State, n: int, at: int, level: float) -> bool:
    """Whether all flows that still grow reach their caps, after others have stopped at `level`. Their ports had more to
    give than that, so they have at least as much for each as before the round. Memories are judged with a margin, so
    that the answer is that of further rounds, whatever their rounding."""
    course, resource = st.course, st.resource
    cap, grows = course[at + P_CAP], course[F_GROWS]
    if _short(cap, course[F_LEFT], grows, n) > 0:
        return False
    for row, memory in ((P_HBM, MEM_HBM), (P_L2, MEM_L2), (P_HOST, MEM_HOST)):
        left, load = resource[R_LEFT, memory], resource[R_LOAD, memory]
        if load > 0.0:
            weight, demand = _demand(cap, course[at + row], grows, n)
            if weight > 0.0 and demand + _TINY * left > left - level * (load - weight):
                return False
    return True


@helper
def _settle(st: State, n: int, at: int) -> None:
    """Subtract the rates just fixed from the resources on their paths, and share what is left of ports among the
    growing flows."""
    flow, new, share, order = st.flow, st.course[F_NEW], st.course[F_LEFT], st.order
    left, load = st.resource[R_LEFT], st.resource[R_LOAD]
    stopped, growing = _list(st, n)
    for j in range(stopped):
        i = order[O_STOPPED, j]
        rate, column = new[i], order[O_FILLED, i]
        for row in (F_PORT, F_LINK):
            left[flow[row, column]] -= rate
            load[flow[row, column]] -= 1.0
        for row, memory in ((P_HBM, MEM_HBM), (P_L2, MEM_L2), (P_HOST, MEM_HOST)):
            weight = st.course[at + row, i]
            left[memory] -= rate * weight
            load[memory] -= weight
    for j in range(growing):
        i = order[O_GROWING, j]
        column = order[O_FILLED, i]
        port, link = flow[F_PORT, column], flow[F_LINK, column]
        share[i] = min(max(0.0, left[port]) / load[port], max(0.0, left[link]) / load[link])


@helper
def _list(st: State, n: int) -> tuple[int, int]:
    """List the flows that stopped in this round, and those that grow; returns their numbers."""
    order, grows, stops = st.order, st.course[F_GROWS], st.course[F_STOPS]
    stopped, growing = 0, 0
    for i in range(n):
        order[O_STOPPED, stopped] = order[O_GROWING, growing] = i
        stopped += stops[i] > 0.0
        growing += grows[i] == 0.0
    return stopped, growing


__all__ = ["copy_row", "fill", "least"]
