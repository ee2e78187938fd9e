"""MaxPool, AveragePool, LpPool and their global forms.

Sums of f16 and bf16 are taken in f32 and rounded once, after the division. Invariant: ceil_mode becomes padding at the
end, and counts never include elements that only ceil_mode added.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.unpooling import max_indices
from ppuc.compiler.frontend.ops.windows import Window, auto_pad, read_window, spatial_attr
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType


def _space(ctx: NodeContext) -> tuple[int, ...]:
    """Spatial sizes of input 0."""
    shape = ctx.shape(0)
    if len(shape) < 3:
        ctx.fail("the input needs a batch, a channel and spatial axes", got=ctx.type(0), expected="rank 3 or more")
    return shape[2:]


def _window(ctx: NodeContext) -> tuple[Window, tuple[int, ...]]:
    """The pool's window with ceil_mode's extra elements in `high`, and their number on each axis. ceil_mode counts with
    auto_pad VALID too, as in ONNX Runtime, but not with SAME."""
    space = _space(ctx)
    if ctx.attr("kernel_shape") is None:
        ctx.fail("kernel_shape is missing")
    window = read_window(ctx, space, spatial_attr(ctx, "kernel_shape", len(space), 1))
    extra = [0] * len(space)
    if ctx.attr("ceil_mode", 0) and auto_pad(ctx) in ("NOTSET", "VALID"):
        for i, size in enumerate(space):
            stride, low = window.strides[i], window.low[i]
            beyond = size + low + window.high[i] - window.extent(i)
            results = -(-beyond // stride) + 1
            if (results - 1) * stride >= size + low:  # the last window would start in the padding after the end
                results -= 1
            extra[i] = max((results - 1) * stride - beyond, 0)
    high = tuple(h + e for h, e in zip(window.high, extra, strict=True))
    return Window(window.kernel, window.strides, window.dilations, window.low, high), tuple(extra)


def _pool(ctx: NodeContext, kind: str, x: Value, window: Window) -> Value:
    window = window.touching(x.type.dims[2:])
    attrs = PoolAttrs(kind, window.kernel, window.strides, window.low, window.high, window.dilations)
    return ctx.op("pool", x, attrs=attrs)


def _widened(ctx: NodeContext) -> Value:
    """Input 0, in f32 if it is narrower."""
    x = ctx.operand(0)
    return ctx.op("cast", x, attrs=CastAttrs(DType.F32)) if x.type.dtype in (DType.F16, DType.BF16) else x


def _narrowed(ctx: NodeContext, y: Value) -> Sequence[Value]:
    """`y` in the dtype of input 0."""
    return (y if y.type.dtype is ctx.dtype(0) else ctx.op("cast", y, attrs=CastAttrs(ctx.dtype(0))),)


@importer("MaxPool")
def max_pool(ctx: NodeContext) -> Sequence[Value]:
    """Y and, if the node has it, Indices."""
    window, _ = _window(ctx)
    y = _pool(ctx, "max", ctx.operand(0), window)
    if len(ctx.outputs) < 2 or not ctx.outputs[1]:
        ctx.attr("storage_order")  # orders Indices only
        return (y,)
    return (y, max_indices(ctx, ctx.operand(0), y, window))


def _tap_counts(ctx: NodeContext, window: Window, extra: Sequence[int], padded: bool) -> np.ndarray:
    """f64[1, 1, *results]: number of taps of each window in the input, or (`padded`) in the padded input."""
    axes = []
    for i, (size, results) in enumerate(zip(_space(ctx), window.results(_space(ctx)), strict=True)):
        low, step = window.low[i], window.dilations[i]
        at = np.arange(results) * window.strides[i]
        first, end = (0, low + size + window.high[i] - extra[i]) if padded else (low, low + size)
        before_first, before_end = (np.clip(-(-(edge - at) // step), 0, window.kernel[i]) for edge in (first, end))
        axes.append((before_end - before_first).astype(np.float64))
    counts: np.ndarray = functools.reduce(np.multiply.outer, axes)
    return counts[None, None]


@importer("AveragePool")
def average_pool(ctx: NodeContext) -> Sequence[Value]:
    window, extra = _window(ctx)
    x = _widened(ctx)
    # A window entirely in the padding has a sum of zero, so any divisor works.
    counts = np.maximum(_tap_counts(ctx, window, extra, bool(ctx.attr("count_include_pad", 0))), 1)
    share = 1 / (counts if np.ptp(counts) else counts.reshape(-1)[0])
    total = _pool(ctx, "sum", x, window)
    return _narrowed(ctx, ctx.op("mul", total, ctx.b.const(share.astype(x.type.dtype.numpy), "share")))


def _power(ctx: NodeContext, x: Value, p: int) -> Value:
    """|x| ** p"""
    if p == 2:
        return ctx.op("mul", x, x)
    size = ctx.op("abs", x)
    return size if p == 1 else ctx.op("pow", size, ctx.scalar_like(p, x))


def _root(ctx: NodeContext, y: Value, p: int) -> Value:
    """y ** (1 / p)"""
    if p == 2:
        return ctx.op("sqrt", y)
    return y if p == 1 else ctx.op("pow", y, ctx.scalar_like(1 / p, y))


def _norm_order(ctx: NodeContext) -> int:
    p = int(ctx.attr("p", 2))
    if p < 1:
        ctx.fail("p must be positive", got=p)
    return p


@importer("LpPool")
def lp_pool(ctx: NodeContext) -> Sequence[Value]:
    window, _ = _window(ctx)
    p = _norm_order(ctx)
    return _narrowed(ctx, _root(ctx, _pool(ctx, "sum", _power(ctx, _widened(ctx), p), window), p))


def _reduced(ctx: NodeContext, kind: str, x: Value) -> Value:
    """`x` reduced over its spatial axes, which stay as ones."""
    axes = tuple(range(2, 2 + len(_space(ctx))))
    return ctx.op("reduce", x, attrs=ReduceAttrs(kind=kind, axes=axes, keepdims=True))


@importer("GlobalMaxPool")
def global_max_pool(ctx: NodeContext) -> Sequence[Value]:
    return (_reduced(ctx, "max", ctx.operand(0)),)


@importer("GlobalAveragePool")
def global_average_pool(ctx: NodeContext) -> Sequence[Value]:
    total = _reduced(ctx, "sum", _widened(ctx))
    return _narrowed(ctx, ctx.op("mul", total, ctx.scalar_like(1 / np.prod(_space(ctx)), total)))


@importer("GlobalLpPool")
def global_lp_pool(ctx: NodeContext) -> Sequence[Value]:
    p = _norm_order(ctx)
    return _narrowed(ctx, _root(ctx, _reduced(ctx, "sum", _power(ctx, _widened(ctx), p)), p))
