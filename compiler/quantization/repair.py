"""Repair of a plan, kept only where the outputs gain.

Candidates go from doing nothing to refitting all weights; which is best depends on how much the data say about the
layers, so each is judged by cross-validation: the samples are dealt to a few parts, and the outputs on each part are
measured with weights fitted to the others. A few samples tell candidates apart by chance, so one that changes the model
is taken only if what it gains over doing nothing, sample by sample, exceeds the standard error of that gain.

Invariant: no candidate is measured on samples that it was fitted to, unless there is only one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.quantization.measure import Accuracy, Reference
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.reconstruct import Options, reconstructed
from ppuc.ir.graph import Graph

NONE = "none"
CANDIDATES: Mapping[str, Options | None] = {
    NONE: None,
    "fit": Options(offsets=False),
    "offsets, fit": Options(),
}
"""Name -> what is done to the layers."""
FOLDS, CHEAP_FOLDS, CHEAP_MACS = 2, 4, 1 << 33
"""Parts of the samples, and how many where all samples take few multiply-accumulates. Two, which leave half of the
samples to fit to, take half of the time, but undervalue the methods that fit most."""
FEWEST, MOST = 4, 64
"""Samples that a repair is fitted to."""
MOST_BYTES, MOST_MACS = 1 << 30, 1 << 37
"""Of all samples together, unless there are fewest."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Choice:
    """The method, and the accuracy of every one tried on samples that it was not fitted to."""

    method: str
    tried: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Repair:
    """The plan, how it was repaired, and how accurate that method is on samples it is not fitted to."""

    plan: Plan
    method: str
    accuracy: Accuracy


def repaired(
    prepared: Prepared,
    plan: Plan,
    samples: Sequence[Feeds],
    methods: Sequence[str] = tuple(CANDIDATES),
    each: Callable[[str], None] | None = None,
) -> Repair:
    """`plan` repaired by the best of `methods`, fitted to all `samples` (feeds by parameter name)."""
    choice = best_method(prepared, plan, samples, methods, each)
    return Repair(apply_repair(prepared, plan, samples, choice.method), choice.method, choice.tried[choice.method])


def best_method(
    prepared: Prepared,
    plan: Plan,
    samples: Sequence[Feeds],
    methods: Sequence[str] = tuple(CANDIDATES),
    each: Callable[[str], None] | None = None,
    folds: int | None = None,
) -> Choice:
    """The method of the most merit over all `samples`, of those that gain more than chance would. Doing nothing is
    always among them."""
    samples = affordable(prepared, samples)
    if folds is None:
        folds = CHEAP_FOLDS if len(samples) * _macs(prepared) <= CHEAP_MACS else FOLDS
    judge = Reference(prepared.module.graph, samples)
    tried: dict[str, Accuracy] = {}
    for method in dict.fromkeys((NONE, *methods)):
        if each is not None:
            each(method)
        tried[method] = _held_out(prepared, plan, judge, method, folds)
    sure = [method for method, accuracy in tried.items() if method == NONE or surely_better(accuracy, tried[NONE])]
    return Choice(max(sure, key=lambda method: tried[method].merit), tried)


def affordable(prepared: Prepared, samples: Sequence[Feeds]) -> Sequence[Feeds]:
    """As many of `samples`, evenly chosen, as time and memory allow: the model and its quantized form are run on all of
    them side by side, and what is alive between two layers is kept."""
    each = 2 * live_bytes(prepared.module.graph)
    count = max(FEWEST, min(MOST, MOST_BYTES // max(each, 1), MOST_MACS // max(_macs(prepared), 1)))
    if count >= len(samples):
        return samples
    return [samples[i * len(samples) // count] for i in range(count)]


def _macs(prepared: Prepared) -> int:
    return sum(layer.macs for layer in prepared.layers)


def live_bytes(graph: Graph) -> int:
    """The most bytes of activations that are needed at one place of `graph`."""
    constants = graph.constants()
    last = {v.name: i for i, op in enumerate(graph.ops) for v in op.operands}
    sizes = {v.name: v.type.bytes for v in (*graph.params, *(r for op in graph.ops for r in op.results))}
    ending: dict[int, int] = {}
    for name, i in last.items():
        if name not in constants:
            ending[i] = ending.get(i, 0) + sizes[name]
    alive = most = sum(v.type.bytes for v in graph.params)
    for i, op in enumerate(graph.ops):
        alive += sum(r.type.bytes for r in op.results if r.name in last and r.name not in constants)
        most = max(most, alive)
        alive -= ending.get(i, 0)
    return most


def surely_better(one: Accuracy, other: Accuracy) -> bool:
    """Whether the mean over samples of what `one` gains over `other` in dB exceeds its standard error."""
    gains = [a - b for a, b in zip(one.levels, other.levels, strict=True)]
    if not gains:
        return False
    mean = sum(gains) / len(gains)
    spread = sum((gain - mean) ** 2 for gain in gains) / max(len(gains) - 1, 1)
    return mean > math.sqrt(spread / len(gains))


def _held_out(prepared: Prepared, plan: Plan, judge: Reference, method: str, folds: int) -> Accuracy:
    """The accuracy on every sample of `plan` repaired without the part that the sample is of."""
    samples = judge.samples
    parts = []
    for held in [range(fold, len(samples), folds) for fold in range(min(folds, len(samples)))]:
        others = [s for i, s in enumerate(samples) if i not in held] or samples
        changed = apply_repair(prepared, plan, others, method)
        parts.append(judge.compare(prepared.quantized(changed).graph, only=held))
    return Accuracy.joined(parts)


def apply_repair(prepared: Prepared, plan: Plan, fit: Sequence[Feeds], method: str) -> Plan:
    """`plan` repaired by one method."""
    options = CANDIDATES[method]
    fit = affordable(prepared, fit)
    quantized = any(p.quantized for p in plan.layers.values())
    if options is None or not quantized:
        return plan
    return reconstructed(prepared.module.graph, prepared.layers, plan, fit, options)
