"""Models in bf16: the oracle computes in f32 and rounds every result; arrays of ml_dtypes go in and out of .npz."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.frontend.widened import widened
from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import InputError
from tests.support.onnx_text import model_of

B = ml_dtypes.bfloat16
rng = np.random.default_rng(16)
X = rng.standard_normal((2, 16), np.float32)
W = rng.standard_normal((16, 8), np.float32).astype(B)


def between_casts() -> onnx.ModelProto:
    text = """g (float[2, 16] x) => (float[2, 8] y) {
        b = Cast <to = 16> (x) m = MatMul(b, w) s = Sigmoid(m) p = Mul(m, s) y = Cast <to = 1> (p)
    }"""
    return model_of(text, {"w": W})


def throughout() -> onnx.ModelProto:
    """bf16 in, bf16 out, with a branch that captures bf16 and a constant of it."""
    text = """g (bfloat16[2, 16] x, bool c) => (bfloat16[2, 8] y) {
        m = MatMul(x, w)
        y = If (c) <then_branch = a () => (bfloat16[2, 8] t) { t = Add(m, m) },
                    else_branch = b () => (bfloat16[2, 8] e) { e = Mul(m, k) }>
    }"""
    return model_of(text, {"w": W, "k": np.asarray(1.5, B)})


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(B).astype(np.float32)


def test_each_result_is_rounded_once() -> None:
    got = Oracle(between_casts(), ("m", "s")).run({"x": X})
    product = rounded(rounded(X) @ W.astype(np.float32))
    np.testing.assert_allclose(got["m"].astype(np.float32), product, rtol=2**-7)
    m = got["m"].astype(np.float32)
    np.testing.assert_allclose(got["s"].astype(np.float32), rounded(1 / (1 + np.exp(-m))), rtol=2**-7)
    np.testing.assert_array_equal(got["y"], rounded(m * got["s"].astype(np.float32)))
    assert got["m"].dtype == B
    assert got["y"].dtype == np.float32


@pytest.mark.parametrize("layers", [False, True])
def test_verify(layers: bool) -> None:
    assert ppuc.verify(ppuc.compile(between_casts()), {"x": X}, layers=layers).ok


@pytest.mark.parametrize("condition", [True, False])
def test_verify_of_bf16_inputs_and_outputs(condition: bool) -> None:
    feeds = {"x": X.astype(B), "c": np.asarray(condition)}
    want = Oracle(throughout()).run(feeds)["y"]
    assert want.dtype == B
    product = rounded(rounded(X) @ W.astype(np.float32))
    np.testing.assert_allclose(want.astype(np.float32), product * (2 if condition else 1.5), rtol=2**-6)
    program = ppuc.compile(throughout(), values={"c": feeds["c"]})
    assert ppuc.verify(program, feeds).ok


def test_a_wrong_result_is_still_found() -> None:
    program = ppuc.compile(between_casts())
    other = between_casts()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array((W.astype(np.float32) * 1.1).astype(B), "w"))
    want = Oracle(other).run({"x": X})["y"]
    got = program.run({"x": X}).outputs["y"]
    assert np.abs(got - want).max() > 0.05 * np.abs(want).max()


def test_simplify() -> None:
    text = "g (bfloat16[2, 16] x) => (bfloat16[2, 8] y) { a = Identity(x) y = MatMul(a, w) }"
    result = simplify(model_of(text, {"w": W}))
    assert result.ok
    assert dict(result.after) == {"MatMul": 1}


def test_models_without_bf16_are_left_alone() -> None:
    assert widened(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")) is None


def test_arrays_of_ml_dtypes_in_files(tmp_path: Path) -> None:
    text = "g (bfloat16[2, 16] x) => (bfloat16[2, 8] y) { y = MatMul(x, w) }"
    onnx.save(model_of(text, {"w": W}), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=X.astype(B))
    run = ["run", str(tmp_path / "m.onnx"), "--output", str(tmp_path / "o.npz"), "--inputs", str(tmp_path / "in.npz")]
    for command in (run, ["verify", *run[1:2], *run[4:]]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
    y = np.load(tmp_path / "o.npz")["y"].view(B).astype(np.float32)
    np.testing.assert_allclose(y, rounded(rounded(X) @ W.astype(np.float32)), rtol=2**-6, atol=1e-3)
    program = ppuc.compile(tmp_path / "m.onnx")
    again = program.run({"x": rounded(X)}).outputs["y"]  # f32 that is exactly bf16
    np.testing.assert_array_equal(again.astype(np.float32), y)
    with pytest.raises(InputError, match="has the wrong dtype"):
        program.run({"x": X})


def test_outputs_of_one_run_are_inputs_of_the_next(tmp_path: Path) -> None:
    onnx.save(model_of("g (bfloat16[2, 16] x) => (bfloat16[2, 16] x2) { x2 = Neg(x) }"), tmp_path / "m.onnx")
    onnx.save(model_of("g (bfloat16[2, 16] x2) => (bfloat16[2, 16] y) { y = Identity(x2) }"), tmp_path / "n.onnx")
    special = np.where(np.arange(32).reshape(2, 16) % 5, X, np.inf).astype(B)
    np.savez(tmp_path / "0.npz", x=special)
    for number, model in enumerate(("m", "n")):
        words = ["run", f"{tmp_path}/{model}.onnx", "--inputs", f"{tmp_path}/{number}.npz"]
        done = CliRunner().invoke(cli, [*words, "--output", f"{tmp_path}/{number + 1}.npz"])
        assert done.exit_code == 0, done.output
    y = np.load(tmp_path / "2.npz")["y"].view(B)
    assert y.tobytes() == (-special).tobytes()
