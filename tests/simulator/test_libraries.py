"""Machines whose kernels a library ships: tiles in groups of rows, swapped operands, and the cost of both."""

from __future__ import annotations

import math

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ppuc.compiler.driver import compile_model
from ppuc.compiler.lowering.cost import contraction_traffic, l1_clk, mma_clk
from ppuc.compiler.options import CompileOptions
from ppuc.ir.types import DType, Space
from ppuc.targets import cost
from ppuc.targets.description import Target, load_target, override, validation_targets
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import simulate

A100, H100 = load_target("a100-class"), load_target("h100-class")


def linear(m: int, n: int, k: int) -> onnx.ModelProto:
    """y = x w^T with weights as an input, in bf16."""
    shapes = {"x": [m, k], "w": [n, k], "y": [m, n]}
    x, w, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, dims) for name, dims in shapes.items())
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    return helper.make_model(helper.make_graph([node], "g", [x, w], [y]), opset_imports=[helper.make_opsetid("", 17)])


def run(m: int, n: int, k: int, target: Target) -> tuple[Profile, tuple[int, ...]]:
    """The profile, and the tile of the first kernel."""
    compiled = compile_model(linear(m, n, k), CompileOptions(target))
    assert compiled.module is not None
    tile = next(b.shape for b in compiled.module.kernels[0].buffers if b.name == "c")
    return simulate(compiled.artifact.program, compiled.artifact.vectors, target, {}, None).profile, tile


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_groups_of_rows_are_nearly_even(rows: int, cols: int, high: int, wide: int, units: int) -> None:
    together = cost.group_rows(rows, cols, high, wide, units)
    assert 1 <= together <= high
    groups = -(-high // together)
    assert groups * together - high < groups, "groups differ by less than a row of tiles each"


def test_tiles_under_way_cover_a_square() -> None:
    together = cost.group_rows(128, 256, 1024, 1000, 128)
    assert together * 128 == 128 // together * 256
    assert cost.group_rows(128, 128, 4, 8, 64) == 4, "all tiles are under way at a time"


def test_traffic_of_a_cached_l2() -> None:
    weights, rows = 200e6, 10e6
    target = override(H100, "l2.bytes=50000000")
    one = contraction_traffic((128, 2, rows / 2), (256, 1000, weights / 1000), target)
    assert one == pytest.approx(rows + weights), "tiles that share weights run together"
    tall = contraction_traffic((128, 100, 1e6), (256, 1000, weights / 1000), target)
    together = cost.group_rows(128, 256, 100, 1000, target.cu)
    assert tall == pytest.approx(100e6 + weights * math.ceil(100 / together))
    assert contraction_traffic((128, 100, 1e4), (256, 10, 1e5), target) == 2e6, "what fits is read once"


@pytest.mark.parametrize(("m", "n"), [(16, 256), (48, 128), (136, 64), (200, 24)])
def test_operands_change_places_where_fewer_fragments_cover_a_tile(m: int, n: int) -> None:
    there, back = (cost.mma_cycles(*sides, 64, DType.BF16, H100) for sides in ((m, n), (n, m)))
    assert there == back
    fixed = override(H100, "launch.tiles=streaming")
    ways = [cost.mma_cycles(*sides, 64, DType.BF16, fixed) for sides in ((m, n), (n, m))]
    shape, (rows, cols) = cost.mma_shape(DType.BF16, H100), H100.tensor.lane_grid
    steps = [-(-a // (shape.m * rows)) * -(-b // (shape.n * cols)) for a, b in ((m, n), (n, m))]
    assert steps[0] != steps[1]
    assert there == ways[steps.index(min(steps))]


def test_l1_takes_operands_in_and_gives_them_out() -> None:
    m, n, k, loaded = 64, 64, 64, 2 * 2 * 64 * 64
    narrow = override(H100, "l1.bytes_per_clk=16")
    assert l1_clk(m, n, k, loaded, DType.BF16, narrow) > loaded / 16
    assert l1_clk(m, n, k, 2 * loaded, DType.BF16, narrow) - l1_clk(m, n, k, loaded, DType.BF16, narrow) == loaded / 16
    assert mma_clk(m, n, k, DType.BF16, narrow) <= l1_clk(m, n, k, 0, DType.BF16, narrow)


@pytest.mark.parametrize("rows", [48, 96, 192])
def test_few_rows_read_weights_larger_than_l2_once(rows: int) -> None:
    """Tiles cover all rows, or those that share weights run together."""
    n, k = 32768, 2048
    assert n * k * 2 > H100.l2.bytes
    profile, tile = run(rows, n, k, H100)
    assert tile[0] >= min(rows, 96)
    compulsory = 2 * (rows * k + n * k)
    assert profile.read_bytes[Space.HBM] < 1.1 * compulsory


def test_tiles_fill_the_units() -> None:
    """The last wave counts: 96 x 7168 x 5120 leaves no half of the units without work."""
    _, (rows, cols) = run(96, 7168, 5120, H100)
    tiles = -(-96 // rows) * -(-7168 // cols)
    assert tiles / (H100.cu * -(-tiles // H100.cu)) > 0.8


@pytest.mark.parametrize(("m", "n"), [(4, 4096), (48, 1024), (300, 500), (4096, 4096)])
def test_tiles_of_a_library_begin_at_64(m: int, n: int) -> None:
    _, tile = run(m, n, 1024, A100)
    assert all(side in (64, 128, 256) or side == whole < 64 for side, whole in zip(tile, (m, n), strict=True))


def test_a_library_splits_k_only_where_whole_waves_are_saved() -> None:
    """64 tiles are a wave of the 108 units; in halves they would be another wave of 20."""
    profile, tile = run(256, 2048, 3072, A100)
    assert (256 // tile[0]) * (2048 // tile[1]) == 64
    assert len(profile.kernels) == 1
    profile, _ = run(64, 1024, 8192, A100)
    assert len(profile.kernels) == 2, "16 tiles leave units for several parts"


def test_a_library_splits_one_tile_over_many_units() -> None:
    profile, tile = run(64, 64, 65536, A100)
    assert tile[-2:] == (64, 64)
    assert profile.kernels[0].units > 8


@pytest.mark.parametrize("name", validation_targets())
def test_every_machine_takes_a_product(name: str) -> None:
    """Not below its roofline."""
    target = load_target(name)
    m, n, k = 64, 512, 256
    profile, _ = run(m, n, k, target) if target.tensor.supports(DType.BF16) else (None, ())
    if profile is not None:
        ideal = max(2 * m * n * k / target.peak_tops(DType.BF16) / 1e12, 2 * (m * k + n * k) / target.hbm.gbs / 1e9)
        assert profile.seconds > ideal
