"""Kernels of copies, concatenations, gathers and scatters: the kernel interpreter against the graph interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.lowering.kernels.copies import Geometry, plan
from ppuc.compiler.lowering.kernels.moves import lower_copy, lower_gather
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.space import Access
from ppuc.ir.graph import Value
from ppuc.ir.kernel import Store, Vec, View
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs, PadAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from tests.lowering.move_kernels import DTYPES, TARGETS, body_of, check, data, names_of, op, slicing, target_of


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


@pytest.mark.parametrize("target", TARGETS)
def test_a_part_of_a_flat_transpose_is_copied_in_pieces(target: str) -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        flat = b("reshape", b("transpose", values[0], attrs=TransposeAttrs((1, 0))), attrs=ReshapeAttrs((30,)))
        return b("slice", flat, attrs=slicing((1,), (20,), (1,)))

    check(lower_copy, [data(DType.F32, 5, 6)], build, target)


def test_a_copy_in_between_is_refused() -> None:
    def build(b: Builder, values: Sequence[Value]) -> Value:
        flat = b("reshape", b("transpose", values[0], attrs=TransposeAttrs((1, 0))), attrs=ReshapeAttrs((10, 3)))
        return b("slice", flat, attrs=slicing((1, 1), (7, 2), (1, 1)))

    body = body_of([TensorType(DType.F32, (5, 6))], build)
    with pytest.raises(NotFusable, match="regroups elements across dimensions"):
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
    assert plan(Geometry((256, 256), Access(turned, (0, 0)), view, DType.F32), target).transposed
    assert not plan(Geometry((256, 256), Access(view, (0, 0)), view, DType.F32), target).transposed
    assert plan(Geometry((256, 256), Access(turned, (0, 0)), view, DType.F8E4M3), target).transposed
    assert not plan(Geometry((256, 256), Access(turned, (0, 0)), view, DType.F8E5M2), target).transposed


def test_turning_keeps_every_code_of_e4m3() -> None:
    """NaNs included: they are the only numbers that are not finite."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (64, 1)).view(DType.F8E4M3.numpy)
    check(lower_copy, [codes], op("transpose", TransposeAttrs((1, 0))), "zhenwu-m890")


def test_turned_tiles_reach_over_both_edges() -> None:
    kernel = check(lower_copy, [data(DType.F32, 131, 67)], op("transpose", TransposeAttrs((1, 0))), "zhenwu-m890")
    assert any(isinstance(stmt, Vec) for _, stmt in kernel.statements())


@pytest.mark.parametrize("shape", [(70, 50), (3, 300), (3, 40, 40)])
def test_tiles_keep_within_a_small_l1(shape: tuple[int, ...]) -> None:
    """`executed` adds up the buffers."""
    perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    x, rows = data(DType.F32, *shape), np.arange(shape[0])
    check(lower_copy, [x], op("transpose", TransposeAttrs(perm)), "cramped")
    check(lower_copy, [x, x], op("concat", ConcatAttrs(0)), "cramped")
    check(lower_gather, [x, rows], op("gather", GatherAttrs(0)), "cramped")


# -- concat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("extents", [(31, 32, 33), (1, 0, 5), (300, 1)])
def test_concat(extents: tuple[int, ...], axis: int, dtype: DType, target: str) -> None:
    shapes = [tuple(n if i == axis else d for i, d in enumerate((3, 5, 7))) for n in extents]
    arrays = [data(dtype, *shape, seed=i) for i, shape in enumerate(shapes)]
    check(lower_copy, arrays, op("concat", ConcatAttrs(axis)), target)


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
    check(lower_copy, arrays, build, target)


def test_operands_share_one_grid() -> None:
    """A flat operand and one of two axes are distributed over the same units; each is written once."""
    arrays = [data(DType.F32, 64, 40), data(DType.F32, 64, 3, seed=1)]
    kernel = check(lower_copy, arrays, op("concat", ConcatAttrs(1)), "zhenwu-m890")
    assert kernel.units > 1
    stores = [loops for loops, stmt in kernel.statements() if isinstance(stmt, Store)]
    assert all({axis for axis, _ in kernel.grid} == {loop.over for loop in loops if loop.over} for loops in stores)


def test_concat_takes_no_other_op() -> None:
    body = body_of(
        [TensorType(DType.F32, (2,))] * 2,
        lambda b, v: b("neg", b("concat", *v, attrs=ConcatAttrs(0))),
    )
    with pytest.raises(NotFusable, match="is neither a view of memory nor moved from one"):
        lower_copy("k", body, names_of(body), ("node",), target_of("ppu-tiny"))


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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("shape", "low", "high", "starts", "sizes"),
    [
        ((1, 1), (1, 0), (0, 0), (0, 0), (1, 1)),  # only padding
        ((1, 1), (1, 0), (0, 2), (1, 0), (1, 3)),
        ((1, 4), (2, 1), (0, 1), (0, 0), (1, 6)),
        ((3, 4), (1, 0), (1, 0), (2, 1), (1, 2)),
        ((3, 4), (1, 3), (1, 0), (1, 0), (1, 1)),
    ],
)
def test_one_index_of_a_padded_dimension(
    target: str, shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], starts: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:  # fmt: skip
    """The index may be one of the padding's, which an axis of a single element does not show."""

    def build(b: Builder, values: Sequence[Value]) -> Value:
        padded = b("pad", values[0], attrs=PadAttrs(low, high, (0,) * len(shape), 3.0))
        return b("slice", padded, attrs=slicing(starts, sizes, (1,) * len(shape)))

    check(lower_copy, [data(DType.I32, *shape)], build, target)


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
        reasons = ("view", "descriptor", "regroups elements", "in steps of", "constant stride", "is not made of parts")
        assert any(why in str(reason) for why in reasons)  # noqa: PT017
