"""Writes a plan into a graph: operands in low precision, products in f32 or i32, scales as ordinary arithmetic.

    %y = matmul(%x, %w)   ->   %q: f8 = cast(%x * (1 / s_x))      %v: f8 = const of %w / s_w
                               %a: f32 = matmul(%q, %v) {out = f32}
                               %y = %a * (s_x * s_w)

With a per-channel offset o of %x, %q = cast((%x - o) * (1 / s_x)), and o . (%v * s_w) is added to %y. That term is one
number per output channel; for a convolution with padding it is a constant tensor, because the padded zeros carry no
offset.

Fusion then moves the cast into the epilogue of the producer of %x, so that only the f8 tensor is stored, and the scale
into the epilogue of the product. The cast is placed before the views that lead to the layer, once for each tensor,
scale and format.

Invariant: a sum is rounded from its accumulator once, after scales and bias; scales are applied by multiplication,
never by division.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ppuc.compiler.blocks import emit_weights
from ppuc.compiler.quantization.block_weights import in_blocks
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.moves import Stored, moved_in_8_bits, moved_operands
from ppuc.compiler.quantization.plan import BLOCKS, LARGEST, LayerPlan, Plan
from ppuc.ir.encode import ENCODED, encode
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import OPS
from ppuc.ir.ops.elementwise import CastAttrs, convert
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.rewrite import Builder, rewrite, without_dead_ops
from ppuc.ir.types import DType
from ppuc.ir.views import axis_before

_COMMUTING = ("reshape", "transpose")
SMALLEST = 2.0**-100
"""The smallest scale, for tensors of zeros: its reciprocal must be finite."""


Chosen = Mapping[str, tuple[Layer, LayerPlan]]
"""The name of a layer's result -> the quantized layer and its plan."""


def quantized_graph(graph: Graph, plan: Plan, found: Iterable[Layer]) -> Graph:
    """`graph`, whose layers are `found`, with the layers in `plan` quantized. Raises KeyError for a layer that is not
    in the graph."""
    chosen = chosen_layers(plan, found)
    writer = Writer(chosen, moved_in_8_bits(graph, chosen))
    return without_dead_ops(rewrite(graph, writer.rule)) if chosen else graph


def chosen_layers(plan: Plan, found: Iterable[Layer]) -> Chosen:
    """The layers among `found` that `plan` quantizes. Raises KeyError if `plan` names a layer that is not in
    `found`."""
    layers = {layer.name: layer for layer in found}
    if unknown := [name for name in plan if name not in layers]:
        raise KeyError(unknown[0])
    return {layers[n].op.results[0].name: (layers[n], p) for n, p in plan.layers.items() if p.quantized}


def quantized_weights(layer: Layer, plan: LayerPlan) -> tuple[np.ndarray, np.ndarray]:
    """(stored weights, f32[channels] or f32[1] scales) of a layer with constant weights."""
    assert layer.weights is not None
    wide = layer.weights.array().astype(np.float32)
    scale = plan.weight_scale if plan.weight_scale is not None else largest_scale(wide, layer.channel_axis, plan.dtype)
    if plan.weights is not None:
        return plan.weights, scale
    return rounded(wide / by_channel(scale, layer.channel_axis, wide.ndim), plan.dtype), scale


def largest_scale(weights: np.ndarray, axis: int, dtype: DType) -> np.ndarray:
    """f32[channels]: the scale that maps the largest magnitude of each channel to the largest number of `dtype`."""
    rest = tuple(a for a in range(weights.ndim) if a != axis)
    largest: np.ndarray = np.abs(weights).max(rest)
    return np.maximum(largest / np.float32(LARGEST[dtype]), np.float32(SMALLEST)).astype(np.float32)


def by_channel(scale: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """`scale` reshaped to `rank`, so that it broadcasts along `axis`."""
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def rounded(numbers: np.ndarray, dtype: DType) -> np.ndarray:
    """f32 `numbers` converted to `dtype`: rounded to nearest even, saturated."""
    if dtype.is_integer:
        low = 0.0 if dtype is DType.U8 else -LARGEST[dtype]
        whole: np.ndarray = np.clip(np.rint(numbers), low, LARGEST[dtype])
        return whole.astype(dtype.numpy)
    return convert(np.asarray(numbers, np.float32), dtype)


def nearest(numbers: np.ndarray, dtype: DType) -> np.ndarray:
    """f32 `numbers` rounded to `dtype` and converted back to f32."""
    if dtype in ENCODED:
        codes = encode(numbers, dtype, True)
        return codes_table(dtype)[codes] if codes.dtype == np.uint8 else codes.view(dtype.numpy).astype(np.float32)
    return rounded(numbers, dtype).astype(np.float32)


def widened(stored: np.ndarray) -> np.ndarray:
    """Stored numbers converted to f32."""
    dtype = DType.of(stored.dtype)
    if dtype.is_float and dtype.bits == 8:
        return codes_table(dtype)[stored.view(np.uint8)]
    return stored.astype(np.float32)


@functools.lru_cache(maxsize=4)
def codes_table(dtype: DType) -> np.ndarray:
    """f32[256]: the values of the 256 codes of an 8-bit float. A table lookup is many times faster than a
    conversion."""
    return np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)


class Writer:
    """The state of rewriting one graph. `moved` is how moved tensors are stored, by name."""

    def __init__(self, chosen: Chosen, moved: Mapping[str, Stored] = MappingProxyType({})) -> None:
        self.chosen, self.moved = chosen, moved
        self.made: dict[tuple[Any, ...], Value] = {}
        """(value, scale, type, and where there are offsets, these and their axis) -> the stored value."""

    def rule(self, b: Builder, op: Op) -> Sequence[Value] | None:
        """The ops that replace `op`, whose operands are already renamed."""
        found = self.chosen.get(op.results[0].name)
        if found is None:
            self._move(b, op)
            return None
        layer, plan = found
        return [_dequantized(b, op, *self._product(b, layer, plan, op), layer, plan)]

    def _move(self, b: Builder, op: Op) -> None:
        """Move the stored elements, too, if `op` moves elements that only quantized layers read."""
        name = op.results[0].name
        if name in self.moved:
            scale, dtype = self.moved[name]
            stored = {v.name: self._static(b, v, scale, dtype, None, 0) for v in moved_operands(op)}
            operands = (stored.get(v.name, v) for v in op.operands)
            self.made[name, scale, dtype] = b(op.name, *operands, attrs=op.attrs)

    def _product(self, b: Builder, layer: Layer, plan: LayerPlan, op: Op) -> tuple[Value, list[Value | np.ndarray]]:
        """The product of the stored operands, and the scales to multiply it by."""
        if plan.format in BLOCKS:
            return _in_blocks(b, layer, plan, op)
        factors: list[Value | np.ndarray] = []
        operands: list[Value] = []
        for i in range(len(layer.inputs)):
            x = op.operands[i]
            if plan.weights_only:
                operands.append(c.cast(b, x, DType.F32))
            elif plan.scales:
                offset = plan.offset if i == 0 else None
                operands.append(self._static(b, x, plan.scales[i], plan.input_dtype(i), offset, layer.input_axis))
                factors.append(np.asarray(plan.scales[i], np.float32))
            else:
                stored, factor = _dynamic(b, c.cast(b, x, DType.F32), layer, i, plan)
                operands.append(stored)
                factors.append(factor)
        if layer.weights is not None:
            weights, scale = quantized_weights(layer, plan)
            stored = b.const(np.ascontiguousarray(weights), f"{op.operands[1].name}.{plan.dtype}")
            operands.append(c.cast(b, stored, DType.F32) if plan.weights_only else stored)
            factors.append(scale)
        attrs: Any = op.attrs
        if op.name == "attention":
            scale = attrs.scale * plan.scales[0] * plan.scales[1]
            attrs = replace(attrs, scale=float(np.float32(scale)), out=DType.F32)
            return b(op.name, *operands, *op.operands[3:], attrs=attrs, hint=op.results[0].name), factors[2:]
        out = None if plan.weights_only else DType.I32 if plan.dtype.is_integer else DType.F32
        return b(op.name, *operands, attrs=replace(attrs, out=out), hint=op.results[0].name), factors

    def _static(self, b: Builder, x: Value, scale: float, dtype: DType, offset: np.ndarray | None, axis: int) -> Value:
        """(`x` - `offset`) / `scale` in `dtype`, computed before the views that lead to `x`; `offset` is f32[channels]
        along `axis`."""
        views: list[Op] = []
        given = x, axis

        def key() -> tuple[Any, ...]:
            return (x.name, scale, dtype, *(() if offset is None else (offset.tobytes(), axis)))

        while key() not in self.made and (op := _emitted(b, x)) is not None and op.name in _COMMUTING:
            if offset is not None:
                before = axis_before(op, axis)
                if before is None:
                    break
                axis = before
            views.append(op)
            x = op.operands[0]
        if key() not in self.made:
            if op is None or moved_operands(op):  # no kernel computes `x`: the cast joins its reader
                (x, axis), views = given, []
            number = c.cast(b, x, DType.F32)
            if offset is not None:
                number = b("sub", number, b.const(by_channel(offset, axis, x.type.rank), "offset"))
            number = b("mul", number, b.scalar(float(np.float32(1.0) / np.float32(scale)), DType.F32))
            self.made[key()] = stored_as(b, number, dtype)
        value = self.made[key()]
        for view in reversed(views):
            value = b(view.name, value, attrs=view.attrs)
        return value


def _in_blocks(b: Builder, layer: Layer, plan: LayerPlan, op: Op) -> tuple[Value, list[Value | np.ndarray]]:
    """The product with block-quantized weights, and their tensor-wide scale."""
    found = in_blocks(layer, plan.format)
    assert found is not None
    weights = emit_weights(b, b.const, found[0], DType.F32)
    assert weights is not None
    attrs: Any = op.attrs
    x = c.cast(b, op.operands[0], DType.F32)
    y = b(op.name, x, weights, attrs=replace(attrs, transpose_b=False, out=None), hint=op.results[0].name)
    return y, [np.asarray(found[1], np.float32)]


def _emitted(b: Builder, value: Value) -> Op | None:
    return next((op for op in reversed(b.ops) if any(r.name == value.name for r in op.results)), None)


def stored_as(b: Builder, number: Value, dtype: DType) -> Value:
    """f32 `number` rounded to `dtype`, saturated."""
    if not dtype.is_integer:
        return b("cast", number, attrs=CastAttrs(dtype))
    low = 0.0 if dtype is DType.U8 else -LARGEST[dtype]
    bound = b("max", b("round", number), b.scalar(low, DType.F32))
    return c.cast(b, b("min", bound, b.scalar(LARGEST[dtype], DType.F32)), dtype)


def run_time_scale(b: Builder, x: Value, layer: Layer, operand: int, dtype: DType) -> Value:
    """The scale of activation `operand`, whose f32 value is `x`, from its largest magnitudes at run time, in a shape
    that broadcasts to `x`: one scale per row or column of a matmul, per sample of a convolution's image, and per output
    channel of a kernel that is not a constant."""
    rank = x.type.rank
    if layer.op.name == "conv":
        axes = tuple(range(1, rank))  # axis 0 of a kernel is output channels
    else:
        axes = (rank - 2 if (operand == 0) == _is_transposed(layer, operand) else rank - 1,)
    largest = b("reduce", b("abs", x), attrs=ReduceAttrs("max", axes, True))
    scale = b("mul", largest, b.scalar(float(np.float32(1.0 / LARGEST[dtype])), DType.F32))
    return b("max", scale, b.scalar(SMALLEST, DType.F32))


def _is_transposed(layer: Layer, operand: int) -> bool:
    attrs: Any = layer.op.attrs
    return bool((attrs.transpose_a, attrs.transpose_b)[operand])


def _dynamic(b: Builder, x: Value, layer: Layer, operand: int, plan: LayerPlan) -> tuple[Value, Value]:
    """`x` quantized with run-time scales, and those scales in a shape that broadcasts to the result."""
    dtype, rank = plan.input_dtype(operand), x.type.rank
    scale = run_time_scale(b, x, layer, operand, dtype)
    stored = stored_as(b, b("div", x, scale), dtype)
    if layer.op.name == "conv" and operand == 1:
        scale = b("transpose", scale, attrs=TransposeAttrs((1, 0, *range(2, rank))))
    elif layer.op.name == "matmul" and _is_transposed(layer, operand):
        scale = b("transpose", scale, attrs=TransposeAttrs((*range(rank - 2), rank - 1, rank - 2)))
    return stored, scale


def _dequantized(
    b: Builder, op: Op, total: Value, factors: Sequence[Value | np.ndarray], layer: Layer, plan: LayerPlan
) -> Value:
    """The product times its scales plus the bias, in the layer's original type."""
    y = c.cast(b, total, DType.F32)
    constant = np.ones((), np.float32)
    for factor in factors:
        if isinstance(factor, Value):
            y = b("mul", y, factor)
        else:
            constant = np.asarray(constant * factor)
    rank = op.results[0].type.rank
    axis = 1 if op.name == "conv" else rank - 1
    if np.any(constant != 1.0):
        y = b("mul", y, _channels(b, constant, axis, rank))
    bias = plan.bias
    if plan.offset is not None:
        share = offset_contribution(layer, plan)
        if share.ndim == 1:
            bias = share if bias is None else share + bias
        else:
            y = b("add", y, b.const(share, "offset"))
    if bias is not None:
        y = b("add", y, _channels(b, bias.astype(np.float32), axis, rank))
    return c.cast(b, y, op.results[0].type.dtype)


def offset_contribution(layer: Layer, plan: LayerPlan) -> np.ndarray:
    """The contribution of the offset to each result: f32[channels], or f32[1, channels, *space] if padding makes it
    depend on the position."""
    assert plan.offset is not None
    stored, scale = quantized_weights(layer, plan)
    weights = widened(stored) * by_channel(scale, layer.channel_axis, stored.ndim)
    attrs: Any = layer.op.attrs
    if layer.op.name == "matmul":
        matrix = weights.reshape(weights.shape[-2:])
        product: np.ndarray = plan.offset @ (matrix.T if attrs.transpose_b else matrix)
        return product
    space = layer.inputs[0].type.dims[2:] if any((*attrs.low, *attrs.high)) else _field(attrs, weights)
    image = np.broadcast_to(by_channel(plan.offset, 1, weights.ndim), (1, plan.offset.size, *space))
    reference = OPS["conv"].reference
    assert reference is not None
    (result,) = reference(attrs, np.ascontiguousarray(image), weights)
    return np.asarray(result if any((*attrs.low, *attrs.high)) else result.reshape(-1))


def _field(attrs: Any, weights: np.ndarray) -> tuple[int, ...]:
    """The window of a convolution."""
    return tuple((k - 1) * d + 1 for k, d in zip(weights.shape[2:], attrs.dilations, strict=True))


def _channels(b: Builder, numbers: np.ndarray, axis: int, rank: int) -> Value:
    if numbers.size == 1:
        return b.scalar(float(numbers.reshape(())), DType.F32)
    return b.const(by_channel(numbers, axis, rank), "scale")
