"""Plans that are not slower than bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ppuc.compiler.quantization import pace
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.study import Aim, study
from ppuc.compiler.quantization.timing import Times
from tests.quantization.networks import convnet, prepared, samples_of

WIDE = Times(100.0, 1e-6, {"c": 40.0, "d": 30.0, "p": 30.0})
COSTS = {"c": -10.0, "d": 25.0, "p": 5.0}
"""What a layer in 8 bits adds to the cycles of WIDE."""


def times(plan: Plan, costs: dict[str, float]) -> Times:
    """As if layers did not depend on each other."""
    layers = {n: WIDE.layers[n] + costs[n] * plan.layers[n].quantized for n in costs}
    return Times(sum(layers.values()), sum(layers.values()) * 1e-8, layers)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., pace.Paced]:
    def run(costs: dict[str, float], *, mixed: bool = False) -> pace.Paced:
        monkeypatch.setattr(pace, "timed", lambda ready, plan: times(plan, costs))
        plan = Plan({n: LayerPlan("e4m3", (1.0,)) for n in costs})
        return pace.not_slower(prepared(convnet()), plan, WIDE, times(plan, costs), mixed=mixed)

    return run


def quantized(plan: Plan) -> set[str]:
    return {n for n, own in plan.layers.items() if own.quantized}


def test_layers_that_lose_go_back(paced: Callable[..., pace.Paced]) -> None:
    made = paced(COSTS)
    assert quantized(made.plan) == {"c"}
    assert made.times.cycles == 90.0
    assert made.lost == {"d": 25.0, "p": 5.0}


def test_bf16_is_what_remains_where_every_layer_loses(paced: Callable[..., pace.Paced]) -> None:
    made = paced({"c": 1.0, "d": 25.0, "p": 5.0})
    assert not quantized(made.plan)
    assert made.times.cycles <= WIDE.cycles
    assert set(made.lost) == {"c", "d", "p"}


def test_a_plan_that_gains_is_kept_unless_formats_are_mixed(paced: Callable[..., pace.Paced]) -> None:
    costs = {"c": -30.0, "d": 5.0, "p": -1.0}
    assert quantized(paced(costs).plan) == {"c", "d", "p"}
    assert quantized(paced(costs, mixed=True).plan) == {"c", "p"}


def test_a_report_for_time_is_not_slower_and_names_what_lost() -> None:
    """A tiny network in FP8 is slower on this machine, so the policy says so; for MACs it stays in 8 bits."""
    ready: Prepared = prepared(convnet(), "zhenwu-m890")
    samples = samples_of(ready)
    kept = study(ready, samples, aim=Aim(purpose="macs"))
    fast = study(ready, samples, aim=Aim(purpose="time"))
    assert kept.record["share"] == 1.0
    assert kept.record["slower"] == []
    assert fast.record["time"]["speedup"] >= 1.0
    assert fast.record["time"]["speedup"] >= kept.record["time"]["speedup"]
    assert (fast.record["slower"] != []) == (kept.record["time"]["speedup"] < 1.0)
