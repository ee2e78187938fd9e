"""Several sizes in one artifact: chosen by shape, weights shared, inputs padded where that was declared safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.program.variants import Variants, bundle, combinations, unbundle
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import InputError, UsageError
from tests.support.small_models import mlp

TINY = "ppu-tiny"


def x(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 20), np.float32)


def program(**options: Any) -> ppuc.CompiledProgram:
    return ppuc.compile(mlp(), TINY, dims={"N": (1, 4)}, **options)


def agrees(compiled: ppuc.CompiledProgram, rows: int) -> None:
    want = Oracle(mlp()).run({"x": x(rows)})["y"]
    np.testing.assert_allclose(compiled.run({"x": x(rows)}).outputs["y"], want, rtol=1e-5, atol=1e-5)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_a_run_takes_the_program_of_its_shapes(tmp_path: Path) -> None:
    compiled = program()
    compiled.save(tmp_path / "m.ppu")
    for made in (compiled, ppuc.load(tmp_path / "m.ppu")):
        for rows in (1, 4):
            agrees(made, rows)
        assert made.variant({"N": 4}).inputs[0].type.dims == (4, 20)
        with pytest.raises(InputError, match="no program was compiled for these shapes"):
            made.run({"x": x(3)})


def test_weights_are_stored_once(tmp_path: Path) -> None:
    weights = 4 * (20 * 33 + 33 + 33 * 7)
    program().save(tmp_path / "both.ppu")
    ppuc.compile(mlp(), TINY, dims={"N": 1}).save(tmp_path / "one.ppu")
    both, one = ((tmp_path / n).stat().st_size for n in ("both.ppu", "one.ppu"))
    assert both < 2 * one - weights * 0.9


def test_inputs_between_sizes_are_padded_where_that_is_safe(tmp_path: Path) -> None:
    program(pad=["N"]).save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu")
    for rows in (1, 2, 3, 4):
        agrees(loaded, rows)
    with pytest.raises(InputError, match="no program was compiled for these shapes"):
        loaded.run({"x": x(5)})
    with pytest.raises(InputError):
        loaded.run({"x": x(3)[:, :19]})


def test_bundles_come_apart_as_they_were() -> None:
    compiled = program(pad=["N"])
    assert compiled.variants is not None
    again = unbundle(bundle(compiled.variants))
    assert isinstance(again, Variants)
    assert (again.pad, again.axes) == (compiled.variants.pad, compiled.variants.axes)
    for ours, theirs in zip(again.every, compiled.variants.every, strict=True):
        assert ours.artifact.program == theirs.artifact.program
        assert ours.artifact.vectors == theirs.artifact.vectors
        assert dict(ours.artifact.meta) == dict(theirs.artifact.meta)


def test_combinations_and_their_limits() -> None:
    assert combinations({"a": [1, 2], "b": [3]}) == ({"a": 1, "b": 3}, {"a": 2, "b": 3})
    assert combinations({}) == ({},)
    with pytest.raises(UsageError, match="too many combinations"):
        combinations({"a": range(9), "b": range(9)})
    with pytest.raises(UsageError, match="dimension 'N' does not have several sizes"):
        ppuc.compile(mlp(), TINY, dims={"N": 2}, pad=["N"])


def test_the_commands(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=x(3))
    made = run("compile", tmp_path / "m.onnx", "-t", TINY, "--dim", "N=1,4", "--pad", "N", "-o", tmp_path / "m.ppu")
    assert made.exit_code == 0, made.output
    assert "variant N=1\n  variant N=4" in made.stdout
    result = run("run", tmp_path / "m.ppu", "--inputs", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    assert "f32[3, 7]" in result.stdout
    assert "taking the variant N=1 of 2" in run("profile", tmp_path / "m.ppu", "--timing-only").stderr
    chosen = run("profile", tmp_path / "m.ppu", "--timing-only", "--dim", "N=4")
    assert chosen.exit_code == 0, chosen.output
    assert "has no variant with these sizes" in run("run", tmp_path / "m.ppu", "--dim", "N=7").stderr
    assert "is not a whole number" in run("compile", tmp_path / "m.onnx", "--dim", "N=1,x").stderr


def test_variants_with_host_steps(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 6] y) {
        a = Relu(x) d = Cast<to = 11>(a) e = Exp(d) f = Cast<to = 1>(e) y = Add(f, x) }"""
    model = onnx.parser.parse_model(text)
    ppuc.compile(model, TINY, dims={"N": (2, 3)}).save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu")
    for rows in (2, 3):
        array = x(rows)[:, :6]
        want = np.exp(np.maximum(array, 0).astype(np.float64)).astype(np.float32) + array
        np.testing.assert_allclose(loaded.run({"x": array}).outputs["y"], want, rtol=1e-6)


def test_variants_with_steps_compiled_later(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[k, 9] y) {
        i = NonZero(x) j = Slice(i, zero, one, zero) k = Squeeze(j, zero) r = Gather(x, k) y = MatMul(r, W) }"""
    model = onnx.parser.parse_model(text)
    weights = {"W": np.random.default_rng(1).standard_normal((6, 9), np.float32), "zero": [0], "one": [1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    ppuc.compile(model, TINY, dims={"N": (2, 3)}).save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu")
    for rows in (2, 3):
        array = np.maximum(x(rows)[:, :6], 0)
        result = loaded.run({"x": array})
        np.testing.assert_allclose(result.outputs["y"], Oracle(model).run({"x": array})["y"], rtol=1e-5, atol=1e-6)
        assert [(r.calls, r.reason) for r in result.deferred] == [(1, "")]
