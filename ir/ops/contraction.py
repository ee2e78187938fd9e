"""Sums of products: matmul, conv, and conv_transpose as convolutions over sub-pixel phases.

Operands below f32 are multiplied exactly and accumulated in f32, f32 in f32, f64 in f64, 8-bit integers in i32; the sum
is rounded once, to `out`. Invariant: `out` is None exactly when results have the operands' dtype, so that equal ops are
equal objects only if the frontend leaves it None for the plain case.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.ir.affine import Affine, affine, var
from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, register
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType, broadcast_shapes

_COLUMN_BYTES = 1 << 25
"""Bound on the im2col buffer of the conv reference: larger images are convolved in blocks of rows."""

_NARROW = (DType.I8, DType.U8)


def _result_dtype(what: str, a: DType, b: DType, out: DType | None) -> DType:
    """The dtype of a contraction's result. Raises ValueError when the combination has no meaning."""
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
    """What numpy accumulates in: f64 holds every i8 product sum exactly and runs in BLAS, unlike integer matmul."""
    if dtype in _NARROW or dtype is DType.F64:
        return np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.is_float else result.numpy


def _round(total: np.ndarray, result: DType) -> np.ndarray:
    """The accumulated sum in its result dtype; integers wrap, as the accumulators of the machine do."""
    if result.is_integer and total.dtype.kind == "f":
        total = total.astype(np.int64)
    return total.astype(result.numpy, copy=False)


@dataclass(frozen=True, slots=True)
class MatmulAttrs(Attrs):
    """`transpose_a`/`transpose_b`: the operand's last two axes are stored swapped. `out`: result dtype, None = operands'."""

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
    """One entry a spatial axis. `low`/`high`: zeros added before and after. `layout` "nchw": x[n, c, *s],
    w[o, c/g, *k]; "nhwc": x[n, *s, c], w[*k, c/g, o]. `out`: result dtype, None = operands'."""

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


def window_results(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """How many whole windows fit along each axis. Raises ValueError when fields do not fit or no window does."""
    rank = len(space)
    for name, field in (("kernel", kernel), ("strides", strides), ("low", low), ("high", high), ("dilations", dilations)):
        if len(field) != rank:
            raise ValueError(f"{name} needs one entry for each of {rank} spatial axes, got {list(field)}")
    if min(*kernel, *strides, *dilations) < 1:
        raise ValueError(f"kernel {list(kernel)}, strides {list(strides)} and dilations {list(dilations)} must be positive")
    padded = [s + a + b for s, a, b in zip(space, low, high, strict=True)]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(e > p for e, p in zip(extent, padded, strict=True)):
        raise ValueError(f"window {extent} is larger than the padded input {padded}")
    return tuple((p - e) // s + 1 for p, e, s in zip(padded, extent, strides, strict=True))


def _conv_sizes(attrs: ConvAttrs, x: TensorType, w: TensorType) -> _ConvSizes:
    if attrs.layout not in ("nchw", "nhwc"):
        raise ValueError(f"conv layout is nchw or nhwc, not {attrs.layout}")
    if x.rank < 3 or x.rank != w.rank:
        raise ValueError(f"conv needs a batch, a channel and the same spatial axes in both operands, got {x} and {w}")
    last = attrs.layout == "nhwc"
    channels, space = (x.dims[-1], x.dims[1:-1]) if last else (x.dims[1], x.dims[2:])
    per_group, outputs = w.dims[-2:] if last else w.dims[1::-1]
    kernel = w.dims[:-2] if last else w.dims[2:]
    if min(*attrs.low, *attrs.high) < 0:
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
    sizes = _conv_sizes(attrs, TensorType(dtype, x.shape), TensorType(dtype, w.shape)) if attrs.layout == "nchw" else None
    if sizes is None:
        plain = ConvAttrs(attrs.strides, attrs.low, attrs.high, attrs.dilations, attrs.groups)
        sizes = _conv_sizes(plain, TensorType(dtype, x.shape), TensorType(dtype, w.shape))
    edges = ((0, 0), (0, 0), *zip(attrs.low, attrs.high, strict=True))
    padded = x.astype(compute, copy=False)
    if any(low or high for low, high in edges):
        padded = np.pad(padded, edges)
    total = _convolve(attrs, sizes, padded, w.astype(compute, copy=False))
    if attrs.layout == "nhwc":
        total = np.moveaxis(total, 1, -1)
    return (np.ascontiguousarray(_round(total, result)),)
