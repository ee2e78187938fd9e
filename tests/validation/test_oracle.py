"""The ONNX Runtime oracle, and matching its tensors with those of a program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ppuc.compiler.frontend.expose import moved_model
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.pipeline.layers import final_node, layer_candidates, matching, node_values
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import ModelError
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp, normal


def test_oracle_returns_outputs_and_inner_tensors(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    x = normal(2, 20)
    got = Oracle(path, ("h", "r")).run({"x": x})
    assert set(got) == {"y", "h", "r"}
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in mlp().graph.initializer}
    np.testing.assert_allclose(got["h"], x @ weights["w0"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["y"], got["r"] @ weights["w1"], rtol=1e-5, atol=1e-5)


def test_oracle_finds_external_data_when_outputs_are_added(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = normal(1, 20)
    assert set(Oracle(path, ("h",)).run({"x": x})) == {"y", "h"}


def test_oracle_refusals_are_model_errors(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot load the model"):
        Oracle(path)
    with pytest.raises(ModelError, match="mlp: ONNX Runtime cannot run the model"):
        Oracle(mlp()).run({"x": normal(2, 19)})


def test_a_value_stands_for_the_last_node_that_only_it_finishes() -> None:
    graph = load_model(mlp(), dims={"N": 2}).graph
    values = node_values(graph)
    assert set(values) == {"first", "bias", "relu", "second"}
    assert values["second"] == graph.results[0].name
    candidates = layer_candidates(graph)
    assert candidates[graph.results[0].name] == ("second",)
    assert final_node(("bias", "relu"), ("first", "bias", "relu")) == "relu"
    assert final_node(("inlined/x",), ("first",)) is None


def test_layouts_are_matched() -> None:
    want = normal(1, 3, 4, 5)
    assert matching(want, np.zeros((1, 3, 4, 5))) is want or matching(want, want) is not None
    last = np.moveaxis(want, 1, -1)
    np.testing.assert_array_equal(matching(want, np.zeros(last.shape)), last)
    np.testing.assert_array_equal(matching(want, np.zeros((3, 4, 5))), want[0])
    assert matching(want, np.zeros((5, 4, 3))) is None
    square = normal(1, 4, 4, 4)
    np.testing.assert_array_equal(matching(square, np.moveaxis(square, 1, -1)), np.moveaxis(square, 1, -1))


def test_models_of_newer_ir_versions_are_read() -> None:
    """What the version adds is beside the graph, so the oracle reads the model as of the newest that it knows."""
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.ir_version = 14
    x = np.array([1, -2], np.float32)
    np.testing.assert_array_equal(Oracle(model).run({"x": x})["y"], -x)


def test_moved_models_keep_their_sizes() -> None:
    """Weights of every float type move; what sizes are computed from does not."""
    text = """g (float[1, 1, 3, 3] x) => (float[1, 1, 6, 6] y, float16[4] h) {
        y = Resize(x, , scales)
        k = Identity(half)
        h = Add(k, k)
    }"""
    model = model_of(text, {"scales": np.float32([1, 1, 2, 2]), "half": np.float16([1, 2, 3, 4])})
    moved = moved_model(model, lambda a: a * np.float32(1.5))
    changed = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in moved.graph.initializer}
    assert changed == {"scales": [1, 1, 2, 2], "half": [1.5, 3, 4.5, 6]}
    assert onnx.numpy_helper.to_array(model.graph.initializer[1]).tolist() == [1, 2, 3, 4]
