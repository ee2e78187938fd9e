"""Layers of random graphs as networks have them: products, windows, attention, norms, reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.conv_transpose import ConvTransposeAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.normalization import (
    BatchNormAttrs,
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LogSoftmaxAttrs,
    LpNormalizeAttrs,
    RmsNormAttrs,
    SoftmaxAttrs,
)
from ppuc.ir.ops.reduction import ArgreduceAttrs, CumsumAttrs
from ppuc.ir.ops.sorting import TopkAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType
from tests.property.graph_layers import NUMBERS, layer
from tests.property.growing_graph import FLOATS, INTEGERS, RandomGraph, Rejected
from tests.support.pass_graphs import attention_by_hand, repeat_heads, split_heads


@layer(6)
def dense(g: RandomGraph) -> Value:
    """A matmul with a weight, a bias and an activation, as far as chance goes."""
    x = g.pick((2, 3, 4))
    k, n, dtype = x.type.dims[-1], g.shape(1, 70)[0], x.type.dtype
    turned = g.chance(0.3)
    w = g.weights_of(dtype, *((n, k) if turned else (k, n)), scale=k**-0.5)
    y = g.op("matmul", x, w, attrs=MatmulAttrs(transpose_b=turned))
    if g.chance(0.6):
        y = g.op("add", y, g.weights_of(dtype, n))
    return g.op(g.one_of(("relu", "tanh", "sigmoid")), y) if g.chance(0.5) else y


@layer(3)
def product(g: RandomGraph) -> Value:
    """A matmul of two computed values, broadcast over batches."""
    x = g.pick((2, 3, 4), least=2)
    k, dtype = x.type.dims[-1], x.type.dtype
    batch = [d if g.chance(0.6) else 1 for d in x.type.dims[:-2]][g.integer(0, max(x.type.rank - 2, 0)) :]
    n, turned = g.shape(1, 40)[0], g.chance(0.5)
    others = [v for v in g.known if v.type.rank >= 2 and v.type.dims[-1] == k and v.type.dtype is dtype]
    if others and g.chance(0.5):
        y, turned = g.one_of(others), True
    else:
        y = g.parameter((*batch, n, k) if turned else (*batch, k, n), dtype)
    result = g.op("matmul", x, y, attrs=MatmulAttrs(transpose_b=turned))
    return g.op("mul", result, g.number(k**-0.5, dtype))


@layer(1)
def turned_product(g: RandomGraph) -> Value:
    x = g.pick((2, 3))
    k, dtype = x.type.dims[-2], x.type.dtype
    w = g.weights_of(dtype, k, g.integer(1, 20), scale=k**-0.5)
    return g.op("matmul", x, w, attrs=MatmulAttrs(transpose_a=True))


@layer(1)
def integer_product(g: RandomGraph) -> Value:
    x = g.op("cast", g.pick((2, 3), INTEGERS), attrs=CastAttrs(DType.I8))
    w = g.const(g.array((x.type.dims[-1], g.integer(1, 33)), DType.I8))
    return g.op("matmul", x, w, attrs=MatmulAttrs(out=DType.I32))


def image(g: RandomGraph) -> Value:
    """A value with batch, channel and one to three spatial axes."""
    rank = g.one_of((3, 4, 4, 4, 5))
    images = [v for v in g.known if v.type.rank == rank and v.type.dtype in FLOATS and min(v.type.dims) > 0]
    if images and g.chance(0.8):
        return images[max(g.integer(0, len(images) - 1), g.integer(0, len(images) - 1))]
    batch, channels = g.integer(1, 2), g.one_of((1, 2, 3, 4, 6, 8, 12, 16, 17, 32))
    return g.parameter((batch, channels, *g.shape(rank - 2, 3000 // channels)))


@layer(8)
def convolution(g: RandomGraph) -> Value:
    x = image(g)
    channels, space, dtype = x.type.dims[1], x.type.dims[2:], x.type.dtype
    groups = g.one_of([n for n in (1, 1, 1, 2, 3, 4, channels) if channels % n == 0])
    outputs = groups * g.integer(1, 3) if groups > 1 else g.one_of((1, 2, 3, 4, 8, 16, 17, 33))
    kernel = [g.one_of([k for k in (1, 1, 2, 3, 3, 5, 7) if k <= max(d, 3)]) for d in space]
    if g.chance(0.25):
        kernel = [1] * len(space)
    low, high = ([g.integer(0, k // 2) for k in kernel] for _ in range(2))
    strides = [g.one_of((1, 1, 1, 2, 3)) for _ in space]
    dilations = [g.one_of((1, 1, 1, 2)) for _ in space]
    attrs = ConvAttrs(tuple(strides), tuple(low), tuple(high), tuple(dilations), groups)
    scale = (channels // groups * math.prod(kernel)) ** -0.5
    y = g.op("conv", x, g.weights_of(dtype, outputs, channels // groups, *kernel, scale=scale), attrs=attrs)
    if g.chance(0.5):
        y = g.op("add", y, g.weights_of(dtype, outputs, *(1,) * len(space)))
    return g.op("relu", y) if g.chance(0.5) else y


@layer(1.5)
def transposed_convolution(g: RandomGraph) -> Value:
    x = image(g)
    channels, space = x.type.dims[1], x.type.dims[2:]
    groups = g.one_of([n for n in (1, 1, 2, 4) if channels % n == 0])
    kernel = tuple(g.integer(1, 4) for _ in space)
    w = g.weights_of(x.type.dtype, channels, g.integer(1, 6), *kernel, scale=(channels * math.prod(kernel)) ** -0.5)
    strides = tuple(g.integer(1, 3) for _ in space)
    low, high = (tuple(g.integer(-1, k // 2) for k in kernel) for _ in range(2))
    extra = tuple(g.integer(0, s - 1) for s in strides)
    dilations = tuple(g.one_of((1, 1, 2)) for _ in space)
    return g.op("conv_transpose", x, w, attrs=ConvTransposeAttrs(strides, low, high, extra, dilations, groups))


@layer(3)
def pooling(g: RandomGraph) -> Value:
    x = image(g)
    space = x.type.dims[2:]
    kernel = tuple(g.one_of([k for k in (1, 2, 3, 5) if k <= max(d, 2)]) for d in space)
    low, high = (tuple(g.integer(0, k - 1) for k in kernel) for _ in range(2))
    strides, dilations = (tuple(g.one_of((1, 1, 2, 3)) for _ in space) for _ in range(2))
    attrs = PoolAttrs(g.one_of(("max", "sum")), kernel, strides, low, high, dilations)
    return g.op("pool", x, attrs=attrs)


@layer(2)
def attention(g: RandomGraph) -> Value:
    """Heads split off one sequence, attended and merged again; as one op, or as exporters write it."""
    heads, width = g.one_of((1, 2, 4, 8)), g.one_of((1, 4, 8, 16, 20))
    known = [v for v in g.known if v.type.rank == 3 and v.type.dtype is DType.F32 and 0 not in v.type.dims]
    x = g.one_of(known) if known else g.parameter((g.integer(1, 2), g.one_of((1, 5, 16, 33, 70)), 8))
    batch, rows, inner = x.type.dims
    groups = g.one_of([n for n in (1, 2, heads) if heads % n == 0])

    def project(count: int) -> Value:
        w = g.weights_of(DType.F32, inner, count * width, scale=inner**-0.5)
        return split_heads(g, g.matmul(x, w), count)

    q, k, v = project(heads), project(groups), project(groups)
    mask = None
    if g.chance(0.4):
        shape = (g.one_of((1, batch)), g.one_of((1, heads)), g.one_of((1, rows)), rows)
        mask = g.const(np.where(g.rng.random(shape) < 0.8, 0, -1e4).astype(np.float32))
    if g.chance(0.4):
        operands = (q, k, v) if mask is None else (q, k, v, mask)
        y = g.op("attention", *operands, attrs=AttentionAttrs(width**-0.5, g.chance(0.4)))
    else:
        k, v = (repeat_heads(g, t, heads // groups) if heads > groups else t for t in (k, v))
        y = attention_by_hand(g, q, k, v, width**-0.5, mask)
    return g.reshape(g.transpose(y, 0, 2, 1, 3), batch, rows, heads * width)


# -- norms and reductions --------------------------------------------------------------------------------------------


@layer(3)
def row_norm(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), least=2)
    axis = g.integer(max(0, x.type.rank - 2), x.type.rank - 1)
    shape = x.type.dims[axis:]
    scale = g.weights_of(x.type.dtype, *shape)
    if g.chance(0.3):
        return g.op("rms_norm", x, scale, attrs=RmsNormAttrs(axis))
    operands = (scale, g.weights_of(x.type.dtype, *shape)) if g.chance(0.5) else (scale,)
    return g.op("layer_norm", x, *operands, attrs=LayerNormAttrs(axis))


@layer(2)
def norm_by_hand(g: RandomGraph) -> Value:
    x = g.pick((2, 3), (DType.F32,), least=2)
    return g.layer_norm(x)


@layer(3)
def softmax(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4))
    axis = g.integer(0, x.type.rank - 1) if g.chance(0.4) else x.type.rank - 1
    if g.chance(0.2):
        return g.op("log_softmax", x, attrs=LogSoftmaxAttrs(axis))
    return g.op("softmax", x, attrs=SoftmaxAttrs(axis))


@layer(2)
def image_norm(g: RandomGraph) -> Value:
    x = image(g)
    channels, dtype = x.type.dims[1], x.type.dtype
    scale, bias = g.weights_of(dtype, channels), g.weights_of(dtype, channels)
    choice = g.integer(0, 2)
    if choice == 0:
        mean, variance = g.weights_of(dtype, channels), g.op("abs", g.weights_of(dtype, channels))
        variance = g.op("add", variance, g.number(0.5, dtype))
        return g.op("batch_norm", x, scale, bias, mean, variance, attrs=BatchNormAttrs())
    if choice == 1:
        return g.op("instance_norm", x, scale, bias, attrs=InstanceNormAttrs())
    groups = g.one_of([n for n in (1, 2, 3, 4) if channels % n == 0])
    return g.op("group_norm", x, scale, bias, attrs=GroupNormAttrs(groups))


@layer(1)
def unit_length(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3))
    return g.op("lp_normalize", x, attrs=LpNormalizeAttrs(g.integer(0, x.type.rank - 1), g.integer(1, 2)))


@layer(5)
def reduction(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), NUMBERS)
    axes = tuple(a for a in range(x.type.rank) if g.chance(0.5)) or (x.type.rank - 1,)
    kind = g.one_of(("sum", "max", "min", "sum", "mean", "prod"))
    count = math.prod(x.type.dims[a] for a in axes)
    if kind == "mean" and x.type.dtype.is_float and count:
        y = g.reduce("sum", x, *axes, keepdims=g.chance(0.6))
        return g.op("mul", y, g.number(1 / count, x.type.dtype))
    kind = "sum" if kind == "mean" or (kind == "prod" and count > 8) else kind
    y = g.reduce(kind, x, *axes, keepdims=g.chance(0.6))
    return g.op("sub", x, y) if y.type.rank == x.type.rank and g.chance(0.3) else y


@layer(2)
def position(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), NUMBERS)
    axis = g.integer(0, x.type.rank - 1)
    attrs = ArgreduceAttrs(g.one_of(("max", "min")), axis, g.chance(0.5), g.chance(0.3))
    return g.op("argreduce", x, attrs=attrs)


@layer(1)
def running_sum(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), NUMBERS)
    return g.op("cumsum", x, attrs=CumsumAttrs(g.integer(0, x.type.rank - 1), g.chance(0.3), g.chance(0.3)))


@layer(1)
def largest(g: RandomGraph) -> Sequence[Value]:
    x = g.pick((1, 2, 3), NUMBERS)
    axis = g.integer(0, x.type.rank - 1)
    if x.type.dims[axis] > 200 or x.type.elements * x.type.dims[axis] > 40_000:
        raise Rejected("many pairs to compare")
    return g.ops("topk", x, attrs=TopkAttrs(axis, g.integer(1, x.type.dims[axis]), g.chance(0.5)))
