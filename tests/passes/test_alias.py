"""`--alias`: caches that grow in place, and the errors for those that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli
from ppuc.compiler.driver import compile_model
from ppuc.compiler.entry import compile, load, verify
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.ir.errors import UsageError
from ppuc.targets.description import load_target
from tests.support.onnx_text import model_of

ALIASES = {"past_k": "present_k", "past_v": "present_v"}


def decoder(past: int = 21, heads: int = 4, groups: int = 2, width: int = 8) -> onnx.ModelProto:
    """One step of attention over a cache: x[1, 1, heads * width] and `past` keys and values."""
    rng = np.random.default_rng(5)
    size = heads * width
    weights: dict[str, np.ndarray] = {
        "wq": rng.standard_normal((size, size), np.float32) * size**-0.5,
        "wk": rng.standard_normal((size, groups * width), np.float32) * size**-0.5,
        "wv": rng.standard_normal((size, groups * width), np.float32) * size**-0.5,
        "wo": rng.standard_normal((size, size), np.float32) * size**-0.5,
        "q_shape": np.array([1, 1, heads, width]),
        "k_shape": np.array([1, 1, groups, width]),
        "two": np.array([2]),
        "spread": np.array([1, groups, heads // groups, past + 1, width]),
        "joined": np.array([1, heads, past + 1, width]),
        "flat": np.array([1, 1, size]),
        "scale": np.array(width**-0.5, np.float32),
    }
    cache, grown = f"float[1, {groups}, {past}, {width}]", f"float[1, {groups}, {past + 1}, {width}]"
    return model_of(
        f"""step (float[1, 1, {size}] x, {cache} past_k, {cache} past_v)
            => (float[1, 1, {size}] y, {grown} present_k, {grown} present_v) {{
            q0 = MatMul(x, wq)
            q1 = Reshape(q0, q_shape)
            q = Transpose<perm = [0, 2, 1, 3]>(q1)
            k0 = MatMul(x, wk)
            k1 = Reshape(k0, k_shape)
            k2 = Transpose<perm = [0, 2, 1, 3]>(k1)
            v0 = MatMul(x, wv)
            v1 = Reshape(v0, k_shape)
            v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
            present_k = Concat<axis = 2>(past_k, k2)
            present_v = Concat<axis = 2>(past_v, v2)
            ku = Unsqueeze(present_k, two)
            ke = Expand(ku, spread)
            k = Reshape(ke, joined)
            vu = Unsqueeze(present_v, two)
            ve = Expand(vu, spread)
            v = Reshape(ve, joined)
            kt = Transpose<perm = [0, 1, 3, 2]>(k)
            s0 = MatMul(q, kt)
            s = Mul(s0, scale)
            p = Softmax<axis = -1>(s)
            a0 = MatMul(p, v)
            a1 = Transpose<perm = [0, 2, 1, 3]>(a0)
            a = Reshape(a1, flat)
            y = MatMul(a, wo)
        }}""",
        weights,
    )


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890", "zhenwu-810e"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_values_are_those_of_the_model(target: str, precision: str) -> None:
    program = compile(decoder(), target, precision, alias=ALIASES)
    assert [(s.name, s.type.dims) for s in program.inputs] == [
        ("x", (1, 1, 32)), ("past_k", (1, 2, 21, 8)), ("past_v", (1, 2, 21, 8)),
    ]  # fmt: skip
    found = verify(program, layers=True)
    assert found.ok, [c.reason for c in (*found.outputs, *found.layers) if not c.ok] or found.hazards


def test_only_the_new_rows_are_written() -> None:
    feeds = compile(decoder(), "zhenwu-m890").random_inputs()
    written = {}
    for aliases in ({}, ALIASES):
        program = compile(decoder(), "zhenwu-m890", alias=aliases)
        place = {s.name: s.tensor for s in program.artifact.outputs}
        written[bool(aliases)] = program.run(feeds).profile.tensor_write[place["present_k"]]
    assert written == {False: 2 * 22 * 8 * 4, True: 2 * 1 * 8 * 4}


def test_each_pass_is_checked_and_a_saved_program_runs_alike(tmp_path: Path) -> None:
    made = compile_model(
        decoder(), CompileOptions(load_target("ppu-tiny"), aliases=ALIASES), Instrumentation(check_passes=True)
    )
    assert all(p.check is not None for p in made.passes if p.changed and p.name != "import")
    program = compile(decoder(), "ppu-tiny", alias=ALIASES)
    feeds = program.random_inputs()
    program.save(tmp_path / "step.ppu")
    want, got = (p.run(feeds).outputs for p in (program, load(tmp_path / "step.ppu")))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_array_equal(want["present_k"][:, :, :21], feeds["past_k"])


def test_a_past_that_others_read_keeps_its_values() -> None:
    model = model_of(
        """grow (float[3, 4] past, float[2, 4] new) => (float[5, 4] present, float[3, 4] y) {
            t = Tanh(new)
            present = Concat<axis = 0>(past, t)
            y = Exp(past)
        }""",
        {},
    )
    program = compile(model, "ppu-tiny", alias={"past": "present"})
    assert verify(program).ok


def test_a_past_that_is_an_output_too_keeps_its_shape() -> None:
    text = """m (float[1, 16, 8] past, float[1, 1, 8] new) => (float[1, 17, 8] present, float[1, 16, 8] old) {
        present = Concat <axis = 1> (past, new)
        old = Identity(past)
    }"""
    program = compile(model_of(text, {}), "ppu-tiny", alias={"past": "present"})
    past, new = (np.random.default_rng(n).standard_normal((1, n, 8), np.float32) for n in (16, 1))
    outputs = program.run({"past": past, "new": new}).outputs
    np.testing.assert_array_equal(outputs["old"], past)
    np.testing.assert_array_equal(outputs["present"], np.concatenate([past, new], 1))


MISTAKES = {
    "past_q=present_k": "no input is called 'past_q'",
    "past_k=presents": "no output is called 'presents'",
    "past_k=y": "'past_k=y' aliases tensors of different types",
    "past_k=present_v": "'present_v' does not extend 'past_k'",
}


@pytest.mark.parametrize(("pair", "message"), MISTAKES.items())
def test_mistakes_are_explained(pair: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    onnx.save(decoder(), path)
    result = ppuc("compile", path, "--alias", pair, "-o", tmp_path / "step.ppu")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "step.ppu").exists()


def test_one_output_for_two_inputs_is_refused() -> None:
    with pytest.raises(UsageError, match="output 'present_k' would share the memory of several inputs"):
        compile(decoder(), "ppu-tiny", alias={"past_k": "present_k", "past_v": "present_k"})


def test_commands_take_the_option(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    onnx.save(decoder(), path)
    options = ("-t", "ppu-tiny", "--alias", "past_k=present_k", "--alias", "past_v=present_v")
    assert ppuc("verify", path, *options).exit_code == 0
    assert ppuc("run", path, *options).exit_code == 0
    profile = ppuc("profile", path, *options, "--timing-only", "--json")
    assert json.loads(profile.stdout)["cycles"] > 0
    assert ppuc("compile", path, *options, "-o", tmp_path / "step.ppu").exit_code == 0
    late = ppuc("run", tmp_path / "step.ppu", "--alias", "past_k=present_k")
    assert late.exit_code == 2
    assert "--alias: has no effect on a compiled program" in late.stderr


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


HOSTED = """g (float[1, 4, 6] x, float[1, 4, 5] past) => (float[1, 4, 6] present, float[1, 4, 6] y, float[1, 4, 6] z) {
    d = Cast<to = 11>(x)
    e = Exp(d)
    f = Cast<to = 1>(e)
    new = ReduceMax<axes = [2], keepdims = 1>(f)
    present = Concat<axis = 2>(past, new)
    y = Mul(present, f)
    g = Cast<to = 11>(y)
    h = Exp(g)
    z = Cast<to = 1>(h)
}"""


def test_caches_of_models_with_host_steps() -> None:
    model = model_of(HOSTED)
    program = compile(model, "ppu-tiny", alias={"past": "present"})
    assert program.plan is not None
    (step,) = program.plan.ppu_steps
    assert dict(step.inputs)["past"] == dict(step.outputs)["present"]
    rng = np.random.default_rng(2)
    feeds = {"x": rng.random((1, 4, 6), np.float32), "past": rng.random((1, 4, 5), np.float32)}
    assert verify(program, feeds).ok
    np.testing.assert_array_equal(program.run(feeds).outputs["present"][:, :, :5], feeds["past"])


def test_caches_that_a_host_step_parts() -> None:
    text = """g (float[4, 6] x, int64[2, 5] past) => (int64[2, n] present, float[4, 6] y) {
        new = NonZero(x) present = Concat<axis = 1>(past, new) y = Relu(x) }"""
    with pytest.raises(UsageError, match="'past=present' aliases tensors that are not in one PPU part of the model"):
        compile(model_of(text), "ppu-tiny", alias={"past": "present"})
    with pytest.raises(UsageError, match="no output is called 'presents'"):
        compile(model_of(HOSTED), "ppu-tiny", alias={"past": "presents"})
