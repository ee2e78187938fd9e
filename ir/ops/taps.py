"""Interpolation at computed positions: the elements of an axis that a position uses, and their weights.

Positions, indices and weights are formulas over an Algebra, shared by references and decompositions; elements are read
as rows of a table and summed with their weights.

Invariant: the index of a Tap is a valid element of its axis for any position, including NaN and infinity.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.elementwise import convert
from ppuc.ir.ops.gates import Algebra, OnValues
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.types import DType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder

CUBIC_A = -0.75
"""The free parameter of cubic convolution; PyTorch's and ONNX Runtime's choice for sampling."""


@dataclass(frozen=True, slots=True)
class Tap:
    """`index`: integral floats, not necessarily in range; `weight` has the same shape, None for 1."""

    index: Any
    weight: Any | None = None


def clamp(a: Algebra, x: Any, low: float, high: float) -> Any:
    """`x` within [low, high]."""
    return a("min", a("max", x, low), high)


def reflect(a: Algebra, x: Any, low: float, high: float) -> Any:
    """`x` mirrored at `low` and `high` until it lies between them."""
    span = high - low
    if span <= 0:
        return clamp(a, x, low, low)
    past = a("fmod", a("abs", a("sub", x, low)), 2 * span)
    return a("add", a("min", past, a("sub", 2 * span, past)), low)


def linear_taps(a: Algebra, position: Any) -> list[Tap]:
    """The element before a position and the one after it."""
    first = a("floor", position)
    part = a("sub", position, first)
    return [Tap(first, a("sub", 1.0, part)), Tap(a("add", first, 1.0), part)]


def cubic_taps(a: Algebra, position: Any) -> list[Tap]:
    """Two elements on each side, weighted by cubic convolution (Keys, 1981)."""
    first = a("floor", position)
    part = a("sub", position, first)
    rest = a("sub", 1.0, part)
    distances = (a("add", part, 1.0), part, rest, a("add", rest, 1.0))
    weights = [_cubic(a, d, near=i in (1, 2)) for i, d in enumerate(distances)]
    return [Tap(a("add", first, float(i - 1)), w) for i, w in enumerate(weights)]


def _cubic(a: Algebra, x: Any, near: bool) -> Any:
    """The weight of an element at distance `x`, below 1 (`near`) or between 1 and 2."""
    k = CUBIC_A
    coefficients = (k + 2, -(k + 3), 0.0, 1.0) if near else (k, -5 * k, 8 * k, -4 * k)
    value = a("mul", x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        value = a("mul", a("add", value, coefficient) if coefficient else value, x)
    return a("add", value, coefficients[-1])


def zero_outside(a: Algebra, tap: Tap, size: int) -> Tap:
    """`tap` with weight 0 where it is outside an axis of `size`."""
    inside = a("and", a("ge", tap.index, 0.0), a("le", tap.index, float(size - 1)))
    if tap.weight is None:
        nothing = a("mul", tap.index, 0.0)
        return Tap(tap.index, a("select", inside, a("add", nothing, 1.0), 0.0))
    return Tap(tap.index, a("select", inside, tap.weight, 0.0))


def rows_of(
    b: Builder, table: Value, axes: Sequence[Sequence[Tap]], sizes: Sequence[int], start: Value | None = None
) -> Iterator[Value]:
    """Weighted rows [Q, C] of `table`[R, C], one for each combination of one tap per axis. The rows of the table form a
    tensor of `sizes` from row `start` (i32) on. Index and weight tensors broadcast to Q elements."""
    places = [
        [_row(b, tap, size, math.prod(sizes[i + 1 :])) for tap in taps]
        for i, (taps, size) in enumerate(zip(axes, sizes, strict=True))
    ]
    for combination in itertools.product(*(range(len(taps)) for taps in axes)):
        index = start
        for place, k in zip(places, combination, strict=True):
            index = place[k] if index is None else b("add", index, place[k])
        assert index is not None
        flat = c.reshape(b, index, (index.type.elements,))
        rows = c.widen(b, b("gather", table, flat, attrs=GatherAttrs(0)))
        weights = [w for taps, k in zip(axes, combination, strict=True) if (w := taps[k].weight) is not None]
        if weights:
            weight = functools.reduce(lambda x, y: b("mul", x, y), weights)
            rows = b("mul", rows, c.cast(b, c.reshape(b, weight, (weight.type.elements, 1)), rows.type.dtype))
        yield rows


def sum_of_rows(
    b: Builder, table: Value, axes: Sequence[Sequence[Tap]], sizes: Sequence[int], start: Value | None = None
) -> Value:
    """The sum of `rows_of`: the interpolated rows."""
    return functools.reduce(lambda x, y: b("add", x, y), rows_of(b, table, axes, sizes, start))


def _row(b: Builder, tap: Tap, size: int, step: int) -> Value:
    """i32: the tap's contribution to the row index, clamped again as an integer because NaN survives min and max."""
    bound = clamp(OnValues(b), tap.index, 0.0, float(size - 1))
    whole = c.cast(b, bound, DType.I32)
    whole = b("min", b("max", whole, b.scalar(0, DType.I32)), b.scalar(size - 1, DType.I32))
    return whole if step == 1 else b("mul", whole, b.scalar(step, DType.I32))


def rows_of_arrays(
    table: np.ndarray, axes: Sequence[Sequence[Tap]], sizes: Sequence[int], start: np.ndarray | None = None
) -> list[np.ndarray]:
    """The array version of `rows_of`, in f64."""
    terms = []
    for combination in itertools.product(*axes):
        index: Any = 0 if start is None else start
        weight: Any = np.float64(1)
        for i, (tap, size) in enumerate(zip(combination, sizes, strict=True)):
            bound = convert(np.clip(tap.index, 0, size - 1), DType.I32)
            index = index + np.clip(bound, 0, size - 1).astype(np.int64) * math.prod(sizes[i + 1 :])
            weight = weight if tap.weight is None else weight * tap.weight.astype(np.float64)
        flat = np.broadcast_to(weight, np.shape(index)).reshape(-1, 1)
        terms.append(table[np.reshape(index, -1)].astype(np.float64) * flat)
    return terms


def sum_of_rows_array(
    table: np.ndarray, axes: Sequence[Sequence[Tap]], sizes: Sequence[int], start: np.ndarray | None = None
) -> np.ndarray:
    """The sum of `rows_of_arrays`."""
    return np.asarray(np.sum(rows_of_arrays(table, axes, sizes, start), axis=0))
