"""Tensors behind indices that a node chose: judged by the model's answer to the program's own choice, if it is right by
value."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.frontend.selections import Selection, choices
from ppuc.compiler.program.compiled import CompiledProgram
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"

GATHERED = {
    "gather": "y = Gather(T, i)",
    "elements": "y = GatherElements <axis = 1>(U, i)",
    "nd": "e = Unsqueeze(i, last) y = GatherND(T, e)",
    "argmax": "a = ArgMax <axis = 1, keepdims = 0>(t) y = Gather(T, a)",
    "arithmetic": "g = Gather(T, i) m = MatMul(g, V) y = Relu(m)",
    "integers": "y = Gather(N, i)",
    "twice": "g = GatherElements <axis = 1>(U, i) s = MatMul(g, S) c = Tanh(s) w, j = TopK(c, two) y = Gather(T, j)",
    "body": """b = ReduceMax <keepdims = 0>(x) z = Greater(b, zero) y = If(z) <
        then_branch = p () => (q) { q = Gather(T, i) }, else_branch = n () => (o) { u = Gather(T, i) o = Neg(u) }>""",
    "host": "g = Gather(T, i) c = Cast <to = 11>(g) e = Exp(c) y = Cast <to = 1>(e)",
}


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = {"x": draws(4, 64)}
WEIGHTS = {
    "W": draws(64, 300) / 2, "T": draws(300, 6, seed=4), "U": draws(4, 300, seed=5), "V": draws(6, 16, seed=6),
    "N": np.arange(300), "S": draws(8, 40, seed=7), "k": np.array([8]), "two": np.array([2]), "last": np.array([-1]),
    "zero": np.array(0, np.float32),
}  # fmt: skip


def saturated(body: str) -> onnx.ModelProto:
    """tanh gives hundreds of numbers next to 1, whose order rounding decides; `body` computes y from the indices."""
    output = "int64[a, b] y" if body == GATHERED["integers"] else "float y"
    text = f"g (float[4, 64] x) => ({output}) {{ h = MatMul(x, W) t = Tanh(h) v, i = TopK(t, k) {body} }}"
    model = model_of(text, {n: a for n, a in WEIGHTS.items() if f"{n})" in text or f"{n}," in text})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("name", list(GATHERED))
def test_what_is_gathered_after_ties_agrees_with_the_answer_to_the_same_choice(name: str, precision: str) -> None:
    program = ppuc.compile(saturated(GATHERED[name]), TINY, precision)
    assert (program.plan is not None) == (name in ("body", "host"))
    found = ppuc.verify(program, X, layers=True)
    assert found.verdict == "ok"
    assert found.outputs[0].note.startswith("computed from the program's own indices; ")
    assert found.outputs[0].note.count("indices differ, and choose values that agree") >= 1
    assert found.outputs[0].tolerance < 0.1


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_choices_in_8_bits_are_judged_by_value_too(precision: str) -> None:
    found = ppuc.verify(ppuc.compile(saturated(GATHERED["arithmetic"]), TINY, precision), X)
    assert found.verdict == "ok"
    assert "computed from the program's own indices" in found.outputs[0].note


@pytest.mark.parametrize("name", ["gather", "host"])
@pytest.mark.parametrize("broken", ["T", "W"])
def test_neither_wrong_choices_nor_wrong_tables_are_excused(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: str
) -> None:
    """The program of a model with another table gathers wrong numbers; one with other scores makes wrong choices."""
    program = ppuc.compile(saturated(GATHERED[name]), TINY)
    other = saturated(GATHERED[name])
    (tensor,) = (t for t in other.graph.initializer if t.name == broken)
    change = 1 + 0.01 * draws(*WEIGHTS[broken].shape) if broken == "T" else -1
    tensor.CopyFrom(onnx.numpy_helper.from_array((WEIGHTS[broken] * change).astype(np.float32), broken))
    wrong, right = ppuc.compile(other, TINY), CompiledProgram.run

    def run(self: CompiledProgram, *arguments: Any, **options: Any) -> Any:
        """Of the program; what is compiled to see its choices is compiled with the same fault."""
        if len(self.artifact.outputs) == 1 and "i" not in {o.name for o in self.artifact.outputs}:
            return right(wrong, *arguments, **options)
        return right(self, *arguments, **options)

    monkeypatch.setattr(CompiledProgram, "run", run)
    assert ppuc.verify(program, X).verdict == "wrong"


def test_choices_that_nodes_read_are_found_in_bodies_too() -> None:
    for name in ("gather", "body"):
        assert choices(saturated(GATHERED[name])) == {"i": Selection("TopK", "t", -1, "Tanh_1")}
    assert set(choices(saturated(GATHERED["twice"]))) == {"i", "j"}
    assert (
        choices(model_of("g (float[4] x) => (float[1] v, int64[1] i) { v, i = TopK(x, k) }", {"k": np.array([1])}))
        == {}
    )
