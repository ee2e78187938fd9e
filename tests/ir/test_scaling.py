"""When constants may be merged ahead of the data that they are meant for."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.ir.scaling import factors_merge, moderate, terms_merge, weights_take

F = np.float32


@pytest.mark.parametrize(
    ("a", "b", "merge"),
    [
        (3, 0.25, True),
        (0, 1e15, True),
        (1e30, 1e30, False),  # infinite
        (1e-30, 1e-30, False),  # zero
        (1e30, 1e-30, False),  # one, but x * 1e30 is infinite where x is not
        (1e15, 1e15, False),  # the product alone is out of reach
        (1e-40, 2, False),  # subnormal
        (np.inf, 0.5, False),
        (np.nan, 0.5, False),
    ],
)
def test_factors(a: float, b: float, merge: bool) -> None:
    with np.errstate(over="ignore"):
        assert factors_merge(np.array(a, F), np.array(b, F)) == merge
        assert factors_merge(np.array([1, a], F), np.array([[1], [b]], F)) == merge


def test_f64_reaches_further() -> None:
    assert factors_merge(np.array(1e30), np.array(1e30))
    assert not factors_merge(np.array(1e200), np.array(1e-200))
    assert moderate(1e15, -1e-15, 0.0)
    assert not moderate(1e25)


def test_weights_are_judged_by_the_largest_that_has_a_factor() -> None:
    weights = np.array([[1.0, 1e-30], [1e-30, 2.0]], F)
    assert weights_take(weights, np.array([[1e-10], [3.0]], F))
    assert not weights_take(weights, np.array([[1e-25], [3.0]], F))
    dead = np.array([[1.0, 0.5], [1e-30, 1e-31]], F)
    assert not weights_take(dead, np.array([[1.0], [1e-10]], F))
    assert weights_take(np.array([[1.0, 0.5], [0, 0]], F), np.array([[1.0], [1e-10]], F))
    assert not weights_take(np.array([1e30, 1], F), np.array(1e10, F))


@pytest.mark.parametrize(
    ("a", "b", "merge"),
    [
        (1, 2, True),
        (3, -3, True),
        (100, -100, False),
        (100, -99, True),
        (12582912, -12582912, False),
        (3e38, 3e38, False),
        (1e10, 1, True),
        (0, 0, True),
    ],
)
def test_terms(a: float, b: float, merge: bool) -> None:
    assert terms_merge(np.array([a], F), np.array([b], F)) == merge
