"""Repairs a plan if that improves the outputs.

Candidates range from no change to refitting all weights. The best depends on how well the data determine the layers, so
candidates are cross-validated: the samples are split into a few folds, and the outputs on each fold are measured with
weights fitted to the others. With few samples, candidates can differ by chance, so a candidate that changes the model
is accepted only if its gain over no change, averaged over samples, exceeds the standard error of that gain.

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
"""Name of a repair -> its options."""
FOLDS, CHEAP_FOLDS, CHEAP_MACS = 2, 4, 1 << 33
"""Folds of the cross-validation, and their number if all samples take few multiply-accumulates. Two folds take half the
time, but fit to only half of the samples and so underestimate the methods with many parameters."""
FEWEST, MOST = 4, 64
"""Maximum samples that a repair is fitted to."""
MOST_BYTES, MOST_MACS = 1 << 30, 1 << 37
"""Maximum over all samples together, unless that leaves fewer samples than the minimum."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen method, and the held-out accuracy of every method tried."""

    method: str
    tried: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Repair:
    """The repaired plan, the method, and the method's held-out accuracy."""

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
    """The method with the highest merit over all `samples`, among those whose gain is significant. No change is always
    a candidate."""
    samples = affordable(prepared, samples)
    if folds is None:
        folds = CHEAP_FOLDS if len(samples) * _macs(prepared) <= CHEAP_MACS else FOLDS
    judge = prepared.reference(samples)
    tried: dict[str, Accuracy] = {}
    for method in dict.fromkeys((NONE, *methods)):
        if each is not None:
            each(method)
        tried[method] = _held_out(prepared, plan, judge, method, folds)
    sure = [
        method for method, accuracy in tried.items() if method == NONE or significantly_better(accuracy, tried[NONE])
    ]
    return Choice(max(sure, key=lambda method: tried[method].merit), tried)


def affordable(prepared: Prepared, samples: Sequence[Feeds]) -> Sequence[Feeds]:
    """As many of `samples`, evenly spaced, as time and memory allow: the model and its quantized form run on all of
    them side by side, and the tensors live between two layers are kept."""
    each = 2 * live_bytes(prepared.module.graph)
    count = max(FEWEST, min(MOST, MOST_BYTES // max(each, 1), MOST_MACS // max(_macs(prepared), 1)))
    if count >= len(samples):
        return samples
    return [samples[i * len(samples) // count] for i in range(count)]


def _macs(prepared: Prepared) -> int:
    return sum(layer.macs for layer in prepared.layers)


def live_bytes(graph: Graph) -> int:
    """The maximum bytes of activations live at once in `graph`."""
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


def significantly_better(one: Accuracy, other: Accuracy) -> bool:
    """Whether the gain of `one` over `other` in dB, averaged over samples, exceeds its standard error."""
    gains = [a - b for a, b in zip(one.levels, other.levels, strict=True)]
    if not gains:
        return False
    mean = sum(gains) / len(gains)
    spread = sum((gain - mean) ** 2 for gain in gains) / max(len(gains) - 1, 1)
    return mean > math.sqrt(spread / len(gains))


def _held_out(prepared: Prepared, plan: Plan, judge: Reference, method: str, folds: int) -> Accuracy:
    """The accuracy on all samples, each measured with `plan` repaired without the sample's fold."""
    samples = judge.samples
    parts = []
    for held in [range(fold, len(samples), folds) for fold in range(min(folds, len(samples)))]:
        others = [s for i, s in enumerate(samples) if i not in held] or samples
        changed = apply_repair(prepared, plan, others, method)
        parts.append(judge.compare(prepared.quantized(changed).graph, only=held))
    return Accuracy.joined(parts)


def apply_repair(prepared: Prepared, plan: Plan, fit: Sequence[Feeds], method: str) -> Plan:
    """`plan` repaired by `method`, fitted to the samples `fit`."""
    options = CANDIDATES[method]
    fit = affordable(prepared, fit)
    quantized = any(p.quantized for p in plan.layers.values())
    if options is None or not quantized:
        return plan
    return reconstructed(prepared.module.graph, prepared.layers, plan, fit, options)
