"""Commands on models with host steps: profiles, checks, layers, conditioning."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import ppuc
from ppuc.compiler.host.verify import verify_hosted
from ppuc.compiler.validation.compare import Comparison
from ppuc.ir.errors import UsageError
from tests.host.host_models import MIXED, TINY, compiled, model, run, x46


def test_profile_and_check_tell_what_the_host_does(tmp_path: Path) -> None:
    onnx.save(model(MIXED), tmp_path / "m.onnx")
    shown = run("check", tmp_path / "m.onnx")
    assert shown.exit_code == 0
    assert "6 nodes for the host" in shown.stdout
    assert "convert it to float32 before exporting" in shown.stdout
    result = run("profile", tmp_path / "m.onnx", "-t", TINY, "--timing-only")
    assert result.exit_code == 0
    assert "transfers to and from the host" in result.stdout


ALL_ON_HOST = "g (float[2, 3] x) => (double[2, 3] y) { wide = Cast<to = 11>(x) y = Exp(wide) }"


def test_a_profile_of_a_model_wholly_on_the_host_has_only_measured_time(tmp_path: Path) -> None:
    onnx.save(model(ALL_ON_HOST), tmp_path / "m.onnx")
    shown = run("profile", tmp_path / "m.onnx", "-t", TINY)
    assert shown.exit_code == 0, shown.output
    assert "nothing ran on the PPU" in shown.stdout
    assert re.search(r"the host took [\d.]+ [mun]?s, measured here, not simulated", shown.stdout)
    assert "Cast_0, Exp_1" in shown.stdout
    assert "0 cycles" not in shown.stdout
    record = json.loads(run("profile", tmp_path / "m.onnx", "-t", TINY, "--json").stdout)
    assert (record["cycles"], record["seconds"], record["kernels"]) == (0, 0, [])
    assert record["host_measured_seconds"] == sum(s["measured_seconds"] for s in record["host"]) > 0
    assert record["interval"] == {"skipped": "nothing ran on the PPU"}


@pytest.mark.parametrize("extra", [("--timing-only",), ("--interval",), ("--top", 0), ("--set", "hbm.gbs=5")])
def test_every_view_of_a_profile_takes_a_model_wholly_on_the_host(tmp_path: Path, extra: tuple[object, ...]) -> None:
    onnx.save(model(ALL_ON_HOST), tmp_path / "m.onnx")
    assert run("compile", tmp_path / "m.onnx", "-t", TINY, "-o", tmp_path / "m.ppu").exit_code == 0
    for file in ("m.onnx", "m.ppu"):
        machine = () if file == "m.ppu" and "--set" not in extra else ("-t", TINY)
        shown = run("profile", tmp_path / file, *machine, "--trace", tmp_path / "t.json", *extra)
        assert shown.exit_code == 0, shown.output
        assert "nothing ran on the PPU" in shown.stdout
        assert ("not simulated" in shown.stdout) == (extra != ("--timing-only",))
        assert "the trace omits host steps" in shown.stderr
    swept = run("targets", TINY, "--sweep", "hbm.gbs=1:2:1", "--model", tmp_path / "m.ppu")
    assert swept.exit_code == 0, swept.output
    assert "ideal" not in swept.stdout


def test_the_time_of_the_host_is_told_from_simulated_time(tmp_path: Path) -> None:
    """What the host computes inside a body that is compiled while the loop runs counts, once a trip."""
    text = """g (float[4, 6] x) => (float[4, 6] u) {
        total = ReduceSum<keepdims = 0>(x) trips = Cast<to = 7>(total) n = Abs(trips)
        u = Loop (n, , x) <body = b (int64 i, bool c, float[4, 6] h) => (c2, h2) {
            c2 = Identity(c) m = MatMul(h, w) wide = Cast<to = 11>(m) e = Exp(wide) h2 = Cast<to = 1>(e) }> }"""
    source = model(text)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(6, dtype=np.float32) / 8, "w"))
    onnx.save(source, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.full((4, 6), -0.1, np.float32))
    arguments = (tmp_path / "m.onnx", "-t", TINY, "--inputs", tmp_path / "x.npz")
    for command in ("run", "verify", "profile"):
        shown = run(command, *arguments)
        assert shown.exit_code == 0, shown.output
        assert "measured here, not simulated" in shown.stdout
        record = json.loads(run(command, *arguments, "--json").stdout)
        assert 0 < sum(r["measured_seconds"] for r in record["later"]) <= record["host_measured_seconds"]


def test_what_helps_is_found_by_the_cause_not_by_words_of_the_reason(tmp_path: Path) -> None:
    """A node inside a function may be called like anything; what a node waits for is what its importer asked for."""
    text = """g (float[4, 6] x, int64[1] n) => (float[4, 6] y, float[a, b] z, double[4, 6] w) {
        y = local.Noise(x) z = Unsqueeze(x, n) w = Cast<to = 11>(x) }
    <opset_import: ["" : 17], domain: "local"> Noise (a) => (c) { b = RandomUniformLike(a) c = Add(a, b) }"""
    source = parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "local" : 1]>' + text)
    source.functions[0].node[0].name = "f64 computed at run time"
    onnx.save(source, tmp_path / "m.onnx")
    record = json.loads(run("check", tmp_path / "m.onnx", "--json").stdout)
    assert {n["node"]: n["suggestion"] for n in record["nodes"] if n["where"] == "host"} == {
        "Noise_0": None,
        "Unsqueeze_1": "give the values with --inputs, or export with constant sizes",
        "Cast_2": "convert it to float32 before exporting",
    }


def test_strings_and_sequences_on_the_command_line(tmp_path: Path) -> None:
    text = """g (string[2] s, float[2, 6] x) => (string[2] y, q, float[2, 6] z) {
        y = StringConcat(s, s) q = SplitToSequence<axis = 1>(x) z = Neg(x) }"""
    source = parser.parse_model('<ir_version: 9, opset_import: ["" : 20]>' + text)
    onnx.save(source, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", s=np.array(["a", "b"]), x=np.zeros((2, 6), np.float32))
    arguments = ("--inputs", tmp_path / "x.npz", "-t", TINY)
    result = run("run", tmp_path / "m.onnx", *arguments, "--output", tmp_path / "y.npz")
    assert result.exit_code == 0, result.output
    assert "sequence of 6" in result.stdout
    written = np.load(tmp_path / "y.npz", allow_pickle=False)
    assert written["y"].tolist() == ["aa", "bb"]
    assert written["q[5]"].shape == (2, 1)
    assert run("verify", tmp_path / "m.onnx", *arguments).exit_code == 0
    profiled = run("profile", tmp_path / "m.onnx", *arguments, "--json")
    assert [s["ops"] for s in json.loads(profiled.stdout)["host"]] == [["StringConcat", "SplitToSequence"]]


def test_check_counts_work_without_an_access_pattern(tmp_path: Path) -> None:
    source = model('g (float[4, 6] x) => (float[4, 8] y) { y = Pad<mode = "reflect">(x, pads) }')
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1, 0, 1], np.int64), "pads"))
    onnx.save(source, tmp_path / "m.onnx")
    result = run("check", tmp_path / "m.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["host_share"] == 0.0


def test_check_judges_what_it_can_beside_nodes_that_nobody_runs(tmp_path: Path) -> None:
    text = """g (float[4, 6] x, float[6, 6] W) => (float[a, b] y, int64[q, r] i, float[4, 6] e) {
        a = Relu(x) b = com.example.Swirl<angle = 2>(a) c = MatMul(b, W) d = com.example.Twist(c)
        e = MatMul(a, W) y = com.example.Shout(e, d) i = NonZero(e) }"""
    onnx.save(model(text), tmp_path / "m.onnx")
    result = run("check", tmp_path / "m.onnx", "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert {n["node"]: n["where"] for n in record["nodes"]} == {
        "Relu_0": "ppu", "Swirl_1": "refused", "MatMul_2": "ppu", "Twist_3": "refused", "MatMul_4": "ppu",
        "Shout_5": "refused", "NonZero_6": "host",
    }  # fmt: skip
    hints = [n["suggestion"] for n in record["nodes"] if n["where"] == "refused"]
    assert [h.partition("@ppuc.")[2] for h in hints] == [
        f"host_op('com.example::{op}')" for op in ("Swirl", "Twist", "Shout")
    ]
    assert 0 < record["host_share"] < record["ppu_share"] < 1
    shown = run("check", tmp_path / "m.onnx").stdout
    assert all(name in shown for name in ("Swirl_1", "Twist_3", "Shout_5", "3 nodes cannot be compiled"))


def test_check_names_nodes_whose_op_exists_but_has_no_code(tmp_path: Path) -> None:
    text = """g (float[4] x, float[4] w) => (float[4] z, float[4] e) { c = Mul(x, w)
        z = ai.onnx.preview.training.Gradient<xs = ["x"], y = "c">(x)
        d = Cast<to = 11>(x) f = Exp(d) e = Cast<to = 1>(f) }"""
    header = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>'
    onnx.save(parser.parse_model(header + text), tmp_path / "m.onnx")
    record = json.loads(run("check", tmp_path / "m.onnx", "--json").stdout)
    assert {n["node"]: n["where"] for n in record["nodes"] if n["where"] != "ppu"} == {
        "Gradient_1": "refused", "Cast_2": "host", "Exp_3": "host", "Cast_4": "host",
    }  # fmt: skip
    assert "No registered implementation" in next(n["why"] for n in record["nodes"] if n["node"] == "Gradient_1")


@pytest.mark.usefixtures("apart")
def test_layers_on_both_sides_of_the_host_are_compared() -> None:
    source = model(MIXED)
    for text in ("t = MatMul(z, w)", "u = MatMul(t, w)"):
        node = parser.parse_node(text)
        source.graph.node.append(node)
    source.graph.output.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, [4, 6]))
    weights = np.random.default_rng(0).standard_normal((6, 6), np.float32)
    source.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    program = compiled(source)
    found = ppuc.verify(program, {"x": x46()}, layers=True)
    assert found.ok
    assert [c.name for c in found.layers] == ["Relu_0", "MatMul_8"]
    assert all(0 < c.tolerance < 1e-4 for c in found.layers)
    assert {c.name for c in found.outputs} == {"y", "z", "u"}


def test_a_model_with_host_steps_carries_the_blame_for_its_own_conditioning_and_no_more() -> None:
    """(e^x + 1000) - 1000 loses three digits of e^x, whoever computes it."""
    text = """g (float[4, 6] x) => (float[4, 6] y) {
        wide = Cast<to = 11>(x)
        e = Exp(wide)
        narrow = Cast<to = 1>(e)
        a = Add(narrow, up)
        y = Sub(a, down)
    }"""
    source = model(text)
    for name in ("up", "down"):
        source.graph.initializer.append(onnx.numpy_helper.from_array(np.full((4, 6), 1000, np.float32), name))
    program = compiled(source)
    assert program.plan is not None
    x = x46()
    result = program.run({"x": x})

    def judged(y: np.ndarray) -> Comparison:
        assert program.plan is not None
        outputs, _ = verify_hosted(program, program.plan, {"x": x}, replace(result, outputs={"y": y}))
        return outputs[0]

    y = result.outputs["y"]
    assert judged(y).sensitivity is None
    excused = judged(y * np.float32(1 + 3e-5))
    assert excused.ok
    assert excused.sensitivity is not None
    assert not judged(y * np.float32(1.01)).ok


def test_an_integer_from_a_number_near_an_edge_may_be_that_of_either_side() -> None:
    w = np.random.default_rng(0).standard_normal((6, 1)).astype(np.float32)
    text = """g (float[1, 6] x) => (int32[1, 1] y, int64[2, n] i) {
        h = MatMul(x, w) y = Cast<to = 6>(h) i = NonZero(h) }"""
    source = model(text)
    source.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    program = compiled(source, precision="bf16")

    def judged(number: float, y: int) -> Comparison:
        assert program.plan is not None
        x = {"x": (number * w.T / np.square(w).sum()).astype(np.float32)}
        result = program.run(x)
        outputs = {**result.outputs, "y": np.full((1, 1), y, np.int32)}
        return verify_hosted(program, program.plan, x, replace(result, outputs=outputs))[0][0]

    assert judged(2.0005, 1).verdict == judged(1.9995, 2).verdict == "ok"
    assert "near an edge" in judged(2.0005, 1).note
    assert not judged(2.3, 1).ok
    assert judged(2.0005, 7).verdict != "ok"


def test_a_tensor_may_be_called_a_layer() -> None:
    """Exporters name tensors after modules; what is kept for comparison has names that no tensor has."""
    text = "g (float[4, 6] x) => (int64[2, n] i, float[4, 6] z) { a = MatMul(x, w) i = NonZero(a) z = Neg(a) }"
    source = model(text)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(6, dtype=np.float32), "w"))
    for node in source.graph.node:
        for names in (node.input, node.output):
            names[:] = ["layer.0.out" if name == "a" else name for name in names]
    program = compiled(source)
    assert program.plan is not None
    assert ppuc.verify(program, {"x": x46()}, layers=True).ok


def test_quantized_layers_beside_the_host_are_not_compared() -> None:
    """Compiled again without its samples, the program would have other scales."""
    source = model("g (float[4, 6] x) => (int64[2, n] i, float[4, 6] z) { z = MatMul(x, w) i = NonZero(x) }")
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(6, dtype=np.float32), "w"))
    program = compiled(source, precision="int8")
    assert ppuc.verify(program, {"x": x46()}).ok
    with pytest.raises(UsageError, match="its layers are quantized"):
        ppuc.verify(program, {"x": x46()}, layers=True)
