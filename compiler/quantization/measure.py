"""Measures the error of a quantized graph against the original graph.

SQNR: 10 log10 of the sum of squares of the reference over that of the error, in dB, over all samples of a tensor.
Agreement: the share of equal decisions; an output's criterion says what its decisions are (criteria.py), by default
the index of the largest element along the axis of its classes.

Invariant: both graphs run on the same samples, and every figure is a sum over samples, so their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppuc.compiler.quantization.class_axis import found_criteria
from ppuc.compiler.quantization.criteria import Criterion
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.graph import Graph

EXACT_DB = 200.0
"""SQNR reported for zero error."""

Feeds = Mapping[str, np.ndarray]


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most EXACT_DB."""
    if noise <= 0.0:
        return EXACT_DB
    return min(EXACT_DB, 10.0 * math.log10(max(signal, 1e-300) / noise))


@dataclass(slots=True)
class Difference:
    """Error statistics of one tensor against its reference, summed over samples. `rows` counts decisions, `agreeing`
    the equal ones."""

    signal: float = 0.0
    noise: float = 0.0
    cross: float = 0.0
    other: float = 0.0
    rows: int = 0
    agreeing: int = 0
    levels: list[float] = field(default_factory=list)
    """The SQNR in dB of each sample."""
    agreements: list[float] = field(default_factory=list)
    """The share of equal decisions in each sample that holds decisions."""
    criterion: Criterion = field(default_factory=Criterion)
    """What its decisions are, and how much it counts."""

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        """Add one sample. Of integers, the signal is the number of elements, and the noise that of different ones."""
        got, want = np.asarray(got), np.asarray(want)
        decided, wanted = self.criterion.decisions(got), self.criterion.decisions(want)
        if decided is not None and wanted is not None:
            self.rows += wanted.size
            agreeing = int((decided == wanted).sum())
            self.agreeing += agreeing
            if wanted.size:
                self.agreements.append(agreeing / wanted.size)
        if want.dtype.kind in "biu":
            got, want = (got == want).astype(np.float64), np.ones(want.shape)
        g, w = np.asarray(got, np.float64).reshape(-1), np.asarray(want, np.float64).reshape(-1)
        finite = np.isfinite(w)
        if not finite.all():
            g, w = np.where(finite, g, 0.0), np.where(finite, w, 0.0)
        e = np.nan_to_num(g - w, nan=np.abs(w).max(initial=1.0))
        signal, noise = float(w @ w), float(e @ e)
        self.signal += signal
        self.noise += noise
        self.levels.append(decibels(signal, noise))
        self.cross += float(np.nan_to_num(g) @ w)
        self.other += float(np.nan_to_num(g) @ np.nan_to_num(g))

    def join(self, other: Difference) -> None:
        """Add the samples of another difference."""
        for name in ("signal", "noise", "cross", "other", "rows", "agreeing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.levels.extend(other.levels)
        self.agreements.extend(other.agreements)

    @property
    def sqnr(self) -> float:
        """The SQNR over all samples, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def typical(self) -> float:
        """The mean over samples of the SQNR in dB; unlike `sqnr`, the worst samples do not dominate it."""
        return sum(self.levels) / max(len(self.levels), 1)

    @property
    def cosine(self) -> float:
        return self.cross / max(math.sqrt(self.signal * self.other), 1e-300)

    @property
    def agreement(self) -> float:
        """The share of equal decisions; 1 for tensors without decisions."""
        return self.agreeing / self.rows if self.rows else 1.0

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "sqnr_db": self.sqnr,
            "cosine": self.cosine,
            "agreement": self.agreement if self.rows else None,
            "weight": self.criterion.weight,
            "class_axis": self.criterion.axis if self.rows else None,
            "decisions": self.criterion.text,
        }


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of all outputs that count, by name in `outputs`."""

    outputs: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def sqnr(self) -> float:
        """The weighted mean over the outputs of noise over signal, in dB: outputs count whatever their magnitude."""
        return decibels(1.0, self._mean({n: d.noise / max(d.signal, 1e-300) for n, d in self.outputs.items()}, 0.0))

    @property
    def typical(self) -> float:
        """The mean over outputs, by weight, and samples of the SQNR in dB."""
        return self._mean({name: d.typical for name, d in self.outputs.items()}, EXACT_DB)

    @property
    def merit(self) -> float:
        """The criterion for choosing repairs: the mean of `sqnr`, which the worst samples dominate, and `typical`,
        which most samples determine. Either alone is noisy with few samples."""
        return (self.sqnr + self.typical) / 2

    @property
    def agreement(self) -> float:
        """The lowest agreement of the outputs that hold decisions."""
        return min((d.agreement for d in self.outputs.values()), default=1.0)

    @property
    def levels(self) -> list[float]:
        """The weighted mean over outputs of the SQNR in dB, by sample."""
        by_sample = zip(*(d.levels for d in self.outputs.values()), strict=True)
        return [self._mean(dict(zip(self.outputs, sample, strict=True)), EXACT_DB) for sample in by_sample]

    def _mean(self, figures: Mapping[str, float], empty: float) -> float:
        weights = {name: self.outputs[name].criterion.weight for name in figures}
        total = sum(weights.values())
        return sum(weights[n] * figure for n, figure in figures.items()) / total if total else empty

    @staticmethod
    def joined(parts: Iterable[Accuracy]) -> Accuracy:
        """The accuracy over the samples of all parts."""
        found: dict[str, Difference] = {}
        for part in parts:
            for name, difference in part.outputs.items():
                found.setdefault(name, Difference(criterion=difference.criterion)).join(difference)
        return Accuracy(found)

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "sqnr_db": self.sqnr,
            "agreement": self.agreement,
            "outputs": {n: d.record() for n, d in self.outputs.items()},
        }


class Reference:
    """The outputs of `graph` on `samples`, kept for comparing other graphs with. `criteria` say by value name how
    outputs are judged (None: as the graph suggests)."""

    def __init__(self, graph: Graph, samples: Iterable[Feeds], criteria: Mapping[str, Criterion] | None = None) -> None:
        self.graph = graph
        self.criteria = found_criteria(graph) if criteria is None else criteria
        self.samples = tuple(samples)
        emulator = Emulator(graph)
        self.in_onnxruntime = emulator.in_onnxruntime
        counted = [v.name for v in graph.results if self.criteria[v.name].weight]
        self.wanted = [{n: run[n] for n in counted} for run in map(emulator.run, self.samples)]

    def first(self, count: int) -> Reference:
        """The reference restricted to the first `count` samples."""
        part = copy(self)
        part.samples, part.wanted = self.samples[:count], self.wanted[:count]
        return part

    def compare(
        self, graph: Graph, each: Callable[[int], None] | None = None, only: Iterable[int] | None = None
    ) -> Accuracy:
        """The accuracy of `graph`, whose results correspond to the reference's by position, on all samples or on those
        with indices in `only`."""
        emulator = Emulator(graph)
        found: dict[str, Difference] = {}
        for i in range(len(self.samples)) if only is None else only:
            run = emulator.run(self.samples[i])
            for value, old in zip(graph.results, self.graph.results, strict=True):
                want = self.wanted[i].get(old.name)
                if want is not None and want.size:
                    own = found.setdefault(old.name, Difference(criterion=self.criteria[old.name]))
                    own.add(run[value.name], want)
            if each is not None:
                each(i)
        return Accuracy(found)
