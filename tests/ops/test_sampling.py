"""Sampling at computed positions: record and decomposition against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.sampling import GridSampleAttrs
from tests.support.against_onnxruntime import both, floats, onnx_node
from tests.support.single_node import without_composites

STEP = float(np.finfo(np.float32).eps)


def check(case: tuple[onnx.ModelProto, dict[str, np.ndarray]], record: str, tolerance: float) -> None:
    """The record, its decomposition and ONNX Runtime agree."""
    model, feeds = case
    ours, theirs = both(model, feeds)
    imported = load_model(model)
    assert record in [op.name for op in imported.graph.ops]
    named = {value.name: feeds[name] for name, value in imported.inputs}
    parts = run_graph(without_composites(imported.graph), named).values()
    for got, split, expected in zip(ours, parts, theirs, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(split, expected, rtol=tolerance, atol=tolerance)


def grid_tolerance(sizes: tuple[int, ...], reach: float) -> float:
    """A position is off by a few steps of its own size (the largest coordinate times half the axis), and that much of
    the largest difference between pixels (8), along each axis; times 4 for the slopes of cubic weights."""
    return 4 * len(sizes) * 8 * 3 * STEP * (reach * max(sizes) / 2 + 1)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    x, grid = floats(2, 3, 5, 7), floats(2, 4, 6, 2, low=-2.6, high=2.6)
    case = onnx_node(
        "GridSample", x, grid, opset=20, ir_version=10, mode=mode, padding_mode=padding, align_corners=align
    )
    check(case, "grid_sample", grid_tolerance((5, 7), 2.6))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_of_volumes(mode: str, padding: str) -> None:
    x, grid = floats(1, 2, 3, 4, 5), floats(1, 2, 3, 2, 3, low=-1.5, high=1.5)
    case = onnx_node("GridSample", x, grid, opset=20, ir_version=10, mode=mode, padding_mode=padding)
    check(case, "grid_sample", grid_tolerance((3, 4, 5), 1.5))


def test_grid_sample_of_opset_16() -> None:
    case = onnx_node("GridSample", floats(1, 1, 4, 4), floats(1, 3, 3, 2, low=-1, high=1), opset=16, mode="bilinear")
    check(case, "grid_sample", grid_tolerance((4, 4), 1))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample_of_one_pixel(padding: str) -> None:
    """There is no distance between the corners to divide by."""
    x = np.full((1, 1, 1, 1), 3, np.float32)
    reference = OPS["grid_sample"].reference
    assert reference is not None
    grid = np.zeros((1, 1, 1, 2), np.float32)
    for mode in ("linear", "nearest", "cubic"):
        (y,) = reference(GridSampleAttrs(mode, padding, True), x, grid)
        assert y.item() == pytest.approx(3)


def test_positions_that_are_no_numbers_read_something() -> None:
    """No index leaves the image."""
    grid = np.array([np.nan, 0, np.inf, 0, -np.inf, np.nan], np.float32).reshape(1, 1, 3, 2)
    reference = OPS["grid_sample"].reference
    assert reference is not None
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            assert reference(GridSampleAttrs(mode, padding), floats(1, 2, 3, 3), grid)[0].shape == (1, 2, 1, 3)


@pytest.mark.parametrize(
    ("attributes", "grid", "message"),
    [
        ({"mode": "wavy"}, (1, 2, 2, 2), "unknown mode or padding_mode"),
        ({}, (1, 2, 2, 3), r"x\[N, C, \*S\] and grid\[N, \*S', number of axes in S\] do not fit"),
    ],
)
def test_wrong_grid_samples_are_explained(attributes: dict[str, Any], grid: tuple[int, ...], message: str) -> None:
    model, _ = onnx_node("GridSample", floats(1, 1, 4, 4), floats(*grid), opset=20, ir_version=10, **attributes)
    with pytest.raises(ModelError, match=message):
        load_model(model)


ROIS = np.array([[1, 2, 9, 7], [0, 0, 3, 3], [-3, -2, 14, 12], [8, 3, 4, 1], [2.5, 2.5, 2.6, 2.6]], np.float32)
IMAGES = np.array([0, 1, 1, 0, 1], np.int64)


@pytest.mark.parametrize("opset", [10, 16])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_roi_align(ratio: int, mode: str, opset: int) -> None:
    attributes = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": 0.75}
    case = onnx_node("RoiAlign", floats(2, 3, 8, 11), ROIS, IMAGES, opset=opset, mode=mode, **attributes)
    check(case, "roi_align", grid_tolerance((8, 11), 2))


def test_roi_align_of_unknown_samples_is_refused() -> None:
    model, _ = onnx_node("RoiAlign", floats(2, 3, 8, 11), ROIS, IMAGES, opset=16)
    with pytest.raises(ModelError, match="the number of samples depends on the size of each region"):
        load_model(model)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_max_roi_pool(scale: float) -> None:
    regions = np.concatenate([IMAGES[:, None].astype(np.float32), ROIS], axis=1)
    case = onnx_node("MaxRoiPool", floats(2, 3, 8, 11), regions, pooled_shape=[3, 2], spatial_scale=scale)
    check(case, "max_roi_pool", 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deform_conv(groups: int, offset_groups: int, masked: bool) -> None:
    x, w = floats(2, 4, 6, 5), floats(6, 4 // groups, 3, 2, low=-1, high=1)
    offsets = floats(2, offset_groups * 12, 4, 3, low=-3, high=3)
    mask = floats(2, offset_groups * 6, 4, 3, low=0, high=1) if masked else None
    given = [x, w, offsets, floats(6), *([mask] if masked else [])]
    attributes = {"pads": [1, 0, 1, 1], "strides": [1, 2], "dilations": [2, 1], "group": groups}
    case = onnx_node("DeformConv", *given, opset=19, ir_version=9, offset_group=offset_groups, **attributes)
    # Sums of up to 24 products of a pixel (4) and a weight (1), each tap off by a few steps of its position.
    check(case, "deform_conv", 24 * grid_tolerance((6, 5), 1))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 1], "storage_order": 1},
        {"kernel_shape": [2, 3], "dilations": [2, 1], "ceil_mode": 1, "strides": [2, 2]},
    ],
    ids=str,
)
def test_max_pool_indices(attributes: dict[str, Any]) -> None:
    x = np.random.default_rng(3).integers(-4, 4, (2, 3, 7, 8)).astype(np.float32)
    model, feeds = onnx_node("MaxPool", x, opset=12, outputs=2, **attributes)
    for got, expected in zip(*both(model, feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shaped", [False, True])
def test_max_unpool(shaped: bool) -> None:
    indices = np.arange(12).reshape(1, 1, 3, 4) * 3 % 48
    given = [floats(1, 1, 3, 4), indices, *([np.array([1, 1, 6, 9])] if shaped else [])]
    constant = (2,) if shaped else ()
    model, feeds = onnx_node("MaxUnpool", *given, constant=constant, opset=11, kernel_shape=[2, 2], strides=[2, 2])
    for got, expected in zip(*both(model, feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("attributes", "steps"),
    [({}, 20), ({"strides": [2, 1], "pads": [1, 0, 0, 2]}, 21), ({"dilations": [2, 1]}, 15)],
    ids=str,
)
def test_col2im(attributes: dict[str, Any], steps: int) -> None:
    shapes = (np.array([5, 6]), np.array([2, 2]))
    model, feeds = onnx_node("Col2Im", floats(2, 3 * 4, steps), *shapes, constant=(1, 2), opset=18, **attributes)
    for got, expected in zip(*both(model, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=4 * STEP, atol=16 * STEP)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(1, 3, 4, 5), (2, 3, 4, 5), (1, 2, 3, 4, 2), (2, 1, 2, 5, 3)])
def test_affine_grid(size: tuple[int, ...], corners: int) -> None:
    """Of one image too, whose axis ONNX's function for the op removes."""
    rank = len(size) - 2
    theta = floats(size[0], rank, rank + 1)
    model, feeds = onnx_node(
        "AffineGrid", theta, np.array(size), opset=20, ir_version=10, constant=(1,), align_corners=corners
    )
    (ours,), (theirs,) = both(model, feeds)
    assert ours.shape == theirs.shape == (size[0], *size[2:], rank)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * STEP * float(np.abs(theta).max()))


def test_affine_grid_of_another_rank() -> None:
    model, _ = onnx_node(
        "AffineGrid", floats(1, 2, 3), np.array([1, 1, 2, 2, 2]), opset=20, ir_version=10, constant=(1,)
    )
    with pytest.raises(ModelError, match="theta and size do not fit"):
        load_model(model)
