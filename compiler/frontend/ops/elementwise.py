"""Importers of arithmetic, comparison, logic and conversion.

Invariant: ONNX's own mixed types (Pow, Where, variadic Mean) are made explicit by casts, so every elementwise op has
operands of one dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.compiler.frontend.tensors import dtype_of
from ppuc.ir.graph import Value
from ppuc.ir.ops.composite import cast
from ppuc.ir.ops.elementwise import CastAttrs, IsinfAttrs
from ppuc.ir.types import DType

_UNARY = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "BitwiseNot": "bitnot",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "neg",
    "Not": "not",
    "Reciprocal": "reciprocal",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}
_BINARY = {
    "Add": "add",
    "And": "and",
    "BitwiseAnd": "bitand",
    "BitwiseOr": "bitor",
    "BitwiseXor": "bitxor",
    "Div": "div",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "Mul": "mul",
    "Or": "or",
    "Sub": "sub",
    "Xor": "xor",
}
_VARIADIC = {"Max": "max", "Mean": "add", "Min": "min", "Sum": "add"}


@importer(*_UNARY)
def import_unary(ctx: NodeContext) -> Sequence[Value]:
    return (ctx.op(_UNARY[ctx.op_type], ctx.operand(0)),)


@importer(*_BINARY)
def import_binary(ctx: NodeContext) -> Sequence[Value]:
    return (ctx.op(_BINARY[ctx.op_type], ctx.operand(0), ctx.operand(1)),)


@importer(*_VARIADIC)
def import_variadic(ctx: NodeContext) -> Sequence[Value]:
    total = ctx.operand(0)
    for i in range(1, len(ctx.inputs)):
        total = ctx.op(_VARIADIC[ctx.op_type], total, ctx.operand(i))
    if ctx.op_type == "Mean":
        total = ctx.op("mul", total, ctx.scalar_like(1.0 / len(ctx.inputs), total))
    return (total,)


@importer("IsInf")
def import_isinf(ctx: NodeContext) -> Sequence[Value]:
    attrs = IsinfAttrs(bool(ctx.attr("detect_positive", 1)), bool(ctx.attr("detect_negative", 1)))
    return (ctx.op("isinf", ctx.operand(0), attrs=attrs),)


@importer("Mod")
def import_mod(ctx: NodeContext) -> Sequence[Value]:
    fmod = bool(ctx.attr("fmod", 0))
    if not fmod and ctx.dtype(0).is_float:
        ctx.fail("Mod of floats needs fmod = 1", got=f"{ctx.type(0)}, fmod = 0")
    return (ctx.op("fmod" if fmod else "mod", ctx.operand(0), ctx.operand(1)),)


@importer("BitShift")
def import_bitshift(ctx: NodeContext) -> Sequence[Value]:
    direction = ctx.attr("direction", "")
    if direction not in ("LEFT", "RIGHT"):
        ctx.fail("BitShift has an unknown direction", got=repr(direction), expected="LEFT or RIGHT")
    return (ctx.op("shl" if direction == "LEFT" else "shr", ctx.operand(0), ctx.operand(1)),)


@importer("Pow")
def import_pow(ctx: NodeContext) -> Sequence[Value]:
    base, exponent = ctx.operand(0), ctx.operand(1)
    known = ctx.constant(1)
    if known is not None and known.size == 1 and exponent.type.rank <= base.type.rank:
        product = _known_power(ctx, base, float(known.reshape(())))
        if product is not None:
            return (product,)
    dtype = base.type.dtype
    if dtype.is_integer and exponent.type.dtype.is_float:
        # ONNX Runtime raises integers to float powers in double precision too.
        power = ctx.op("pow", cast(ctx.b, base, DType.F64), cast(ctx.b, exponent, DType.F64))
        return (cast(ctx.b, power, dtype),)
    return (ctx.op("pow", base, cast(ctx.b, exponent, dtype)),)


def _known_power(ctx: NodeContext, base: Value, exponent: float) -> Value | None:
    """`base` to a power that needs no `pow`; None for others."""
    if exponent == 1:
        return base
    if exponent == 2:
        return ctx.op("mul", base, base)
    if exponent == 3:
        return ctx.op("mul", ctx.op("mul", base, base), base)
    if exponent == 0.5 and base.type.dtype.is_float:
        return ctx.op("sqrt", base)
    if exponent == -1 and base.type.dtype.is_float:
        return ctx.op("reciprocal", base)
    return None


_LARGEST_F32 = 3.4028234663852886e38


@importer("Clip")
def import_clip(ctx: NodeContext) -> Sequence[Value]:
    """Before opset 11 bounds are attributes, and the largest finite numbers when they are not given."""
    x = ctx.operand(0)
    for index, name, op, default in ((1, "min", "max", -_LARGEST_F32), (2, "max", "min", _LARGEST_F32)):
        if name in ctx.attributes or (ctx.opset < 11 and x.type.dtype in (DType.F32, DType.BF16)):
            x = ctx.op(op, x, ctx.scalar_like(ctx.attr(name, default), x))
        elif ctx.has(index):
            x = ctx.op(op, x, _bound(ctx, index))
    return (x,)


def _bound(ctx: NodeContext, index: int) -> Value:
    if ctx.type(index).elements != 1:
        ctx.fail("a bound of Clip must be a scalar", got=ctx.type(index))
    known = ctx.constant(index)
    return ctx.operand(index) if known is None else ctx.b.const(known.reshape(()), "bound")


@importer("Cast")
def import_cast(ctx: NodeContext) -> Sequence[Value]:
    return (_converted(ctx, dtype_of(int(ctx.attr("to", 0)), ctx.place)),)


@importer("CastLike")
def import_cast_like(ctx: NodeContext) -> Sequence[Value]:
    return (_converted(ctx, ctx.dtype(1)),)


def _converted(ctx: NodeContext, to: DType) -> Value:
    x, saturate = ctx.operand(0), bool(ctx.attr("saturate", 1))
    rounding = ctx.attr("round_mode", "up")
    if to is DType.F8E8M0 and x.type.dtype is not to:
        ctx.fail("no engine rounds to powers of two", got=f"round_mode = {rounding}")
    return x if x.type.dtype is to else ctx.op("cast", x, attrs=CastAttrs(to, saturate))


@importer("Where")
def import_where(ctx: NodeContext) -> Sequence[Value]:
    return (ctx.op("select", ctx.operand(0), ctx.operand(1), ctx.operand(2)),)
