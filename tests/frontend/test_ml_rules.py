"""Tables in the attributes of ai.onnx.ml: each row changes one attribute of a legal node."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from ppuc.compiler.frontend.conformance.check import findings

NODES = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.5, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
}
OPS: dict[str, dict[str, object]] = {
    "TreeEnsembleRegressor": {
        **NODES,
        "n_targets": 1,
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
    },
    "TreeEnsembleClassifier": {
        **NODES,
        "classlabels_int64s": [0, 1],
        "class_treeids": [0, 0],
        "class_nodeids": [1, 2],
        "class_ids": [0, 1],
        "class_weights": [1.0, 2.0],
    },
    "LinearRegressor": {"coefficients": [1.0] * 8, "intercepts": [0.0] * 2, "targets": 2},
    "LinearClassifier": {"coefficients": [1.0] * 8, "intercepts": [0.0] * 2, "classlabels_ints": [0, 1]},
    "Imputer": {"imputed_value_floats": [1.0] * 4, "replaced_value_float": 0.0},
}
TREES = ("TreeEnsembleRegressor", "TreeEnsembleClassifier")
CHANGES: list[tuple[str, str, object, str]] = [
    *((op, "nodes_values", [0.5, 0.0], "'nodes_values' has the wrong length") for op in TREES),
    *((op, "nodes_modes", ["BRANCH_LEQ"], "'nodes_modes' has the wrong length") for op in TREES),
    *((op, "nodes_treeids", [0, 0], "has the wrong length") for op in TREES),
    *((op, "nodes_truenodeids", [9, 0, 0], "'nodes_truenodeids' is out of range") for op in TREES),
    *((op, "nodes_falsenodeids", [0, 0, 0], "'nodes_falsenodeids' is out of range") for op in TREES),
    *((op, "nodes_featureids", [-1, 0, 0], "'nodes_featureids' is out of range") for op in TREES),
    *((op, "nodes_nodeids", [0, 1, 1], "its nodes have the same numbers") for op in TREES),
    ("TreeEnsembleRegressor", "target_ids", [0, 1], "'target_ids' is out of range"),
    ("TreeEnsembleRegressor", "target_nodeids", [1, 9], "'target_nodeids' is out of range"),
    ("TreeEnsembleRegressor", "target_weights", [1.0], "'target_weights' has the wrong length"),
    ("TreeEnsembleClassifier", "class_ids", [0, 2], "'class_ids' is out of range"),
    ("TreeEnsembleClassifier", "class_nodeids", [1], "has the wrong length"),
    ("LinearRegressor", "intercepts", [0.0], "'intercepts' has the wrong length"),
    ("LinearRegressor", "coefficients", [1.0] * 7, "'coefficients' has the wrong length"),
    ("LinearClassifier", "coefficients", [1.0] * 7, "'coefficients' has the wrong length"),
    ("LinearClassifier", "classlabels_ints", None, "it names no classes"),
    ("Imputer", "imputed_value_floats", [1.0] * 3, "'imputed_value_floats' has the wrong length"),
]
LEGAL: list[tuple[str, str, object]] = [
    *((op, "nodes_missing_value_tracks_true", [0, 0, 0]) for op in TREES),
    *((op, "nodes_featureids", [3, -1, -1]) for op in TREES),
    ("LinearRegressor", "intercepts", None),
    ("Imputer", "imputed_value_floats", [1.0]),
]


def model_of(op: str, attribute: str, value: object) -> onnx.ModelProto:
    given = {name: v for name, v in {**OPS[op], attribute: value}.items() if v is not None}
    outputs = ["y", "z"][: 2 if op.endswith("Classifier") else 1]
    node = helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml", **given)
    x = helper.make_tensor_value_info("x", 1, [2, 4])
    graph = helper.make_graph([node], "g", [x], [helper.make_empty_tensor_value_info(name) for name in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=9)


@pytest.mark.parametrize(("op", "attribute", "value", "message"), CHANGES)
def test_broken_tables(op: str, attribute: str, value: object, message: str) -> None:
    assert [message in found.what for found in findings(model_of(op, attribute, value))] == [True]


@pytest.mark.parametrize(("op", "attribute", "value"), LEGAL)
def test_legal_tables(op: str, attribute: str, value: object) -> None:
    assert findings(model_of(op, attribute, value)) == []
