"""`ppuc quantize` for models with host steps: it accepts the models that `compile` accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from tests.support.onnx_text import model_of

RNG = np.random.default_rng(4)
WEIGHTS = {
    "A": (RNG.standard_normal((24, 40)) / 5).astype(np.float32),
    "B": (RNG.standard_normal((40, 24)) / 6).astype(np.float32),
}
X = RNG.standard_normal((72, 24)).astype(np.float32)
F64 = """g (float[6, 24] x) => (float[6, 24] y) {
    a = MatMul(x, A)
    d = Cast<to = 11>(a)
    e = Exp(d)
    f = Cast<to = 1>(e)
    y = MatMul(f, B)
}"""
IF = """g (float[6, 24] x) => (float[6, 24] y) {
    a = MatMul(x, A)
    z = Constant<value_float = 0.0>()
    s = ReduceSum<keepdims = 0>(a)
    c = Greater(s, z)
    b = If(c) <
        then_branch = t () => (float[6, 24] u) { u = MatMul(a, B) },
        else_branch = e () => (float[6, 24] v) { n = Neg(a) v = MatMul(n, B) }
    >
    y = Relu(b)
}"""
LOOP = """g (float[6, 24] x, int64 n) => (float[6, 24] y) {
    t = Constant<value = bool {1}>()
    l = Loop(n, t, x) <body = b (int64 i, bool c, float[6, 24] h) => (bool d, float[6, 24] k) {
        d = Identity(c)
        p = MatMul(h, A)
        q = Tanh(p)
        k = MatMul(q, B)
    }>
    y = Relu(l)
}"""
SIZE = """g (float[6, 24] x, int64[2] s) => (float[p, q] y) {
    a = MatMul(x, A)
    r = Reshape(a, s)
    y = Relu(r)
}"""
MODELS: dict[str, tuple[str, dict[str, np.ndarray], list[str], str]] = {
    "f64": (F64, {}, ["MatMul_0", "MatMul_4"], "Exp_2"),
    "if": (IF, {}, ["MatMul_0"], "If_4"),
    "loop": (LOOP, {"n": np.array(3)}, [], "Loop_1"),
    "size": (SIZE, {"s": np.array([12, 20])}, ["MatMul_0"], "Reshape_1"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (text, more, _, _) in MODELS.items():
        onnx.save(model_of(text, WEIGHTS), tmp_path / f"{name}.onnx")
        np.savez(tmp_path / f"{name}.data.npz", x=X, **more)
    return tmp_path


def run(folder: Path, name: str, *arguments: object, code: int = 0) -> str:
    words = ["quantize", folder / f"{name}.onnx", "--calibrate", folder / f"{name}.data.npz", *arguments]
    words += ["--goal", "macs"]
    result = CliRunner().invoke(cli, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


@pytest.mark.parametrize("name", MODELS)
def test_what_compile_takes_is_quantized(folder: Path, name: str) -> None:
    """And the policy gives the program that the report is about."""
    _, more, layers, host = MODELS[name]
    record: dict[str, Any] = json.loads(run(folder, name, "--json", "-o", folder / "policy.toml"))
    assert [row["layer"] for row in record["layers"]] == layers
    assert host in record["host"]
    assert record["samples"]["apart"]
    accuracy = record["accuracy"]["outputs"]["y"]["sqnr_db"]
    assert (20 < accuracy < 60) if layers else accuracy == 200
    program = ppuc.compile(folder / f"{name}.onnx", precision="fp8", policy=folder / "policy.toml")
    feeds = {"x": X[:6], **more}
    assert ppuc.verify(program, feeds).ok


def test_the_report_says_what_is_not_quantized(folder: Path) -> None:
    shown = run(folder, "f64")
    assert "not quantized: 3 nodes on the host, or compiled when the program runs: Cast_1, Exp_2, Cast_3" in shown


def test_layers_are_lifted_until_the_goal_is_met(folder: Path) -> None:
    goal = ("-p", "mixed", "--min-sqnr", 45)
    record = json.loads(run(folder, "f64", "--json", *goal))
    assert {row["format"] for row in record["layers"]} == {"bf16"}
    assert record["goal_met"]


@pytest.mark.parametrize(
    ("allowed", "formats"), [("100%", ("int8", "int8")), ("1.5%", ("bf16", "int8")), ("0.05%", ("bf16", "bf16"))]
)
def test_layers_are_lifted_until_the_metric_drops_by_no_more(
    folder: Path, allowed: str, formats: tuple[str, str]
) -> None:
    """The metric is of the whole model: the errors of both parts count, each in its turn."""
    goal = ("-p", "mixed", "--max-drop", allowed, "--metric", metric(folder, CLOSENESS))
    words = ("quantize", folder / "f64.onnx", "--calibrate", folder / "f64.data.npz", "--json", *goal)
    done = CliRunner().invoke(cli, [str(w) for w in (*words, "--goal", "macs", "-o", folder / "policy.toml")])
    record = json.loads(done.stdout)
    assert tuple(row["format"] for row in record["layers"]) == formats
    full, mine = record["metric"]["fp32"], record["metric"]["quantized"]
    assert full == pytest.approx(1, abs=1e-4)
    most = float(allowed.rstrip("%")) / 100
    assert all(point["metric_drop"] <= most for point in record["pareto"] if point["met"])
    assert (done.exit_code == 0) == record["goal_met"] == ((full - mine) / full <= most)
    program = ppuc.compile(folder / "f64.onnx", precision="mixed", policy=folder / "policy.toml")
    assert ppuc.verify(program, {"x": X[:6]}).ok


def test_a_missed_drop_of_the_metric_is_exit_code_1(folder: Path) -> None:
    arguments = ("--json", "--metric", metric(folder, CLOSENESS), "--max-drop", "0.001%")
    assert not json.loads(run(folder, "f64", *arguments, code=1))["goal_met"]


SUM = "float(sum(o['y'].mean() for o in outputs))"
CLOSENESS = """1 - float(np.mean([np.linalg.norm(o['y'] - np.exp(i['x'] @ A) @ B) /
    np.linalg.norm(np.exp(i['x'] @ A) @ B) for o, i in zip(outputs, inputs)]))"""


def metric(folder: Path, formula: str = SUM) -> Path:
    """The file of a metric, which may read the weights."""
    np.savez(folder / "weights.npz", **WEIGHTS)
    read = f"import numpy as np\nfound = np.load({str(folder / 'weights.npz')!r})\nA, B = found['A'], found['B']\n"
    (folder / "metric.py").write_text(f"{read}def metric(outputs, inputs):\n    return ({formula})\n")
    return folder / "metric.py"


def test_a_metric_sees_the_whole_models_outputs(folder: Path) -> None:
    record = json.loads(run(folder, "f64", "--json", "--metric", metric(folder)))
    assert record["metric"]["fp32"] == pytest.approx(record["metric"]["quantized"], rel=0.1)
    assert record["metric"]["fp32"] != record["metric"]["quantized"]


def test_without_the_host_such_a_model_is_refused(folder: Path) -> None:
    assert "If with a condition computed at run time is not supported" in run(folder, "if", "--no-host", code=2)


def test_a_policy_does_not_overwrite_the_samples(folder: Path) -> None:
    shown = run(folder, "f64", "-o", folder / "f64.data.toml", code=2)
    assert "would overwrite the input file" in shown
    assert np.array_equal(np.load(folder / "f64.data.npz")["x"], X)


def test_outputs_of_parts_count_as_those_of_the_model(folder: Path) -> None:
    """The auxiliary output is computed by the second part, and counts neither there nor at the end; the axis of a
    tensor that the host gives back is the one asked for."""
    text = """g (float[6, 24] x) => (float[6, 24] y, float[6, 40] aux, double[6, 40] e) {
        a = MatMul(x, A)
        d = Cast<to = 11>(a)
        e = Exp(d)
        f = Cast<to = 1>(e)
        y = MatMul(f, B)
        aux = Relu(f)
    }"""
    onnx.save(model_of(text, WEIGHTS), folder / "two.onnx")
    np.savez(folder / "two.data.npz", x=X)
    accuracy = json.loads(run(folder, "two", "--json"))["accuracy"]["outputs"]
    assert set(accuracy) == {"y", "aux", "e"}
    chosen = json.loads(run(folder, "two", "--json", "--outputs", "y", "--class-axis", "y=0"))["accuracy"]["outputs"]
    assert set(chosen) == {"y"}
    assert chosen["y"]["class_axis"] == 0
    assert "did you mean 'aux'?" in run(folder, "two", "--outputs", "aus", code=2)
