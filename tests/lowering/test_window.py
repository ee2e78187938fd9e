"""Pool and depthwise kernels against the graph interpreter, run by the kernel interpreter."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from ppuc.compiler.lowering.kernels.window import WindowLowering, check_window, lower_window
from ppuc.compiler.lowering.kernels.window_steps import doubles, identity
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.interpret_kernel import run_kernel
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_kernel, verify_vector
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target

TARGETS = ("ppu-tiny", "zhenwu-m890")
UNIT = {DType.F32: 2.0**-24, DType.BF16: 2.0**-8, DType.F16: 2.0**-11}


@functools.cache
def target_of(name: str) -> Target:
    return load_target(name)


class Group:
    """A group body under construction: parameters by name, and the ops around one window."""

    def __init__(self) -> None:
        self.params: list[Value] = []
        self.b = Builder({"x", "w", "bias", "res", "scale"})

    def param(self, name: str, dtype: DType, *shape: int) -> Value:
        self.params.append(Value(name, TensorType(dtype, shape)))
        return self.params[-1]

    def pool(self, x: Value, kind: str, kernel: Sequence[int], **fields: Sequence[int]) -> Value:
        one = (1,) * len(kernel)
        low = tuple(fields.get("low", (0,) * len(kernel)))
        high = tuple(fields.get("high", low))
        strides, dilations = tuple(fields.get("strides", one)), tuple(fields.get("dilations", one))
        return self.b("pool", x, attrs=PoolAttrs(kind, tuple(kernel), strides, low, high, dilations, "nhwc"))

    def conv(self, x: Value, w: Value, out: DType | None = None, **fields: Sequence[int]) -> Value:
        rank = x.type.rank - 2
        one = (1,) * rank
        low = tuple(fields.get("low", (0,) * rank))
        high = tuple(fields.get("high", low))
        strides, dilations = tuple(fields.get("strides", one)), tuple(fields.get("dilations", one))
        groups = x.type.dims[-1]
        return self.b("conv", x, w, attrs=ConvAttrs(strides, low, high, dilations, groups, "nhwc", out))

    def body(self, *results: Value) -> Graph:
        return Graph("body", tuple(self.params), results, tuple(self.b.ops))


def values(dtype: DType, shape: Sequence[int], seed: int) -> np.ndarray:
    """Normal numbers, or integers over the whole range of a type."""
    rng = np.random.default_rng(seed)
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        return rng.integers(info.min, info.max, shape, dtype=dtype.numpy, endpoint=True)
    return rng.standard_normal(shape).astype(dtype.numpy)


def lowered(body: Graph, target: Target) -> WindowLowering:
    names = {v.name: v.name for v in (*body.params, *body.results)}
    check_window(body, target)
    return WindowLowering("k", body, names, ("node",), target)


def run(body: Graph, target: str) -> tuple[list[np.ndarray], list[np.ndarray], WindowLowering]:
    """(results of the kernel, results of the graph, the lowering)."""
    machine = target_of(target)
    lowering = lowered(body, machine)
    kernel, vectors = lowering.lower().finish()
    verify_kernel(kernel, vectors)
    for vector in vectors:
        verify_vector(vector)
    assert sum(-(-b.bytes // 32) * 32 * b.depth for b in kernel.buffers) <= machine.l1.bytes
    assert kernel.units <= machine.cu
    feeds = {p.name: values(p.type.dtype, p.type.dims, i) for i, p in enumerate(body.params)}
    expected = run_graph(body, feeds)
    memory = {name: np.array(a).reshape(-1).view(np.uint8) for name, a in feeds.items()}
    memory |= {v.name: np.full(v.type.bytes, 0xA5, np.uint8) for v in body.results}
    run_kernel(kernel, {v.name: v for v in vectors}, memory)
    got = [memory[v.name].view(v.type.dtype.numpy).reshape(v.type.dims) for v in body.results]
    return got, [expected[v.name] for v in body.results], lowering


def check(body: Graph, target: str, terms: int) -> WindowLowering:
    """Run and compare; `terms` is how many numbers an element is the sum of. Each of the f32 additions rounds a partial
    sum, and the result is rounded once (in the reference after every op)."""
    got, expected, lowering = run(body, target)
    for g, e in zip(got, expected, strict=True):
        dtype = DType.of(e.dtype)
        if dtype.is_integer:
            np.testing.assert_array_equal(g, e)
            continue
        scale = np.abs(e.astype(np.float64)).max()
        relative = terms**1.5 * UNIT[DType.F32] + (4 * UNIT[dtype] if dtype is not DType.F32 else 0)
        np.testing.assert_allclose(g.astype(np.float64), e.astype(np.float64), rtol=0, atol=relative * scale)
    return lowering


def with_epilogue(group: Group, y: Value) -> Value:
    """relu(y + bias) + residual."""
    dtype = y.type.dtype
    bias = group.param("bias", dtype, y.type.dims[-1])
    residual = group.param("res", dtype, *y.type.dims)
    return group.b("add", group.b("relu", group.b("add", y, bias)), residual)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(target: str, dtype: DType, stride: int) -> None:
    group = Group()
    x, w = group.param("x", dtype, 2, 13, 11, 9), group.param("w", dtype, 3, 3, 1, 9)
    y = with_epilogue(group, group.conv(x, w, low=(1, 1), strides=(stride, stride)))
    check(group.body(y), target, 11)


@pytest.mark.parametrize("target", TARGETS)
def test_depthwise_of_each_rank_with_dilation_and_uneven_padding(target: str) -> None:
    for space, kernel in (((29,), (5,)), ((9, 8), (3, 2)), ((5, 6, 7), (2, 3, 3))):
        group = Group()
        x = group.param("x", DType.F32, 1, *space, 5)
        w = group.param("w", DType.F32, *kernel, 1, 5)
        dilations = (2, *(1,) * (len(space) - 1))
        y = group.conv(x, w, low=(1,) * len(space), high=(2,) * len(space), dilations=dilations)
        check(group.body(with_epilogue(group, y)), target, math.prod(kernel) + 2)


@pytest.mark.parametrize("target", TARGETS)
def test_depthwise_multiplier(target: str) -> None:
    group = Group()
    x, w = group.param("x", DType.F32, 1, 9, 10, 6), group.param("w", DType.F32, 3, 3, 1, 18)
    check(group.body(with_epilogue(group, group.conv(x, w, strides=(2, 1)))), target, 11)


@pytest.mark.parametrize("target", TARGETS)
def test_kernel_too_long_for_one_program_is_walked_in_blocks(target: str) -> None:
    for space, kernel in (((24, 20), (18, 17)), ((700,), (514,))):
        group = Group()
        x, w = group.param("x", DType.F32, 1, *space, 4), group.param("w", DType.F32, *kernel, 1, 4)
        y = with_epilogue(group, group.conv(x, w, low=(3,) * len(space)))
        lowering = check(group.body(y), target, math.prod(kernel))
        assert lowering.block.taps < lowering.window.taps
        assert all(len(program.steps) <= 4 * 256 for program in lowering.kernel.vectors)


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.I8], ids=str)
def test_pool_too_large_for_l1_is_walked_in_blocks(kind: str, dtype: DType) -> None:
    group = Group()
    x = group.param("x", dtype, 1, 130, 131, 3)
    lowering = check(group.body(group.pool(x, kind, (128, 128), low=(1, 0))), "ppu-tiny", 128 * 128)
    assert lowering.block.taps < lowering.window.taps


@pytest.mark.parametrize("target", TARGETS)
def test_integer_depthwise_accumulates_in_i32(target: str) -> None:
    group = Group()
    x, w = group.param("x", DType.U8, 1, 9, 9, 7), group.param("w", DType.I8, 3, 3, 1, 7)
    check(group.body(group.conv(x, w, out=DType.I32, low=(1, 1))), target, 9)


def test_large_depthwise_kernel_cuts_channels_on_a_small_machine() -> None:
    group = Group()
    x, w = group.param("x", DType.F32, 1, 10, 10, 256), group.param("w", DType.F32, 7, 7, 1, 256)
    lowering = check(group.body(group.conv(x, w, low=(3, 3))), "ppu-tiny", 49)
    assert lowering.tiles[-1] < 256


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.U8, DType.I8, DType.I32], ids=str)
def test_pool(target: str, kind: str, dtype: DType) -> None:
    group = Group()
    x = group.param("x", dtype, 2, 12, 15, 7)
    check(group.body(group.pool(x, kind, (3, 2), strides=(2, 1), low=(1, 0), high=(1, 1))), target, 6)


@pytest.mark.parametrize("target", TARGETS)
def test_pool_in_one_and_three_dimensions(target: str) -> None:
    for space, kernel in (((40,), (4,)), ((6, 5, 8), (3, 2, 3))):
        for kind in ("max", "sum"):
            group = Group()
            x = group.param("x", DType.F32, 1, *space, 5)
            rank = len(space)
            y = group.pool(x, kind, kernel, low=(1,) * rank, dilations=(2, *(1,) * (rank - 1)))
            check(group.body(with_epilogue(group, y)), target, math.prod(kernel) + 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize(("kernel", "stride"), [(512, 3), (37, 1), (64, 64), (33, 5)])
def test_long_windows_keep_the_program_short(target: str, kind: str, kernel: int, stride: int) -> None:
    group = Group()
    x = group.param("x", DType.F32, 1, 1100, 3)
    lowering = check(group.body(group.pool(x, kind, (kernel,), strides=(stride,), low=(7,))), target, kernel)
    (program,) = lowering.kernel.vectors
    assert len(program.steps) < 64


@pytest.mark.parametrize("target", TARGETS)
def test_window_over_the_whole_image_is_one_reduction(target: str) -> None:
    group = Group()
    x = group.param("x", DType.F32, 2, 7, 7, 40)
    lowering = check(group.body(group.pool(x, "sum", (7, 7))), target, 49)
    (program,) = lowering.kernel.vectors
    assert [step.op for step in program.steps] == ["reduce_sum", "reduce_sum"]


def test_padding_never_wins_a_maximum() -> None:
    for target in TARGETS:
        group = Group()
        x = group.param("x", DType.F32, 1, 5, 5, 3)
        y = group.pool(group.b("transpose", x, attrs=TransposeAttrs((0, 2, 1, 3))), "max", (3, 3), low=(1, 1))
        body = group.body(y)
        kernel, vectors = lowered(body, target_of(target)).lower().finish()
        data = -1 - np.random.default_rng(0).random((1, 5, 5, 3)).astype(np.float32)
        memory = {"x": data.reshape(-1).view(np.uint8).copy(), y.name: np.zeros(data.nbytes, np.uint8)}
        run_kernel(kernel, {v.name: v for v in vectors}, memory)
        got = memory[y.name].view(np.float32).reshape(data.shape)
        np.testing.assert_array_equal(got, run_graph(body, {"x": data})[y.name])
        assert got.max() <= -1


def test_identity_of_every_type() -> None:
    assert identity("sum", DType.F32) == 0
    assert identity("max", DType.BF16) == -math.inf
    assert identity("max", DType.I8) == -128
    assert identity("max", DType.U8) == 0
    assert identity("max", DType.F8E4M3) == -448


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [7, 8, 9, 15, 16, 17])
def test_ragged_tiles_on_every_axis(target: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowLowering, "_candidates", lambda self: iter([[1, 4, 4, min(8, size)]]))
    group = Group()
    x, w = group.param("x", DType.F32, 1, size, size + 1, size), group.param("w", DType.F32, 3, 3, 1, size)
    y = with_epilogue(group, group.conv(x, w, low=(1, 1)))
    check(group.body(y), target, 11)
    group = Group()
    x = group.param("x", DType.F32, 1, size, size + 1, size)
    check(group.body(with_epilogue(group, group.pool(x, "max", (3, 3), strides=(2, 1), low=(1, 1)))), target, 3)


@pytest.mark.parametrize("target", TARGETS)
def test_result_stored_through_reshape_and_transpose(target: str) -> None:
    group = Group()
    x, w = group.param("x", DType.F32, 2, 6, 5, 8), group.param("w", DType.F32, 3, 3, 1, 8)
    y = group.conv(x, w, low=(1, 1))
    tokens = group.b("reshape", y, attrs=ReshapeAttrs((2, 30, 8)))
    planes = group.b("transpose", group.b("relu", y), attrs=TransposeAttrs((0, 3, 1, 2)))
    check(group.body(tokens, planes), target, 9)


def test_normalisation_over_channels_joins_a_depthwise_convolution() -> None:
    group = Group()
    x, w = group.param("x", DType.F32, 1, 28, 28, 24), group.param("w", DType.F32, 3, 3, 1, 24)
    y = group.conv(x, w, low=(1, 1))
    total = group.b("reduce", y, attrs=ReduceAttrs("sum", (3,), True))
    mean = group.b("mul", total, group.b.scalar(1 / 24, DType.F32))
    centred = group.b("sub", y, mean)
    lowering = check(group.body(centred), "zhenwu-m890", 48)
    assert lowering.tiles[-1] == 24


def test_reasons() -> None:
    machine = target_of("ppu-tiny")

    def reason(body: Graph) -> str:
        with pytest.raises(NotFusable) as caught:
            check_window(body, machine)
        return str(caught.value)

    group = Group()
    x, w = group.param("x", DType.F32, 1, 8, 8, 4), group.param("w", DType.F32, 3, 3, 2, 4)
    attrs = ConvAttrs((1, 1), (0, 0), (0, 0), (1, 1), 2, "nhwc")
    assert "2 groups of 4 channels" in reason(group.body(group.b("conv", x, w, attrs=attrs)))
    group = Group()
    x = group.param("x", DType.F32, 1, 4, 8, 8)
    attrs_pool = PoolAttrs("max", (2, 2), (1, 1), (0, 0), (0, 0), (1, 1), "nchw")
    assert "nchw" in reason(group.body(group.b("pool", x, attrs=attrs_pool)))
    group = Group()
    x, w = group.param("x", DType.F32, 1, 8, 8, 1), group.param("w", DType.F32, 3, 3, 1, 16)
    assert "tensor engine" in reason(group.body(group.conv(x, w)))
    group = Group()
    x = group.param("x", DType.F32, 1, 8, 8, 8192)
    total = group.b("reduce", group.pool(x, "max", (2, 2)), attrs=ReduceAttrs("sum", (3,), True))
    body = group.body(total)
    with pytest.raises(NotFusable, match="fits l1 of 16384 bytes"):
        lower_window("k", body, {v.name: v.name for v in (*body.params, *body.results)}, (), machine)
    group = Group()
    x = group.param("x", DType.F32, 1, 56, 56, 64)
    y = group.pool(x, "max", (3, 3), low=(1, 1))
    whole = group.b("reduce", y, attrs=ReduceAttrs("max", (1, 2), True))
    assert "does not fit l1" in reason(group.body(whole))


def test_doubling_is_for_long_or_dense_windows() -> None:
    assert not doubles(3, 1, 1, 16)
    assert doubles(13, 1, 1, 64)
    assert doubles(512, 512, 1, 4)
    assert not doubles(16, 16, 1, 8)
