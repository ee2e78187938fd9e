"""Deformable convolution: an offset displaces the position that each tap reads.

Operands: x[N, C, H, W], w[O, C / g, kh, kw], offsets[N, G * kh * kw * 2, oh, ow] (dy, dx of each tap), mask?[N, G *
kh * kw, oh, ow]; G groups of channels share offsets. Follows the ONNX operator DeformConv-22 (Zhu et al.,
arXiv:1811.11168).

Invariant: pixels outside the image count as zeros. The decomposition gathers interpolated taps into columns, followed
by one matmul per group.
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
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import FLOATS, compute_dtype, convert
from ppuc.ir.ops.gates import Algebra, OnArrays, OnValues
from ppuc.ir.ops.taps import Tap, linear_taps, sum_of_rows, sum_of_rows_array, zero_outside
from ppuc.ir.ops.view import SliceAttrs, TransposeAttrs
from ppuc.ir.ops.window import window_results
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class DeformConvAttrs(Attrs):
    """As for conv; each of `offset_groups` groups of channels has its own offsets."""

    strides: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int]
    dilations: tuple[int, int]
    groups: int = 1
    offset_groups: int = 1


def _infer(attrs: DeformConvAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, w = types[:2]
    if any(t.rank != 4 or t.dtype is not x.dtype or x.dtype not in FLOATS for t in types) or not 3 <= len(types) <= 4:
        raise ValueError(
            f"deform_conv takes 3 or 4 tensors of rank 4 of one float type (got {', '.join(map(str, types))})"
        )
    channels, kernel = x.dims[1], w.dims[2:]
    if 0 in x.dims[1:] or channels % attrs.groups or w.dims[0] % attrs.groups or channels % attrs.offset_groups:
        raise ValueError(f"channels of {x} and {w} do not divide into {attrs.groups} and {attrs.offset_groups} groups")
    if w.dims[1] * attrs.groups != channels:
        raise ValueError(f"{w} in {attrs.groups} groups does not fit {x}")
    space = window_results(x.dims[2:], kernel, attrs.strides, attrs.low, attrs.high, attrs.dilations)
    taps = attrs.offset_groups * math.prod(kernel)
    for type, depth in zip(types[2:], (2 * taps, taps), strict=False):
        if type.dims != (x.dims[0], depth, *space):
            raise ValueError(f"offsets or mask should be [{x.dims[0]}, {depth}, {space[0]}, {space[1]}] (got {type})")
    return (TensorType(x.dtype, (x.dims[0], w.dims[0], *space)),)


def _grid(attrs: DeformConvAttrs, axis: int, kernel: Sequence[int], space: Sequence[int]) -> np.ndarray:
    """f32[taps, positions]: where the taps of an undeformed kernel lie along `axis`."""
    tap = np.indices(kernel).reshape(2, -1, 1)[axis] * attrs.dilations[axis]
    return np.asarray(
        np.indices(space).reshape(2, 1, -1)[axis] * attrs.strides[axis] - attrs.low[axis] + tap, np.float32
    )


def _taps(a: Algebra, grid: Any, offset: Any, size: int) -> list[Tap]:
    return [zero_outside(a, tap, size) for tap in linear_taps(a, a("add", offset, grid))]


def _reference(
    attrs: DeformConvAttrs, x: np.ndarray, w: np.ndarray, offsets: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    (batch, channels, *sizes), kernel, space = x.shape, w.shape[2:], offsets.shape[2:]
    groups, taps, points = attrs.offset_groups, math.prod(kernel), math.prod(space)
    a, work = OnArrays(), compute_dtype(DType.of(x.dtype)).numpy
    moved = offsets.astype(work).reshape(batch * groups, taps, 2, points)
    axes = [_taps(a, _grid(attrs, i, kernel, space).astype(work), moved[:, :, i], sizes[i]) for i in range(2)]
    table = np.moveaxis(x.reshape(batch * groups, channels // groups, -1), 1, 2).reshape(-1, channels // groups)
    start = (np.arange(batch * groups) * math.prod(sizes))[:, None, None]
    rows = sum_of_rows_array(table, axes, sizes, start)
    if mask is not None:
        rows = rows * mask.astype(np.float64).reshape(-1, 1)
    columns = np.moveaxis(rows.reshape(batch, groups, taps * points, -1), 3, 2)
    columns = columns.reshape(batch, attrs.groups, -1, points)
    weights = w.astype(np.float64).reshape(attrs.groups, w.shape[0] // attrs.groups, -1)
    return (convert((weights @ columns).reshape(batch, w.shape[0], *space), DType.of(x.dtype)),)


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, DeformConvAttrs)
    x, w, offsets = op.operands[:3]
    if not op.result.type.elements:
        return (b.const(np.zeros(op.result.type.dims, x.type.dtype.numpy), "empty"),)
    (batch, channels, *sizes), kernel, space = x.type.dims, w.type.dims[2:], offsets.type.dims[2:]
    groups, taps, points = attrs.offset_groups, math.prod(kernel), math.prod(space)
    images, depth, work = batch * groups, channels // groups, compute_dtype(x.type.dtype)
    a, moved, axes = OnValues(b), c.reshape(b, c.widen(b, offsets), (images, taps, 2, points)), []
    for i, size in enumerate(sizes):
        cut = SliceAttrs((0, 0, i, 0), (images, taps, 1, points), (1, 1, 1, 1))
        offset = c.reshape(b, b("slice", moved, attrs=cut), (images, taps, points))
        axes.append(_taps(a, b.const(_grid(attrs, i, kernel, space).astype(work.numpy), "grid"), offset, size))
    image = c.reshape(b, x, (images, depth, math.prod(sizes)))
    table = c.reshape(b, b("transpose", image, attrs=TransposeAttrs((0, 2, 1))), (images * math.prod(sizes), depth))
    start = b.const((np.arange(images, dtype=np.int32) * math.prod(sizes))[:, None, None], "image")
    rows = sum_of_rows(b, table, axes, sizes, start)
    if len(op.operands) == 4:
        rows = b("mul", rows, c.reshape(b, c.widen(b, op.operands[3]), (rows.type.dims[0], 1)))
    columns = b("transpose", c.reshape(b, rows, (images, taps * points, depth)), attrs=TransposeAttrs((0, 2, 1)))
    reduction = channels // attrs.groups * taps
    columns = c.reshape(b, c.cast(b, columns, x.type.dtype), (batch, attrs.groups, reduction, points))
    weights = c.reshape(b, w, (attrs.groups, w.type.dims[0] // attrs.groups, reduction))
    return (c.reshape(b, b("matmul", weights, columns, attrs=MatmulAttrs()), op.result.type.dims),)


register(
    OpDef(
        name="deform_conv",
        formula="result[n, o, y] = sum of x[n, c, y * stride + k * dilation - low + offset] * mask * w[o, c, k]",
        kind=Kind.COMPOSITE,
        operands="x, w, offsets, mask?",
        attrs=DeformConvAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
