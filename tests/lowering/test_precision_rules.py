"""The roundings that a program performs: the rules of docs/disagreements.md, "What is rounded, and when"."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import ppuc
from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

F, H = np.float32, np.float16


def narrow_chain(dtype: type, element: str) -> tuple[str, dict[str, np.ndarray]]:
    """Floor of (x * 1.1 + 0.3) * 3.3 in a format narrower than f32."""
    text = f"g ({element}[96] x) => ({element}[96] y) {{ a = Mul(x, k) b = Add(a, j) c = Mul(b, m) y = Floor(c) }}"
    return text, {"k": np.asarray(1.1, dtype), "j": np.asarray(0.3, dtype), "m": np.asarray(3.3, dtype)}


@pytest.mark.parametrize(
    ("dtype", "element"), [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")], ids=["f16", "bf16"]
)
def test_a_narrow_chain_is_f32_within_a_kernel(dtype: type, element: str) -> None:
    text, constants = narrow_chain(dtype, element)
    x = np.random.default_rng(7).uniform(-100, 100, 96).astype(dtype)
    program = ppuc.compile(model_of(text, constants))
    assert sum(len(s.kernels) for s in program.artifact.program.segments) == 1
    k, j, m = (constants[n].astype(F) for n in "kjm")
    wide = np.floor((x.astype(F) * k + j) * m).astype(dtype)
    step = ((x.astype(F) * k).astype(dtype).astype(F) + j).astype(dtype).astype(F)
    stepwise = np.floor((step * m).astype(dtype).astype(F)).astype(dtype)
    got = program.run({"x": x}).outputs["y"]
    np.testing.assert_array_equal(got.astype(F), wide.astype(F))
    assert (wide != stepwise).any()  # the rules differ on these numbers


def test_onnx_runtime_keeps_chains_of_f16_wide_as_well() -> None:
    text, constants = narrow_chain(H, "float16")
    x = np.random.default_rng(7).uniform(-100, 100, 96).astype(H)
    model = model_of(text, constants)
    np.testing.assert_array_equal(ppuc.compile(model).run({"x": x}).outputs["y"], Oracle(model).run({"x": x})["y"])


def test_a_narrow_tensor_between_kernels_is_rounded() -> None:
    """The product needs the chain's result in f16: what crosses kernels has the type of the model."""
    text = "g (float16[32, 64] x) => (float16[32, 64] y) { a = Mul(x, k) b = MatMul(a, w) y = Floor(b) }"
    rng = np.random.default_rng(8)
    constants = {"k": np.asarray(1.1, H), "w": np.eye(64, dtype=H)}
    x = rng.uniform(-100, 100, (32, 64)).astype(H)
    got = ppuc.compile(model_of(text, constants)).run({"x": x}).outputs["y"]
    np.testing.assert_array_equal(got, np.floor((x.astype(F) * F(H(1.1))).astype(H)))


@pytest.mark.parametrize("n", [7, 8, 100, 768])
def test_a_row_of_equal_numbers_shows_the_rounding_of_its_mean(n: int) -> None:
    """Its deviations are what the mean is off by: at most n roundings of a partial sum and one of the factor 1 / n,
    each 2**-24 of the number. The norm divides that by sqrt(epsilon)."""
    text = f"g (float[5, {n}] x) => (float[5, {n}] y) {{ y = LayerNormalization <epsilon = 0.00001> (x, s) }}"
    rows = np.array([[1.1], [-3.7], [1000.3], [0.0], [0.01]], F)
    x = np.repeat(rows, n, 1)
    y = ppuc.compile(model_of(text, {"s": np.ones(n, F)})).run({"x": x}).outputs["y"]
    bound = (n + 2) * 2.0**-24 * np.abs(rows) / np.sqrt(1e-5)
    assert (np.abs(y) <= bound).all()
    assert not y[3].any()
    if n == 8:
        assert not y.any()  # sums of powers of two of equal numbers are exact


def test_rows_of_equal_numbers_among_others_are_within_the_allowed_error() -> None:
    text = "g (float[64, 100] x) => (float[64, 100] y) { y = LayerNormalization(x, s, b) }"
    rng = np.random.default_rng(9)
    x = rng.standard_normal((64, 100), F)
    x[::8] = rng.standard_normal((8, 1), F)
    weights = {"s": rng.standard_normal(100, F), "b": rng.standard_normal(100, F)}
    assert ppuc.verify(ppuc.compile(model_of(text, weights)), {"x": x}).ok
