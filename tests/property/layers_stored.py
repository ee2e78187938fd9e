"""Layers of random graphs on stored integers, narrow ones and quantized tensors, and layers with a state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.quantized import DequantizeAttrs, IntConvAttrs, IntMatmulAttrs, QuantizeAttrs
from ppuc.ir.ops.recurrent import GruAttrs, LstmAttrs, RnnAttrs
from ppuc.ir.types import DType
from tests.property.graph_layers import layer
from tests.property.growing_graph import INTEGERS, RandomGraph
from tests.property.layers_blocks import image

NARROW = (DType.I8, DType.U8, DType.I16, DType.U16, DType.U32)
STORED = (DType.I8, DType.U8)


def wild(g: RandomGraph, dtype: DType, shape: Sequence[int]) -> np.ndarray:
    """Integers over the whole range of a type."""
    limits = np.iinfo(dtype.numpy)
    return g.rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype.numpy)


@layer(3)
def narrow_arithmetic(g: RandomGraph) -> Value:
    """Some ops in a row that leave the range of their type, and one that sees whether they came back."""
    dtype = g.one_of(NARROW)
    x = g.op("cast", g.pick((1, 2, 3, 4), INTEGERS), attrs=CastAttrs(dtype))
    for _ in range(g.integer(1, 3)):
        y = g.const(wild(g, dtype, [d if g.chance(0.6) else 1 for d in x.type.dims]))
        name = g.one_of(("add", "sub", "mul", "neg", "abs", "bitnot", "bitxor"))
        x = g.op(name, x) if name in ("neg", "abs", "bitnot") else g.op(name, x, y)
    limit = g.number(3, dtype)
    last = g.one_of(("max", "min", "div", "mod", "lt", "cast", "shr", "sign"))
    if last == "cast":
        return g.op("cast", x, attrs=CastAttrs(g.one_of((*INTEGERS, *NARROW, DType.F32))))
    return g.op(last, x) if last == "sign" else g.op(last, x, limit)


@layer(1)
def narrow_reduction(g: RandomGraph) -> Value:
    dtype = g.one_of((DType.I8, DType.U8, DType.U32))
    x = g.op("cast", g.pick((1, 2, 3), INTEGERS), attrs=CastAttrs(dtype))
    x = g.op("mul", x, g.const(wild(g, dtype, x.type.dims[-1:])))
    axes = [a for a in range(x.type.rank) if g.chance(0.5)] or [0]
    kind = g.one_of(("max", "min", "sum")) if dtype is DType.U32 else g.one_of(("max", "min"))
    y = g.reduce(kind, x, *axes, keepdims=g.chance(0.5))
    return g.op("div", y, g.number(5, dtype))


def quantized(g: RandomGraph, x: Value) -> tuple[Value, Value, Value]:
    """`x` in 8 bits, its scale and its zero point."""
    dtype = g.one_of(STORED)
    scale = g.const(np.array(g.one_of((0.03, 0.1)), x.type.dtype.numpy))
    zero = g.const(np.array(g.integer(0, 9), dtype.numpy))
    return g.op("quantize", x, scale, zero, attrs=QuantizeAttrs(dtype)), scale, zero


@layer(3)
def there_and_back(g: RandomGraph) -> Value:
    """Quantized, perhaps moved, and dequantized."""
    x = g.pick((1, 2, 3, 4), (DType.F32,))
    q, scale, zero = quantized(g, x)
    if g.chance(0.4):
        q = g.op("max", q, zero)
    if q.type.rank > 1 and g.chance(0.4):
        q = g.transpose(q, *reversed(range(q.type.rank)))
    return g.op("dequantize", q, scale, zero, attrs=DequantizeAttrs(DType.F32))


def rescaled(g: RandomGraph, total: Value, terms: int) -> Value:
    """Sums of as many products of 8-bit numbers as floats about 1 large, or stored again."""
    scale = g.const(np.array(3e-4 / math.sqrt(terms), np.float32))
    y = g.op("dequantize", total, scale, attrs=DequantizeAttrs(DType.F32))
    if g.chance(0.4):
        y = g.op("relu", y)
    return quantized(g, y)[0] if g.chance(0.3) else y


@layer(2)
def quantized_product(g: RandomGraph) -> Value:
    x = g.pick((2, 3), (DType.F32,))
    q, _, zero = quantized(g, x)
    k, n, dtype = x.type.dims[-1], g.shape(1, 40)[0], g.one_of(STORED)
    w = g.const(wild(g, dtype, (k, n)))
    total = g.op("int_matmul", q, w, g.reshape(zero, 1), attrs=IntMatmulAttrs(True, False))
    return rescaled(g, total, k)


@layer(2)
def quantized_convolution(g: RandomGraph) -> Value:
    x = image(g)
    if x.type.dtype is not DType.F32:
        x = g.op("cast", x, attrs=CastAttrs(DType.F32))
    q, _, zero = quantized(g, x)
    channels, space = x.type.dims[1], x.type.dims[2:]
    groups = g.one_of([n for n in (1, 1, 2, channels) if channels % n == 0])
    kernel = [g.one_of([k for k in (1, 2, 3) if k <= d]) for d in space]
    low, high = (tuple(g.integer(0, k // 2) for k in kernel) for _ in range(2))
    strides = tuple(g.one_of((1, 1, 2)) for _ in space)
    w = g.const(wild(g, g.one_of(STORED), (groups * g.integer(1, 8), channels // groups, *kernel)))
    attrs = IntConvAttrs(strides, low, high, (1,) * len(space), groups, True, False)
    return rescaled(g, g.op("int_conv", q, w, zero, attrs=attrs), channels // groups * math.prod(kernel))


@layer(1)
def recurrent(g: RandomGraph) -> Sequence[Value]:
    """One direction of a short sequence."""
    known = [v for v in g.known if v.type.rank == 3 and v.type.dtype is DType.F32 and 0 not in v.type.dims]
    small = [v for v in known if v.type.dims[0] <= 6 and v.type.elements <= 600]
    x = g.one_of(small) if small else g.parameter((g.integer(1, 4), g.integer(1, 3), g.integer(1, 9)))
    _, batch, width = x.type.dims
    hidden, reverse = g.integer(1, 9), g.chance(0.4)
    name, gates, functions = g.one_of((("rnn", 1, 1), ("gru", 3, 2), ("lstm", 4, 3)))
    shapes = [(gates * hidden, width), (gates * hidden, hidden), (2 * gates * hidden,), (batch, hidden)]
    shapes += [(batch, hidden)] if name == "lstm" else []
    operands = [g.weights_of(DType.F32, *shape, scale=0.4) for shape in shapes]
    plain = (("sigmoid", "tanh", "tanh")[-functions:], (0.0,) * functions, (0.0,) * functions, reverse)
    kinds = {"rnn": RnnAttrs, "gru": GruAttrs, "lstm": LstmAttrs}
    return g.ops(name, x, *operands, attrs=kinds[name](*plain))
