"""Indices that nodes choose are judged by the values that they choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.comparing.indices import by_value
from ppuc.compiler.frontend.selections import Selection, selections
from ppuc.compiler.validation.compare import compare
from ppuc.compiler.validation.tolerance import Tolerance
from tests.support.onnx_text import model_of

TINY = "ppu-tiny"


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def verified(model: onnx.ModelProto, inputs: dict[str, Any], precision: str = "model", **how: Any) -> Any:
    return ppuc.verify(ppuc.compile(model, TINY, precision), inputs, **how)


TOP = """g (float[4, 64] x) => (int64[4, 50] i, int64[4] a, int32[4, 1] b) {
    h = MatMul(x, W) t = Tanh(h) v, i = TopK(t, k) a = ArgMax<axis = 1, keepdims = 0>(t)
    c = ArgMin<axis = 1>(t) b = Cast<to = 6>(c) }"""


def top() -> onnx.ModelProto:
    return model_of(TOP, {"W": draws(64, 300) / 2, "k": np.array([50])})


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_indices_after_ties_are_judged_by_the_values_that_they_choose(precision: str) -> None:
    """tanh gives hundreds of numbers next to 1, whose order rounding decides."""
    found = verified(top(), {"x": draws(4, 64)}, precision)
    assert found.ok
    assert "indices differ, and choose values that agree" in found.outputs[0].note


def test_what_outputs_choose_from_is_found_through_changes_of_shape_and_type() -> None:
    found = selections(top(), ("i", "a", "b"))
    assert found["i"] == Selection("TopK", "t", -1, "Tanh_1")
    assert found["a"] == Selection("ArgMax", "t", 1, "Tanh_1")
    assert found["b"] == Selection("ArgMin", "t", 1, "Tanh_1")
    assert selections(model_of("g (int64[4] x) => (int64[4] y) { y = Neg(x) }"), ("y",)) == {}


DATA = np.array([[5.0, 1.0, 5.0 + 1e-6, 3.0], [2.0, 2.0, 0.0, 1.0]], np.float32)


@pytest.mark.parametrize(
    ("got", "ok"),
    [
        ([[2, 0], [0, 1]], True),  # both orders of two values that are as good as equal
        ([[0, 2], [1, 0]], True),
        ([[0, 3], [0, 1]], False),  # a value that is smaller
        ([[0, 0], [0, 1]], False),  # one choice made twice
        ([[0, 2], [0, 4]], False),  # no index of the axis
        ([[0, 2], [0, -1]], False),
    ],
)
def test_a_choice_is_right_when_its_values_are(got: list[list[int]], ok: bool) -> None:
    want, mine = np.array([[2, 0], [0, 1]]), np.array(got)
    before = compare("i", mine, want, Tolerance(1e-6))
    if before.ok:
        return
    found = by_value(before, mine, want, Selection("TopK", "t", 1, ""), DATA, lambda: [Tolerance(1e-6)])
    assert found.ok == ok


def test_boxes_that_score_the_same_are_as_good() -> None:
    scores = np.array([[[0.9, 0.5, 0.9 + 1e-7, 0.2]]], np.float32)
    want = np.array([[0, 0, 2], [0, 0, 0], [0, 0, 1]])
    choice = Selection("NonMaxSuppression", "scores", 0, "")
    for rows, ok in (((0, 2, 1), True), ((0, 2, 3), False), ((0, 0, 1), False)):
        got = np.array([[0, 0, box] for box in rows])
        before = compare("i", got, want, Tolerance(1e-6))
        assert by_value(before, got, want, choice, scores, lambda: [Tolerance(1e-6)]).ok == ok
