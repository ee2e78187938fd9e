"""Input coordinates, nearest indices and interpolation weights of resized axes, in numpy.

Coordinates are computed in f32 and in the order of operations that ONNX Runtime uses: nearest indices depend on how `(x
+ 0.5) / scale - 0.5` rounds. Formulas: ONNX operator specification, Resize-19. Invariant: every row of a weight matrix
sums to 1, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_F32 = np.float32
_HALF = _F32(0.5)
_TIE = 1e-6
"""Coordinates this close to a half count as halves rounded by f32, as in ONNX Runtime since its issue 28291."""


@dataclass(frozen=True, slots=True)
class ResizedAxis:
    """One axis: `size` elements become `result`; `start`/`end` are the region of interest, normalised to [0, 1]."""

    size: int
    result: int
    scale: float
    start: float
    end: float

    @property
    def positions(self) -> np.ndarray:
        """0, 1, ... result - 1 as f32."""
        return np.arange(self.result, dtype=_F32)


def _half_pixel(axis: ResizedAxis) -> np.ndarray:
    return (axis.positions + _HALF) / _F32(axis.scale) - _HALF


def _half_pixel_symmetric(axis: ResizedAxis) -> np.ndarray:
    """Half pixel with the input's centre on the result's centre; the last sum is in f64, as in ONNX Runtime."""
    adjustment = _F32(axis.result) / (_F32(axis.scale) * _F32(axis.size))
    offset = _F32(axis.size) / _F32(2) * (_F32(1) - adjustment)
    pixels = (np.arange(axis.result) + 0.5) / np.float64(_F32(axis.scale)) - 0.5
    return (np.float64(offset) + pixels).astype(_F32)


def _pytorch_half_pixel(axis: ResizedAxis) -> np.ndarray:
    return _half_pixel(axis) if axis.result > 1 else np.zeros(1, _F32)


def _align_corners(axis: ResizedAxis) -> np.ndarray:
    if axis.result == 1:
        return np.zeros(1, _F32)
    return axis.positions * _F32(axis.size - 1) / _F32(axis.result - 1)


def _tf_crop_and_resize(axis: ResizedAxis) -> np.ndarray:
    start, end, last = _F32(axis.start), _F32(axis.end), _F32(axis.size - 1)
    if axis.result == 1:
        return np.full(1, _HALF * (start + end) * last, _F32)
    return start * last + axis.positions * (end - start) * last / _F32(axis.result - 1)


COORDINATES: dict[str, Callable[[ResizedAxis], np.ndarray]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda axis: axis.positions / _F32(axis.scale),
    "tf_half_pixel_for_nn": lambda axis: (axis.positions + _HALF) / _F32(axis.scale),
    "tf_crop_and_resize": _tf_crop_and_resize,
}
"""coordinate_transformation_mode -> input coordinates f32[result]."""

NEAREST: dict[str, Callable[[np.ndarray, bool], np.ndarray]] = {
    "round_prefer_floor": lambda x, shrinks: np.ceil(x.astype(np.float64) - 0.5 - _TIE),
    "round_prefer_ceil": lambda x, shrinks: np.floor(x.astype(np.float64) + 0.5 + _TIE),
    "floor": lambda x, shrinks: np.floor(x),
    "ceil": lambda x, shrinks: np.ceil(x),
    "simple": lambda x, shrinks: np.ceil(x) if shrinks else np.trunc(x),
}
"""nearest_mode -> rounding of coordinates f32[result]; "simple" is the rounding of opsets before 11."""


def coordinates(axis: ResizedAxis, mode: str) -> np.ndarray:
    """Input coordinates f32[result]."""
    return COORDINATES[mode](axis)


def outside(axis: ResizedAxis, mode: str) -> np.ndarray:
    """bool[result]: whether coordinates are outside the input."""
    x = coordinates(axis, mode)
    return (x < 0) | (x > axis.size - 1)


def nearest_indices(axis: ResizedAxis, mode: str, rounding: str) -> np.ndarray:
    """i64[result]: the index of the input element that each result element copies."""
    rounded: np.ndarray = NEAREST[rounding](coordinates(axis, mode), axis.scale < 1)
    inside: np.ndarray = np.clip(rounded, 0, axis.size - 1)
    return inside.astype(np.int64)


def _triangle(distance: np.ndarray, a: float) -> np.ndarray:
    """Linear interpolation's kernel; support [-1, 1]."""
    falling: np.ndarray = np.maximum(0, 1 - np.abs(distance))
    return falling


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter `a`; support [-2, 2]."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def weights(
    axis: ResizedAxis, mode: str, interpolation: str, *, a: float, exclude_outside: bool, antialias: bool
) -> np.ndarray:
    """f64[result, size]: result = weights @ input for "linear" or "cubic" `interpolation`.

    Taps outside the input read its edge, or with `exclude_outside` are dropped and the others renormalised. `antialias`
    stretches the kernel over 1 / scale elements where the axis shrinks.
    """
    kernel, radius = (_triangle, 1) if interpolation == "linear" else (_cubic, 2)
    x = coordinates(axis, mode).astype(np.float64)
    stretch = 1 / axis.scale if antialias and axis.scale < 1 else 1.0
    if interpolation == "linear" and not antialias:
        x = np.clip(x, 0, axis.size - 1)
    reach = int(np.ceil(radius * stretch)) + 1
    taps = np.floor(x).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    factors = kernel((taps - x[:, None]) / stretch, a)
    if exclude_outside:
        factors = np.where((taps >= 0) & (taps < axis.size), factors, 0)
    total = factors.sum(axis=1, keepdims=True)
    factors = factors / np.where(total == 0, 1, total)
    matrix = np.zeros((axis.result, axis.size))
    np.add.at(matrix, (np.arange(axis.result)[:, None], np.clip(taps, 0, axis.size - 1)), factors)
    return matrix
