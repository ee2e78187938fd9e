"""The fusion report: which edges stay inside a kernel, and why others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.report.fusion import fusion_record
from ppuc.targets.description import load_target
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """y = b @ relu(x @ a) + relu(x @ a): the sum joins the second product and cannot join the first."""
    text = """m (float[40, 32] x) => (float[40, 32] y) {
        p = MatMul(x, a)
        r = Relu(p)
        q = MatMul(b, r)
        y = Add(q, r)
    }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((n, n)).astype(np.float32) for name, n in (("a", 32), ("b", 40))}
    path = tmp_path / "residual.onnx"
    onnx.save(model_of(text, weights), path)
    return path


def edges_of(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(e["from_op"], e["to_op"]): e for e in record["edges"]}


def test_each_edge_is_fused_or_has_its_reason(residual: Path) -> None:
    record = fusion_record(compile_model(residual, CompileOptions(load_target("ppu-tiny"))).remarks)
    edges = edges_of(record)
    assert set(edges) == {("matmul", "relu"), ("relu", "matmul"), ("relu", "add"), ("matmul", "add")}
    assert edges["matmul", "relu"]["fused"]
    assert edges["matmul", "add"]["fused"]
    assert edges["relu", "matmul"]["why"] == "the product's right operand is computed before it, not read as weights"
    assert edges["relu", "add"]["why"] == edges["relu", "matmul"]["why"]
    assert edges["relu", "add"]["bytes"] == 40 * 32 * 4
    assert (record["fused"], record["not_fused"]) == (2, 2)
    assert sum(r["edges"] for r in record["reasons"].values()) == 2


def test_the_grouping_is_the_one_that_is_compiled(residual: Path) -> None:
    made = compile_model(residual, CompileOptions(load_target("ppu-tiny")))
    record = fusion_record(made.remarks)
    assert record["kernels"] == sum(len(s.kernels) for s in made.artifact.program.segments)


def test_a_concatenation_computed_in_place_is_fused(tmp_path: Path) -> None:
    text = """m (float[40, 32] x, float[40, 8] z) => (float[40, 72] y) {
        p = MatMul(x, a)
        q = MatMul(p, b)
        y = Concat <axis = 1> (p, q, z)
    }"""
    weights = {name: np.ones((32, 32), np.float32) for name in ("a", "b")}
    path = tmp_path / "joined.onnx"
    onnx.save(model_of(text, weights), path)
    made = compile_model(path, CompileOptions(load_target("ppu-tiny")))
    record = fusion_record(made.remarks)
    concats = [e["fused"] for e in record["edges"] if e["to_op"] == "concat"]
    assert concats == [True, True]
    assert record["kernels"] == sum(len(s.kernels) for s in made.artifact.program.segments)


def test_what_later_passes_do_to_kernels_is_listed(tmp_path: Path) -> None:
    path, target = tmp_path / "long.onnx", load_target("zhenwu-m890")
    text = "m (float[1, 8192] x) => (float[1, 64] y) { p = MatMul(x, a)  y = Relu(p) }"
    onnx.save(model_of(text, {"a": np.ones((8192, 64), np.float32)}), path)
    made = compile_model(path, CompileOptions(target, "bf16"))
    record = fusion_record(made.remarks)
    changes = {c["name"]: (c["before"], c["after"]) for c in record["after_fusion"]}
    assert changes == {"storage-types": (1, 2), "split-k": (2, 3)}  # the input is rounded, the product is cut
    assert record["kernels"] == sum(len(s.kernels) for s in made.artifact.program.segments) == 3
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--fusion", "--target", target.name, "-p", "bf16"])
    assert "changes by later passes" in shown.stdout


def test_the_command_prints_reasons_and_takes_compile_options(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    runner = CliRunner()
    options = [str(path), "--fusion", "--dim", "N=4", "--target", "ppu-tiny"]
    shown = runner.invoke(cli, ["inspect", *options])
    assert shown.exit_code == 0, shown.stderr
    assert "edges stay inside one" in shown.stdout
    assert "0 of 1 kernels and the ones that read them are one kernel" in shown.stdout
    assert "slower than two" in shown.stdout
    record = json.loads(runner.invoke(cli, ["inspect", *options, "--json"]).stdout)
    assert record["command"] == "inspect"
    assert record["kind"] == "fusion"
    assert all(set(e) == set(record["edges"][0]) for e in record["edges"])
    wrong = runner.invoke(cli, ["inspect", str(path), "--dim", "N=4"])
    assert wrong.exit_code == 2
    assert "compile options go with --fusion" in wrong.stderr
    two = runner.invoke(cli, ["inspect", *options, "--remarks", "all"])
    assert two.exit_code == 2
    assert "gives one report at a time" in two.stderr
