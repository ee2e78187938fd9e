"""Random models around a loop of unknown trips, a loop that its body ends, or a choice of rows that data make: what is
compiled while they run agrees with ONNX Runtime.

PPUC_DEFERRED_SEEDS sets how many models there are.
"""

from __future__ import annotations

import os
import random

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.validation.oracle import Oracle
from tests.support.onnx_text import model_of

SEEDS = int(os.environ.get("PPUC_DEFERRED_SEEDS", "30"))
PLAIN = ("{y} = MatMul({a}, V)", "{y} = Add({a}, {b})", "{y} = Tanh({a})", "{y} = Mul({a}, {b})", "{y} = Softmax({a})")
MIXED = (
    "{y}i = NonZero({a}) {y}f = Cast<to = 1>({y}i) {y}m = ReduceMean<keepdims = 0>({y}f) {y} = Add({a}, {y}m)",
    "{y}s = ReduceSum<keepdims = 0>({a}) {y}c = Greater({y}s, zero) {y} = If ({y}c) "
    "<then_branch = t{y} () => (p{y}) {{ p{y} = MatMul({a}, V) }},"
    " else_branch = e{y} () => (q{y}) {{ q{y} = Sub({b}, one) }}>",
)
"""Nodes of f32[r, 6] tensors; the second kind holds what only the host can decide."""


class Writer:
    """Nodes in ONNX's text syntax; `names` are the tensors that the next one may read."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def nodes(self, names: list[str], least: int, most: int) -> tuple[str, list[str]]:
        """Some nodes, and all names after them."""
        lines, names = [], list(names)
        for _ in range(self.random.randint(least, most)):
            form = self.random.choice((*PLAIN, PLAIN[0], PLAIN[0], *MIXED))
            self.count += 1
            made = f"v{self.count}"
            lines.append(form.format(y=made, a=self.random.choice(names), b=self.random.choice(names)))
            names.append(made)
        return " ".join(lines), names

    def rows(self) -> str:
        """Rows whose largest element is above a limit; products of them."""
        before, names = self.nodes(["x"], 1, 3)
        after, ends = self.nodes(["r"], 2, 4)
        return f"""g (float[5, 6] x) => (float[k, 6] y) {{ {before}
            a = Abs({names[-1]}) m = ReduceMax<keepdims = 0, axes = [1]>(a) c = Greater(m, limit) i = NonZero(c)
            j = Squeeze(i, first) r = Gather({names[-1]}, j) {after} y = Neg({ends[-1]}) }}"""

    def loop(self, asks: bool) -> str:
        """A loop, which `asks` its body whether to go on."""
        before, names = self.nodes(["x"], 1, 3)
        body, inner = self.nodes(["u", *names[-2:]], 1, 4)
        after, ends = self.nodes(["d"], 1, 3)
        more = f"s = ReduceMax<keepdims = 0>({inner[-1]}) more = Less(s, two)" if asks else "more = Identity(k)"
        return f"""g (float[5, 6] x, int64 n) => (float[5, 6] y, float[t, 5, 6] z) {{ {before}
            d, z = Loop (n, {"yes" if asks else ""}, x) <body = l (int64 i, bool k, float[5, 6] u) => (more, w, e) {{
                {body} {more} w = Tanh({inner[-1]}) e = Neg({self.random.choice(inner)}) }}>
            {after} y = Identity({ends[-1]}) }}"""


def model(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model, and what it is fed with."""
    writer, numbers = Writer(seed), np.random.default_rng(seed)
    kind = writer.random.choice(("rows", "counted", "asking"))
    text = writer.rows() if kind == "rows" else writer.loop(kind == "asking")
    weights = {
        "V": (numbers.standard_normal((6, 6)) * 0.4).astype(np.float32),
        "zero": np.float32(0), "one": np.float32(1), "two": np.float32(2), "yes": np.array(True),
        "limit": np.float32(writer.random.choice((0.3, 0.8, 1.2))), "first": np.array([0]),
    }  # fmt: skip
    feeds = {"x": numbers.standard_normal((5, 6)).astype(np.float32)}
    if kind != "rows":
        feeds["n"] = np.array(writer.random.choice((0, 1, 3)))
    return model_of(text, {n: np.asarray(w) for n, w in weights.items()}), feeds


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_models_agree(seed: int) -> None:
    source, feeds = model(seed)
    program = ppuc.compile(source, "ppu-tiny")
    outputs = program.run(feeds).outputs
    for name, want in Oracle(source).run(feeds).items():
        assert outputs[name].shape == want.shape
        np.testing.assert_allclose(outputs[name], want, rtol=1e-4, atol=1e-4)
    assert ppuc.verify(program, feeds).ok


def test_most_random_models_are_compiled_while_they_run() -> None:
    plans = [ppuc.compile(model(seed)[0], "ppu-tiny").plan for seed in range(20)]
    assert sum(plan is not None and bool(plan.deferred) for plan in plans) > 12
