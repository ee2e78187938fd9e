"""Importers of reductions, arg-reductions and running sums and products.

Invariant: axes are resolved here (attribute, input, none = all), sorted and non-negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.composite import cast, widen
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, CumsumAttrs, ReduceAttrs
from ppuc.ir.types import DType

_KINDS = {"ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod", "ReduceSum": "sum"}


def _axes(ctx: NodeContext) -> tuple[int, ...]:
    """The axes to reduce; () when the node asks for none."""
    rank = ctx.type(0).rank
    axes = ctx.ints("axes", 1)
    noop = bool(ctx.attr("noop_with_empty_axes", 0))
    if not axes:
        return () if noop else tuple(range(rank))
    for axis in axes:
        if not -rank <= axis < rank:
            ctx.breaks("axis is out of range", got=axis, expected=f"between {-rank} and {rank - 1}")
    return tuple(sorted({a % rank for a in axes}))


def _reduce(ctx: NodeContext, kind: str, x: Value, axes: Sequence[int], keepdims: bool | None = None) -> Value:
    keep = bool(ctx.attr("keepdims", 1)) if keepdims is None else keepdims
    if not axes:
        return x
    return ctx.op("reduce", x, attrs=ReduceAttrs(kind, tuple(axes), keep))


@importer(*_KINDS)
def import_reduce(ctx: NodeContext) -> Sequence[Value]:
    return (_reduce(ctx, _KINDS[ctx.op_type], ctx.operand(0), _axes(ctx)),)


@importer("ReduceMean")
def import_reduce_mean(ctx: NodeContext) -> Sequence[Value]:
    """The mean of no elements, which ONNX leaves undefined, is 0, as in ONNX Runtime."""
    x, axes = ctx.operand(0), _axes(ctx)
    count = math.prod(x.type.dims[a] for a in axes)
    if not count:
        return (_reduce(ctx, "sum", x, axes),)
    if x.type.dtype.is_integer:
        return (ctx.op("div", _reduce(ctx, "sum", x, axes), ctx.scalar_like(count, x)),)
    total = _reduce(ctx, "sum", widen(ctx.b, x), axes)
    return (cast(ctx.b, ctx.op("mul", total, ctx.scalar_like(1.0 / count, total)), x.type.dtype),)


def _l1(ctx: NodeContext, x: Value, axes: Sequence[int]) -> Value:
    return _reduce(ctx, "sum", ctx.op("abs", x), axes)


def _sum_square(ctx: NodeContext, x: Value, axes: Sequence[int]) -> Value:
    return _reduce(ctx, "sum", ctx.op("mul", x, x), axes)


def _l2(ctx: NodeContext, x: Value, axes: Sequence[int]) -> Value:
    return ctx.op("sqrt", _sum_square(ctx, x, axes))


def _log_sum(ctx: NodeContext, x: Value, axes: Sequence[int]) -> Value:
    return ctx.op("log", _reduce(ctx, "sum", x, axes))


def _log_sum_exp(ctx: NodeContext, x: Value, axes: Sequence[int]) -> Value:
    """top + ln(sum of e**(x - top)), where top is the maximum, kept finite so that inf - inf never happens."""
    if not axes:
        return _reduce(ctx, "max", x, axes)
    limits = np.finfo(x.type.dtype.numpy)

    def top(keepdims: bool | None) -> Value:
        highest = _reduce(ctx, "max", x, axes, keepdims)
        finite = ctx.op("max", highest, ctx.scalar_like(float(limits.min), x))
        return ctx.op("min", finite, ctx.scalar_like(float(limits.max), x))

    total = _reduce(ctx, "sum", ctx.op("exp", ctx.op("sub", x, top(True))), axes)
    return ctx.op("add", ctx.op("log", total), top(None))


_FORMULAS: dict[str, tuple[Callable[[NodeContext, Value, Sequence[int]], Value], bool]] = {
    "ReduceL1": (_l1, True),
    "ReduceL2": (_l2, False),
    "ReduceLogSum": (_log_sum, False),
    "ReduceLogSumExp": (_log_sum_exp, False),
    "ReduceSumSquare": (_sum_square, True),
}
"""ONNX op -> (formula, whether it is exact in integers; the others go through f64)."""


@importer(*_FORMULAS)
def import_reduce_formula(ctx: NodeContext) -> Sequence[Value]:
    x, (formula, exact) = ctx.operand(0), _FORMULAS[ctx.op_type]
    in_f64 = x.type.dtype.is_integer and not exact
    work = cast(ctx.b, x, DType.F64) if in_f64 else widen(ctx.b, x)
    return (cast(ctx.b, formula(ctx, work, _axes(ctx)), x.type.dtype),)


@importer("ArgMax", "ArgMin")
def import_argreduce(ctx: NodeContext) -> Sequence[Value]:
    axis = ctx.axis(0, ctx.type(0).rank)
    keepdims, last = bool(ctx.attr("keepdims", 1)), bool(ctx.attr("select_last_index", 0))
    kind = "max" if ctx.op_type == "ArgMax" else "min"
    return (ctx.op("argreduce", ctx.operand(0), attrs=ArgreduceAttrs(kind, axis, keepdims, last)),)


def _scan_axis(ctx: NodeContext) -> int:
    rank = ctx.type(0).rank
    axis = int(ctx.need_constant(1, "axis").reshape(-1)[0])
    if not -rank <= axis < rank:
        ctx.breaks("axis is out of range", got=axis, expected=f"between {-rank} and {rank - 1}")
    return axis % rank


@importer("CumSum")
def import_cumsum(ctx: NodeContext) -> Sequence[Value]:
    attrs = CumsumAttrs(_scan_axis(ctx), bool(ctx.attr("exclusive", 0)), bool(ctx.attr("reverse", 0)))
    return (ctx.op("cumsum", ctx.operand(0), attrs=attrs),)


@importer("CumProd")
def import_cumprod(ctx: NodeContext) -> Sequence[Value]:
    """Doubling: after step k each element is the product of 2**k neighbours (Hillis and Steele, 1986)."""
    x, axis = ctx.operand(0), _scan_axis(ctx)
    reverse, size = bool(ctx.attr("reverse", 0)), x.type.dims[axis]

    def shifted(value: Value, distance: int) -> Value:
        by = tuple(distance if i == axis else 0 for i in range(x.type.rank))
        back = tuple(-d for d in by)
        none = (0,) * x.type.rank
        low, high = (back, by) if reverse else (by, back)
        return ctx.op("pad", value, attrs=PadAttrs(low, high, none, 1.0))

    product = shifted(x, 1) if bool(ctx.attr("exclusive", 0)) and size else x
    distance = 1
    while distance < size:
        product = ctx.op("mul", product, shifted(product, distance))
        distance *= 2
    return (product,)
