"""Along which axis the classes of an output lie, and which outputs count."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.quantization.class_axis import found_criteria
from ppuc.compiler.quantization.criteria import Criterion, Judging
from ppuc.compiler.quantization.measure import Accuracy, Difference
from ppuc.ir.errors import UsageError
from tests.support.onnx_text import model_of

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


WEIGHTS = {
    "w": normal(6, 3, 1, 1),
    "v": normal(1, 3, 1, 1),
    "m": normal(8, 5),
    "grid": normal(1, 6, 4, 5),
    "flat": np.array([1, 6, 20]),
    "anchors": np.array([1, 3, 2, 4, 5]),
    "levels": np.array([1, -1, 2]),
}

CASES = {
    "a segmentation map": ("float[1, 3, 4, 5] x", "y = Conv(x, w)", "axis 1: output channels"),
    "a map resized and biased": ("float[1, 3, 4, 5] x", "c = Conv(x, w); y = Add(grid, c)", "axis 1: output channels"),
    "channels last": ("float[1, 3, 4, 5] x", "c = Conv(x, w); y = Transpose<perm = [0, 2, 3, 1]>(c)", "axis 3: output"),
    "cells in one axis": ("float[1, 3, 4, 5] x", "c = Conv(x, w); y = Reshape(c, flat)", "axis 1: output channels"),
    "anchors share the channels": ("float[1, 3, 4, 5] x", "c = Conv(x, w); y = Reshape(c, anchors)", "axis 2: output"),
    "anchors of all cells": (
        "float[1, 3, 4, 5] x",
        "c = Conv(x, w); t = Transpose<perm = [0, 2, 3, 1]>(c); y = Reshape(t, levels)",
        "axis 2: output channels",
    ),
    "a mask": ("float[1, 3, 4, 5] x", "c = Conv(x, v); y = Sigmoid(c)", "above 0.5: a probability"),
    "a depth map": ("float[1, 3, 4, 5] x", "y = Conv(x, v)", "no classes"),
    "tokens": ("float[1, 7, 8] x", "y = MatMul(x, m)", "axis 2: output channels"),
    "a softmax decides": ("float[1, 7, 8] x", "p = MatMul(x, m); y = Softmax<axis = 1>(p)", "axis 1: softmax"),
    "similarities": ("float[3, 8] x", "t = Transpose<perm = [1, 0]>(x); y = MatMul(x, t)", "axis 1: assumed"),
    "no product": ("float[1, 4, 2, 2] x", "y = Relu(x)", "axis 1: assumed from the layout"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_class_axis_is_found(case: str) -> None:
    given, body, expected = CASES[case]
    lines = body.replace("; ", "\n ")
    graph = load_model(model_of(f"net ({given}) => (float y) {{\n {lines}\n}}", WEIGHTS)).graph
    assert found_criteria(graph)[graph.results[0].name].text.startswith(expected)


def test_an_argmax_beside_the_output_decides() -> None:
    """Logits are an output beside the argmax that reads them; indices do not count where floats do."""
    text = """net (float[1, 4, 6] x) => (float y, int64 i) {
        y = Relu(x)
        i = ArgMax<axis = 1>(y)
    }"""
    graph = load_model(model_of(text, {})).graph
    logits, indices = (found_criteria(graph)[v.name] for v in graph.results)
    assert logits.text.startswith("axis 1: argmax")
    assert (logits.weight, indices.weight) == (1.0, 0.0)


def test_agreement_counts_decisions_along_the_class_axis() -> None:
    want = np.zeros((1, 2, 3, 4), np.float32)
    want[:, 1] = 1.0
    got = want.copy()
    got[0, :, 1, 1] = [1.0, 0.0]  # one pixel of twelve changes its class
    difference = Difference(criterion=Criterion(axis=1))
    difference.add(got, want)
    assert difference.agreement == pytest.approx(11 / 12)


def test_agreement_of_a_probability_is_its_side_of_one_half() -> None:
    difference = Difference(criterion=Criterion(threshold=0.5))
    difference.add(np.array([[0.4], [0.6], [0.9], [0.1]]), np.array([[0.6], [0.7], [0.8], [0.2]]))
    assert difference.agreement == 0.75


def test_indices_are_noisy_where_they_differ() -> None:
    difference = Difference()
    difference.add(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert (difference.agreement, difference.noise, difference.signal) == (0.75, 1.0, 4.0)


def test_outputs_count_by_weight() -> None:
    def noisy(noise: float, weight: float) -> Difference:
        return Difference(signal=1.0, noise=noise, criterion=Criterion(weight))

    assert Accuracy({"a": noisy(0.1, 1.0), "b": noisy(0.001, 9.0)}).sqnr == pytest.approx(
        -10 * np.log10((0.1 + 9 * 0.001) / 10)
    )


FOUND = {"boxes": Criterion(axis=1), "scores": Criterion(axis=2), "aux": Criterion(axis=1)}
RANKS = {"boxes": 3, "scores": 3, "aux": 4}


def test_only_chosen_outputs_count() -> None:
    made = Judging(("boxes,scores=2.5",), ("boxes=-1", "1")).criteria(FOUND, RANKS)
    assert {n: c.weight for n, c in made.items()} == {"boxes": 1.0, "scores": 2.5, "aux": 0.0}
    assert {n: c.axis for n, c in made.items()} == {"boxes": -1, "scores": 1, "aux": 1}
    assert made["boxes"].why == "--class-axis"


def test_a_part_counts_what_other_parts_read() -> None:
    """`boxes` is the tensor t0 of the part, t1 goes to another part, and the auxiliary head t2 nowhere."""
    judging = Judging(("boxes=3",), ("boxes=1", "aux=2", "0"))
    part = judging.of_part({"boxes": "t0", "scores": "t9", "aux": "t2"}, ("t0", "t1", "t2"), {"t1"})
    assert part == Judging(("t0=3.0", "t1=3.0"), ("t0=1", "t2=2", "0"))


@pytest.mark.parametrize(
    ("judging", "text"),
    [
        (Judging(("boxs",)), "--outputs: the model has no output 'boxs'\n  expected: boxes, scores, aux\n  hint: did"),
        (Judging(("boxes=0",)), "--outputs: the weight of 'boxes' is not a positive number\n  got: 0"),
        (Judging(("boxes", "aux,boxes")), "--outputs: names 'boxes' twice"),
        (Judging((), ("score=1",)), "--class-axis: the model has no output 'score'"),
        (Judging((), ("boxes=3",)), "--class-axis: output 'boxes' has no axis 3\n  expected: 3 axes"),
        (Judging((), ("7",)), "--class-axis: no output has an axis 7"),
        (Judging((), ("boxes=last",)), "--class-axis: is not an axis\n  got: boxes=last"),
        (Judging((), ("1", "2")), "--class-axis: is given twice for all outputs"),
    ],
)
def test_mistakes_are_named(judging: Judging, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        judging.criteria(FOUND, RANKS)
    assert str(caught.value).startswith(text)
