"""MatMul, Gemm, and ONNX Runtime's FusedMatMul and FusedGemm.

Invariant: a `matmul` has operands of rank 2 or more; ONNX's rank-1 operands become a row or a column and lose the extra
axis again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.fused_activation import apply_activation
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.types import broadcast_shapes


def _scaled(ctx: NodeContext, x: Value, factor: float) -> Value:
    """factor * x; `x` itself for 1."""
    if factor == 1:
        return x
    if not x.type.dtype.is_float:
        ctx.fail("alpha and beta other than 1 need a float type", got=f"{factor} with {x.type}")
    return ctx.op("mul", x, ctx.scalar_like(factor, x))


@importer("MatMul")
def matmul(ctx: NodeContext) -> Sequence[Value]:
    a, b = ctx.operand(0), ctx.operand(1)
    if not a.type.rank or not b.type.rank:
        ctx.fail("matmul needs tensors of rank 1 or more", got=f"{a.type} and {b.type}")
    rows = a if a.type.rank > 1 else ctx.op("reshape", a, attrs=ReshapeAttrs((1, *a.type.dims)))
    columns = b if b.type.rank > 1 else ctx.op("reshape", b, attrs=ReshapeAttrs((*b.type.dims, 1)))
    y = ctx.op("matmul", rows, columns, attrs=MatmulAttrs())
    if a.type.rank > 1 and b.type.rank > 1:
        return (y,)
    shape = list(y.type.dims)
    if b.type.rank == 1:
        del shape[-1]
    if a.type.rank == 1:
        del shape[-1 if b.type.rank == 1 else -2]
    return (ctx.op("reshape", y, attrs=ReshapeAttrs(tuple(shape))),)


def _batch_second(ctx: NodeContext, x: Value) -> Value:
    """FusedMatMul's transBatch: [m, batch..., k] -> [batch..., m, k]."""
    rank = x.type.rank
    return ctx.op("transpose", x, attrs=TransposeAttrs((*range(1, rank - 1), 0, rank - 1)))


@importer("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
def fused_matmul(ctx: NodeContext) -> Sequence[Value]:
    a, b = ctx.operand(0), ctx.operand(1)
    if a.type.rank < 2 or b.type.rank < 2:
        ctx.fail("a fused matmul needs tensors of rank 2 or more", got=f"{a.type} and {b.type}")
    if ctx.attr("transBatchA", 0):
        a = _batch_second(ctx, a)
    if ctx.attr("transBatchB", 0):
        b = _batch_second(ctx, b)
    attrs = MatmulAttrs(bool(ctx.attr("transA", 0)), bool(ctx.attr("transB", 0)))
    return (_scaled(ctx, ctx.op("matmul", a, b, attrs=attrs), float(ctx.attr("alpha", 1.0))),)


def _gemm(ctx: NodeContext) -> Value:
    """alpha * A B + beta * C with A and B as transA and transB say."""
    a, b = ctx.operand(0), ctx.operand(1)
    if a.type.rank != 2 or b.type.rank != 2:
        ctx.fail("Gemm needs matrices", got=f"{a.type} and {b.type}", expected="two tensors of rank 2")
    attrs = MatmulAttrs(bool(ctx.attr("transA", 0)), bool(ctx.attr("transB", 0)))
    y = _scaled(ctx, ctx.op("matmul", a, b, attrs=attrs), float(ctx.attr("alpha", 1.0)))
    beta = float(ctx.attr("beta", 1.0))
    if not ctx.has(2) or beta == 0:
        return y
    c = ctx.operand(2)
    try:
        fits = broadcast_shapes(c.type.dims, y.type.dims) == y.type.dims
    except ValueError:
        fits = False
    if not fits:
        ctx.fail("C does not broadcast to the product", got=c.type, expected=f"a shape that broadcasts to {y.type}")
    return ctx.op("add", y, _scaled(ctx, c, beta))


@importer("Gemm")
def gemm(ctx: NodeContext) -> Sequence[Value]:
    return (_gemm(ctx),)


@importer("FusedGemm", domain="com.microsoft")
def fused_gemm(ctx: NodeContext) -> Sequence[Value]:
    """activation(Gemm(A, B, C))"""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [float(ctx.attr(name)) for name in names if ctx.attr(name) is not None]
    return (apply_activation(ctx, _gemm(ctx), str(ctx.attr("activation", "")), parameters),)
