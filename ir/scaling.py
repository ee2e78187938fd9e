"""Whether constants may be multiplied, or added, before the data that they are meant for.

x * a * b equals x * (a * b) up to a rounding only where neither product leaves the range of its format: with
a = b = 1e30 the factor a * b is infinite though x * a * b is not, and with a = 1e30, b = 1e-30 it is the other way
around. Likewise x + a + b equals x + (a + b) only where a does not swallow x first.

Invariant: what passes here changes a result that is finite, and no smaller than the format's smallest normal number
times 2**REACH, by roundings alone.
"""

from __future__ import annotations

import math

import numpy as np

REACH = {4: 64, 8: 512}
"""Powers of two, by bytes of the format, by which constants may differ from one: half of what the exponent holds."""
CANCELLED, SMALL = 1024.0, 64.0
"""How many times smaller than its terms a sum of constants may be, and terms whose sum may be anything: rounding x + a
changes x by less than 2**-18 then. Larger ones may be there for their rounding: x + 1.5 * 2**23 - 1.5 * 2**23."""


def moderate(*factors: np.ndarray | float) -> bool:
    """Whether every element is 0 or within REACH of one; numbers count as f32."""
    return all(_within(np.asarray(f), _reach(f)) for f in factors)


def factors_merge(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a * b may stand for two factors: both, and their product, are within reach. They are f32 or f64, of
    shapes that broadcast."""
    if not moderate(a, b):
        return False
    return _within(np.asarray(a, np.float64) * np.asarray(b, np.float64), _reach(a))


def weights_take(weights: np.ndarray, factor: np.ndarray) -> bool:
    """Whether weights may be multiplied by `factor`, whose dimensions are 1 wherever weights have it in common. What
    has one factor is judged by its largest weight: smaller ones matter no more after it than before."""
    spread = np.reshape(factor, (1,) * (weights.ndim - np.ndim(factor)) + np.shape(factor))
    shared = tuple(i for i, size in enumerate(spread.shape) if size == 1)
    if not weights.size:
        return True
    high = weights.max(axis=shared, keepdims=True)
    low = weights.min(axis=shared, keepdims=True)
    return factors_merge(np.maximum(high, -low), spread)


def terms_merge(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a + b may stand for two terms: it is finite, and not what remains of large terms that cancel."""
    with np.errstate(all="ignore"):
        total, largest = np.abs(a + b), np.maximum(np.abs(a), np.abs(b))
    return bool(np.isfinite(total).all() and ((total * CANCELLED >= largest) | (largest <= SMALL)).all())


def _reach(value: np.ndarray | float) -> int:
    return REACH[value.dtype.itemsize] if isinstance(value, np.ndarray) and value.dtype.itemsize in REACH else REACH[4]


def _within(values: np.ndarray, reach: int) -> bool:
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size:
        return True
    low, high = float(magnitudes.min()), float(magnitudes.max())  # NaN compares false
    return math.ldexp(1.0, -reach) <= low and high <= math.ldexp(1.0, reach)
