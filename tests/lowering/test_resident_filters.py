"""Convolutions on machines whose compilers keep filters in a large scratchpad, and arrays laid out in tiles there."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.ir.kernel import Kernel
from ppuc.ir.types import Space
from ppuc.targets import cost
from ppuc.targets.description import Target, load_target, override
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import simulate
from tests.support.onnx_text import model_of

TINY = override(load_target("ppu-tiny"), "launch.tile_sides=whole columns")
V3 = override(load_target("tpuv3-core"), "hbm.layout_tile=1,1")


def conv(dims: tuple[int, ...], attrs: str = "", groups: int = 1) -> tuple[onnx.ModelProto, np.ndarray]:
    """A channels-first convolution with a bias, Relu and constant filters, and an image: dims are images, height,
    width, channels, filters, side of the window."""
    n, h, w, c, k, r = dims
    rng = np.random.default_rng(sum(dims))
    weights = {"w": rng.standard_normal((k, c // groups, r, r), np.float32), "b": rng.standard_normal(k, np.float32)}
    text = f"""conv (float[{n}, {c}, {h}, {w}] x) => (float[a, d, e, f] y) {{
        t = Conv<group={groups}{attrs}>(x, w, b) y = Relu(t) }}"""
    return model_of(text, weights), rng.standard_normal((n, c, h, w), np.float32)


def channels_last(n: int, side: int, c: int, k: int) -> onnx.ModelProto:
    """A 3 x 3 convolution of images and filters that are inputs in the layout of the kernels."""
    return model_of(
        f"""conv (float[{n}, {side}, {side}, {c}] x, float[3, 3, {c}, {k}] w) => (float[{n}, {side}, {side}, {k}] y) {{
            first = Transpose<perm=[0, 3, 1, 2]>(x) filters = Transpose<perm=[3, 2, 0, 1]>(w)
            t = Conv<pads=[1, 1, 1, 1]>(first, filters) y = Transpose<perm=[0, 2, 3, 1]>(t) }}"""
    )


def run(model: onnx.ModelProto, target: Target = V3) -> tuple[Kernel, Profile]:
    compiled = compile_model(model, CompileOptions(target))
    assert compiled.module is not None
    (kernel,) = compiled.module.kernels
    return kernel, simulate(compiled.artifact.program, compiled.artifact.vectors, target, {}, None).profile


def rings(kernel: Kernel) -> dict[str, tuple[tuple[int, ...], int]]:
    return {b.name: (b.shape, b.depth) for b in kernel.buffers if b.space is Space.L1}


def test_images_that_a_quarter_of_l1_holds_are_loaded_multiplied_and_stored_one_after_another() -> None:
    n, side, c, k = 16, 28, 128, 128
    kernel, profile = run(channels_last(n, side, c, k))
    held = rings(kernel)
    assert held["wt"] == ((3, 3, c, k), 1)
    (images, *_), depth = held["xt"]
    assert depth == 1
    used = 4 * (9 * c * k + images * (side + 2) ** 2 * c + images * side**2 * k)
    assert used <= V3.l1.bytes // 4 < used / images * (images + 2), "as many as fit"
    moved = 4 * (n * side**2 * (c + k) + 9 * c * k)
    assert profile.read_bytes[Space.HBM] + profile.write_bytes[Space.HBM] == moved
    busy = 9 * n * side**2 * k / 128 / 2
    assert profile.cycles > 0.97 * (busy + moved / cost.hbm_bytes_per_clk(V3))


def test_images_stream_past_filters_that_a_quarter_of_l1_does_not_hold() -> None:
    n, side, c, k = 64, 7, 512, 512
    kernel, profile = run(channels_last(n, side, c, k))
    held = rings(kernel)
    assert held["wt"] == ((3, 3, c, k), 1)
    assert held["xt"][1] > 1
    assert held["xt"][0][0] > 1, "several images fill the array's rows while it loads the next block of filters"
    busy = 9 * (c / 128) * n * side**2 * (k / 128) / 2
    filters = 4 * 9 * c * k / cost.hbm_bytes_per_clk(V3)
    assert profile.cycles < 1.1 * (busy + filters)
    assert profile.read_bytes[Space.HBM] == 4 * (n * side**2 * c + 9 * c * k), "each filter is read once"


def test_filters_that_l1_does_not_hold_are_read_with_each_tile() -> None:
    kernel, _ = run(channels_last(2, 7, 1024, 512))
    assert all(depth > 1 for _, depth in rings(kernel).values())


@pytest.mark.parametrize(
    ("dims", "attrs", "groups"),
    [
        ((1, 5, 5, 16, 16, 3), "", 1),
        ((3, 4, 6, 16, 8, 3), ", pads=[1, 1, 1, 1]", 1),
        ((7, 4, 4, 5, 3, 2), "", 1),
        ((5, 6, 6, 16, 4, 3), ", strides=[2, 2], pads=[1, 0, 0, 1]", 1),
        ((2, 9, 9, 16, 4, 3), ", dilations=[2, 2], pads=[2, 2, 2, 2]", 1),
        ((2, 9, 8, 3, 20, 3), ", strides=[2, 1], pads=[1, 1, 1, 1]", 1),
        ((2, 30, 30, 16, 16, 3), ", pads=[1, 1, 1, 1]", 1),
        ((2, 6, 6, 64, 64, 3), ", pads=[1, 1, 1, 1]", 1),
        ((2, 1, 40, 16, 8, 1), "", 1),
        ((3, 6, 6, 32, 32, 3), ", pads=[1, 1, 1, 1]", 2),
    ],
    ids=["one", "images", "few", "strides", "dilations", "first", "large", "filters", "row", "groups"],
)
def test_values_are_right(dims: tuple[int, ...], attrs: str, groups: int) -> None:
    model, x = conv(dims, attrs, groups)
    result = ppuc.compile(model, target=TINY).run({"x": x})
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(result.outputs["y"], expected, rtol=1e-5, atol=1e-5 * dims[3] * dims[5] ** 2)
    assert not result.profile.hazards


@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ((64, 56, 56, 64), 2.0),  # 128 columns for 64 channels; 8 rows divide 64 images
        ((64, 28, 28, 128), 1.0),
        ((16, 512, 64), 1.0),  # 512 columns, 64 rows
        ((200_704, 64), 1.0),
        ((1, 64), 2.0),
        ((7, 200), 8 / 7 * 256 / 200),
        ((130, 3), 256 / 130 * 8 / 3),
        ((1,), 1.0),
    ],
)
def test_short_axes_are_padded_in_the_order_that_pads_least(shape: tuple[int, ...], weight: float) -> None:
    tiled = override(V3, "hbm.layout_tile=8,128")
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    assert cost.layout_weight(shape, strides, tiled) == pytest.approx(weight)
    turned = range(len(shape) - 1, -1, -1)
    assert cost.layout_weight([shape[i] for i in turned], [strides[i] for i in turned], tiled) == pytest.approx(weight)
    assert cost.layout_weight(shape, strides, V3) == 1.0


def test_a_repeated_axis_is_not_laid_out() -> None:
    tiled = override(V3, "hbm.layout_tile=8,128")
    assert cost.layout_weight((100, 8, 128), (0, 128, 1), tiled) == 1.0


def test_padding_takes_time_and_moves_no_bytes_of_the_model() -> None:
    model = channels_last(8, 56, 64, 64)
    tiled = override(V3, "hbm.layout_tile=8,128")
    (_, dense), (_, padded) = run(model), run(model, tiled)
    images = 4 * 8 * 56 * 56 * (64 + 64)
    assert padded.cycles - dense.cycles == pytest.approx(images / cost.hbm_bytes_per_clk(V3), rel=0.25)
    assert padded.read_bytes == dense.read_bytes
