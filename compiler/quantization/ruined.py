"""Refuses a quantized model that its own held-out samples show to be ruined.

An output is ruined if more than LARGEST_LOSS of its decisions differ, by more than the standard error over samples;
with a task metric, which says what the owner cares about, the model is if that falls by more. A goal that allows more
allows it here. Decisions along an axis that is only assumed are no evidence, and neither are too few samples to hold
some out.

The refusal names the nearest plan that is not ruined: the noisiest layers go to bf16, as few as suffice.

Invariant: the plan that is named was measured on the same samples, or quantizes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppuc.compiler.quantization.class_axis import ASSUMED
from ppuc.compiler.quantization.measure import Accuracy, Difference
from ppuc.compiler.quantization.metric import drop
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.search import Goal
from ppuc.ir.errors import Entity, EntityKind, UsageError, counted

LARGEST_LOSS = 0.05
"""The largest share of decisions, or relative drop of a task metric, that is not called ruined."""
_NAMED = 4
"""Layers named in a refusal."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What is lost: the share of decisions of `output` that differ, or the relative drop of the task metric ("")."""

    output: str
    share: float
    allowed: float

    @property
    def text(self) -> str:
        """The loss in words."""
        if self.output:
            return f"{self.share:.1%} of the decisions of output '{self.output}' differ"
        return f"the task metric falls by {self.share:.1%}"

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"output": self.output or None, "loss": self.share, "allowed": self.allowed}


@dataclass(frozen=True, slots=True)
class Evidence:
    """A plan measured on held-out samples: outputs by ONNX name, and the task metric of the model in f32 and of the
    plan."""

    accuracy: Accuracy
    scores: Mapping[str, float] | None = None


def worst_loss(evidence: Evidence, goal: Goal) -> Loss | None:
    """The largest loss that ruins the model; None if it is not ruined."""
    scores = evidence.scores
    if scores is not None and scores["fp32"]:
        lost = drop(scores["fp32"], scores["quantized"])
        allowed = max(LARGEST_LOSS, goal.max_drop or 0.0)
        return Loss("", lost, allowed) if lost > allowed else None
    allowed = LARGEST_LOSS if goal.min_agreement is None else max(LARGEST_LOSS, 1.0 - goal.min_agreement)
    losses = [
        Loss(name, 1.0 - own.agreement, allowed)
        for name, own in evidence.accuracy.outputs.items()
        if own.criterion.why != ASSUMED and own.rows and surely_differing(own) > allowed
    ]
    return max(losses, key=lambda loss: loss.share, default=None)


def surely_differing(output: Difference) -> float:
    """The mean over samples of the share of decisions that differ, less its standard error."""
    shares = [1.0 - share for share in output.agreements]
    mean = sum(shares) / max(len(shares), 1)
    spread = sum((share - mean) ** 2 for share in shares) / max(len(shares) - 1, 1)
    return mean - math.sqrt(spread / max(len(shares), 1))


def check_not_ruined(
    plan: Plan,
    evidence: Evidence,
    goal: Goal,
    noise: Callable[[], Mapping[str, float]],
    measure: Callable[[Plan], Evidence],
    samples: int,
) -> None:
    """Raise UsageError if `plan`, measured on `samples` held-out samples, is ruined. `noise` is that of every quantized
    layer alone, and `measure` measures another plan on the same samples; both are asked only then."""
    loss = worst_loss(evidence, goal)
    if loss is None:
        return
    alone = noise()
    order = sorted((n for n, own in plan.layers.items() if own.quantized), key=lambda n: (-alone.get(n, 0.0), n))
    lifted = order[: _fewest(plan, order, goal, measure)]
    names = ", ".join(lifted[:_NAMED]) + (", ..." if len(lifted) > _NAMED else "")
    some = f"{len(lifted)} of {counted(len(order), 'layer')} in bf16 ({names})"
    nearest = some if len(lifted) < len(order) else "bf16"
    raise UsageError.of(
        "quantization",
        "ruins the task" if not loss.output else f"ruins output '{loss.output}'",
        got=f"{loss.text} on {counted(samples, 'held-out sample')}",
        expected=f"at most {loss.allowed:.0%}; the nearest result that is not ruined: {nearest}",
        hint="`ppuc quantize -p mixed` with --min-agreement or --max-drop finds such a policy; --force takes this one",
        entities=(Entity(EntityKind.OUTPUT, loss.output),) if loss.output else (),
    )


def _fewest(plan: Plan, order: list[str], goal: Goal, measure: Callable[[Plan], Evidence]) -> int:
    """How many layers of `order`, the first ones, go to bf16 so that nothing is ruined; found by bisection."""
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        tried = plan.with_layers({name: LayerPlan("bf16") for name in order[:middle]})
        if worst_loss(measure(tried), goal) is None:
            high = middle
        else:
            low = middle + 1
    return high
