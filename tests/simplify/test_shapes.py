"""Symbolic shapes: what becomes constant, and polynomials that compute what they mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.simplify import symbolic_sizes as sizes
from ppuc.compiler.simplify.driver import simplify
from ppuc.compiler.validation.oracle import Oracle
from tests.simplify.checking import normal, simplified
from tests.support.onnx_text import model_of


def test_shape_arithmetic_becomes_a_constant() -> None:
    text = """g (float[batch, seq, 12] x) => (float[batch, seq, 3, 4] y) {
        s = Shape(x) b = Gather(s, zero) t = Gather(s, one)
        bu = Unsqueeze(b, axes) tu = Unsqueeze(t, axes)
        target = Concat<axis = 0>(bu, tu, heads)
        y = Reshape(x, target)
    }"""
    ints = {"zero": 0, "one": 1, "axes": [0], "heads": [3, 4]}
    result, after = simplified(text, {k: np.array(v, np.int64) for k, v in ints.items()})
    assert after == {"Reshape": 1}
    dims = result.model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in dims[:2]] == ["batch", "seq"]
    x = normal(5, 7, 12)
    assert Oracle(result.model).run({"x": x})["y"].shape == (5, 7, 3, 4)


def test_a_shape_that_no_constant_expresses_takes_few_nodes() -> None:
    text = """g (float[batch, seq, 12] x) => (float[batch, 2, seq, 12] y) {
        s = Shape(x) b = Gather(s, zero) t = Gather(s, one)
        bu = Unsqueeze(b, axes) tu = Unsqueeze(t, axes)
        target = Concat<axis = 0>(bu, two, tu, width)
        u = Unsqueeze(x, one1)
        y = Expand(u, target)
    }"""
    ints = {"zero": 0, "one": 1, "axes": [0], "two": [2], "width": [12], "one1": [1]}
    _, after = simplified(text, {k: np.array(v, np.int64) for k, v in ints.items()})
    assert after == {"Unsqueeze": 1, "Expand": 1}


def test_sizes_given_with_dim_are_folded() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        s = Shape(x) f = Cast<to = 1>(s) total = ReduceProd<keepdims = 0>(f) y = Div(x, total)
    }"""
    model = model_of(text)
    assert dict(simplify(model).after) == {"Shape": 1, "Cast": 1, "ReduceProd": 1, "Div": 1}
    bound = simplify(model, {"N": 3})
    assert dict(bound.after) == {"Div": 1}
    assert bound.ok
    assert bound.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert bound.model.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 3


# Sizes with symbols

NAMES = ("a", "b", "c")


@st.composite
def polynomials(draw: st.DrawFn) -> sizes.Size:
    total: sizes.Size = draw(st.integers(-4, 4))
    for _ in range(draw(st.integers(0, 3))):
        term: sizes.Size = draw(st.integers(-3, 3))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
            term = sizes.multiply(term, sizes.symbol(name))
        total = sizes.add(total, term)
    return total


def value(size: sizes.Size, of: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    return sum(c * int(np.prod([of[s] for s in m], dtype=np.int64)) for m, c in size.terms)


@given(polynomials(), polynomials(), st.tuples(*(st.integers(0, 9),) * 3))
def test_polynomials_compute_what_they_mean(a: sizes.Size, b: sizes.Size, at: tuple[int, ...]) -> None:
    of = dict(zip(NAMES, at, strict=True))
    assert value(sizes.add(a, b), of) == value(a, of) + value(b, of)
    assert value(sizes.subtract(a, b), of) == value(a, of) - value(b, of)
    assert value(sizes.multiply(a, b), of) == value(a, of) * value(b, of)
    quotient = sizes.divide(sizes.multiply(a, b), b)
    if quotient is not None and value(b, of):
        assert value(quotient, of) == value(a, of)
    if sizes.not_negative(a):
        assert value(a, of) >= 0
    if sizes.positive(a):
        assert value(a, of) >= 1
    assert sizes.subtract(a, a) == 0
