"""`ppuc simplify`, and models that others simplify too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from ppuc.compiler.simplify import convert
from ppuc.compiler.simplify.driver import node_counts, simplify
from ppuc.compiler.simplify.model import ModelGraph, Node
from ppuc.compiler.simplify.rules.base import RULES
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import ModelError, UsageError
from tests.simplify.checking import normal
from tests.support.onnx_text import model_of

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


# Node counts of the best of onnxsim 0.8.1, onnxslim 0.1.98, onnxscript 0.7.2 and onnxoptimizer 0.4.2
# (benchmarks/simplify.py measures them anew). VGG-19, AlexNet and ZFNet are left to the benchmark: their constants
# take half a gigabyte.
BEST = {
    "densenet121": 491, "inception_v1": 138, "inception_v2": 154, "resnet50": 123, "shufflenet": 154, "squeezenet": 65,
}  # fmt: skip


@pytest.mark.parametrize("name", BEST)
def test_light_models_end_at_the_best_tools_count_or_below(name: str) -> None:
    result = simplify(LIGHT / f"light_{name}.onnx")
    assert result.ok
    assert sum(result.after.values()) <= BEST[name]


# The check, files and the command


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(g: ModelGraph, node: Node) -> bool:
        return g.replace(node, node.inputs[0])

    monkeypatch.setitem(RULES, "Exp", [wrong])
    model = model_of("g (float[3] x) => (float[3] y) { a = Exp(x) y = Relu(a) }")
    result = simplify(model)
    assert not result.ok
    onnx.save(model, tmp_path / "m.onnx")
    shown = CliRunner().invoke(cli, ["simplify", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")])
    assert shown.exit_code == 1
    assert "DISAGREES" in shown.stdout
    assert not (tmp_path / "o.onnx").exists()


def run_command(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["simplify", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_the_command_writes_what_it_reports(tmp_path: Path) -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = Identity(x) y = Relu(a) }")
    model.metadata_props.add(key="author", value="someone")
    onnx.save(model, tmp_path / "m.onnx")
    record = run_command(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert (record["nodes_before"], record["nodes_after"]) == (2, 1)
    assert record["checked_with"] == {"N": 2}
    written = onnx.load(tmp_path / "o.onnx")
    assert node_counts(written) == record["after"]
    assert written.opset_import[0].version == 17
    assert written.metadata_props[0].value == "someone"
    assert run_command(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--no-check")["checked_with"] is None


def test_large_weights_go_to_a_file_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LARGEST_MESSAGE", 1000)
    w = normal(64, 64)
    model = model_of("g (float[2, 64] x) => (float[2, 64] y) { i = Identity(x) y = MatMul(i, w) }", {"w": w})
    convert.save_model(simplify(model).model, tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").stat().st_size < 1000
    x = normal(2, 64)
    np.testing.assert_allclose(Oracle(tmp_path / "o.onnx").run({"x": x})["y"], x @ w, rtol=1e-4, atol=1e-4)
    assert dict(simplify(tmp_path / "o.onnx").after) == {"MatMul": 1}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        simplify(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="no open dimension 'M'"):
        simplify(model_of("g (float[N] x) => (float[N] y) { y = Relu(x) }"), {"M": 1})
    with pytest.raises(ModelError, match="never defined"):
        simplify(model_of("g (float[N] x) => (float[N] y) { y = Relu(z) }"))
