"""The task metric of plans: what quantizing a model does to the figure that its owner cares about.

Invariant: the metric depends only on emulated outputs, not on the quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppuc.compiler.metrics.base import Metric, Sample
from ppuc.compiler.metrics.choose import value_of
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Task:
    """What plans for a model, or for a part of one, do to a task metric: `decide` on the samples that a search decides
    with, `report` on those reported. None instead of a plan quantizes nothing."""

    decide: Callable[[Plan | None], float]
    report: Callable[[Plan | None], float]

    @classmethod
    def of(cls, prepared: Prepared, check: Sequence[Sample], report: Sequence[Sample], metric: Metric) -> Task:
        """The task of a whole model, on samples `check` and `report` by ONNX name."""

        def on(samples: Sequence[Sample]) -> Callable[[Plan | None], float]:
            exact: list[Sample] = []

            def scored(plan: Plan | None) -> float:
                if not exact:
                    exact.extend(outputs_of(prepared, prepared.module.graph, samples))
                outputs = exact if plan is None else outputs_of(prepared, prepared.quantized(plan).graph, samples)
                return value_of(metric, outputs, samples, exact)

            return scored

        return cls(on(check), on(report))


def drop(full: float, mine: float) -> float:
    """The relative drop of a metric from `full` to `mine`; negative for a gain."""
    return (full - mine) / max(abs(full), 1e-12)


def outputs_of(prepared: Prepared, graph: Graph, samples: Sequence[Sample]) -> list[Sample]:
    """The model's outputs by ONNX name on `samples` by ONNX name, computed by `graph`, whose results correspond to the
    model's."""
    emulator = Emulator(graph)
    positions = {v.name: i for i, v in enumerate(prepared.module.graph.results)}
    names = [(name, graph.results[positions[value]].name) for name, value in prepared.module.outputs]
    outputs: list[Sample] = []
    for feeds in prepared.feeds(samples):
        run = emulator.run(feeds)
        outputs.append({name: run[value] for name, value in names})
    return outputs
