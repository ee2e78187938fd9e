"""Computes products of dequantized tensors (QuantizeLinear and DequantizeLinear in the file) on the stored numbers.

    matmul(dequantize(x, s), dequantize(w, t))   ->   matmul(x, w) * (s * t)          8-bit floats, f32 sums
                                                 ->   int_matmul(x, w, zeros) * (s * t)   8-bit integers, i32 sums
    matmul(x, dequantize(w, t)), w 8-bit floats  ->   matmul(x, cast(w)) * t          widened as it is loaded

The right operand may be constant weights or computed: weights that are graph inputs, keys and values.

Invariant: scales are factored out of a sum only if they are the same for all of its terms: one for the left operand,
one for the right operand or for each output channel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ppuc.compiler.passes.rewriter import Walk
from ppuc.compiler.passes.rules.views import reshaped, transposed
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.quantized import DequantizeAttrs, IntConvAttrs, IntMatmulAttrs
from ppuc.ir.types import DType

_BYTES = (DType.I8, DType.U8)


def quantized_product(w: Walk, op: Op) -> Value | None:
    """A product of dequantized operands -> a product of the stored numbers, scaled."""
    if op.result.type.dtype is not DType.F32:
        return None
    weights, is_transposed = _weights(w, op)
    if weights is None:
        return None
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs | ConvAttrs)
    scale = _output_scale(w, op, weights, is_transposed)
    if scale is None:
        return None
    stored = weights.operands[0]
    x = w.producer(op.operands[0], "dequantize")
    if x is None or not _one_scale(x):
        if op.name != "matmul" or not stored.type.dtype.is_float:
            return None
        w.absorb(weights)
        wide = w.emit("cast", _upright(w, stored, is_transposed), attrs=CastAttrs(DType.F32))
        return w.emit("mul", w.emit("matmul", op.operands[0], wide, attrs=attrs), scale)
    total = _stored_product(w, op, x, weights, is_transposed)
    if total is None:
        return None
    number = total if total.type.dtype is DType.F32 else w.emit("cast", total, attrs=CastAttrs(DType.F32))
    return w.emit("mul", number, w.emit("mul", reshaped(w, x.operands[1], ()), scale))


def _weights(w: Walk, op: Op) -> tuple[Op | None, bool]:
    """The op that dequantizes the right operand, and whether a transpose follows it. Integers that are not constant
    need a zero point of 0: any other takes a sum over the operand, which is computed ahead for constants only."""
    value, is_transposed = op.operands[1], False
    turn = w.producer(value, "transpose")
    if turn is not None and op.name == "matmul" and turn.attrs.perm == (1, 0):  # type: ignore[attr-defined]
        value, is_transposed = turn.operands[0], True
    found = w.producer(value, "dequantize")
    if found is None or found.attrs.block != 0:  # type: ignore[attr-defined]
        return None, is_transposed
    stored = found.operands[0].type.dtype
    constant = all(w.resource(v) is not None for v in found.operands)
    centred = stored.is_float or len(found.operands) < 3 or _is_zero(w, found.operands[2])
    return (found if stored.bits == 8 and (constant or centred) else None), is_transposed


def _output_scale(w: Walk, op: Op, weights: Op, is_transposed: bool) -> Value | None:
    """The scales of the weights, broadcastable to the result; None if they differ within a sum."""
    scale, rank = weights.operands[1], weights.operands[0].type.rank
    attrs = weights.attrs
    assert isinstance(attrs, DequantizeAttrs)
    if scale.type.dtype is not DType.F32 or attrs.to is not DType.F32:
        return None
    if scale.type.elements == 1:
        return reshaped(w, scale, ())
    if op.name == "conv":
        axis, shape = 0, (scale.type.elements, *(1,) * (op.result.type.rank - 2))
    else:
        flipped = op.attrs.transpose_b != is_transposed  # type: ignore[attr-defined]
        axis, shape = (0 if flipped else 1), (scale.type.elements,)
        if rank != 2:
            return None
    return reshaped(w, scale, shape) if attrs.axis == axis else None


def _one_scale(x: Op) -> bool:
    attrs = x.attrs
    assert isinstance(attrs, DequantizeAttrs)
    return x.operands[1].type.elements == 1 and x.operands[1].type.dtype is DType.F32 and attrs.to is DType.F32


def _upright(w: Walk, stored: Value, is_transposed: bool) -> Value:
    return transposed(w, stored, (1, 0)) if is_transposed else stored


def _stored_product(w: Walk, op: Op, x: Op, weights: Op, is_transposed: bool) -> Value | None:
    """The sum of products of the stored numbers."""
    a, b = x.operands[0], weights.operands[0]
    attrs = op.attrs
    if a.type.dtype.is_float and a.type.dtype is b.type.dtype and a.type.dtype.bits == 8:
        w.absorb(x, weights)
        return w.emit(op.name, a, _upright(w, b, is_transposed), attrs=replace(attrs, out=DType.F32))  # type: ignore[call-arg]
    if a.type.dtype not in _BYTES or b.type.dtype not in _BYTES:
        return None
    zeros = [None if len(o.operands) < 3 or _is_zero(w, o.operands[2]) else o.operands[2] for o in (x, weights)]
    given = [reshaped(w, z, (z.type.elements,)) for z in zeros if z is not None]
    if isinstance(attrs, ConvAttrs):
        if attrs.layout != "nchw":
            return None
        places = (attrs.strides, attrs.low, attrs.high, attrs.dilations, attrs.groups)
        w.absorb(x, weights)
        return w.emit("int_conv", a, b, *given, attrs=IntConvAttrs(*places, zeros[0] is not None, zeros[1] is not None))
    assert isinstance(attrs, MatmulAttrs)
    if attrs.transpose_a or b.type.rank != 2:
        return None
    w.absorb(x, weights)
    upright = _upright(w, b, is_transposed != attrs.transpose_b)
    return w.emit("int_matmul", a, upright, *given, attrs=IntMatmulAttrs(zeros[0] is not None, zeros[1] is not None))


def _is_zero(w: Walk, value: Value) -> bool:
    resource = w.resource(value)
    return resource is not None and not np.any(resource.array())
