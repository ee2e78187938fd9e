"""`ppuc quantize`: chooses a plan for one model from samples and a goal, and reports its accuracy and its speed-up.

Samples are split three ways: half to fit scales and repairs, a quarter to decide which layers stay in 8 bits, and a
quarter to report on, unless separate samples for the report are given. If all layers take one format, three quarters
are fitted to, and the repair is chosen by cross-validation. With fewer than FEW samples, all are used for every
purpose, and the report says so.

Invariant: accuracy is reported on samples that neither calibration nor search used, or the report says otherwise. The
one decision that depends on them is whether to discard a repair that is worse on them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppuc.compiler.metrics.base import Metric, Sample
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.quantization.calibrate import plan_from
from ppuc.compiler.quantization.data import FEW, Data
from ppuc.compiler.quantization.held_out import Kept, kept
from ppuc.compiler.quantization.measure import Accuracy, Difference, Reference, decibels
from ppuc.compiler.quantization.metric import Task, drop
from ppuc.compiler.quantization.moves import with_shared_scales
from ppuc.compiler.quantization.noise import best_formats, clipped_share
from ppuc.compiler.quantization.observe import Observation, observe
from ppuc.compiler.quantization.pace import Paced, not_slower
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared, native, storage_plan
from ppuc.compiler.quantization.reconstruct import differences
from ppuc.compiler.quantization.repair import CANDIDATES, repaired
from ppuc.compiler.quantization.ruined import Evidence, check_not_ruined, worst_loss
from ppuc.compiler.quantization.search import Found, Goal, Point, Search, isolated_noise, quantized_share
from ppuc.compiler.quantization.timing import Times, timed
from ppuc.ir.errors import UsageError
from ppuc.ir.files import write_file
from ppuc.ir.strict_json import read_json

REPORTED = 4
"""Samples for measuring the noise of single layers when it is only reported."""


@dataclass(frozen=True, slots=True)
class Aim:
    """The goal and the task metric of a study, in addition to the compile options. `state` is a file that keeps the
    measurements of a search, to resume it after an interruption. `purpose` is one of PURPOSES: for time, a plan is
    never slower than bf16."""

    goal: Goal = field(default_factory=Goal)
    metric: Metric | None = None
    state: Path | None = None
    purpose: str = "macs"


REPORT = Aim()
"""No goal: only report accuracy and speed-up."""


@dataclass(frozen=True, slots=True)
class Study:
    """The plan, its report as JSON-able values, and whether the goal was met."""

    plan: Plan
    record: dict[str, Any]
    met: bool


class Subject(Protocol):
    """A model that can be studied: read its samples and quantize it."""

    def samples(self, data: Data) -> list[Sample]:
        """All samples of `data`, by the model's input names. Raises InputError."""
        ...

    def run(
        self, samples: Sequence[Sample], evaluation: Sequence[Sample], aim: Aim, each: Callable[[str], None]
    ) -> Study:
        """Quantize on `samples`, report on `evaluation` (none: a part of `samples` kept apart)."""
        ...


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model without host parts."""

    prepared: Prepared

    def samples(self, data: Data) -> list[Sample]:
        """As Subject says."""
        return list(data.samples(self.prepared.specs, self.prepared.fixed))

    def run(
        self, samples: Sequence[Sample], evaluation: Sequence[Sample], aim: Aim, each: Callable[[str], None]
    ) -> Study:
        """As Subject says."""
        return study(self.prepared, samples, evaluation, aim, each)


def study(
    prepared: Prepared,
    samples: Sequence[Sample],
    evaluation: Sequence[Sample] = (),
    aim: Aim = REPORT,
    each: Callable[[str], None] = lambda what: None,
    task: Task | None = None,
    *,
    part: bool = False,
) -> Study:
    """Quantize on `samples` (by ONNX name), report on `evaluation` (none: a part of `samples` kept apart). Of a `part`
    of a model, `task` is that of the whole (None: the aim's metric, of the model's own outputs). Raises UsageError for
    a goal that cannot be met, and for a whole model that is ruined."""
    precision = PRECISIONS[prepared.options.precision]
    fit, check, report = split_samples(samples, evaluation)
    if task is None and aim.metric is not None:
        task = Task.of(prepared, check, report, aim.metric)
    each("observe")
    whole = _whole(prepared, fit, check)
    ranged = prepared.feeds(fit) if precision.per_layer else whole
    seen = observe(prepared.module.graph, prepared.layers, ranged)
    judge = prepared.reference(prepared.feeds(check))
    start = _starting_plan(prepared, seen, lambda: judge, len(samples))
    each("time: bf16")
    wide = timed(prepared, Plan())
    memory = _Memory(aim.state, prepared, samples, start)
    methods = _methods(prepared, samples)
    found: Found | None = None
    if precision.per_layer:
        found = _searched(prepared, fit, whole, judge, start, wide, aim.goal, task, methods, memory, each)
        lifted = {name: own for name, own in found.best.plan.layers.items() if not own.quantized}
        best = kept(prepared, start.with_layers(lifted), found.best.plan, found.repair, report)
        noise = found.noise
    else:
        best = _repaired(prepared, start, whole, methods, report, each)
        noise = isolated_noise(prepared, start, judge.first(REPORTED), memory.known, memory.add, each)
    plan = best.plan
    each("time: quantized")
    narrow = timed(prepared, plan)
    paced = Paced(plan, narrow, {})
    if aim.purpose == "time":
        paced = not_slower(prepared, plan, wide, narrow, each, mixed=precision.per_layer)
    plan, narrow = paced.plan, paced.times
    each("report")
    last = prepared.reference(prepared.feeds(report))
    measure = _measuring(prepared, last, task)
    evidence = measure(plan)
    final, scores = evidence.accuracy, evidence.scores
    if not part and refuses_ruined(prepared.options, len(samples), bool(evaluation)):
        check_not_ruined(plan, evidence, aim.goal, lambda: noise, measure, len(last.samples))
    accumulated = differences(prepared.module.graph, prepared.layers, plan, list(prepared.feeds(report))[:FEW])
    goal = aim.goal
    lost = drop(scores["fp32"], scores["quantized"]) if scores is not None else 0.0
    met = goal.met(final, lost) and (goal.min_share is None or quantized_share(prepared, plan) >= goal.min_share - 1e-9)
    record = {
        "precision": precision.name,
        "samples": {
            "fit": len(fit),
            "decide": len(check),
            "report": len(report),
            "apart": len(samples) >= FEW or bool(evaluation),
        },
        "emulated_in": "ONNX Runtime" if judge.in_onnxruntime else "numpy",
        "repair": best.method,
        "repair_refused": best.refused.record() if best.refused is not None else None,
        "accuracy": final.record(),
        "metric": scores,
        "ruined": loss.record() if (loss := worst_loss(evidence, goal)) is not None else None,
        "share": quantized_share(prepared, plan),
        "time": {
            "bf16_seconds": wide.seconds,
            "seconds": narrow.seconds,
            "speedup": wide.seconds / narrow.seconds,
        },
        "slower": [{"layer": n, "seconds": c / wide.cycles * wide.seconds} for n, c in paced.lost.items()],
        "layers": _rows(prepared, plan, seen, noise, accumulated, wide, narrow),
        "pareto": [_point(p) for p in found.points] if found is not None else [],
        "host": [],
        "goal_met": met,
    }
    return Study(plan, record, met)


def repaired_plan(
    prepared: Prepared,
    samples: Sequence[Sample],
    each: Callable[[str], None] = lambda what: None,
    *,
    part: bool = False,
) -> Plan:
    """The plan that `study` finds without a search, without the measurements for the report. Raises UsageError if it
    is ruined, except for a part of a model, whose results are not the model's."""
    fit, check, held = split_samples(samples, ())
    whole = _whole(prepared, fit, check)
    each("observe")
    seen = observe(prepared.module.graph, prepared.layers, whole)
    start = _starting_plan(prepared, seen, lambda: prepared.reference(prepared.feeds(check)), len(samples))
    plan = _repaired(prepared, start, whole, _methods(prepared, samples), held, each).plan
    if part or not refuses_ruined(prepared.options, len(samples), False):
        return plan
    each("held-out samples")
    judge = prepared.reference(prepared.feeds(held))
    measure = _measuring(prepared, judge, None)
    noise = functools.partial(isolated_noise, prepared, plan, judge.first(REPORTED), each=each)
    check_not_ruined(plan, measure(plan), Goal(), noise, measure, len(held))
    return plan


def refuses_ruined(options: CompileOptions, samples: int, evaluation: bool) -> bool:
    """Whether a ruined plan is refused: unless it was asked for, or all samples were fitted to."""
    return not options.quantization.force and (samples >= FEW or evaluation)


def _measuring(prepared: Prepared, judge: Reference, task: Task | None) -> Callable[[Plan], Evidence]:
    """Measures plans on the samples of `judge`, and by the task on those reported."""

    def measure(plan: Plan) -> Evidence:
        scores = {"fp32": task.report(None), "quantized": task.report(plan)} if task is not None else None
        return Evidence(_named(judge.compare(prepared.quantized(plan).graph), prepared), scores)

    return measure


def _repaired(
    prepared: Prepared,
    start: Plan,
    whole: Sequence[Sample],
    methods: Sequence[str],
    held: Sequence[Sample],
    each: Callable[[str], None],
) -> Kept:
    """`start` repaired by the best of `methods` on `whole` (feeds), unless the repair is worse on `held`."""
    made = repaired(prepared, start, whole, methods, lambda m: each(f"repair: {m}"))
    return kept(prepared, start, made.plan, made.method, held)


def split_samples(
    samples: Sequence[Sample], evaluation: Sequence[Sample]
) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """The samples split into those to fit to, to decide with, and to report on."""
    if len(samples) < FEW:
        return samples, samples, evaluation or samples
    check = samples[1::4]
    if evaluation:
        return [s for i, s in enumerate(samples) if i % 4 != 1], check, evaluation
    return samples[::2], check, samples[3::4]


def _whole(prepared: Prepared, fit: Sequence[Sample], check: Sequence[Sample]) -> list[Sample]:
    """The feeds of all samples that are not reserved for the report."""
    return list(prepared.feeds(fit if check is fit else [*fit, *check]))


def _methods(prepared: Prepared, samples: Sequence[Sample]) -> tuple[str, ...]:
    """The repairs to try. With few samples nothing is fitted, because the benefit on other samples could not be
    measured."""
    return tuple(CANDIDATES) if prepared.options.quantization.repair and len(samples) >= FEW else ("none",)


def _starting_plan(
    prepared: Prepared, seen: Mapping[str, Observation], judge: Callable[[], Reference], samples: int
) -> Plan:
    """The plan before repair. Where formats are chosen by layer: each layer's better one, or one for all layers if that
    is more accurate overall."""
    how, precision = prepared.options.quantization, PRECISIONS[prepared.options.precision]
    calibration = how.calibration.for_samples(samples)
    formats = [format for format in precision.choices if native(prepared.target, format)]
    if not precision.per_layer and not formats:
        return _one_format(prepared, seen, samples)
    plans = [best_formats(prepared.layers, seen, formats, calibration)]
    plans += [plan_from(prepared.layers, seen, format, calibration) for format in formats]
    plans = [with_shared_scales(prepared.module.graph, prepared.layers, plan) for plan in plans]
    reference = judge()
    return max(plans, key=lambda plan: reference.compare(prepared.quantized(plan).graph).merit)


def _one_format(prepared: Prepared, seen: Mapping[str, Observation], samples: int) -> Plan:
    format, how = PRECISIONS[prepared.options.precision].layers, prepared.options.quantization
    if not native(prepared.target, format):
        return storage_plan(prepared, format)
    plan = plan_from(prepared.layers, seen, format, how.calibration.for_samples(samples))
    return with_shared_scales(prepared.module.graph, prepared.layers, plan)


def _searched(
    prepared: Prepared,
    fit: Sequence[Sample],
    whole: Sequence[Sample],
    judge: Reference,
    start: Plan,
    wide: Times,
    goal: Goal,
    task: Task | None,
    methods: Sequence[str],
    memory: _Memory,
    each: Callable[[str], None],
) -> Found:
    each("time: 8 bits")
    search = Search(
        prepared,
        list(prepared.feeds(fit)),
        judge,
        whole,
        start,
        goal,
        wide,
        timed(prepared, start),
        known=memory.known,
        remember=memory.add,
        each=each,
        methods=methods,
    )
    if task is not None:
        search.full, search.score = task.decide(None), task.decide
    found = search.run()
    if not found.best.met:
        raise UsageError.of(
            "goal",
            "cannot be met by any choice of layers",
            got=f"at best {found.best.accuracy.sqnr:.1f} dB, agreement {found.best.accuracy.agreement:.2%}",
            expected=", ".join(f"{k} {v}" for k, v in _given(goal).items()),
        )
    return found


def _given(goal: Goal) -> dict[str, float]:
    fields = ("min_sqnr", "min_agreement", "max_drop", "min_share")
    return {k: v for k in fields if (v := getattr(goal, k)) is not None}


def _named(accuracy: Accuracy, prepared: Prepared) -> Accuracy:
    """The accuracy with outputs keyed by the model's names."""
    names = {value: name for name, value in prepared.module.outputs}
    return Accuracy({names[value]: d for value, d in accuracy.outputs.items()})


def _rows(
    prepared: Prepared,
    plan: Plan,
    seen: Mapping[str, Observation],
    noise: Mapping[str, float],
    accumulated: Mapping[str, Difference],
    wide: Times,
    narrow: Times,
) -> list[dict[str, Any]]:
    rows = []
    hertz = wide.cycles / wide.seconds
    for layer in prepared.layers:
        own = plan.layers.get(layer.name)
        quantized = own is not None and own.quantized
        saved = (wide.layers.get(layer.name, 0.0) - narrow.layers.get(layer.name, 0.0)) / hertz
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "format": own.format if own is not None else "bf16",
                "scales": _scale_kind(own.scales, own.weights_only) if own is not None and quantized else None,
                "clipped": clipped_share(layer, own, seen) if own is not None and quantized else 0.0,
                "isolated_sqnr_db": decibels(1.0, noise[layer.name]) if layer.name in noise else None,
                "accumulated_sqnr_db": accumulated[layer.name].sqnr,
                "cosine": accumulated[layer.name].cosine,
                "macs": layer.macs,
                "saved_seconds": saved,
            }
        )
    return rows


def _scale_kind(scales: Sequence[float], weights_only: bool) -> str:
    return "weights only" if weights_only else "static" if scales else "dynamic"


def _point(point: Point) -> dict[str, Any]:
    return {
        "lifted": point.lifted,
        "lifted_layers": sorted(name for name, own in point.plan.layers.items() if not own.quantized),
        "share": point.share,
        "sqnr_db": point.accuracy.sqnr,
        "agreement": point.accuracy.agreement,
        "metric_drop": point.drop,
        "met": point.met,
    }


class _Memory:
    """Noise of layers measured so far, kept in a file that is valid for one model, data and starting plan."""

    def __init__(self, path: Path | None, prepared: Prepared, samples: Sequence[Sample], plan: Plan) -> None:
        self.path, self.known = path, dict[str, float]()
        if path is None:
            return
        digest = hashlib.sha256(prepared.module.option("model_sha256").encode())
        for sample in samples:
            for name in sorted(sample):
                digest.update(np.ascontiguousarray(sample[name]).tobytes())
        for name, layer in plan.layers.items():
            digest.update(f"{name}{layer.format}{layer.scales}".encode())
        digest.update(repr([(name, own.weight) for name, own in prepared.criteria.items()]).encode())
        self.key = digest.hexdigest()
        if path.is_file():
            try:
                stored = read_json(path.read_bytes())
                found = {str(name): float(noise) for name, noise in stored["noise"].items()}
                self.known = found if stored["key"] == self.key else {}
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise UsageError.of(str(path), "is not the state of a search", got=str(error)) from error

    def add(self, name: str, noise: float) -> None:
        """Record the noise of one layer."""
        self.known[name] = noise
        if self.path is not None:
            write_file(self.path, json.dumps({"key": self.key, "noise": self.known}).encode())
