"""Sums of products: matmul and conv.

Operands below f32 are multiplied exactly and accumulated in f32, f32 in f32, f64 in f64, 8-bit integers in i32; the sum
is rounded once, to `out`. Invariant: `out` is None exactly if results have the operands' dtype, so that equal ops are
equal objects.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppuc.ir.affine import Affine, affine, var
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, register
from ppuc.ir.ops.window import tap_window, window_results
from ppuc.ir.types import DType, TensorType, broadcast_shapes

_COLUMN_BYTES = 1 << 25
"""Bound on the im2col buffer of the conv reference: larger images are convolved in blocks of rows."""

_NARROW = (DType.I8, DType.U8)


def _result_dtype(what: str, a: DType, b: DType, out: DType | None) -> DType:
    """The dtype of a contraction's result. Raises ValueError for an invalid combination."""
    if a in _NARROW and b in _NARROW:
        if out is not DType.I32:
            raise ValueError(f"{what} of {a} and {b} gives i32, not {out or a}")
        return DType.I32
    if a is not b:
        raise ValueError(f"{what} operands differ in dtype: {a} and {b}")
    result = out or a
    if a is DType.BOOL or a.is_float != result.is_float:
        raise ValueError(f"{what} of {a} cannot give {result}")
    return result


def _compute_dtype(dtype: DType, result: DType) -> np.dtype:
    """The dtype that numpy accumulates in: f64 holds every sum of i8 products exactly and uses BLAS, unlike integer
    matmul."""
    if dtype in _NARROW or dtype is DType.F64:
        return np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.is_float else result.numpy


def _round(total: np.ndarray, result: DType) -> np.ndarray:
    """The accumulated sum in its result dtype; integers wrap, as in the accumulators."""
    if result.is_integer and total.dtype.kind == "f":
        total = total.astype(np.int64)
    return total.astype(result.numpy, copy=False)


@dataclass(frozen=True, slots=True)
class MatmulAttrs(Attrs):
    """`transpose_a`, `transpose_b`: the last two axes of that operand are swapped. `out`: dtype of the result, None for
    the operands' dtype."""

    transpose_a: bool = False
    transpose_b: bool = False
    out: DType | None = None


def _matmul_sizes(attrs: MatmulAttrs, a: TensorType, b: TensorType) -> tuple[tuple[int, ...], int, int, int]:
    """Broadcast batch shape, m, n, k."""
    if a.rank < 2 or b.rank < 2:
        raise ValueError(f"matmul operands need rank 2 or more, got {a} and {b}")
    m, ka = a.dims[-2:][::-1] if attrs.transpose_a else a.dims[-2:]
    kb, n = b.dims[-2:][::-1] if attrs.transpose_b else b.dims[-2:]
    if ka != kb:
        raise ValueError(f"matmul reduction sizes differ: {ka} of {a} and {kb} of {b}")
    return broadcast_shapes(a.dims[:-2], b.dims[:-2]), m, n, ka


def _matmul_infer(attrs: MatmulAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    a, b = types
    batch, m, n, _ = _matmul_sizes(attrs, a, b)
    return (TensorType(_result_dtype("matmul", a.dtype, b.dtype, attrs.out), (*batch, m, n)),)


def _matmul_reference(attrs: MatmulAttrs, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = DType.of(a.dtype)
    result = _result_dtype("matmul", dtype, DType.of(b.dtype), attrs.out)
    compute = _compute_dtype(dtype, result)
    left = a.swapaxes(-1, -2) if attrs.transpose_a else a
    right = b.swapaxes(-1, -2) if attrs.transpose_b else b
    return (_round(np.matmul(left.astype(compute, copy=False), right.astype(compute, copy=False)), result),)


def _matmul_indexing(attrs: MatmulAttrs, types: Sequence[TensorType]) -> Indexing:
    a, b = types
    batch, m, n, k = _matmul_sizes(attrs, a, b)
    names = [f"b{i}" for i in range(len(batch))]

    def access(shape: tuple[int, ...], rows: str, columns: str) -> tuple[Affine, ...]:
        skip = len(batch) - (len(shape) - 2)
        lead = (
            Affine() if size == 1 and batch[i] != 1 else var(names[i]) for i, size in enumerate(shape[:-2], start=skip)
        )
        return (*lead, var(rows), var(columns))

    left = access(a.dims, *("km" if attrs.transpose_a else "mk"))
    right = access(b.dims, *("nk" if attrs.transpose_b else "kn"))
    dims = [IterDim(name, size) for name, size in zip(names, batch, strict=True)]
    dims += [IterDim("m", m), IterDim("n", n), IterDim("k", k, reduced=True)]
    return Indexing(tuple(dims), (left, right), ((*map(var, names), var("m"), var("n")),))


register(
    OpDef(
        name="matmul",
        formula="result[b, m, n] = sum over k of a[b, m, k] * b[b, k, n]",
        kind=Kind.CONTRACTION,
        operands="a, b",
        attrs=MatmulAttrs,
        infer=_matmul_infer,
        reference=_matmul_reference,
        indexing=_matmul_indexing,
    )
)


@dataclass(frozen=True, slots=True)
class ConvAttrs(Attrs):
    """One entry per spatial axis. `low`/`high`: zeros added before and after. `layout` "nchw": x[n, c, *s], w[o, c/g,
    *k]; "nhwc": x[n, *s, c], w[*k, c/g, o]. `out`: result dtype, None = operands'."""

    strides: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    layout: str = "nchw"
    out: DType | None = None


@dataclass(frozen=True, slots=True)
class _ConvSizes:
    """Sizes of a convolution; `channels` and `outputs` are per group."""

    batch: int
    channels: int
    outputs: int
    space: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]


def _conv_sizes(attrs: ConvAttrs, x: TensorType, w: TensorType) -> _ConvSizes:
    if attrs.layout not in ("nchw", "nhwc"):
        raise ValueError(f"conv layout is nchw or nhwc, not {attrs.layout}")
    if x.rank < 3 or x.rank != w.rank:
        raise ValueError(f"conv needs a batch, a channel and the same spatial axes in both operands, got {x} and {w}")
    last = attrs.layout == "nhwc"
    channels, space = (x.dims[-1], x.dims[1:-1]) if last else (x.dims[1], x.dims[2:])
    per_group, outputs = w.dims[-2:] if last else w.dims[1::-1]
    kernel = w.dims[:-2] if last else w.dims[2:]
    if any(size < 0 for size in (*attrs.low, *attrs.high)):
        raise ValueError(f"conv padding must not be negative, got low {list(attrs.low)} and high {list(attrs.high)}")
    if attrs.groups < 1 or channels % attrs.groups or outputs % attrs.groups:
        raise ValueError(
            f"input channels {channels} and output channels {outputs} do not divide into {attrs.groups} groups"
        )
    if channels // attrs.groups != per_group:
        raise ValueError(
            f"input has {channels} channels in {attrs.groups} groups, the kernel expects {per_group} in each"
        )
    result = window_results(space, kernel, attrs.strides, attrs.low, attrs.high, attrs.dilations)
    return _ConvSizes(x.dims[0], per_group, outputs // attrs.groups, space, kernel, result)


def _conv_infer(attrs: ConvAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, w = types
    sizes = _conv_sizes(attrs, x, w)
    dtype = _result_dtype("conv", x.dtype, w.dtype, attrs.out)
    channels = sizes.outputs * attrs.groups
    if attrs.layout == "nhwc":
        return (TensorType(dtype, (sizes.batch, *sizes.result, channels)),)
    return (TensorType(dtype, (sizes.batch, channels, *sizes.result)),)


def _conv_reference(attrs: ConvAttrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = DType.of(x.dtype)
    result = _result_dtype("conv", dtype, DType.of(w.dtype), attrs.out)
    compute = _compute_dtype(dtype, result)
    if attrs.layout == "nhwc":
        x = np.moveaxis(x, -1, 1)
        w = np.moveaxis(w, (-1, -2), (0, 1))
    sizes = _conv_sizes(replace(attrs, layout="nchw"), TensorType(dtype, x.shape), TensorType(dtype, w.shape))
    edges = ((0, 0), (0, 0), *zip(attrs.low, attrs.high, strict=True))
    padded = x.astype(compute, copy=False)
    if any(low or high for low, high in edges):
        padded = np.pad(padded, edges)
    total = _convolve(attrs, sizes, padded, w.astype(compute, copy=False))
    if attrs.layout == "nhwc":
        total = np.moveaxis(total, 1, -1)
    return (np.ascontiguousarray(_round(total, result)),)


def _convolve(attrs: ConvAttrs, sizes: _ConvSizes, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Padded x[n, c, *s] with w[o, c/g, *k] -> [n, o, *result], all in the accumulation dtype."""
    depthwise = sizes.channels == 1 and sizes.outputs == 1
    return _tap_by_tap(attrs, sizes, x, w) if depthwise else _im2col(attrs, sizes, x, w)


def _tap_by_tap(attrs: ConvAttrs, sizes: _ConvSizes, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One multiply-add of whole images per tap: with a single channel, a matmul has no dimension to reduce."""
    total = np.zeros((sizes.batch, attrs.groups, *sizes.result), x.dtype)
    unit = (1,) * len(sizes.kernel)
    for tap in itertools.product(*map(range, sizes.kernel)):
        read: tuple[slice, ...] = (
            slice(None),
            slice(None),
            *tap_window(tap, attrs.strides, attrs.dilations, sizes.result),
        )
        weight: tuple[slice | int, ...] = (slice(None), 0, *tap)
        total += x[read] * w[weight].reshape(attrs.groups, *unit)
    return total


def _im2col(attrs: ConvAttrs, sizes: _ConvSizes, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Windows copied into columns, then one matmul per group, in blocks of result rows that bound the copy's size."""
    groups, rank = attrs.groups, len(sizes.kernel)
    reduction = sizes.channels * math.prod(sizes.kernel)
    weights = w.reshape(groups, sizes.outputs, reduction)
    image, steps = x.strides[0], x.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        x,
        (sizes.batch, groups, sizes.channels, *sizes.kernel, *sizes.result),
        (
            image,
            x.strides[1] * sizes.channels,
            x.strides[1],
            *(b * d for b, d in zip(steps, attrs.dilations, strict=True)),
            *(b * s for b, s in zip(steps, attrs.strides, strict=True)),
        ),
        writeable=False,
    )
    total = np.empty((sizes.batch, groups, sizes.outputs, *sizes.result), x.dtype)
    row_bytes = groups * reduction * math.prod(sizes.result[1:]) * x.dtype.itemsize
    block = max(1, _COLUMN_BYTES // max(row_bytes, 1))
    for n, first in itertools.product(range(sizes.batch), range(0, sizes.result[0], block)):
        rows = slice(first, min(first + block, sizes.result[0]))
        block_of: tuple[slice | int, ...] = (n, slice(None), slice(None), *(slice(None),) * rank, rows)
        columns = windows[block_of].reshape(groups, reduction, -1)
        total[n, :, :, rows] = np.matmul(weights, columns).reshape(
            groups, sizes.outputs, rows.stop - first, *sizes.result[1:]
        )
    return total.reshape(sizes.batch, groups * sizes.outputs, *sizes.result)


def _conv_indexing(attrs: ConvAttrs, types: Sequence[TensorType]) -> Indexing:
    sizes = _conv_sizes(attrs, types[0], types[1])
    rank = len(sizes.kernel)
    dims = [IterDim("n", sizes.batch), IterDim("g", attrs.groups), IterDim("o", sizes.outputs)]
    dims += [IterDim(f"y{i}", sizes.result[i]) for i in range(rank)]
    dims += [IterDim("c", sizes.channels, reduced=True)]
    dims += [IterDim(f"k{i}", sizes.kernel[i], reduced=True) for i in range(rank)]
    window = tuple(affine(-attrs.low[i], {f"y{i}": attrs.strides[i], f"k{i}": attrs.dilations[i]}) for i in range(rank))
    taps = tuple(var(f"k{i}") for i in range(rank))
    space = tuple(var(f"y{i}") for i in range(rank))
    read = affine(0, {"g": sizes.channels, "c": 1})
    written = affine(0, {"g": sizes.outputs, "o": 1})
    if attrs.layout == "nhwc":
        operands = ((var("n"), *window, read), (*taps, var("c"), written))
        return Indexing(tuple(dims), operands, ((var("n"), *space, written),))
    operands = ((var("n"), read, *window), (written, var("c"), *taps))
    return Indexing(tuple(dims), operands, ((var("n"), written, *space),))


register(
    OpDef(
        name="conv",
        formula="result[n, o, y] = sum of x[n, c, y * stride + k * dilation - low] * w[o, c, k] over c, k in a group",
        kind=Kind.CONTRACTION,
        operands="x, w",
        attrs=ConvAttrs,
        infer=_conv_infer,
        reference=_conv_reference,
        indexing=_conv_indexing,
    )
)
