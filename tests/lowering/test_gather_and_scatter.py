"""Kernels of gathers and scatters: the kernel interpreter against the graph interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ppuc.compiler.lowering.kernels.moves import lower_gather, lower_scatter
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Value
from ppuc.ir.kernel import Kernel
from ppuc.ir.ops.movement import GatherAttrs, ScatterNdAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType
from tests.lowering.move_kernels import (
    DTYPES,
    TARGETS,
    body_of,
    check,
    data,
    executed,
    expected_of,
    graph_of,
    names_of,
    op,
    slicing,
    target_of,
)


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
    with pytest.raises(NotFusable, match="the result does not share operand 0's memory"):
        lower_scatter("k", body, names_of(body), ("node",), target_of("ppu-tiny"))
