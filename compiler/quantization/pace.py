"""Keeps a plan from being slower than bf16: lifts the layers that lose time.

A layer loses where its kernels, the ones that quantize for it included, take longer than in bf16: depthwise and first
layers, layers between others in bf16. What a kernel costs depends on its neighbours' formats, so every attempt is
compiled and timed as a whole.

Invariant: the plan returned takes no more cycles than bf16 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.timing import Times, timed

ATTEMPTS = 4
"""Rounds of lifting; each compiles the model once."""


@dataclass(frozen=True, slots=True)
class Paced:
    """A plan that is not slower than bf16, its times, and the cycles lost by each layer that was lifted for it."""

    plan: Plan
    times: Times
    lost: Mapping[str, float]


def not_slower(
    prepared: Prepared,
    plan: Plan,
    wide: Times,
    narrow: Times,
    each: Callable[[str], None] = lambda what: None,
    *,
    mixed: bool = False,
) -> Paced:
    """`plan`, which takes `narrow`, without the layers that make it slower than bf16, which takes `wide`. `mixed`: also
    without those that make a plan slower that is faster than bf16."""
    lost: dict[str, float] = {}
    best = Paced(plan, narrow, {})
    for _ in range(ATTEMPTS if narrow.cycles > wide.cycles else mixed):
        losing = _losing(plan, wide, narrow)
        if not losing:
            break
        lost |= losing
        plan = plan.with_layers({name: LayerPlan("bf16") for name in losing})
        each(f"time: {len(lost)} layers back in bf16")
        narrow = timed(prepared, plan)
        if narrow.cycles < best.times.cycles:
            best = Paced(plan, narrow, dict(lost))
        if narrow.cycles <= wide.cycles:
            break
    if best.times.cycles <= wide.cycles:
        return best
    rest = {name: LayerPlan("bf16") for name, own in best.plan.layers.items() if own.quantized}
    return Paced(best.plan.with_layers(rest), wide, dict.fromkeys(rest, 0.0) | lost)


def _losing(plan: Plan, wide: Times, narrow: Times) -> dict[str, float]:
    """The cycles that quantized layers lose, where they do."""
    cycles = {
        name: narrow.layers.get(name, 0.0) - wide.layers.get(name, 0.0)
        for name, own in plan.layers.items()
        if own.quantized
    }
    return {name: lost for name, lost in cycles.items() if lost > 0}
