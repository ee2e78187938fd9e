"""Models that ONNX Runtime can run and that mean the same as a node that it has no kernel for.

Invariant: only ops of the standard (or ONNX Runtime's own name of one) stand in for a node.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import NodeProto, helper

Rewrite = Callable[[NodeProto, int], list[NodeProto]]
"""Nodes with the inputs and outputs of a node whose first input has so many axes."""


def _kept(node: NodeProto, *dropped: str) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in dropped}


def _channels_first(node: NodeProto, rank: int) -> list[NodeProto]:
    forth, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    return [
        helper.make_node("Transpose", [node.input[0]], ["first"], perm=forth),
        helper.make_node("Conv", ["first", *node.input[1:]], ["last"], **_kept(node)),
        helper.make_node("Transpose", ["last"], list(node.output), perm=back),
    ]


def _dequantized_mean(node: NodeProto, rank: int) -> list[NodeProto]:
    return [
        helper.make_node("DequantizeLinear", list(node.input[:3]), ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["mean"], **_kept(node)),
        helper.make_node("QuantizeLinear", ["mean", *node.input[3:5]], list(node.output)),
    ]


def _of_standard_domain(node: NodeProto, rank: int) -> list[NodeProto]:
    return [helper.make_node(node.op_type, list(node.input), list(node.output), **_kept(node))]


def _gate(node: NodeProto, rank: int) -> list[NodeProto]:
    alpha = float(_kept(node).get("alpha", 1.702))  # type: ignore[arg-type]
    return [
        helper.make_node("Constant", [], ["alpha"], value_float=alpha),
        helper.make_node("CastLike", ["alpha", node.input[0]], ["factor"]),
        helper.make_node("Mul", [node.input[0], "factor"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["gate"]),
        helper.make_node("Mul", [node.input[0], "gate"], list(node.output)),
    ]


REWRITES: dict[tuple[str, str], Rewrite] = {
    ("com.microsoft", "NhwcConv"): _channels_first,
    ("com.microsoft", "QLinearReduceMean"): _dequantized_mean,
    ("com.microsoft", "QuickGelu"): _gate,
    ("com.microsoft", "SimplifiedLayerNormalization"): _of_standard_domain,
}


def equivalent(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Another model with the inputs, weights and outputs of `model`, a node; None for most."""
    (node,) = model.graph.node
    rewrite = REWRITES.get((node.domain, node.op_type))
    if rewrite is None:
        return None
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(rewrite(node, len(model.graph.input[0].type.tensor_type.shape.dim)))
    made.opset_import[0].version = 15
    return made
