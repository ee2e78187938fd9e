"""Indices of MaxPool, MaxUnpool, and Col2Im.

Invariant: indices count elements of the whole unpooled tensor, as in ONNX; among equal maxima, the first one counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped
from ppuc.compiler.frontend.ops.windows import Window, explicit_pads, spatial_attr
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.movement import PadAttrs, ScatterNdAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.ops.window import lowest
from ppuc.ir.types import DType

MOST_TAPS = 4096
"""Taps of a kernel that are compared with the maximum one by one."""


def max_indices(ctx: NodeContext, x: Value, best: Value, window: Window) -> Value:
    """i64 like `best`, the maxima of `x` under `window`: the first tap that equals the maximum, selected from the last
    to the first."""
    window = window.touching(x.type.dims[2:])
    rank, column_major = len(window.kernel), bool(ctx.attr("storage_order", 0))
    if (taps := math.prod(window.kernel)) > MOST_TAPS:
        ctx.fail(
            "Indices of so large a kernel are not supported", got=f"{taps:,} taps", expected=f"at most {MOST_TAPS:,}"
        )
    edges = [(0, 0, *side) for side in (window.low, window.high)]
    padded = x
    if any(edges[0] + edges[1]):
        fill = PadAttrs(tuple(edges[0]), tuple(edges[1]), (0,) * (rank + 2), lowest(x.type.dtype))
        padded = ctx.op("pad", x, attrs=fill)
    result: Value | None = None
    for tap in reversed(list(itertools.product(*map(range, window.kernel)))):
        first = (0, 0, *(t * d for t, d in zip(tap, window.dilations, strict=True)))
        cut = SliceAttrs(first, best.type.dims, (1, 1, *window.strides))
        index, inside = _tap_elements(x.type.dims, best.type.dims, window, tap, column_major)
        if not inside.any():
            continue
        place = ctx.b.const(index, "place")
        if result is None:
            result = ctx.op("add", place, ctx.b.const(np.zeros(best.type.dims, np.int64), "zeros"))
        hit = ctx.op("eq", ctx.op("slice", padded, attrs=cut), best)
        if not inside.all():
            hit = ctx.op("and", hit, ctx.b.const(inside, "inside"))
        result = ctx.op("select", hit, place, result)
    if result is None:
        ctx.fail("no window touches the input", got=x.type)
    return result


def _tap_elements(
    dims: Sequence[int], results: Sequence[int], window: Window, tap: Sequence[int], column_major: bool
) -> tuple[np.ndarray, np.ndarray]:
    """i64[N, C, *results]: the index of the element of x that each window's tap reads; bool[*results]: whether it
    exists."""
    space, rank = dims[2:], len(tap)
    images = np.arange(math.prod(dims[:2])).reshape(*dims[:2], *(1,) * rank) * math.prod(space)
    at, inside = np.zeros((1,) * rank, np.int64), np.ones((1,) * rank, np.bool_)
    steps = [math.prod(space[:i]) if column_major else math.prod(space[i + 1 :]) for i in range(rank)]
    for i in range(rank):
        along = np.arange(results[2 + i]) * window.strides[i] - window.low[i] + tap[i] * window.dilations[i]
        along = along.reshape([-1 if k == i else 1 for k in range(rank)])
        at, inside = at + along * steps[i], inside & (along >= 0) & (along < space[i])
    return np.asarray(images + at, np.int64), inside


@importer("MaxUnpool")
def max_unpool(ctx: NodeContext) -> Sequence[Value]:
    """Scatters elements by their indices into zeros of the unpooled shape."""
    x, rank = ctx.operand(0), ctx.type(0).rank - 2
    if rank < 1 or ctx.shape(1) != x.type.dims:
        ctx.fail("values and indices need one shape with spatial axes", got=f"{x.type} and {ctx.type(1)}")
    kernel, strides = (spatial_attr(ctx, n, rank, 1) for n in ("kernel_shape", "strides"))
    low, high = explicit_pads(ctx, rank)
    inferred = [
        (n - 1) * s + k - a - z for n, s, k, a, z in zip(x.type.dims[2:], strides, kernel, low, high, strict=True)
    ]
    shape = tuple(int(d) for d in ctx.need_constant(2, "the shape")) if ctx.has(2) else (*x.type.dims[:2], *inferred)
    elements, count = math.prod(shape), x.type.elements
    zeros = ctx.b.const(np.zeros((elements, 1), x.type.dtype.numpy), "zeros")
    indices = reshaped(ctx, cast_to(ctx, ctx.operand(1), DType.I64), (count, 1))
    spread = ctx.op("scatter_nd", zeros, indices, reshaped(ctx, x, (count, 1)), attrs=ScatterNdAttrs())
    return (reshaped(ctx, spread, shape),)


@importer("Col2Im")
def col2im(ctx: NodeContext) -> Sequence[Value]:
    """Each tap's column, spread by the strides and shifted into place; overlapping blocks add up."""
    image, block = (tuple(int(d) for d in ctx.need_constant(i, n)) for i, n in ((1, "image_shape"), (2, "block_shape")))
    rank, x = len(image), ctx.operand(0)
    strides, dilations = (spatial_attr(ctx, n, rank, 1) for n in ("strides", "dilations"))
    low, high = explicit_pads(ctx, rank)
    steps = tuple(
        (n + a + z - (k - 1) * d - 1) // s + 1
        for n, k, s, d, a, z in zip(image, block, strides, dilations, low, high, strict=True)
    )
    taps = math.prod(block)
    if x.type.rank != 3 or x.type.dims[1] % taps or x.type.dims[2] != math.prod(steps):
        ctx.fail("the columns do not fit image and block", got=x.type, expected=f"[N, C * {taps}, {math.prod(steps)}]")
    batch, channels = x.type.dims[0], x.type.dims[1] // taps
    columns, total = reshaped(ctx, x, (batch, channels, taps, *steps)), None
    for k, tap in enumerate(itertools.product(*map(range, block))):
        starts = (0, 0, k, *(0,) * rank)
        cut = SliceAttrs(starts, (batch, channels, 1, *steps), (1,) * (rank + 3))
        one = reshaped(ctx, ctx.op("slice", columns, attrs=cut), (batch, channels, *steps))
        before = tuple(t * d - a for t, d, a in zip(tap, dilations, low, strict=True))
        after = tuple(n - b - (m - 1) * s - 1 for n, b, m, s in zip(image, before, steps, strides, strict=True))
        spread = PadAttrs((0, 0, *before), (0, 0, *after), (0, 0, *(s - 1 for s in strides)))
        placed = ctx.op("pad", one, attrs=spread)
        total = placed if total is None else ctx.op("add", total, placed)
    assert total is not None
    return (total,)
