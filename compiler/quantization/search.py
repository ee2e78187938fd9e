"""Mixed-precision search: selects the layers to keep in bf16, so that a goal is met at the least cost in time.

1. Each layer takes the 8-bit format with the least predicted noise.
2. Its noise at the outputs is measured, that layer alone quantized.
3. Layers are ranked by noise over what they save: simulated cycles, or multiply-accumulates where a share of those in
   8 bits is the goal.
4. The shortest beginning of that ranking is lifted to bf16 with which the repaired rest meets the goal, found by
   bisection, every step measured end to end.

Invariant: what is returned was measured as a whole; additivity of noise only orders the attempts. The same inputs give
the same plan, also when the search was interrupted and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.measure import Accuracy, Reference
from ppuc.compiler.quantization.metric import drop
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.repair import CANDIDATES, apply_repair, best_method
from ppuc.compiler.quantization.timing import Times

FOLDS = 2
"""Folds of the cross-validation that chooses a repair; few, because a search spends its time on measuring attempts."""

Score = Callable[[Plan], float]
"""A task metric of a plan; larger is better."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal: minimum SQNR in dB, minimum agreement (0 to 1), maximum relative drop of the task metric, and minimum
    share of multiply-accumulates in 8 bits (the most accurate plan with that share)."""

    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    min_share: float | None = None

    def met(self, accuracy: Accuracy, drop: float) -> bool:
        """Whether a plan with this accuracy and drop meets the goal."""
        return (
            (self.min_sqnr is None or accuracy.sqnr >= self.min_sqnr)
            and (self.min_agreement is None or accuracy.agreement >= self.min_agreement)
            and (self.max_drop is None or drop <= self.max_drop)
        )


@dataclass(frozen=True, slots=True)
class Point:
    """One attempt: the layers lifted to bf16, the share left in 8 bits, and the measured accuracy."""

    lifted: int
    share: float
    accuracy: Accuracy
    drop: float
    plan: Plan
    met: bool


@dataclass(frozen=True, slots=True)
class Found:
    """`best` is the chosen attempt; `points` are all attempts, fewest lifted layers first; `noise` is the noise at the
    outputs by layer."""

    best: Point
    points: tuple[Point, ...]
    noise: Mapping[str, float]
    repair: str


@dataclass(slots=True)
class Search:
    """One search. Repairs are fitted to the samples `fit` and measured on `check`; `whole` is both, and selects the
    repair. `known` is previously measured noise by layer; `remember` is called with each new measurement. `methods` are
    the repairs to try. `score` is the task metric, and `full` its value for the unquantized model."""

    prepared: Prepared
    fit: Sequence[Mapping[str, np.ndarray]]
    check: Reference
    whole: Sequence[Mapping[str, np.ndarray]]
    plan: Plan
    goal: Goal
    wide: Times | None = None
    narrow: Times | None = None
    score: Score | None = None
    full: float = 0.0
    known: Mapping[str, float] = field(default_factory=dict)
    remember: Callable[[str, float], None] = lambda name, noise: None
    each: Callable[[str], None] = lambda what: None
    methods: Sequence[str] = tuple(CANDIDATES)
    _made: dict[int, Point] = field(default_factory=dict)
    _order: tuple[str, ...] = ()
    _method: str = "none"

    def run(self) -> Found:
        """The plan that meets the goal at the least cost, or the most accurate plan if none does."""
        noise = isolated_noise(self.prepared, self.plan, self.check, self.known, self.remember, self.each)
        self._order = tuple(sorted(noise, key=lambda name: (-noise[name] / self._benefit(name), name)))
        fixed = self.goal.min_share is not None
        best = self._attempt(self._within_share(noise)) if fixed else self._bisected()
        points = tuple(self._made[k] for k in sorted(self._made))
        return Found(best, points, noise, self._method)

    def _benefit(self, name: str) -> float:
        """The benefit of a layer in 8 bits, as cycles or multiply-accumulates; always positive, so that the ranking is
        defined."""
        layer = next(found for found in self.prepared.layers if found.name == name)
        if self.goal.min_share is None and self.wide is not None and self.narrow is not None:
            saved = self.wide.layers.get(name, 0.0) - self.narrow.layers.get(name, 0.0)
            return max(saved, 1e-3 * self.wide.cycles / len(self.prepared.layers))
        return float(layer.macs)

    def _within_share(self, noise: Mapping[str, float]) -> int:
        """Move the noisiest layers per multiply-accumulate to the front of the order, as many as the required share in
        8 bits allows."""
        total = total_macs(self.prepared)
        macs = {layer.name: layer.macs for layer in self.prepared.layers}
        assert self.goal.min_share is not None
        left = sum(macs[n] for n in noise) - self.goal.min_share * total
        lifted, kept = [], []
        for name in self._order:
            if macs[name] <= left:
                left -= macs[name]
                lifted.append(name)
            else:
                kept.append(name)
        self._order = (*lifted, *kept)
        return len(lifted)

    def _bisected(self) -> Point:
        """The fewest lifted layers that meet the goal; the search starts with small steps, because few are usually
        enough."""
        low, high, step = 0, len(self._order), max(1, len(self._order) // 8)
        while low < high:
            middle = (low + high) // 2 if high < len(self._order) else min(low + step, high - 1) if self._made else 0
            point = self._attempt(middle)
            if point.met:
                high = middle
            else:
                low, step = middle + 1, 2 * step
        return self._attempt(high)

    def _attempt(self, lifted: int) -> Point:
        """Repair and measure the plan with the first `lifted` layers of the order in bf16."""
        if lifted not in self._made:
            self.each(f"{lifted} of {len(self._order)} layers in bf16")
            plan = self.plan.with_layers({n: LayerPlan("bf16") for n in self._order[:lifted]})
            plan = self._repaired(plan)
            accuracy = self.check.compare(self.prepared.quantized(plan).graph)
            lost = drop(self.full, self.score(plan)) if self.score is not None else 0.0
            share = quantized_share(self.prepared, plan)
            self._made[lifted] = Point(lifted, share, accuracy, lost, plan, self.goal.met(accuracy, lost))
        return self._made[lifted]

    def _repaired(self, plan: Plan) -> Plan:
        """Repair a plan: the first attempt tries every repair, later ones use the best of those."""
        if not self._made:

            def trying(method: str) -> None:
                self.each(f"repair: {method}")

            choice = best_method(self.prepared, plan, self.whole, self.methods, trying, FOLDS)
            self._method = choice.method
        return apply_repair(self.prepared, plan, self.fit, self._method)


def isolated_noise(
    prepared: Prepared,
    plan: Plan,
    check: Reference,
    known: Mapping[str, float] | None = None,
    remember: Callable[[str, float], None] = lambda name, noise: None,
    each: Callable[[str], None] = lambda what: None,
) -> dict[str, float]:
    """Layer name -> noise over signal at the outputs when that layer alone is quantized."""
    found: dict[str, float] = {}
    for name, layer in plan.layers.items():
        if not layer.quantized:
            continue
        if known is not None and name in known:
            found[name] = known[name]
            continue
        each(f"sensitivity: {name}")
        accuracy = check.compare(prepared.quantized(plan.only({name})).graph)
        found[name] = float(10 ** (-accuracy.sqnr / 10))
        remember(name, found[name])
    return found


def total_macs(prepared: Prepared) -> int:
    """The number of multiply-accumulates of the model's products."""
    return sum(layer.macs for layer in prepared.all_layers)


def quantized_share(prepared: Prepared, plan: Plan) -> float:
    """The share of multiply-accumulates on 8-bit operands."""
    narrow = {n for n, p in plan.layers.items() if p.quantized and not p.weights_only}

    def counts(layer: Layer) -> bool:
        return layer.name in narrow

    return sum(layer.macs for layer in prepared.all_layers if counts(layer)) / max(total_macs(prepared), 1)
