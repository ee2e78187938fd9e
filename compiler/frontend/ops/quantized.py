"""QuantizeLinear and DequantizeLinear, and integer products: MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv.

Scales of one element get rank 0; zero points known to be 0 are dropped. Invariant: rounding follows ONNX Runtime, so
results are bit-identical where its kernels are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped
from ppuc.compiler.frontend.ops.windows import read_window, spatial_attr
from ppuc.compiler.frontend.registry import importer
from ppuc.compiler.frontend.tensors import PackedResource, dtype_of, packed_range
from ppuc.ir.graph import Value
from ppuc.ir.ops.quantized import DequantizeAttrs, IntConvAttrs, IntMatmulAttrs, QuantizeAttrs
from ppuc.ir.types import DType


def as_parameter(ctx: NodeContext, value: Value) -> Value:
    """A scale or zero point; one of a single element gets rank 0."""
    return reshaped(ctx, value, ()) if value.type.elements == 1 else value


def zero_point(ctx: NodeContext, index: int) -> Value | None:
    """Input `index` as a zero point; None if it is absent or known to be 0."""
    if not ctx.has(index):
        return None
    known = ctx.constant(index)
    return None if known is not None and not known.any() else as_parameter(ctx, ctx.operand(index))


def _axis(ctx: NodeContext, scale: Value) -> tuple[int, int]:
    """(axis, block size); both 0 for one scale."""
    axis, block = int(ctx.attr("axis", 1)), int(ctx.attr("block_size", 0))
    rank = ctx.type(0).rank
    if not scale.type.rank:
        return 0, 0
    if not -rank <= axis < rank:
        ctx.breaks("axis is out of range", got=axis, expected=f"between {-rank} and {rank - 1}")
    if scale.type.rank == 1 and not (block and rank == 1):
        return axis % rank, 0
    size, blocks = ctx.shape(0)[axis % rank], scale.type.dims[axis % rank] if scale.type.rank == rank else 0
    if not block and blocks:
        # From version 28 on, the shapes determine it.
        block = -(-size // blocks)
    return axis % rank, block


def _stored(ctx: NodeContext) -> tuple[DType, tuple[int, int] | None]:
    """The type that QuantizeLinear stores, and its range if narrower than the containing type."""
    named = int(ctx.attr("output_dtype", 0))
    if ctx.has(2):
        resource = ctx.b.known.get(ctx.operand(2).name) if isinstance(ctx.b, FoldingBuilder) else None
        return ctx.dtype(2), resource.range if isinstance(resource, PackedResource) else None
    if (narrow := packed_range(named)) is not None:
        return DType.I8 if narrow[0] < 0 else DType.U8, narrow
    return (dtype_of(named, ctx.place) if named else DType.U8), None


@importer("QuantizeLinear")
@importer("QuantizeLinear", domain="com.microsoft")
def quantize_linear(ctx: NodeContext) -> Sequence[Value]:
    scale = as_parameter(ctx, ctx.operand(1))
    axis, block = _axis(ctx, scale)
    to, narrow = _stored(ctx)
    low, high = narrow if narrow is not None else (None, None)
    precision = int(ctx.attr("precision", 0))
    if precision and dtype_of(precision, ctx.place) is not DType.F32:
        ctx.fail("quotients can only be computed in float32", got=f"precision = {precision}", expected="0 or 1")
    attrs = QuantizeAttrs(to, axis, block, bool(ctx.attr("saturate", 1)), low, high)
    zero = zero_point(ctx, 2)
    return (ctx.op("quantize", ctx.operand(0), scale, *([zero] if zero is not None else []), attrs=attrs),)


@importer("DequantizeLinear")
@importer("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(ctx: NodeContext) -> Sequence[Value]:
    scale = as_parameter(ctx, ctx.operand(1))
    axis, block = _axis(ctx, scale)
    named = int(ctx.attr("output_dtype", 0))
    known = ctx.b.known.get(ctx.operand(0).name) if isinstance(ctx.b, FoldingBuilder) else None
    to = dtype_of(named, ctx.place) if named else scale.type.dtype
    attrs = DequantizeAttrs(to, axis, block, isinstance(known, PackedResource))
    zero = zero_point(ctx, 2)
    return (ctx.op("dequantize", ctx.operand(0), scale, *([zero] if zero is not None else []), attrs=attrs),)


@importer("DynamicQuantizeLinear")
def dynamic_quantize_linear(ctx: NodeContext) -> Sequence[Value]:
    """y, scale and zero point of u8 numbers that span x and 0. A scale of 0 becomes 1."""
    return dynamically_quantized(ctx, ctx.operand(0))


def dynamically_quantized(ctx: NodeContext, x: Value) -> tuple[Value, Value, Value]:
    """(u8 like `x`, f32[] scale, u8[] zero point)"""
    from ppuc.ir.ops.composite import reduce

    axes, zero = tuple(range(x.type.rank)), ctx.b.scalar(0, DType.F32)
    low = ctx.op("min", reduce(ctx.b, "min", x, axes, keepdims=False) if axes else x, zero)
    high = ctx.op("max", reduce(ctx.b, "max", x, axes, keepdims=False) if axes else x, zero)
    span = ctx.op("div", ctx.op("sub", high, low), ctx.b.scalar(255, DType.F32))
    scale = ctx.op("select", ctx.op("eq", high, low), ctx.b.scalar(1, DType.F32), span)
    start = ctx.op("round", ctx.op("sub", zero, ctx.op("div", low, scale)))
    bound = ctx.op("min", ctx.op("max", start, zero), ctx.b.scalar(255, DType.F32))
    point = cast_to(ctx, bound, DType.U8)
    return ctx.op("quantize", x, scale, point, attrs=QuantizeAttrs(DType.U8)), scale, point


def integer_matmul(ctx: NodeContext, a: Value, b: Value, zero_a: Value | None, zero_b: Value | None) -> Value:
    """i32: the product of operands less their zero points, of any rank from 1."""
    if not a.type.rank or not b.type.rank:
        ctx.fail("matmul needs tensors of rank 1 or more", got=f"{a.type} and {b.type}")
    rows = a if a.type.rank > 1 else reshaped(ctx, a, (1, *a.type.dims))
    columns = b if b.type.rank > 1 else reshaped(ctx, b, (*b.type.dims, 1))
    zeros = [reshaped(ctx, z, (z.type.elements,)) for z in (zero_a, zero_b) if z is not None]
    attrs = IntMatmulAttrs(zero_a is not None, zero_b is not None)
    y = ctx.op("int_matmul", rows, columns, *zeros, attrs=attrs)
    shape = list(y.type.dims)
    if b.type.rank == 1:
        del shape[-1]
    if a.type.rank == 1:
        del shape[-1 if b.type.rank == 1 else -2]
    return reshaped(ctx, y, tuple(shape))


@importer("MatMulInteger")
def matmul_integer(ctx: NodeContext) -> Sequence[Value]:
    return (integer_matmul(ctx, ctx.operand(0), ctx.operand(1), zero_point(ctx, 2), zero_point(ctx, 3)),)


def _integer_conv(ctx: NodeContext, x: Value, w: Value, zero_x: Value | None, zero_w: Value | None) -> Value:
    rank = x.type.rank - 2
    if rank < 1 or w.type.rank != x.type.rank:
        ctx.fail("input and weights need a batch, a channel and spatial axes", got=f"{x.type} and {w.type}")
    kernel = spatial_attr(ctx, "kernel_shape", rank, 1) if ctx.attr("kernel_shape") is not None else w.type.dims[2:]
    if kernel != w.type.dims[2:]:
        ctx.fail("kernel_shape contradicts the weights", got=list(kernel), expected=list(w.type.dims[2:]))
    window = read_window(ctx, x.type.dims[2:], kernel)
    zeros = [z for z in (zero_x, zero_w) if z is not None]
    attrs = IntConvAttrs(
        window.strides,
        window.low,
        window.high,
        window.dilations,
        int(ctx.attr("group", 1)),
        zero_x is not None,
        zero_w is not None,
    )
    return ctx.op("int_conv", x, w, *zeros, attrs=attrs)


@importer("ConvInteger")
def conv_integer(ctx: NodeContext) -> Sequence[Value]:
    return (_integer_conv(ctx, ctx.operand(0), ctx.operand(1), zero_point(ctx, 2), zero_point(ctx, 3)),)


def requantized(ctx: NodeContext, total: Value, factor: Value, zero: Value | None, to: DType) -> Value:
    """saturate(round(total * factor) + zero) of i32 `total`."""
    number = ctx.op("round", ctx.op("mul", cast_to(ctx, total, DType.F32), factor))
    if zero is not None:
        number = ctx.op("add", number, cast_to(ctx, zero, DType.F32))
    return saturated(ctx, number, to)


def saturated(ctx: NodeContext, number: Value, to: DType) -> Value:
    """Integral f32 `number` clamped to the range of `to`."""
    limits = np.iinfo(to.numpy)
    bound = ctx.op("max", number, ctx.b.scalar(int(limits.min), DType.F32))
    return cast_to(ctx, ctx.op("min", bound, ctx.b.scalar(int(limits.max), DType.F32)), to)


def _f32(ctx: NodeContext, index: int) -> Value:
    return cast_to(ctx, as_parameter(ctx, ctx.operand(index)), DType.F32)


@importer("QLinearMatMul")
def qlinear_matmul(ctx: NodeContext) -> Sequence[Value]:
    """Scales may be per row of a and per column of b."""
    if not ctx.dtype(0).is_integer:
        ctx.fail("8-bit floats are not supported here", got=ctx.type(0), hint="use DequantizeLinear and MatMul")
    a, b = ctx.operand(0), ctx.operand(3)
    scale_a, scale_b, scale_y = _f32(ctx, 1), _f32(ctx, 4), _f32(ctx, 6)
    if scale_a.type.rank == 1:
        scale_a = reshaped(ctx, scale_a, (scale_a.type.elements, 1))
    total = integer_matmul(ctx, a, b, zero_point(ctx, 2), zero_point(ctx, 5))
    factor = ctx.op("div", ctx.op("mul", scale_a, scale_b), scale_y)
    return (requantized(ctx, total, factor, zero_point(ctx, 7), ctx.dtype(7)),)


@importer("QLinearConv")
def qlinear_conv(ctx: NodeContext) -> Sequence[Value]:
    """The bias is i32, of scale x_scale * w_scale."""
    scale_x, scale_w, scale_y = _f32(ctx, 1), _f32(ctx, 4), _f32(ctx, 6)
    total = _integer_conv(ctx, ctx.operand(0), ctx.operand(3), zero_point(ctx, 2), zero_point(ctx, 5))
    by_output = (1, total.type.dims[1], *(1,) * (total.type.rank - 2))
    if ctx.has(8):
        if ctx.type(8).elements != total.type.dims[1]:
            ctx.fail("the bias needs one number for each output channel", got=ctx.type(8))
        total = ctx.op("add", total, reshaped(ctx, ctx.operand(8), by_output))
    factor = ctx.op("div", ctx.op("mul", scale_x, scale_w), scale_y)
    if factor.type.rank:
        if math.prod(by_output) != factor.type.elements:
            ctx.fail("w_scale needs one number, or one for each output channel", got=ctx.type(4))
        factor = reshaped(ctx, factor, by_output)
    return (requantized(ctx, total, factor, zero_point(ctx, 7), ctx.dtype(7)),)
