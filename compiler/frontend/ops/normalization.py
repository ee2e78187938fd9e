"""Importers of normalisations, ONNX's and those of the com.microsoft domain.

Invariant: a node becomes the composite record of its formula; it is expanded into primitives only if it also has
statistics as outputs, or its own formula (LRN, MeanVarianceNormalization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.normalization import (
    BatchNormAttrs,
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LpNormalizeAttrs,
    RmsNormAttrs,
)
from ppuc.ir.ops.view import ExpandAttrs
from ppuc.ir.ops.window import PoolAttrs


def _names_output(ctx: NodeContext, index: int) -> bool:
    return index < len(ctx.outputs) and bool(ctx.outputs[index])


def _check_stash(ctx: NodeContext) -> None:
    if ctx.attr("stash_type", 1) != 1:
        ctx.fail("statistics can only be kept in float32", got=f"stash_type = {ctx.attr('stash_type')}", expected="1")


@importer("BatchNormalization")
def import_batch_norm(ctx: NodeContext) -> Sequence[Value]:
    if ctx.attr("training_mode", 0) or any(_names_output(ctx, i) for i in range(1, 5)):
        ctx.fail(
            "training mode is not supported",
            got="training_mode = 1" if ctx.attr("training_mode", 0) else "running statistics as outputs",
            hint="export the model in evaluation mode",
        )
    if not ctx.attr("spatial", 1):
        ctx.fail("per-activation statistics are not supported", got="spatial = 0", expected="spatial = 1")
    ctx.attr("momentum")
    attrs = BatchNormAttrs(float(ctx.attr("epsilon", 1e-5)))
    return (ctx.op("batch_norm", *(ctx.operand(i) for i in range(5)), attrs=attrs),)


@importer("LayerNormalization")
def import_layer_norm(ctx: NodeContext) -> Sequence[Value]:
    _check_stash(ctx)
    axis, epsilon = ctx.axis(-1, ctx.type(0).rank), float(ctx.attr("epsilon", 1e-5))
    parameters = [ctx.operand(1), *([ctx.operand(2)] if ctx.has(2) else [])]
    y = ctx.op("layer_norm", ctx.operand(0), *parameters, attrs=LayerNormAttrs(axis, epsilon))
    return (y, *_layer_statistics(ctx, ctx.operand(0), axis, epsilon))


def _layer_statistics(ctx: NodeContext, x: Value, axis: int, epsilon: float) -> tuple[Value, ...]:
    """The optional outputs Mean and InvStdDev, if the node has one of them."""
    if not (_names_output(ctx, 1) or _names_output(ctx, 2)):
        return ()
    center, _, inverse = c.moments(ctx.b, c.widen(ctx.b, x), range(axis, x.type.rank), epsilon)
    return (center, inverse)[: len(ctx.outputs) - 1]


@importer("RMSNormalization")
def import_rms_norm(ctx: NodeContext) -> Sequence[Value]:
    _check_stash(ctx)
    return (_rms_norm(ctx, ctx.operand(0), ctx.operand(1), ctx.axis(-1, ctx.type(0).rank), 1e-5),)


def _rms_norm(ctx: NodeContext, x: Value, scale: Value, axis: int, epsilon: float) -> Value:
    return ctx.op("rms_norm", x, scale, attrs=RmsNormAttrs(axis, float(ctx.attr("epsilon", epsilon))))


@importer("SimplifiedLayerNormalization")
@importer("SimplifiedLayerNormalization", domain="com.microsoft")
def import_simplified_layer_norm(ctx: NodeContext) -> Sequence[Value]:
    _check_stash(ctx)
    x, epsilon = ctx.operand(0), float(ctx.attr("epsilon", 1e-5))
    axis = ctx.axis(-1, x.type.rank)
    y = _rms_norm(ctx, x, ctx.operand(1), axis, epsilon)
    if not _names_output(ctx, 1):
        return (y,)
    wide = c.widen(ctx.b, x)
    square = c.mean(ctx.b, ctx.op("mul", wide, wide), range(axis, x.type.rank))
    return (y, ctx.op("rsqrt", ctx.op("add", square, ctx.scalar_like(epsilon, square))))


@importer("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def import_skip_layer_norm(ctx: NodeContext) -> Sequence[Value]:
    """norm(x + skip + bias); output 3 is the sum itself."""
    simplified = ctx.op_type == "SkipSimplifiedLayerNormalization"
    if _names_output(ctx, 1) or _names_output(ctx, 2):
        ctx.fail("mean and inv_std_var outputs are not supported", hint="they only serve training: drop them")
    total = ctx.op("add", ctx.operand(0), ctx.operand(1))
    bias = 3 if simplified else 4
    if ctx.has(bias):
        total = ctx.op("add", total, ctx.operand(bias))
    axis, epsilon = total.type.rank - 1, float(ctx.attr("epsilon", 1e-12))
    if simplified:
        y = _rms_norm(ctx, total, ctx.operand(2), axis, epsilon)
    else:
        parameters = [ctx.operand(2), *([ctx.operand(3)] if ctx.has(3) else [])]
        y = ctx.op("layer_norm", total, *parameters, attrs=LayerNormAttrs(axis, epsilon))
    # Outputs 1 and 2 are not named (checked above); the sum only stands in for them to keep its own position.
    return (y, total, total, total)[: len(ctx.outputs)]


@importer("GroupNormalization")
def import_group_norm(ctx: NodeContext) -> Sequence[Value]:
    _check_stash(ctx)
    groups, epsilon = int(ctx.attr("num_groups", 0)), float(ctx.attr("epsilon", 1e-5))
    x, scale, bias = (ctx.operand(i) for i in range(3))
    if x.type.rank < 2 or groups < 1 or x.type.dims[1] % groups:
        ctx.fail("num_groups must divide the channels", got=f"{x.type}, num_groups = {groups}")
    if ctx.opset < 21:
        members = x.type.dims[1] // groups
        scale, bias = _per_group(ctx, scale, members), _per_group(ctx, bias, members)
    return (ctx.op("group_norm", x, scale, bias, attrs=GroupNormAttrs(groups, epsilon)),)


def _per_group(ctx: NodeContext, parameter: Value, members: int) -> Value:
    """[G] -> [G * members], each element repeated: before opset 21 scale and bias were per group."""
    groups = parameter.type.dims[0]
    spread = ctx.op("expand", c.reshape(ctx.b, parameter, (groups, 1)), attrs=ExpandAttrs((groups, members)))
    return c.reshape(ctx.b, spread, (groups * members,))


@importer("InstanceNormalization")
def import_instance_norm(ctx: NodeContext) -> Sequence[Value]:
    attrs = InstanceNormAttrs(float(ctx.attr("epsilon", 1e-5)))
    return (ctx.op("instance_norm", ctx.operand(0), ctx.operand(1), ctx.operand(2), attrs=attrs),)


@importer("LpNormalization")
def import_lp_normalization(ctx: NodeContext) -> Sequence[Value]:
    attrs = LpNormalizeAttrs(ctx.axis(-1, ctx.type(0).rank), int(ctx.attr("p", 2)))
    return (ctx.op("lp_normalize", ctx.operand(0), attrs=attrs),)


@importer("MeanVarianceNormalization")
def import_mean_variance_normalization(ctx: NodeContext) -> Sequence[Value]:
    """(x - mean) / (sqrt(variance) + 1e-9), as in ONNX's function body."""
    x, rank = ctx.operand(0), ctx.type(0).rank
    if not x.type.dtype.is_float:
        ctx.fail("needs a floating-point input", got=x.type)
    axes = ctx.attr("axes", [0, 2, 3])
    if any(not -rank <= a < rank for a in axes):
        ctx.breaks("axis is out of range", got=list(axes), expected=f"between {-rank} and {rank - 1}")
    over = sorted({a % rank for a in axes})
    wide = c.widen(ctx.b, x)
    centered = ctx.op("sub", wide, c.mean(ctx.b, wide, over))
    deviation = ctx.op("sqrt", c.mean(ctx.b, ctx.op("mul", centered, centered), over))
    safe = ctx.op("add", deviation, ctx.scalar_like(1e-9, wide))
    return (c.cast(ctx.b, ctx.op("div", centered, safe), x.type.dtype),)


@importer("LRN")
def import_lrn(ctx: NodeContext) -> Sequence[Value]:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = ctx.operand(0), int(ctx.attr("size", 0))
    if x.type.rank < 2 or not x.type.dtype.is_float or size < 1:
        ctx.fail("needs a float tensor of rank 2 or more and a positive size", got=f"{x.type}, size = {size}")
    alpha, beta, bias = (float(ctx.attr(n, d)) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    wide, (batch, channels, *spatial) = c.widen(ctx.b, x), x.type.dims
    square = c.reshape(ctx.b, ctx.op("mul", wide, wide), (batch, 1, channels, math.prod(spatial)))
    window = PoolAttrs("sum", (size, 1), (1, 1), ((size - 1) // 2, 0), (size // 2, 0), (1, 1))
    total = c.reshape(ctx.b, ctx.op("pool", square, attrs=window), x.type.dims)
    base = ctx.op("add", ctx.op("mul", total, ctx.scalar_like(alpha / size, wide)), ctx.scalar_like(bias, wide))
    return (c.cast(ctx.b, ctx.op("div", wide, ctx.op("pow", base, ctx.scalar_like(beta, wide))), x.type.dtype),)
