"""Bandwidth shares are max-min fair: compiled water filling, over random sequences of flows that start and end, against
plain water filling over resources by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numba import njit

from ppuc.targets.description import load_target
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.bandwidth import add_flow, refill, remove_flow
from ppuc.targets.simulator.prepare import prepare
from ppuc.targets.simulator.tables import Machine, State, new_state
from tests.support.simulator_programs import RELU, Gemm, gemm_program

Resource = int
Path = dict[Resource, float]
"""The resources that a flow crosses, each with the flow's weight on it."""


@njit(error_model="numpy", _nrt=False)
def start(m: Machine, st: State, s: int, memory: int, second: int) -> None:
    """Start a flow on stream s and share bandwidth anew."""
    st.stream[s].flow = st.core[0].flows
    add_flow(m, st, s, memory, second, st.flight[s, 0])
    refill(m, st)


@njit(error_model="numpy", _nrt=False)
def end(m: Machine, st: State, s: int) -> None:
    """End the flow of stream s and share bandwidth anew."""
    remove_flow(m, st, st.stream[s].flow)
    refill(m, st)


def fair_rates(paths: dict[int, Path], caps: dict[int, float], capacity: dict[Resource, float]) -> dict[int, float]:
    """The rates of flows by water filling: all grow together until their cap or a full resource stops them."""
    left, rates = dict(capacity), dict[int, float]()
    growing = set(paths)
    while growing:
        load = {r: sum(paths[f].get(r, 0.0) for f in growing) for r in capacity}
        level = min([caps[f] for f in growing] + [left[r] / w for r, w in load.items() if w > 0])
        full = {r for r, w in load.items() if w > 0 and left[r] <= level * w * (1 + 1e-9)}
        stopped = {f for f in growing if caps[f] <= level * (1 + 1e-12) or full & set(paths[f])}
        for f in stopped:
            rates[f] = level
            for r, weight in paths[f].items():
                left[r] = max(0.0, left[r] - level * weight)
        growing -= stopped
    return rates


@pytest.mark.parametrize("name", ["zhenwu-m890", "h100-class", "ppu-edge"])
@pytest.mark.parametrize("most", [6, 100])
def test_shares_are_those_of_water_filling(name: str, most: int) -> None:
    """Every flow has its max-min fair rate after every start and end, few flows (memories have enough for all, and only
    the CEs that changed are filled again) or many (memories are oversubscribed)."""
    target, rng = load_target(name), np.random.default_rng(most)
    flat = prepare(gemm_program(Gemm(16, 16, 16)), (RELU,), target)[0].flat
    m, st = flat.machine, new_state(flat.code, flat.machine, 0)
    transfers = [s for s in range(4 * target.cu) if s % 4 < 2]
    paths: dict[int, Path] = {}
    caps: dict[int, float] = {}
    for step in range(150):
        st.core["now"] = step
        if len(paths) < min(most, len(transfers)) and (len(paths) < 2 or rng.random() < 0.7):
            s = int(rng.choice([s for s in transfers if s not in paths]))
            memory, second = [(0, -1), (0, 1), (1, -1), (-1, -1)][rng.integers(4)]
            weight = float(rng.choice([1.0, 1.5, 2.25]))
            caps[s] = float(rng.choice([1.0, 0.8, 0.31, 0.05])) * target.load.bytes_per_clk
            flight = st.flight[s, 0]
            flight["bytes"], flight["cap"], flight["weight"] = 1 << 40, caps[s], weight
            unit = s // 4
            ports = {3 + unit // target.cu_per_ce: 1.0, 3 + target.ces + unit: 1.0}
            paths[s] = ports | {r: weight if r == 0 else 1.0 for r in (memory, second) if r >= 0}
            start(m, st, s, memory, second)
        else:
            s = int(rng.choice(list(paths)))
            del paths[s], caps[s]
            end(m, st, s)
        capacity = dict(enumerate(m.capacity.tolist())) | {t.MEM_HBM: float(st.core["hbm_rate"][0])}
        expected = fair_rates(paths, caps, capacity)
        found = {s: float(st.course[t.F_RATE, st.stream["flow"][s]]) for s in paths}
        assert found == pytest.approx(expected, rel=1e-6)
        ends = st.course[t.F_FIN, : len(paths)]
        assert st.core["finish"][0] == ends.min(initial=math.inf)
