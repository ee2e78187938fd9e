"""Offsets of activations: a floating-point format is most precise near zero, so each channel is stored relative to a
number within its range.

The offsets' contribution to a product is constant and is added to the result in f32. An offset is itself a number of
the format, so that zeros, which are frequent after padding and activations, are stored exactly. (Channel-wise shifting:
Wei et al., "Outlier Suppression+", 2023.)

Invariant: the range of a tensor does not grow, so its planned scale stays valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.quantization.apply import nearest
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan
from ppuc.ir.types import DType

KEPT = 1 << 16
"""Maximum numbers of a tensor that offsets are chosen from."""
QUANTILES = 17
SHARES = (0.125, 0.25, 0.375, 0.5)
"""Candidates: quantiles of a channel, its mean, and fractions of its largest magnitude."""
LEAST_GAIN = 1.05, 1.15
"""Noise of rounding over that with offsets from which they pay: they cost an addition before the layer, and, where the
layer pads, an addition of a whole tensor after it."""


def takes_offsets(layer: Layer, plan: LayerPlan) -> bool:
    """Whether the first operand of `layer` can have offsets: it is stored in a floating-point format with a static
    scale, and its weights are constant, the same for all images or rows."""
    if layer.weights is None or not plan.scales or plan.weights_only or not plan.dtype.is_float:
        return False
    dims = layer.weights.type.dims
    return layer.op.name == "conv" or all(d == 1 for d in dims[:-2])


def padded(layer: Layer) -> bool:
    """Whether the operand is padded with zeros: the offsets' contribution then depends on the position."""
    return layer.op.name == "conv" and any((*layer.op.attrs.low, *layer.op.attrs.high))  # type: ignore[attr-defined]


def best_offset(layer: Layer, plan: LayerPlan, kept: np.ndarray) -> np.ndarray | None:
    """f32[channels]: the offsets of the first operand with the least variance of rounding errors, chosen from its
    subsample `kept` f32[channels, n]; None if they do not reduce the noise enough."""
    scale, dtype = np.float32(plan.scales[0]), plan.input_dtype(0)
    nothing = np.zeros(len(kept), np.float32)
    least = none = _variance(kept, nothing, scale, dtype)
    found = nothing
    for candidate in _candidates(kept):
        offset = nearest(candidate / scale, dtype) * scale
        variance = _variance(kept, offset, scale, dtype)
        better = variance < least
        least, found = np.where(better, variance, least), np.where(better, offset, found)
    pays = none.sum() > LEAST_GAIN[padded(layer)] * least.sum()
    return found.astype(np.float32) if pays else None


def some_numbers(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """f32[channels, n]: a subsample of all samples at regular strides, with channels along `axis`."""
    rows = [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays]
    step = max(1, sum(r.size for r in rows) // KEPT) | 1  # odd: does not alias with the width of an image
    return np.concatenate([r[:, i % step :: step] for i, r in enumerate(rows)], 1).astype(np.float32)


def _candidates(kept: np.ndarray) -> list[np.ndarray]:
    places = np.linspace(0, kept.shape[1] - 1, QUANTILES).round().astype(int)
    ordered = np.sort(kept, 1)
    return [*ordered[:, places].T, kept.mean(1), *(ordered[:, -1] * np.float32(share) for share in SHARES)]


def _variance(kept: np.ndarray, offset: np.ndarray, scale: np.float32, dtype: DType) -> np.ndarray:
    """f64[channels]: the variance of rounding errors of `kept` stored relative to `offset`; infinite where that leaves
    the range."""
    stored = (kept - offset[:, None]) / scale
    error = nearest(stored, dtype) - stored
    inside = np.abs(stored).max(1) <= LARGEST[dtype] * (1 + 1e-6)
    variance: np.ndarray = np.where(inside, error.var(1, dtype=np.float64), np.inf)
    return variance
