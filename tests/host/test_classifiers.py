"""Models as scikit-learn's converters write them: labels as text, sequences of maps, tree ensembles, scalers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.compiler.validation.values import compare_values

ML = "ai.onnx.ml"
rng = np.random.default_rng(3)
X = rng.standard_normal((5, 4), np.float32)
MAPS = {
    "text": helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])),
    "numbers": helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])),
}


def model(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A model of `x`, f32 [5, 4]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])],
        outputs,
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def classes(keys: str) -> dict[str, Any]:
    """Three classes, as attributes of ZipMap."""
    return {"classlabels_strings": ["a", "b", "c"]} if keys == "text" else {"classlabels_int64s": [4, 5, 6]}


def trees(keys: str) -> onnx.NodeProto:
    """A decision of two leaves for each of three classes."""
    leaf = {
        "class_treeids": [0, 0, 0],
        "class_nodeids": [1, 2, 2],
        "class_ids": [0, 1, 2],
        "class_weights": [1.0, 0.7, 0.3],
    }
    return helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        "trees",
        domain=ML,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[2, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.1, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        post_transform="NONE",
        **leaf,
        **classes(keys),
    )


def classifier(keys: str) -> onnx.ModelProto:
    """Trees, their label, and a map from classes to scores for each row."""
    kind = TensorProto.STRING if keys == "text" else TensorProto.INT64
    maps = helper.make_node("ZipMap", ["scores"], ["maps"], "maps", domain=ML, **classes(keys))
    label = helper.make_tensor_value_info("label", kind, [5])
    return model(
        [trees(keys), maps], [label, helper.make_value_info("maps", helper.make_sequence_type_proto(MAPS[keys]))]
    )


@pytest.mark.parametrize("keys", MAPS)
def test_labels_and_maps_agree_and_simplify(keys: str, tmp_path: Path) -> None:
    made = classifier(keys)
    onnx.save(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=X)
    program = ppuc.compile(made)
    found = ppuc.verify(program, {"x": X})
    assert found.ok
    assert [(c.name, c.type) for c in found.outputs][1] == ("maps", "f64[5, 3]")
    outputs = program.run({"x": X}).outputs
    first, second, third = classes(keys)[next(iter(classes(keys)))]
    left = X[:, 2] <= np.float32(0.1)
    assert list(outputs["label"]) == [first if row else second for row in left]
    assert [m[third] for m in outputs["maps"]] == [0.0 if row else pytest.approx(0.3) for row in left]
    result = simplify(made)
    assert result.ok
    assert result.comparisons is not None
    command = [
        "run",
        str(tmp_path / "m.onnx"),
        "--inputs",
        str(tmp_path / "in.npz"),
        "--output",
        str(tmp_path / "o.npz"),
    ]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    written = np.load(tmp_path / "o.npz")
    assert written[f"maps[0][{third}]"] == np.float64(outputs["maps"][0][third])


def test_wrong_maps_are_found() -> None:
    want = [{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}]

    def one(got: Any) -> Any:
        (found,) = compare_values("z", got, want, lambda _: Tolerance(1e-6))
        return found

    assert one([dict(m) for m in want]).ok
    assert not one([{"a": 0.25, "b": 0.75}, {"a": 0.4, "b": 0.6}]).ok
    assert one([{"a": 0.25, "b": 0.75}, {"a": 0.5, "c": 0.5}]).reason == "has different keys than the reference"
    assert one(want[:1]).reason == "has 1 elements, the reference has 2"
    assert one(np.zeros(2)).reason == "has a different kind than the reference"


# What follows an op without shape inference


def behind(node: onnx.NodeProto, rows: int = 5, columns: int = 4) -> onnx.ModelProto:
    """`node`, x -> s, in front of a small network."""
    nodes = [node, helper.make_node("MatMul", ["s", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 8])
    return model(nodes, [output], {"w": rng.standard_normal((columns, 8), np.float32)})


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Scaler", ["x"], ["s"], domain=ML, offset=[0.1] * 4, scale=[2.0] * 4),
        helper.make_node("Normalizer", ["x"], ["s"], domain=ML, norm="L2"),
        helper.make_node("Binarizer", ["x"], ["s"], domain=ML, threshold=0.2),
    ],
    ids=lambda node: str(node.op_type),
)
def test_a_network_behind_a_scaler_is_compiled_ahead(node: onnx.NodeProto) -> None:
    program = ppuc.compile(behind(node))
    assert program.plan is not None
    assert not program.plan.deferred
    assert [n.op for n in program.plan.nodes] == [f"{ML}.{node.op_type}"]
    assert len(program.artifact.program.segments) == 1
    assert ppuc.verify(program, {"x": X}).ok


def test_a_python_function_is_asked_too_but_not_when_data_decide(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(
        "import numpy as np, ppuc\n"
        "@ppuc.host_op('mine::Twice')\n"
        "def twice(x):\n    return 2 * x\n"
        "@ppuc.host_op('mine::Positive')\n"
        "def positive(x):\n    return x[x[:, 0] > 0]\n"
    )
    for op, ahead in (("Twice", True), ("Positive", False)):
        made = behind(helper.make_node(op, ["x"], ["s"], domain="mine"))
        if not ahead:
            made.graph.output[0].type.tensor_type.shape.dim[0].Clear()
        made.opset_import.append(helper.make_opsetid("mine", 1))
        program = ppuc.compile(made, host_ops=[tmp_path / "ops.py"])
        assert program.plan is not None
        assert (not program.plan.deferred) == ahead
        assert ppuc.verify(program, {"x": X}).ok
