"""Layers of random graphs that move data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.movement import (
    GatherAttrs,
    GatherElementsAttrs,
    GatherNdAttrs,
    PadAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
from ppuc.ir.ops.resize import ResizeAttrs
from ppuc.ir.types import DType
from tests.property.graph_layers import ANY, NUMBERS, layer
from tests.property.growing_graph import RandomGraph
from tests.property.layers_blocks import image


@layer(4)
def reshaped(g: RandomGraph) -> Value:
    x = g.pick(dtypes=ANY)
    left = x.type.elements
    dims: list[int] = []
    while left > 1 and len(dims) < 4:
        divisors = [d for d in range(2, left + 1) if left % d == 0]
        dims.append(g.one_of(divisors))
        left //= dims[-1]
    dims += [left] if left > 1 else []
    if g.chance(0.3):
        dims.insert(g.integer(0, len(dims)), 1)
    return g.reshape(x, *dims) if math.prod(dims) == x.type.elements else g.reshape(x, *reversed(x.type.dims))


@layer(4)
def transposed(g: RandomGraph) -> Value:
    x = g.pick((2, 3, 4, 5), ANY)
    return g.transpose(x, *(int(i) for i in g.rng.permutation(x.type.rank)))


@layer(4)
def sliced(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    starts, sizes, steps = [], [], []
    for d in x.type.dims:
        step = g.one_of((1, 1, 1, 2, -1, -2))
        size = g.integer(1, -(-d // abs(step)))
        span = (size - 1) * abs(step)
        first = g.integer(0, d - 1 - span)
        starts.append(first if step > 0 else first + span)
        sizes.append(size)
        steps.append(step)
    return g.slice(x, starts, sizes, steps)


@layer(2)
def split(g: RandomGraph) -> Sequence[Value]:
    x = g.pick((1, 2, 3, 4), ANY, least=2)
    axis = max(range(x.type.rank), key=lambda a: x.type.dims[a])
    cut = g.integer(1, x.type.dims[axis] - 1)
    rest = [n - cut if a == axis else n for a, n in enumerate(x.type.dims)]
    first = [cut if a == axis else n for a, n in enumerate(x.type.dims)]
    start = [cut if a == axis else 0 for a in range(x.type.rank)]
    return g.slice(x, [0] * x.type.rank, first), g.slice(x, start, rest)


@layer(2)
def repeated(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    dims = [g.integer(1, 3) if d == 1 else d for d in x.type.dims]
    return g.expand(x, *((g.integer(1, 3), *dims) if g.chance(0.5) else dims))


@layer(4)
def joined(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    axis = g.integer(0, x.type.rank - 1)
    rest = [n for a, n in enumerate(x.type.dims) if a != axis]
    others = [
        v
        for v in g.known
        if v.type.dtype is x.type.dtype
        and v.type.rank == x.type.rank
        and [n for a, n in enumerate(v.type.dims) if a != axis] == rest
    ]
    parts = [g.one_of(others) for _ in range(g.integer(1, 3))]
    if g.chance(0.3):
        dims = [g.integer(0, 3) if a == axis else n for a, n in enumerate(x.type.dims)]
        parts.append(g.weights_of(x.type.dtype, *dims))
    return g.concat(x, *parts, axis=axis)


@layer(4)
def padded(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    rank = x.type.rank
    mode = g.one_of(("constant", "constant", "constant", "edge", "reflect", "wrap"))
    low, high = (tuple(g.integer(0, 3) if g.chance(0.5) else 0 for _ in range(rank)) for _ in range(2))
    if mode != "constant":
        return g.op("pad", x, attrs=PadAttrs(low, high, (0,) * rank, mode=mode))
    if g.chance(0.2):
        low = tuple(-g.integer(0, min(2, n - 1)) for n in x.type.dims)
    interior = tuple(g.integer(0, 1) if g.chance(0.2) else 0 for _ in range(rank))
    return g.op("pad", x, attrs=PadAttrs(low, high, interior, g.one_of((0.0, 1.0))))


def indices(g: RandomGraph, size: int, shape: Sequence[int]) -> Value:
    """Positions along an axis of `size`, negative ones included: constant or an input."""
    array = g.rng.integers(-size, size, shape).astype(g.one_of((np.int64, np.int32)))
    return g.const(array) if g.chance(0.5) else g.parameter(shape, DType.of(array.dtype), array)


@layer(3)
def gathered(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    axis = g.integer(0, x.type.rank - 1)
    return g.op("gather", x, indices(g, x.type.dims[axis], g.shape(g.integer(0, 2), 30)), attrs=GatherAttrs(axis))


@layer(1)
def gathered_elements(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    axis = g.integer(0, x.type.rank - 1)
    shape = [g.integer(1, n) for n in x.type.dims]
    return g.op("gather_elements", x, indices(g, x.type.dims[axis], shape), attrs=GatherElementsAttrs(axis))


def index_tuples(g: RandomGraph, sizes: Sequence[int], lead: Sequence[int]) -> Value:
    parts = [g.rng.integers(-n, n, lead) for n in sizes]
    array = np.stack(parts, axis=-1).astype(np.int64)
    return g.const(array) if g.chance(0.5) else g.parameter(array.shape, DType.I64, array)


@layer(1)
def gathered_tuples(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    depth = g.integer(1, x.type.rank)
    picked = index_tuples(g, x.type.dims[:depth], g.shape(g.integer(1, 2), 20))
    return g.op("gather_nd", x, picked, attrs=GatherNdAttrs())


@layer(2)
def scattered(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), NUMBERS)
    depth, lead = g.integer(1, x.type.rank), g.shape(1, 12)
    where = index_tuples(g, x.type.dims[:depth], lead)
    updates = g.weights_of(x.type.dtype, *lead, *x.type.dims[depth:])
    attrs = ScatterNdAttrs(g.one_of(("none", "none", "add", "max", "min")))
    return g.op("scatter_nd", x, where, updates, attrs=attrs)


@layer(1)
def scattered_elements(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), NUMBERS)
    axis = g.integer(0, x.type.rank - 1)
    shape = [g.integer(1, min(n, 6)) for n in x.type.dims]
    updates = g.weights_of(x.type.dtype, *shape)
    attrs = ScatterElementsAttrs(axis, g.one_of(("none", "add")))
    return g.op("scatter_elements", x, indices(g, x.type.dims[axis], shape), updates, attrs=attrs)


@layer(1)
def resized(g: RandomGraph) -> Value:
    x = image(g)
    space = x.type.dims[2:]
    sizes = (*x.type.dims[:2], *(g.integer(1, 2 * n) if g.chance(0.5) else 2 * n for n in space))
    scales = tuple(b / a for a, b in zip(x.type.dims, sizes, strict=True))
    return g.op("resize", x, attrs=ResizeAttrs(sizes, scales, g.one_of(("nearest", "linear", "cubic"))))


# -- corners ---------------------------------------------------------------------------------------------------------


@layer(1)
def scalar(g: RandomGraph) -> Value:
    x = g.pick(dtypes=NUMBERS)
    y = g.reduce(g.one_of(("sum", "max")), x, *range(x.type.rank), keepdims=False) if x.type.rank else x
    return g.op("mul", y, g.parameter((), x.type.dtype))


@layer(1)
def empty(g: RandomGraph) -> Value:
    """A tensor without elements, and what reductions, concatenations and products make of it."""
    shape = list(g.shape(g.integer(2, 3), 200))
    axis = g.integer(0, len(shape) - 1)
    shape[axis] = 0
    x = g.parameter(shape)
    y = g.op("relu", g.op("add", x, x))
    choice = g.integer(0, 4)
    if choice == 0:
        return g.reduce("sum", y, axis, keepdims=g.chance(0.5))
    if choice == 1:
        full = [3 if a == axis else n for a, n in enumerate(shape)]
        return g.concat(y, g.parameter(full), axis=axis)
    if choice == 2:
        return g.matmul(y, g.weights_of(DType.F32, shape[-1], 5))
    if choice == 3:
        return g.pad(y, [1] * len(shape), [0] * len(shape), 2.0)
    return g.transpose(y, *reversed(range(len(shape))))
