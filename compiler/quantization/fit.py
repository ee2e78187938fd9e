"""Fits the weights of one layer to compensate for rounding of its operands and weights.

Given rows of a layer's operands x, as the quantized graph computes them, and of the original model's results y, fit the
weights w and a bias so that the product of *quantized* operands is nearest to y, in three steps:

1. ridge regression, w' = argmin |y - x w'|^2 + r |w' - w|^2, with x and y centred: the bias takes the means;
2. a scale for each output channel, out of a binade (phases of the mantissa), of the smallest weighted rounding error;
3. rounding one input after another, what a rounding loses being spread over the inputs still to be rounded, by the
   inverse of x' x + d (Frantar et al., "GPTQ: accurate post-training quantization", 2022).

The ridge r pulls towards the model's weights, the damping d towards rounding to nearest. Both are chosen for the
smallest error on rows of held-out samples.

The whole is kept only if it wins on these rows against the plan as it was.

Invariant: r and d are chosen on samples that the candidates were not fitted to; with a single sample, nothing is
fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ppuc.compiler.quantization.apply import SMALLEST, by_channel, nearest, quantized_weights, rounded, widened
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan
from ppuc.compiler.quantization.rows import Rows, as_matrices, from_matrices
from ppuc.ir.types import DType

RIDGES = (np.inf, 20.0, 5.0, 1.0, 0.2)
"""Candidates for the ridge r, relative to the mean square of an operand's channel."""
DAMPINGS = (np.inf, 0.3, 0.02)
"""Candidates for the damping d, relative to the mean diagonal of x' x; infinite means rounding to nearest."""
PHASES = 16
HELD = 4
"""Every HELD-th sample is held out."""
LARGEST_SYSTEM = 1024
"""Operands solved for at once: the work is cubic in their number."""
_STEPS = 64


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over `rows` rows of operands x[g, k] and results y[g, n], and of their products."""

    rows: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray) -> Moments:
        """The moments of f32 x[g, rows, k] and y[g, rows, n], in f64 unless k is very large."""
        if x.shape[2] <= _STEPS:  # many groups of few operands, some of which may be nearly constant
            x, y = x.astype(np.float64), y.astype(np.float64)
        transposed = x.swapaxes(1, 2)
        kept = np.float64 if x.shape[2] <= LARGEST_SYSTEM else np.float32
        xx, xy = ((transposed @ other).astype(kept, copy=False) for other in (x, y))
        return Moments(x.shape[1], x.sum(1, dtype=np.float64), y.sum(1, dtype=np.float64), xx, xy)

    def plus(self, other: Moments) -> Moments:
        """The moments of both sets of rows."""
        return Moments(
            self.rows + other.rows, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy
        )

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """The covariances of the operands, [g, k, k], and of operands and results, [g, k, n]."""
        x, y = ((a / self.rows).astype(self.xx.dtype) for a in (self.x, self.y))
        return self.xx / self.rows - x[:, :, None] * x[:, None], self.xy / self.rows - x[:, :, None] * y[:, None]

    def bias(self, w: np.ndarray) -> np.ndarray:
        """f64[g, n]: the mean result minus the mean product with w[g, k, n]."""
        bias: np.ndarray = (self.y - (self.x[:, None] @ w)[:, 0]) / self.rows
        return bias


def fitted_layer(layer: Layer, plan: LayerPlan, rows: Rows) -> LayerPlan:
    """The plan of one layer with weights, scales and bias fitted to `rows`; `plan` itself if what is fitted to the
    other rows does not win on those held out."""
    assert layer.weights is not None
    w = as_matrices(layer, layer.weights.array().astype(np.float64))
    x, y = rows.by_group(plan)
    x_mean, y_mean = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    x, y = x - x_mean, y - y_mean  # keeps sums of f32 products accurate
    held = rows.sample % HELD == HELD - 1
    if not held.any():
        held = rows.sample == rows.sample.max(initial=0)
    x_apart, y_apart = x[:, held], y[:, held]
    everything = Moments.of(x_apart, y_apart)
    ridge, damping = np.inf, np.inf
    if not held.all():
        rest = Moments.of(x[:, ~held], y[:, ~held])
        ridge, damping, error = _strengths(w, rest, x_apart, y_apart, plan.dtype)
        if error >= _unfitted_error(layer, plan, x_apart, x_mean, y_apart + y_mean):
            return plan
        everything = rest.plus(everything)
    gram, moment = everything.covariances()
    fitted = regressed(w, gram, moment, ridge)
    scales = channel_scales(fitted, np.diagonal(gram, 0, 1, 2), plan.dtype)
    stored = compensated(fitted, gram, scales, plan.dtype, damping)
    wide = _widened(stored, scales)
    bias = everything.bias(wide) + y_mean[:, 0] - (x_mean.astype(np.float64) @ wide)[:, 0]
    return replace(
        plan,
        weights=from_matrices(layer, stored),
        weight_scale=scales.reshape(-1),
        bias=bias.astype(np.float32).reshape(-1),
    )


def _unfitted_error(layer: Layer, plan: LayerPlan, x: np.ndarray, x_mean: np.ndarray, y: np.ndarray) -> float:
    """The sum of squared errors of `plan` as it is on centred rows x and results y."""
    stored, scale = quantized_weights(layer, plan)
    weights = widened(stored) * by_channel(scale, layer.channel_axis, stored.ndim)
    found = (x + x_mean) @ as_matrices(layer, weights)
    if plan.bias is not None:
        found = found + plan.bias.reshape(len(found), 1, -1)
    return float(np.square(found - y).sum(dtype=np.float64))


def _strengths(w: np.ndarray, rest: Moments, x: np.ndarray, y: np.ndarray, dtype: DType) -> tuple[float, float, float]:
    """The ridge and the damping with the smallest error on the held-out rows x and y, fitted to the moments `rest`,
    and that error: the sum of squares."""
    gram, moment = rest.covariances()

    def error(candidate: np.ndarray) -> float:
        found = x @ candidate.astype(np.float32) + rest.bias(candidate)[:, None].astype(np.float32)
        return float(np.square(found - y).sum(dtype=np.float64))

    candidates = [regressed(w, gram, moment, ridge) for ridge in RIDGES]
    best = int(np.argmin([error(candidate) for candidate in candidates]))
    fitted = candidates[best]
    scales = channel_scales(fitted, np.diagonal(gram, 0, 1, 2), dtype)
    errors = [error(_widened(compensated(fitted, gram, scales, dtype, d), scales)) for d in DAMPINGS]
    least = int(np.argmin(errors))
    return RIDGES[best], DAMPINGS[least], errors[least]


def _widened(stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide: np.ndarray = widened(stored).astype(np.float64) * scales[:, None]
    return wide


def _trace(gram: np.ndarray) -> np.ndarray:
    """The mean diagonal of each matrix in gram[g, k, k], as [g, 1, 1]; never zero, even for constant operands."""
    mean: np.ndarray = np.diagonal(gram, 0, 1, 2).mean(1)[:, None, None]
    never_zero: np.ndarray = mean + (1e-4 * mean.max() + 1e-30)
    return never_zero


def _blocks(k: int) -> list[slice]:
    """Ranges of operands that are solved for at once."""
    return [slice(start, min(start + LARGEST_SYSTEM, k)) for start in range(0, k, LARGEST_SYSTEM)]


def regressed(w: np.ndarray, gram: np.ndarray, moment: np.ndarray, ridge: float) -> np.ndarray:
    """argmin |y - x v|^2 + r |v - w|^2, from the covariances of x and y, with w f64[g, k, n]; solved block by block
    (one Gauss-Seidel sweep) if there are many operands."""
    if np.isinf(ridge):
        return w
    pull = ridge * _trace(gram)
    fitted = w.copy()
    for part in _blocks(w.shape[1]):
        left = moment[:, part] - gram[:, part] @ fitted.astype(gram.dtype, copy=False)
        fitted[:, part] += np.linalg.solve(gram[:, part, part] + pull * np.eye(left.shape[1]), left)
    return fitted


def channel_scales(w: np.ndarray, importance: np.ndarray, dtype: DType) -> np.ndarray:
    """f32[g, n]: for each column of w[g, k, n], the scale with the smallest rounding error, rows weighted by
    importance[g, k]."""
    largest: np.ndarray = np.abs(w).max(1)
    base = np.maximum(largest / LARGEST[dtype], SMALLEST).astype(np.float32)
    steps = np.arange(PHASES) / PHASES
    factors = np.exp2(steps) if dtype.is_float else 1.0 - 0.5 * steps
    least = np.full(base.shape, np.inf)
    found = base.copy()
    w = w.astype(np.float32)
    for factor in factors.astype(np.float32):
        scale = base * factor
        error = nearest(w / scale[:, None], dtype) * scale[:, None] - w
        total = (importance[:, None] @ np.square(error))[:, 0]
        better = total < least
        least[better], found[better] = total[better], scale[better]
    return found


def compensated(w: np.ndarray, gram: np.ndarray, scale: np.ndarray, dtype: DType, damping: float) -> np.ndarray:
    """w[g, k, n] / scale[g, n] rounded to `dtype` one row after another, in the order of decreasing operands. If there
    are many operands, errors are compensated within each block only."""
    if np.isinf(damping):
        return rounded((w / scale[:, None]).astype(np.float32), dtype)
    added = damping * _trace(gram)
    parts = [
        _compensated(w[:, p], gram[:, p, p] + added * np.eye(w[:, p].shape[1]), scale, dtype)
        for p in _blocks(w.shape[1])
    ]
    return rounded(np.concatenate(parts, 1), dtype)


def _compensated(w: np.ndarray, gram: np.ndarray, scale: np.ndarray, dtype: DType) -> np.ndarray:
    """f32: the rounded weights of one block."""
    groups, k = np.arange(len(w))[:, None], w.shape[1]
    order = np.argsort(-np.diagonal(gram, 0, 1, 2), axis=1, kind="stable")
    ordered = gram[groups[..., None], order[:, :, None], order[:, None, :]]
    upper = np.linalg.cholesky(np.linalg.inv(ordered)).swapaxes(1, 2)
    left = w[groups, order]
    stored = np.zeros(w.shape, np.float32)
    for start in range(0, k, _STEPS):
        stop = min(start + _STEPS, k)
        errors = np.zeros((len(w), stop - start, w.shape[2]))
        for i in range(start, stop):
            stored[:, i] = nearest(left[:, i] / scale, dtype)
            lost = left[:, i] - stored[:, i] * scale
            errors[:, i - start] = lost / upper[:, i, i, None]
            left[:, i + 1 : stop] -= upper[:, i, i + 1 : stop, None] * errors[:, None, i - start]
        left[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    result = np.empty_like(stored)
    result[groups, order] = stored
    return result
