"""Pooling over regions of interest: roi_align and max_roi_pool.

roi_align samples each bin of a region at fixed fractions and interpolates; max_roi_pool takes the maximum over the
pixels of each bin, axis by axis, with masks that assign rows and columns to bins.

Operands: x[N, C, H, W], boxes[R, 4] (x1, y1, x2, y2 in units of the original image), image i32[R]. Result [R, C, ph,
pw]. Formulas follow the ONNX operators RoiAlign-22 and MaxRoiPool-22. Invariant: no pixel outside an image is read, for
any boxes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.elementwise import FLOATS, compute_dtype, convert
from ppuc.ir.ops.gates import Algebra, OnArrays, OnValues
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.ops.taps import Tap, clamp, linear_taps, rows_of, rows_of_arrays
from ppuc.ir.ops.view import SliceAttrs, TransposeAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class RoiAlignAttrs(Attrs):
    """A region is divided into `size` (rows, columns) bins, each sampled at `ratio`**2 points and reduced to their mean
    or, with `largest`, to the largest weighted pixel. `half_pixel`: pixel centres lie at halves; without it, a region
    is at least one pixel wide and high."""

    size: tuple[int, int]
    ratio: int
    scale: float = 1.0
    largest: bool = False
    half_pixel: bool = True


@dataclass(frozen=True, slots=True)
class MaxRoiPoolAttrs(Attrs):
    """`size` (rows, columns) bins per region."""

    size: tuple[int, int]
    scale: float = 1.0


def _infer(attrs: Any, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, boxes, image = types
    if x.rank != 4 or x.dtype not in FLOATS or boxes.dtype not in FLOATS or 0 in x.dims[2:]:
        raise ValueError(f"regions are pooled from float images [N, C, H, W] (got {x} and {boxes})")
    if boxes.rank != 2 or boxes.dims[1] != 4 or image != TensorType(DType.I32, boxes.dims[:1]):
        raise ValueError(f"regions are boxes[R, 4] of images i32[R] (got {boxes} and {image})")
    if min(attrs.size) < 1 or getattr(attrs, "ratio", 1) < 1:
        raise ValueError(f"bins and samples must be positive (got {attrs})")
    return (TensorType(x.dtype, (boxes.dims[0], x.dims[1], *attrs.size)),)


def _axis_samples(a: Algebra, attrs: RoiAlignAttrs, first: Any, last: Any, steps: Any, bins: int) -> Any:
    """Positions along an axis: edges `first` and `last` [R, 1] of regions, `steps` [1, bins * ratio] in bins."""
    low = a("sub", a("mul", first, attrs.scale), 0.5 if attrs.half_pixel else 0.0)
    high = a("sub", a("mul", last, attrs.scale), 0.5 if attrs.half_pixel else 0.0)
    extent = a("sub", high, low)
    if not attrs.half_pixel:
        extent = a("max", extent, 1.0)
    return a("add", a("mul", a("mul", extent, 1 / bins), steps), low)


def _sample_taps(a: Algebra, position: Any, size: int) -> list[Tap]:
    """Linear taps of a position. Up to one pixel beyond the outermost centres, the edge pixel counts; further out,
    nothing."""
    near = a("and", a("ge", position, -1.0), a("le", position, float(size)))
    taps = linear_taps(a, clamp(a, position, 0.0, float(size - 1)))
    return [Tap(t.index, a("select", near, t.weight, 0.0)) for t in taps]


def _steps(attrs: RoiAlignAttrs, bins: int) -> np.ndarray:
    """f32[1, bins * ratio]: where the samples lie, in bins."""
    samples = (np.arange(bins * attrs.ratio) + 0.5) / attrs.ratio
    return samples.astype(np.float32)[None]


def _roi_align_reference(
    attrs: RoiAlignAttrs, x: np.ndarray, boxes: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, ...]:
    a, (_, channels, *sizes) = OnArrays(), x.shape
    edges = boxes.astype(np.float32)
    axes = []
    with np.errstate(all="ignore"):
        for i, (size, bins) in enumerate(zip(sizes, attrs.size, strict=True)):
            near, far = edges[:, 1 - i, None], edges[:, 3 - i, None]
            position = _axis_samples(a, attrs, near, far, _steps(attrs, bins), bins)
            taps = _sample_taps(a, position, size)
            index: Any = np.s_[:, :, None] if i == 0 else np.s_[:, None]
            axes.append([Tap(t.index[index], None if t.weight is None else t.weight[index]) for t in taps])
        table = np.moveaxis(x, 1, -1).reshape(-1, channels)
        start = image.astype(np.int64)[:, None, None] * math.prod(sizes)
        terms = list(rows_of_arrays(table, axes, sizes, start))
    combine = np.maximum if attrs.largest else np.add
    total = terms[0]
    for term in terms[1:]:
        total = combine(total, term)
    split = total.reshape(len(boxes), attrs.size[0], attrs.ratio, attrs.size[1], attrs.ratio, channels)
    pooled = split.max((2, 4)) if attrs.largest else split.mean((2, 4))
    return (convert(np.ascontiguousarray(np.moveaxis(pooled, -1, 1)), DType.of(x.dtype)),)


def _column(b: Builder, boxes: Value, index: int) -> Value:
    return b("slice", boxes, attrs=SliceAttrs((0, index), (boxes.type.dims[0], 1), (1, 1)))


def _roi_align_decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, RoiAlignAttrs)
    x, boxes, image = op.operands
    if not op.result.type.elements:
        return (b.const(np.zeros(op.result.type.dims, x.type.dtype.numpy), "empty"),)
    (batch, channels, *sizes), regions = x.type.dims, boxes.type.dims[0]
    a, edges, axes = OnValues(b), c.cast(b, boxes, DType.F32), []
    for i, (size, bins) in enumerate(zip(sizes, attrs.size, strict=True)):
        near, far = _column(b, edges, 1 - i), _column(b, edges, 3 - i)
        taps = _sample_taps(a, _axis_samples(a, attrs, near, far, b.const(_steps(attrs, bins), "steps"), bins), size)
        shape = (regions, bins * attrs.ratio, 1) if i == 0 else (regions, 1, bins * attrs.ratio)
        axes.append([Tap(c.reshape(b, t.index, shape), c.reshape(b, t.weight, shape)) for t in taps if t.weight])
    last = b("transpose", x, attrs=TransposeAttrs((0, 2, 3, 1)))
    table = c.reshape(b, last, (batch * math.prod(sizes), channels))
    first = b("mul", c.reshape(b, image, (regions, 1, 1)), b.scalar(math.prod(sizes), DType.I32))
    combine = "max" if attrs.largest else "add"
    total = functools.reduce(lambda x, y: b(combine, x, y), rows_of(b, table, axes, sizes, first))
    split = c.reshape(b, total, (regions, attrs.size[0], attrs.ratio, attrs.size[1], attrs.ratio, channels))
    if attrs.largest:
        pooled = c.reduce(b, "max", split, (2, 4), keepdims=False)
    else:
        pooled = c.mean(b, split, (2, 4), keepdims=False)
    return (c.cast(b, b("transpose", pooled, attrs=TransposeAttrs((0, 3, 1, 2))), x.type.dtype),)


def _membership(a: Algebra, scale: float, near: Any, far: Any, bins: Any, count: int, pixels: Any, size: int) -> Any:
    """bool[R, bins, size]: which pixels belong to which bin. Edges [R, 1, 1] are rounded to whole pixels, half away
    from zero; a region has one pixel at least."""

    def rounded(edge: Any) -> Any:
        scaled = a("mul", edge, scale)
        return a("mul", a("sign", scaled), a("floor", a("add", a("abs", scaled), 0.5)))

    start = rounded(near)
    extent = a("max", a("add", a("sub", rounded(far), start), 1.0), 1.0)
    width = a("mul", extent, 1 / count)
    low = clamp(a, a("add", a("floor", a("mul", width, bins)), start), 0.0, float(size))
    high = clamp(a, a("add", a("ceil", a("mul", width, a("add", bins, 1.0))), start), 0.0, float(size))
    return a("and", a("ge", pixels, low), a("lt", pixels, high))


def _numbers(count: int, axis: int) -> np.ndarray:
    """f32 0 .. count - 1 along `axis` of three."""
    return np.arange(count, dtype=np.float32).reshape([count if i == axis else 1 for i in range(3)])


def _max_roi_reference(
    attrs: MaxRoiPoolAttrs, x: np.ndarray, boxes: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, ...]:
    a, sizes, edges = OnArrays(), x.shape[2:], boxes.astype(np.float32)[:, :, None, None]
    masks = [
        _membership(a, attrs.scale, edges[:, 1 - i], edges[:, 3 - i], _numbers(n, 1), n, _numbers(s, 2), s)
        for i, (s, n) in enumerate(zip(sizes, attrs.size, strict=True))
    ]
    found = np.empty((len(boxes), x.shape[1], *attrs.size), x.dtype)
    for r, (rows, columns) in enumerate(zip(*masks, strict=True)):
        for i, j in np.ndindex(*attrs.size):
            pixels = x[image[r]][:, rows[i]][:, :, columns[j]]
            found[r, :, i, j] = pixels.max((1, 2)) if pixels.size else 0
    return (found,)


def _max_roi_decompose(b: Builder, op: Op) -> Sequence[Value]:
    """Maxima over columns for each column of bins, then over rows; a bin without pixels is 0."""
    attrs = op.attrs
    assert isinstance(attrs, MaxRoiPoolAttrs)
    x, boxes, image = op.operands
    if not op.result.type.elements:
        return (b.const(np.zeros(op.result.type.dims, x.type.dtype.numpy), "empty"),)
    a, (_, channels, height, width), regions = OnValues(b), x.type.dims, boxes.type.dims[0]
    edges, masks = c.cast(b, boxes, DType.F32), []
    for i, (size, bins) in enumerate(zip((height, width), attrs.size, strict=True)):
        near, far = (c.reshape(b, _column(b, edges, k), (regions, 1, 1)) for k in (1 - i, 3 - i))
        at, pixels = b.const(_numbers(bins, 1), "bins"), b.const(_numbers(size, 2), "pixels")
        masks.append(_membership(a, attrs.scale, near, far, at, bins, pixels, size))
    lowest = b.scalar(-np.inf, compute_dtype(x.type.dtype))
    pixels = c.widen(b, b("gather", x, image, attrs=GatherAttrs(0)))
    for i, (size, bins) in reversed(list(enumerate(zip((height, width), attrs.size, strict=True)))):
        # [R, C, rows, columns] -> the same with bins in place of axis 2 + i, whose pixels are reduced.
        before = pixels.type.dims[2] if i else 1
        after = pixels.type.dims[3] if not i else 1
        spread = c.reshape(b, pixels, (regions, channels, before, 1, size, after))
        mask = c.reshape(b, masks[i], (regions, 1, 1, bins, size, 1))
        best = c.reduce(b, "max", b("select", mask, spread, lowest), (4,), keepdims=False)
        pixels = c.reshape(b, best, (regions, channels, *((before, bins) if i else (bins, after))))
    shapes = ((regions, 1, attrs.size[0], 1), (regions, 1, 1, attrs.size[1]))
    some = [c.reshape(b, c.reduce(b, "max", m, (2,)), shape) for m, shape in zip(masks, shapes, strict=True)]
    result = b("select", b("and", *some), pixels, b.scalar(0, pixels.type.dtype))
    return (c.cast(b, result, x.type.dtype),)


def _register(
    name: str,
    formula: str,
    attrs: type[Attrs],
    reference: Callable[..., tuple[np.ndarray, ...]],
    decompose: Callable[[Builder, Op], Sequence[Value]],
) -> None:
    register(
        OpDef(
            name=name,
            formula=formula,
            kind=Kind.COMPOSITE,
            operands="x, boxes, image",
            attrs=attrs,
            infer=_infer,
            reference=reference,
            decompose=decompose,
        )
    )


_register(
    "roi_align",
    "result[r, c, bin] = mean over samples of x[image[r], c] interpolated",
    RoiAlignAttrs,
    _roi_align_reference,
    _roi_align_decompose,
)
_register(
    "max_roi_pool",
    "result[r, c, bin] = max of x[image[r], c, pixels of the bin], 0 if it has none",
    MaxRoiPoolAttrs,
    _max_roi_reference,
    _max_roi_decompose,
)
