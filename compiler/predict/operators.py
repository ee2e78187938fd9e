"""Single operators as ONNX models.

Invariant: a model consists of the operator, with all operands as inputs, including weights of a feed-forward layer.
Images are channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import TensorProto, helper

from ppuc.compiler.predict.case import Case

DTYPES = {
    "bf16": TensorProto.BFLOAT16,
    "f16": TensorProto.FLOAT16,
    "f32": TensorProto.FLOAT,
    "i8": TensorProto.INT8,
    "f8e4m3": TensorProto.FLOAT8E4M3FN,
}

Shapes = dict[str, Sequence[int]]
Parts = tuple[list[onnx.NodeProto], Shapes, Shapes]
"""Nodes, and the shapes of inputs and outputs."""


def model_of(case: Case) -> onnx.ModelProto:
    """The operator of a case, with inputs of the case's element type. 8-bit operands are dequantized with scale 1, as
    in ONNX files; results are f32, or i32 for integer products."""
    nodes, inputs, outputs = _BUILDERS[case.kind](case)
    element = DTYPES[case.dtype]
    result, scale = element, []
    if case.dtype == "i8" and case.kind == "gemm":
        result = TensorProto.INT32
    elif case.dtype in ("i8", "f8e4m3"):
        result, scale = TensorProto.FLOAT, [helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0])]
        nodes = [*_dequantized(nodes, inputs), *nodes]
    graph = helper.make_graph(
        nodes,
        case.kind,
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, result, shape) for name, shape in outputs.items()],
        scale,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def _dequantized(nodes: list[onnx.NodeProto], inputs: Shapes) -> list[onnx.NodeProto]:
    """Insert a DequantizeLinear between each input and `nodes`."""
    made = [
        helper.make_node("DequantizeLinear", [name, "scale"], [f"{name}_wide"], name=f"{name}_dequantized")
        for name in inputs
    ]
    for node in nodes:
        node.input[:] = [f"{name}_wide" if name in inputs else name for name in node.input]
    return made


def _gemm(case: Case) -> Parts:
    m, n, k = case.dims
    if case.dtype == "i8":
        nodes = [
            helper.make_node("Transpose", ["w"], ["wt"], name="turned", perm=[1, 0]),
            helper.make_node("MatMulInteger", ["x", "wt"], ["y"], name="product"),
        ]
        return nodes, {"x": [m, k], "w": [n, k]}, {"y": [m, n]}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="product", transB=1)]
    return nodes, {"x": [m, k], "w": [n, k]}, {"y": [m, n]}


def _attention(case: Case) -> Parts:
    batch, heads, shared, queries, keys, size, causal = case.dims
    node = helper.make_node(
        "Attention", ["q", "k", "v"], ["y"], name="attention", is_causal=causal,
        q_num_heads=heads, kv_num_heads=shared,
    )  # fmt: skip
    wide, narrow = heads * size, shared * size
    inputs: Shapes = {"q": [batch, queries, wide], "k": [batch, keys, narrow], "v": [batch, keys, narrow]}
    return [node], inputs, {"y": [batch, queries, wide]}


def _ffn(case: Case) -> Parts:
    rows, size, inner, gated = case.dims
    inputs: Shapes = {"x": [rows, size], "up": [size, inner], "down": [inner, size]}
    nodes = [helper.make_node("MatMul", ["x", "up"], ["h"], name="up")]
    if gated:
        inputs["gate"] = [size, inner]
        nodes += [
            helper.make_node("MatMul", ["x", "gate"], ["g"], name="gate"),
            helper.make_node("Sigmoid", ["g"], ["s"], name="sigmoid"),
            helper.make_node("Mul", ["g", "s"], ["silu"], name="silu"),
            helper.make_node("Mul", ["silu", "h"], ["a"], name="gated"),
        ]
    else:
        nodes.append(helper.make_node("Gelu", ["h"], ["a"], name="gelu"))
    nodes.append(helper.make_node("MatMul", ["a", "down"], ["y"], name="down"))
    return nodes, inputs, {"y": [rows, size]}


def _conv(case: Case) -> Parts:
    n, h, w, c, k, r, stride, pad = case.dims
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], name="channels_first", perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["w"], ["filters"], name="filters_first", perm=[3, 2, 0, 1]),
        helper.make_node(
            "Conv", ["first", "filters"], ["result"], name="conv", strides=[stride] * 2, pads=[pad] * 4,
            kernel_shape=[r, r],
        ),
        helper.make_node("Transpose", ["result"], ["y"], name="channels_last", perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    out = [(side + 2 * pad - r) // stride + 1 for side in (h, w)]
    return nodes, {"x": [n, h, w, c], "w": [r, r, c, k]}, {"y": [n, *out, k]}


def _softmax(case: Case) -> Parts:
    node = helper.make_node("Softmax", ["x"], ["y"], name="softmax", axis=-1)
    return [node], {"x": case.dims}, {"y": case.dims}


def _layernorm(case: Case) -> Parts:
    node = helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], name="norm", axis=-1)
    return [node], {"x": case.dims, "scale": case.dims[-1:], "bias": case.dims[-1:]}, {"y": case.dims}


def _pass(case: Case) -> Parts:
    node = helper.make_node("Mul", ["x", "table"], ["y"], name="pass")
    return [node], {"x": case.dims, "table": case.dims[-1:]}, {"y": case.dims}


_BUILDERS: dict[str, Callable[[Case], Parts]] = {
    "gemm": _gemm,
    "attention": _attention,
    "ffn": _ffn,
    "conv": _conv,
    "softmax": _softmax,
    "layernorm": _layernorm,
    "pass": _pass,
}
