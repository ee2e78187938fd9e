"""Verdicts that mean something: what is unproven, and what a better check proves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.comparing import parts as parts_module
from ppuc.compiler.comparing.doubts import other_inputs, proven_elsewhere, scaled_inputs
from ppuc.compiler.frontend.altered import GIVEN, from_given
from ppuc.compiler.frontend.expose import moved_by_inputs
from ppuc.compiler.pipeline.layers import matching, restored
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import Tolerance
from tests.host.host_models import run
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = {"x": draws(4, 32)}
SCALE = np.array(1e-3, np.float32), np.array(-9, np.float32)


def chaotic(layers: int = 12) -> onnx.ModelProto:
    """Each layer doubles what is wrong with the one before."""
    steps = " ".join(f"s{i} = Sin(h{i}) h{i + 1} = MatMul(s{i}, V)" for i in range(layers))
    text = f"g (float[4, 32] x) => (float[4, 32] boxes) {{ h0 = MatMul(x, W) {steps} boxes = Sin(h{layers}) }}"
    return model_of(text, {"W": draws(32, 32), "V": draws(32, 32, seed=1) * 2})


def dead() -> onnx.ModelProto:
    """A Relu that nothing reaches."""
    text = "g (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, W) z = Mul(h, k) t = Add(z, c) y = Relu(t) }"
    return model_of(text, {"W": draws(32, 32), "k": SCALE[0], "c": SCALE[1]})


def verified(model: onnx.ModelProto, inputs: dict[str, Any], precision: str = "model", **how: Any) -> Any:
    return ppuc.verify(ppuc.compile(model, TINY, precision), inputs, **how)


# What a comparison proves.


@pytest.mark.parametrize(
    ("error", "tolerance", "verdict"),
    [
        (0.3, Tolerance(0.4), "ok"),
        (0.3, Tolerance(0.6), "unproven"),
        (0.001, Tolerance(0.6), "ok"),
        (0.7, Tolerance(0.6), "wrong"),
        (0.3, Tolerance(1e-6, absolute=100.0), "unproven"),
        (0.1, Tolerance(1e-6, absolute=0.5), "ok"),
    ],
)
def test_an_agreement_proves_something_when_little_is_allowed(error: float, tolerance: Tolerance, verdict: str) -> None:
    want = draws(1000)
    found = compare("y", want + np.float32(error) * draws(1000, seed=1), want, tolerance)
    assert found.verdict == verdict
    assert found.ok == (verdict != "wrong")
    assert bool(found.unproven) == (verdict == "unproven")
    assert found.record()["verdict"] == verdict


def test_integers_of_which_half_may_differ_prove_nothing() -> None:
    want = np.arange(100)
    assert compare("y", np.where(want < 10, 7, want), want, Tolerance(0.6, 0.6)).verdict == "unproven"
    assert compare("y", want, want, Tolerance(0.6, 0.6)).verdict == "ok"


# Outputs that the inputs do not move.


def test_an_output_that_the_inputs_do_not_move_is_unproven() -> None:
    found = verified(dead(), X)
    assert (found.ok, found.verdict, found.unproven) == (True, "unproven", ("y",))
    assert found.record()["unproven"] == ["y"]


def test_constants_and_sizes_are_proven_by_being_equal() -> None:
    text = "g (float[4, 32] x) => (float[2] c, int64[2] s, float[4, 32] y) { c = Identity(k) s = Shape(x) y = Neg(x) }"
    model = model_of(text, {"k": draws(2)})
    assert moved_by_inputs(model, ()) == {"y"}
    assert moved_by_inputs(model, ("x",)) == set()
    assert verified(model, X).verdict == "ok"


def test_inputs_move_outputs_through_bodies() -> None:
    text = """g (float[4] x, bool b) => (float[4] y) {
        y = If (b) <then_branch = t () => (p) { p = Neg(x) }, else_branch = e () => (q) { q = Abs(x) }> }"""
    assert moved_by_inputs(model_of(text), ("b",)) == {"y"}


def test_saturated_outputs_are_proven_on_smaller_inputs() -> None:
    weights = {"W": np.abs(draws(32, 32)) / 8}
    model = model_of("g (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, W) y = Sigmoid(h) }", weights)
    found = verified(model, {"x": np.abs(draws(4, 32)) * 8 + 8})
    assert found.verdict == "ok"
    assert found.outputs[0].note.startswith("proven on the inputs divided by ")


def test_a_fault_that_saturation_hides_is_found_on_smaller_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"W": np.abs(draws(32, 32)) / 8}
    text = "g (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, W) y = Sigmoid(h) }"
    program = ppuc.compile(model_of(text, weights), TINY)
    other, right = ppuc.compile(model_of(text, {"W": weights["W"] * 2}), TINY), CompiledProgram.run
    monkeypatch.setattr(CompiledProgram, "run", lambda self, *a, **k: right(other, *a, **k))
    found = ppuc.verify(program, {"x": np.abs(draws(4, 32)) * 8 + 8})
    assert found.verdict == "wrong"
    assert "on the inputs divided by" in found.outputs[0].reason


BRANCH = "else_branch = e () => (q) { q = Reshape(x, flat) }>"


@pytest.mark.parametrize("last", ["h = MatMul(r, W) y = Sigmoid(h)", "y = Sigmoid(r)"])
def test_inputs_for_which_the_model_has_no_such_answer_show_nothing(last: str) -> None:
    """Smaller ones select the branch whose result does not fit the product, or is of another size."""
    text = f"""g (float[4, 32] x) => (float[4, 32] y) {{
        m = ReduceMax<keepdims = 0>(x) large = Greater(m, least)
        r = If (large) <then_branch = t () => (p) {{ p = Neg(x) }}, {BRANCH}
        {last} }}"""
    weights = {"W": np.abs(draws(32, 32)), "least": np.float32(8), "flat": np.array([128])}
    inputs, tried = {"x": np.abs(draws(4, 32)) + 8}, []
    found = compare("y", np.float32([1]), np.float32([1.3]), Tolerance(0.6))

    def verified_on(arrays: Mapping[str, Any]) -> tuple[Comparison, ...]:
        tried.append(float(arrays["x"].min() / inputs["x"].min()))
        return (found,)

    assert found.unproven
    assert proven_elsewhere(model_of(text, weights), inputs, (), [found], verified_on) == (found,)
    assert tried == [4.0]


def test_other_inputs_are_of_the_same_kind() -> None:
    given = {"x": draws(2, 3), "ones": np.ones((2, 2), np.float32), "n": np.array([3, 1, 2]), "k": draws(4)}
    other = other_inputs(given, ("k",), 0)
    assert other is not None
    assert sorted(other["n"]) == [1, 2, 3]
    assert sorted(other["x"].reshape(-1)) == sorted(given["x"].reshape(-1))
    assert other["ones"].dtype == np.float32
    assert not np.array_equal(other["ones"], given["ones"])
    assert np.array_equal(other["k"], given["k"])
    assert other_inputs({"n": np.array([2, 2])}, (), 0) is None
    text = other_inputs({"s": np.array(["a", "b", "c", "d"], object)}, (), 0)
    assert text is not None
    assert sorted(text["s"]) == ["a", "b", "c", "d"] != list(text["s"])
    assert [what for what, _ in scaled_inputs({"n": np.array(2)}, ())] == []
    assert next(scaled_inputs(given, ()))[1]["x"] == pytest.approx(given["x"] / 4)


# Outputs of which much is allowed.


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_what_a_model_amplifies_is_proven_in_parts(precision: str) -> None:
    found = verified(chaotic(), X, precision)
    (boxes,) = found.outputs
    assert found.verdict == "ok"
    assert boxes.sqnr_db < 10
    assert "right in 13 parts" in boxes.note


def test_an_amplifying_model_that_cannot_be_cut_is_unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_held", lambda layers: {})
    monkeypatch.setattr("ppuc.compiler.comparing.doubts.FACTORS", ())
    found = verified(chaotic(), X, "bf16")
    assert (found.ok, found.verdict, found.unproven) == (True, "unproven", ("boxes",))
    assert "of the values would be accepted" in found.outputs[0].unproven
    assert verified(chaotic(), X).verdict == "unproven"  # f32 is amplified to as much


def damped() -> onnx.ModelProto:
    """Layers that amplify what is wrong with them, and hardly move the output."""
    model = chaotic()
    del model.graph.output[:]
    text = "g (float[4, 32] a) => (float[4, 32] y) { t = Mul(boxes, k) y = Add(t, h0) }"
    tail = model_of(text, {"k": np.array(1e-4, np.float32)}).graph
    for field in ("node", "output", "initializer"):
        getattr(model.graph, field).extend(getattr(tail, field))
    return model


@pytest.mark.usefixtures("apart")
def test_layers_are_proven_in_parts_like_outputs() -> None:
    found = verified(damped(), X, "bf16", layers=True)
    assert (found.verdict, found.unproven) == ("ok", ())
    assert any("right in 14 parts" in c.note for c in found.layers)
    assert found.outputs[0].note == ""


def test_a_layer_that_cannot_be_proven_counts_when_layers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_held", lambda layers: {})
    found = verified(damped(), X, "bf16", layers=True)
    assert (found.ok, found.verdict) == (True, "unproven")
    assert found.outputs[0].verdict == "ok"
    assert set(found.unproven) == {c.name for c in found.layers if c.unproven}
    assert verified(damped(), X, "bf16").verdict == "ok"

    onnx.save(damped(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **X)
    arguments = ("verify", tmp_path / "m.onnx", "-t", TINY, "-p", "bf16", "--inputs", tmp_path / "x.npz")
    assert run(*arguments, "--strict").exit_code == 0
    assert run(*arguments, "--layers").exit_code == 0
    strict = run(*arguments, "--layers", "--strict")
    assert strict.exit_code == 1
    assert f"which proves nothing about {', '.join(found.unproven)}," in " ".join(strict.stdout.split())


@pytest.mark.usefixtures("apart")
def test_a_part_that_is_wrong_makes_the_output_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in one layer that the whole hides is not hidden from the part."""
    right = parts_module._held

    def wrong(layers: Any) -> dict[str, np.ndarray]:
        found = right(layers)
        name = list(found)[3]
        return {**found, name: found[name] * np.float32(1.3)}

    monkeypatch.setattr(parts_module, "_held", wrong)
    monkeypatch.setattr("ppuc.compiler.comparing.doubts.FACTORS", ())
    found = verified(chaotic(), X, "bf16")
    assert found.verdict == "wrong"
    assert ", computed from what the program holds before it: " in found.outputs[0].reason


def test_a_part_in_8_bits_that_breaks_the_rule_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = compare("h3", draws(4, 32), draws(4, 32, seed=1), Tolerance(0.1))
    whole = compare("boxes", draws(4, 32), draws(4, 32) * 2, Tolerance(0.6))
    monkeypatch.setattr(parts_module, "run_with_layers", lambda *_: None)
    monkeypatch.setattr(parts_module, "compared_in_parts", lambda layers: (fault,) * 3)
    for precision, verdict in (("fp8", "unproven"), ("bf16", "wrong")):
        program = ppuc.compile(chaotic(), TINY, precision)
        (found,), (layer,) = parts_module.proven_in_parts(program, X, (whole,), (whole,), None)
        assert found == layer
        assert found.verdict == verdict
        assert "h3" in found.unproven + found.reason


def test_a_wrong_program_of_an_amplifying_model_is_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ppuc.compile(chaotic(), TINY)
    broken = chaotic()
    weights = draws(32, 32, seed=1) * 2
    weights[3, 5] += 1
    broken.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weights, "V"))
    other = ppuc.compile(broken, TINY)
    run_other = CompiledProgram.run
    monkeypatch.setattr(
        CompiledProgram, "run", lambda self, *a, **k: run_other(other if self is program else self, *a, **k)
    )
    kept = parts_module.run_with_layers
    monkeypatch.setattr(parts_module, "run_with_layers", lambda _, *rest: kept(other, *rest))
    held = parts_module._compared
    monkeypatch.setattr(
        parts_module,
        "_compared",
        lambda layers, *rest: held(parts_module.replace(layers, program=program), *rest),
    )
    assert ppuc.verify(program, X).verdict == "wrong"


def test_parts_are_computed_from_what_is_given() -> None:
    model = chaotic(2)
    h1 = draws(4, 32, seed=5)
    cut = from_given(model, {"h1": h1})
    found = Oracle(cut).run({**X, GIVEN + "h1": h1})
    weights = draws(32, 32, seed=1) * 2
    np.testing.assert_allclose(found["boxes"], np.sin(np.sin(h1) @ weights), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["h1"], np.sin(X["x"] @ draws(32, 32)) @ weights, rtol=1e-3, atol=1e-3)


def test_given_tensors_reach_bodies_that_read_them() -> None:
    text = """g (float[4] x, bool b) => (float[4] y) { h = Neg(x)
        y = If (b) <then_branch = t () => (p) { p = Neg(h) }, else_branch = e () => (q) { q = Abs(h) }> }"""
    h = draws(4, seed=3)
    found = Oracle(from_given(model_of(text), {"h": h})).run({"x": draws(4), "b": np.array(True), GIVEN + "h": h})
    np.testing.assert_array_equal(found["y"], -h)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 4, 4, 4), (3, 7)])
def test_a_layout_is_undone(shape: tuple[int, ...]) -> None:
    want = draws(*shape)
    for got in (want, np.moveaxis(want, 1, -1)) if len(shape) > 2 else (want,):
        assert matching(want, got) is not None
        back = restored(got, want)
        assert back is not None
        np.testing.assert_array_equal(back, want)


# The command.


def test_the_command_says_what_is_unproven(tmp_path: Path) -> None:
    onnx.save(dead(), tmp_path / "m.onnx")
    shown = run("verify", tmp_path / "m.onnx", "-t", TINY)
    assert shown.exit_code == 0
    assert "unproven" in shown.stdout
    assert "y: unproven, because the model gives the same for other inputs" in shown.stdout
    assert "agrees with ONNX Runtime, which proves nothing about y," in shown.stdout
    strict = run("verify", tmp_path / "m.onnx", "-t", TINY, "--strict", "--json")
    assert strict.exit_code == 1
    record = json.loads(strict.stdout)
    assert (record["ok"], record["verdict"], record["unproven"]) == (True, "unproven", ["y"])
    assert record["outputs"][0]["verdict"] == "unproven"


def test_strict_changes_nothing_about_a_proven_output(tmp_path: Path) -> None:
    onnx.save(model_of("g (float[4] x) => (float[4] y) { y = Exp(x) }"), tmp_path / "m.onnx")
    assert run("verify", tmp_path / "m.onnx", "-t", TINY, "--strict").exit_code == 0


def test_text_that_moves_with_the_input_is_proven(tmp_path: Path) -> None:
    text = "g (string[3] s, float[4] x) => (string[3] t, float[4] y) { t = Identity(s) y = Exp(x) }"
    onnx.save(model_of(text), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", s=np.array(["a", "b", "c"]), x=draws(4))
    done = run("verify", tmp_path / "m.onnx", "-t", TINY, "--strict", "--inputs", tmp_path / "in.npz")
    assert done.exit_code == 0, done.output
