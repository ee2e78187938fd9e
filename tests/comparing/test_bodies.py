"""`verify --layers`: inner tensors of bodies that are compiled while a program runs, and what it says of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler import verification
from tests.host.host_models import run
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = {"x": draws(4, 32)}
WEIGHTS = {
    "W": draws(32, 32), "V": draws(32, 32, seed=1) / 5, "Q": draws(2, 32), "zero": np.array(0, np.float32),
    "three": np.array(3),
}  # fmt: skip
LOOP = """g (float[4, 32] x) => (float[4, 32] y) { f = Cast <to = 11>(x) e = Exp(f) c = Cast <to = 1>(e)
    r = ReduceMax <keepdims = 0>(c) b = Greater(r, zero) one = Cast <to = 7>(b) n = Add(one, three) h = MatMul(x, W)
    l = Loop (n, , h) <body = l (int64 i, bool c0, float[4, 32] a) => (bool d, float[4, 32] z) {
        d = Identity(c0) m = MatMul(a, V) t = Tanh(m) u = MatMul(t, V) z = Sin(u) }> y = Add(l, h) }"""
BRANCH = """g (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, W) r = ReduceMax <keepdims = 0>(h)
    b = Greater(r, zero) l = If (b) <then_branch = t () => (z) { m = MatMul(h, V) t = Tanh(m) z = MatMul(t, V) },
        else_branch = e () => (z2) { z2 = Neg(h) }> y = Add(l, h) }"""
UNROLLED = """g (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, W)
    l = Loop (three, , h) <body = l (int64 i, bool c0, float[4, 32] a) => (bool d, float[4, 32] z) {
        d = Identity(c0) m = MatMul(a, V) z = Sin(m) }> y = local.twice(l) }
    <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { c = Tanh(a) b = Add(c, c) }"""
SIZE = """g (float[4, 32] x) => (float[a, b] y) { h = MatMul(x, W) i = NonZero(h) j = Transpose(i) k = Cast <to = 1>(j)
    m = MatMul(k, Q) t = Tanh(m) y = MatMul(t, V) }"""


def model(text: str) -> onnx.ModelProto:
    return model_of(text, {name: a for name, a in WEIGHTS.items() if name in text})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LOOP, ["Loop_8/body: Tanh_2", "Loop_8/body: z"]),
        (BRANCH, ["If_3/then_branch: Tanh_1", "If_3/then_branch: z"]),
        (SIZE, ["MatMul_4: Tanh_5", "MatMul_4: y"]),
    ],
)
def test_layers_of_what_is_compiled_at_run_time_are_compared(text: str, names: list[str]) -> None:
    found = ppuc.verify(ppuc.compile(model(text), TINY), X, layers=True)
    assert found.ok
    assert found.uncompared == ()
    own = {c.name: c for c in found.layers if ":" in c.name}
    assert list(own) == names
    assert all(c.sqnr_db > 90 for c in own.values())
    assert ppuc.verify(ppuc.compile(model(text), TINY), X).layers == ()


def test_the_layers_of_a_loop_are_those_of_its_last_trip() -> None:
    (ran,) = ppuc.compile(model(LOOP), TINY).run(X).deferred
    h = X["x"] @ WEIGHTS["W"]
    for _ in range(3):
        h = np.sin(np.tanh(h @ WEIGHTS["V"]) @ WEIGHTS["V"])
    assert ran.calls == 4
    np.testing.assert_allclose(ran.feeds["a"], h, rtol=1e-4, atol=1e-6)


def test_a_wrong_layer_of_a_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verification.run_with_layers

    def wrong(*arguments: Any) -> Any:
        kept = right(*arguments)
        return verification.replace(kept, got={name: array * np.float32(1.01) for name, array in kept.got.items()})

    monkeypatch.setattr(verification, "run_with_layers", wrong)
    found = ppuc.verify(ppuc.compile(model(LOOP), TINY), X, layers=True)
    assert not found.ok
    assert found.first_offender == "Loop_8/body: Tanh_2"


def test_the_command_says_whose_layers_are_not_compared(tmp_path: Path) -> None:
    onnx.save(model(UNROLLED), tmp_path / "m.onnx")
    done = run("verify", tmp_path / "m.onnx", "-t", TINY, "--layers")
    assert done.exit_code == 0
    assert "note: layers within Loop_1, twice_2 are not compared" in done.stderr
    assert "are not compared" not in run("verify", tmp_path / "m.onnx", "-t", TINY).stderr
