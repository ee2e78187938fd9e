"""Graphs that the tests of graph passes rewrite: blocks of real networks, built by hand, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.movement import ConcatAttrs, PadAttrs
from ppuc.ir.ops.normalization import BatchNormAttrs, SoftmaxAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType


class Sketch:
    """A graph being written down: parameters, seeded constants, ops, each op with its own loc."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = Builder()
        self.params: list[Value] = []

    def param(self, *shape: int, dtype: DType = DType.F32) -> Value:
        value = Value(self.b.fresh("p"), TensorType(dtype, shape))
        self.params.append(value)
        return value

    def weight(self, *shape: int, scale: float = 1.0) -> Value:
        return self.b.const((self.rng.standard_normal(shape) * scale).astype(np.float32), "w")

    def number(self, number: float, dtype: DType = DType.F32) -> Value:
        return self.b.scalar(number, dtype)

    def const(self, array: np.ndarray) -> Value:
        return self.b.const(array)

    def op(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value:
        self.b.loc = (f"node_{len(self.b.ops)}",)
        return self.b(name, *operands, attrs=attrs)

    def reshape(self, x: Value, *shape: int) -> Value:
        return self.op("reshape", x, attrs=ReshapeAttrs(shape))

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.op("transpose", x, attrs=TransposeAttrs(perm))

    def expand(self, x: Value, *shape: int) -> Value:
        return self.op("expand", x, attrs=ExpandAttrs(shape))

    def slice(self, x: Value, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int] | None = None) -> Value:
        return self.op("slice", x, attrs=SliceAttrs(tuple(starts), tuple(sizes), tuple(steps or [1] * len(sizes))))

    def concat(self, *parts: Value, axis: int) -> Value:
        return self.op("concat", *parts, attrs=ConcatAttrs(axis))

    def pad(self, x: Value, low: Sequence[int], high: Sequence[int], value: float = 0.0) -> Value:
        return self.op("pad", x, attrs=PadAttrs(tuple(low), tuple(high), (0,) * len(low), value))

    def reduce(self, kind: str, x: Value, *axes: int, keepdims: bool = True) -> Value:
        return self.op("reduce", x, attrs=ReduceAttrs(kind, axes, keepdims))

    def mean(self, x: Value, *axes: int) -> Value:
        count = math.prod(x.type.dims[a] for a in axes)
        return self.op("mul", self.reduce("sum", x, *axes), self.number(1 / count))

    def matmul(self, a: Value, b: Value, transpose_b: bool = False) -> Value:
        return self.op("matmul", a, b, attrs=MatmulAttrs(transpose_b=transpose_b))

    def softmax(self, x: Value) -> Value:
        return self.op("softmax", x, attrs=SoftmaxAttrs(x.type.rank - 1))

    def conv(self, x: Value, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Value:
        rank, edge = x.type.rank - 2, kernel // 2
        inputs = x.type.dims[1] // groups
        w = self.weight(outputs, inputs, *(kernel,) * rank, scale=1 / math.sqrt(inputs * kernel**rank))
        attrs = ConvAttrs((stride,) * rank, (edge,) * rank, (edge,) * rank, (1,) * rank, groups)
        return self.op("conv", x, w, attrs=attrs)

    def pool(self, kind: str, x: Value, kernel: int, stride: int) -> Value:
        rank = x.type.rank - 2
        none = (0,) * rank
        return self.op("pool", x, attrs=PoolAttrs(kind, (kernel,) * rank, (stride,) * rank, none, none, (1,) * rank))

    def batch_norm(self, x: Value) -> Value:
        c = x.type.dims[1]
        variance = self.b.const(self.rng.uniform(0.5, 2, c).astype(np.float32))
        parameters = (self.weight(c), self.weight(c), self.weight(c), variance)
        return self.op("batch_norm", x, *parameters, attrs=BatchNormAttrs(1e-5))

    def layer_norm(self, x: Value) -> Value:
        """Layer normalisation in primitives, as exporters before opset 17 write it."""
        axis = x.type.rank - 1
        centred = self.op("sub", x, self.mean(x, axis))
        variance = self.mean(self.op("pow", centred, self.number(2)), axis)
        root = self.op("sqrt", self.op("add", variance, self.number(1e-5)))
        scaled = self.op("mul", self.op("div", centred, root), self.weight(x.type.dims[axis]))
        return self.op("add", scaled, self.weight(x.type.dims[axis]))

    def graph(self, *results: Value) -> Graph:
        return Graph("test", tuple(self.params), results, tuple(self.b.ops))


def small_cnn() -> Graph:
    """conv, bias, relu, max pool, conv, batch norm, relu, flatten, matmul."""
    s = Sketch()
    x = s.param(2, 3, 12, 10)
    y = s.op("relu", s.op("add", s.conv(x, 8, 3), s.weight(1, 8, 1, 1)))
    y = s.op("relu", s.batch_norm(s.conv(s.pool("max", y, 2, 2), 16, 3)))
    flat = s.reshape(y, 2, 16 * 6 * 5)
    return s.graph(s.op("add", s.matmul(flat, s.weight(480, 7, scale=0.05)), s.weight(7)))


def resnet_block() -> Graph:
    """A bottleneck with a projection, and a global average pool behind it."""
    s = Sketch()
    x = s.param(1, 8, 14, 14)
    y = s.op("relu", s.batch_norm(s.conv(x, 4, 1)))
    y = s.op("relu", s.batch_norm(s.conv(y, 4, 3, stride=2)))
    y = s.op("add", s.batch_norm(s.conv(y, 16, 1)), s.batch_norm(s.conv(x, 16, 1, stride=2)))
    pooled = s.reshape(s.mean(s.op("relu", y), 2, 3), 1, 16)
    return s.graph(s.matmul(pooled, s.weight(16, 10)))


def mobilenet_block() -> Graph:
    """Depthwise convolution with squeeze-and-excite and a residual."""
    s = Sketch()
    x = s.param(1, 8, 9, 11)
    y = s.op("relu", s.batch_norm(s.conv(x, 24, 1)))
    y = s.op("relu", s.batch_norm(s.conv(y, 24, 3, groups=24)))
    gate = s.op("relu", s.op("add", s.conv(s.mean(y, 2, 3), 6, 1), s.weight(1, 6, 1, 1)))
    gate = s.op("sigmoid", s.op("add", s.conv(gate, 24, 1), s.weight(24, 1, 1)))
    y = s.batch_norm(s.conv(s.op("mul", y, gate), 8, 1))
    return s.graph(s.op("add", x, y))


def channels_first_norm() -> Graph:
    """A ConvNeXt block: depthwise convolution, transpose, layer norm and matmuls, transpose back, residual."""
    s = Sketch()
    x = s.param(1, 8, 6, 6)
    stem = s.conv(x, 8, 3)
    y = s.layer_norm(s.transpose(s.conv(stem, 8, 3, groups=8), 0, 2, 3, 1))
    y = s.matmul(s.op("relu", s.matmul(y, s.weight(8, 16))), s.weight(16, 8))
    y = s.op("mul", s.transpose(y, 0, 3, 1, 2), s.weight(8, 1, 1))
    return s.graph(s.conv(s.op("add", stem, y), 4, 1))


def group_normed() -> Graph:
    """Group normalisation written with reshapes, between convolutions."""
    s = Sketch()
    x = s.param(2, 4, 6, 6)
    y = s.reshape(s.conv(x, 8, 3), 2, 4, 2 * 36)
    centred = s.op("sub", y, s.mean(y, 2))
    variance = s.mean(s.op("mul", centred, centred), 2)
    y = s.op("mul", centred, s.op("rsqrt", s.op("add", variance, s.number(1e-5))))
    y = s.op("add", s.op("mul", s.reshape(y, 2, 8, 6, 6), s.weight(1, 8, 1, 1)), s.weight(1, 8, 1, 1))
    return s.graph(s.conv(s.op("sigmoid", y), 4, 3))


def attention_by_hand(s: Sketch, q: Value, k: Value, v: Value, scale: float, mask: Value | None = None) -> Value:
    """softmax(q . k^T * scale + mask) . v with an explicit transpose of k."""
    rank = k.type.rank
    scores = s.matmul(q, s.transpose(k, *range(rank - 2), rank - 1, rank - 2))
    scores = s.op("mul", scores, s.number(scale))
    return s.matmul(s.softmax(scores if mask is None else s.op("add", scores, mask)), v)


def split_heads(s: Sketch, x: Value, heads: int) -> Value:
    batch, rows, width = x.type.dims
    return s.transpose(s.reshape(x, batch, rows, heads, width // heads), 0, 2, 1, 3)


def repeat_heads(s: Sketch, x: Value, repeat: int) -> Value:
    batch, groups, rows, width = x.type.dims
    spread = s.expand(s.reshape(x, batch, groups, 1, rows, width), batch, groups, repeat, rows, width)
    return s.reshape(spread, batch, groups * repeat, rows, width)


def transformer_block() -> Graph:
    """Pre-norm self-attention with a padding mask, and a feed-forward part with tanh-GELU."""
    s = Sketch()
    x, keep = s.param(2, 7, 16), s.param(2, 1, 1, 7, dtype=DType.BOOL)
    y = s.layer_norm(x)
    q, k, v = (split_heads(s, s.op("add", s.matmul(y, s.weight(16, 16)), s.weight(16)), 4) for _ in range(3))
    mask = s.op("select", keep, s.number(0), s.number(-1e9))
    y = s.transpose(attention_by_hand(s, q, k, v, 0.5, mask), 0, 2, 1, 3)
    x = s.op("add", x, s.matmul(s.reshape(y, 2, 7, 16), s.weight(16, 16)))
    h = s.matmul(s.layer_norm(x), s.weight(16, 32))
    cubic = s.op("add", h, s.op("mul", s.op("pow", h, s.number(3)), s.number(0.044715)))
    gate = s.op("add", s.op("tanh", s.op("mul", cubic, s.number(0.7978846))), s.number(1))
    h = s.op("mul", s.op("mul", h, gate), s.number(0.5))
    return s.graph(s.op("add", x, s.matmul(h, s.weight(32, 16, scale=0.2))))


def grouped_attention() -> Graph:
    """Causal attention of 6 query heads over 2 key heads, repeated by expand, mask a constant triangle."""
    s = Sketch()
    q, k, v = s.param(1, 6, 5, 8), s.param(1, 2, 5, 8), s.param(1, 2, 5, 8)
    mask = s.const(np.where(np.tri(5, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)[None, None])
    return s.graph(attention_by_hand(s, q, repeat_heads(s, k, 3), repeat_heads(s, v, 3), 8**-0.5, mask))


BLOCKS: dict[str, Callable[[], Graph]] = {
    f.__name__: f
    for f in (
        small_cnn,
        resnet_block,
        mobilenet_block,
        channels_first_norm,
        group_normed,
        transformer_block,
        grouped_attention,
    )
}


def random_views(seed: int) -> Graph:
    """A chain of views and exact elementwise ops on small integers, where any rewrite must be exact."""
    s = Sketch(seed)
    pool = [s.param(2, 3, 4), s.param(1, 3, 4), s.param(4)]
    for _ in range(14):
        pool.append(_random_view(s, pool[int(s.rng.integers(max(0, len(pool) - 3), len(pool)))], pool))
    return s.graph(*pool[-2:])


def _random_view(s: Sketch, x: Value, pool: Sequence[Value]) -> Value:
    rng, dims, rank = s.rng, x.type.dims, x.type.rank
    choice = int(rng.integers(9))
    if choice == 0:
        return s.transpose(x, *(int(i) for i in rng.permutation(rank)))
    if choice == 1:
        flat = s.reshape(x, x.type.elements)
        return s.reshape(flat, *(reversed(dims) if rng.integers(2) else (*dims, 1)))
    if choice == 2 and rank and min(dims) > 0:
        steps = [int(rng.choice([1, -1, 2])) for _ in dims]
        sizes = [(d + abs(t) - 1) // abs(t) for d, t in zip(dims, steps, strict=True)]
        return s.slice(x, [d - 1 if t < 0 else 0 for d, t in zip(dims, steps, strict=True)], sizes, steps)
    if choice == 3 and rank and x.type.elements < 500:
        return s.concat(x, x, axis=int(rng.integers(rank)))
    if choice == 4 and rank and dims[0] > 1:
        cut = int(rng.integers(1, dims[0]))
        lower = s.slice(x, [0] * rank, [cut, *dims[1:]])
        return s.concat(lower, s.slice(x, [cut, *[0] * (rank - 1)], [dims[0] - cut, *dims[1:]]), axis=0)
    if choice == 5 and rank:
        return s.pad(x, [int(i) for i in rng.integers(0, 2, rank)], [int(i) for i in rng.integers(0, 2, rank)])
    if choice == 6 and rank:
        axis = int(rng.integers(rank))
        return s.reduce("max", x, axis, keepdims=bool(rng.integers(2)))
    if choice == 7 and x.type.elements < 500:
        return s.expand(x, *(int(rng.integers(1, 3)) if d == 1 else d for d in (1, *dims)))
    return s.op("add" if rng.integers(2) else "max", x, s.number(float(rng.integers(0, 3))))


def random_cnn(seed: int) -> Graph:
    """A random DAG of convolutions, pools, elementwise ops, concats, reductions and transposes on images."""
    s = Sketch(seed)
    images = [s.conv(s.param(1, 4, 6, 6), 4, 3)]
    for _ in range(12):
        x, y = (images[int(s.rng.integers(max(0, len(images) - 4), len(images)))] for _ in range(2))
        images.append(_random_layer(s, x, y))
    return s.graph(*images[-3:])


def _random_layer(s: Sketch, x: Value, y: Value) -> Value:
    """All images are [1, 4, 6, 6]."""
    choice = int(s.rng.integers(11))
    if choice == 0:
        return s.conv(x, 4, 3, groups=int(s.rng.choice([1, 2, 4])))
    if choice == 1:
        return s.op("mul", x, s.op("sigmoid", s.conv(s.mean(x, 2, 3), 4, 1)))
    if choice == 2:
        return s.conv(s.concat(x, y, axis=1), 4, 1)
    if choice == 3:
        return s.slice(s.pad(x, (0, 0, 1, 0), (0, 0, 0, 2)), (0, 0, 1, 1), (1, 4, 6, 6))
    if choice == 4:
        spread = s.expand(s.reshape(s.pool("max", x, 2, 2), 1, 4, 3, 1, 3, 1), 1, 4, 3, 2, 3, 2)
        return s.reshape(spread, 1, 4, 6, 6)
    if choice == 5:
        shuffled = s.transpose(s.reshape(x, 1, 2, 2, 6, 6), 0, 2, 1, 3, 4)
        return s.reshape(shuffled, 1, 4, 6, 6)
    if choice == 6:
        y = s.matmul(s.transpose(x, 0, 2, 3, 1), s.weight(4, 4))
        return s.transpose(y, 0, 3, 1, 2)
    if choice == 7:
        rows = s.matmul(s.transpose(s.reshape(x, 1, 4, 36), 0, 2, 1), s.weight(4, 4))
        return s.reshape(s.transpose(rows, 0, 2, 1), 1, 4, 6, 6)
    if choice == 8:
        top = s.reduce("max", x, 1, keepdims=bool(s.rng.integers(2)))
        return s.op("sub", y, top)
    if choice == 9:
        return s.op("relu", s.op("add", x, s.weight(*((4, 1, 1) if s.rng.integers(2) else (6,)))))
    return s.op("add", x, y)


def module_of(graph: Graph, **options: str) -> Module:
    """A module around `graph`, its parameters and results named as in the graph."""
    return Module(
        target="ppu-tiny",
        target_hash="",
        options=tuple(sorted(options.items())),
        inputs=tuple((p.name, p.name) for p in graph.params),
        outputs=tuple((f"out{i}", r.name) for i, r in enumerate(graph.results)),
        graph=graph,
    )
