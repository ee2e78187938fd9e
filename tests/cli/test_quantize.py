"""`ppuc quantize`: goals, reports, policies, resuming, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.policy import read_policy
from ppuc.compiler.quantization.prepare import prepare
from ppuc.targets.artifact import load, save
from ppuc.targets.description import load_target
from tests.quantization.test_plans import convnet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(convnet(), tmp_path / "net.onnx")
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((32, 3, 9, 9)).astype(np.float32))
    return tmp_path


def run(folder: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    words = ["quantize", folder / "net.onnx", "--target", "ppu-tiny", "--json", *arguments]
    if "--calibrate" not in arguments:
        words += ["--calibrate", folder / "data.npz"]
    if "--goal" not in arguments:
        words += ["--goal", "macs"]
    if "-p" not in arguments:
        words += ["-p", "fp8"]
    result = CliRunner().invoke(cli, [str(w) for w in words])
    assert result.exit_code == code, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_a_policy_is_not_slower_than_bf16_unless_it_may_be(folder: Path) -> None:
    kept = run(folder)
    fast = run(folder, "--goal", "time")
    assert kept["share"] == 1.0
    assert not kept["slower"]
    assert kept["time"]["speedup"] < 1.0 <= fast["time"]["speedup"]
    assert fast["slower"]
    words = ["quantize", folder / "net.onnx", "--target", "ppu-tiny", "--calibrate", folder / "data.npz", "-p", "fp8"]
    shown = CliRunner().invoke(cli, [str(w) for w in words]).stdout
    assert re.search(r"faster in bf16, because in 8 bits more time goes to \S+ \+", shown)


def test_the_report_is_what_the_policy_gives(folder: Path) -> None:
    """The accuracy in the report, measured again from the policy's file on the samples that were kept apart."""
    record = run(folder, "-o", folder / "p.toml")
    assert record["samples"] == {"fit": 16, "decide": 8, "report": 8, "apart": True}
    assert record["share"] == 1.0
    assert [row["layer"] for row in record["layers"]] == ["c", "d", "p", "y"]
    options = CompileOptions(load_target("ppu-tiny"), "fp8")
    module = initial_module(load_model(folder / "net.onnx", dims={"N": 1}), options)
    ready = prepare(module, options)
    data = np.load(folder / "data.npz")["x"][3::4]
    reference = Reference(ready.module.graph, ready.feeds({"x": row[None]} for row in data))
    plan = read_policy(folder / "p.toml", ready.layers)
    assert reference.compare(ready.quantized(plan).graph).sqnr == pytest.approx(record["accuracy"]["sqnr_db"], abs=1e-3)


def test_compile_says_the_same_as_quantize(folder: Path) -> None:
    """The summary, and the program: that of the policy."""
    whole = run(folder, "-o", folder / "p.toml")
    words = [str(w) for w in ("compile", folder / "net.onnx", "-t", "ppu-tiny", "-p", "fp8", "--json", "-o")]
    calibrated = [*words, str(folder / "a.ppu"), "--calibrate", str(folder / "data.npz")]
    made = json.loads(CliRunner().invoke(cli, calibrated).stdout)["quantization"]
    for key in ("samples", "repair", "share", "time"):
        assert made[key] == whole[key]
    assert made["sqnr_db"] == whole["accuracy"]["sqnr_db"]
    order = sorted(whole["layers"], key=lambda row: row["isolated_sqnr_db"])
    assert [row["layer"] for row in made["noisiest"]] == [row["layer"] for row in order[:3]]
    CliRunner().invoke(cli, [*words, str(folder / "b.ppu"), "--policy", str(folder / "p.toml"), "--dim", "N=1"])
    for name in ("a", "b"):  # what the compiler said on the way differs: one chose, the other was told
        artifact = load(folder / f"{name}.ppu")
        save(replace(artifact, notes={}), folder / f"{name}.ppu")
    assert (folder / "a.ppu").read_bytes() == (folder / "b.ppu").read_bytes()
    plain = json.loads(CliRunner().invoke(cli, [*calibrated, "--no-repair"]).stdout)["quantization"]
    assert plain["repair"] == "none"
    assert plain["sqnr_db"] < made["sqnr_db"]


def test_a_metric_sees_labels(folder: Path) -> None:
    """Each sample's own rows of what has rows for them, all of what has not; without a metric a label is a mistake."""
    x = np.load(folder / "data.npz")["x"]
    np.savez(folder / "labelled.npz", x=x, mark=x[:, 0, 0, 0], names=np.array(["a", "b", "c"]))
    (folder / "m.py").write_text(
        "def metric(outputs, inputs):\n"
        "    assert all(i['mark'][0] == i['x'][0, 0, 0, 0] and list(i['names']) == ['a', 'b', 'c'] for i in inputs)\n"
        "    return float(len(inputs))\n"
    )
    given = ("--calibrate", folder / "labelled.npz")
    assert run(folder, *given, "--metric", folder / "m.py")["metric"] == {"fp32": 8.0, "quantized": 8.0}
    assert "no input is called 'mark'" in refusal(folder, *given)
    np.savez(folder / "scaled.npz", x=x, scale=np.float32(2))
    assert "no input is called 'scale'" in refusal(folder, "--calibrate", folder / "scaled.npz")


def test_mixed_lifts_as_little_as_the_goal_allows(folder: Path) -> None:
    """The state holds the noise of every layer, so the second search measures none again and finds the same."""
    goal = ("-p", "mixed", "--min-sqnr", "52", "--state", folder / "s.json", "--evaluate", folder / "data.npz")
    record = run(folder, *goal, "--plot", folder / "p.svg")
    assert record["share"] < 1.0
    tried = {p["lifted"]: p for p in record["pareto"]}
    settled = min(k for k, p in tried.items() if p["met"])
    assert all(not tried[k]["met"] for k in tried if k < settled)
    assert all(len(p["lifted_layers"]) == lifted for lifted, p in tried.items())
    wide = {row["layer"] for row in record["layers"] if row["format"] == "bf16"}
    assert set(tried[settled]["lifted_layers"]) == wide
    assert record["goal"] == {"min_sqnr": 52.0, "min_agreement": None, "max_drop": None, "min_share": None}
    assert "bf16" in {row["format"] for row in record["layers"]}
    assert sum(row["format"] == "bf16" for row in record["layers"]) == settled
    assert (folder / "p.svg").read_text().count("<circle") == len(tried)
    state = json.loads((folder / "s.json").read_text())
    assert set(state["noise"]) == {"c", "d", "p", "y"}
    assert run(folder, *goal) == record


def lookalikes(folder: Path) -> Path:
    """Classes by small differences of large weights, which 8 bits lose. The samples, as a folder."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((16, 8)).astype(np.float32)
    w[:2] = np.array([[1000.0], [-1000.0]]) + 5 * w[:2]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "u"], ["h"], name="first"),
        onnx.helper.make_node("MatMul", ["h", "w"], ["l"], name="last"),
        onnx.helper.make_node("Softmax", ["l"], ["y"], axis=-1),
    ]
    u = np.eye(16, dtype=np.float32)
    arrays = [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(u, "u")]
    x, y = (onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [4, 16]), ("y", [4, 8])))
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], arrays)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), folder / "net.onnx")
    samples = rng.standard_normal((32, 4, 16)).astype(np.float32)
    samples[..., :2] = 1.0 + 0.3 * samples[..., :1]
    (folder / "alike").mkdir()
    for i, sample in enumerate(samples):
        np.savez(folder / "alike" / f"{i:02}.npz", x=sample)
    return folder / "alike"


def test_a_ruined_output_is_refused_unless_forced(folder: Path) -> None:
    data = lookalikes(folder)
    told = run(folder, "--calibrate", data, "--no-repair", code=2)["diagnostics"][0]
    assert told["what"] == "ruins output 'y'"
    lost = re.fullmatch(r"(\S+)% of the decisions of output 'y' differ on 8 held-out samples", told["got"])
    assert lost is not None
    assert told["expected"] == "at most 5%; the nearest result that is not ruined: 1 of 2 layers in bf16 (last)"
    forced = run(folder, "--calibrate", data, "--no-repair", "--force")
    assert forced["ruined"]["output"] == "y"
    assert forced["ruined"]["loss"] == pytest.approx(float(lost[1]) / 100, abs=1e-3)
    assert forced["ruined"]["loss"] == pytest.approx(1.0 - forced["accuracy"]["agreement"])
    words = [str(w) for w in ("compile", folder / "net.onnx", "-t", "ppu-tiny", "-p", "fp8", "--calibrate", data)]
    out = ["--no-repair", "-o", str(folder / "a.ppu")]
    refused = CliRunner().invoke(cli, [*words, *out])
    assert refused.exit_code == 2
    assert told["got"] in refused.stderr
    assert not (folder / "a.ppu").exists()
    assert CliRunner().invoke(cli, [*words, *out, "--force"]).exit_code == 0
    assert CliRunner().invoke(cli, ["verify", *words[1:], "--no-repair"]).exit_code == 2
    assert "--force: has no effect without --calibrate" in CliRunner().invoke(cli, [*words[:6], "--force"]).stderr


def test_a_metric_says_what_is_ruined(folder: Path) -> None:
    """It decides, not the agreement; a drop that the goal allows is none."""
    data = lookalikes(folder)
    (folder / "m.py").write_text("def metric(outputs, inputs):\n    return 1.0\n")
    assert run(folder, "--calibrate", data, "--no-repair", "--metric", folder / "m.py")["ruined"] is None
    (folder / "m.py").write_text(
        "def metric(outputs, inputs):\n    return 1.0 + sum(float(o['y'].argmax(-1).sum()) for o in outputs)\n"
    )
    told = run(folder, "--calibrate", data, "--no-repair", "--metric", folder / "m.py", code=2)["diagnostics"][0]
    assert told["what"] == "ruins the task"
    assert told["got"].startswith("the task metric falls by ")


def test_by_default_each_layer_takes_its_better_format(folder: Path) -> None:
    """Numbers with rare large ones, which E4M3 holds best, and uniform numbers, which int8 does."""
    rng = np.random.default_rng(5)
    u, v = (rng.uniform(-1, 1, (16, 16)).astype(np.float32) for _ in range(2))
    nodes = [onnx.helper.make_node("MatMul", ["a", "u"], ["p"], name="heavy")]
    nodes += [onnx.helper.make_node("MatMul", ["b", "v"], ["q"], name="even")]
    arrays = [onnx.numpy_helper.from_array(u, "u"), onnx.numpy_helper.from_array(v, "v")]
    ends = [onnx.helper.make_tensor_value_info(n, 1, [1, 16]) for n in "abpq"]
    graph = onnx.helper.make_graph(nodes, "g", ends[:2], ends[2:], arrays)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), folder / "net.onnx")
    heavy = rng.standard_normal((64, 16)).astype(np.float32)
    heavy[:4, 3] = 40.0  # one of each part of the samples
    np.savez(folder / "data.npz", a=heavy, b=rng.uniform(-1, 1, (64, 16)).astype(np.float32))
    record = run(folder, "-p", "8bit", "-o", folder / "p.toml")
    assert {row["layer"]: row["format"] for row in record["layers"]} == {"heavy": "e4m3", "even": "int8"}
    words = [str(w) for w in (folder / "net.onnx", "-t", "ppu-tiny", "-p", "8bit")]
    given = ["--calibrate", str(folder / "data.npz"), "-o", str(folder / "a.ppu"), "--json"]
    made = CliRunner().invoke(cli, ["compile", *words, *given])
    assert json.loads(made.stdout)["quantization"]["sqnr_db"] == record["accuracy"]["sqnr_db"]
    np.savez(folder / "one.npz", a=heavy[9:10], b=np.load(folder / "data.npz")["b"][9:10])
    given = ["--policy", str(folder / "p.toml"), "--inputs", str(folder / "one.npz")]
    verified = CliRunner().invoke(cli, ["verify", *words, *given])
    assert verified.exit_code == 0, verified.output
    assert CliRunner().invoke(cli, ["quantize", "--help"]).stdout.count("default: 8bit") == 1


def test_a_share_is_kept_and_its_policy_compiles(folder: Path) -> None:
    record = run(folder, "-p", "mixed", "--min-share", "80%", "-o", folder / "p.toml")
    assert 0.8 <= record["share"] < 1.0
    words = ["verify", folder / "net.onnx", "-p", "mixed", "--policy", folder / "p.toml", "--dim", "N=1"]
    result = CliRunner().invoke(cli, [*map(str, words), "--target", "ppu-tiny"])
    assert result.exit_code == 0, result.output


def refusal(folder: Path, *arguments: object) -> str:
    record = run(folder, *arguments, code=2)
    return " ".join(f"{d['where']} {d['what']} {d['got']}" for d in record["diagnostics"])


def test_what_is_refused(folder: Path) -> None:
    assert "needs a goal" in refusal(folder, "-p", "mixed")
    assert "needs a task metric" in refusal(folder, "-p", "mixed", "--max-drop", "1%")
    assert "holds a single sample" in refusal(folder, "--samples", "1")
    (folder / "s.json").write_text("{}")
    assert "is not the state of a search" in refusal(folder, "--state", folder / "s.json")
    np.savez(folder / "zero.npz", x=np.zeros((9, 3, 9, 9), np.float32))
    assert "is zero in every sample" in refusal(folder, "--calibrate", folder / "zero.npz")
    assert "cannot be met by any choice" in refusal(folder, "-p", "mixed", "--min-sqnr", "300")
    (folder / "m.py").write_text("def metric(outputs, inputs):\n    return 1 / 0\n")
    assert "fails on sample 0 ZeroDivisionError" in refusal(
        folder, "-p", "mixed", "--max-drop", "1%", "--metric", folder / "m.py"
    )
    (folder / "m.py").write_text("x = 1\n")
    assert "defines no function 'metric'" in refusal(folder, "--metric", folder / "m.py")


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ((), "precision model without --calibrate"),
        (("-p", "fp8"), "precision fp8 without --calibrate"),
        (("-p", "mixed", "--policy", "{folder}/p.toml"), "precision mixed without --calibrate"),
        (("-p", "mxfp4", "--calibrate", "{folder}/data.npz"), "precision mxfp4"),
    ],
)
def test_no_repair_is_refused_where_nothing_is_repaired(folder: Path, options: tuple[str, ...], got: str) -> None:
    (folder / "p.toml").write_text('[[layer]]\nname = "*"\nformat = "bf16"\n')
    words = [o.format(folder=folder) for o in options]
    result = CliRunner().invoke(cli, ["compile", str(folder / "net.onnx"), "--no-repair", *words])
    assert result.exit_code == 2
    assert f"error: --no-repair: has no effect where nothing is repaired\n  got: {got}\n" in result.stderr
    assert not list(folder.glob("*.ppu"))
