"""Initializers that are inputs as well: a given value is used, as ONNX Runtime does, else the one in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.frontend.expose import serialised
from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import InputError
from tests.support.onnx_text import model_of

rng = np.random.default_rng(12)
BIAS = rng.standard_normal(8, np.float32)
WEIGHT = rng.standard_normal((16, 8), np.float32)
OTHER = rng.standard_normal(8, np.float32)
X = rng.standard_normal((4, 16), np.float32)
PRODUCT = "g (float[4, 16] x, float[8] b) => (float[4, 8] y) { m = MatMul(x, w) a = Add(b, b) y = Add(m, a) }"


def model(text: str = PRODUCT, defaults: dict[str, np.ndarray] | None = None, ir: int = 10) -> onnx.ModelProto:
    """A product with a bias that is an input and has a default."""
    made = model_of(text, {"w": WEIGHT} if "w" in text else {})
    made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (defaults or {"b": BIAS}).items())
    made.ir_version = ir
    return made


def expected(b: np.ndarray) -> np.ndarray:
    """The product in f64."""
    return X.astype(np.float64) @ WEIGHT + 2.0 * b


def test_a_program_compiled_with_a_value_takes_any_and_falls_back_on_the_default(tmp_path: Path) -> None:
    program = ppuc.compile(model(), values={"b": OTHER})
    program.save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu")
    for feeds, b in (({"b": OTHER}, OTHER), ({"b": 3 * OTHER}, 3 * OTHER), ({}, BIAS)):
        for each in (program, loaded):
            y = each.run({"x": X, **feeds}).outputs["y"]
            np.testing.assert_allclose(y, expected(b), rtol=0, atol=1e-5)
        assert ppuc.verify(program, {"x": X, **feeds}).ok
    assert ppuc.verify(program, layers=True).ok


def test_a_program_compiled_without_a_value_says_that_it_is_a_constant() -> None:
    program = ppuc.compile(model())
    np.testing.assert_allclose(program.run({"x": X}).outputs["y"], expected(BIAS), rtol=0, atol=1e-5)
    with pytest.raises(InputError) as caught:
        program.run({"x": X, "b": OTHER})
    (fault,) = caught.value.diagnostics
    assert fault.what == "no input is called 'b'"
    assert fault.hint == "an initializer of the model is a constant unless its value is given when compiling"


def test_a_value_that_decides_a_shape_is_fixed_to_what_is_given() -> None:
    text = "g (float[4, 16] x, int64[2] s) => (float[P, Q] y) { a = Reshape(x, s) y = Relu(a) }"
    made = model(text, {"s": np.array([16, 4], np.int64)})
    given = np.array([8, 8], np.int64)
    program = ppuc.compile(made, values={"s": given})
    assert program.run({"x": X}).outputs["y"].shape == (8, 8)
    assert ppuc.verify(program, {"x": X, "s": given}).ok
    assert ppuc.compile(made).run({"x": X}).outputs["y"].shape == (16, 4)


def test_beside_a_step_on_the_host() -> None:
    text = """g (float[4, 16] x, float[8] b) => (float[4, 8] y, double[4, 8] d)
        { m = MatMul(x, w) y = Add(m, b) c = Cast <to=11>(y) d = Erf(c) }"""
    made = model(text)
    program = ppuc.compile(made, values={"b": OTHER})
    assert program.plan is not None
    for feeds in ({"x": X}, {"x": X, "b": OTHER}):
        assert ppuc.verify(program, feeds).ok
    exact = X.astype(np.float64) @ WEIGHT
    np.testing.assert_allclose(program.run({"x": X}).outputs["y"], exact + BIAS, rtol=0, atol=1e-5)


def test_before_ir_version_4_every_initializer_is_a_constant() -> None:
    program = ppuc.compile(model(ir=3), values={"b": OTHER})
    assert [s.name for s in program.inputs] == ["x"]


def command(*arguments: object) -> str:
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_take_a_value(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=X, b=OTHER)
    given = ("--inputs", tmp_path / "in.npz")
    assert "input b: f32[8]" in command("check", tmp_path / "m.onnx", *given)
    assert "agrees with ONNX Runtime" in command("verify", tmp_path / "m.onnx", *given)
    command("run", tmp_path / "m.onnx", *given, "--output", tmp_path / "out.npz")
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected(OTHER), rtol=0, atol=1e-5)
    command("compile", tmp_path / "m.onnx", *given, "-o", tmp_path / "m.ppu", "--dump", tmp_path / "steps")
    command("profile", tmp_path / "m.ppu", *given, "--no-interval")
    command("opt", tmp_path / "steps" / "00-import.ppir", "--to-end", "-o", tmp_path / "again.ppu")
    assert (tmp_path / "m.ppu").read_bytes() == (tmp_path / "again.ppu").read_bytes()


@pytest.mark.parametrize(("fill", "b"), [("ones", np.ones(8)), ("zeros", np.zeros(8)), ("random", None)])
def test_the_commands_generate_a_value(tmp_path: Path, fill: str, b: np.ndarray | None) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    given = ["--input", f"x={tmp_path / 'x.npy'}", "--input", f"b={fill}"]
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "m.onnx"), *given, "--output", str(tmp_path / "o.npz")])
    assert done.exit_code == 0, done.output
    y = np.load(tmp_path / "o.npz")["y"]
    if b is None:
        assert np.abs(y - expected(BIAS)).max() > 0.1
    else:
        np.testing.assert_allclose(y, expected(b), rtol=0, atol=1e-5)
    for command in ("verify", "profile"):
        done = CliRunner().invoke(cli, [command, str(tmp_path / "m.onnx"), *given])
        assert done.exit_code == 0, done.output


def test_samples_hold_values_too(tmp_path: Path) -> None:
    samples = [{"x": rng.standard_normal((4, 16), np.float32), "b": OTHER + i} for i in range(9)]
    program = ppuc.compile(model(), precision="int8", calibrate=samples)
    y = program.run({"x": X, "b": OTHER}).outputs["y"]
    error = y - expected(OTHER)
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(expected(OTHER) ** 2))


def test_simplify_keeps_defaults_unless_told() -> None:
    made = model()
    kept = simplify(made)
    assert kept.ok
    assert kept.defaults == ("b",)
    for b in (BIAS, OTHER):
        want = Oracle(made).run({"x": X, "b": b})["y"]
        np.testing.assert_allclose(Oracle(kept.model).run({"x": X, "b": b})["y"], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(Oracle(kept.model).run({"x": X})["y"], expected(BIAS), rtol=0, atol=1e-5)
    folded = simplify(made, fold_defaults=True)
    assert folded.ok
    assert [i.name for i in folded.model.graph.input] == ["x"]
    assert "Add" in kept.after
    assert sum(folded.after.values()) < sum(kept.after.values())
    assert serialised(kept.model) == serialised(simplify(kept.model).model)


def test_the_command_says_which_stay_defaults(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    shown = command("simplify", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert "note: b: initializers that are also inputs, so not constant; --fold-defaults makes them constant" in shown
    assert "note" not in command("simplify", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--fold-defaults")
