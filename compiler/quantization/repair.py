"""Repair of a plan, kept only where the outputs gain.

Candidates go from doing nothing to refitting all weights; which is best depends on how much the data say about the
layers, so each is measured on samples that it was not fitted to.

Invariant: the plan that comes back is that of the most merit of those tried, the unrepaired one among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.quantization.measure import Accuracy, Reference
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.reconstruct import Options, reconstructed

CANDIDATES: Mapping[str, Options | None] = {
    "none": None,
    "phase": Options(regress=False, compensate=False, bias=False),
    "compensate": Options(regress=False),
    "refit 5": Options(ridge=5.0),
    "refit 1": Options(ridge=1.0),
}
"""Name -> what is done to the weights: scales from a binade, compensated rounding with a bias, ridge regression."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The plan, how it was repaired, and how accurate it is on the samples that decided."""

    plan: Plan
    method: str
    accuracy: Accuracy
    tried: Mapping[str, float]


def repaired(
    prepared: Prepared,
    plan: Plan,
    fit: Sequence[Mapping[str, np.ndarray]],
    check: Reference,
    methods: Sequence[str] = tuple(CANDIDATES),
    each: Callable[[str], None] | None = None,
) -> Repair:
    """The best of `methods` for `plan`: fitted to `fit` (feeds by parameter name), judged by `check`."""
    best: Repair | None = None
    tried: dict[str, float] = {}
    for method in methods:
        if each is not None:
            each(method)
        changed = apply_repair(prepared, plan, fit, method)
        accuracy = check.compare(prepared.quantized(changed).graph)
        tried[method] = accuracy.merit
        if best is None or accuracy.merit > best.accuracy.merit:
            best = Repair(changed, method, accuracy, tried)
    assert best is not None
    return best


def apply_repair(prepared: Prepared, plan: Plan, fit: Sequence[Mapping[str, np.ndarray]], method: str) -> Plan:
    """`plan` repaired by one method."""
    options = CANDIDATES[method]
    quantized = any(p.quantized for p in plan.layers.values())
    if options is None or not quantized:
        return plan
    return reconstructed(prepared.module.graph, prepared.layers, plan, fit, options)
