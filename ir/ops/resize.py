"""Resampling of a tensor's axes, and its decomposition: copies for nearest, one matmul per axis for linear and cubic.

Interpolation is separable and its weights depend on sizes only, so each resized axis is a product with a constant
matrix. Invariant: the reference and the decomposition take indices and matrices from the same functions of
`ppuc.ir.ops.interpolation`, in the same order of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.interpolation import COORDINATES, NEAREST, ResizedAxis, nearest_indices, outside, weights
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class ResizeAttrs(Attrs):
    """`sizes`: the whole result shape. `scales`: result / input, one per axis (as given: sizes need not be exact
    multiples). `mode` "nearest", "linear" or "cubic" (`cubic_a`). `coordinates`, `nearest`: ONNX's names of
    transformation and rounding modes. `roi`: starts, then ends, of all axes, or empty. `extrapolation`: the value
    outside the input."""

    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0
    antialias: bool = False
    roi: tuple[float, ...] = ()


def _infer(attrs: ResizeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (x,) = types
    for what, got, allowed in (
        ("mode", attrs.mode, ("nearest", "linear", "cubic")),
        ("coordinates", attrs.coordinates, tuple(COORDINATES)),
        ("nearest", attrs.nearest, tuple(NEAREST)),
    ):
        if got not in allowed:
            raise ValueError(f"resize {what} is one of {', '.join(allowed)}, not {got}")
    if len(attrs.sizes) != x.rank or len(attrs.scales) != x.rank or len(attrs.roi) not in (0, 2 * x.rank):
        raise ValueError(f"resize of {x} needs {x.rank} sizes and scales and no or {2 * x.rank} roi entries")
    if min(attrs.scales, default=1) <= 0 or min(attrs.sizes, default=1) < 1 or 0 in x.dims:
        raise ValueError(f"resize of {x} to {list(attrs.sizes)} by {list(attrs.scales)} is empty")
    if attrs.mode != "nearest" and x.dtype is DType.BOOL:
        raise ValueError("bool cannot be interpolated")
    return (TensorType(x.dtype, attrs.sizes),)


def _axes(attrs: ResizeAttrs, shape: Sequence[int]) -> list[tuple[int, ResizedAxis]]:
    """The axes that change, most shrinking first, so that later products are smaller. Axes of scale 1 do not change,
    even with a region of interest: ONNX Runtime copies them."""
    rank = len(shape)
    roi = attrs.roi or (0.0,) * rank + (1.0,) * rank
    axes = [
        (i, ResizedAxis(shape[i], attrs.sizes[i], attrs.scales[i], roi[i], roi[rank + i]))
        for i in range(rank)
        if attrs.sizes[i] != shape[i] or attrs.scales[i] != 1
    ]
    return sorted(axes, key=lambda pair: pair[1].result / pair[1].size)


def _indices(attrs: ResizeAttrs, axis: ResizedAxis) -> np.ndarray:
    return nearest_indices(axis, attrs.coordinates, attrs.nearest)


def _matrix(attrs: ResizeAttrs, axis: ResizedAxis, dtype: np.dtype) -> np.ndarray:
    """[result, size] interpolation weights."""
    return weights(
        axis,
        attrs.coordinates,
        attrs.mode,
        a=attrs.cubic_a,
        exclude_outside=attrs.exclude_outside,
        antialias=attrs.antialias,
    ).astype(dtype)


def _outside(attrs: ResizeAttrs, axes: Sequence[tuple[int, ResizedAxis]]) -> np.ndarray | None:
    """bool mask, broadcastable to the result, of elements that take the extrapolation value; None if there are none."""
    if attrs.coordinates != "tf_crop_and_resize":
        return None
    mask = np.zeros((1,) * len(attrs.sizes), np.bool_)
    for i, axis in axes:
        shape = [1] * len(attrs.sizes)
        shape[i] = axis.result
        mask = mask | outside(axis, attrs.coordinates).reshape(shape)
    return mask if mask.any() else None


def _compute_dtype(dtype: DType) -> DType:
    """Interpolation runs in f32, in f64 only for f64."""
    return DType.F64 if dtype is DType.F64 else DType.F32


def _reference(attrs: ResizeAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    axes = _axes(attrs, x.shape)
    compute = _compute_dtype(DType.of(x.dtype)).numpy
    y = x if attrs.mode == "nearest" else x.astype(compute)
    for i, axis in axes:
        if attrs.mode == "nearest":
            y = np.take(y, _indices(attrs, axis), axis=i)
        else:
            y = np.moveaxis(np.matmul(np.moveaxis(y, i, -1), _matrix(attrs, axis, compute).T), -1, i)
    mask = _outside(attrs, axes)
    if mask is not None:
        y = np.where(mask, np.asarray(attrs.extrapolation).astype(y.dtype), y)
    return (np.ascontiguousarray(y.astype(x.dtype)),)


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs: ResizeAttrs = op.attrs  # type: ignore[assignment]
    (x,) = op.operands
    axes = _axes(attrs, x.type.dims)
    compute = x.type.dtype if attrs.mode == "nearest" else _compute_dtype(x.type.dtype)
    y = x if compute is x.type.dtype else b("cast", x, attrs=CastAttrs(compute))
    if attrs.mode == "nearest":
        y = _copy(b, attrs, axes, y)
    elif axes and min(i for i, _ in axes) >= 2 and x.type.dims[1] >= CHANNELS:
        y = _channels_last(b, attrs, axes, y)
    else:
        y = _interpolate(b, attrs, axes, y)
    mask = _outside(attrs, axes)
    if mask is not None:
        y = b("select", b.const(mask, "outside"), b.scalar(attrs.extrapolation, compute), y)
    return (y if compute is x.type.dtype else b("cast", y, attrs=CastAttrs(x.type.dtype)),)


CHANNELS = 16
"""Least channels of an image that is interpolated channels last: rows of 32 bytes in 16-bit formats."""


def _channels_last(b: Builder, attrs: ResizeAttrs, axes: Sequence[tuple[int, ResizedAxis]], x: Value) -> Value:
    """Interpolation of an image stored channels last, as convolutions store it: `after` then ends in its channels, so
    that the products read and write long rows."""
    rank = x.type.rank
    last = (0, *range(2, rank), 1)
    moved = b("transpose", x, attrs=TransposeAttrs(last))
    moved = _interpolate(b, attrs, [(i - 1, axis) for i, axis in axes], moved)
    return b("transpose", moved, attrs=TransposeAttrs((0, rank - 1, *range(1, rank - 1))))


def _interpolate(b: Builder, attrs: ResizeAttrs, axes: Sequence[tuple[int, ResizedAxis]], x: Value) -> Value:
    """One matmul with a constant per axis, over x[before, size, after]; the last axis is reduced as x[before, size]."""
    for i, axis in axes:
        shape = x.type.dims
        before, after = math.prod(shape[:i]), math.prod(shape[i + 1 :])
        matrix = b.const(_matrix(attrs, axis, x.type.dtype.numpy), "weights")
        if after == 1:
            flat = b("reshape", x, attrs=ReshapeAttrs((before, axis.size)))
            product = b("matmul", flat, matrix, attrs=MatmulAttrs(transpose_b=True))
        else:
            flat = b("reshape", x, attrs=ReshapeAttrs((before, axis.size, after)))
            product = b("matmul", matrix, flat, attrs=MatmulAttrs())
        x = b("reshape", product, attrs=ReshapeAttrs((*shape[:i], axis.result, *shape[i + 1 :])))
    return x


def _copy(b: Builder, attrs: ResizeAttrs, axes: Sequence[tuple[int, ResizedAxis]], x: Value) -> Value:
    """Nearest: evenly spaced indices are a slice, evenly repeated ones a broadcast, any other a gather."""
    repeats = [1] * x.type.rank
    for i, axis in axes:
        indices = _indices(attrs, axis)
        times = axis.result // axis.size
        if times and np.array_equal(indices, np.repeat(np.arange(axis.size), times)):
            repeats[i] = times
            continue
        step = int(indices[1] - indices[0]) if axis.result > 1 else 1
        if step > 0 and np.array_equal(indices, indices[0] + step * np.arange(axis.result)):
            x = _slice_axis(b, x, i, int(indices[0]), axis.result, step)
        else:
            x = b("gather", x, b.const(indices, "indices"), attrs=GatherAttrs(i))
    return _repeat(b, x, repeats)


def _slice_axis(b: Builder, x: Value, axis: int, start: int, size: int, step: int) -> Value:
    starts, sizes, steps = [0] * x.type.rank, list(x.type.dims), [1] * x.type.rank
    starts[axis], sizes[axis], steps[axis] = start, size, step
    return b("slice", x, attrs=SliceAttrs(tuple(starts), tuple(sizes), tuple(steps)))


def _repeat(b: Builder, x: Value, repeats: Sequence[int]) -> Value:
    """Repeat every element of axis i `repeats[i]` times consecutively."""
    if max(repeats, default=1) == 1:
        return x
    split: list[int] = []
    wide: list[int] = []
    for size, times in zip(x.type.dims, repeats, strict=True):
        split += [size, 1] if times > 1 else [size]
        wide += [size, times] if times > 1 else [size]
    sizes = tuple(size * times for size, times in zip(x.type.dims, repeats, strict=True))
    spread = b("expand", b("reshape", x, attrs=ReshapeAttrs(tuple(split))), attrs=ExpandAttrs(tuple(wide)))
    return b("reshape", spread, attrs=ReshapeAttrs(sizes))


register(
    OpDef(
        name="resize",
        formula="result[y] = sum over taps t of weight(y, t) * x[t], separately along every axis",
        kind=Kind.COMPOSITE,
        operands="x",
        attrs=ResizeAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
