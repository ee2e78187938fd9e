"""Rules about values: each row breaks one of N8 to N10, and ONNX Runtime refuses it, or ends or crashes on it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from ppuc.compiler.frontend.conformance.check import findings
from tests.support.onnx_text import model_of

X = "float[2, 3] x"
IMAGE = "float[1, 4, 8, 8] x"
W = np.zeros((4, 2, 3, 3), np.float32)

BROKEN = [
    # N8: attributes by themselves
    (X, "Transpose<perm = [0, 0]>(x)", "attribute 'perm' is not a permutation"),
    (X, "Concat<axis = 1099511627776>(x, x)", "attribute 'axis' is out of range"),
    (X, 'Concat<axis = 0>(x, "")', "one of the inputs 'inputs' is missing"),
    (X, "Cast<to = 0>(x)", "attribute 'to' is out of range"),
    (X, "Cast<to = 99>(x)", "attribute 'to' is out of range"),
    (X, "CumSum<exclusive = 2>(x, k)", "attribute 'exclusive' is out of range"),
    (X, "CumSum<reverse = -1>(x, k)", "attribute 'reverse' is out of range"),
    (X, "Constant()", "it holds no value, or several"),
    (X, "LpNormalization<p = 3>(x)", "attribute 'p' is out of range"),
    (X, "Mod<fmod = 2>(x, x)", "attribute 'fmod' is out of range"),
    (X, 'Einsum<equation = "IJ">(x, x)', "attribute 'equation' has a different number of operands"),
    (X, 'Einsum<equation = "I;J->J">(x)', "attribute 'equation' is not an einsum equation"),
    (X, "ReverseSequence<batch_axis = 0, time_axis = 0>(x, k)", "the axes of batch and time are the same"),
    ("float[2, 3, 4] x", "RNN(x, k3, k3)", "attribute 'hidden_size' is missing"),
    (IMAGE, "DepthToSpace<blocksize = 0>(x)", "attribute 'blocksize' is out of range"),
    (IMAGE, "MaxPool<kernel_shape = [2, 2], strides = [0, 1]>(x)", "attribute 'strides' is out of range"),
    (IMAGE, "MaxPool<kernel_shape = [2, 2], pads = [0, 0, -1, 0]>(x)", "attribute 'pads' is out of range"),
    (IMAGE, "MaxPool<kernel_shape = [2147483648, 2]>(x)", "attribute 'kernel_shape' is out of range"),
    (IMAGE, "MaxPool<kernel_shape = [2, 2], storage_order = 7>(x)", "attribute 'storage_order' is out of range"),
    (IMAGE, "LRN<size = 4>(x)", "attribute 'size' is out of range"),
    (IMAGE, "LRN<size = 3, beta = -1.0>(x)", "attribute 'beta' is out of range"),
    (IMAGE, "Conv<group = 0>(x, w)", "attribute 'group' is out of range"),
    (IMAGE, "DeformConv<offset_group = 0>(x, w, o)", "attribute 'offset_group' is out of range"),
    (IMAGE, 'GridSample<mode = "LINEAR">(x, o)', "attribute 'mode' has an unknown value"),
    (IMAGE, "Attention<scale = -1.0>(x, x, x)", "attribute 'scale' is out of range"),
    (IMAGE, "Attention<qk_matmul_output_mode = 4>(x, x, x)", "attribute 'qk_matmul_output_mode' is out of range"),
    # N9: attributes and shapes
    (X, "Transpose<perm = [0, 1, 2]>(x)", "perm"),
    (X, "Softmax<axis = 2>(x)", "axis"),
    (X, "RMSNormalization<axis = 9>(x, k3)", "attribute 'axis' is out of range"),
    (X, 'Einsum<equation = "IJK->I">(x)', "equation"),
    (X, "Split<num_outputs = 2>(x)", "num_outputs"),
    (IMAGE, "MaxPool<kernel_shape = [9, 2]>(x)", "the kernel is larger than the padded input on spatial axis 0"),
    (IMAGE, "MaxPool<kernel_shape = [2, 2], pads = [2, 0, 0, 0]>(x)", "attribute 'pads' is as large as the kernel"),
    (IMAGE, "MaxPool<kernel_shape = [2, 2], dilations = [2, 2], pads = [2, 0, 0, 0]>(x)", "as large as the kernel"),
    (IMAGE, "AveragePool<kernel_shape = [2, 2], strides = [1]>(x)", "strides"),
    (IMAGE, "Conv<kernel_shape = [3, 2], group = 2>(x, w)", "'kernel_shape' does not match the weights"),
    (IMAGE, "Conv<group = 1>(x, w)", "the input's channels do not match the weights"),
    (IMAGE, "Conv<group = 2, dilations = [8, 1]>(x, w)", "the kernel is larger than the padded input"),
    (IMAGE, "ConvTranspose<output_padding = [1, 1]>(x, w)", "attribute 'output_padding' is too large"),
    (IMAGE, "ConvTranspose<output_shape = [8, 11]>(x, w)", "attribute 'output_shape' is larger than what the kernel"),
    (IMAGE, "GroupNormalization<num_groups = 3>(x, c, c)", "the channels do not divide into groups"),
    (IMAGE, "Attention(x, x, x, x, k3, k3)", "a cache has the wrong rank"),
    # N10: constants
    (X, "OneHot(x, zero, pair)", "the depth is out of range"),
    ("float[N] x", "Range(zero0, zero0, zero0)", "the step"),
    (X, "TopK(x, less)", "k is out of range"),
    (X, "Split(x, sizes)", ""),
    (X, "Reshape(x, minus)", ""),
    ("float[1, 8, 16] x", "Col2Im<strides = [0, 1]>(x, image, block)", "attribute 'strides' is out of range"),
    ("float[1, 8, 17] x", "Col2Im(x, image, block)", "blocks"),
    ("float[4, 4] x", "CenterCropPad<axes = [0, -2]>(x, twos)", "referred to more than once"),
    # operands that say how others are read
    (X, "Pad(x, crop)", "axis 1 gets an impossible size"),
    (X, 'Pad<mode = "reflect">(x, wide)', "a reflection is larger than the input"),
    (X, "ReduceMax(x, twice)", "an axis is named twice"),
    (X, "ReduceSum(x, nested)", "the axes are not a list"),
    ("float[1, 3] x", "Squeeze(x, zeros)", "an axis is named twice"),
    (X, 'Resize(x, "", pair)', "a scale is not positive and finite"),
    (X, 'Resize(x, "", infinite)', "a scale is not positive and finite"),
    (X, 'Resize(x, "", "", minus)', "a size is negative"),
    (X, "GatherND(x, pairs)", "an index is out of range"),
    (X, "ScatterND(x, triple, pair)", "the indices name more axes than the input has"),
    (X, "ScatterND(x, pairs, pair)", "an index is out of range"),
    (X, "ScatterElements<axis = 1>(x, pairs, updates)", "an index is out of range"),
    ("float[1, 6, 4, 4] x", "DepthToSpace<blocksize = 2>(x)", "axis 1 does not divide into blocks"),
    ("float[1, 6, 4, 3] x", "SpaceToDepth<blocksize = 2>(x)", "axis 3 does not divide into blocks"),
    (X, "QuantizeLinear<axis = 1>(x, pair, bytes)", "scale and zero point have different shapes"),
    ("uint8[2, 4] x", "MatMulInteger(x, bytes4, bytes)", "the zero points of A have another shape"),
    (X, "SoftmaxCrossEntropyLoss(x, k)", "the labels do not fit the scores"),
    ("float[1, 3] x", "SoftmaxCrossEntropyLoss(x, k)", "a label is out of range"),
    (X, "Clip(x, pair)", "the lower bound is not one element"),
    (X, "Dropout(x, infinite1)", "the ratio is out of range"),
    (X, "Compress(x, pairs)", ""),
    ("float[N] x", "Range(infinite1, infinite1, infinite1)", "an end or step is out of range"),
    (IMAGE, 'MaxPool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER", pads = [1, 0, 0, 0]>(x)', "both 'auto_pad' and"),
    ("float[2, 3, 4] x", 'LSTM<hidden_size = 1, activations = ["Relu"]>(x, x, x)', "'activations' has the wrong"),
    ("float[2, 3, 4] x", 'RNN<hidden_size = 1, activations = ["Cosine"]>(x, x, x)', "has an unknown value"),
    ("float[2, 3, 4] x", "RNN<hidden_size = 1, clip = -1.0>(x, x, x)", "attribute 'clip' is out of range"),
]  # fmt: skip
CONSTANTS = {
    "crop": np.array([0, -2, 0, -2]), "wide": np.array([0, 3, 0, 0]), "pairs": np.array([[1, 7]]),
    "nested": np.array([[1]]), "triple": np.array([[0, 0, 0]]), "updates": np.zeros((1, 2), np.float32),
    "infinite": np.array([1, np.inf], np.float32), "infinite1": np.array(np.inf, np.float32),
    "bytes": np.zeros(3, np.uint8), "bytes4": np.zeros((4, 5), np.uint8),
    "k": np.array([9]), "k3": np.zeros(1, np.float32), "zero": np.array([0]), "zero0": np.array(0),
    "less": np.array([-1]), "pair": np.zeros(2, np.float32),
    "zeros": np.array([0, 0]), "twos": np.array([2, 2]), "twice": np.array([1, -1]), "minus": np.array([-2, 3]),
    "sizes": np.array([1, 5]), "image": np.array([4, 4]), "block": np.array([1, 1]),
    "c": np.zeros(4, np.float32), "o": np.zeros((1, 18, 6, 6), np.float32), "w": W,
}  # fmt: skip


def model_for(declared: str, node: str) -> onnx.ModelProto:
    """The node, with the constants that it reads."""
    names = set(node[node.rindex("(") + 1 : -1].replace(" ", "").split(","))
    results = "y, z" if node.startswith("TopK") else "y"
    model = model_of(
        f"g ({declared}) => (float[] y) {{ {results} = {node} }}",
        {n: v for n, v in CONSTANTS.items() if n in names},
        opset=23,
    )
    model.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info("y"))
    return model


@pytest.mark.parametrize(("declared", "node", "message"), BROKEN, ids=[row[1] for row in BROKEN])
def test_values_out_of_range_are_refused(declared: str, node: str, message: str) -> None:
    found = findings(model_for(declared, node))
    assert found, node
    assert message in f"{found[0].what} {found[0].got}"


@pytest.mark.parametrize(
    ("opset", "size", "fits"),
    [(23, 2, True), (23, 3, False), (23, 1, False), (17, 2, True), (17, 3, True), (17, 4, False)],
)
def test_declared_results_of_pools_that_round_up(opset: int, size: int, fits: bool) -> None:
    """8 elements and 2 before: 2 windows, 5 apart, and for the inference of old one that begins behind the input."""
    node = "MaxPool<kernel_shape = [3, 2], strides = [5, 1], pads = [2, 0, 2, 0], ceil_mode = 1>(x)"
    model = model_for(IMAGE, node)
    model.opset_import[0].version = opset
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [1, 4, size, 7]))
    assert [f.what for f in findings(model)] == ([] if fits else ["the declared result has another shape"])


TREE = {
    "nodes_featureids": [0, 0], "nodes_truenodeids": [1, 0], "nodes_falsenodeids": [2, 1], "nodes_trueleafs": [0, 1],
    "nodes_falseleafs": [1, 1], "leaf_targetids": [0, 0, 0], "tree_roots": [0], "n_targets": 1,
}  # fmt: skip


def tree(**changes: object) -> onnx.ModelProto:
    attributes = {
        **TREE,
        "nodes_splits": onnx.helper.make_tensor("s", 1, [2], [0.5, 0.25]),
        "nodes_modes": onnx.helper.make_tensor("m", 2, [2], [0, 0]),
        "leaf_weights": onnx.helper.make_tensor("l", 1, [3], [1.0, 2.0, 3.0]),
        **changes,
    }
    node = onnx.helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    info = onnx.helper.make_tensor_value_info("x", 1, [5, 2])
    graph = onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_empty_tensor_value_info("y")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 5)], ir_version=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_truenodeids": [9, 0]}, "attribute 'nodes_truenodeids' is out of range"),
        ({"nodes_falsenodeids": [-1, 1]}, "attribute 'nodes_falsenodeids' is out of range"),
        ({"nodes_truenodeids": [0, 0]}, "its nodes form no trees"),
        ({"leaf_targetids": [0, 0, 1]}, "attribute 'leaf_targetids' is out of range"),
        ({"leaf_targetids": [0, 0]}, "attribute 'leaf_weights' has the wrong length"),
        ({"tree_roots": [2]}, "attribute 'tree_roots' is out of range"),
        ({"nodes_featureids": [0, 2]}, "attribute 'nodes_featureids' is out of range"),
        ({"aggregate_function": 4}, "attribute 'aggregate_function' is out of range"),
        ({"nodes_modes": onnx.helper.make_tensor("m", 2, [2], [0, 6])}, "attribute 'membership_values' is missing"),
    ],
)
def test_trees_refer_to_what_exists(change: dict[str, object], message: str) -> None:
    assert not findings(tree())
    (found,) = findings(tree(**change))
    assert message in found.what


def test_elements_of_attention_are_of_one_type() -> None:
    model = model_for("float[1, 2, 3, 4] x, double[1, 2, 3, 4] v", "Attention(x, x, v)")
    assert [f.what for f in findings(model)] == ["Q, K and V have elements of different types"]


@pytest.mark.parametrize(("op", "opset", "first"), [("Gelu", 19, 20), ("Mish", 17, 18), ("CumSum", 10, 11)])
def test_ops_of_later_opsets(op: str, opset: int, first: int) -> None:
    model = model_for(X, f"{op}(x)")
    model.opset_import[0].version = opset
    (found,) = findings(model)
    assert (found.what, found.expected) == (f"the op does not exist in opset {opset}", f"{first} or newer")


def test_a_loop_body_returns_a_boolean_first() -> None:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [onnx.helper.make_tensor_value_info(n, t, d) for n, t, d in (("i", 7, []), ("c", 9, []), ("v", 1, [2, 3]))],
        [onnx.helper.make_tensor_value_info(n, t, d) for n, t, d in (("i", 7, []), ("w", 1, [2, 3]))],
    )
    model = model_for(X, "Relu(x)")
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Loop", ["zero0", "", "x"], ["y"], body=body))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero0"))
    assert [f.what for f in findings(model)] == ["the condition that the body returns is not boolean"]
