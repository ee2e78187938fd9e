"""The model's own sensitivity to small changes: the part of rounding error that does not depend on the compiler.

Every float weight and input is multiplied by `1 + h g`, g normal, and the graph interpreter computes the outputs again.
That is what rounding the operands of every contraction with a mean error of h does, at every layer at once. So an
output's relative change over h is its sensitivity S, and S times the mean error of a single op is to be expected of any
correct program. Sums in between are changed by as much as they are rounded (ppuc.compiler.validation.roundings):
nothing else shows what cancels for all weights and inputs, such as the mean of equal numbers and one of them.

For f32, whose h the interpreter could not represent, h is larger and the change scaled: in proportion where the model
is smooth. Where it rounds to whole numbers in between (dynamic quantization), a change of h moves a
share of the numbers that is proportional to h over an edge, each by a whole step, so that the root mean square of what
comes out follows the root of h. Of integers and booleans it is the share that changes which is measured. The last run
has changes of the size of errors, because larger ones that exceed the epsilon beside a variance have less than a
proportional effect.

Invariant: the measurement depends on the imported graph, the inputs and a fixed seed, never on what a program computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ppuc.compiler.validation.overflow import overflows, run_wide
from ppuc.compiler.validation.roundings import expanded, with_noise
from ppuc.compiler.validation.tolerance import SAFETY, Tolerance
from ppuc.ir.graph import Graph, Op
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType

Move = Callable[[np.ndarray], np.ndarray]
"""Perturbs every float of an array slightly; other arrays are unchanged."""
DRAWS, MORE_DRAWS = 2, 8
"""For results that move by any small change, and for those that jump, where few elements may be near an edge, or that
have few elements, whose changes scatter."""
FEW = 8
ROUNDING = ("quantize", "round", "floor", "ceil")
SMALLEST_CHANGE = 2.0**-14
"""Ten bits above f32's own roundoff: far enough that the interpreter's rounding does not show."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """`relative` is rms(change) / rms(output), `largest` the largest change of an element, `rms` rms(change), `flips`
    the share of integers that change, all for one unit of relative change of weights and inputs, at changes as small as
    rounding errors."""

    relative: float
    largest: float
    rms: float
    flips: float = 0.0

    def widened(self, tolerance: Tolerance, step: float) -> Tolerance:
        """`tolerance`, raised to what this sensitivity makes of errors of `step` at every op."""
        relative, largest, rms = (SAFETY * step * s for s in (self.relative, self.largest, self.rms))
        return replace(
            tolerance,
            relative=max(tolerance.relative, relative),
            absolute=max(tolerance.absolute, largest),
            rms=max(tolerance.absolute, rms),
            flips=max(tolerance.flips, min(SAFETY * step * self.flips, 1.0)),
        )


UNMOVED = Sensitivity(0.0, 0.0, 0.0)


def sensitivities(graph: Graph, feeds: Mapping[str, np.ndarray], step: float) -> dict[str, Sensitivity]:
    """The sensitivity of every computed value of `graph`, by name, at the inputs `feeds` (by parameter name), to errors
    of a size of `step`."""
    whole = expanded(graph)
    run, base = _base(whole.graph, feeds)
    found = dict.fromkeys(base, UNMOVED)
    results = [base[v.name] for v in whole.graph.results if v.name in base]
    sizes = [_sizes(step, rounds(graph))] * _draws(base.values(), results)
    if not rounds(graph) and step < SMALLEST_CHANGE:
        sizes.append((step, step))
    for draw, (change, unit) in enumerate(sizes):
        rng = np.random.default_rng(draw)

        def compare(
            op: Op,
            arrays: Sequence[np.ndarray],
            change: float = change,
            unit: float = unit,
            rng: np.random.Generator = rng,
        ) -> Sequence[np.ndarray]:
            noisy = with_noise(op, arrays, change / step, rng)
            for name, array in _named(op, noisy):
                effect = _change(base[name], array, unit, change)
                if change < SMALLEST_CHANGE:  # any change breaks ties of exact inputs: a share, however small it is
                    effect = replace(effect, flips=0.0)
                found[name] = _larger(found[name], effect)
            return noisy

        run(perturbed(whole.graph, change, rng), {n: moved(a, change, rng) for n, a in feeds.items()}, compare)
    return {name: found[value] for value, names in whole.names.items() if value in found for name in names}


def _base(graph: Graph, feeds: Mapping[str, np.ndarray]) -> tuple[Callable[..., object], dict[str, np.ndarray]]:
    """What runs `graph`, and all of its values. One that overflows in 16 bits is run in f32: near the edge of a format
    a change however small decides between a number and infinity, which is no effect of rounding."""
    base: dict[str, np.ndarray] = {}
    run_graph(graph, feeds, lambda op, arrays: base.update(_named(op, arrays)))
    formats = {value.name: value.type.dtype for op in graph.ops for value in op.results}
    if not any(overflows(formats[name], array) for name, array in base.items()):
        return run_graph, base
    base = {}
    run_wide(graph, feeds, lambda op, arrays: base.update(_named(op, arrays)))
    return run_wide, base


def sensitivities_of_outputs(
    run: Callable[[Move], Mapping[str, Any]], base: Mapping[str, Any], step: float, whole_numbers: bool
) -> dict[str, Sensitivity]:
    """The same for a model that is a function: `run` gives the outputs of a model whose weights and inputs went through
    a Move, `base` are those of the model itself. `whole_numbers` says whether it rounds to them."""
    change, unit = _sizes(step, whole_numbers)
    found: dict[str, Sensitivity] = {}
    for draw in range(_draws(base.values(), base.values())):
        for name, array in run(partial(moved, change=change, rng=np.random.default_rng(draw))).items():
            want = base[name]
            # A result of another shape says nothing: its tolerance stays as it was.
            if isinstance(array, np.ndarray) and isinstance(want, np.ndarray) and array.shape == want.shape:
                before = found.get(name, UNMOVED)
                found[name] = _larger(before, _change(want, array, unit, change))
    return found


def _draws(values: Iterable[Any], results: Iterable[Any]) -> int:
    """How many changes are tried of a model with these values and, among them, results."""
    jumps = any(isinstance(a, np.ndarray) and a.dtype.kind in "iub" for a in values)
    return MORE_DRAWS if jumps or any(isinstance(a, np.ndarray) and a.size < FEW for a in results) else DRAWS


def rounds(graph: Graph) -> bool:
    """Whether `graph` makes whole numbers of others."""
    return any(map(_rounds, graph.ops))


def _sizes(step: float, whole_numbers: bool) -> tuple[float, float]:
    """The relative change that is applied, and what its effect is divided by so that times `step` it is that of
    errors."""
    change = max(step, SMALLEST_CHANGE)
    return change, math.sqrt(change * step) if whole_numbers else change


def _named(op: Op, arrays: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(value.name, array) for value, array in zip(op.results, arrays, strict=True)]


def _rounds(op: Op) -> bool:
    numbers = op.operands[0].type.dtype if op.operands else DType.I32
    return op.name in ROUNDING or (op.name == "cast" and numbers.is_float and op.results[0].type.dtype.is_integer)


def perturbed(graph: Graph, change: float, rng: np.random.Generator) -> Graph:
    """`graph` with every float constant of more than one element changed."""
    ops = []
    for op in graph.ops:
        if isinstance(op.attrs, ConstAttrs) and op.attrs.value.type.elements > 1:
            array = op.attrs.value.array()
            changed = moved(array, change, rng)
            op = op if changed is array else replace(op, attrs=ConstAttrs(Resource.of(changed)))
        ops.append(op)
    return graph.with_ops(ops)


def moved(array: np.ndarray, change: float, rng: np.random.Generator) -> np.ndarray:
    """`array` with every float changed by a relative `change` in the mean."""
    if array.dtype.kind != "f":
        return array
    factor = 1 + change * rng.standard_normal(array.shape, np.float32)
    return np.asarray(array * factor, array.dtype)


def _change(base: np.ndarray, moved: np.ndarray, unit: float, change: float) -> Sensitivity:
    if base.dtype.kind in "iub" and base.size:
        return replace(UNMOVED, flips=float(np.mean(base != moved)) / change)
    if base.dtype.kind != "f" or not base.size:
        return UNMOVED
    both = np.isfinite(base) & np.isfinite(moved)
    a = np.where(both, base, 0).astype(np.float64)
    difference = np.abs(np.where(both, moved, 0).astype(np.float64) - a)
    scale, rms = (math.sqrt(float(np.mean(each**2))) for each in (a, difference))
    return Sensitivity(rms / scale / unit if scale else 0.0, float(difference.max()) / unit, rms / unit)


def _larger(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    pairs = zip(astuple(a), astuple(b), strict=True)
    return Sensitivity(*(max(pair) for pair in pairs))
