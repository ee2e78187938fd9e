"""The outline of a model: nodes, edges, and the modules that nodes belong to."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ppuc.compiler.frontend.outline import graph_record


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_weights_are_no_edges_and_unnamed_nodes_are_numbered() -> None:
    made = model(helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"], name="r"))
    record = graph_record(made)
    assert [(n["node"], n["reads"], n["weights"], n["writes"]) for n in record["nodes"]] == [
        ("Mul_0", ["x"], 1, ["m"]),
        ("r", ["m"], 0, ["y"]),
    ]
    assert record["types"]["x"] == "f32[N, 4]"


def test_paths_come_from_names_or_from_metadata() -> None:
    named = helper.make_node("Relu", ["x"], ["m"], name="/layer1/layer1.0/act/Relu")
    scoped = helper.make_node("Relu", ["m"], ["y"], name="node_relu")
    entry = scoped.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'head.act', 'relu']"
    paths = [n["path"] for n in graph_record(model(named, scoped))["nodes"]]
    assert paths == [["layer1", "layer1.0", "act"], ["head", "head.act"]]


def test_bodies_read_tensors_around_them() -> None:
    y = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["b"])], "body", [], [y])
    flag = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    assert graph_record(model(flag, node))["nodes"][0]["reads"] == ["x"]
