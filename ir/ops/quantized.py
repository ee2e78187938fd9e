"""Affine quantization, and products of quantized tensors.

quantize: round(x / scale) + zero point, rounded half to even and saturated; dequantize: (x - zero point) * scale. Scale
and zero point have the same shape: [] for the whole tensor, [d] for slices along `axis`, or the shape of x with `axis`
divided by `block`.

Products are contractions of the stored integers in i32, minus the zero points' contribution, which is constant for
constant weights. Invariant: i32 sums are exact, so all forms of a product give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.elementwise import FLOATS, CastAttrs, convert
from ppuc.ir.ops.view import ExpandAttrs, SliceAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class QuantizeAttrs(Attrs):
    """`to` is the stored type, an integer of up to 16 bits or an 8-bit float. `axis` (non-negative) matters if scales
    differ along it; `block` consecutive elements share one (0: no blocks). `low`, `high`: the range if narrower than
    that of `to`, as for 4-bit numbers stored in bytes."""

    to: DType
    axis: int = 0
    block: int = 0
    saturate: bool = True
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class DequantizeAttrs(Attrs):
    """`to` is the float type of the result; `axis` and `block` as for quantize. `four`: stored integers have four bits,
    from 0 or -8 on."""

    to: DType
    axis: int = 0
    block: int = 0
    four: bool = False


def _check(name: str, attrs: Any, types: Sequence[TensorType], stored: DType, real: DType) -> None:
    x, scale = types[:2]
    if not 2 <= len(types) <= 3 or real not in FLOATS or scale.dtype not in FLOATS:
        raise ValueError(f"{name} takes x, float scales and, if any, zero points (got {', '.join(map(str, types))})")
    if not (stored.is_integer or (stored.is_float and stored.bits <= 8)):
        raise ValueError(f"{name} is not defined for {stored}")
    if len(types) == 3 and (types[2].dims != scale.dims or types[2].dtype is not stored):
        raise ValueError(f"zero points should be {TensorType(stored, scale.shape)} (got {types[2]})")
    wanted = scale_shape(x.dims, attrs.axis, attrs.block) if scale.rank else ()
    if scale.dims != wanted:
        raise ValueError(f"scales of {x} along axis {attrs.axis} should have shape {list(wanted)} (got {scale})")


def scale_shape(dims: Sequence[int], axis: int, block: int) -> tuple[int, ...]:
    """The shape of scales that differ along `axis`. Raises ValueError for an invalid axis."""
    if not 0 <= axis < len(dims):
        raise ValueError(f"axis {axis} is not an axis of a tensor of shape {list(dims)}")
    if not block:
        return (dims[axis],)
    return (*dims[:axis], -(-dims[axis] // block), *dims[axis + 1 :])


def _infer_quantize(attrs: QuantizeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    _check("quantize", attrs, types, attrs.to, types[0].dtype)
    return (types[0].with_dtype(attrs.to),)


def _infer_dequantize(attrs: DequantizeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    _check("dequantize", attrs, types, types[0].dtype, attrs.to)
    return (types[0].with_dtype(attrs.to),)


def _spread_array(parameter: np.ndarray, attrs: Any, dims: Sequence[int]) -> np.ndarray:
    """`parameter` in a shape that broadcasts to `dims`."""
    if not parameter.ndim:
        return parameter
    if attrs.block:
        return np.repeat(parameter, attrs.block, attrs.axis)[tuple(slice(d) for d in dims)]
    return parameter.reshape([-1 if i == attrs.axis else 1 for i in range(len(dims))])


def _spread(b: Builder, parameter: Value, attrs: Any, dims: Sequence[int]) -> Value:
    """The graph version of `_spread_array`."""
    if not parameter.type.rank:
        return parameter
    if not attrs.block:
        return c.reshape(b, parameter, tuple(d if i == attrs.axis else 1 for i, d in enumerate(dims)))
    at, blocks = attrs.axis, parameter.type.dims[attrs.axis]
    apart = c.reshape(b, parameter, (*dims[:at], blocks, 1, *dims[at + 1 :]))
    wide = b("expand", apart, attrs=ExpandAttrs((*dims[:at], blocks, attrs.block, *dims[at + 1 :])))
    whole = c.reshape(b, wide, (*dims[:at], blocks * attrs.block, *dims[at + 1 :]))
    if whole.type.dims == tuple(dims):
        return whole
    return b("slice", whole, attrs=SliceAttrs((0,) * len(dims), tuple(dims), (1,) * len(dims)))


def integer_range(attrs: QuantizeAttrs) -> tuple[int, int]:
    """The smallest and the largest stored number."""
    limits = np.iinfo(attrs.to.numpy)
    return (limits.min if attrs.low is None else attrs.low, limits.max if attrs.high is None else attrs.high)


def _quantize_reference(
    attrs: QuantizeAttrs, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        number = x.astype(np.float32) / _spread_array(scale.astype(np.float32), attrs, x.shape)
        if attrs.to.is_float:
            return (convert(np.asarray(number), attrs.to, attrs.saturate),)
        number = np.rint(number)
        if zero is not None:
            number = number + _spread_array(zero.astype(np.float32), attrs, x.shape)
        return (np.clip(number, *integer_range(attrs)).astype(attrs.to.numpy),)


def _quantize(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, QuantizeAttrs)
    x, scale = (c.cast(b, v, DType.F32) for v in op.operands[:2])
    number = b("div", x, _spread(b, scale, attrs, x.type.dims))
    if attrs.to.is_float:
        return (b("cast", number, attrs=CastAttrs(attrs.to, attrs.saturate)),)
    number = b("round", number)
    if len(op.operands) == 3:
        zero = c.cast(b, op.operands[2], DType.F32)
        number = b("add", number, _spread(b, zero, attrs, x.type.dims))
    low, high = integer_range(attrs)
    bound = b("min", b("max", number, b.scalar(low, DType.F32)), b.scalar(high, DType.F32))
    return (c.cast(b, bound, attrs.to),)


def _dequantize_reference(
    attrs: DequantizeAttrs, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    number = x
    if zero is not None and DType.of(x.dtype).is_integer:
        number = x.astype(np.int64) - _spread_array(zero.astype(np.int64), attrs, x.shape)
    wide = number.astype(np.float32) * _spread_array(scale.astype(np.float32), attrs, x.shape)
    return (convert(np.asarray(wide), attrs.to),)


def _dequantize(b: Builder, op: Op) -> Sequence[Value]:
    """Stored numbers of up to 16 bits are exact in f32, and so are their differences."""
    attrs = op.attrs
    assert isinstance(attrs, DequantizeAttrs)
    x, scale = op.operands[0], c.cast(b, op.operands[1], DType.F32)
    number = x if x.type.dtype.bits > 16 else c.cast(b, x, DType.F32)
    if len(op.operands) == 3 and x.type.dtype.is_integer:
        zero = c.cast(b, op.operands[2], number.type.dtype)
        number = b("sub", number, _spread(b, zero, attrs, x.type.dims))
    number = c.cast(b, number, DType.F32)
    return (c.cast(b, b("mul", number, _spread(b, scale, attrs, x.type.dims)), attrs.to),)


register(
    OpDef(
        name="quantize",
        formula="result = saturate(round(x / scale) + zero)",
        kind=Kind.COMPOSITE,
        operands="x, scale, zero?",
        attrs=QuantizeAttrs,
        infer=_infer_quantize,
        reference=_quantize_reference,
        decompose=_quantize,
    )
)
register(
    OpDef(
        name="dequantize",
        formula="result = (x - zero) * scale",
        kind=Kind.COMPOSITE,
        operands="x, scale, zero?",
        attrs=DequantizeAttrs,
        infer=_infer_dequantize,
        reference=_dequantize_reference,
        decompose=_dequantize,
    )
)


@dataclass(frozen=True, slots=True)
class IntMatmulAttrs(Attrs):
    """`zero_a`, `zero_b`: whether the operand has zero points."""

    zero_a: bool = False
    zero_b: bool = False


@dataclass(frozen=True, slots=True)
class IntConvAttrs(Attrs):
    """As for conv in nchw; `zero_x`, `zero_w`: whether the operand has zero points. Padding has the value of the zero
    point."""

    strides: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    zero_x: bool = False
    zero_w: bool = False

    def plain(self) -> ConvAttrs:
        """The convolution of the stored integers."""
        return ConvAttrs(self.strides, self.low, self.high, self.dilations, self.groups, out=DType.I32)


def _zeros(
    name: str, types: Sequence[TensorType], flags: tuple[bool, bool]
) -> tuple[TensorType | None, TensorType | None]:
    """The zero points of both operands."""
    if len(types) != 2 + sum(flags) or any(t.dtype not in (DType.I8, DType.U8) for t in types):
        raise ValueError(f"{name} takes two 8-bit tensors and their zero points (got {', '.join(map(str, types))})")
    rest = iter(types[2:])
    first, second = (next(rest) if flag else None for flag in flags)
    for operand, zero in ((types[0], first), (types[1], second)):
        if zero is not None and zero.dtype is not operand.dtype:
            raise ValueError(f"zero points {zero} and {operand} differ in element type")
    return first, second


def _infer_int_matmul(attrs: IntMatmulAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    from ppuc.ir.ops.base import OPS

    zero_a, zero_b = _zeros("int_matmul", types, (attrs.zero_a, attrs.zero_b))
    (result,) = OPS["matmul"].infer(MatmulAttrs(out=DType.I32), types[:2])
    rows, columns = result.dims[-2:]
    for zero, sizes in ((zero_a, (1, rows)), (zero_b, (1, columns))):
        if zero is not None and (zero.rank > 1 or zero.elements not in sizes):
            raise ValueError(f"zero points should be one number or one for each of {sizes[1]} slices (got {zero})")
    return (result,)


def _infer_int_conv(attrs: IntConvAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    from ppuc.ir.ops.base import OPS

    zero_x, zero_w = _zeros("int_conv", types, (attrs.zero_x, attrs.zero_w))
    if (zero_x is not None and zero_x.elements != 1) or (zero_w and zero_w.elements not in (1, types[1].dims[0])):
        raise ValueError(f"x has one zero point, w one or one per output channel (got {zero_x} and {zero_w})")
    return OPS["conv"].infer(attrs.plain(), types[:2])


def _int_matmul_reference(attrs: IntMatmulAttrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    a, w = (x.astype(np.int64) for x in arrays[:2])
    zeros = [z.astype(np.int64) for z in arrays[2:]]
    if attrs.zero_a:
        a = a - zeros[0].reshape(-1, 1)
    if attrs.zero_b:
        w = w - zeros[-1].reshape(1, -1)
    return (np.matmul(a, w).astype(np.int32),)


def _int_conv_reference(attrs: IntConvAttrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compute in f64, which holds every sum of 17-bit products exactly."""
    from ppuc.ir.ops.base import OPS

    x, w = (a.astype(np.float64) for a in arrays[:2])
    zeros = [z.astype(np.float64) for z in arrays[2:]]
    if attrs.zero_x:
        x = x - zeros[0].reshape(())
    if attrs.zero_w:
        w = w - zeros[-1].reshape(-1, *(1,) * (w.ndim - 1))
    convolve = OPS["conv"].reference
    assert convolve is not None
    (total,) = convolve(replace(attrs.plain(), out=None), x, w)
    return (total.astype(np.int64).astype(np.int32),)


def _split_zeros(b: Builder, op: Op, flags: tuple[bool, bool]) -> tuple[Value | None, Value | None]:
    rest = iter(op.operands[2:])
    first, second = (c.cast(b, next(rest), DType.I32) if flag else None for flag in flags)
    return first, second


def _int_matmul(b: Builder, op: Op) -> Sequence[Value]:
    """(a - za)(w - zw) = a w - za (sum of w - K zw) - zw (sum of a)."""
    attrs = op.attrs
    assert isinstance(attrs, IntMatmulAttrs)
    a, w = op.operands[:2]
    zero_a, zero_w = _split_zeros(b, op, (attrs.zero_a, attrs.zero_b))
    total = b("matmul", a, w, attrs=MatmulAttrs(out=DType.I32))
    if zero_w is not None:
        zero_w = c.reshape(b, zero_w, (1, zero_w.type.elements))
        rows = c.reduce(b, "sum", c.cast(b, a, DType.I32), (a.type.rank - 1,))
        total = b("sub", total, b("mul", rows, zero_w))
    if zero_a is not None:
        columns = c.reduce(b, "sum", c.cast(b, w, DType.I32), (w.type.rank - 2,))
        if zero_w is not None:
            columns = b("sub", columns, b("mul", zero_w, b.scalar(a.type.dims[-1], DType.I32)))
        total = b("sub", total, b("mul", c.reshape(b, zero_a, (zero_a.type.elements, 1)), columns))
    return (total,)


def _int_conv(b: Builder, op: Op) -> Sequence[Value]:
    """conv(x - zx, w - zw) = conv(x, w) - zx conv(1, w - zw) - zw conv(x, 1), where the image of ones has the extent of
    x."""
    attrs = op.attrs
    assert isinstance(attrs, IntConvAttrs)
    x, w = op.operands[:2]
    zero_x, zero_w = _split_zeros(b, op, (attrs.zero_x, attrs.zero_w))
    plain, space = attrs.plain(), op.result.type.dims[2:]
    total = b("conv", x, w, attrs=plain)
    if zero_w is not None:
        zero_w = _by_output(b, zero_w, op.result.type.dims)
        total = b("sub", total, b("mul", _window_sums(b, x, w, attrs, op.result.type.dims), zero_w))
    if zero_x is None:
        return (total,)
    if any(attrs.low + attrs.high):
        ones = b.const(np.ones((1, *x.type.dims[1:]), np.int8), "ones")
        share = b("conv", ones, w, attrs=plain)
        count = _window_sums(b, ones, w, attrs, (1, op.result.type.dims[1], *space)) if zero_w is not None else None
    else:
        share = c.reduce(b, "sum", c.cast(b, w, DType.I32), tuple(range(1, w.type.rank)), keepdims=False)
        share = _by_output(b, share, op.result.type.dims)
        count = b.scalar(math.prod(w.type.dims[1:]), DType.I32) if zero_w is not None else None
    if zero_w is not None and count is not None:
        share = b("sub", share, b("mul", count, zero_w))
    return (b("sub", total, b("mul", share, c.reshape(b, zero_x, ()))),)


def _by_output(b: Builder, parameter: Value, dims: Sequence[int]) -> Value:
    """One number, or one per output channel, broadcastable to [N, O, ...]."""
    return c.reshape(b, parameter, (1, parameter.type.elements, *(1,) * (len(dims) - 2)))


def _window_sums(b: Builder, x: Value, w: Value, attrs: IntConvAttrs, dims: Sequence[int]) -> Value:
    """i32[N, O, ...]: the sum of each window of `x`, repeated for the outputs of its group."""
    ones = b.const(np.ones((attrs.groups, *w.type.dims[1:]), np.int8), "ones")
    sums = b("conv", x, ones, attrs=attrs.plain())
    batch, space = x.type.dims[0], dims[2:]
    apart = c.reshape(b, sums, (batch, attrs.groups, 1, *space))
    wide = b("expand", apart, attrs=ExpandAttrs((batch, attrs.groups, dims[1] // attrs.groups, *space)))
    return c.reshape(b, wide, (batch, dims[1], *space))


register(
    OpDef(
        name="int_matmul",
        formula="result = (a - zero_a) . (b - zero_b) in i32",
        kind=Kind.COMPOSITE,
        operands="a, b, zero_a?, zero_b?",
        attrs=IntMatmulAttrs,
        infer=_infer_int_matmul,
        reference=_int_matmul_reference,
        decompose=_int_matmul,
    )
)
register(
    OpDef(
        name="int_conv",
        formula="result = conv(x - zero_x, w - zero_w) in i32",
        kind=Kind.COMPOSITE,
        operands="x, w, zero_x?, zero_w?",
        attrs=IntConvAttrs,
        infer=_infer_int_conv,
        reference=_int_conv_reference,
        decompose=_int_conv,
    )
)
