"""Predicts the noise of a format in a layer from the marginal statistics of its operands.

The noise of a product is, summed over input channels: (mean square rounding error of the activation) x (sum of squares
of its weights) + (mean square of the activation) x (sum of squares of those weights' rounding errors). Errors of
different elements are assumed independent. This suffices to choose between two formats for a layer; the effect of a
layer's noise on the model's outputs is measured instead.

Invariant: noise is relative to the same sum over the products themselves, so that layers are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ppuc.compiler.options import Calibration
from ppuc.compiler.quantization.apply import by_channel, nearest, quantized_weights, widened
from ppuc.compiler.quantization.calibrate import layer_plan
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.observe import Observation
from ppuc.compiler.quantization.offsets import best_offset, takes_offsets
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan, Plan


def expected_noise(layer: Layer, plan: LayerPlan, seen: Mapping[str, Observation]) -> float:
    """The predicted noise over signal of the layer's result."""
    x, x_error = _power(seen[layer.inputs[0].name], plan, 0)
    if layer.weights is None:
        y, y_error = _power(seen[layer.inputs[1].name], plan, 1)
        return float((x_error.mean() * y.mean() + x.mean() * y_error.mean()) / max(x.mean() * y.mean(), 1e-300))
    wide = layer.weights.array().astype(np.float32)
    stored, scale = quantized_weights(layer, plan)
    shape = by_channel(scale, layer.channel_axis, wide.ndim)
    error = widened(stored) * shape - wide
    w, w_error = (_by_input(layer, np.square(a, dtype=np.float64)) for a in (wide, error))
    if w.shape != x.shape:  # the channels are not along the summed axis
        w, w_error, x, x_error = (np.array([a.mean()]) for a in (w, w_error, x, x_error))
    return float((x_error @ w + x @ w_error) / max(float(x @ w), 1e-300))


def _power(seen: Observation, plan: LayerPlan, operand: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares by channel of an operand and of its rounding errors, less the mean error, which a bias can
    absorb."""
    scale, kept = np.float32(plan.scales[operand]), seen.kept
    if plan.offset is not None and operand == 0:
        kept = kept - plan.offset[:, None]
    error = nearest(kept / scale, plan.input_dtype(operand)) * scale - kept
    power = np.square(seen.kept, dtype=np.float64).mean(1)
    return power, error.var(1, dtype=np.float64)


def _by_input(layer: Layer, squares: np.ndarray) -> np.ndarray:
    """Sums, by input channel, over the weights that it is multiplied with."""
    if layer.op.name != "conv":
        total: np.ndarray = squares.sum(layer.channel_axis)
        return total.reshape(-1)
    groups, (outputs, inputs) = layer.groups, squares.shape[:2]
    apart: np.ndarray = squares.reshape(groups, outputs // groups, inputs, -1).sum((1, 3))
    return apart.reshape(-1)


def clipped_share(layer: Layer, plan: LayerPlan, seen: Mapping[str, Observation]) -> float:
    """The share of observed activations beyond the largest number of the format."""
    if not plan.scales or plan.weights_only:
        return 0.0
    shares = []
    for i, value in enumerate(layer.inputs):
        kept, top = seen[value.name].kept, LARGEST[plan.input_dtype(i)] * plan.scales[i]
        if plan.offset is not None and i == 0 and len(plan.offset) == len(kept):
            kept = kept - plan.offset[:, None]
        shares.append(float((np.abs(kept) > top * (1 + 1e-6)).mean()))
    return max(shares)


def best_formats(
    layers: Sequence[Layer], seen: Mapping[str, Observation], formats: Sequence[str], how: Calibration
) -> Plan:
    """A plan with every layer in the one of `formats` with the least predicted noise, with offsets where they reduce
    it. A layer without static scales takes the first format that supports it, or bf16."""
    found = {}
    for layer in layers:
        plans = [with_offset(layer, layer_plan(layer, seen, format, how), seen) for format in formats]
        taken = [plan for plan in plans if plan.quantized]
        known = [plan for plan in taken if plan.scales]
        best = min(known, key=lambda plan: expected_noise(layer, plan, seen)) if known else None
        found[layer.name] = best or next(iter(taken), LayerPlan("bf16"))
    return Plan(found)


def with_offset(layer: Layer, plan: LayerPlan, seen: Mapping[str, Observation]) -> LayerPlan:
    """`plan` with the best offset for its activation, if the channels were observed."""
    own = seen[layer.inputs[0].name]
    if not takes_offsets(layer, plan) or own.axis != layer.input_axis:
        return plan
    return replace(plan, offset=best_offset(layer, plan, own.kept))
