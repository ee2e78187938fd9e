"""The reference semantics of a plan: the model's own ops, in f32, on operands rounded to their storage formats (fake
quantization).

    %y = matmul(%x, %w)   ->   %q: f8 = cast(%x / s_x)                    %v: f32 = const of the stored %w, times s_w
                               %r = cast(%q) * s_x                        %y = matmul(%r, %v)

Scales multiply operands, never products, so nothing here depends on how an operand's axes map to the result's. This
makes it the reference for the optimised graphs of apply.py, and the basis of verification's tolerances. Attention also
rounds internally, so it is quantized as in apply.py.

Invariant: results differ from those of the quantized graph only by rounding of f32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ppuc.compiler.blocks import emit_weights
from ppuc.compiler.quantization.apply import (
    Chosen,
    Writer,
    by_channel,
    chosen_layers,
    quantized_weights,
    run_time_scale,
    stored_as,
    widened,
)
from ppuc.compiler.quantization.block_weights import in_blocks
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import BLOCKS, LayerPlan, Plan
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.rewrite import Builder, rewrite, without_dead_ops
from ppuc.ir.types import DType


def simulated_graph(graph: Graph, plan: Plan, found: Iterable[Layer]) -> Graph:
    """`graph`, whose layers are `found`, with the operands of the layers in `plan` rounded to their formats and
    converted back. Raises KeyError for a layer that is not in the graph."""
    chosen = chosen_layers(plan, found)
    return without_dead_ops(rewrite(graph, _Simulation(chosen).rule)) if chosen else graph


class _Simulation:
    """The state of rewriting one graph."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen, self.writer = chosen, Writer(chosen)

    def rule(self, b: Builder, op: Op) -> Sequence[Value] | None:
        """The ops that replace `op`, whose operands are already renamed."""
        found = self.chosen.get(op.results[0].name)
        if found is None or op.name == "attention":
            return self.writer.rule(b, op)
        layer, plan = found
        operands = [c.cast(b, x, DType.F32) for x in op.operands[: len(layer.inputs)]]
        if not plan.weights_only:
            operands = [_round_trip(b, x, layer, i, plan) for i, x in enumerate(operands)]
        attrs: Any = replace(op.attrs, out=None)  # type: ignore[call-arg]
        if plan.format in BLOCKS:
            operands.append(_from_blocks(b, layer, plan))
            attrs = replace(attrs, transpose_b=False)
        elif layer.weights is not None:
            stored, scale = quantized_weights(layer, plan)
            weights = widened(stored) * by_channel(scale, layer.channel_axis, stored.ndim)
            operands.append(b.const(np.ascontiguousarray(weights, np.float32), op.operands[1].name))
        y = b(op.name, *operands, attrs=attrs, hint=op.results[0].name)
        if plan.bias is not None:
            axis = 1 if op.name == "conv" else y.type.rank - 1
            y = b("add", y, b.const(by_channel(plan.bias.astype(np.float32), axis, y.type.rank), "bias"))
        return [c.cast(b, y, op.results[0].type.dtype)]


def _round_trip(b: Builder, x: Value, layer: Layer, operand: int, plan: LayerPlan) -> Value:
    """f32 `x` quantized and dequantized."""
    dtype = plan.input_dtype(operand)
    scale = (
        b.scalar(float(np.float32(plan.scales[operand])), DType.F32)
        if plan.scales
        else run_time_scale(b, x, layer, operand, dtype)
    )
    offset = None
    if plan.offset is not None and operand == 0:
        offset = b.const(by_channel(plan.offset.astype(np.float32), layer.input_axis, x.type.rank), "offset")
        x = b("sub", x, offset)
    y = b("mul", c.cast(b, stored_as(b, b("div", x, scale), dtype), DType.F32), scale)
    return b("add", y, offset) if offset is not None else y


def _from_blocks(b: Builder, layer: Layer, plan: LayerPlan) -> Value:
    """The layer's f32[k, n] weights, quantized to blocks and dequantized."""
    found = in_blocks(layer, plan.format)
    assert found is not None
    weights = emit_weights(b, b.const, found[0], DType.F32)
    assert weights is not None
    return b("mul", weights, b.scalar(found[1], DType.F32))
