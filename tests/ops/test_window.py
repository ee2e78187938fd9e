"""Pools and resampling against ONNX Runtime, and what their records claim."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.ops import OPS
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.types import DType, TensorType
from tests.support.against_onnxruntime import indexing_of
from tests.support.single_node import check, directly, node_model, sum_tolerance, uniform, without_composites

WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 9), {"kernel_shape": [3], "strides": [2]}),
    ((2, 3, 8, 7), {"kernel_shape": [3, 2]}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 0]}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 3, 7, 6), {"kernel_shape": [1, 2], "strides": [3, 4], "pads": [0, 1, 0, 1], "ceil_mode": 1}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "VALID"}),
    ((1, 3, 8, 7), {"kernel_shape": [3, 2], "strides": [3, 4], "auto_pad": "VALID", "ceil_mode": 1}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [1, 1, 0, 0, 1, 1]}),
]


@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
def test_max_pool(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check("MaxPool", {"x": uniform(0, *shape)}, attributes)


@pytest.mark.parametrize("padding", [{"pads": [1, 2, 1, 2]}, {"ceil_mode": 1, "strides": [2, 2]}])
def test_dilated_max_pool(padding: dict[str, Any]) -> None:
    check("MaxPool", {"x": uniform(0, 1, 3, 10, 11)}, {"kernel_shape": [3, 3], "dilations": [2, 3], **padding})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_of_bytes(dtype: type) -> None:
    limits = np.iinfo(dtype)
    x: np.ndarray = np.random.default_rng(0).integers(limits.min, limits.max, (1, 2, 6, 6)).astype(dtype)
    check("MaxPool", {"x": x}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
def test_average_pool(shape: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    taps = int(np.prod(attributes["kernel_shape"]))
    attributes = {**attributes, "count_include_pad": include}
    check("AveragePool", {"x": uniform(0, *shape)}, attributes, opset=19, tolerance=sum_tolerance(taps))


@pytest.mark.parametrize("include", [0, 1])
def test_dilated_average_pool(include: int) -> None:
    attributes = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 2, 0], "count_include_pad": include}
    check("AveragePool", {"x": uniform(0, 1, 3, 9, 9)}, attributes, opset=19, tolerance=sum_tolerance(6))


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("shape", "attributes"), WINDOWS[:4])
def test_lp_pool(shape: tuple[int, ...], attributes: dict[str, Any], p: int) -> None:
    tolerance = 4 * sum_tolerance(int(np.prod(attributes["kernel_shape"])))
    check("LpPool", {"x": uniform(0, *shape)}, {**attributes, "p": p}, opset=18, tolerance=tolerance)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 4, 5, 6), (1, 2, 3, 4, 5)])
def test_global_pools(op_type: str, shape: tuple[int, ...]) -> None:
    tolerance = 0.0 if op_type == "GlobalMaxPool" else sum_tolerance(int(np.prod(shape[2:])))
    check(op_type, {"x": uniform(0, *shape)}, tolerance=tolerance)


@pytest.mark.parametrize(("kind", "combine", "identity"), [("max", max, -np.inf), ("sum", lambda a, b: a + b, 0.0)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pool_indexing(kind: str, combine: Any, identity: float, layout: str) -> None:
    attrs = PoolAttrs(kind, (2, 3), (2, 1), (1, 0), (0, 2), (1, 2), layout)
    x = uniform(0, 1, 2, 5, 4)
    x = np.moveaxis(x, 1, -1) if layout == "nhwc" else x
    types = [TensorType(DType.F32, x.shape)]
    indexing = indexing_of("pool", attrs, *types)
    want = directly("pool", attrs, x)
    got = np.full(OPS["pool"].infer(attrs, types)[0].dims, identity)
    for point in itertools.product(*(range(d.size) for d in indexing.dims)):
        env = {d.name: i for d, i in zip(indexing.dims, point, strict=True)}
        at = tuple(a.value(env) for a in indexing.operands[0])
        inside = all(0 <= i < n for i, n in zip(at, x.shape, strict=True))
        to = tuple(a.value(env) for a in indexing.results[0])
        got[to] = combine(got[to], float(x[at]) if inside else identity)
    np.testing.assert_allclose(got, want, rtol=0, atol=sum_tolerance(6))


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
SCALES = [(1, 1, 2, 2), (1, 1, 3, 2), (1, 1, 0.5, 0.5), (1, 1, 0.6, 1.7), (1, 1, 2.5, 0.3), (1, 1, 1, 1.4)]
SIZES = [(1, 2, 10, 14), (1, 2, 3, 4), (1, 2, 8, 5), (1, 2, 1, 1), (1, 2, 1, 20)]


def resize_inputs(
    scales: tuple[float, ...] | None = None, sizes: tuple[int, ...] | None = None, roi: tuple[float, ...] | None = None
) -> dict[str, np.ndarray | None]:
    """x [1, 2, 5, 7] and the other inputs of Resize."""
    return {
        "x": uniform(0, 1, 2, 5, 7),
        "roi": None if roi is None else np.array(roi, np.float32),
        "scales": None if scales is None else np.array(scales, np.float32),
        "sizes": None if sizes is None else np.array(sizes, np.int64),
    }


CONSTANT = ("roi", "scales", "sizes")
INTERPOLATED = 4 * sum_tolerance(16)
"""Weights add up to at most a few units and are f32 in both implementations; at most 4 x 4 taps meet."""


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("target", [*({"scales": s} for s in SCALES), *({"sizes": s} for s in SIZES)])
def test_resize_nearest(coordinates: str, rounding: str, target: dict[str, Any]) -> None:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    check("Resize", resize_inputs(**target), attributes, opset=19, constants=CONSTANT)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("target", [*({"scales": s} for s in SCALES), *({"sizes": s} for s in SIZES)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_interpolated(coordinates: str, mode: str, target: dict[str, Any]) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check("Resize", resize_inputs(**target), attributes, opset=19, constants=CONSTANT, tolerance=INTERPOLATED)


@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("a", [-0.5, -0.75])
@pytest.mark.parametrize("scales", SCALES)
def test_resize_cubic_options(a: float, exclude: int, scales: tuple[float, ...]) -> None:
    attributes = {"mode": "cubic", "cubic_coeff_a": a, "exclude_outside": exclude}
    check("Resize", resize_inputs(scales), attributes, opset=13, constants=CONSTANT, tolerance=INTERPOLATED)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("roi", [(0, 0, 0.1, 0.2, 1, 1, 0.8, 0.7), (0, 0, -0.3, 0.2, 1, 1, 1.2, 1.4)])
@pytest.mark.parametrize("sizes", [(1, 2, 6, 9), (1, 2, 5, 7), (1, 2, 5, 9), (1, 2, 1, 3)])
def test_resize_crops(mode: str, roi: tuple[float, ...], sizes: tuple[int, ...]) -> None:
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 10.0,
    }
    check("Resize", resize_inputs(None, sizes, roi), attributes, opset=13, constants=CONSTANT, tolerance=INTERPOLATED)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("scales", SCALES)
def test_resize_antialiased(mode: str, exclude: int, scales: tuple[float, ...]) -> None:
    attributes = {"mode": mode, "antialias": 1, "exclude_outside": exclude}
    check("Resize", resize_inputs(scales), attributes, opset=18, constants=CONSTANT, tolerance=INTERPOLATED)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_some_axes(policy: str, mode: str) -> None:
    attributes = {"mode": mode, "axes": [3, 2], "keep_aspect_ratio_policy": policy}
    inputs = resize_inputs(None, (11, 9))
    check("Resize", inputs, attributes, opset=18, constants=CONSTANT, tolerance=INTERPOLATED)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", SCALES)
def test_resize_before_opset_11(mode: str, scales: tuple[float, ...]) -> None:
    inputs = {"x": uniform(0, 1, 2, 5, 7), "scales": np.array(scales, np.float32)}
    check("Resize", inputs, {"mode": mode}, opset=10, constants=("scales",), tolerance=INTERPOLATED)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(mode: str, opset: int) -> None:
    x, scales = uniform(0, 1, 2, 5, 7), np.array([1, 1, 2, 3], np.float32)
    if opset == 7:
        check("Upsample", {"x": x}, {"mode": mode, "scales": scales.tolist()}, opset=7, tolerance=INTERPOLATED)
    else:
        inputs = {"x": x, "scales": scales}
        check("Upsample", inputs, {"mode": mode}, opset=9, constants=("scales",), tolerance=INTERPOLATED)


def test_resize_of_other_ranks() -> None:
    x = {"x": uniform(0, 2, 6), "roi": None, "scales": np.array([1.5, 2], np.float32)}
    check("Resize", x, {"mode": "linear"}, constants=CONSTANT, tolerance=INTERPOLATED)
    x = {"x": uniform(0, 1, 2, 3, 4, 5), "roi": None, "scales": np.array([1, 1, 2, 1.5, 0.7], np.float32)}
    check("Resize", x, {"mode": "linear"}, constants=CONSTANT, tolerance=INTERPOLATED)


def test_integer_upscale_is_a_broadcast_and_every_second_element_a_slice() -> None:
    for scales, ops in (((1, 1, 2, 2), ["reshape", "expand", "reshape"]), ((1, 1, 0.5, 0.5), ["slice", "slice"])):
        inputs = {"x": uniform(0, 1, 2, 4, 6), "roi": None, "scales": np.array(scales, np.float32)}
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        imported = load_model(node_model("Resize", inputs, attributes, constants=CONSTANT))
        assert [op.name for op in without_composites(imported.graph).ops] == ops


def test_resize_by_one_is_nothing() -> None:
    inputs = resize_inputs((1, 1, 1, 1))
    assert load_model(node_model("Resize", inputs, {}, constants=CONSTANT)).graph.ops == ()


def test_resize_needs_one_of_scales_and_sizes() -> None:
    model = node_model("Resize", resize_inputs((1, 1, 2, 2), (1, 2, 10, 14)), {}, constants=CONSTANT)
    with pytest.raises(ModelError, match="exactly one of 'scales' and 'sizes' must be given"):
        load_model(model)


# Kernels much larger than what they slide over.

FAR: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("MaxPool", (1, 2, 5, 6), {"kernel_shape": [65536, 3], "pads": [32768, 1, 32768, 1]}),
    ("MaxPool", (1, 2, 9), {"kernel_shape": [16385], "dilations": [2], "strides": [3], "pads": [16384, 16380]}),
    ("AveragePool", (1, 2, 9), {"kernel_shape": [65536], "pads": [65535, 65535], "strides": [5]}),
    ("AveragePool", (1, 2, 9), {"kernel_shape": [4096], "pads": [4095, 7], "strides": [3], "count_include_pad": 1}),
    ("LpPool", (1, 2, 9), {"kernel_shape": [65536], "pads": [32768, 32770], "p": 1}),
]


@pytest.mark.parametrize(("op", "shape", "attributes"), FAR)
def test_kernels_that_mostly_cover_padding(op: str, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """The taps that lie in the padding wherever the window is are left out: the others alone take no time."""
    check(op, {"x": uniform(3, *shape)}, attributes, tolerance=sum_tolerance(9))


def test_padding_beyond_measure_is_refused() -> None:
    model = node_model("MaxPool", {"x": uniform(0, 1, 2, 9)}, {"kernel_shape": [1 << 30], "pads": [1 << 29, 1 << 29]})
    with pytest.raises(ModelError, match="padding makes the spatial axes of the input too large"):
        load_model(model)
