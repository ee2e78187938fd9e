"""Elementwise records against their own claims, and their importers against ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Attrs
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.elementwise import ELEMENTWISE, TABLE, CastAttrs, Row, convert, evaluate
from ppuc.ir.types import DType, parse_type
from tests.support.against_onnxruntime import F32_STEP, assert_agrees, computed, floats, indexing_of, onnx_node, type_of


def sample(dtype: DType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small values that are exact in every dtype."""
    low = 0 if dtype.value[0] == "u" or dtype is DType.BOOL else -3
    high = 2 if dtype is DType.BOOL else 4
    whole = np.random.default_rng(seed).integers(low, high, shape)
    exact = np.abs(whole).clip(1) if dtype is DType.F8E8M0 else whole
    return exact.astype(np.float32).astype(dtype.numpy)


@pytest.mark.parametrize(
    ("row", "dtype"), [pytest.param(r, d, id=f"{r.name}-{d}") for r in TABLE for d in DType if d in r.dtypes]
)
def test_infer_agrees_with_reference(row: Row, dtype: DType) -> None:
    shapes = ((2, 1, 3), (4, 1), ())
    arrays = [sample(dtype, s, i) for i, s in enumerate(shapes[: len(row.operands.split(", "))])]
    if row.name == "select":
        arrays[0] = sample(DType.BOOL, shapes[0], 0)
    attrs = row.attrs()
    result = computed(row.name, attrs, *arrays)
    indexing = indexing_of(row.name, attrs, *map(type_of, arrays))
    assert tuple(d.size for d in indexing.dims) == result.shape
    assert len(indexing.operands) == len(arrays)


def test_every_row_is_a_record_and_an_evaluator() -> None:
    assert set(ELEMENTWISE) == {row.name for row in TABLE}
    assert set(ELEMENTWISE) <= set(OPS)


@pytest.mark.parametrize(("source", "to"), [(s, t) for s in DType for t in DType], ids=lambda d: d.value)
def test_cast_gives_the_dtype_and_keeps_small_numbers(source: DType, to: DType) -> None:
    x = np.array([[1, 2, 4]]).astype(np.float32).astype(source.numpy)
    result = computed("cast", CastAttrs(to), x)
    assert result.dtype == to.numpy
    assert result.shape == x.shape
    expected = [[1, 1, 1]] if DType.BOOL in (source, to) else [[1, 2, 4]]
    np.testing.assert_array_equal(result.astype(np.float32), np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("dtype", "largest", "overflow"), [(DType.F8E4M3, 448.0, np.nan), (DType.F8E5M2, 57344.0, np.inf)]
)
def test_cast_to_f8_saturates_by_default(dtype: DType, largest: float, overflow: float) -> None:
    x = np.array([1e6, -1e6, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(convert(x, dtype).astype(np.float32), [largest, -largest, largest, np.nan])
    np.testing.assert_array_equal(
        convert(x, dtype, saturate=False).astype(np.float32), [overflow, -overflow, overflow, np.nan]
    )


def test_narrow_floats_are_rounded_once() -> None:
    x = np.array([1.0]).astype(ml_dtypes.bfloat16)
    y = np.array([2.0**-8 + 2.0**-16]).astype(ml_dtypes.bfloat16)
    total = computed("add", Attrs(), x, y)
    assert float(total[0]) == float(np.float32(1.0 + float(y[0])).astype(ml_dtypes.bfloat16))
    fine = computed("exp", Attrs(), np.array([3.0], np.float16))
    assert fine[0] == np.float16(np.exp(np.float32(3.0)))


def test_erf_is_accurate_in_f32() -> None:
    x = np.concatenate([np.linspace(-6, 6, 20001), [0.0, 1e-30, -1e-6]]).astype(np.float32)
    exact = np.array([math.erf(float(v)) for v in x])
    assert np.abs(evaluate("erf", x) - exact).max() < 1e-7
    assert np.isnan(evaluate("erf", np.array(np.nan, np.float32)))
    np.testing.assert_array_equal(evaluate("erf", np.array([np.inf, -np.inf], np.float32)), [1, -1])
    assert evaluate("erf", np.array([0.5]))[0] == math.erf(0.5)


def test_sigmoid_does_not_overflow() -> None:
    x = np.array([-200, -80, 0, 80, 200], np.float32)
    with np.errstate(all="raise"):
        result = evaluate("sigmoid", x)
    np.testing.assert_allclose(result, [0, 1.8048513878454153e-35, 0.5, 1, 1], rtol=4 * F32_STEP)


def test_integer_division_and_remainders() -> None:
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    np.testing.assert_array_equal(evaluate("div", x, y), [3, -3, -3, 3])
    np.testing.assert_array_equal(evaluate("mod", x, y), [1, 1, -1, -1])
    np.testing.assert_array_equal(evaluate("fmod", x, y), [1, -1, 1, -1])
    x, y = np.array([2, 2, 1, -1, -1, 3], np.int32), np.array([5, -1, -3, -3, -2, 0], np.int32)
    np.testing.assert_array_equal(evaluate("pow", x, y), [32, 0, 1, -1, 1, 1])


@pytest.mark.parametrize(
    ("name", "types", "message"),
    [
        ("add", ["f32[2]", "f16[2]"], r"operands of add must have one element type \(got f32\[2\], f16\[2\]\)"),
        ("add", ["f32[2]", "f32[3]"], r"shapes \[2\] and \[3\] do not broadcast"),
        ("and", ["i32[2]", "i32[2]"], r"and is not defined for i32 \(got i32\[2\], i32\[2\]\)"),
        ("exp", ["i64[2]"], r"exp is not defined for i64 \(got i64\[2\]\)"),
        ("exp", ["f8e8m0[2]"], r"exp is not defined for f8e8m0"),
        ("mul", ["f32[2]"], r"mul takes 2 operands \(got 1\)"),
        ("select", ["i32[2]", "f32[2]", "f32[2]"], r"the condition of select must be bool \(got i32\[2\]\)"),
    ],
)
def test_wrong_operands_are_explained(name: str, types: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS[name].infer(Attrs(), [parse_type(t) for t in types])


UNARY = {
    "Abs": (-4, 4),
    "Acos": (-1, 1),
    "Acosh": (1, 9),
    "Asin": (-1, 1),
    "Asinh": (-4, 4),
    "Atan": (-4, 4),
    "Atanh": (-0.9, 0.9),
    "Ceil": (-4, 4),
    "Cos": (-9, 9),
    "Cosh": (-4, 4),
    "Erf": (-4, 4),
    "Exp": (-9, 9),
    "Floor": (-4, 4),
    "Log": (1e-6, 9),
    "Neg": (-4, 4),
    "Reciprocal": (0.1, 4),
    "Round": (-4, 4),
    "Sigmoid": (-9, 9),
    "Sign": (-4, 4),
    "Sin": (-9, 9),
    "Sinh": (-4, 4),
    "Sqrt": (0, 9),
    "Tan": (-1.4, 1.4),
    "Tanh": (-9, 9),
}


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type: str) -> None:
    low, high = UNARY[op_type]
    assert_agrees(*onnx_node(op_type, floats(5, 7, low=low, high=high)), steps=8)


def test_round_takes_ties_to_even() -> None:
    assert_agrees(*onnx_node("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)))


@pytest.mark.parametrize(
    "op_type", ["Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_binary(op_type: str, dtype: type) -> None:
    x: np.ndarray = np.array([[-7, -2, 0], [3, 7, 9]], dtype)
    y: np.ndarray = np.array([2, -2, 4], dtype)
    assert_agrees(*onnx_node(op_type, x, y))


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor", "Equal"])
def test_logic(op_type: str) -> None:
    assert_agrees(*onnx_node(op_type, np.array([[True], [False]]), np.array([True, False])))


def test_not() -> None:
    assert_agrees(*onnx_node("Not", np.array([True, False])))


@pytest.mark.parametrize("op_type", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(op_type: str) -> None:
    assert_agrees(*onnx_node(op_type, np.array([12, -5, 7], np.int32), np.array([10, 3, -1], np.int32)))
    assert_agrees(*onnx_node("BitwiseNot", np.array([12, -5, 7], np.int32)))


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bitshift(direction: str) -> None:
    assert_agrees(
        *onnx_node("BitShift", np.array([16, 200, 3], np.uint8), np.array([1, 3, 0], np.uint8), direction=direction)
    )


@pytest.mark.parametrize("op_type", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_variadic(op_type: str, count: int) -> None:
    arrays = [floats(*(1,) * i, 3) + i for i in range(count)]
    assert_agrees(*onnx_node(op_type, *arrays), steps=4)


def test_max_propagates_nan() -> None:
    x, y = np.array([1, np.nan, 3], np.float32), np.array([np.nan, 2, 4], np.float32)
    assert_agrees(*onnx_node("Max", x, y))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_mod(dtype: type) -> None:
    x: np.ndarray = np.array([-7, 7, -8, 9], dtype)
    y: np.ndarray = np.array([3, -3, 4, 5], dtype)
    assert_agrees(*onnx_node("Mod", x, y, fmod=1))
    if dtype is not np.float32:
        assert_agrees(*onnx_node("Mod", x, y))


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_pow(exponent: float, constant: tuple[int, ...]) -> None:
    model, feeds = onnx_node("Pow", floats(2, 3, low=0.1), np.array(exponent, np.float32), constant=constant)
    assert_agrees(model, feeds, steps=4)


@pytest.mark.parametrize("dtypes", [(np.float32, np.int64), (np.int32, np.float32), (np.int64, np.int32)])
def test_pow_of_mixed_dtypes(dtypes: tuple[type, type]) -> None:
    x: np.ndarray = np.array([3, 5, 7], dtypes[0])
    y: np.ndarray = np.array([2, 3, 1], dtypes[1])
    assert_agrees(*onnx_node("Pow", x, y), steps=4 if dtypes[0] is np.float32 else 0)


def test_clip_by_attributes() -> None:
    assert_agrees(*onnx_node("Clip", floats(9), opset=6 + 1, min=-1.5, max=2.5))
    assert_agrees(*onnx_node("Clip", floats(9), opset=10, max=2.5))


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("constant", [(), (1, 2)])
def test_clip_by_inputs(opset: int, constant: tuple[int, ...]) -> None:
    model, feeds = onnx_node(
        "Clip", floats(9), np.array(-1, np.float32), np.array(2, np.float32), opset=opset, constant=constant
    )
    assert_agrees(model, feeds)
    assert_agrees(*onnx_node("Clip", floats(9), None, np.array(2, np.float32), opset=opset))


@pytest.mark.parametrize("to", [np.float16, np.float64, np.int32, np.int64, np.uint8, np.bool_])
def test_cast(to: type) -> None:
    x = np.array([0, 0.4, 1.5, 2.5, 100.9], np.float32)
    assert_agrees(*onnx_node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(to))))


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("code", [TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2])
def test_cast_to_f8_and_back(code: int, saturate: int) -> None:
    x = np.array([0.1, 1.0625, 300, 464.1, 1000, 1e5, -1e5, np.inf, np.nan, 2.0**-10], np.float32)
    to = helper.make_node("Cast", ["x"], ["q"], name="to", to=code, saturate=saturate)
    back = helper.make_node("Cast", ["q"], ["y"], name="back", to=TensorProto.FLOAT)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n in "xy"]
    graph = helper.make_graph([to, back], "f8", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert_agrees(model, {"x": x})


def test_cast_like_and_where() -> None:
    assert_agrees(*onnx_node("CastLike", np.array([1.9, -1.9], np.float32), np.array([0], np.int64)))
    assert_agrees(*onnx_node("Where", np.array([[True], [False]]), floats(3), floats(2, 3) * 2))


@pytest.mark.parametrize("flags", [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_isinf_and_isnan(flags: tuple[int, int]) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    assert_agrees(*onnx_node("IsInf", x, detect_positive=flags[0], detect_negative=flags[1]))
    assert_agrees(*onnx_node("IsNaN", x))


F16_STEPS = 2
"""ONNX Runtime may round between the ops of a formula where ppuc does not."""
ACTIVATIONS: list[tuple[str, int, dict[str, Any]]] = [
    ("Relu", 14, {}),
    ("LeakyRelu", 16, {}),
    ("LeakyRelu", 16, {"alpha": 1.5}),
    ("LeakyRelu", 16, {"alpha": -0.5}),
    ("Elu", 6 + 1, {"alpha": 0.7}),
    ("Selu", 6 + 1, {}),
    ("Selu", 6 + 1, {"alpha": 1.1, "gamma": 0.9}),
    ("Celu", 12, {"alpha": 2.0}),
    ("Gelu", 20, {}),
    ("Gelu", 20, {"approximate": "tanh"}),
    ("HardSigmoid", 7, {}),
    ("HardSigmoid", 7, {"alpha": 0.5, "beta": 0.6}),
    ("HardSwish", 14, {}),
    ("Mish", 18, {}),
    ("Sigmoid", 13, {}),
    ("Softplus", 7, {}),
    ("Softsign", 7, {}),
    ("ThresholdedRelu", 10, {"alpha": 0.5}),
    ("Shrink", 9, {"lambd": 1.0, "bias": 0.25}),
    ("Tanh", 13, {}),
    ("Softmax", 13, {}),
    ("Softmax", 13, {"axis": 1}),
    ("Softmax", 11, {}),
    ("Softmax", 11, {"axis": 2}),
    ("LogSoftmax", 13, {"axis": 0}),
    ("LogSoftmax", 11, {"axis": 1}),
    ("Hardmax", 13, {"axis": 1}),
    ("Hardmax", 11, {"axis": 1}),
]


@pytest.mark.parametrize(("op_type", "opset", "attributes"), ACTIVATIONS, ids=str)
def test_activation(op_type: str, opset: int, attributes: dict[str, Any]) -> None:
    x = floats(2, 3, 4, low=-6, high=6)
    assert_agrees(*onnx_node(op_type, x, opset=opset, **attributes), steps=8)


@pytest.mark.parametrize("op_type", ["Elu", "Selu", "Softplus", "Mish", "Sigmoid", "Gelu", "Softsign", "HardSwish"])
def test_activation_far_from_zero(op_type: str) -> None:
    x = np.array([-1e4, -200, -88, 88, 200, 1e4], np.float32)
    assert_agrees(*onnx_node(op_type, x, opset=22), steps=8)


@pytest.mark.parametrize("op_type", ["Gelu", "Sigmoid", "Tanh", "Softmax", "LeakyRelu"])
def test_activation_in_f16(op_type: str) -> None:
    assert_agrees(*onnx_node(op_type, floats(3, 5).astype(np.float16), opset=20), steps=F16_STEPS)


@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (2, 3, 4, 5)])
def test_prelu(shape: tuple[int, ...]) -> None:
    slope = np.abs(floats(*shape))
    assert_agrees(*onnx_node("PRelu", floats(2, 3, 4, 5), slope))


@pytest.mark.parametrize(
    ("op_type", "inputs"), [("Gelu", 1), ("FastGelu", 1), ("FastGelu", 2), ("BiasGelu", 2), ("QuickGelu", 1)]
)
def test_contrib_activation(op_type: str, inputs: int) -> None:
    arrays = [floats(2, 3, 8), floats(8)][:inputs]
    assert_agrees(*onnx_node(op_type, *arrays, domain="com.microsoft"), steps=8)


def test_swish_equals_its_formula() -> None:
    """ONNX Runtime has no Swish kernel of its own, so the formula of the ONNX standard is the yardstick."""
    x = floats(4, 5)
    model, feeds = onnx_node("Swish", x, opset=24, alpha=1.5, ir_version=10)
    imported = load_model(model)
    (result,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    np.testing.assert_allclose(result, x / (1 + np.exp(-1.5 * x.astype(np.float64))), rtol=4 * F32_STEP)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (onnx_node("Mod", floats(2), floats(2)), r"node 'node' \(Mod\): Mod of floats needs fmod = 1"),
        (onnx_node("Clip", floats(2), floats(2)), r"node 'node' \(Clip\): a bound of Clip must be a scalar"),
        (onnx_node("Celu", floats(2), alpha=0.0), r"node 'node' \(Celu\): alpha must not be 0"),
        (onnx_node("Gelu", floats(2), opset=20, approximate="no"), r"\(Gelu\): unknown approximation"),
        (onnx_node("Elu", np.array([1], np.int32)), r"\(Elu\): needs a floating-point input"),
        (onnx_node("Cast", floats(2), to=TensorProto.STRING), r"node 'node' \(Cast\): element type string is not"),
        (onnx_node("Add", floats(2), floats(3)), r"node 'node' \(Add\): shapes \[2\] and \[3\] do not broadcast"),
    ],
)
def test_a_wrong_node_is_explained(case: tuple[onnx.ModelProto, dict[str, np.ndarray]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(case[0])


def test_clip_by_attributes_bounds_infinities() -> None:
    """Before opset 11 a bound that is not given is the largest finite number; later it is none."""
    x = np.array([-np.inf, -1, 2, np.inf], np.float32)
    for bounds in ({}, {"min": 0.0}, {"max": 1.0}):
        assert_agrees(*onnx_node("Clip", x, opset=10, **bounds))
