"""Importers of activation functions, expanded into elementwise ops.

Invariant: f16 and bf16 operands are widened to f32 before the first and rounded after the last op of a formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import Importer, importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.composite import cast, reshape, widen
from ppuc.ir.ops.normalization import LogSoftmaxAttrs, SoftmaxAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs

Formula = Callable[[NodeContext, Value], Value]


def activation(*op_types: str, domain: str = "") -> Callable[[Formula], Formula]:
    """Register a formula of one float operand, which is widened before it; the result is rounded back."""

    def add(formula: Formula) -> Formula:
        def importer_of_formula(ctx: NodeContext) -> Sequence[Value]:
            return (in_f32(ctx, ctx.operand(0), formula),)

        register: Callable[[Importer], Importer] = importer(*op_types, domain=domain)
        register(importer_of_formula)
        return formula

    return add


def in_f32(ctx: NodeContext, x: Value, formula: Formula) -> Value:
    """`formula` of float `x`, computed in f32 if `x` is narrower."""
    if not x.type.dtype.is_float:
        ctx.fail("needs a floating-point input", got=x.type)
    return cast(ctx.b, formula(ctx, widen(ctx.b, x)), x.type.dtype)


def _scaled(ctx: NodeContext, x: Value, factor: float, offset: float = 0.0) -> Value:
    """x * factor + offset."""
    y = x if factor == 1 else ctx.op("mul", x, ctx.scalar_like(factor, x))
    return y if offset == 0 else ctx.op("add", y, ctx.scalar_like(offset, x))


def _clip(ctx: NodeContext, x: Value, low: float, high: float) -> Value:
    return ctx.op("min", ctx.op("max", x, ctx.scalar_like(low, x)), ctx.scalar_like(high, x))


@importer("Relu")
def import_relu(ctx: NodeContext) -> Sequence[Value]:
    return (ctx.op("relu", ctx.operand(0)),)


@activation("LeakyRelu")
def leaky_relu(ctx: NodeContext, x: Value) -> Value:
    alpha = float(ctx.attr("alpha", 0.01))
    if 0 < alpha <= 1:
        return ctx.op("max", x, _scaled(ctx, x, alpha))
    negative = ctx.op("lt", x, ctx.scalar_like(0, x))
    return ctx.op("select", negative, ctx.op("mul", x, ctx.scalar_like(alpha, x)), x)


@importer("PRelu")
def import_prelu(ctx: NodeContext) -> Sequence[Value]:
    x, slope = ctx.operand(0), ctx.operand(1)
    return (ctx.op("select", ctx.op("lt", x, ctx.scalar_like(0, x)), ctx.op("mul", x, slope), x),)


def _elu(ctx: NodeContext, x: Value, alpha: float, width: float = 1.0) -> Value:
    """max(x, 0) + alpha * (e**(min(x, 0) / width) - 1): finite on both sides of 0, so it needs no select."""
    negative = ctx.op("min", x, ctx.scalar_like(0, x))
    curve = ctx.op("expm1", _scaled(ctx, negative, 1 / width))
    return ctx.op("add", ctx.op("relu", x), _scaled(ctx, curve, alpha))


@activation("Elu")
def elu(ctx: NodeContext, x: Value) -> Value:
    return _elu(ctx, x, float(ctx.attr("alpha", 1.0)))


@activation("Selu")
def selu(ctx: NodeContext, x: Value) -> Value:
    curve = _elu(ctx, x, float(ctx.attr("alpha", 1.67326319217681884765625)))
    return _scaled(ctx, curve, float(ctx.attr("gamma", 1.05070102214813232421875)))


@activation("Celu")
def celu(ctx: NodeContext, x: Value) -> Value:
    alpha = float(ctx.attr("alpha", 1.0))
    if alpha == 0:
        ctx.fail("alpha must not be 0", got=alpha)
    return _elu(ctx, x, alpha, alpha)


def gelu_erf(ctx: NodeContext, x: Value) -> Value:
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    gate = _scaled(ctx, ctx.op("erf", _scaled(ctx, x, math.sqrt(0.5))), 1.0, 1.0)
    return ctx.op("mul", _scaled(ctx, x, 0.5), gate)


def gelu_tanh(ctx: NodeContext, x: Value) -> Value:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))."""
    cubic = _scaled(ctx, ctx.op("mul", x, x), 0.044715, 1.0)
    inner = _scaled(ctx, ctx.op("mul", x, cubic), math.sqrt(2 / math.pi))
    return ctx.op("mul", _scaled(ctx, x, 0.5), _scaled(ctx, ctx.op("tanh", inner), 1.0, 1.0))


@activation("Gelu")
def gelu(ctx: NodeContext, x: Value) -> Value:
    approximate = ctx.attr("approximate", "none")
    if approximate not in ("none", "tanh"):
        ctx.fail("unknown approximation", got=repr(approximate), expected="none or tanh")
    return gelu_tanh(ctx, x) if approximate == "tanh" else gelu_erf(ctx, x)


activation("Gelu", domain="com.microsoft")(gelu_erf)


@importer("BiasGelu", "FastGelu", domain="com.microsoft")
def import_bias_gelu(ctx: NodeContext) -> Sequence[Value]:
    x = ctx.op("add", ctx.operand(0), ctx.operand(1)) if ctx.has(1) else ctx.operand(0)
    return (in_f32(ctx, x, gelu_erf if ctx.op_type == "BiasGelu" else gelu_tanh),)


def _swish(ctx: NodeContext, x: Value, alpha: float) -> Value:
    return ctx.op("mul", x, ctx.op("sigmoid", _scaled(ctx, x, alpha)))


@activation("Swish")
def swish(ctx: NodeContext, x: Value) -> Value:
    return _swish(ctx, x, float(ctx.attr("alpha", 1.0)))


@activation("QuickGelu", domain="com.microsoft")
def quick_gelu(ctx: NodeContext, x: Value) -> Value:
    return _swish(ctx, x, float(ctx.attr("alpha", 1.702)))


@activation("HardSigmoid")
def hard_sigmoid(ctx: NodeContext, x: Value) -> Value:
    return _clip(ctx, _scaled(ctx, x, float(ctx.attr("alpha", 0.2)), float(ctx.attr("beta", 0.5))), 0, 1)


@activation("HardSwish")
def hard_swish(ctx: NodeContext, x: Value) -> Value:
    return ctx.op("mul", x, _clip(ctx, _scaled(ctx, x, 1 / 6, 0.5), 0, 1))


@activation("Softplus")
def softplus(ctx: NodeContext, x: Value) -> Value:
    """max(x, 0) + log(1 + e**-|x|): ln(1 + e**x) without overflow."""
    tail = ctx.op("log1p", ctx.op("exp", ctx.op("neg", ctx.op("abs", x))))
    return ctx.op("add", ctx.op("relu", x), tail)


@activation("Mish")
def mish(ctx: NodeContext, x: Value) -> Value:
    return ctx.op("mul", x, ctx.op("tanh", softplus(ctx, x)))


@activation("Softsign")
def softsign(ctx: NodeContext, x: Value) -> Value:
    return ctx.op("div", x, _scaled(ctx, ctx.op("abs", x), 1.0, 1.0))


@activation("ThresholdedRelu")
def thresholded_relu(ctx: NodeContext, x: Value) -> Value:
    above = ctx.op("gt", x, ctx.scalar_like(float(ctx.attr("alpha", 1.0)), x))
    return ctx.op("select", above, x, ctx.scalar_like(0, x))


@activation("Shrink")
def shrink(ctx: NodeContext, x: Value) -> Value:
    lambd, bias = float(ctx.attr("lambd", 0.5)), float(ctx.attr("bias", 0.0))
    above = ctx.op("gt", x, ctx.scalar_like(lambd, x))
    below = ctx.op("lt", x, ctx.scalar_like(-lambd, x))
    inside = ctx.op("select", below, _scaled(ctx, x, 1.0, bias), ctx.scalar_like(0, x))
    return ctx.op("select", above, _scaled(ctx, x, 1.0, -bias), inside)


@importer("Softmax", "LogSoftmax", "Hardmax")
def import_softmax(ctx: NodeContext) -> Sequence[Value]:
    x = ctx.operand(0)
    shape = x.type.dims
    if not shape:
        ctx.fail("needs a tensor of rank 1 or more", got=x.type)
    axis = ctx.axis(1 if ctx.opset < 13 else -1, len(shape))
    if ctx.opset < 13 and math.prod(shape[axis + 1 :]) != 1:
        # Before opset 13, the tensor is viewed as a matrix split at `axis`, and rows are normalised.
        rows = reshape(ctx.b, x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        return (reshape(ctx.b, _softmax_like(ctx, rows, 1), shape),)
    return (_softmax_like(ctx, x, axis),)


def _softmax_like(ctx: NodeContext, x: Value, axis: int) -> Value:
    if ctx.op_type == "Softmax":
        return ctx.op("softmax", x, attrs=SoftmaxAttrs(axis))
    if ctx.op_type == "LogSoftmax":
        return ctx.op("log_softmax", x, attrs=LogSoftmaxAttrs(axis))
    size, after = x.type.dims[axis], x.type.rank - axis - 1
    positions = ctx.b.const(np.arange(size, dtype=np.int64).reshape(size, *(1,) * after), "positions")
    largest = ctx.op("argreduce", x, attrs=ArgreduceAttrs("max", axis, keepdims=True))
    return cast(ctx.b, ctx.op("eq", positions, largest), x.type.dtype)
