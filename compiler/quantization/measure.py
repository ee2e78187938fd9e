"""Measures the error of a quantized graph against the original graph.

SQNR: 10 log10 of the sum of squares of the reference over that of the error, in dB, over all samples of a tensor.
Agreement: the share of rows (along the last axis) whose largest element has the same index.

Invariant: both graphs run on the same samples, and every figure is a sum over samples, so their order does not matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
    """Error statistics of one tensor against its reference, summed over samples."""

    signal: float = 0.0
    noise: float = 0.0
    cross: float = 0.0
    other: float = 0.0
    rows: int = 0
    agreeing: int = 0
    levels: list[float] = field(default_factory=list)
    """The SQNR in dB of each sample."""

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        """Add one sample."""
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
        if want.ndim and want.shape[-1] > 1:
            same = np.asarray(got).argmax(-1) == np.asarray(want).argmax(-1)
            self.rows += same.size
            self.agreeing += int(same.sum())

    def join(self, other: Difference) -> None:
        """Add the samples of another difference."""
        for name in ("signal", "noise", "cross", "other", "rows", "agreeing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.levels.extend(other.levels)

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
        """The share of rows with the same largest element; 1 for tensors without rows."""
        return self.agreeing / self.rows if self.rows else 1.0

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"sqnr_db": self.sqnr, "cosine": self.cosine, "agreement": self.agreement if self.rows else None}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of all floating-point outputs, by name in `outputs`."""

    outputs: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def sqnr(self) -> float:
        """The mean over the outputs of noise over signal, in dB: every output counts equally, whatever its
        magnitude."""
        shares = [d.noise / max(d.signal, 1e-300) for d in self.outputs.values()]
        return decibels(1.0, sum(shares) / len(shares)) if shares else EXACT_DB

    @property
    def typical(self) -> float:
        """The mean over outputs and samples of the SQNR in dB."""
        found = [d.typical for d in self.outputs.values()]
        return sum(found) / len(found) if found else EXACT_DB

    @property
    def merit(self) -> float:
        """The criterion for choosing repairs: the mean of `sqnr`, which the worst samples dominate, and `typical`,
        which most samples determine. Either alone is noisy with few samples."""
        return (self.sqnr + self.typical) / 2

    @property
    def agreement(self) -> float:
        """The lowest agreement of the outputs that have rows."""
        return min((d.agreement for d in self.outputs.values()), default=1.0)

    @property
    def levels(self) -> list[float]:
        """The mean over outputs of the SQNR in dB, by sample."""
        by_sample = zip(*(d.levels for d in self.outputs.values()), strict=True)
        return [sum(sample) / len(sample) for sample in by_sample]

    @staticmethod
    def joined(parts: Iterable[Accuracy]) -> Accuracy:
        """The accuracy over the samples of all parts."""
        found: dict[str, Difference] = {}
        for part in parts:
            for name, difference in part.outputs.items():
                found.setdefault(name, Difference()).join(difference)
        return Accuracy(found)

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "sqnr_db": self.sqnr,
            "agreement": self.agreement,
            "outputs": {n: d.record() for n, d in self.outputs.items()},
        }


class Reference:
    """The outputs of `graph` on `samples`, kept for comparing other graphs with."""

    def __init__(self, graph: Graph, samples: Iterable[Feeds]) -> None:
        self.graph = graph
        self.samples = tuple(samples)
        emulator = Emulator(graph)
        self.in_onnxruntime = emulator.in_onnxruntime
        order = [v.name for v in graph.results]
        self.wanted = [[run[n] for n in order] for run in map(emulator.run, self.samples)]

    def first(self, count: int) -> Reference:
        """The reference restricted to the first `count` samples."""
        part = copy.copy(self)
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
            for value, old, want in zip(graph.results, self.graph.results, self.wanted[i], strict=True):
                if want.dtype.kind == "f" and want.size:
                    found.setdefault(old.name, Difference()).add(run[value.name], want)
            if each is not None:
                each(i)
        return Accuracy(found)
