"""View records: inference, reference and indexing say the same; their importers agree with ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Attrs
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs, common_factors
from ppuc.ir.types import DType, TensorType, parse_type
from tests.support.against_onnxruntime import assert_agrees, computed, floats, indexing_of, onnx_node, pattern_of

VIEWS: list[tuple[str, Attrs, tuple[int, ...]]] = [
    ("reshape", ReshapeAttrs((2, 12)), (6, 4)),
    ("reshape", ReshapeAttrs((24,)), (2, 3, 4)),
    ("reshape", ReshapeAttrs((1, 2, 1, 12, 1)), (4, 6)),
    ("reshape", ReshapeAttrs(()), (1, 1)),
    ("reshape", ReshapeAttrs((1,)), ()),
    ("transpose", TransposeAttrs((2, 0, 1)), (2, 3, 4)),
    ("transpose", TransposeAttrs(()), ()),
    ("slice", SliceAttrs((1, 0), (2, 3), (1, 2)), (4, 5)),
    ("slice", SliceAttrs((4, 2), (3, 3), (-2, -1)), (5, 3)),
    ("slice", SliceAttrs((0, 5), (2, 0), (1, 1)), (2, 5)),
    ("expand", ExpandAttrs((2, 3, 4)), (3, 1)),
    ("expand", ExpandAttrs((5,)), ()),
]


def name_of(case: object) -> str:
    return str(case)


@pytest.mark.parametrize(("name", "attrs", "shape"), VIEWS, ids=name_of)
def test_infer_agrees_with_reference(name: str, attrs: Attrs, shape: tuple[int, ...]) -> None:
    """`computed` compares the two."""
    for dtype in (DType.F32, DType.BF16, DType.I64, DType.BOOL, DType.F8E4M3):
        computed(
            name, attrs, np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.float32).astype(dtype.numpy)
        )


@pytest.mark.parametrize(("name", "attrs", "shape"), VIEWS, ids=name_of)
def test_indexing_is_what_the_reference_does(name: str, attrs: Attrs, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    result = computed(name, attrs, x)
    indexing = indexing_of(name, attrs, TensorType(DType.I64, shape))
    written = np.full(result.shape, -1)
    for point in itertools.product(*(range(d.size) for d in indexing.dims)):
        env = dict(zip((d.name for d in indexing.dims), point, strict=True))
        read, write = (tuple(a.value(env) for a in access) for access in (indexing.operands[0], indexing.results[0]))
        assert written[write] == -1
        written[write] = x[read]
    np.testing.assert_array_equal(written, result)


def test_a_reshape_across_factors_has_no_indexing() -> None:
    assert common_factors((4, 6), (6, 4)) is None
    assert common_factors((6, 4), (2, 12)) == (2, 3, 4)
    assert pattern_of("reshape", ReshapeAttrs((6, 4)), parse_type("f32[4, 6]")) is None


@pytest.mark.parametrize(
    ("name", "attrs", "type", "message"),
    [
        ("reshape", ReshapeAttrs((5,)), "f32[2, 3]", "cannot reshape f32[2, 3] (6 elements) to [5]"),
        (
            "transpose",
            TransposeAttrs((0, 0)),
            "f32[2, 3]",
            "perm [0, 0] is not a permutation of the dimensions of f32[2, 3]",
        ),
        ("slice", SliceAttrs((1,), (3,), (1,)), "f32[3]", "slice reads 1..3 of dimension 0 of f32[3]"),
        ("slice", SliceAttrs((0,), (2,), (-1,)), "f32[3]", "slice reads 0..-1 of dimension 0 of f32[3]"),
        ("slice", SliceAttrs((0,), (1,), (0,)), "f32[3]", "slice step of dimension 0 is zero"),
        ("expand", ExpandAttrs((3,)), "f32[2]", "shapes [2] and [3] do not broadcast"),
        ("expand", ExpandAttrs((3,)), "f32[2, 3]", "f32[2, 3] does not broadcast to [3]"),
    ],
)
def test_infer_refuses(name: str, attrs: Attrs, type: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole text is compared
        OPS[name].infer(attrs, [parse_type(type)])
    assert str(raised.value) == message


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("shape", "target", "allowzero"),
    [((2, 3, 4), (4, 6), 0), ((2, 3, 4), (0, -1), 0), ((2, 3, 4), (-1,), 0), ((0, 3), (3, 0), 1), ((1,), (), 0)],
)
def test_reshape(shape: tuple[int, ...], target: tuple[int, ...], allowzero: int) -> None:
    attributes: dict[str, Any] = {"allowzero": 1} if allowzero else {}
    assert_agrees(*onnx_node("Reshape", floats(*shape), ints(*target), constant=(1,), **attributes))


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_flatten(axis: int) -> None:
    assert_agrees(*onnx_node("Flatten", floats(2, 3, 4), axis=axis))


@pytest.mark.parametrize("axes", [(0,), (-2,), (0, 2), None])
def test_squeeze(axes: tuple[int, ...] | None) -> None:
    x = floats(1, 3, 1, 5)
    attributes: dict[str, Any] = {"axes": axes} if axes else {}
    assert_agrees(*onnx_node("Squeeze", x, opset=11, **attributes))
    inputs = (x, ints(*axes)) if axes else (x,)
    assert_agrees(*onnx_node("Squeeze", *inputs, constant=(1,) if axes else ()))


@pytest.mark.parametrize("axes", [(0,), (-1, 0), (1, 3)])
def test_unsqueeze(axes: tuple[int, ...]) -> None:
    assert_agrees(*onnx_node("Unsqueeze", floats(3, 4), opset=11, axes=axes))
    assert_agrees(*onnx_node("Unsqueeze", floats(3, 4), ints(*axes), constant=(1,)))


@pytest.mark.parametrize("perm", [None, (0, 1, 2), (1, 2, 0)])
def test_transpose(perm: tuple[int, ...] | None) -> None:
    attributes: dict[str, Any] = {"perm": perm} if perm else {}
    assert_agrees(*onnx_node("Transpose", floats(2, 3, 4), **attributes))


@pytest.mark.parametrize(("shape", "target"), [((3, 1), (2, 3, 4)), ((3, 4), (1, 1)), ((1,), (0,)), ((2, 3), (2, 1))])
def test_expand(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert_agrees(*onnx_node("Expand", floats(*shape), ints(*target), constant=(1,)))


SLICES = [
    ((1,), (3,), (0,), (1,)),
    ((0, -3), (100, -1), (1, 0), (2, 1)),
    ((-1,), (-100,), (1,), (-2,)),
    ((100,), (1,), (-1,), (-3,)),
    ((3,), (1,), (0,), (1,)),
    ((1,), (0,), (0,), (-1,)),
    ((-(2**63),), (2**63 - 1,), (1,), (1,)),
    ((2**63 - 1,), (-(2**63),), (1,), (-1,)),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    inputs = [ints(*p) for p in (starts, ends, axes, steps)]
    assert_agrees(*onnx_node("Slice", floats(5, 7), *inputs, constant=(1, 2, 3, 4)))


@pytest.mark.parametrize("case", [c for c in SLICES if c[3] == (1,)])
def test_slice_of_opset_9_takes_attributes(case: tuple[tuple[int, ...], ...]) -> None:
    starts, ends, axes, _ = case
    assert_agrees(*onnx_node("Slice", floats(5, 7), opset=9, starts=starts, ends=ends, axes=axes))


def test_identity_and_dropout() -> None:
    assert_agrees(*onnx_node("Identity", floats(3)))
    assert_agrees(*onnx_node("Dropout", floats(3, 2), outputs=2))
    assert_agrees(*onnx_node("Dropout", floats(3, 2), opset=11, ratio=0.3))
    with pytest.raises(ModelError, match="training mode is not supported"):
        load_model(
            onnx_node("Dropout", floats(3), np.array(0.5, np.float32), np.array(True), constant=(1, 2), outputs=2)[0]
        )


@pytest.mark.parametrize(("start", "end"), [(0, None), (1, -1), (-2, 100), (-100, 2), (2, 1)])
def test_shape_is_known(start: int, end: int | None) -> None:
    attributes: dict[str, Any] = {"start": start} | ({"end": end} if end is not None else {})
    model, feeds = onnx_node("Shape", floats(2, 3, 4), **attributes)
    assert_agrees(model, feeds)
    assert {op.name for op in load_model(model).graph.ops} == {"const"}


def test_size_is_known() -> None:
    assert_agrees(*onnx_node("Size", floats(2, 3, 4)))


@pytest.mark.parametrize("fill", [np.array([7], np.int64), np.array([1.5], np.float16), None])
def test_constant_of_shape(fill: np.ndarray | None) -> None:
    attributes: dict[str, Any] = {"value": onnx.numpy_helper.from_array(fill)} if fill is not None else {}
    assert_agrees(*onnx_node("ConstantOfShape", ints(2, 3), constant=(0,), **attributes))


@pytest.mark.parametrize(
    ("start", "limit", "delta", "dtype"),
    [
        (0, 10, 3, np.int64),
        (5, -5, -2, np.int32),
        (0, 10, 0.3, np.float32),
        (3, 3, 1, np.int64),
        (1, 2.5, 0.1, np.float64),
    ],
)
def test_range(start: float, limit: float, delta: float, dtype: type) -> None:
    inputs: list[np.ndarray] = [np.array(v, dtype) for v in (start, limit, delta)]
    assert_agrees(*onnx_node("Range", *inputs, constant=(0, 1, 2)))


@pytest.mark.parametrize(("k", "dtype"), [(0, None), (1, TensorProto.INT64), (-2, TensorProto.FLOAT)])
def test_eye_like(k: int, dtype: int | None) -> None:
    attributes: dict[str, Any] = {"dtype": dtype} if dtype else {}
    assert_agrees(*onnx_node("EyeLike", floats(3, 5), k=k, **attributes))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, 0, 1, -2, 10])
def test_trilu(upper: int, k: int | None) -> None:
    inputs = (floats(2, 3, 4),) if k is None else (floats(2, 3, 4), np.array(k, np.int64))
    assert_agrees(*onnx_node("Trilu", *inputs, constant=(1,) if k is not None else (), upper=upper))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_one_hot(axis: int, dtype: type) -> None:
    indices: np.ndarray = np.array([[0, 2], [-1, 7]], dtype)
    values = np.array([0.25, 3.0], np.float32)
    assert_agrees(*onnx_node("OneHot", indices, np.array(4, dtype), values, constant=(1,), axis=axis))


def test_non_zero_of_a_constant() -> None:
    x = np.array([[0, 1, 2], [3, 0, 0]], np.float32)
    assert_agrees(*onnx_node("NonZero", x, constant=(0,)))
    with pytest.raises(ModelError, match="the number of nonzero elements depends on the model's inputs"):
        load_model(onnx_node("NonZero", x)[0])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5, 2.0]}, np.array([1.5, 2.0], np.float32)),
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
        (
            {"value": helper.make_tensor("t", TensorProto.BFLOAT16, [2], [1.0, 2.5])},
            np.array([1.0, 2.5], ml_dtypes.bfloat16),
        ),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_constant_forms(attributes: dict[str, Any], expected: np.ndarray) -> None:
    model, _ = onnx_node("Constant", **attributes)
    imported = load_model(model)
    (result,) = run_graph(imported.graph, {}).values()
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_a_string_constant_is_refused() -> None:
    with pytest.raises(ModelError, match="the constant is of a kind that is not supported"):
        load_model(onnx_node("Constant", value_string="text")[0])


def test_shape_arithmetic_leaves_no_trace() -> None:
    """Reshape to (Shape(x)[0] * 3, -1), as exporters spell it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Mul", ["n", "three"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "first"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array(0), "three": np.array(3), "first": np.array([0]), "rest": np.array([-1])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    imported = load_model(model, {"N": 4})
    assert [op.name for op in imported.graph.ops] == ["reshape"]
    x = floats(4, 6)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_array_equal(run_graph(imported.graph, {"x": x})[imported.outputs[0][1].name], expected)
