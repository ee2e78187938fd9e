"""A layer's product in matrix form: rows of operands, one weight matrix per group, rows of results.

Invariant: rows of operands and of results correspond, and for equal shapes are taken at the same positions of every
sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.compiler.quantization.apply import nearest
from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.quantization.plan import LARGEST, LayerPlan

MOST = 4096
"""Rows sampled per layer, over all samples."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`operands` f32[rows, groups, k] before quantization, `largest` f32[rows] the largest magnitude under the same
    run-time scale, `results` f32[rows, groups, n], `sample` i64[rows] the index of the sample."""

    operands: np.ndarray
    largest: np.ndarray
    results: np.ndarray
    sample: np.ndarray

    def by_group(self, plan: LayerPlan) -> tuple[np.ndarray, np.ndarray]:
        """Operands rounded according to `plan`, f32[groups, rows, k], and results, f32[groups, rows, n]."""
        x = self.operands
        if not plan.weights_only:
            dtype = plan.input_dtype(0)
            if plan.scales:
                scale: Any = np.float32(plan.scales[0])
            else:
                scale = np.maximum(self.largest / np.float32(LARGEST[dtype]), 1e-30)[:, None, None]
            offset: Any = 0.0
            if plan.offset is not None:
                groups = x.shape[1]
                offset = np.repeat(plan.offset.reshape(groups, -1), x.shape[2] * groups // plan.offset.size, 1)
            x = nearest((x - offset) / scale, dtype) * scale + offset
        return np.ascontiguousarray(x.swapaxes(0, 1), np.float32), np.ascontiguousarray(self.results.swapaxes(0, 1))


def sampled_rows(layer: Layer, tensors: Mapping[str, Sequence[np.ndarray]], results: Sequence[np.ndarray]) -> Rows:
    """Rows of the layer's operand in `tensors` (value name -> one array per sample) and of its `results`."""
    inputs = tensors[layer.inputs[0].name]
    take = _conv_rows if layer.op.name == "conv" else _matmul_rows
    share = max(1, MOST // len(inputs))
    parts = [take(layer, x, y, share, i) for i, (x, y) in enumerate(zip(inputs, results, strict=True))]
    operands, largest, wanted = (np.concatenate([p[j] for p in parts]) for j in range(3))
    return Rows(operands, largest, wanted, np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts]))


def _places(count: int, share: int, seed: int) -> np.ndarray:
    if count <= share:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).choice(count, share, replace=False))


def _matmul_rows(layer: Layer, x: np.ndarray, y: np.ndarray, share: int, seed: int) -> tuple[np.ndarray, ...]:
    attrs: Any = layer.op.attrs
    x = np.swapaxes(x, -1, -2) if attrs.transpose_a else x
    x = np.broadcast_to(x, (*y.shape[:-1], x.shape[-1])).reshape(-1, x.shape[-1])
    rows = _places(len(x), share, seed)
    x = np.ascontiguousarray(x[rows], np.float32)
    return x[:, None], np.abs(x).max(1, initial=0.0), y.reshape(-1, y.shape[-1])[rows][:, None]


def _conv_rows(layer: Layer, x: np.ndarray, y: np.ndarray, share: int, seed: int) -> tuple[np.ndarray, ...]:
    attrs: Any = layer.op.attrs
    assert layer.weights is not None
    kernel, groups = layer.weights.type.dims[2:], layer.groups
    edges = ((0, 0), (0, 0), *zip(attrs.low, attrs.high, strict=True))
    padded = np.pad(x, edges) if any(a or b for a, b in edges) else np.ascontiguousarray(x)
    batch = x.shape[0]
    places = _places(batch * int(np.prod(y.shape[2:])), share, seed)
    n, *at = np.unravel_index(places, (batch, *y.shape[2:]))
    taps = np.indices(kernel).reshape(len(kernel), -1)
    index = [
        (a * s)[:, None] + t[None] * d for a, s, t, d in zip(at, attrs.strides, taps, attrs.dilations, strict=True)
    ]
    where: tuple[Any, ...] = (n[:, None], slice(None), *index)
    found = np.moveaxis(padded[where], 2, 1)  # rows, channels, taps
    operands = found.reshape(len(places), groups, -1)
    where = (n, slice(None), *at)
    results = y[where].reshape(len(places), groups, -1)
    largest = np.abs(x).reshape(batch, -1).max(1)[n]
    return operands, largest, results


def as_matrices(layer: Layer, weights: np.ndarray) -> np.ndarray:
    """The layer's weights reshaped to [groups, k, n]."""
    if layer.op.name == "conv":
        groups = layer.groups
        outputs = weights.shape[0] // groups
        return np.ascontiguousarray(weights.reshape(groups, outputs, -1).transpose(0, 2, 1))
    matrix = weights.reshape(weights.shape[-2:])
    return np.ascontiguousarray(matrix.T if layer.op.attrs.transpose_b else matrix)[None]  # type: ignore[attr-defined]


def from_matrices(layer: Layer, matrices: np.ndarray) -> np.ndarray:
    """Matrices [groups, k, n] in the shape of the layer's weights."""
    assert layer.weights is not None
    dims = layer.weights.type.dims
    if layer.op.name == "conv":
        return np.ascontiguousarray(matrices.transpose(0, 2, 1)).reshape(dims)
    matrix = matrices[0].T if layer.op.attrs.transpose_b else matrices[0]  # type: ignore[attr-defined]
    return np.ascontiguousarray(matrix).reshape(dims)
