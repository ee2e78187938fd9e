"""Tolerances of a quantized program's outputs: the error that rounding its operands causes.

The rule for rounding errors (`ppuc.compiler.validation.tolerance`) allows deep networks of 8-bit layers anything: it
cannot know how large activations are beside their scales. The simulated graph tells: the model in f32, whose layers
take operands that were rounded to their formats and back. What it leaves out is bf16 storage between layers, whose
effect is measured by changing weights and inputs by as much, and that kernels keep 16-bit floats of the model in f32.

A program and the simulated graph do not agree bit for bit, because a sum that is rounded another way moves numbers over
the edges of 8-bit codes. But both are draws from one distribution, so that the sizes of their errors agree.

Invariant: the measurement knows the model, formats, scales, inputs and fixed seeds: neither the graph that the program
was made of nor what it computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.validation.conditioning import moved, perturbed
from ppuc.compiler.validation.emulate import Emulator
from ppuc.compiler.validation.overflow import WIDENED, run_wide
from ppuc.compiler.validation.tolerance import FP32_FLOOR, typical_step
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module

DRAWS = 2
MARGIN = math.sqrt(2.0)
"""On the size of the measured error: elements that share an operand share its rounding errors, so that fewer errors are
independent than there are elements."""
DEVIATIONS = 3.0
"""Standard deviations of a ratio's logarithm, beyond which it is no chance."""
STORED = "bf16"
"""What crosses kernels of a quantized program."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """`relative` bounds rms(error) / rms(reference), `largest` the error of any element."""

    relative: float
    largest: float


def allowed_errors(
    graph: Graph, outputs: Mapping[str, str], simulated: Module, feeds: Mapping[str, np.ndarray]
) -> dict[str, Allowed]:
    """For each float output, by ONNX name, the error that a correct program may have. `graph` is the model, with its
    `outputs` by ONNX name and the `feeds` of its parameters by name; `simulated` has the same inputs and outputs, in
    the same order."""
    mine = dict(zip((p.name for p in graph.params), (p.name for p in simulated.graph.params), strict=True))
    theirs = dict(simulated.outputs)
    step, found = typical_step(graph, STORED), dict[str, Allowed]()
    exact, written = Emulator(graph), Emulator(simulated.graph)
    wide = _unrounded(graph, feeds, outputs.values())
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
                errors += [_errors(wide[value], base[value])] if wide else []
                one, before = _allowed(want, errors), found.get(name, Allowed(0.0, 0.0))
                found[name] = Allowed(max(one.relative, before.relative), max(one.largest, before.largest))
    return found


def _unrounded(graph: Graph, feeds: Mapping[str, np.ndarray], values: Collection[str]) -> dict[str, np.ndarray]:
    """The `values` of a graph with 16-bit floats that are kept in f32, as they are within a kernel; nothing of one
    without."""
    if not any(r.type.dtype in WIDENED for op in graph.ops for r in op.results):
        return {}
    found = {name: array for name, array in feeds.items() if name in values}

    def on_op(op: Op, arrays: Sequence[np.ndarray]) -> None:
        found.update((r.name, array) for r, array in zip(op.results, arrays, strict=True) if r.name in values)

    run_wide(graph, feeds, on_op)
    return found


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The differences of what is finite in both, as f64."""
    both = np.isfinite(got) & np.isfinite(want)
    return np.where(both, got, 0).astype(np.float64) - np.where(both, want, 0).astype(np.float64)


def _allowed(want: np.ndarray, errors: Sequence[np.ndarray]) -> Allowed:
    """What independent `errors` of `want` allow together. For normal errors of any sizes, sum e^4 estimates three times
    the sum of their variances' squares, and the variance of sum e^2 is twice that sum. So with n = (sum e^2)^2 /
    sum e^4 the logarithm of the size of an error, half of that of its square, scatters by sqrt(2 / (3 n)) / 2, and the
    ratio of two sizes, the program's and the measured one, by 1 / sqrt(3 n)."""
    finite = np.where(np.isfinite(want), want, 0).astype(np.float64)
    largest = FP32_FLOOR * float(np.abs(finite).max())
    squares = np.sum([e**2 for e in errors], axis=0)
    total, fourth = float(squares.sum()), float(np.square(squares).sum())
    if not total:
        return Allowed(FP32_FLOOR, largest)
    factor = MARGIN * math.exp(DEVIATIONS / math.sqrt(3 * (total**2 / fourth if fourth else 1.0)))
    scale, rms = math.sqrt(float(np.mean(finite**2))), math.sqrt(total / want.size)
    relative = max(factor * rms / scale, FP32_FLOOR) if scale else math.inf
    return Allowed(relative, max(factor * math.sqrt(float(squares.max())), largest))
