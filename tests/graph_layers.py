"""The layers that random graphs are made of, each a function from a growing graph to the value it adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.conv_transpose import ConvTransposeAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import (
    GatherAttrs,
    GatherElementsAttrs,
    GatherNdAttrs,
    PadAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
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
from ppuc.ir.ops.resize import ResizeAttrs
from ppuc.ir.ops.sorting import TopkAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType
from tests.growing_graph import FLOATS, INTEGERS, RandomGraph, Rejected
from tests.pass_graphs import attention_by_hand, repeat_heads, split_heads

NUMBERS = (*FLOATS, *INTEGERS)
ANY = (*NUMBERS, DType.BOOL)
Layer = Callable[[RandomGraph], Value | Sequence[Value]]
LAYERS: dict[str, tuple[float, Layer]] = {}
"""Name -> (how likely, the layer)."""


def layer(share: float) -> Callable[[Layer], Layer]:
    def add(function: Layer) -> Layer:
        LAYERS[function.__name__] = (share, function)
        return function

    return add


# -- elementwise -----------------------------------------------------------------------------------------------------


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


# -- contractions ----------------------------------------------------------------------------------------------------


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


# -- movement --------------------------------------------------------------------------------------------------------


@layer(4)
def reshaped(g: RandomGraph) -> Value:
    x = g.pick(dtypes=ANY)
    left = x.type.elements
    dims: list[int] = []
    while left > 1 and len(dims) < 4:
        divisors = [d for d in range(2, left + 1) if left % d == 0]
        dims.append(g.one_of(divisors))
        left //= dims[-1]
    dims += [left] if left > 1 else []
    if g.chance(0.3):
        dims.insert(g.integer(0, len(dims)), 1)
    return g.reshape(x, *dims) if math.prod(dims) == x.type.elements else g.reshape(x, *reversed(x.type.dims))


@layer(4)
def transposed(g: RandomGraph) -> Value:
    x = g.pick((2, 3, 4, 5), ANY)
    return g.transpose(x, *(int(i) for i in g.rng.permutation(x.type.rank)))


@layer(4)
def sliced(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    starts, sizes, steps = [], [], []
    for d in x.type.dims:
        step = g.one_of((1, 1, 1, 2, -1, -2))
        size = g.integer(1, -(-d // abs(step)))
        span = (size - 1) * abs(step)
        first = g.integer(0, d - 1 - span)
        starts.append(first if step > 0 else first + span)
        sizes.append(size)
        steps.append(step)
    return g.slice(x, starts, sizes, steps)


@layer(2)
def split(g: RandomGraph) -> Sequence[Value]:
    x = g.pick((1, 2, 3, 4), ANY, least=2)
    axis = max(range(x.type.rank), key=lambda a: x.type.dims[a])
    cut = g.integer(1, x.type.dims[axis] - 1)
    rest = [n - cut if a == axis else n for a, n in enumerate(x.type.dims)]
    first = [cut if a == axis else n for a, n in enumerate(x.type.dims)]
    start = [cut if a == axis else 0 for a in range(x.type.rank)]
    return g.slice(x, [0] * x.type.rank, first), g.slice(x, start, rest)


@layer(2)
def repeated(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    dims = [g.integer(1, 3) if d == 1 else d for d in x.type.dims]
    return g.expand(x, *((g.integer(1, 3), *dims) if g.chance(0.5) else dims))


@layer(4)
def joined(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    axis = g.integer(0, x.type.rank - 1)
    rest = [n for a, n in enumerate(x.type.dims) if a != axis]
    others = [
        v
        for v in g.known
        if v.type.dtype is x.type.dtype
        and v.type.rank == x.type.rank
        and [n for a, n in enumerate(v.type.dims) if a != axis] == rest
    ]
    parts = [g.one_of(others) for _ in range(g.integer(1, 3))]
    if g.chance(0.3):
        dims = [g.integer(0, 3) if a == axis else n for a, n in enumerate(x.type.dims)]
        parts.append(g.weights_of(x.type.dtype, *dims))
    return g.concat(x, *parts, axis=axis)


@layer(4)
def padded(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3, 4), ANY)
    rank = x.type.rank
    mode = g.one_of(("constant", "constant", "constant", "edge", "reflect", "wrap"))
    low, high = (tuple(g.integer(0, 3) if g.chance(0.5) else 0 for _ in range(rank)) for _ in range(2))
    if mode != "constant":
        return g.op("pad", x, attrs=PadAttrs(low, high, (0,) * rank, mode=mode))
    if g.chance(0.2):
        low = tuple(-g.integer(0, min(2, n - 1)) for n in x.type.dims)
    interior = tuple(g.integer(0, 1) if g.chance(0.2) else 0 for _ in range(rank))
    return g.op("pad", x, attrs=PadAttrs(low, high, interior, g.one_of((0.0, 1.0))))


def indices(g: RandomGraph, size: int, shape: Sequence[int]) -> Value:
    """Positions along an axis of `size`, negative ones included: constant or an input."""
    array = g.rng.integers(-size, size, shape).astype(g.one_of((np.int64, np.int32)))
    return g.const(array) if g.chance(0.5) else g.parameter(shape, DType.of(array.dtype), array)


@layer(3)
def gathered(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    axis = g.integer(0, x.type.rank - 1)
    return g.op("gather", x, indices(g, x.type.dims[axis], g.shape(g.integer(0, 2), 30)), attrs=GatherAttrs(axis))


@layer(1)
def gathered_elements(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    axis = g.integer(0, x.type.rank - 1)
    shape = [g.integer(1, n) for n in x.type.dims]
    return g.op("gather_elements", x, indices(g, x.type.dims[axis], shape), attrs=GatherElementsAttrs(axis))


def index_tuples(g: RandomGraph, sizes: Sequence[int], lead: Sequence[int]) -> Value:
    parts = [g.rng.integers(-n, n, lead) for n in sizes]
    array = np.stack(parts, axis=-1).astype(np.int64)
    return g.const(array) if g.chance(0.5) else g.parameter(array.shape, DType.I64, array)


@layer(1)
def gathered_tuples(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), ANY)
    depth = g.integer(1, x.type.rank)
    picked = index_tuples(g, x.type.dims[:depth], g.shape(g.integer(1, 2), 20))
    return g.op("gather_nd", x, picked, attrs=GatherNdAttrs())


@layer(2)
def scattered(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), NUMBERS)
    depth, lead = g.integer(1, x.type.rank), g.shape(1, 12)
    where = index_tuples(g, x.type.dims[:depth], lead)
    updates = g.weights_of(x.type.dtype, *lead, *x.type.dims[depth:])
    attrs = ScatterNdAttrs(g.one_of(("none", "none", "add", "max", "min")))
    return g.op("scatter_nd", x, where, updates, attrs=attrs)


@layer(1)
def scattered_elements(g: RandomGraph) -> Value:
    x = g.pick((1, 2, 3), NUMBERS)
    axis = g.integer(0, x.type.rank - 1)
    shape = [g.integer(1, min(n, 6)) for n in x.type.dims]
    updates = g.weights_of(x.type.dtype, *shape)
    attrs = ScatterElementsAttrs(axis, g.one_of(("none", "add")))
    return g.op("scatter_elements", x, indices(g, x.type.dims[axis], shape), updates, attrs=attrs)


@layer(1)
def resized(g: RandomGraph) -> Value:
    x = image(g)
    space = x.type.dims[2:]
    sizes = (*x.type.dims[:2], *(g.integer(1, 2 * n) if g.chance(0.5) else 2 * n for n in space))
    scales = tuple(b / a for a, b in zip(x.type.dims, sizes, strict=True))
    return g.op("resize", x, attrs=ResizeAttrs(sizes, scales, g.one_of(("nearest", "linear", "cubic"))))


# -- corners ---------------------------------------------------------------------------------------------------------


@layer(1)
def scalar(g: RandomGraph) -> Value:
    x = g.pick(dtypes=NUMBERS)
    y = g.reduce(g.one_of(("sum", "max")), x, *range(x.type.rank), keepdims=False) if x.type.rank else x
    return g.op("mul", y, g.parameter((), x.type.dtype))


@layer(1)
def empty(g: RandomGraph) -> Value:
    """A tensor without elements, and what reductions, concatenations and products make of it."""
    shape = list(g.shape(g.integer(2, 3), 200))
    axis = g.integer(0, len(shape) - 1)
    shape[axis] = 0
    x = g.parameter(shape)
    y = g.op("relu", g.op("add", x, x))
    choice = g.integer(0, 4)
    if choice == 0:
        return g.reduce("sum", y, axis, keepdims=g.chance(0.5))
    if choice == 1:
        full = [3 if a == axis else n for a, n in enumerate(shape)]
        return g.concat(y, g.parameter(full), axis=axis)
    if choice == 2:
        return g.matmul(y, g.weights_of(DType.F32, shape[-1], 5))
    if choice == 3:
        return g.pad(y, [1] * len(shape), [0] * len(shape), 2.0)
    return g.transpose(y, *reversed(range(len(shape))))
