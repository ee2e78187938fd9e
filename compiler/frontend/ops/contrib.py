"""Ops of com.microsoft that quantizers and exporters emit: QLinear..., MatMulNBits, EmbedLayerNormalization, NhwcConv.

A QLinear op is the standard op between dequantize and quantize, except products, which stay in integers. Invariant:
each importer ends in standard importers or in op records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ppuc.compiler.blocks import Weights, emit_weights
from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.quantized import (
    as_parameter,
    dynamically_quantized,
    integer_matmul,
    requantized,
    saturated,
    zero_point,
)
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, transposed
from ppuc.compiler.frontend.registry import IMPORTERS, importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs
from ppuc.ir.ops.normalization import LayerNormAttrs
from ppuc.ir.ops.quantized import DequantizeAttrs, QuantizeAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType

_STANDARD_OPSET = 13
"""The opset whose importers serve ops of com.microsoft."""


def _dequantized(ctx: NodeContext, index: int) -> Value:
    """Inputs `index` (stored), index + 1 (scale) and index + 2 (zero point) as f32."""
    zero = zero_point(ctx, index + 2)
    scale = cast_to(ctx, as_parameter(ctx, ctx.operand(index + 1)), DType.F32)
    rest = [zero] if zero is not None else []
    return ctx.op("dequantize", ctx.operand(index), scale, *rest, attrs=DequantizeAttrs(DType.F32))


def _quantized(ctx: NodeContext, y: Value, index: int, to: DType) -> Value:
    """f32 `y` stored as `to` with scale and zero point from inputs `index` and index + 1."""
    zero = zero_point(ctx, index + 1)
    rest = [zero] if zero is not None else []
    return ctx.op("quantize", y, as_parameter(ctx, ctx.operand(index)), *rest, attrs=QuantizeAttrs(to))


def _standard(ctx: NodeContext, op_type: str, *inputs: Value, opset: int = _STANDARD_OPSET, **attributes: Any) -> Value:
    """The first output of a standard op with this node's attributes, or with `attributes`."""
    given = {**ctx.attributes, **attributes}
    inner = replace(ctx, op_type=op_type, opset=opset, inputs=inputs, outputs=ctx.outputs[:1], attributes=given)
    return next(iter(IMPORTERS["", op_type](inner)))


def _number(ctx: NodeContext, index: int) -> Value:
    """A scale or zero point as f32; 0 for an omitted zero point."""
    if not ctx.has(index):
        return ctx.b.scalar(0, DType.F32)
    return cast_to(ctx, as_parameter(ctx, ctx.operand(index)), DType.F32)


@importer("QLinearAdd", domain="com.microsoft")
def qlinear_add(ctx: NodeContext) -> Sequence[Value]:
    """a * ra + (b * rb + zc - ra * za - rb * zb) with r the ratios of scales: the order in which ONNX Runtime adds."""
    ratios = [ctx.op("div", _number(ctx, i), _number(ctx, 6)) for i in (1, 4)]
    shares = [ctx.op("mul", r, _number(ctx, i)) for r, i in zip(ratios, (2, 5), strict=True)]
    fixed = ctx.op("sub", _number(ctx, 7), ctx.op("add", *shares))
    a, b = (ctx.op("mul", cast_to(ctx, ctx.operand(i), DType.F32), r) for i, r in zip((0, 3), ratios, strict=True))
    return (saturated(ctx, ctx.op("round", ctx.op("add", a, ctx.op("add", b, fixed))), ctx.dtype(0)),)


@importer("QLinearMul", domain="com.microsoft")
def qlinear_mul(ctx: NodeContext) -> Sequence[Value]:
    """(a - za) * (b - zb) * (sa * sb / sc) + zc, rounded at the end."""
    a, b = (ctx.op("sub", cast_to(ctx, ctx.operand(i), DType.F32), _number(ctx, i + 2)) for i in (0, 3))
    factor = ctx.op("div", ctx.op("mul", _number(ctx, 1), _number(ctx, 4)), _number(ctx, 6))
    y = ctx.op("add", ctx.op("mul", ctx.op("mul", a, b), factor), _number(ctx, 7))
    return (saturated(ctx, ctx.op("round", y), ctx.dtype(0)),)


_UNARY = {"QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearReduceMean": "ReduceMean"}


@importer(*_UNARY, domain="com.microsoft")
def qlinear_unary(ctx: NodeContext) -> Sequence[Value]:
    return (_quantized(ctx, _standard(ctx, _UNARY[ctx.op_type], _dequantized(ctx, 0)), 3, ctx.dtype(0)),)


@importer("QLinearSoftmax", domain="com.microsoft")
def qlinear_softmax(ctx: NodeContext) -> Sequence[Value]:
    """Attribute `opset` selects the Softmax version: before 13 it flattens from `axis` on."""
    opset = int(ctx.attr("opset", _STANDARD_OPSET))
    return (_quantized(ctx, _standard(ctx, "Softmax", _dequantized(ctx, 0), opset=opset), 3, ctx.dtype(0)),)


@importer("QLinearAveragePool", "QLinearGlobalAveragePool", domain="com.microsoft")
def qlinear_average_pool(ctx: NodeContext) -> Sequence[Value]:
    last, x = bool(ctx.attr("channels_last", 0)), _dequantized(ctx, 0)
    rank = x.type.rank
    if last:
        x = transposed(ctx, x, (0, rank - 1, *range(1, rank - 1)))
    y = _quantized(ctx, _standard(ctx, ctx.op_type.removeprefix("QLinear"), x), 3, ctx.dtype(0))
    return (transposed(ctx, y, (0, *range(2, rank), 1)) if last else y,)


@importer("QLinearConcat", domain="com.microsoft")
def qlinear_concat(ctx: NodeContext) -> Sequence[Value]:
    parts = [_dequantized(ctx, i) for i in range(2, len(ctx.inputs), 3)]
    axis = ctx.axis(0, parts[0].type.rank)
    return (_quantized(ctx, ctx.b.emit("concat", parts, ConcatAttrs(axis))[0], 0, ctx.dtype(2)),)


@importer("QLinearWhere", domain="com.microsoft")
def qlinear_where(ctx: NodeContext) -> Sequence[Value]:
    y = ctx.op("select", ctx.operand(0), _dequantized(ctx, 1), _dequantized(ctx, 4))
    return (_quantized(ctx, y, 7, ctx.dtype(1)),)


def _scale_product(ctx: NodeContext, a: int, b: int) -> Value:
    scales = [cast_to(ctx, as_parameter(ctx, ctx.operand(i)), DType.F32) for i in (a, b)]
    return ctx.op("mul", *scales)


@importer("QGemm", domain="com.microsoft")
def qgemm(ctx: NodeContext) -> Sequence[Value]:
    """alpha * A B + C in integers; without an output scale the result is f32."""
    a, b = ctx.operand(0), ctx.operand(3)
    if ctx.attr("transA", 0):
        a = ctx.op("transpose", a, attrs=TransposeAttrs((1, 0)))
    if ctx.attr("transB", 0):
        b = ctx.op("transpose", b, attrs=TransposeAttrs((1, 0)))
    total = integer_matmul(ctx, a, b, zero_point(ctx, 2), zero_point(ctx, 5))
    if ctx.has(6):
        total = ctx.op("add", total, ctx.operand(6))
    factor = ctx.op("mul", _scale_product(ctx, 1, 4), ctx.b.scalar(float(ctx.attr("alpha", 1.0)), DType.F32))
    if not ctx.has(7):
        return (ctx.op("mul", cast_to(ctx, total, DType.F32), factor),)
    factor = ctx.op("div", factor, as_parameter(ctx, ctx.operand(7)))
    return (requantized(ctx, total, factor, zero_point(ctx, 8), ctx.dtype(8) if ctx.has(8) else ctx.dtype(0)),)


@importer("MatMulIntegerToFloat", domain="com.microsoft")
def matmul_integer_to_float(ctx: NodeContext) -> Sequence[Value]:
    total = integer_matmul(ctx, ctx.operand(0), ctx.operand(1), zero_point(ctx, 4), zero_point(ctx, 5))
    return (_as_float(ctx, total, _scale_product(ctx, 2, 3), 6),)


@importer("DynamicQuantizeMatMul", domain="com.microsoft")
def dynamic_quantize_matmul(ctx: NodeContext) -> Sequence[Value]:
    a, scale, zero = dynamically_quantized(ctx, ctx.operand(0))
    total = integer_matmul(ctx, a, ctx.operand(1), zero, zero_point(ctx, 3))
    factor = ctx.op("mul", scale, as_parameter(ctx, ctx.operand(2)))
    return (_as_float(ctx, total, factor, 4),)


def _as_float(ctx: NodeContext, total: Value, factor: Value, bias: int) -> Value:
    """i32 `total` times `factor`, plus input `bias`."""
    y = ctx.op("mul", cast_to(ctx, total, DType.F32), factor)
    return ctx.op("add", y, ctx.operand(bias)) if ctx.has(bias) else y


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """u8[..., n] -> u8[..., n * 8 / bits], the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    apart: np.ndarray = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return apart.reshape(*packed.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class _Packed:
    """The weights of a MatMulNBits: `codes` u8, unsigned, blocks of each row one after another."""

    ctx: NodeContext
    rows: int
    columns: int
    bits: int
    block: int

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.block)

    def codes(self) -> np.ndarray:
        """u8[columns, rows], less half their range: two's complement."""
        packed = self.ctx.need_constant(1, "B").reshape(self.rows, self.blocks, -1)
        stored = _unpacked(packed, self.bits).reshape(self.rows, -1)[:, : self.columns]
        return (stored.T - np.uint8(2 ** (self.bits - 1))).view(np.int8)

    def scales(self) -> np.ndarray:
        """float[blocks, rows]"""
        return self.ctx.need_constant(2, "scales").reshape(self.rows, self.blocks).T

    def zeros(self) -> np.ndarray:
        """[blocks, rows], less half the codes' range; i8, or float where the file has floats."""
        given, half = self.ctx.need_constant(3, "zero_points"), 2 ** (self.bits - 1)
        if given.dtype != np.uint8:
            return given.reshape(self.rows, self.blocks).T.astype(np.float32) - np.float32(half)
        whole = _unpacked(given.reshape(self.rows, -1), self.bits)[:, : self.blocks]
        return (whole.T - np.uint8(half)).view(np.int8)

    def wide(self) -> np.ndarray:
        """f32[columns, rows]: (code - zero point) * scale."""
        each = np.repeat(np.arange(self.blocks), self.block)[: self.columns]
        zeros = self.zeros().astype(np.float32)[each] if self.ctx.has(3) else np.float32(0)
        return np.asarray((self.codes().astype(np.float32) - zeros) * self.scales().astype(np.float32)[each])

    def stored(self) -> Weights | None:
        """The weights in block-quantized form; None if zero points are floats."""
        zero = None
        if self.ctx.has(3):
            known = self.zeros()
            if known.dtype != np.int8:
                return None
            zero = self.zeros if known.any() else None
        scale_type = self.ctx.type(2).dtype
        halves = DType.I8 if self.bits <= 4 else None
        return Weights(self.columns, self.rows, self.block, DType.I8, self.codes, scale_type, self.scales, halves, zero)


@importer("MatMulNBits", domain="com.microsoft")
def matmul_n_bits(ctx: NodeContext) -> Sequence[Value]:
    """A times the transposed weights, which are constant and stay block-quantized until multiplied."""
    rows, columns, bits, block = (int(ctx.attr(n, 0)) for n in ("N", "K", "bits", "block_size"))
    ctx.attr("accuracy_level")  # permits less than f32; unused
    if bits not in (2, 4, 8) or block < 1 or ctx.has(4) or ctx.attr("weight_prepacked", 0):
        ctx.fail("only weights of 2, 4 or 8 bits in plain order are supported", got=f"bits = {bits}, block = {block}")
    a = ctx.operand(0)
    if not a.type.rank or a.type.dims[-1] != columns:
        ctx.fail("A does not fit K", got=a.type, expected=f"[..., {columns}]")
    for index, what in enumerate(("B", "scales", "zero_points"), start=1):
        if ctx.has(index):
            ctx.need_constant(index, what)
    dtype = a.type.dtype
    packed = _Packed(ctx, rows, columns, bits, block)
    stored = packed.stored()
    weights = emit_weights(ctx.op, ctx.b.const, stored, dtype) if stored is not None else None
    if weights is None:
        type = TensorType(dtype, (columns, rows))
        weights = ctx.b.const(Resource(type, loader=lambda: packed.wide().astype(dtype.numpy)), "weights")
    lead = a.type.dims[:-1] if a.type.rank > 1 else (1,)
    y = ctx.op("matmul", reshaped(ctx, a, (*lead, columns)), weights, attrs=MatmulAttrs())
    y = reshaped(ctx, y, (*a.type.dims[:-1], rows))
    return (ctx.op("add", y, ctx.operand(5)) if ctx.has(5) else y,)


@importer("EmbedLayerNormalization", domain="com.microsoft")
def embed_layer_normalization(ctx: NodeContext) -> Sequence[Value]:
    """layer_norm(word + position + segment); mask_index counts the ones of the mask; the sum itself."""
    ids = ctx.operand(0)
    total = ctx.op("gather", ctx.operand(2), ids, attrs=GatherAttrs(0))
    if ctx.has(8):
        positions = ctx.op("gather", ctx.operand(3), ctx.operand(8), attrs=GatherAttrs(0))
    else:
        steps = ctx.b.const(np.arange(ids.type.dims[1]), "positions")
        positions = ctx.op("gather", ctx.operand(3), steps, attrs=GatherAttrs(0))
    total = ctx.op("add", total, positions)
    if ctx.has(1):
        total = ctx.op("add", total, ctx.op("gather", ctx.operand(4), ctx.operand(1), attrs=GatherAttrs(0)))
    attrs = LayerNormAttrs(total.type.rank - 1, float(ctx.attr("epsilon", 1e-12)))
    y = ctx.op("layer_norm", total, ctx.operand(5), ctx.operand(6), attrs=attrs)
    if not any(ctx.outputs[1:]):
        return (y,)
    if ctx.attr("mask_index_type", 1) != 1 and ctx.outputs[1]:
        ctx.fail("only masks of lengths are supported", got=f"mask_index_type = {ctx.attr('mask_index_type')}")
    lengths = ctx.b.const(np.zeros(ids.type.dims[0], np.int32), "lengths")
    if ctx.has(7):
        lengths = _standard(ctx, "ReduceSum", ctx.operand(7), ctx.b.const(np.array([1]), "axes"), keepdims=0)
    return (y, lengths, total)


@importer("NhwcConv", domain="com.microsoft")
def nhwc_conv(ctx: NodeContext) -> Sequence[Value]:
    """Conv with channels last in and out; the weights are as in Conv."""
    rank = ctx.type(0).rank
    inputs = [transposed(ctx, ctx.operand(0), (0, rank - 1, *range(1, rank - 1))), ctx.operand(1)]
    y = _standard(ctx, "Conv", *inputs, *([ctx.operand(2)] if ctx.has(2) else []))
    return (transposed(ctx, y, (0, *range(2, rank), 1)),)
