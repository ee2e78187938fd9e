"""Models of which a part runs on the host: values, plans, files, errors, and the worker's limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.frontend import source
from ppuc.compiler.frontend.offload import load_hosted
from ppuc.compiler.host.plan import HostStep, Plan, PpuStep
from ppuc.compiler.host.transfer import crossings
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.program.compiled import load_program
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import InputError
from ppuc.targets.description import load_target
from tests.host.host_models import CUSTOM, MIXED, OPS, TINY, compiled, model, run, x46


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


def unsaturated(casts: list[str], others: list[str]) -> onnx.ModelProto:
    """x through the nodes `others`, then through `casts` side by side, which legalise refuses (they overflow to
    infinity, and the engines saturate); their sum and x make y."""
    path = ["x", *(f"after {name}" for name in others)]
    nodes = [helper.make_node("Neg", [path[i]], [path[i + 1]], name) for i, name in enumerate(others)]
    for name in casts:
        nodes.append(helper.make_node("Cast", [path[-1]], [f"{name}:8"], name, to=TensorProto.FLOAT8E5M2, saturate=0))
        nodes.append(helper.make_node("Cast", [f"{name}:8"], [f"{name}:32"], f"{name}:back", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Sum", ["x", *(f"{name}:32" for name in casts)], ["y"], "sum"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 6]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_what_a_pass_refuses_goes_to_the_host_whatever_nodes_are_called() -> None:
    """The text of the refusal lists ten nodes between words and commas; what goes to the host is neither more nor less
    than the nodes that the refusal is about."""
    casts = [f"cast, {i} and 2 more" for i in range(6)] + [f"/block.{i}/Cast" for i in range(6)]
    others = ["graph", "engines", "@g", "and", "2", "more", "casts"]
    network = unsaturated(casts, others)
    program = compiled(network)
    assert program.plan is not None
    assert {n.node for n in program.plan.nodes if "saturate" in n.reason} == set(casts)
    assert not {n.node for n in program.plan.nodes} & {*others, "sum"}
    np.testing.assert_allclose(
        program.run({"x": x46()}).outputs["y"], Oracle(network).run({"x": x46()})["y"], rtol=1e-5
    )


def test_a_file_is_parsed_once_however_often_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first import finds nothing wrong, legalise refuses the casts, and so the model is imported for the host,
    twice."""
    onnx.save(unsaturated(["cast"], ["neg"]), tmp_path / "m.onnx")
    parsed, imported = [], []
    split, enter = source.split, load_hosted.enter
    monkeypatch.setattr(source, "split", lambda data: parsed.append(len(data)) or split(data))
    monkeypatch.setattr(load_hosted, "enter", lambda *what: imported.append(what) or enter(*what))
    assert compile_model(tmp_path / "m.onnx", CompileOptions(load_target(TINY))).artifact.host
    assert (len(parsed), len(imported)) == (1, 2)


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


@pytest.mark.parametrize(("op", "opset"), [("SimplifiedLayerNormalization", 17), ("LayerNormalization", 13)])
def test_ops_that_onnx_runtime_adds_to_the_standard_run_on_the_host(op: str, opset: int) -> None:
    """Of tensors whose sizes are not known before."""
    source = model(f"""g (float[4, 6] x, float[3] scale) => (float[n, 3] y) {{
        i = NonZero(x) j = Cast<to = 1>(i) three = Constant<value_ints = [-1, 3]>()
        flat = Reshape(j, three) y = {op}<axis = -1, epsilon = 0.01>(flat, scale) }}""")
    source.opset_import[0].version = opset
    inputs = {"x": np.tile(np.float32([0, 1]), 12).reshape(4, 6), "scale": np.float32([0.5, 2, -1])}
    program = compiled(source)
    assert program.run(inputs).outputs["y"].shape == (8, 3)
    assert ppuc.verify(program, inputs).ok


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
    assert "it is a Python function" in result.stdout


def test_plans_read_back() -> None:
    plan = compiled(model(MIXED)).plan
    assert plan is not None
    assert Plan.of_json(plan.to_json()) == plan
