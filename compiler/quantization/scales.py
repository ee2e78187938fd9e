"""Chooses scales of activations from observations.

A scale is the real value of a stored 1. `max` maps the largest magnitude observed to the largest number of the format,
`percentile` a high percentile of the magnitudes; `mse` takes the scale with the smallest mean square error, `entropy`
the clipping threshold with the smallest loss of information (Migacz, "8-bit inference with TensorRT", 2017).

Headroom multiplies the range of a floating-point format. Its precision is relative, so headroom costs precision only
for subnormal numbers, and avoids clipping numbers larger than those observed.
"""

from __future__ import annotations

import math

import numpy as np

from ppuc.compiler.quantization.apply import SMALLEST, nearest
from ppuc.compiler.quantization.observe import Observation
from ppuc.compiler.quantization.plan import LARGEST
from ppuc.ir.types import DType

PERCENTILE = 99.99
_STEPS = 33
"""Candidates in a search over three binades."""
_BINS = 2048


def activation_scale(
    seen: Observation,
    dtype: DType,
    method: str = "max",
    headroom: float = 1.0,
    power_of_two: bool = False,
) -> float:
    """The scale of a tensor for `dtype` by `method`: max, percentile, mse or entropy."""
    largest = seen.high if dtype is DType.U8 else seen.largest
    top = LARGEST[dtype]
    if method == "percentile":
        largest = min(largest, float(np.percentile(np.abs(seen.kept), PERCENTILE)))
    scale = max(largest / top, SMALLEST)
    if method == "mse":
        scale = best_scale(seen, dtype, scale * np.exp2(-np.arange(_STEPS) * 3 / (_STEPS - 1)))
    elif method == "entropy":
        scale = _entropy_threshold(np.abs(seen.kept).reshape(-1), largest) / top
    if not dtype.is_integer and method != "mse":
        scale *= headroom
    if power_of_two:
        scale = 2.0 ** math.ceil(math.log2(scale))
    return float(np.float32(max(scale, SMALLEST)))


def best_scale(seen: Observation, dtype: DType, candidates: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The candidate with the smallest mean square rounding error of the kept numbers, channels weighted by f32[c]."""
    errors = [rounding_error(seen.kept, float(s), dtype, weights) for s in candidates]
    return float(candidates[int(np.argmin(errors))])


def rounding_error(kept: np.ndarray, scale: float, dtype: DType, weights: np.ndarray | None = None) -> float:
    """The weighted sum over channels of the mean square rounding error of `kept` f32[c, n] in `dtype`."""
    error = nearest(kept * np.float32(1 / scale), dtype) * np.float32(scale) - kept
    per_channel = np.square(error, dtype=np.float64).mean(1)
    return float(per_channel.sum() if weights is None else per_channel @ weights)


def _entropy_threshold(magnitudes: np.ndarray, largest: float) -> float:
    """The clipping threshold with the smallest divergence between the histogram and its quantization to 128 levels."""
    counts, edges = np.histogram(magnitudes, _BINS, (0.0, max(largest, SMALLEST)))
    best, found = math.inf, _BINS
    for stop in range(128, _BINS + 1, 16):
        p = counts[:stop].astype(np.float64)
        p[-1] += counts[stop:].sum()
        level = np.arange(stop) * 128 // stop
        sums = np.bincount(level, counts[:stop], 128)
        filled = np.bincount(level, counts[:stop] > 0, 128)
        q = np.where(counts[:stop] > 0, (sums / np.maximum(filled, 1))[level], 0.0)
        both = (p > 0) & (q > 0)
        if not both.any() or not q.sum():
            continue
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p[both] * np.log(p[both] / q[both])).sum()) + float(p[~both].sum())
        if divergence < best:
            best, found = divergence, stop
    return float(edges[found])
