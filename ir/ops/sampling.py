"""Sampling an image at computed positions: grid_sample.

Reference and decomposition share f32 formulas for positions and weights; pixels are rows of channels that are gathered,
weighted and summed. Conventions are those of the ONNX operator GridSample-22 as ONNX Runtime computes it: positions
beyond the image are clamped or mirrored before taps are chosen; for cubic, the taps themselves are.

Invariant: a pixel outside the image is never read; with padding "zeros" it has weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.elementwise import FLOATS, compute_dtype, convert
from ppuc.ir.ops.gates import Algebra, OnArrays, OnValues
from ppuc.ir.ops.taps import (
    Tap,
    clamp,
    cubic_taps,
    linear_taps,
    reflect,
    sum_of_rows,
    sum_of_rows_array,
    zero_outside,
)
from ppuc.ir.ops.view import SliceAttrs, TransposeAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder

MODES = ("nearest", "linear", "cubic")
PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True, slots=True)
class GridSampleAttrs(Attrs):
    """`mode` is one of MODES, `padding` one of PADDINGS. Positions -1 and 1 are the centres of the corner pixels with
    `align_corners`, else their outer edges."""

    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False


def _infer(attrs: GridSampleAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, grid = types
    if attrs.mode not in MODES or attrs.padding not in PADDINGS:
        raise ValueError(f"grid_sample has no mode '{attrs.mode}' with padding '{attrs.padding}'")
    if x.dtype not in FLOATS or grid.dtype not in FLOATS:
        raise ValueError(f"grid_sample needs float tensors (got {x} and {grid})")
    rank = x.rank - 2
    if rank < 1 or grid.rank != x.rank or grid.dims[-1] != rank or grid.dims[0] != x.dims[0]:
        raise ValueError(f"x[N, C, *S] and grid[N, *S', number of axes in S] do not fit (got {x} and {grid})")
    if not math.prod(x.dims[2:]):
        raise ValueError(f"grid_sample has no pixels to sample from (got {x})")
    return (TensorType(x.dtype, (*x.dims[:2], *grid.dims[1:-1])),)


def _positions(a: Algebra, attrs: GridSampleAttrs, coordinates: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Pixel positions along each axis; except for cubic, those beyond the image are mapped into it as the padding mode
    says."""
    found = []
    for coordinate, size in zip(coordinates, sizes, strict=True):
        moved = a("add", coordinate, 1.0)
        if attrs.align_corners:
            position = a("mul", a("mul", moved, 0.5), float(size - 1))
        else:
            position = a("mul", a("sub", a("mul", moved, float(size)), 1.0), 0.5)
        found.append(a("round", position) if attrs.mode == "nearest" else position)
    if attrs.padding == "zeros" or attrs.mode == "cubic":
        return found
    if attrs.padding == "border":
        return [clamp(a, p, 0.0, float(size - 1)) for p, size in zip(found, sizes, strict=True)]
    return [reflect(a, p, *_edges(attrs, size)) for p, size in zip(found, sizes, strict=True)]


def _edges(attrs: GridSampleAttrs, size: int) -> tuple[float, float]:
    """The ends of an axis: the centres of its outermost pixels or their outer edges."""
    return (0.0, float(size - 1)) if attrs.align_corners else (-0.5, size - 0.5)


def _taps(a: Algebra, attrs: GridSampleAttrs, position: Any, size: int) -> list[Tap]:
    if attrs.mode == "nearest":
        taps = [Tap(position)]
    else:
        taps = linear_taps(a, position) if attrs.mode == "linear" else cubic_taps(a, position)
    if attrs.padding == "zeros":
        return [zero_outside(a, tap, size) for tap in taps]
    if attrs.padding == "reflection" and attrs.mode == "cubic":
        return [Tap(reflect(a, tap.index, *_edges(attrs, size)), tap.weight) for tap in taps]
    return taps


def _reference(attrs: GridSampleAttrs, x: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, ...]:
    a, sizes, rank = OnArrays(), x.shape[2:], x.ndim - 2
    work = compute_dtype(DType.of(grid.dtype)).numpy
    batch, points = x.shape[0], math.prod(grid.shape[1:-1])
    flat = grid.astype(work).reshape(batch * points, 1, rank)
    with np.errstate(all="ignore"):
        positions = _positions(a, attrs, [flat[..., rank - 1 - i] for i in range(rank)], sizes)
        axes = [_taps(a, attrs, p, s) for p, s in zip(positions, sizes, strict=True)]
        table = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        start = np.repeat(np.arange(batch) * math.prod(sizes), points)[:, None]
        sampled = sum_of_rows_array(table, axes, sizes, start)
    result = np.moveaxis(sampled.reshape(*grid.shape[:-1], x.shape[1]), -1, 1)
    return (convert(np.ascontiguousarray(result), DType.of(x.dtype)),)


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, GridSampleAttrs)
    x, grid = op.operands
    a, dims, sizes, rank = OnValues(b), x.type.dims, x.type.dims[2:], x.type.rank - 2
    batch, points = dims[0], math.prod(grid.type.dims[1:-1])
    if not op.result.type.elements:
        return (b.const(np.zeros(op.result.type.dims, x.type.dtype.numpy), "empty"),)
    flat = c.reshape(b, c.widen(b, grid), (batch * points, rank))
    columns = [b("slice", flat, attrs=SliceAttrs((0, rank - 1 - i), (batch * points, 1), (1, 1))) for i in range(rank)]
    positions = _positions(a, attrs, columns, sizes)
    axes = [_taps(a, attrs, p, s) for p, s in zip(positions, sizes, strict=True)]
    last = b("transpose", x, attrs=TransposeAttrs((0, *range(2, rank + 2), 1)))
    table = c.reshape(b, last, (batch * math.prod(sizes), dims[1]))
    start = None
    if batch > 1:
        image = np.repeat(np.arange(batch, dtype=np.int32) * math.prod(sizes), points)
        start = b.const(image[:, None], "image")
    sampled = c.cast(b, sum_of_rows(b, table, axes, sizes, start), x.type.dtype)
    pixels = c.reshape(b, sampled, (batch, points, dims[1]))
    return (c.reshape(b, b("transpose", pixels, attrs=TransposeAttrs((0, 2, 1))), op.result.type.dims),)


register(
    OpDef(
        name="grid_sample",
        formula="result[n, c, y] = sum over taps t of weight(grid[n, y], t) * x[n, c, t]",
        kind=Kind.COMPOSITE,
        operands="x, grid",
        attrs=GridSampleAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
