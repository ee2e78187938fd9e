"""Quantization and integer products: record and decomposition against ONNX Runtime, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.quantized import QuantizeAttrs
from ppuc.ir.types import DType, parse_type
from tests.support.against_onnxruntime import both, floats, onnx_node
from tests.support.single_node import without_composites

Case = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def check(case: Case, off_by: float = 0, apart: float = 0) -> None:
    """Numbers of ONNX Runtime differ from the record's by `off_by` at most, those of its decomposition by `apart`."""
    model, feeds = case
    ours, theirs = both(model, feeds)
    imported = load_model(model)
    named = {value.name: feeds[name] for name, value in imported.inputs}
    parts = run_graph(without_composites(imported.graph), named).values()
    for got, split, expected in zip(ours, parts, theirs, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got.astype(np.float64), split.astype(np.float64), rtol=0, atol=apart)
        np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=0, atol=off_by)


def integers(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(limits.min, limits.max + 1, shape).astype(dtype)


HALVES = np.array([-300, -2.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 126.5, 127.5, 300, 40000, -40000, 1e20], np.float32)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_quantize_rounds_half_to_even_and_saturates(dtype: type, scale: float) -> None:
    check(onnx_node("QuantizeLinear", HALVES, np.float32(scale), dtype(3), opset=21, ir_version=10))


def test_quantize_without_a_zero_point_gives_u8() -> None:
    check(onnx_node("QuantizeLinear", HALVES, np.float32(2), opset=13))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantize_along_an_axis(axis: int) -> None:
    x, sizes = floats(3, 4, 5), (3, 4, 5)
    scale = floats(sizes[axis], low=0.01, high=0.1)
    zero = integers(np.uint8, sizes[axis])
    check(onnx_node("QuantizeLinear", x, scale, zero, opset=13, axis=axis))
    check(onnx_node("DequantizeLinear", integers(np.uint8, *sizes), scale, zero, opset=13, axis=axis))


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks(axis: int, size: int) -> None:
    """The last block may be shorter."""
    shape = (size, 3) if axis == 0 else (3, size)
    scales = (4, 3) if axis == 0 else (3, 4)
    scale, zero = floats(*scales, low=0.01, high=0.1), integers(np.int8, *scales)
    case = onnx_node("QuantizeLinear", floats(*shape), scale, zero, opset=21, ir_version=10, axis=axis, block_size=2)
    check(case)
    stored = integers(np.int8, *shape)
    check(onnx_node("DequantizeLinear", stored, scale, zero, opset=21, ir_version=10, axis=axis, block_size=2))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("with_zero", [False, True])
def test_dequantize(dtype: type, with_zero: bool) -> None:
    zero = [dtype(0 if dtype is np.int32 else 17)] if with_zero else []
    check(onnx_node("DequantizeLinear", integers(dtype, 4, 9), np.float32(0.37), *zero, opset=21, ir_version=10))


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("saturate", [0, 1])
def test_quantize_to_small_floats(dtype: type, saturate: int) -> None:
    x = np.array([0.1, 1, -3.3, 447, 470, 1e5, -1e6, np.inf], np.float32)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model, feeds = onnx_node("QuantizeLinear", x, np.float32(0.5), opset=23, ir_version=11, saturate=saturate,
                             output_dtype=kind)  # fmt: skip
    ours, _ = load_model(model), feeds
    (got,) = run_graph(ours.graph, {value.name: feeds[name] for name, value in ours.inputs}).values()
    bound = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    expected = (np.clip(x / 0.5, -bound, bound) if saturate else x / np.float32(0.5)).astype(dtype)
    np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


def packed_model(op: str, elem: int, stored: np.ndarray, zero: int) -> onnx.ModelProto:
    """x or a 4-bit initializer through `op` with a 4-bit zero point."""
    zeros = helper.make_tensor("zero", elem, [], [zero])
    weights = [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]), zeros]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, stored.shape)]
    node = helper.make_node(op, ["x" if op == "QuantizeLinear" else "w", "scale", "zero"], ["y"])
    nodes, out = [node], ("y", elem)
    if op == "DequantizeLinear":
        weights.append(helper.make_tensor("w", elem, stored.shape, stored.reshape(-1).tolist()))
        nodes, out = [node, helper.make_node("Add", ["x", "y"], ["z"])], ("z", TensorProto.FLOAT)
    outputs = [helper.make_tensor_value_info(out[0], out[1], stored.shape)]
    graph = helper.make_graph(nodes, "packed", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("elem", "low"), [(TensorProto.INT4, -8), (TensorProto.UINT4, 0)])
def test_packed_weights(elem: int, low: int, tmp_path: Path) -> None:
    stored = np.arange(low, low + 15).reshape(3, 5)
    model = packed_model("DequantizeLinear", elem, stored, 3)
    onnx.save(model, tmp_path / "m.onnx")
    for source in (model, tmp_path / "m.onnx"):
        imported = load_model(source)
        x = floats(3, 5)
        (got,) = run_graph(imported.graph, {imported.inputs[0][1].name: x}).values()
        np.testing.assert_array_equal(got, x + (stored - 3).astype(np.float32) * np.float32(0.5))


@pytest.mark.parametrize(("elem", "low", "high"), [(TensorProto.INT4, -8, 7), (TensorProto.UINT4, 0, 15)])
def test_quantize_to_packed_numbers_saturates_at_their_range(elem: int, low: int, high: int) -> None:
    """Kept in bytes, but never beyond 4 bits."""
    imported = load_model(packed_model("QuantizeLinear", elem, np.zeros((1, 5)), 2))
    x = np.array([[-50, -1, 0, 1, 50]], np.float32)
    (got,) = run_graph(imported.graph, {imported.inputs[0][1].name: x}).values()
    np.testing.assert_array_equal(got, np.clip(x / 0.5 + 2, low, high).astype(got.dtype))


@pytest.mark.parametrize("x", [floats(4, 7), np.abs(floats(5)), -np.abs(floats(5)), np.zeros(3, np.float32)])
def test_dynamic_quantize(x: np.ndarray) -> None:
    check(onnx_node("DynamicQuantizeLinear", x, opset=11, outputs=3))


ZEROS: list[dict[str, Any]] = [
    {},
    {"a": np.uint8(0)},
    {"a": np.uint8(117)},
    {"a": np.uint8(117), "b": np.int8(-5)},
    {"a": np.uint8(117), "b": integers(np.int8, 6)},
    {"b": np.int8(9)},
]


@pytest.mark.parametrize("zeros", ZEROS, ids=str)
@pytest.mark.parametrize("known", [False, True])
def test_matmul_integer(zeros: dict[str, Any], known: bool) -> None:
    a, b = integers(np.uint8, 2, 5, 8), integers(np.int8, 8, 6)
    points = [zeros.get("a"), zeros.get("b")] if "b" in zeros else [v for v in (zeros.get("a"),) if v is not None]
    constant = (1, *(i + 2 for i, v in enumerate(points) if v is not None)) if known else ()
    check(onnx_node("MatMulInteger", a, b, *points, constant=constant, opset=10))


@pytest.mark.parametrize(("a", "b"), [((8,), (8, 3)), ((2, 8), (8,)), ((8,), (8,))])
def test_matmul_integer_of_vectors(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """ONNX Runtime refuses rank 1; numpy is the yardstick, as the operator's definition says."""
    model, feeds = onnx_node("MatMulInteger", integers(np.int8, *a), integers(np.int8, *b), opset=10)
    imported = load_model(model)
    (got,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    np.testing.assert_array_equal(got, np.matmul(feeds["x0"].astype(np.int32), feeds["x1"].astype(np.int32)))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1]])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("zeros", [(), (0,), (113,), (113, 7)])
@pytest.mark.parametrize("known", [False, True])
def test_conv_integer(known: bool, zeros: tuple[int, ...], groups: int, pads: list[int]) -> None:
    x, w = integers(np.uint8, 2, 4, 6, 5), integers(np.uint8, 6, 4 // groups, 3, 2)
    points = [np.uint8(z) for z in zeros]
    constant = tuple(range(1, 2 + len(zeros))) if known else ()
    case = onnx_node("ConvInteger", x, w, *points, constant=constant, opset=10, pads=pads, strides=[2, 1], group=groups)
    check(case)


@pytest.mark.parametrize("per_column", [False, True])
def test_qlinear_matmul(per_column: bool) -> None:
    a, b = integers(np.uint8, 4, 40), integers(np.int8, 40, 6)
    scale = floats(6, low=0.002, high=0.01) if per_column else np.float32(0.004)
    zero = np.zeros(6, np.int8) if per_column else np.int8(3)
    given = (a, np.float32(0.02), np.uint8(121), b, scale, zero, np.float32(0.11), np.uint8(130))
    check(onnx_node("QLinearMatMul", *given, constant=tuple(range(1, 8)), opset=10))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_qlinear_conv(groups: int, biased: bool, signed: bool) -> None:
    w_type = np.int8 if signed else np.uint8
    x, w = integers(np.uint8, 1, 4, 9, 7), integers(w_type, 8, 4 // groups, 3, 3)
    given: list[Any] = [x, np.float32(0.021), np.uint8(119), w, np.float32(0.0043), w_type(0 if signed else 125)]
    given += [np.float32(0.31), np.uint8(133), *([integers(np.int16, 8).astype(np.int32)] if biased else [])]
    case = onnx_node(
        "QLinearConv", *given, constant=tuple(range(1, len(given))), opset=10, pads=[1, 1, 1, 1], group=groups
    )
    check(case)


def test_qlinear_conv_with_a_scale_a_channel() -> None:
    x, w = integers(np.uint8, 1, 3, 6, 6), integers(np.int8, 5, 3, 3, 3)
    given = [x, np.float32(0.02), np.uint8(7), w, floats(5, low=0.001, high=0.01), np.zeros(5, np.int8)]
    given += [np.float32(0.2), np.uint8(100)]
    check(onnx_node("QLinearConv", *given, constant=tuple(range(1, 8)), opset=10, strides=[2, 2]))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["f32[4]", "i8[]"], "takes x, float scales"),
        (["f32[4]", "f32[3]"], r"scales of f32\[4\] along axis 0 should have shape \[4\]"),
        (["f32[4]", "f32[]", "u8[]"], r"zero points should be i8\[\]"),
    ],
)
def test_wrong_operands_are_explained(types: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS["quantize"].infer(QuantizeAttrs(DType.I8), [parse_type(t) for t in types])


def test_an_axis_out_of_range_is_explained() -> None:
    model, _ = onnx_node("QuantizeLinear", floats(4, 3), floats(3), integers(np.int8, 3), opset=13, axis=2)
    with pytest.raises(ModelError, match="axis is out of range"):
        load_model(model)
