"""Measures a task on data: what a compiled program makes of every sample, beside ONNX Runtime in f32.

The simulator computes values in the order of the program's instructions; hazards are not checked, which takes longer
than the values.

Invariant: samples that fill up the last batch do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ppuc.compiler.metrics.base import Metric, Sample
from ppuc.compiler.metrics.choose import PythonMetric, value_of
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.quantization.batches import Batch
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.measure import Difference
from ppuc.compiler.quantization.metric import drop
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import UsageError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric of a program, `score`, and of the model in f32, `exact` (None: no metric, or no such model), on
    `samples` samples; `differences` between their floating-point outputs by name."""

    samples: int
    score: float | None
    exact: float | None
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def drop(self) -> float | None:
        """The relative drop from f32 to the program; negative for a gain."""
        return None if self.exact is None or self.score is None else drop(self.exact, self.score)


def evaluate(
    program: CompiledProgram,
    data: Data,
    metric: Metric | None,
    oracle: Oracle | None,
    most: int | None = None,
    each: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run `program`, and the model in f32 by `oracle`, on the first `most` batches of `data`. `each` is called with the
    number of finished samples. Raises UsageError for a metric that compares with f32 without an oracle, and for
    programs with inputs that data cannot hold; InputError for data that do not fit the program."""
    if oracle is None and metric is not None and metric.against_f32:
        what = "without labels, the metric compares with the model in f32"
        raise UsageError.of("--metric", what, hint="give --reference MODEL.onnx, or labels in the data")
    if program.plan is not None and (foreign := dict(program.plan.host_inputs)):
        name, kind = next(iter(foreign.items()))
        raise UsageError.of("--data", f"input '{name}' is of a type that samples cannot hold", got=kind)
    known = {s.name for s in program.inputs}
    whole = isinstance(metric, PythonMetric)
    outputs: list[Sample] = []
    exact: list[Sample] = []
    samples: list[Sample] = []
    count = 0
    for batch in islice(data.batches(program.inputs, program.fixed), most):
        feeds = {n: a for n, a in batch.arrays.items() if n in known}
        outputs.append(batch.cut(program.run(feeds, hazards=False).outputs))
        if oracle is not None:
            exact.append(batch.cut(oracle.run({**program.fixed, **feeds})))
        samples.append(batch.cut(batch.arrays if whole else _labels(batch, known)))
        count += batch.rows
        each(count)
    outputs, exact = [_plain(o) for o in outputs], [_plain(o) for o in exact]
    differences = _compared(outputs, exact)
    if metric is None:
        return Evaluation(count, None, None, differences)
    reference = value_of(metric, exact, samples, exact) if oracle is not None else None
    return Evaluation(count, value_of(metric, outputs, samples, exact or samples), reference, differences)


def _labels(batch: Batch, inputs: set[str]) -> Sample:
    return {n: a for n, a in batch.arrays.items() if n not in inputs}


def _plain(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs with 16- and 8-bit floats as f32."""
    return {
        n: a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind in "fV" and a.dtype.itemsize < 4 else a
        for n, a in outputs.items()
    }


def _compared(outputs: Sequence[Sample], exact: Sequence[Sample]) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for got, want in zip(outputs, exact, strict=False):
        for name, array in want.items():
            same = isinstance(array, np.ndarray) and np.shape(got[name]) == array.shape
            if same and array.dtype.kind == "f" and array.size:
                found.setdefault(name, Difference()).add(got[name], array)
    return found
