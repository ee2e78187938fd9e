"""Decides whether a repair is kept: it must improve accuracy on samples held out from fitting and choosing it.

Cross-validation chooses a repair, but similar samples (steps of one sequence, frames of one film) mislead it, and a
mean over outputs hides a single output that gets worse. So the fitted repair is measured once more against the plan
without it, and discarded if it is worse over all outputs, or significantly worse at any single output.

Invariant: a repaired plan was measured on held-out samples and improved them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.quantization.measure import Accuracy, Difference
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.repair import NONE, affordable


@dataclass(frozen=True, slots=True)
class Refusal:
    """A repair by `method` that was worse on held-out samples: SQNR in dB without and with it, at the output with the
    largest loss, or over all outputs ("") if no single output was worse."""

    method: str
    output: str
    without_db: float
    repaired_db: float

    @property
    def reason(self) -> str:
        """The reason as text."""
        where = f"output '{self.output}'" if self.output else "the outputs"
        return f"takes {where} from {self.without_db:.1f} to {self.repaired_db:.1f} dB on held-out samples"

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "method": self.method,
            "output": self.output or None,
            "without_db": self.without_db,
            "repaired_db": self.repaired_db,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """The plan that is kept, how it was repaired ("none"), and what was given up."""

    plan: Plan
    method: str
    refused: Refusal | None = None


def kept(
    prepared: Prepared, plain: Plan, repaired: Plan, method: str, held: Sequence[Mapping[str, np.ndarray]]
) -> Kept:
    """`repaired`, made of `plain` by `method`, if it wins on the samples `held` back (by ONNX name), else `plain`."""
    if method == NONE:
        return Kept(plain, NONE)
    judge = prepared.reference(affordable(prepared, list(prepared.feeds(held))))
    before, after = (judge.compare(prepared.quantized(plan).graph) for plan in (plain, repaired))
    found = refusal(before, after, method, {value: name for name, value in prepared.module.outputs})
    if (remarks := listener()) is not None:
        about = {"samples": len(judge.samples), "before_db": before.sqnr, "after_db": after.sqnr}
        entity = prepared.module.graph.name
        if found is not None:
            remarks.missed("repair", entity, (), f"'{found.method}' {found.reason}", **about)
        else:
            remarks.applied("repair", entity, (), f"'{method}' gains on held-out samples", **about)
    return Kept(repaired, method) if found is None else Kept(plain, NONE, found)


def refusal(before: Accuracy, after: Accuracy, method: str, names: Mapping[str, str]) -> Refusal | None:
    """Why the change from `before` to `after` is given up; None when it wins. `names` are those of outputs by value."""
    lost = {v: _loss(d, after.outputs[v]) for v, d in before.outputs.items()}
    worst = max(lost, key=lambda value: lost[value], default=None)
    if worst is not None and lost[worst] > 0.0:
        without, with_it = before.outputs[worst], after.outputs[worst]
        return Refusal(method, names[worst], without.typical, with_it.typical)
    if after.merit <= before.merit:
        return Refusal(method, "", before.merit, after.merit)
    return None


def _loss(before: Difference, after: Difference) -> float:
    """The mean over samples of what an output loses, in dB, less its standard error: above 0 when it surely loses."""
    losses = [a - b for a, b in zip(before.levels, after.levels, strict=True)]
    mean = sum(losses) / len(losses)
    spread = sum((loss - mean) ** 2 for loss in losses) / max(len(losses) - 1, 1)
    return mean - math.sqrt(spread / len(losses))
