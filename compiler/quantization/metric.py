"""A task metric in a Python file of the user: `metric(outputs, inputs) -> float`, where larger is better.

`outputs` and `inputs` are lists of dicts of arrays by ONNX name, one dict per sample, in the order of the data.
`inputs` also holds the labels (arrays that are not inputs): the sample's row of a label with one row per sample, and
the whole array otherwise.

Invariant: the metric depends only on emulated outputs, not on the quantization.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.errors import UsageError
from ppuc.ir.graph import Graph

Sample = Mapping[str, np.ndarray]
Metric = Callable[[list[Sample], list[Sample]], float]


def load_metric(path: Path) -> Metric:
    """The function `metric` defined in a file. Raises UsageError if there is none."""
    there = os.path.isfile(path)
    spec = importlib.util.spec_from_file_location("ppuc_user_metric", path) if there else None
    if spec is None or spec.loader is None:
        raise UsageError.of(str(path), "cannot be read as a Python file", expected="metric(outputs, inputs) -> float")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise UsageError.of(str(path), "fails when it is imported", got=f"{type(error).__name__}: {error}") from error
    found = getattr(module, "metric", None)
    if not callable(found):
        raise UsageError.of(str(path), "defines no function 'metric'", expected="metric(outputs, inputs) -> float")
    function: Metric = found
    return function


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
            def scored(plan: Plan | None) -> float:
                graph = prepared.module.graph if plan is None else prepared.quantized(plan).graph
                return score(prepared, graph, samples, metric, "--metric")

            return scored

        return cls(on(check), on(report))


def drop(full: float, mine: float) -> float:
    """The relative drop of a metric from `full` to `mine`; negative for a gain."""
    return (full - mine) / max(abs(full), 1e-12)


def score(prepared: Prepared, graph: Graph, samples: Sequence[Sample], metric: Metric, where: str) -> float:
    """The metric of `graph`, whose results correspond to the model's, on `samples` by ONNX name. Raises UsageError as
    `value_of` does."""
    emulator = Emulator(graph)
    positions = {v.name: i for i, v in enumerate(prepared.module.graph.results)}
    names = [(name, graph.results[positions[value]].name) for name, value in prepared.module.outputs]
    outputs: list[Sample] = []
    for feeds in prepared.feeds(samples):
        run = emulator.run(feeds)
        outputs.append({name: run[value] for name, value in names})
    return value_of(metric, outputs, list(samples), where)


def value_of(metric: Metric, outputs: list[Sample], samples: list[Sample], where: str) -> float:
    """The metric of `outputs` on `samples`. Raises UsageError when the metric fails or gives no number."""
    try:
        number = float(metric(outputs, samples))
    except Exception as error:  # the user's own code
        raise UsageError.of(where, "fails", got=f"{type(error).__name__}: {error}") from error
    if not np.isfinite(number):
        raise UsageError.of(where, "gives no finite number", got=number)
    return number
