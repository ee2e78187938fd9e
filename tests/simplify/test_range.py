"""Constants whose product would overflow or underflow are not merged, in `simplify` and in the passes; inputs of the
check."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import ModelError
from tests.simplify.checking import normal, simplified
from tests.support.onnx_text import model_of

F = np.float32
SIGNS = np.array([1, -2, 3, -4], F)
CONV = "g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) { c = Conv(x, w) y = %s }"

CASES = {
    "product overflows": ("g (float[4] x) => (float[4] y) { a = Mul(x, k) y = Mul(a, k) }", {"k": F(1e30)}, 1e-34),
    "product vanishes": ("g (float[4] x) => (float[4] y) { a = Mul(x, k) y = Mul(a, k) }", {"k": F(1e-25)}, 1e30),
    "one and its inverse": (
        "g (float[4] x) => (float[4] y) { a = Mul(x, k) y = Mul(a, j) }",
        {"k": F(1e30), "j": F(1e-30)},
        1e20,
    ),
    "quotients": ("g (float[4] x) => (float[4] y) { a = Div(x, k) y = Div(a, k) }", {"k": F(1e-25)}, 1e-20),
    "subnormal divisor": (
        "g (float[4] x) => (float[4] y) { a = Mul(x, j) y = Div(a, k) }",
        {"k": F(1e-40), "j": F(1e-20)},
        1e-5,
    ),
    "a product and a quotient": (
        "g (float[4] x) => (float[4] y) { a = Mul(x, k) y = Div(a, j) }",
        {"k": F(1e-30), "j": F(1e30)},
        1e30,
    ),
    "rounding by a large term": (
        "g (float[4] x) => (float[4] y) { a = Add(x, k) y = Sub(a, k) }",
        {"k": F(12582912)},
        1.3,
    ),
    "terms that overflow": (
        "g (float[4] x) => (float[4] y) { a = Add(x, k) y = Add(a, k) }",
        {"k": F(3e38)},
        -3e38,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_elementwise(case: str) -> None:
    text, constants, size = CASES[case]
    model = model_of(text, {n: np.asarray(a) for n, a in constants.items()})
    x = SIGNS * F(size) if case != "terms that overflow" else np.full(4, size, F)
    want = Oracle(model).run({"x": x})["y"]
    result = simplify(model)
    assert result.ok
    np.testing.assert_array_equal(Oracle(result.model).run({"x": x})["y"], want)
    got = ppuc.compile(model).run({"x": x}).outputs["y"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("then", "size"),
    [("Mul(c, k)", F(1e30)), ("Div(c, k)", F(1e-40)), ("Mul(c, k)", F(1e-30)), ("Div(c, k)", F(1e25))],
)
def test_factors_stay_out_of_weights_that_they_would_lose(then: str, size: np.float32) -> None:
    weights = {"w": normal(3, 2, 1, 1) * (F(1e12) if size > 1 else F(1e-12)), "k": np.asarray(size)}
    model = model_of(CONV % then, weights)
    x = normal(1, 2, 4, 4) * (F(1e-20) if then.startswith("Mul") == (size > 1) else F(1e20))
    want = Oracle(model).run({"x": x})["y"]
    result = simplify(model)
    assert result.ok
    np.testing.assert_allclose(Oracle(result.model).run({"x": x})["y"], want, rtol=1e-5)
    assert ppuc.verify(ppuc.compile(model), {"x": x}).ok


def test_factors_of_usual_size_still_merge() -> None:
    _, after = simplified(CONV % "Mul(c, k)", {"w": normal(3, 2, 1, 1), "k": np.asarray(F(0.125))})
    assert after == {"Conv": 1}


def test_a_normalisation_with_channels_switched_off_still_merges() -> None:
    scale, bias = np.abs(normal(3)) + 0.5, normal(3) + 3
    scale[1] = 1e-33
    weights = {"w": normal(3, 2, 1, 1), "s": scale, "b": bias, "m": normal(3), "v": np.abs(normal(3)) + 0.1}
    _, after = simplified(CONV % "BatchNormalization(c, s, b, m, v)", weights)
    assert after == {"Conv": 1}


def test_a_normalisation_of_vanishing_variance_stays() -> None:
    weights = {"w": normal(3, 2, 1, 1), "s": np.full(3, 1e20, F), "b": normal(3), "m": normal(3), "v": np.zeros(3, F)}
    _, after = simplified(CONV % "BatchNormalization <epsilon = 1e-12> (c, s, b, m, v)", weights)
    assert after == {"Conv": 1, "BatchNormalization": 1}


def test_the_check_takes_inputs_whose_results_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.simplify.rules.base import RULES

    text = "g (float[4] x) => (float[4] y) { a = Mul(x, k) y = Mul(a, k) }"
    model = model_of(text, {"k": np.asarray(F(1e30))})
    monkeypatch.setitem(RULES, "Mul", [lambda g, node: g.replace(node, node.inputs[0])])  # wrong
    assert not simplify(model).ok


# Symbolic sizes


def test_sizes_follow_from_the_weights() -> None:
    result, _ = simplified("g (float[A, B] x) => (float[A, 8] y) { y = MatMul(x, w) }", {"w": normal(24, 8)})
    assert result.sizes == {"A": 2, "B": 24}


def test_sizes_follow_through_views_convolutions_and_broadcasts() -> None:
    text = """g (float[N, C, H, W] x, float[M, K] z) => (float[N, 3, H, W] y, float[P, Q] u) {
        y = Conv(x, w) s = Reshape(z, t) a = MatMul(s, v) u = Add(a, b)
    }"""
    weights = {"w": normal(3, 5, 1, 1), "t": np.array([-1, 4]), "v": normal(4, 7), "b": normal(7)}
    result, _ = simplified(text, weights)
    assert result.sizes is not None
    assert result.sizes["C"] == 5


def test_sizes_that_nothing_tells_are_asked_for() -> None:
    text = "g (float[A, B] x) => (float[5, 7, 11] y) { f = Flatten(x) r = Reshape(f, s) y = Relu(r) }"
    with pytest.raises(ModelError) as caught:
        simplify(model_of(text, {"s": np.array([5, 7, 11])}))
    (fault,) = caught.value.diagnostics
    tried = "ONNX Runtime runs it with none of the sizes that were tried for its open dimensions"
    assert fault.what == f"cannot be checked: {tried}"
    assert fault.hint == "add --dim A=... --dim B=..., or leave out the check with --no-check"
    assert simplify(model_of(text, {"s": np.array([5, 7, 11])}), {"A": 35, "B": 11}).ok


def test_the_command_with_the_sizes_given(tmp_path: object) -> None:
    model = model_of("g (float[A, B] x) => (float[A, 8] y) { y = MatMul(x, w) }", {"w": normal(24, 8)})
    onnx.save(model, f"{tmp_path}/m.onnx")
    done = CliRunner().invoke(cli, ["simplify", f"{tmp_path}/m.onnx", "-o", f"{tmp_path}/o.onnx"])
    assert done.exit_code == 0
    assert "(A = 2, B = 24)" in done.stdout
