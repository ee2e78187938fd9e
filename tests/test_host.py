"""Models of which a part runs on the host: values, plans, files, errors, and the worker's limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, parser

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.compare import Comparison
from ppuc.compiler.host.client import HostError, HostLimits, HostWorker
from ppuc.compiler.host.plan import HostStep, Plan, PpuStep
from ppuc.compiler.host.transfer import crossings
from ppuc.compiler.host.verify import verify_hosted
from ppuc.compiler.oracle import Oracle
from ppuc.compiler.runtime import CompiledProgram, load_program
from ppuc.ir.errors import InputError, ModelError, UsageError
from ppuc.targets.description import load_target

TINY = "ppu-tiny"
HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>'
MIXED = """g (float[4, 6] x) => (float[] y, float[4, 6] z) {
    a = Relu(x)
    c = Cast<to = 11>(a)
    d = Exp(c)
    e = Cast<to = 1>(d)
    z = Add(e, x)
    i = NonZero(z)
    f = Cast<to = 1>(i)
    y = ReduceSum<keepdims = 0>(f)
}"""
CUSTOM = """g (float[4, 6] x) => (float[4, 6] y) {
    a = Relu(x)
    b = com.example.Swirl<angle = 2>(a)
    y = Neg(b)
}"""
OPS = """
import numpy as np
import ppuc

@ppuc.host_op("com.example::Swirl")
def swirl(x, angle=0):
    return np.roll(x, angle)
"""


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEADER + text)


def x46() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((4, 6), np.float32)


def compiled(source: onnx.ModelProto, **options: Any) -> CompiledProgram:
    return ppuc.compile(source, TINY, **options)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_both_sides_take_turns_and_agree_with_onnx_runtime() -> None:
    program = compiled(model(MIXED))
    plan = program.plan
    assert plan is not None
    assert [type(s) for s in plan.steps] == [PpuStep, HostStep, PpuStep, HostStep]
    assert [n.node for n in plan.nodes] == ["Cast_1", "Exp_2", "Cast_3", "NonZero_5", "Cast_6", "ReduceSum_7"]
    assert "double precision" in plan.nodes[0].reason
    x = x46()
    want = Oracle(model(MIXED)).run({"x": x})
    got = program.run({"x": x}).outputs
    for name in ("y", "z"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6)
    assert ppuc.verify(program, {"x": x}).ok


def test_a_saved_program_runs_as_the_one_in_memory(tmp_path: Path) -> None:
    program = compiled(model(MIXED))
    program.save(tmp_path / "m.ppu")
    loaded = load_program(tmp_path / "m.ppu")
    assert loaded.plan == program.plan
    a, b = program.run({"x": x46()}), loaded.run({"x": x46()})
    np.testing.assert_array_equal(a.outputs["z"], b.outputs["z"])
    assert a.profile.cycles == b.profile.cycles == loaded.time().profile.cycles
    compiled(model(MIXED)).save(tmp_path / "again.ppu")
    assert (tmp_path / "again.ppu").read_bytes() == (tmp_path / "m.ppu").read_bytes()


def test_host_bytes_of_a_file_are_checked(tmp_path: Path) -> None:
    compiled(model(MIXED)).save(tmp_path / "m.ppu")
    data = (tmp_path / "m.ppu").read_bytes()
    at = data.index(b"NonZero", data.index(b"}") + 4096)
    (tmp_path / "m.ppu").write_bytes(data[:at] + b"NonHero" + data[at + 7 :])
    result = run("run", tmp_path / "m.ppu")
    assert result.exit_code == 2
    assert "is damaged" in result.stderr


def test_what_a_pass_refuses_goes_to_the_host_whatever_nodes_are_called() -> None:
    """The texts of the refusal list ten nodes between words and commas; what goes to the host is neither more nor
    less than the nodes that the refusal is about."""
    casts = [f"cast, {i} and 2 more" for i in range(6)] + [f"/block.{i}/Cast" for i in range(6)]
    others = ["graph", "engines", "@g", "and", "2", "more", "casts"]
    nodes = []
    for name in casts:
        nodes.append(helper.make_node("Cast", ["a"], [f"{name}:8"], name, to=TensorProto.FLOAT8E5M2, saturate=0))
        nodes.append(helper.make_node("Cast", [f"{name}:8"], [f"{name}:32"], f"{name}:back", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Sum", [f"{name}:32" for name in casts], ["s"], "sum"))
    chain = ["x", *others[:-1]]
    nodes = [helper.make_node("Neg", [a], [b], b) for a, b in zip(chain, others[:-1], strict=False)] + nodes
    nodes.insert(len(others) - 1, helper.make_node("Neg", [others[-2]], ["a"], others[-1]))
    nodes.append(helper.make_node("Add", ["s", "x"], ["y"], "last"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 6]) for name in "xy")
    source = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    program = compiled(source)
    assert program.plan is not None
    assert {n.node for n in program.plan.nodes if n.op == "Cast" and "saturate" in n.reason} == set(casts)
    assert not {n.node for n in program.plan.nodes} & {*others, "sum", "last"}
    np.testing.assert_allclose(program.run({"x": x46()}).outputs["y"], Oracle(source).run({"x": x46()})["y"], rtol=1e-5)


def test_transfers_cost_time_and_energy() -> None:
    program = compiled(model(MIXED))
    plan, target = program.plan, load_target(TINY)
    assert plan is not None
    found = [(c.tensor, c.to_ppu, c.bytes) for c in crossings(plan)]
    assert found == [("a", False, 96), ("e", True, 96), ("z", False, 96)]
    profile = program.time().profile
    link = 3 * 96 / (target.host.gbs_per_dir * 1e9)
    waits = 3 * (target.stage.start_ns + target.hbm.latency_ns) * 1e-9
    assert profile.host_seconds == pytest.approx(link + waits)
    assert profile.energy_joules["host"] == pytest.approx(3 * 96 * target.energy.link_pj_per_byte * 1e-12)


def test_a_model_that_is_all_the_hosts() -> None:
    text = "g (string[2] s, string[2] t) => (string[2] y) { y = StringConcat(s, t) }"
    source = parser.parse_model('<ir_version: 9, opset_import: ["" : 20]>' + text)
    program = compiled(source)
    s, t = np.array(["a", "b"], object), np.array(["c", "d"], object)
    assert program.run({"s": s, "t": t}).outputs["y"].tolist() == ["ac", "bd"]
    assert program.run({"s": s, "t": t}).profile.cycles == 0
    with pytest.raises(InputError, match="input 't' is missing"):
        program.run({"s": s})


def test_sequences_are_the_hosts_and_their_elements_come_back() -> None:
    text = """g (float[2, 6] x) => (float[2, 3] y) {
        s = SplitToSequence<axis = 1>(x, three)
        a = SequenceAt(s, one)
        y = Exp(a)
    }"""
    source = model(text)
    weights = {"three": np.array([3, 3], np.int64), "one": np.array(1, np.int64)}
    source.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    program = compiled(source)
    x = np.arange(12, dtype=np.float32).reshape(2, 6) / 12
    np.testing.assert_allclose(program.run({"x": x}).outputs["y"], np.exp(x[:, 3:]), rtol=1e-6)
    assert ppuc.verify(program, {"x": x}).ok


def test_a_branch_chosen_at_run_time_reads_outer_tensors() -> None:
    text = """g (bool c, float[3] x) => (float[3] y) {
        h = Neg(x)
        y = If (c) <then_branch = t () => (float[3] a) { a = Exp(h) },
                    else_branch = e () => (float[3] b) { b = Identity(h) }>
    }"""
    program = compiled(model(text))
    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_allclose(program.run({"c": np.array(True), "x": x}).outputs["y"], np.exp(-x), rtol=1e-6)
    np.testing.assert_array_equal(program.run({"c": np.array(False), "x": x}).outputs["y"], -x)


def test_inputs_that_sizes_depend_on_are_fixed() -> None:
    source = model("g (float[4, 6] x, int64[1] axes) => (float[a, b] y) { y = ReduceSum<keepdims = 1>(x, axes) }")
    axes = np.array([1], np.int64)
    program = compiled(source, values={"x": x46(), "axes": axes})
    assert program.plan is None
    assert list(program.fixed) == ["axes"]
    np.testing.assert_allclose(program.run({"x": x46()}).outputs["y"], x46().sum(1, keepdims=True), rtol=1e-5)
    with pytest.raises(InputError, match="input 'axes' was fixed"):
        program.run({"x": x46(), "axes": np.array([0], np.int64)})
    assert ppuc.verify(program, {"x": x46(), "axes": axes}).ok


def test_custom_ops_are_python_functions(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS)
    onnx.save(model(CUSTOM), tmp_path / "m.onnx")
    program = compiled(model(CUSTOM), host_ops=(tmp_path / "ops.py",))
    x = x46()
    want = -np.roll(np.maximum(x, 0), 2)
    np.testing.assert_array_equal(program.run({"x": x}).outputs["y"], want)
    program.save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu", host_ops=[tmp_path / "ops.py"])
    np.testing.assert_array_equal(loaded.run({"x": x}).outputs["y"], want)
    for command in ("verify", "check"):
        result = run(command, tmp_path / "m.onnx", "--host-ops", tmp_path / "ops.py", "-t", TINY)
        assert result.exit_code == 0, result.output
    assert "a Python function stands for it" in result.stdout


def test_unknown_ops_are_all_named() -> None:
    text = """g (float[4] x) => (float[4] y) {
        a = com.example.Swirl(x) b = com.example.Twist(a) y = com.example.Shout(b, x) }"""
    with pytest.raises(ModelError) as caught:
        compiled(model(text))
    assert [d.what for d in caught.value.diagnostics] == [
        f"op com.example.{op} is not supported" for op in ("Swirl", "Twist", "Shout")
    ]
    assert [d.got for d in caught.value.diagnostics] == [f"1 node: '{n}'" for n in ("Swirl_0", "Twist_1", "Shout_2")]
    assert all("--host-ops" in (d.hint or "") for d in caught.value.diagnostics)


def test_without_the_host_such_models_are_refused(tmp_path: Path) -> None:
    onnx.save(model(MIXED), tmp_path / "m.onnx")
    result = run("compile", tmp_path / "m.onnx", "--no-host", "-o", tmp_path / "m.ppu")
    assert result.exit_code == 2
    assert "depends on the model's inputs" in result.stderr
    assert not (tmp_path / "m.ppu").exists()


def test_a_node_that_breaks_its_op_is_not_handed_over() -> None:
    with pytest.raises(ModelError, match="do not broadcast"):
        compiled(model("g (float[4] x, float[3] z) => (float[4] y) { y = Add(x, z) }"))


def test_the_host_must_keep_to_the_types_it_was_compiled_for(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("np.roll(x, angle)", "x[:2]"))
    source = model(CUSTOM)
    source.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 6]))
    program = compiled(source, host_ops=(tmp_path / "ops.py",))
    with pytest.raises(
        HostError, match=r"another type than the model says\n  got: f32\[2, 6\]\n  expected: f32\[4, 6\]"
    ):
        program.run({"x": x46()})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("import time; time.sleep(60)", "took too long"),
        ("import os; os._exit(7)", "process died\n  got: exit code 7"),
        ("bytearray(1 << 40)", "MemoryError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_on_the_host_is_one_error(body: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("return np.roll(x, angle)", body))
    worker = HostWorker((str(tmp_path / "ops.py"),), HostLimits(seconds=1.0))
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Swirl", ["x"], ["y"], domain="com.example")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
            [helper.make_empty_tensor_value_info("y")],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)],
        ir_version=8,
    )
    with pytest.raises(HostError, match=what):
        worker.run(proto.SerializeToString(), {"x": x46()}, "here")
    worker.stop()


@pytest.mark.parametrize(("body", "what"), [("import os; os._exit(7)", "process died"), ("bytearray(1 << 40)", "Mem")])
def test_a_crash_of_the_host_is_one_error_on_the_command_line(body: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("return np.roll(x, angle)", body))
    onnx.save(model(CUSTOM), tmp_path / "m.onnx")
    options = ("--host-ops", tmp_path / "ops.py", "-t", TINY)
    result = run("run", tmp_path / "m.onnx", *options, "--output", tmp_path / "y.npz")
    assert result.exit_code == 2
    assert what in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "y.npz").exists()


def test_no_worker_outlives_the_compiler(tmp_path: Path) -> None:
    """Killed in the middle of a request that never ends, the compiler leaves nothing behind."""
    noted = tmp_path / "pid"
    endless = f"pathlib.Path({str(noted)!r}).write_text(str(os.getpid()))\n    while True: pass"
    (tmp_path / "ops.py").write_text("import os, pathlib\n" + OPS.replace("return np.roll(x, angle)", endless))
    onnx.save(model(CUSTOM), tmp_path / "m.onnx")
    arguments = ["run", tmp_path / "m.onnx", "-t", TINY, "--host-ops", tmp_path / "ops.py"]
    command = [sys.executable, "-c", "from ppuc.compiler.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(60, lambda: noted.exists() and bool(noted.read_text()))
    process.kill()
    process.wait()
    state = Path("/proc", noted.read_text(), "stat")
    assert within(10, lambda: not state.exists() or state.read_text().split()[2] == "Z")


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_files_of_ops_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text("this is no Python")
    with pytest.raises(UsageError, match="a file of host ops fails"):
        compiled(model(CUSTOM), host_ops=(tmp_path / "ops.py",))
    with pytest.raises(UsageError, match="there is no such file"):
        compiled(model(CUSTOM), host_ops=(tmp_path / "none.py",))


def test_plans_read_back() -> None:
    plan = compiled(model(MIXED)).plan
    assert plan is not None
    assert Plan.of_json(plan.to_json()) == plan


def test_profile_and_check_tell_what_the_host_does(tmp_path: Path) -> None:
    onnx.save(model(MIXED), tmp_path / "m.onnx")
    shown = run("check", tmp_path / "m.onnx")
    assert shown.exit_code == 0
    assert "6 nodes for the host" in shown.stdout
    assert "convert it to float32 before exporting" in shown.stdout
    result = run("profile", tmp_path / "m.onnx", "-t", TINY, "--timing-only")
    assert result.exit_code == 0
    assert "segments on the host" in result.stdout


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
