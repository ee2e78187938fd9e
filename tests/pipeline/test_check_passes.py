"""`--check-passes`: inputs that were fixed, numbers that overflow, models with host steps, and real faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ppuc.compiler.driver import compile_model
from ppuc.compiler.host import check_passes as host_check
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.pipeline import recheck
from ppuc.compiler.pipeline.recheck import DivergenceError
from ppuc.compiler.validation.overflow import nearest
from ppuc.ir.errors import InputError, UsageError
from ppuc.targets.description import load_target
from tests.host.host_models import model, run
from tests.support.onnx_text import model_of

TINY = load_target("ppu-tiny")


def check(source: onnx.ModelProto, inputs: Mapping[str, np.ndarray] | None, **options: Any) -> None:
    """Compile with every pass executed, as the command does with --inputs."""
    given = {"shapes": {n: a.shape for n, a in inputs.items()}, "values": dict(inputs)} if inputs is not None else {}
    compile_model(
        source, CompileOptions(TINY, **{**given, **options}), Instrumentation(check_passes=True, inputs=inputs)
    )


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LOOP = """g (int64 trips, float[2, 4] x) => (float[2, 4] y) { y = Loop (trips, , x) <
    body = b (int64 i, bool c, float[2, 4] h) => (c2, h2) { h2 = MatMul(h, w) c2 = Identity(c) }> }"""
RESHAPE = """g (float[2, 12] x, int64[2] size) => (float[a, b] y) { m = MatMul(x, w) y = Reshape(m, size) }"""


def loop() -> onnx.ModelProto:
    return model_of(LOOP, {"w": draws(4, 4)})


def test_inputs_that_were_fixed_belong_to_those_of_the_check() -> None:
    check(loop(), {"trips": np.array(3), "x": draws(2, 4)})
    check(model_of(RESHAPE, {"w": draws(12, 12)}), {"x": draws(2, 12), "size": np.array([4, 6])})
    with pytest.raises(InputError, match="no input is called 'z'"):
        check(loop(), {"trips": np.array(3), "x": draws(2, 4), "z": draws(1)}, shapes={})


@pytest.mark.parametrize("trips", [np.array(3), np.array([3, 3, 3, 3]), np.array([[3], [3]])])
def test_samples_may_hold_inputs_that_were_fixed(tmp_path: Path, trips: np.ndarray) -> None:
    onnx.save(loop(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", trips=np.array(3), x=draws(2, 4))
    np.savez(tmp_path / "data.npz", trips=trips, x=draws(8, 4))
    arguments = ("-t", "ppu-tiny", "--inputs", tmp_path / "x.npz", "-p", "fp8", "--calibrate", tmp_path / "data.npz")
    done = run("compile", tmp_path / "m.onnx", *arguments, "--check-passes", "-o", tmp_path / "m.ppu")
    assert done.exit_code == 0, done.output
    assert run("verify", tmp_path / "m.onnx", *arguments).exit_code == 0


@pytest.mark.parametrize("trips", [np.array(2), np.array([3, 3, 2, 3]), np.array([3.0, 3.0])])
def test_samples_of_another_value_of_a_fixed_input_are_refused(tmp_path: Path, trips: np.ndarray) -> None:
    onnx.save(loop(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", trips=np.array(3), x=draws(2, 4))
    np.savez(tmp_path / "data.npz", trips=trips, x=draws(8, 4))
    arguments = ("-t", "ppu-tiny", "--inputs", tmp_path / "x.npz", "-p", "fp8", "--calibrate", tmp_path / "data.npz")
    done = run("compile", tmp_path / "m.onnx", *arguments, "-o", tmp_path / "m.ppu")
    assert done.exit_code == 2
    assert "input 'trips' was fixed when the program was compiled" in done.stderr


# f16 numbers beyond 65504: stored they are infinite, inside a kernel they are not.

OVERFLOWS = {
    "square": "p = Mul(x, x) v = ReduceMean<axes = [1], keepdims = 1>(p) s = Sqrt(v) q = Div(x, s)",
    "stored": "p = Mul(x, x) v = ReduceMean<axes = [1], keepdims = 1>(p) s = Sqrt(v) r = Div(x, s) q = Add(r, p)",
    "exp": "e = Exp(x) s = ReduceSum<keepdims = 1>(e, one) q = Div(e, s)",
    "sum": "a = Abs(x) t = ReduceSum<keepdims = 1>(a, one) q = Mul(t, tiny)",
    "product": "m = MatMul(x, w) q = Mul(m, tiny)",
    "both": "p = Mul(x, x) v = ReduceMean<axes = [1], keepdims = 1>(p) s = Sqrt(v) r = Div(x, s) m = MatMul(r, w)"
    " t = Mul(m, big) u = Mul(t, big) q = Mul(u, tiny)",
    "infinite": "p = Mul(x, x) q = Mul(p, x)",
    "never a number": "p = Mul(x, x) n = Neg(p) q = Add(p, n)",
}


def overflowing(body: str) -> onnx.ModelProto:
    text = f"g (float16[4, 64] x) => (float[4, 64] y) {{ {body} y = Cast<to = 1>(q) }}"
    half = {"w": draws(64, 64, seed=1), "tiny": np.array(1e-4), "big": np.array(300.0)}
    source = model_of(text, {"one": np.array([1]), **{n: a.astype(np.float16) for n, a in half.items()}})
    source.graph.output[0].type.tensor_type.ClearField("shape")
    return source


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("name", list(OVERFLOWS))
def test_numbers_that_overflow_in_the_model_itself_are_no_fault_of_a_pass(name: str, precision: str) -> None:
    check(overflowing(OVERFLOWS[name]), {"x": (draws(4, 64) * 150).astype(np.float16)}, precision=precision)


def test_a_fault_is_found_in_a_model_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recheck.run_module

    def wrong(module: Any, *rest: Any) -> dict[str, np.ndarray]:
        found = right(module, *rest)
        return {n: a * np.float32(1.1) for n, a in found.items()} if module.kernels else found

    monkeypatch.setattr(recheck, "run_module", wrong)
    with pytest.raises(DivergenceError, match="pass tile: changes the value"):
        check(overflowing(OVERFLOWS["square"]), {"x": (draws(4, 64) * 150).astype(np.float16)})


def test_the_nearest_of_two_references_treats_infinities_as_numbers() -> None:
    inf, nan = np.inf, np.nan
    a, b = np.array([inf, inf, 1.0, nan, nan]), np.array([2.0, 2.0, 5.0, 3.0, 3.0])
    np.testing.assert_array_equal(nearest(np.array([inf, 2.1, 4.0, nan, 3.0]), a, b), [inf, 2.0, 5.0, nan, 3.0])


# Models with host steps.

TABLE = """g (float[4, 6] x, float[5, 6] t) => (float[4, 6] y) { a = MatMul(x, w) b = Cast<to = 11>(a) c = Exp(b)
    d = Cast<to = 1>(c) m = ArgMax<axis = 1, keepdims = 0>(d) i = Add(m, m) j = NonZero(x) k = Cast<to = 1>(j)
    l = ReduceMax<keepdims = 0>(k) e = Gather(t, z) f = Log(d) g = Mul(f, e) y = Mul(g, l) }"""


def hosted() -> onnx.ModelProto:
    source = model(TABLE)
    for name, array in (("w", np.eye(6, dtype=np.float32)), ("z", np.zeros(4, np.int64))):
        source.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return source


def test_parts_of_a_hosted_model_are_executed_on_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Mapping[str, np.ndarray]] = []
    inputs = {"x": draws(4, 6), "t": draws(5, 6, seed=1)}
    original = host_check.feeds_of_parts

    def kept(*arguments: Any) -> Any:
        found = original(*arguments)
        given.extend(found)
        return found

    monkeypatch.setattr(host_check, "feeds_of_parts", kept)
    check(hosted(), inputs)
    arrays = [a for feeds in given for a in feeds.values()]
    exponential = np.exp(inputs["x"].astype(np.float64)).astype(np.float32)
    assert any(a.shape == (4, 6) and np.allclose(a, exponential, 1e-5) for a in arrays)
    check(hosted(), None)
    check(hosted(), inputs, precision="int8")


def test_inputs_of_a_hosted_model_are_checked_like_others() -> None:
    with pytest.raises(InputError, match="no input is called 'z'"):
        check(hosted(), {"x": draws(4, 6), "t": draws(5, 6), "z": draws(1)}, shapes={})
    with pytest.raises(InputError, match="input 't' is missing"):
        check(hosted(), {"x": draws(4, 6)})
    strings = model("g (string[2] s, float[2, 6] x) => (string[2] y, float[2, 6] z) { y = Identity(s) z = Neg(x) }")
    check(strings, {"s": np.array(["a", "b"]), "x": draws(2, 6)}, values={}, shapes={})
    with pytest.raises(InputError, match=r"input 's' is missing(?s:.)*cannot be random"):
        check(strings, None)


def test_a_fault_in_a_part_of_a_hosted_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recheck.run_module

    def wrong(module: Any, *rest: Any) -> dict[str, np.ndarray]:
        found = right(module, *rest)
        return {n: a + 1 for n, a in found.items()} if module.kernels else found

    monkeypatch.setattr(recheck, "run_module", wrong)
    with pytest.raises(DivergenceError, match="pass tile"):
        check(hosted(), {"x": draws(4, 6), "t": draws(5, 6)})


def test_random_inputs_on_which_the_host_cannot_run_are_reported() -> None:
    text = "g (float[4, 6] x, int64[1] i) => (float[a, b, c] y) { j = Sub(i, far) y = Unsqueeze(x, j) }"
    source = model(text)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([100]), "far"))
    with pytest.raises(UsageError, match="cannot compute its part of the model on random inputs"):
        check(source, None)


# Indices.

INDEXING = {
    "gather": "(int64[4] i) => (float[4, 6] y) { y = Gather(t, i) }",
    "negative axis": "(int64[6, 1] i) => (float[6, 1] y) { u = Transpose(t) y = GatherElements <axis = -1>(u, i) }",
    "tuples": "(int64[4, 2] i) => (float[4] y) { y = GatherND(t, i) }",
    "batched tuples": "(int64[1, 4, 1] i) => (float[1, 4] y) { y = GatherND <batch_dims = 1>(t, i) }",
    "scatter": "(int64[1, 6] i, float[1, 6] u) => (float[1, 6] y) { y = ScatterElements(t, i, u) }",
    "scattered tuples": "(int64[2, 1] i, float[2, 6] u) => (float[1, 6] y) { y = ScatterND(t, i, u) }",
    "narrow": "(int32[4] i) => (float[4, 6] y) { j = Unsqueeze(i, last) y = GatherND(t, j) }",
}
"""Of a table of one row: random indices are out of range unless they are drawn for it."""


def indexing(text: str) -> onnx.ModelProto:
    return model_of(f"g {text}", {"t": draws(1, 6), "last": np.array([-1])})


@pytest.mark.parametrize("name", list(INDEXING))
def test_random_indices_are_drawn_in_range(name: str) -> None:
    check(indexing(INDEXING[name]), None)


@pytest.mark.parametrize("name", list(INDEXING))
def test_an_index_out_of_range_names_the_input(name: str) -> None:
    source = indexing(INDEXING[name])
    dtypes = {1: np.float32, 6: np.int32, 7: np.int64}
    given = {
        i.name: np.full([d.dim_value for d in i.type.tensor_type.shape.dim], 1000, dtypes[i.type.tensor_type.elem_type])
        for i in source.graph.input
    }
    with pytest.raises(InputError, match=r"--inputs: an index is out of range at node \w+, computed from input 'i'"):
        check(source, given, shapes={}, values={})


def test_random_indices_that_arithmetic_moves_out_of_range_are_reported() -> None:
    source = model_of(
        "g (int64[4] i) => (float[4, 6] y) { j = Add(i, k) y = Gather(t, j) }", {"t": draws(3, 6), "k": np.array(7)}
    )
    with pytest.raises(
        InputError, match=r"--check-passes: an index is out of range at node Gather_1, computed from input"
    ):
        check(source, None)


def test_an_index_out_of_range_behind_the_host_is_reported() -> None:
    text = """g (int64[4] i, float[4, 6] x) => (float[4, 6] y) { c = Cast <to = 11>(x) e = Exp(c) f = Cast <to = 1>(e)
        g = Gather(t, i) y = Mul(f, g) }"""
    source = model(text)
    source.graph.initializer.append(onnx.numpy_helper.from_array(draws(3, 6), "t"))
    check(source, None)
    with pytest.raises(InputError, match="an index is out of range at node Gather_3, computed from input 'i'"):
        check(source, {"i": np.full(4, 3), "x": draws(4, 6)}, shapes={}, values={})
