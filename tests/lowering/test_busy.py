"""How long the queues of a unit work on a kernel: hand-written kernels against the cost model's formulas."""

from __future__ import annotations

import pytest

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.busy import bound_by, busy_clk
from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.kernel import Buffer, Kernel, Load, Loop, Mma, Param, Store, TileRef, Vec, View
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import Step, VecParam, VectorProgram
from ppuc.targets.description import load_target

TINY = load_target("ppu-tiny")


def product() -> tuple[Kernel, tuple[VectorProgram, ...]]:
    """y[64, 48] = relu(x[64, 32] w[32, 48]) in tiles of 16 x 48 x 16, rows distributed over 2 units; w is loaded k
    first, from memory in which k runs slowest, and a view whose first dimension is its columns."""
    params = (
        Param("x", "x", DType.F32, View((64, 32), (32, 1)), Space.HBM),
        Param("w", "w", DType.F32, View((48, 32), (1, 48)), Space.L2),
        Param("y", "y", DType.F32, View((64, 48), (48, 1)), Space.L2, written=True),
    )
    buffers = (
        Buffer("xt", DType.F32, (16, 16), Space.L1, 2),
        Buffer("wt", DType.F32, (16, 48), Space.L1, 2),
        Buffer("c", DType.F32, (16, 48), Space.ACC, 2),
        Buffer("o", DType.F32, (16, 48), Space.L1, 2),
    )
    m, k = var("m"), var("k")
    inner = (
        Load("wt", "w", (axis(1), k + axis(0))),
        Load("xt", "x", (m + axis(0), k + axis(1))),
        Mma("c", TileRef("xt"), TileRef("wt"), ("k",)),
    )
    rows = (
        Loop("k", 32, 16, inner),
        Vec("relu", ("o",), ("c",)),
        Store("y", "o", (m + axis(0), Affine() + axis(1))),
    )
    relu = VectorProgram("relu", (VecParam("a", DType.F32),), (("b", DType.F32),), (Step("b", "relu", ("a",)),))
    return Kernel("gemm", (("cm", 2),), params, buffers, (Loop("m", 64, 16, rows, "cm"),)), (relu,)


def test_every_queue_of_the_busiest_unit() -> None:
    """2 tiles of rows for each unit, 2 steps along k each."""
    kernel, vectors = product()
    busy = busy_clk(kernel, vectors, TINY)
    x = cost.load_clk(cost.Traffic(16 * 16 * 4, 16), TINY, 2, Space.HBM)  # 16 rows of 64 bytes
    w = cost.load_clk(cost.Traffic(16 * 48 * 4, 1), TINY, 2, Space.L2)  # 16 rows that follow each other
    assert busy["load"] == pytest.approx(2 * 2 * (x + w + 2 * cost.overhead_clk(TINY)))
    assert busy["tensor"] == pytest.approx(2 * 2 * cost.mma_clk(16, 48, 16, DType.F32, TINY))
    moved = 16 * 48 * 4 / TINY.acc.bytes_per_clk + 16 * 48 * 4 / TINY.l1.bytes_per_clk  # more than relu's lanes take
    assert busy["vector"] == pytest.approx(2 * (moved + cost.overhead_clk(TINY)))
    assert busy["store"] == pytest.approx(2 * cost.store_clk(cost.Traffic(16 * 48 * 4, 1), TINY, 2, Space.L2))


def test_what_bounds_a_kernel() -> None:
    busy = {"load": 100.0, "tensor": 300.0, "vector": 20.0, "store": 10.0}
    assert bound_by(busy, None) == "tensor"
    assert bound_by(busy, 550.0) == "tensor"
    assert bound_by(busy, 601.0) == "latency"
