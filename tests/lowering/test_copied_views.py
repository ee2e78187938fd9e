"""Reshapes that strides cannot express, and run-time factors of rank 0, fused with other ops."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from ppuc.compiler.entry import compile, verify
from tests.support.onnx_text import model_of

TARGETS = ("ppu-tiny", "zhenwu-m890")


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def assert_right(model: onnx.ModelProto, feeds: dict[str, np.ndarray], target: str) -> None:
    result = verify(compile(model, target), feeds)
    assert result.ok, [(tensor.name, tensor.reason) for tensor in result.outputs]


RESHAPED = {
    "alone": "y = Reshape(x, shape)",
    "before an op": "a = Reshape(x, shape) y = Exp(a)",
    "after an op": "a = Exp(x) y = Reshape(a, shape)",
    "between ops": "a = Exp(x) b = Reshape(a, shape) y = Neg(b)",
    "of a transpose": "a = Transpose<perm = [1, 0]>(x) b = Reshape(a, shape) y = Sigmoid(b)",
    "of a slice": "a = Concat<axis = 1>(x, x) b = Slice(a, first, last, axes) c = Reshape(b, shape) y = Exp(c)",
    "of an expand": "a = Slice(x, zero, first, axes) b = Expand(a, whole) c = Reshape(b, shape) y = Abs(c)",
    "of a product": "a = MatMul(x, w) b = Transpose<perm = [1, 0]>(a) c = Reshape(b, shape) y = Relu(c)",
    "into a product": "a = Transpose<perm = [1, 0]>(x) b = Reshape(a, shape) y = MatMul(b, v)",
    "of a sum": "a = ReduceSum<keepdims = 1>(x, axes) b = Expand(a, whole) y = Reshape(b, shape)",
    "of views of views": "a = Transpose<perm = [1, 0]>(x) b = Reshape(a, shape) c = Transpose<perm = [1, 0]>(b)"
    " d = Reshape(c, whole) e = Transpose<perm = [1, 0]>(d) y = Reshape(e, shape)",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ops", RESHAPED.values(), ids=RESHAPED)
def test_a_reshape_that_is_no_strided_view(ops: str, target: str) -> None:
    numbers = {"shape": [4, 6], "whole": [6, 4], "axes": [1], "zero": [0], "first": [1], "last": [5]}
    weights = {name: np.array(value) for name, value in numbers.items()} | {"w": floats(4, 4), "v": floats(6, 5)}
    model = model_of(f"agraph (float[6, 4] x) => (float[p, q] y) {{ {ops} }}", weights)
    assert_right(model, {"x": floats(6, 4)}, target)


SCALED = {
    "of a product": "a = MatMul(x, w) y = Mul(a, s)",
    "of products of one operand": "a = MatMul(x, w) b = Mul(a, s) c = MatMul(x, v) d = Mul(c, s) y = Add(b, d)",
    "of a product with an offset": "a = MatMul(x, w) b = Mul(s, a) y = Add(b, t)",
    "of a left operand": "a = Mul(x, s) y = MatMul(a, w)",
    "of a bias": "a = MatMul(x, w) b = Add(a, bias) c = Add(b, s) y = Softmax<axis = 1>(c)",
    "computed in the model": "r = ReduceMax<keepdims = 0>(x) a = MatMul(x, w) y = Mul(a, r)",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ops", SCALED.values(), ids=SCALED)
def test_a_factor_of_rank_0(ops: str, target: str) -> None:
    weights = {"w": floats(8, 5), "v": 2 * floats(8, 5), "bias": floats(5)}
    model = model_of(f"agraph (float[3, 8] x, float s, float t) => (float[p, q] y) {{ {ops} }}", weights)
    assert_right(model, {"x": floats(3, 8), "s": np.float32(1.7), "t": np.float32(-0.3)}, target)
