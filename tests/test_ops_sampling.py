"""Sampling at computed positions: record and decomposition against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from against_onnxruntime import both, floats, onnx_node
from single_node import without_composites

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.sampling import GridSampleAttrs

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
