"""Offsets of activations: a floating-point format is finest around zero, so numbers are best stored as what they differ
from a number of their channel that lies among them.

What the offsets contribute to a product is constant, and is added to the result in f32. An offset is itself a number
of the format, so a zero, which padding and activations bring in masses, is stored exactly. (Channel-wise shifting: Wei
et al., "Outlier Suppression+", 2023.)

Invariant: the range of a tensor does not grow, so the scale that was planned for it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.quantization.apply import nearest
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan
from ppuc.ir.types import DType

KEPT = 1 << 16
"""Numbers of a tensor that decide."""
QUANTILES = 17
SHARES = (0.125, 0.25, 0.375, 0.5)
"""Candidates: quantiles of a channel, its mean, and shares of its largest number."""
LEAST_GAIN = 1.05, 1.15
"""Noise of rounding over that with offsets from which they pay: they cost an addition before the layer, and, where the
layer pads, an addition of a whole tensor after it."""


def takes_offsets(layer: Layer, plan: LayerPlan) -> bool:
    """Whether the first operand of `layer` may have them: it is stored in a floating-point format with a static scale,
    and what it meets is constant, the same for all images or rows."""
    if layer.weights is None or not plan.scales or plan.weights_only or not plan.dtype.is_float:
        return False
    dims = layer.weights.type.dims
    return layer.op.name == "conv" or all(d == 1 for d in dims[:-2])


def padded(layer: Layer) -> bool:
    """Whether zeros are added around the operand: then what offsets contribute depends on the place."""
    return layer.op.name == "conv" and any((*layer.op.attrs.low, *layer.op.attrs.high))  # type: ignore[attr-defined]


def best_offset(layer: Layer, plan: LayerPlan, kept: np.ndarray) -> np.ndarray | None:
    """f32[channels] for the first operand, of which `kept` f32[channels, n] are numbers: of each channel that with the
    least variance of rounding errors; None where they do not pay."""
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
    """f32[channels, n]: numbers of all samples at even strides, channels along `axis`."""
    rows = [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays]
    step = max(1, sum(r.size for r in rows) // KEPT) | 1  # odd: it does not fall in with the width of an image
    return np.concatenate([r[:, i % step :: step] for i, r in enumerate(rows)], 1).astype(np.float32)


def _candidates(kept: np.ndarray) -> list[np.ndarray]:
    places = np.linspace(0, kept.shape[1] - 1, QUANTILES).round().astype(int)
    ordered = np.sort(kept, 1)
    return [*ordered[:, places].T, kept.mean(1), *(ordered[:, -1] * np.float32(share) for share in SHARES)]


def _variance(kept: np.ndarray, offset: np.ndarray, scale: np.float32, dtype: DType) -> np.ndarray:
    """f64[channels] of what storing `kept` relative to `offset` loses; infinite where it leaves the range."""
    stored = (kept - offset[:, None]) / scale
    error = nearest(stored, dtype) - stored
    inside = np.abs(stored).max(1) <= LARGEST[dtype] * (1 + 1e-6)
    variance: np.ndarray = np.where(inside, error.var(1, dtype=np.float64), np.inf)
    return variance
