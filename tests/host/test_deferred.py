"""Deferred nodes and bodies, compiled at run time once their sizes are known, against ONNX Runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.host import deferred
from ppuc.compiler.host.plan import DeferredStep, HostStep, Plan, PpuStep
from ppuc.compiler.host.verify import verify_hosted
from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult, load_program
from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"
RNG = np.random.default_rng(5)
W = RNG.standard_normal((6, 9)).astype(np.float32)
V = (RNG.standard_normal((6, 6)) * 0.4).astype(np.float32)
ONE, ZERO = np.array([1]), np.array([0])

HEAD = """g (float[20, 6] x) => (float[k, 9] y, float[9] z) {
    s = ReduceSum<keepdims = 0>(x, one)
    t = Greater(s, limit)
    i = NonZero(t)
    j = Squeeze(i, zero)
    r = Gather(x, j)
    h = MatMul(r, W)
    y = Relu(h)
    m = ReduceSum<keepdims = 0>(y, zero)
    z = Tanh(m)
}"""
LOOP = """g (float[4, 6] x, int64 n) => (float[4, 6] y, float[k, 4, 6] s) {
    y, s = Loop (n, , x) <body = b (int64 i, bool k, float[4, 6] v) => (more, w, t) {
        more = Identity(k)
        f = Cast<to = 1>(i)
        u = MatMul(v, V)
        w = Tanh(u)
        t = Add(w, f)
    }>
}"""
WHILE = """g (float[4, 6] x) => (float[4, 6] y) {
    yes = Constant<value = bool {1}>()
    y = Loop (, yes, x) <body = b (int64 i, bool k, float[4, 6] v) => (more, w) {
        u = MatMul(v, V)
        w = Add(u, x)
        q = ReduceMax<keepdims = 0>(w)
        more = Less(q, limit)
    }>
}"""
BRANCH = """g (float[4, 6] x) => (float[4, 9] y) {
    s = ReduceSum<keepdims = 0>(x)
    c = Greater(s, limit)
    y = If (c) <then_branch = a () => (p) { p = MatMul(x, W) },
                else_branch = b () => (q) { e = MatMul(x, W) q = Neg(e) }>
}"""
SCAN = """g (float[4, 6] h, float[7, 4, 6] x) => (float[4, 6] y, float[4, 7, 6] z) {
    y, z = Scan <num_scan_inputs = 1, scan_output_axes = [1], scan_input_directions = [1],
                 body = l (float[4, 6] s, float[4, 6] e) => (t, o) {
        u = MatMul(s, V)
        t = Add(u, e)
        n = NonZero(t)
        f = Cast<to = 1>(n)
        w = ReduceMax<keepdims = 0>(f)
        o = Add(t, w)
    }> (h, x)
}"""


def head() -> onnx.ModelProto:
    return model_of(HEAD, {"W": W, "one": ONE, "zero": ZERO, "limit": np.array(1.5, np.float32)})


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agrees(model: onnx.ModelProto, **feeds: np.ndarray) -> tuple[CompiledProgram, ProgramResult]:
    program = ppuc.compile(model, TINY)
    result = program.run(feeds)
    for name, want in Oracle(model).run(feeds).items():
        assert result.outputs[name].shape == want.shape
        np.testing.assert_allclose(result.outputs[name], want, rtol=2e-5, atol=2e-5)
    assert ppuc.verify(program, feeds).ok
    return program, result


def plan_of(program: CompiledProgram) -> Plan:
    assert program.plan is not None
    assert Plan.of_json(program.plan.to_json()) == program.plan
    return program.plan


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_what_follows_a_size_that_data_decide_runs_on_the_ppu() -> None:
    program, result = agrees(head(), x=x(20, 6))
    plan = plan_of(program)
    assert [type(s) for s in plan.steps] == [PpuStep, HostStep, DeferredStep, PpuStep]
    assert [n.node for n in plan.nodes] == ["NonZero_2"]
    assert [n.op for n in plan.deferred] == ["Squeeze", "Gather", "MatMul", "Relu", "ReduceSum"]
    (ran,) = result.deferred
    assert (ran.calls, ran.reason) == (1, "")
    assert ran.result is not None
    assert result.profile.cycles == program.time().profile.cycles + ran.result.profile.cycles
    assert sum(k.macs for k in result.profile.kernels) == result.outputs["y"].shape[0] * 6 * 9


def test_other_sizes_are_other_programs_and_the_same_ones_are_kept() -> None:
    program, first = agrees(head(), x=x(20, 6))
    again = program.run({"x": x(20, 6)}).deferred[0]
    assert again.program is first.deferred[0].program
    _, empty = agrees(head(), x=np.full((20, 6), -1, np.float32))
    assert empty.outputs["y"].shape == (0, 9)
    assert empty.deferred[0].program is not first.deferred[0].program


def test_reduced_precision_holds_for_what_is_compiled_later() -> None:
    program = ppuc.compile(head(), TINY, "bf16")
    found = ppuc.verify(program, {"x": x(20, 6)})
    assert found.ok
    assert all(1e-5 < c.rms_rel < c.tolerance for c in found.outputs)


def test_a_saved_program_compiles_when_it_runs(tmp_path: Path) -> None:
    program = ppuc.compile(head(), TINY)
    program.save(tmp_path / "m.ppu")
    loaded = load_program(tmp_path / "m.ppu")
    assert loaded.plan == program.plan
    a, b = (p.run({"x": x(20, 6)}) for p in (program, loaded))
    np.testing.assert_array_equal(a.outputs["y"], b.outputs["y"])
    assert a.profile.cycles == b.profile.cycles


def test_sizes_beyond_the_first_ones_are_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "MOST_FORMS", 0)
    model = head()
    model.graph.name = "nothing compiled"
    monkeypatch.setattr(deferred, "_FORMS", {})
    program = ppuc.compile(model, TINY)
    result = program.run({"x": x(20, 6)})
    np.testing.assert_allclose(result.outputs["y"], Oracle(model).run({"x": x(20, 6)})["y"], rtol=1e-5, atol=1e-5)
    assert [r.reason for r in result.deferred] == ["it was compiled for 0 other sizes already"]
    assert result.profile.cycles == program.time().profile.cycles


def test_nodes_without_products_stay_the_hosts() -> None:
    model = model_of("g (float[4, 6] x) => (float[2, a] y) { i = NonZero(x) f = Cast<to = 1>(i) y = Exp(f) }")
    plan = plan_of(ppuc.compile(model, TINY))
    assert not plan.deferred
    assert plan.nodes[1].reason.endswith("without products it is not worth a program of its own")


def test_a_resize_by_computed_sizes_is_compiled_with_their_values() -> None:
    text = """g (float[1, 3, 4, 4] x, float[1] f) => (float[1, 2, h, w] y) {
        c = Ceil(f)
        d = Cast<to = 7>(c)
        s = Concat<axis = 0>(lead, d, d)
        r = Resize<mode = "nearest">(x, , , s)
        y = Conv(r, K)
    }"""
    kernel = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)
    model = model_of(text, {"lead": np.array([1, 3]), "K": kernel})
    for size in (7.5, 5.0):
        program, result = agrees(model, x=x(1, 3, 4, 4), f=np.array([size], np.float32))
        assert [n.op for n in plan_of(program).deferred] == ["Resize", "Conv"]
        assert not any(r.reason for r in result.deferred)


def test_loops_of_counted_trips() -> None:
    program, result = agrees(model_of(LOOP, {"V": V}), x=x(4, 6), n=np.array(5))
    assert [type(s) for s in plan_of(program).steps] == [DeferredStep]
    (body,) = result.deferred
    assert (body.name, body.calls) == ("Loop_0/body", 5)
    assert body.result is not None
    assert result.profile.cycles == pytest.approx(5 * body.result.profile.cycles)
    assert sum(k.macs for k in result.profile.kernels) == 5 * 4 * 6 * 6


def test_a_loop_without_trips_is_computed_by_the_host() -> None:
    _, result = agrees(model_of(LOOP, {"V": V}), x=x(4, 6), n=np.array(0))
    assert [r.reason for r in result.deferred] == ["it makes no trip"]
    assert result.profile.cycles == 0


def test_trips_cost_the_link() -> None:
    program = ppuc.compile(model_of(LOOP, {"V": V}), TINY)
    few, many = (program.run({"x": x(4, 6), "n": np.array(n)}) for n in (2, 5))
    assert many.profile.host_seconds == pytest.approx(2.5 * few.profile.host_seconds)
    assert [(c.tensor, c.bytes) for c in few.moves] == [("number of the trip", 8), ("condition", 1)] * 2


def test_loops_that_end_by_their_own_condition() -> None:
    weights = {"V": 3 * V, "limit": np.array(20, np.float32)}
    _, result = agrees(model_of(WHILE, weights), x=np.abs(x(4, 6)))
    assert result.deferred[0].calls > 1


def test_the_branch_that_a_run_takes_is_compiled() -> None:
    model = model_of(BRANCH, {"W": W, "limit": np.array(0, np.float32)})
    for sign, branch in ((1, "then"), (-1, "else")):
        _, result = agrees(model, x=sign * np.abs(x(4, 6)))
        assert [r.name for r in result.deferred] == [f"If_2/{branch}_branch"]


def test_a_body_with_a_part_for_the_host() -> None:
    _, result = agrees(model_of(SCAN, {"V": V}), h=x(4, 6), x=x(7, 4, 6, seed=1))
    (body,) = result.deferred
    assert body.calls == 7
    assert body.program is not None
    assert [n.op for n in plan_of(body.program).nodes] == ["NonZero", "Cast", "ReduceMax"]


def test_an_endless_loop_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.host import control

    monkeypatch.setattr(control, "MOST_TRIPS", 3)
    model = model_of(WHILE, {"V": np.zeros_like(V), "limit": np.array(1e9, np.float32)})
    with pytest.raises(
        ppuc.PpucError, match=r"node 'Loop_1' \(Loop\): the loop does not end\n  got: more than 3 trips"
    ):
        ppuc.compile(model, TINY).run({"x": x(4, 6)})


def test_commands_tell_what_is_compiled_later(tmp_path: Path) -> None:
    onnx.save(head(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=x(20, 6))
    checked = json.loads(run("check", tmp_path / "m.onnx", "--json").stdout)
    fates = {n["node"]: (n["where"], n["why"].partition(":")[0]) for n in checked["nodes"]}
    assert fates["MatMul_5"] == ("ppu", "compiled at run time, when its sizes are known")
    assert fates["NonZero_2"][0] == "host"
    assert (checked["later"], checked["ok"]) == (5, True)
    arguments = ("-t", TINY, "--json", "--no-interval")
    timed = json.loads(run("profile", tmp_path / "m.onnx", "--timing-only", *arguments).stdout)
    assert timed["later"][0]["why"].startswith("not timed")
    ran = json.loads(run("profile", tmp_path / "m.onnx", "--inputs", tmp_path / "x.npz", *arguments).stdout)
    (row,) = ran["later"]
    assert (row["on"], row["calls"]) == ("ppu", 1)
    assert ran["cycles"] == pytest.approx(timed["cycles"] + row["cycles"])
    assert sum(k["cycles"] for k in ran["kernels"]) + ran["launch_cycles"] == pytest.approx(ran["cycles"])
    assert {"MatMul_5", "ReduceSum_0"} <= {n["node"] for n in ran["nodes"]}
    total = sum(p["cycles"] for p in ran["waterfall"]["parts"])
    assert total == pytest.approx(ran["waterfall"]["total_cycles"])


def test_the_scan_of_opset_8_is_the_hosts() -> None:
    text = """g (float[2, 4, 6] h, float[2, 7, 4, 6] x) => (float[2, 4, 6] y) {
        y = Scan <num_scan_inputs = 1, body = l (float[4, 6] s, float[4, 6] e) => (t) {
            u = MatMul(s, V) t = Add(u, e) }> (, h, x)
    }"""
    program, result = agrees(model_of(text, {"V": V}, opset=8), h=x(2, 4, 6), x=x(2, 7, 4, 6))
    assert [type(s) for s in plan_of(program).steps] == [HostStep]
    assert not result.deferred


def test_branches_whose_declared_ranks_contradict_each_other() -> None:
    """An exporter's If: one branch gives what the file declares, the other another rank; ONNX Runtime runs it."""
    text = """g (float[4, 6] x, int64 n) => (float[4, 6] y) {
        y = Loop (n, yes, x) <body = b (int64 i, bool k, float[4, 6] v) => (more, w) {
            u = MatMul(v, V)
            w = Tanh(u)
            q = ReduceMax<keepdims = 0>(w)
            c = Greater(q, limit)
            f = If (c) <then_branch = t () => (bool[] a) { a = Constant<value = bool {1}>() },
                        else_branch = e () => (bool[] b2) { z = Constant<value = bool[1] {1}>() b2 = Not(z) }>
            g = Reshape(f, none)
            more = Or(k, g)
        }>
    }"""
    weights = {
        "V": V,
        "yes": np.array(True),
        "limit": np.array(9, np.float32),
        "none": np.array([], np.int64),
    }
    _, result = agrees(model_of(text, weights), x=x(4, 6), n=np.array(3))
    assert [(r.name, r.calls, r.reason) for r in result.deferred] == [("Loop_0/body", 3, "")]


CARRIED = """g (float[4, 6] x, float[2, 3] a, int64 n) => (float[4, 6] y, float[p, q] c) {
    v, b = Loop (n, , x, a) <body = l (int64 i, bool k, float[r, s] u, float[t, w] d) => (more, z, e) {
        more = Identity(k)
        m = MatMul(u, V)
        z = Tanh(m)
        e = Concat<axis = 0>(d, d)
    }>
    y = Softmax(v)
    c = Exp(b)
}"""


def test_what_a_loop_leaves_of_the_same_type_goes_back_to_the_program() -> None:
    """`u` keeps its shape in every trip, `d` grows: what reads the first is compiled at once."""
    program, result = agrees(model_of(CARRIED, {"V": V}), x=x(4, 6), a=x(2, 3), n=np.array(2))
    plan = plan_of(program)
    assert [type(s) for s in plan.steps if not isinstance(s, HostStep)] == [DeferredStep, PpuStep]
    assert [n.op for n in plan.nodes] == ["Exp"]
    assert result.outputs["c"].shape == (8, 3)
    assert [r.calls for r in result.deferred] == [1, 1]


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("prepend", [0, 1])
@pytest.mark.parametrize("axes", [(0, 0), (1, 1), (-1, -1)])
def test_scans_that_the_host_counts(backward: int, prepend: int, axes: tuple[int, int]) -> None:
    """Not unrolled, because a part of the body is the host's."""
    text = f"""g (float[6] h, float[6, 6] x) => (float[6] y, float[a, b] z) {{
        y, z = Scan <num_scan_inputs = 1, scan_input_axes = [{axes[0]}], scan_output_axes = [{axes[1]}],
                     scan_input_directions = [{backward}], scan_output_directions = [{prepend}],
                     body = l (float[6] s, float[6] e) => (float[6] t, float[6] o) {{
            u = MatMul(s, V)
            t = Add(u, e)
            n = NonZero(t)
            f = Cast<to = 1>(n)
            w = ReduceMax<keepdims = 0>(f)
            o = Add(t, w)
        }}> (h, x)
    }}"""
    _, result = agrees(model_of(text, {"V": V}), h=x(6), x=x(6, 6, seed=2))
    assert [(r.calls, r.reason) for r in result.deferred] == [(6, "")]


def test_without_the_host_nothing_is_compiled_later(tmp_path: Path) -> None:
    onnx.save(model_of(LOOP, {"V": V}), tmp_path / "m.onnx")
    assert run("check", tmp_path / "m.onnx", "--no-host").exit_code == 1
    result = run("compile", tmp_path / "m.onnx", "--no-host", "-o", tmp_path / "m.ppu")
    assert result.exit_code == 2
    assert "its trip count is computed at run time" in result.stderr


def test_a_branch_inside_a_loop_is_all_of_its_body() -> None:
    """A body with a single data-dependent node."""
    text = """g (float[4, 6] x, int64 n, bool c) => (float[4, 6] y) {
        y = Loop (n, , x) <body = b (int64 i, bool k, float[4, 6] v) => (bool more, float[4, 6] w) {
            w, more = If (c) <then_branch = t () => (p, a) { p = MatMul(v, V) a = Identity(c) },
                              else_branch = e () => (q, d) { q = MatMul(v, U) d = Identity(c) }>
        }>
    }"""
    weights = {"V": V, "U": -V}
    for c in (True, False):
        _, result = agrees(model_of(text, weights), x=x(4, 6), n=np.array(3 if c else 1), c=np.array(c))
        (body,) = result.deferred
        assert (body.reason, body.calls) == ("", 3 if c else 1)
        assert body.result is not None
        assert [r.name for r in body.result.deferred] == [f"If_0/{'then' if c else 'else'}_branch"]


def test_loops_that_amplify_rounding_are_excused_by_their_own_conditioning() -> None:
    """A recurrent net at the edge of chaos, all of it compiled while the program runs: a result that is off by more
    than the net makes of rounding is still wrong."""
    text = """g (float[4, 64] h, int64 m) => (float[4, 64] y) {
        y = Loop (m, , h) <body = l (int64 i, bool c, float[4, 64] s) => (c2, t) {
            c2 = Identity(c)
            u = MatMul(s, V)
            t = Tanh(u)
        }>
    }"""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 4
    program = ppuc.compile(model_of(text, {"V": weights}), TINY)
    feeds = {"h": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32), "m": np.array(40)}
    result = program.run(feeds)
    assert program.plan is not None
    (found,), _ = verify_hosted(program, program.plan, feeds, result)
    assert found.ok
    assert found.sensitivity is not None
    spoiled = replace(result, outputs={"y": result.outputs["y"] * np.float32(1.01)})
    (found,), _ = verify_hosted(program, program.plan, feeds, spoiled)
    assert not found.ok
