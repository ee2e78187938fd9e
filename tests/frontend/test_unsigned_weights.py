"""8-bit products with unsigned weights: the sums of the model, on every CPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.frontend.unsigned_weights import saturates, with_unsigned_weights
from ppuc.compiler.validation.oracle import Oracle, Session

RNG = np.random.default_rng(3)
LEFT = RNG.integers(200, 256, (3, 64), np.uint8)
WEIGHTS = RNG.integers(-128, 128, (64, 5)).astype(np.int8)
ZERO = np.array([3, -4, 0, 100, -128], np.int8)


def product_model(*, zero: bool, constant: bool, body: bool = False, left: np.dtype = LEFT.dtype) -> onnx.ModelProto:
    """MatMulInteger, with zero points, with weights in the file, in the branch of an If."""
    names = ["left", "weights", *(["", "zero"] if zero else [])]
    node = helper.make_node("MatMulInteger", names, ["sums"])
    infos = [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(left), LEFT.shape)]
    weights = [numpy_helper.from_array(ZERO, "zero")] if zero else []
    if constant:
        weights.append(numpy_helper.from_array(WEIGHTS, "weights"))
    else:
        infos.append(helper.make_tensor_value_info("weights", TensorProto.INT8, WEIGHTS.shape))
    result = helper.make_tensor_value_info("sums", TensorProto.INT32, (3, 5))
    nodes = [node]
    if body:
        inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("sums", TensorProto.INT32, None)])
        condition = numpy_helper.from_array(np.array(True))
        nodes = [
            helper.make_node("Constant", [], ["condition"], value=condition),
            helper.make_node("If", ["condition"], ["sums"], then_branch=inner, else_branch=inner),
        ]
    graph = helper.make_graph(nodes, "net", infos, [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_sums_do_not_saturate(zero: bool, constant: bool, body: bool) -> None:
    model = product_model(zero=zero, constant=constant, body=body)
    exact = with_unsigned_weights(model)
    assert exact is not None
    feeds = {"left": LEFT} | ({} if constant else {"weights": WEIGHTS})
    want = LEFT.astype(np.int32) @ (WEIGHTS.astype(np.int32) - (ZERO.astype(np.int32) if zero else 0))
    assert np.abs(want).max() > 2**15
    (found,) = Session(exact.SerializeToString(), "net").run(feeds)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(Oracle(model).run(feeds)["sums"], want)


def test_shared_weights_are_raised_once() -> None:
    model = product_model(zero=True, constant=True)
    again = helper.make_node("MatMulInteger", ["left", "weights", "", "zero"], ["more"])
    model.graph.node.append(again)
    exact = with_unsigned_weights(model)
    assert exact is not None
    assert [n.op_type for n in exact.graph.node].count("Cast") == 4  # two tensors, widened and narrowed


def test_models_without_such_products_stay() -> None:
    signed = product_model(zero=False, constant=True, left=np.dtype(np.int8))
    plain = product_model(zero=False, constant=True)
    del plain.graph.node[:]
    plain.graph.node.append(helper.make_node("Identity", ["left"], ["sums"]))
    assert with_unsigned_weights(signed) is None
    assert with_unsigned_weights(plain) is None


@pytest.mark.parametrize(("found", "expected"), [(129540, False), (65534, True)])
def test_a_cpu_that_saturates_is_recognised(found: int, expected: bool) -> None:
    def run(model: bytes, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.array([[found]], np.int32)

    assert saturates(run) is expected
