"""Helpers for decompositions and importers.

Invariant: every function appends primitive ops only, and takes and returns values of one float dtype unless it says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import CastAttrs, compute_dtype
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs
from ppuc.ir.types import DType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


def widen(b: Builder, x: Value) -> Value:
    """`x` in its compute dtype: f32 for narrower floats."""
    return cast(b, x, compute_dtype(x.type.dtype))


def cast(b: Builder, x: Value, to: DType) -> Value:
    """`x` converted to `to`; `x` itself if it has that type."""
    return x if x.type.dtype is to else b("cast", x, attrs=CastAttrs(to))


def reshape(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """`x` reshaped; `x` itself if it has that shape."""
    return x if x.type.dims == tuple(shape) else b("reshape", x, attrs=ReshapeAttrs(tuple(shape)))


def per_channel(b: Builder, x: Value, rank: int) -> Value:
    """`x`[C] as [1, C, 1, ...] of `rank` dimensions."""
    return reshape(b, x, (1, x.type.dims[0], *(1,) * (rank - 2)))


def reduce(b: Builder, kind: str, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """`x` reduced over non-negative `axes`."""
    return b("reduce", x, attrs=ReduceAttrs(kind, tuple(sorted(axes)), keepdims))


def mean(b: Builder, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """The arithmetic mean of float `x` over non-negative `axes`; NaN over no elements."""
    count = math.prod(x.type.dims[a] for a in axes)
    factor = 1.0 / count if count else math.nan
    return b("mul", reduce(b, "sum", x, axes, keepdims), b.scalar(factor, x.type.dtype))


def moments(b: Builder, x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value, Value]:
    """(mean, x - mean, 1 / sqrt(variance + epsilon)) of float `x` over `axes`, which the statistics keep as size 1."""
    center = mean(b, x, axes)
    centered = b("sub", x, center)
    variance = mean(b, b("mul", centered, centered), axes)
    return center, centered, b("rsqrt", b("add", variance, b.scalar(epsilon, x.type.dtype)))


def softmax(b: Builder, x: Value, axis: int) -> Value:
    """e**(x - max) / sum of the same along non-negative `axis`, of float `x`."""
    shifted = b("sub", x, reduce(b, "max", x, (axis,)))
    weights = b("exp", shifted)
    return b("div", weights, reduce(b, "sum", weights, (axis,)))


def softmax_array(x: np.ndarray, axis: int) -> np.ndarray:
    """The array version of `softmax`, for f32 or f64; sums in f64."""
    with np.errstate(all="ignore"):
        weights = np.exp(x - np.max(x, axis, keepdims=True, initial=-np.inf))
        return np.asarray(weights / np.sum(weights, axis, keepdims=True, dtype=np.float64).astype(x.dtype))
