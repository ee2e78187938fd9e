"""Layers of random graphs that compute element by element."""

from __future__ import annotations

import math

from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.types import DType
from tests.property.graph_layers import ANY, NUMBERS, layer
from tests.property.growing_graph import INTEGERS, RandomGraph, Rejected


@layer(5)
def unary(g: RandomGraph) -> Value:
    return g.op(g.one_of(UNARY), g.pick())


UNARY = (
    *("relu", "sigmoid", "tanh", "neg", "abs", "erf", "sin", "cos", "tan", "atan", "floor", "ceil", "round", "sign"),
    *("asinh", "sinh", "cosh", "expm1"),
)


@layer(3)
def guarded(g: RandomGraph) -> Value:
    """Functions with a limited domain, as models use them."""
    x = g.pick()
    positive = g.op("add", g.op("abs", x), g.number(0.5, x.type.dtype))
    name = g.one_of(("sqrt", "rsqrt", "reciprocal", "log", "log1p", "exp"))
    return g.op("exp", g.op("neg", positive)) if name == "exp" else g.op(name, positive)


def partner(g: RandomGraph, x: Value) -> Value:
    """Something that broadcasts with `x`."""
    dims, dtype = x.type.dims, x.type.dtype
    same = [v for v in g.known if v.type == x.type]
    choice = g.integer(0, 5)
    if choice <= 1 and same:
        return g.one_of(same)
    if choice == 2:
        return g.number(g.one_of((2, 3, -1, 0.5)) if dtype.is_float else g.integer(1, 4), dtype)
    if choice == 3:  # of a higher rank
        return g.weights_of(dtype, g.integer(1, 3), *(d if g.chance(0.7) else 1 for d in dims))
    kept = dims[g.integer(0, len(dims)) :]
    return g.weights_of(dtype, *(d if g.chance(0.7) else 1 for d in kept))


@layer(8)
def binary(g: RandomGraph) -> Value:
    x = g.pick(dtypes=NUMBERS)
    y = partner(g, x)
    name = g.one_of(("add", "sub", "mul", "max", "min"))
    return g.op(name, *((x, y) if g.chance(0.7) else (y, x)))


@layer(2)
def division(g: RandomGraph) -> Value:
    x = g.pick(dtypes=NUMBERS)
    y = partner(g, x)
    if x.type.dtype.is_float:
        return g.op("div", x, g.op("add", g.op("abs", y), g.number(1, x.type.dtype)))
    below = g.op("max", g.op("abs", y), g.number(1, x.type.dtype))
    return g.op(g.one_of(("div", "mod", "fmod")), x, below)


@layer(3)
def residual(g: RandomGraph) -> Value:
    x = g.pick()
    same = [v for v in g.known if v.type == x.type and v != x]
    if not same:
        raise Rejected("nothing of the same type")
    return g.op("add", x, g.one_of(same))


@layer(3)
def chosen(g: RandomGraph) -> Value:
    x = g.pick(dtypes=NUMBERS)
    y = partner(g, x)
    condition = g.op(g.one_of(("lt", "ge", "gt", "le", "eq", "ne")), x, partner(g, x))
    if g.chance(0.3):
        condition = g.op("not", condition)
    return g.op("select", condition, x, y)


@layer(1)
def logic(g: RandomGraph) -> Value:
    x = g.pick(dtypes=(DType.BOOL,))
    return g.op(g.one_of(("and", "or", "xor")), x, partner(g, x))


@layer(1)
def bits(g: RandomGraph) -> Value:
    x = g.pick(dtypes=INTEGERS)
    name = g.one_of(("bitand", "bitor", "bitxor", "shl", "shr", "bitnot"))
    if name == "bitnot":
        return g.op(name, x)
    if name in ("shl", "shr"):
        return g.op(name, g.op("abs", x), g.number(g.integer(0, 3), x.type.dtype))
    return g.op(name, x, partner(g, x))


@layer(3)
def cast(g: RandomGraph) -> Value:
    x = g.pick(dtypes=ANY)
    return g.op("cast", x, attrs=CastAttrs(g.one_of([d for d in ANY if d is not x.type.dtype])))


@layer(2)
def back_to_f32(g: RandomGraph) -> Value:
    return g.op("cast", g.pick(dtypes=(*INTEGERS, DType.F16, DType.BF16, DType.BOOL)), attrs=CastAttrs(DType.F32))


@layer(1)
def gelu(g: RandomGraph) -> Value:
    x = g.pick()
    dtype = x.type.dtype
    bent = g.op("add", g.op("erf", g.op("mul", x, g.number(math.sqrt(0.5), dtype))), g.number(1, dtype))
    return g.op("mul", g.op("mul", x, bent), g.number(0.5, dtype))
