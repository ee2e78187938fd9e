"""What shape inference of ONNX crashes on or misjudges does not reach it. A crash ends a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import ppuc
from ppuc.compiler.frontend.shape_inference import infer_shapes

EYE = helper.make_node("EyeLike", ["t"], ["e"], dtype=TensorProto.FLOAT)
MATCH = helper.make_node("RegexFullMatch", ["t"], ["e"], pattern="a+")
ENCODE = helper.make_node("LabelEncoder", ["t"], ["e"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0])


def behind_an_unknown_op(node: onnx.NodeProto) -> onnx.ModelProto:
    """x -> Twist, which has no type -> node -> Shape."""
    nodes = [
        helper.make_node("Twist", ["x"], ["t"], domain="com.example"),
        node,
        helper.make_node("Shape", ["e"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid(*o) for o in (("", 20), ("com.example", 1), ("ai.onnx.ml", 4))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("node", [EYE, MATCH, ENCODE], ids=lambda node: node.op_type)
@pytest.mark.parametrize("command", [("check",), ("simplify", "--no-check", "-o", "out.onnx")], ids=lambda c: c[0])
def test_no_command_crashes_on_types_that_are_not_known(
    node: onnx.NodeProto, command: tuple[str, ...], tmp_path: Path
) -> None:
    onnx.save(behind_an_unknown_op(node), tmp_path / "m.onnx")
    program = "from ppuc.compiler.cli import main; main()"
    arguments = [sys.executable, "-c", program, command[0], "m.onnx", *command[1:]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr


def test_hidden_nodes_come_back_and_what_reads_them_is_inferred() -> None:
    model = behind_an_unknown_op(EYE)
    found = infer_shapes(model)
    assert [n.SerializeToString() for n in found.graph.node] == [n.SerializeToString() for n in model.graph.node]
    assert list(found.opset_import) == list(model.opset_import)
    assert found.graph.output[0].type.tensor_type.elem_type == TensorProto.INT64


def test_nodes_whose_inputs_have_types_are_inferred() -> None:
    model = behind_an_unknown_op(EYE)
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [4, 3]))
    (e,) = (i for i in infer_shapes(model).graph.value_info if i.name == "e")
    assert e.type == helper.make_tensor_type_proto(TensorProto.FLOAT, [4, 3])


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_behind_the_input_contradict_no_declared_size(op: str) -> None:
    """Five windows of one element, three apart, on 15 elements: rounding up would add one that begins at 15. What the
    file says, what ONNX Runtime computes and what ppuc computes is 5; ONNX's inference finds 6."""
    nodes = [
        helper.make_node(op, ["x"], ["p"], kernel_shape=[1], strides=[3], ceil_mode=1),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, s]) for n, s in (("x", 15), ("y", 5))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    program = ppuc.compile(model, target="ppu-tiny")
    assert ppuc.verify(program).ok
    assert [n.domain for n in infer_shapes(model).graph.node] == ["", ""]
