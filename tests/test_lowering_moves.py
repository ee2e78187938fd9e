"""Kernels of copies, concatenations, gathers and scatters: the kernel interpreter against the graph interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.lowering.body import NotFusable
from ppuc.compiler.lowering.copies import Geometry, plan
from ppuc.compiler.lowering.moves import lower_concat, lower_copy, lower_gather, lower_scatter
from ppuc.compiler.lowering.nest import KernelBuilder
from ppuc.compiler.lowering.space import Access
from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.interpret_kernel import run_kernel
from ppuc.ir.kernel import Kernel, Store, Vec, View
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs, PadAttrs, ScatterNdAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from ppuc.ir.verify import verify_kernel, verify_vector
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target

TARGETS = ("ppu-tiny", "zhenwu-m890")
DTYPES = (DType.F32, DType.BF16, DType.I64, DType.BOOL, DType.U8)
Build = Callable[[Builder, Sequence[Value]], Value]


@functools.cache
def target_of(name: str) -> Target:
    """A machine by name; "cramped" has an l1 that few tiles fit."""
    return override(load_target("ppu-tiny"), "l1.bytes=512") if name == "cramped" else load_target(name)


def data(dtype: DType, *shape: int, seed: int = 0) -> np.ndarray:
    """Distinct-looking values of `dtype`, every bit pattern of small ints and both bools."""
    values = np.random.default_rng(seed).integers(-100, 100, shape)
    return (values % 2 == 0) if dtype is DType.BOOL else values.astype(dtype.numpy)


def body_of(types: Sequence[TensorType], build: Build) -> Graph:
    params = tuple(Value(f"p{i}", t) for i, t in enumerate(types))
    builder = Builder([p.name for p in params])
    result = build(builder, params)
    return Graph("body", params, (result,), tuple(builder.ops))


def graph_of(arrays: Sequence[np.ndarray], build: Build) -> Graph:
    return body_of([TensorType(DType.of(a.dtype), a.shape) for a in arrays], build)


def names_of(body: Graph) -> dict[str, str]:
    return {v.name: v.name for v in (*body.params, *body.results)}


def expected_of(body: Graph, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (result,) = run_graph(body, {p.name: a for p, a in zip(body.params, arrays, strict=True)}).values()
    return result


def executed(
    builder: KernelBuilder, body: Graph, arrays: Sequence[np.ndarray], target: Target, start: np.ndarray | None = None
) -> np.ndarray:
    """Run a lowered kernel. The result's memory holds `start`, or a pattern that no test expects."""
    kernel, vectors = builder.finish()
    verify_kernel(kernel, vectors)
    for vector in vectors:
        verify_vector(vector)
    assert sum(-(-b.bytes // 32) * 32 * b.depth for b in kernel.buffers) <= target.l1.bytes
    assert kernel.units <= target.cu
    result = body.results[0]
    memory = {p.name: np.array(a).reshape(-1).view(np.uint8) for p, a in zip(body.params, arrays, strict=True)}
    before = np.full(result.type.bytes, 0xA5, np.uint8) if start is None else np.array(start).reshape(-1).view(np.uint8)
    memory[result.name] = before
    run_kernel(kernel, {v.name: v for v in vectors}, memory)
    return memory[result.name].view(result.type.dtype.numpy).reshape(result.type.dims)


Lower = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], KernelBuilder]


def check(lower: Lower, arrays: Sequence[np.ndarray], build: Build, target: str) -> Kernel:
    """Lower, run and compare to the bit; returns the kernel."""
    body, machine = graph_of(arrays, build), target_of(target)
    builder = lower("k", body, names_of(body), ("node",), machine)
    result, expected = executed(builder, body, arrays, machine), expected_of(body, arrays)
    np.testing.assert_array_equal(result.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))
    return builder.finish()[0]


def op(name: str, attrs: Attrs) -> Build:
    return lambda b, values: b(name, *values, attrs=attrs)


def slicing(starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> SliceAttrs:
    return SliceAttrs(tuple(starts), tuple(sizes), tuple(steps))


# -- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(31, 33), (32, 32), (1, 65), (129, 1), (5, 3, 70), (2, 3, 4, 5)])
def test_transpose(shape: tuple[int, ...], dtype: DType, target: str) -> None:
    perm = tuple(reversed(range(len(shape))))
    check(lower_copy, [data(dtype, *shape)], op("transpose", TransposeAttrs(perm)), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "attrs",
    [
        slicing((2, 1), (10, 7), (3, 2)),
        slicing((32, 39), (33, 40), (-1, -1)),
        slicing((0, 39), (33, 5), (1, -7)),
        slicing((3, 0), (1, 40), (1, 1)),
    ],
)
def test_slice(attrs: SliceAttrs, target: str) -> None:
    check(lower_copy, [data(DType.F32, 33, 40)], op("slice", attrs), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(4, 7, 9), (1, 7, 9), (4, 7, 1)])
def test_expand(shape: tuple[int, ...], target: str) -> None:
    check(lower_copy, [data(DType.BF16, *shape)], op("expand", ExpandAttrs((4, 7, 9))), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("low", "high"), [((0, 0, 1, 2), (0, 0, 2, 1)), ((1, 0, 0, 0), (0, 3, 0, 0)), ((0,) * 4, (0, 0, 0, 5))]
)
def test_constant_pad(low: tuple[int, ...], high: tuple[int, ...], dtype: DType, target: str) -> None:
    attrs = PadAttrs(low, high, (0,) * 4, 1.0 if dtype is DType.BOOL else 3.0)
    check(lower_copy, [data(dtype, 2, 3, 17, 19)], op("pad", attrs), target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_result_is_stored_through_the_views_that_a_load_cannot_follow(target: str) -> None:
    """The elements of a reshaped transpose lie at no constant stride of the source, but the result splits."""

    def build(b: Builder, values: Sequence[Value]) -> Value:
        turned = b("transpose", values[0], attrs=TransposeAttrs((0, 2, 3, 1)))
        padded = b("pad", turned, attrs=PadAttrs((0, 0, 0, 1), (0, 0, 0, 1), (0,) * 4, 7.0))
        return b("reshape", padded, attrs=ReshapeAttrs((2, 5 * 6 * 9)))

    check(lower_copy, [data(DType.F32, 2, 7, 5, 6)], build, target)


def test_a_copy_in_between_is_refused() -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        flat = b("reshape", b("transpose", values[0], attrs=TransposeAttrs((1, 0))), attrs=ReshapeAttrs((30,)))
        return b("slice", flat, attrs=slicing((1,), (20,), (1,)))

    body = body_of([TensorType(DType.F32, (5, 6))], build)
    with pytest.raises(NotFusable, match=r"is not a view of a parameter|need a copy in between"):
        lower_copy("k", body, names_of(body), ("node",), target_of("ppu-tiny"))


@pytest.mark.parametrize("shape", [(64, 64), (3, 200, 130)])
def test_large_transposes_move_rows_on_both_sides(shape: tuple[int, ...]) -> None:
    """Whichever way is chosen, tiles must be blocks: long in the source's rows and in the result's."""
    perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    kernel = check(lower_copy, [data(DType.F32, *shape)], op("transpose", TransposeAttrs(perm)), "zhenwu-m890")
    assert min(kernel.buffers[0].shape[-2:]) >= 8


def test_turning_is_used_when_rows_cost_more_than_the_vector_engine() -> None:
    view, turned = View((256, 256), (256, 1)), View((256, 256), (1, 256))
    target = target_of("zhenwu-m890")
    assert plan(Geometry((256, 256), Access(turned, (0, 0)), view, DType.F32), target).turned
    assert not plan(Geometry((256, 256), Access(view, (0, 0)), view, DType.F32), target).turned
    assert not plan(Geometry((256, 256), Access(turned, (0, 0)), view, DType.F8E5M2), target).turned


def test_turned_tiles_reach_over_both_edges() -> None:
    kernel = check(lower_copy, [data(DType.F32, 131, 67)], op("transpose", TransposeAttrs((1, 0))), "zhenwu-m890")
    assert any(isinstance(stmt, Vec) for _, stmt in kernel.statements())


@pytest.mark.parametrize("shape", [(70, 50), (3, 300), (3, 40, 40)])
def test_tiles_keep_within_a_small_l1(shape: tuple[int, ...]) -> None:
    """`executed` adds up the buffers."""
    perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    x, rows = data(DType.F32, *shape), np.arange(shape[0])
    check(lower_copy, [x], op("transpose", TransposeAttrs(perm)), "cramped")
    check(lower_concat, [x, x], op("concat", ConcatAttrs(0)), "cramped")
    check(lower_gather, [x, rows], op("gather", GatherAttrs(0)), "cramped")


# -- concat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("extents", [(31, 32, 33), (1, 0, 5), (300, 1)])
def test_concat(extents: tuple[int, ...], axis: int, dtype: DType, target: str) -> None:
    shapes = [tuple(n if i == axis else d for i, d in enumerate((3, 5, 7))) for n in extents]
    arrays = [data(dtype, *shape, seed=i) for i, shape in enumerate(shapes)]
    check(lower_concat, arrays, op("concat", ConcatAttrs(axis)), target)


@pytest.mark.parametrize("target", TARGETS)
def test_concat_reads_and_writes_through_views(target: str) -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        turned = b("transpose", values[0], attrs=TransposeAttrs((1, 0)))
        reversed_ = b("slice", values[1], attrs=slicing((8, 0), (4, 20), (-2, 1)))
        padded = b("pad", values[1], attrs=PadAttrs((1, 0), (0, 0), (0, 0), 5.0))
        row = b("expand", values[2], attrs=ExpandAttrs((3, 20)))
        joined = b("concat", turned, reversed_, padded, row, values[1], attrs=ConcatAttrs(0))
        split = b("reshape", joined, attrs=ReshapeAttrs((joined.type.dims[0], 4, 5)))
        merged = b("reshape", split, attrs=ReshapeAttrs((joined.type.dims[0], 20)))
        turned = b("transpose", merged, attrs=TransposeAttrs((1, 0)))
        return b("reshape", turned, attrs=ReshapeAttrs((5, 4 * joined.type.dims[0])))

    arrays = [data(DType.F32, 20, 6), data(DType.F32, 9, 20, seed=1), data(DType.F32, 1, 20, seed=2)]
    check(lower_concat, arrays, build, target)


def test_operands_share_one_grid() -> None:
    """A flat operand and one of two axes are dealt over the same units; each is written once."""
    arrays = [data(DType.F32, 64, 40), data(DType.F32, 64, 3, seed=1)]
    kernel = check(lower_concat, arrays, op("concat", ConcatAttrs(1)), "zhenwu-m890")
    assert kernel.units > 1
    stores = [loops for loops, stmt in kernel.statements() if isinstance(stmt, Store)]
    assert all({axis for axis, _ in kernel.grid} == {loop.over for loop in loops if loop.over} for loops in stores)


def test_concat_takes_no_other_op() -> None:
    body = body_of(
        [TensorType(DType.F32, (2,))] * 2,
        lambda b, v: b("neg", b("concat", *v, attrs=ConcatAttrs(0))),
    )
    with pytest.raises(NotFusable, match="a group around one 'concat' has no place for concat, neg"):
        lower_concat("k", body, names_of(body), ("node",), target_of("ppu-tiny"))


# -- gather ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("index_shape", [(), (1,), (31,), (32,), (33,), (4, 65), (0,)])
def test_gather(index_shape: tuple[int, ...], axis: int, dtype: DType, target: str) -> None:
    x = data(dtype, 9, 6, 33)
    indices = np.random.default_rng(3).integers(-x.shape[axis], x.shape[axis], index_shape)
    check(lower_gather, [x, np.asarray(indices, np.int64)], op("gather", GatherAttrs(axis)), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", [1, 3, 255, 256, 257, 4099])
def test_gather_of_embeddings(width: int, target: str) -> None:
    indices = np.random.default_rng(4).integers(0, 50, (2, 77)).astype(np.int32)
    check(lower_gather, [data(DType.F32, 50, width), indices], op("gather", GatherAttrs(0)), target)


@pytest.mark.parametrize("target", TARGETS)
def test_gather_through_views(target: str) -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        x = b("transpose", values[0], attrs=TransposeAttrs((2, 0, 1)))
        rows = b("slice", values[1], attrs=slicing((1, 0), (3, 1), (2, 1)))
        picked = b("gather", x, rows, attrs=GatherAttrs(1))
        return b("transpose", picked, attrs=TransposeAttrs((1, 2, 0, 3)))

    indices = np.random.default_rng(5).integers(-8, 8, (7, 2))
    check(lower_gather, [data(DType.BF16, 8, 5, 6), indices], build, target)


def test_gather_of_scattered_index_dimensions_is_refused() -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        return b("gather", values[0], b("transpose", values[1], attrs=TransposeAttrs((1, 0))), attrs=GatherAttrs(0))

    body = body_of([TensorType(DType.F32, (5, 6)), TensorType(DType.I64, (3, 4))], build)
    with pytest.raises(NotFusable, match="are not one strided list"):
        lower_gather("k", body, names_of(body), ("node",), target_of("ppu-tiny"))


# -- scatter ---------------------------------------------------------------------------------------------------------


def scattered(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, reduction: str, target: str, *, constant: bool = False
) -> tuple[np.ndarray, np.ndarray, Kernel]:
    """What the kernel leaves in memory that held `x`, what the record says, and the kernel."""
    arrays = [x, indices, updates]
    body, machine = graph_of(arrays, op("scatter_nd", ScatterNdAttrs(reduction))), target_of(target)
    builder = lower_scatter("k", body, names_of(body), (), machine, indices if constant else None)
    return executed(builder, body, arrays, machine, x), expected_of(body, arrays), builder.finish()[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 7, 64, 1025])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 130])
def test_scatter_lets_the_last_update_win(count: int, columns: int, dtype: DType, target: str) -> None:
    indices = np.random.default_rng(6).integers(-20, 20, (count, 1))
    x, updates = data(dtype, 20, columns), data(dtype, count, columns, seed=1)
    result, expected, _ = scattered(x, indices, updates, "none", target)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("reduction", ["add", "mul", "min", "max"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.I64, DType.U8], ids=str)
def test_scatter_combines_in_order(dtype: DType, reduction: str, target: str) -> None:
    indices = np.random.default_rng(7).integers(-11, 11, (150, 1)).astype(np.int32)
    scale = 0.37 if dtype is DType.F32 else 1
    x, updates = data(dtype, 11, 9), (data(dtype, 150, 9, seed=1) * scale).astype(dtype.numpy)
    result, expected, _ = scattered(x, indices, updates, reduction, target)
    np.testing.assert_array_equal(result, expected)


def test_narrow_sums_round_after_every_update() -> None:
    """The record rounds once; after n updates of one row the sums differ by at most n roundings of the largest one."""
    count, dtype = 40, DType.BF16
    indices = np.zeros((count, 1), np.int64)
    x, updates = np.ones((3, 5), dtype.numpy), data(dtype, count, 5, seed=1)
    result, expected, _ = scattered(x, indices, updates, "add", "ppu-tiny")
    largest = 1 + np.abs(updates.astype(np.float32)).sum(axis=0)
    error = np.abs(result.astype(np.float32) - expected.astype(np.float32))
    assert (error <= (count + 1) * 2.0**-9 * largest).all()
    assert (error[1:] == 0).all()


def test_scattered_tiles_keep_within_a_small_l1() -> None:
    indices = np.arange(70)[:, None]
    result, expected, _ = scattered(data(DType.F32, 90, 50), indices, data(DType.F32, 70, 50), "none", "cramped")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_known_distinct_rows_are_spread_over_units(target: str) -> None:
    indices = np.random.default_rng(8).permutation(400)[:300, None] - 100
    x, updates = data(DType.F32, 400, 8), data(DType.F32, 300, 8, seed=1)
    result, expected, kernel = scattered(x, indices, updates, "none", target, constant=True)
    np.testing.assert_array_equal(result, expected)
    assert kernel.units > 1
    repeated = indices.copy()
    repeated[7] = repeated[5] - 400 if repeated[5] >= 0 else repeated[5] + 400
    result, expected, kernel = scattered(x, repeated, updates, "none", target, constant=True)
    np.testing.assert_array_equal(result, expected)
    loops = {loop.var: loop.over for around, _ in kernel.statements() for loop in around}
    assert loops.get("n") is None


def test_scatter_into_a_view_of_the_operand_is_refused() -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        x = b("transpose", values[0], attrs=TransposeAttrs((1, 0)))
        return b("scatter_nd", x, values[1], values[2], attrs=ScatterNdAttrs())

    types = [TensorType(DType.F32, (4, 6)), TensorType(DType.I64, (2, 1)), TensorType(DType.F32, (2, 4))]
    body = body_of(types, build)
    with pytest.raises(NotFusable, match="the result does not lie where operand 0 does"):
        lower_scatter("k", body, names_of(body), ("node",), target_of("ppu-tiny"))


# -- random ----------------------------------------------------------------------------------------------------------


def drawn_view(source: st.DataObject, b: Builder, x: Value) -> Value:
    """A random view or constant pad of `x`."""
    dims = x.type.dims
    name = source.draw(st.sampled_from(("transpose", "slice", "expand", "reshape", "pad")))
    if name == "transpose":
        return b(name, x, attrs=TransposeAttrs(tuple(source.draw(st.permutations(range(len(dims)))))))
    if name == "expand":
        return b(name, x, attrs=ExpandAttrs((source.draw(st.integers(1, 3)), *dims)))
    if name == "reshape":
        cut = source.draw(st.integers(0, len(dims)))
        parts = (int(np.prod(dims[:cut])), int(np.prod(dims[cut:])))
        return b(name, x, attrs=ReshapeAttrs(parts))
    if name == "pad":
        low, high = (tuple(source.draw(st.integers(0, 2)) for _ in dims) for _ in range(2))
        return b(name, x, attrs=PadAttrs(low, high, (0,) * len(dims), 3.0))
    bounds = [sorted(source.draw(st.tuples(*[st.integers(0, d - 1)] * 2))) for d in dims]
    steps = [source.draw(st.sampled_from((1, 2, -1))) for _ in dims]
    starts = [low if step > 0 else high for (low, high), step in zip(bounds, steps, strict=True)]
    sizes = [(high - low) // abs(step) + 1 for (low, high), step in zip(bounds, steps, strict=True)]
    return b(name, x, attrs=slicing(starts, sizes, steps))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_chains_of_views(source: st.DataObject) -> None:
    """Any chain of views either copies right or is refused."""
    shape = tuple(source.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))

    def build(b: Builder, values: Sequence[Value]) -> Value:
        value = values[0]
        for _ in range(source.draw(st.integers(1, 4))):
            value = drawn_view(source, b, value)
        return value

    try:
        check(lower_copy, [data(DType.I32, *shape)], build, source.draw(st.sampled_from(TARGETS)))
    except NotFusable as reason:
        assert "copy" in str(reason) or "view" in str(reason) or "descriptor" in str(reason)  # noqa: PT017
