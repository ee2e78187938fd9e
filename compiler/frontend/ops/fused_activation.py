"""The activations that ONNX Runtime's own optimiser folds into com.microsoft ops (FusedConv, FusedGemm)."""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.ir.graph import Value

_PLAIN = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


def apply_activation(ctx: NodeContext, x: Value, name: str, parameters: Sequence[float]) -> Value:
    """`x` under the ONNX activation `name` ("" = none) with its attributes in order. Fails for one it does not know."""
    if not name:
        return x
    if name in _PLAIN:
        return ctx.op(_PLAIN[name], x)
    if name == "LeakyRelu":
        (alpha,) = parameters or (0.01,)
        return ctx.op("select", ctx.op("ge", x, ctx.scalar_like(0, x)), x, ctx.op("mul", x, ctx.scalar_like(alpha, x)))
    if name == "Clip":
        low, high = parameters
        return ctx.op("min", ctx.op("max", x, ctx.scalar_like(low, x)), ctx.scalar_like(high, x))
    if name != "HardSigmoid":
        known = ", ".join([*_PLAIN, "LeakyRelu", "Clip", "HardSigmoid"])
        ctx.fail("the fused activation is not supported", got=name, expected=known)
    alpha, beta = parameters or (0.2, 0.5)
    line = ctx.op("add", ctx.op("mul", x, ctx.scalar_like(alpha, x)), ctx.scalar_like(beta, x))
    return ctx.op("min", ctx.op("max", line, ctx.scalar_like(0, x)), ctx.scalar_like(1, x))
