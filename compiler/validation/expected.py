"""What a quantized program's outputs may differ from the model's: as much as its emulation does.

The rule for rounding errors (`ppuc.compiler.validation.tolerance`) allows deep networks of 8-bit layers anything: it
cannot know how large activations are beside their scales. Emulating the quantized graph in f32 tells. What the
emulation leaves out is bf16 storage between layers, whose effect is measured by changing weights and inputs by as much.

A program and its emulation do not agree bit for bit, because a sum that is rounded another way moves numbers over the
edges of 8-bit codes. But both are draws from one distribution, so that the sizes of their errors agree.

Invariant: the measurement knows the graphs, the inputs and fixed seeds, never what a program computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.validation.conditioning import moved, perturbed
from ppuc.compiler.validation.emulate import Emulator
from ppuc.compiler.validation.tolerance import FP32_FLOOR, SAFETY, typical_step
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module

DRAWS = 2
STORED = "bf16"
"""What crosses kernels of a quantized program."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """`relative` bounds rms(error) / rms(reference), `largest` the error of any element."""

    relative: float
    largest: float


def allowed_errors(
    graph: Graph, outputs: Mapping[str, str], quantized: Module, feeds: Mapping[str, np.ndarray]
) -> dict[str, Allowed]:
    """For each float output, by ONNX name, the error that a right program may have. `graph` is the model, with its
    `outputs` by ONNX name and the `feeds` of its parameters by name; `quantized` has the same inputs and outputs, in
    the same order."""
    mine = dict(zip((p.name for p in graph.params), (p.name for p in quantized.graph.params), strict=True))
    theirs = dict(quantized.outputs)
    step, found = typical_step(graph, STORED), dict[str, Allowed]()
    exact, written = Emulator(graph), Emulator(quantized.graph)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        near = {n: moved(a, step, rng) for n, a in feeds.items()}
        base, wanted = exact.run(feeds), exact.run(near)
        stored = Emulator(perturbed(graph, step, rng)).run(near)
        rounded = written.run({mine[n]: a for n, a in near.items()})
        for name, value in outputs.items():
            want = wanted[value]
            if want.dtype.kind == "f" and want.size:
                errors = [_errors(rounded[theirs[name]], want), _errors(stored[value], base[value])]
                one, before = _allowed(want, errors), found.get(name, Allowed(0.0, 0.0))
                found[name] = Allowed(max(one.relative, before.relative), max(one.largest, before.largest))
    return found


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The differences of what is finite in both, as f64."""
    both = np.isfinite(got) & np.isfinite(want)
    return np.where(both, got, 0).astype(np.float64) - np.where(both, want, 0).astype(np.float64)


def _allowed(want: np.ndarray, errors: Sequence[np.ndarray]) -> Allowed:
    """What independent `errors` of `want` allow together. The size of an error scatters by about 1 / sqrt(2 n) around
    its mean, in the program and in the measurement, n being how many elements it is spread over: (sum e^2)^2 / sum
    e^4."""
    finite = np.where(np.isfinite(want), want, 0).astype(np.float64)
    largest = FP32_FLOOR * float(np.abs(finite).max())
    squares = np.sum([e**2 for e in errors], axis=0)
    total, fourth = float(squares.sum()), float(np.square(squares).sum())
    if not total:
        return Allowed(FP32_FLOOR, largest)
    factor = SAFETY * (1 + 2 / math.sqrt(total**2 / fourth if fourth else 1.0))
    scale, rms = math.sqrt(float(np.mean(finite**2))), math.sqrt(total / want.size)
    relative = max(factor * rms / scale, FP32_FLOOR) if scale else math.inf
    return Allowed(relative, max(factor * math.sqrt(float(squares.max())), largest))
