"""Reductions, arg-reductions and scans: records against their claims, importers against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.elementwise import BOOLS, NUMBERS
from ppuc.ir.ops.reduction import REDUCE_KINDS, ArgreduceAttrs, CumsumAttrs, ReduceAttrs, reduce_identity
from ppuc.ir.types import DType, parse_type
from tests.support.against_onnxruntime import F32_STEP, assert_agrees, computed, floats, indexing_of, onnx_node, type_of

AXES = [(0,), (1,), (0, 2), (0, 1, 2), ()]


def whole(dtype: DType, *shape: int) -> np.ndarray:
    values = np.random.default_rng(3).integers(0, 2 if dtype is DType.BOOL else 4, shape)
    return values.astype(np.float32).astype(dtype.numpy)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("kind", REDUCE_KINDS)
def test_infer_agrees_with_reference(kind: str, axes: tuple[int, ...], keepdims: bool) -> None:
    allowed = NUMBERS | BOOLS if kind in ("max", "min") else NUMBERS
    for dtype in sorted(allowed, key=str):
        attrs, x = ReduceAttrs(kind, axes, keepdims), whole(dtype, 2, 3, 4)
        result = computed("reduce", attrs, x)
        indexing = indexing_of("reduce", attrs, type_of(x))
        assert tuple(i for i, d in enumerate(indexing.dims) if d.reduced) == axes
        assert len(indexing.results[0]) == result.ndim


@pytest.mark.parametrize("dtype", sorted(NUMBERS, key=str), ids=str)
def test_argreduce_and_cumsum_agree_with_infer(dtype: DType) -> None:
    x = whole(dtype, 2, 5)
    assert computed("argreduce", ArgreduceAttrs("max", 1, False), x).dtype == np.int64
    assert computed("cumsum", CumsumAttrs(1, True, True), x).dtype == x.dtype


def test_sums_are_accumulated_wider_than_they_are_stored() -> None:
    ones = np.ones(4097)
    half = computed("reduce", ReduceAttrs("sum", (0,), False), ones.astype(np.float16))
    assert half == np.float16(4096)
    tiny = np.array([1.0] + [F32_STEP / 4] * 8, np.float32)
    single = computed("reduce", ReduceAttrs("sum", (0,), False), tiny)
    assert single == np.float32(1 + 2 * F32_STEP)
    brain = computed("cumsum", CumsumAttrs(0), np.ones(512).astype(ml_dtypes.bfloat16))
    assert float(brain[-1]) == 512


@pytest.mark.parametrize("kind", REDUCE_KINDS)
def test_a_reduction_of_nothing_is_its_identity(kind: str) -> None:
    for dtype in sorted(NUMBERS, key=str):
        result = computed("reduce", ReduceAttrs(kind, (0,), False), np.zeros((0, 2), dtype.numpy))
        expected = np.full(2, reduce_identity(kind, dtype)).astype(dtype.numpy)
        np.testing.assert_array_equal(result.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize(
    ("attrs", "type", "message"),
    [
        (ReduceAttrs("mean", (0,), True), "f32[2]", r"reduce kind must be one of sum, max, min, prod \(got 'mean'\)"),
        (ReduceAttrs("sum", (1,), True), "f32[2]", r"axis 1 of reduce sum is not an axis of f32\[2\]"),
        (ReduceAttrs("sum", (1, 0), True), "f32[2, 2]", r"axes of reduce must be sorted and distinct \(got \[1, 0\]\)"),
        (ReduceAttrs("sum", (0,), True), "bool[2]", r"reduce sum is not defined for bool"),
    ],
)
def test_wrong_reductions_are_explained(attrs: ReduceAttrs, type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS["reduce"].infer(attrs, [parse_type(type)])


REDUCE_OPS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [-1, 0], None], ids=str)
@pytest.mark.parametrize("name", REDUCE_OPS)
def test_reduce_by_attribute_and_by_input(name: str, axes: list[int] | None, keepdims: int) -> None:
    x = floats(3, 4, 5, low=0.1, high=3.0)
    opset_with_attribute = 11
    given: dict[str, Any] = {} if axes is None else {"axes": axes}
    # The result of a sum of n terms may differ by n roundings, of a product by n too; n <= 60.
    assert_agrees(*onnx_node(f"Reduce{name}", x, opset=opset_with_attribute, keepdims=keepdims, **given), steps=64)
    inputs = (x,) if axes is None else (x, np.array(axes))
    constant = () if axes is None else (1,)
    assert_agrees(*onnx_node(f"Reduce{name}", *inputs, opset=18, constant=constant, keepdims=keepdims), steps=64)


@pytest.mark.parametrize("name", REDUCE_OPS)
def test_reduce_over_no_axes_does_nothing_when_asked(name: str) -> None:
    x = floats(2, 3, low=0.1, high=3.0)
    model, feeds = onnx_node(f"Reduce{name}", x, np.zeros(0, np.int64), opset=18, constant=(1,), noop_with_empty_axes=1)
    assert_agrees(model, feeds, steps=4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["L1", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"])
def test_reduce_of_integers(name: str, dtype: type) -> None:
    x: np.ndarray = np.array([[-3, 5, -7], [2, -4, 7]], dtype)
    assert_agrees(*onnx_node(f"Reduce{name}", x, np.array([1], np.int64), opset=18, constant=(1,)))


@pytest.mark.parametrize("name", ["ReduceMean", "ReduceSum", "ReduceProd", "ReduceMax", "ReduceL2", "ReduceLogSumExp"])
def test_reduce_over_no_elements(name: str) -> None:
    assert_agrees(*onnx_node(name, np.zeros((2, 0), np.float32), np.array([1]), opset=18, constant=(1,)))


@pytest.mark.parametrize("name", ["ReduceMean", "ReduceSum", "ReduceProd"])
def test_reduce_over_no_integers(name: str) -> None:
    assert_agrees(*onnx_node(name, np.zeros((2, 0), np.int32), np.array([1]), opset=18, constant=(1,)))


def test_log_sum_exp_far_from_zero() -> None:
    x = np.array([[-1000, -1001], [1000, 1001], [-np.inf, 0], [-np.inf, -np.inf]], np.float32)
    model, feeds = onnx_node("ReduceLogSumExp", x, np.array([1], np.int64), opset=18, constant=(1,))
    imported = load_model(model)
    (result,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    tail = np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(result[:, 0], [-1000 + tail, 1001 + tail, 0, -np.inf], rtol=4 * F32_STEP)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_argreduce(op_type: str, axis: int, keepdims: int, last: int) -> None:
    x = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.float32)
    assert_agrees(*onnx_node(op_type, x, axis=axis, keepdims=keepdims, select_last_index=last))


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_cumsum(dtype: type, exclusive: int, reverse: int) -> None:
    x: np.ndarray = np.arange(24).reshape(2, 3, 4).astype(dtype)
    model, feeds = onnx_node("CumSum", x, np.array(-2, np.int64), constant=(1,), exclusive=exclusive, reverse=reverse)
    assert_agrees(model, feeds)


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_cumprod_equals_numpy(size: int, exclusive: int, reverse: int) -> None:
    """ONNX Runtime has no CumProd kernel, so numpy is the yardstick; the values are exact in f32."""
    x = np.random.default_rng(1).integers(1, 4, (2, size)).astype(np.float32)
    model, feeds = onnx_node(
        "CumProd", x, np.array(1), constant=(1,), opset=26, exclusive=exclusive, reverse=reverse, ir_version=13
    )
    imported = load_model(model)
    (result,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    ordered = x[:, ::-1] if reverse else x
    total = np.cumprod(ordered, axis=1)
    if exclusive:
        total = np.concatenate([np.ones((2, 1), np.float32), total[:, :-1]], axis=1)
    np.testing.assert_array_equal(result, total[:, ::-1] if reverse else total)


def test_axes_that_are_not_there_or_not_known() -> None:
    model, _ = onnx_node("ReduceSum", floats(2, 3), np.array([2], np.int64), constant=(1,))
    with pytest.raises(ModelError, match=r"node 'node' \(ReduceSum\): axis is out of range"):
        load_model(model)
    model, _ = onnx_node("ReduceSum", floats(2, 3), np.array([1], np.int64))
    with pytest.raises(ModelError, match=r"node 'node' \(ReduceSum\): 'axes' depends on the model's inputs"):
        load_model(model)
