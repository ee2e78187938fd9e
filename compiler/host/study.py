"""`ppuc quantize` for models with host steps: each PPU part is studied like a separate model, on its inputs from
running the whole model on the samples; the report covers the whole model's outputs.

Invariant: host steps compute the same on both sides of every comparison; a part is quantized on inputs from parts in
the model's own formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.compiler.frontend.offload.hosting import HostOperand
from ppuc.compiler.frontend.offload.load_hosted import HostedModel
from ppuc.compiler.frontend.source import ModelSource
from ppuc.compiler.host.client import HostWorker, worker
from ppuc.compiler.host.compile import divided
from ppuc.compiler.host.feeds import samples_of_parts, values_of_parts
from ppuc.compiler.host.partition import HostPart, Part, PpuPart
from ppuc.compiler.metrics.base import Metric, Sample
from ppuc.compiler.metrics.choose import value_of
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.pipeline.chosen import passes_of
from ppuc.compiler.pipeline.manager import CompiledModel, Run
from ppuc.compiler.precisions import PRECISIONS
from ppuc.compiler.quantization.class_axis import by_layout
from ppuc.compiler.quantization.criteria import Criterion
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.measure import Accuracy, Difference
from ppuc.compiler.quantization.metric import Task, drop
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared, dynamic_plan, prepare
from ppuc.compiler.quantization.ruined import Evidence, check_not_ruined, worst_loss
from ppuc.compiler.quantization.search import total_macs
from ppuc.compiler.quantization.study import Aim, Study, refuses_ruined, split_samples, study
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Graph, Value
from ppuc.ir.module import Module

_MOST_AXES = 64
"""Taken for outputs that only the host holds, whose shapes are unknown."""


@dataclass(slots=True)
class _Parts:
    """Prepares the PPU parts, and returns them with run-time scales, so that nodes whose 8-bit form the pipeline
    refuses go to the host."""

    options: CompileOptions
    attention: bool
    prepared: list[Prepared] = field(default_factory=list)

    def __call__(self, hosted: HostedModel, parts: Sequence[Part], modules: Sequence[Module]) -> list[Module]:
        own = replace(self.options, aliases={})  # aliases name tensors of the whole model
        names = {name: operand.name for name, operand in hosted.outputs}
        read = {o.name for part in parts for o in (part.graph.params if isinstance(part, PpuPart) else part.inputs)}
        judging = own.quantization.judging
        made = []
        for module in modules:
            of_part = judging.of_part(names, [name for name, _ in module.outputs], read)
            made.append(prepare(module, replace(own, quantization=replace(own.quantization, judging=of_part))))
        self.prepared = [p.with_attention() for p in made] if self.attention else made
        format = PRECISIONS[self.options.precision].layers
        return [p.quantized(dynamic_plan(p, format)) for p in self.prepared]


@dataclass(frozen=True, slots=True)
class HostedStudy:
    """A model partitioned between PPU and host, to be quantized. `prepared` are the PPU parts."""

    options: CompileOptions
    hosted: HostedModel
    parts: tuple[Part, ...]
    prepared: tuple[Prepared, ...]

    @classmethod
    def of(cls, source: ModelSource, options: CompileOptions, error: ModelError, attention: bool) -> HostedStudy:
        """Partition the model; `error` is why it cannot run on the PPU alone. Raises ModelError for nodes that neither
        side can run."""

        def compiled(module: Module, number: int) -> CompiledModel:
            return Run(options.target, passes_of(options)).to_end(module)

        keeper = _Parts(options, attention)
        hosted, parts, _ = divided(source, options, error, compiled, keeper)
        return cls(options, hosted, parts, tuple(keeper.prepared))

    @property
    def _worker(self) -> HostWorker:
        return worker(self.options.host.ops)

    def samples(self, data: Data) -> list[Sample]:
        """All samples of `data`, by the model's input names. Raises InputError, and UsageError for inputs that samples
        cannot hold."""
        return [*samples_of_parts(self.hosted, data)]

    def run(
        self, samples: Sequence[Sample], evaluation: Sequence[Sample], aim: Aim, each: Callable[[str], None]
    ) -> Study:
        """Study the parts in order, and their joint effect on the outputs. The goal applies to each part, and is met if
        the outputs meet it. A drop of the task metric is that of the whole model with this part and those before it
        quantized, and each part may use up as much of it as its share of the multiply-accumulates."""
        given, judged = (self._given(s, each) for s in (samples, evaluation))
        fit, check, report = split_samples(samples, evaluation)
        made: list[Study] = []
        for i, prepared in enumerate(self.prepared):
            plans = [m.plan for m in made]
            task = self._task(plans, check, report, aim.metric) if aim.metric is not None else None
            made.append(study(prepared, given[i], judged[i], self._of_part(aim, i), each, task, part=True))
        each("report")
        plans = [m.plan for m in made]
        exact, quantized = self._outputs(report, None), self._outputs(report, plans)
        accuracy = _compared(exact, quantized, self._criteria())
        scores = _scores(aim.metric, exact, quantized, report)
        lost = drop(scores["fp32"], scores["quantized"]) if scores is not None else 0.0

        def measure(plan: Plan) -> Evidence:
            parts = [Plan({n: own for n, own in plan.layers.items() if n in m.plan.layers}) for m in made]
            outputs = self._outputs(report, parts)
            scored = _scores(aim.metric, exact, outputs, report)
            return Evidence(_compared(exact, outputs, self._criteria()), scored)

        def noise() -> dict[str, float]:
            rows = {row["layer"]: row["isolated_sqnr_db"] for m in made for row in m.record["layers"]}
            return {name: 10 ** (-level / 10) for name, level in rows.items() if level is not None}

        evidence = Evidence(accuracy, scores)
        whole = Plan({n: own for plan in plans for n, own in plan.layers.items()})
        if refuses_ruined(self.options, len(samples), bool(evaluation)):
            check_not_ruined(whole, evidence, aim.goal, noise, measure, len(report))
        loss = worst_loss(evidence, aim.goal)
        met = aim.goal.met(accuracy, lost) and all(m.met for m in made)
        counts = {"fit": len(fit), "decide": len(check), "report": len(report)}
        record = {
            "precision": self.options.precision,
            "samples": {**counts, "apart": len(report) < len(samples) or bool(evaluation)},
            **_merged(made, self.prepared),
            "accuracy": accuracy.record(),
            "metric": scores,
            "ruined": loss.record() if loss is not None else None,
            "host": [node.label for part in self.parts if isinstance(part, HostPart) for node in part.nodes],
            "goal_met": met,
        }
        return Study(whole, record, met)

    def _of_part(self, aim: Aim, number: int) -> Aim:
        """The aim of a part's study: with the drop of the metric that the parts so far may cause."""
        state, goal = aim.state, aim.goal
        if state is not None and number:
            state = Path(state).with_name(f"{Path(state).stem}.{number}{Path(state).suffix}")
        if goal.max_drop is not None:
            macs = [total_macs(p) for p in self.prepared]
            goal = replace(goal, max_drop=goal.max_drop * sum(macs[: number + 1]) / max(sum(macs), 1))
        return replace(aim, goal=goal, metric=None, state=state)

    def _task(self, plans: Sequence[Plan], check: Sequence[Sample], report: Sequence[Sample], metric: Metric) -> Task:
        """The task of the part after those that have `plans`, which are quantized: the metric of the whole model."""

        def on(samples: Sequence[Sample]) -> Callable[[Plan | None], float]:
            exact: list[Sample] = []

            def scored(plan: Plan | None) -> float:
                if not exact:
                    exact.extend(self._outputs(samples, None))
                outputs = self._outputs(samples, [*plans, plan]) if plan is not None else exact
                return value_of(metric, outputs, samples, exact)

            return scored

        return Task(on(check), on(report))

    def _criteria(self) -> dict[str, Criterion]:
        """How outputs are judged, by ONNX name, if they are chosen or a PPU part computes them."""
        found = {name: p.criteria[value] for p in self.prepared for name, value in p.module.outputs}
        own = {name: found.get(o.name) or _layout(o) for name, o in self.hosted.outputs}
        ranks = {name: o.type.rank if isinstance(o, Value) else _MOST_AXES for name, o in self.hosted.outputs}
        everything = {name: replace(criterion, weight=1.0) for name, criterion in own.items()}
        return self.options.quantization.judging.criteria(everything, ranks)

    def _given(self, samples: Sequence[Sample], each: Callable[[str], None]) -> list[list[Sample]]:
        """For each PPU part, its inputs on every sample."""
        found: list[list[Sample]] = [[] for _ in self.prepared]
        for number, sample in enumerate(samples):
            given, _ = values_of_parts(self.hosted, self.parts, sample, self._worker)
            for own, feeds in zip(found, given, strict=True):
                own.append(feeds)
            each(f"sample {number + 1}")
        return found

    def _outputs(self, samples: Sequence[Sample], plans: Sequence[Plan] | None) -> list[Sample]:
        """The model's outputs on every sample, by ONNX name, with the first PPU parts quantized by `plans` (None:
        none)."""
        graphs: list[Graph] | None = None
        if plans is not None:
            rest = [Plan()] * (len(self.prepared) - len(plans))
            graphs = [p.simulated(plan).graph for p, plan in zip(self.prepared, [*plans, *rest], strict=True)]
        found: list[Sample] = []
        for sample in samples:
            _, held = values_of_parts(self.hosted, self.parts, sample, self._worker, graphs)
            found.append({name: held[operand.name] for name, operand in self.hosted.outputs})
        return found


def _layout(operand: HostOperand) -> Criterion:
    return by_layout(operand.type.rank) if isinstance(operand, Value) else Criterion()


def _compared(
    exact: Sequence[Mapping[str, Any]], quantized: Sequence[Mapping[str, Any]], criteria: Mapping[str, Criterion]
) -> Accuracy:
    """Errors of the outputs that are float tensors and have a weight."""
    found: dict[str, Difference] = {}
    for want, got in zip(exact, quantized, strict=True):
        for name, array in want.items():
            same = isinstance(array, np.ndarray) and np.shape(got[name]) == array.shape
            if same and array.dtype.kind == "f" and array.size and criteria[name].weight:
                found.setdefault(name, Difference(criterion=criteria[name])).add(got[name], array)
    return Accuracy(found)


def _scores(
    metric: Metric | None,
    exact: Sequence[Sample],
    quantized: Sequence[Sample],
    samples: Sequence[Sample],
) -> dict[str, float] | None:
    if metric is None:
        return None
    full, mine = (value_of(metric, outputs, samples, exact) for outputs in (exact, quantized))
    return {"fp32": full, "quantized": mine}


def _merged(made: Sequence[Study], prepared: Sequence[Prepared]) -> dict[str, Any]:
    """Merge the records of all parts."""
    records = [m.record for m in made]
    macs = [total_macs(p) for p in prepared]
    wide, narrow = (sum(r["time"][key] for r in records) for key in ("bf16_seconds", "seconds"))
    repairs = dict.fromkeys(r["repair"] for r in records if r["layers"])
    refused = [r["repair_refused"] for r in records if r["repair_refused"] is not None]
    return {
        "emulated_in": "numpy" if any(r["emulated_in"] == "numpy" for r in records) else "ONNX Runtime",
        "repair": "; ".join(repairs) or "none",
        "repair_refused": refused[0] if refused else None,
        "share": sum(r["share"] * m for r, m in zip(records, macs, strict=True)) / max(sum(macs), 1),
        "time": {"bf16_seconds": wide, "seconds": narrow, "speedup": wide / narrow if narrow else 1.0},
        "slower": [row for r in records for row in r["slower"]],
        "layers": [row for r in records for row in r["layers"]],
        "pareto": [point for r in records for point in r["pareto"]],
    }
