"""Windows that slide over the spatial axes of a tensor, and pooling over them.

Invariant: positions outside the input hold the identity of the reduction, so padding never changes a result; ONNX's
average pooling is a sum times reciprocal counts, which the frontend computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ppuc.ir.affine import affine, var
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, register
from ppuc.ir.types import DType, TensorType


def window_results(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """Number of whole windows along each axis. Raises ValueError for inconsistent fields, or if no window fits."""
    rank = len(space)
    for name, field in (
        ("kernel", kernel),
        ("strides", strides),
        ("low", low),
        ("high", high),
        ("dilations", dilations),
    ):
        if len(field) != rank:
            raise ValueError(f"{name} needs one entry for each of {rank} spatial axes, got {list(field)}")
    if min(*kernel, *strides, *dilations) < 1:
        raise ValueError(
            f"kernel {list(kernel)}, strides {list(strides)} and dilations {list(dilations)} must be positive"
        )
    padded = [s + a + b for s, a, b in zip(space, low, high, strict=True)]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(e > p for e, p in zip(extent, padded, strict=True)):
        raise ValueError(f"window {extent} is larger than the padded input {padded}")
    return tuple((p - e) // s + 1 for p, e, s in zip(padded, extent, strides, strict=True))


def tap_window(
    tap: Sequence[int], strides: Sequence[int], dilations: Sequence[int], results: Sequence[int]
) -> tuple[slice, ...]:
    """The elements of the padded input that one tap of the window reads for all results."""
    return tuple(
        slice(t * d, t * d + (y - 1) * s + 1, s) for t, s, d, y in zip(tap, strides, dilations, results, strict=True)
    )


@dataclass(frozen=True, slots=True)
class PoolAttrs(Attrs):
    """`kind` "max" or "sum". One entry per spatial axis; `low`/`high`: identity elements before and after. `layout`
    "nchw": x[n, c, *s], "nhwc": x[n, *s, c]."""

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilations: tuple[int, ...]
    layout: str = "nchw"


def _pool_results(attrs: PoolAttrs, x: TensorType) -> tuple[int, ...]:
    """Spatial sizes of the result."""
    if attrs.layout not in ("nchw", "nhwc"):
        raise ValueError(f"pool layout is nchw or nhwc, not {attrs.layout}")
    if x.rank < 3:
        raise ValueError(f"pool needs a batch, a channel and spatial axes, got {x}")
    if any(size < 0 for size in (*attrs.low, *attrs.high)):
        raise ValueError(f"pool padding must not be negative, got low {list(attrs.low)} and high {list(attrs.high)}")
    space = x.dims[1:-1] if attrs.layout == "nhwc" else x.dims[2:]
    return window_results(space, attrs.kernel, attrs.strides, attrs.low, attrs.high, attrs.dilations)


def _pool_infer(attrs: PoolAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (x,) = types
    if attrs.kind not in ("max", "sum"):
        raise ValueError(f"pool kind is max or sum, not {attrs.kind}")
    if x.dtype is DType.BOOL:
        raise ValueError("pool needs numbers, got bool")
    result = _pool_results(attrs, x)
    shape = (x.dims[0], *result, x.dims[-1]) if attrs.layout == "nhwc" else (*x.dims[:2], *result)
    return (TensorType(x.dtype, shape),)


def lowest(dtype: DType) -> float | int:
    """The identity of max: -inf, or the smallest number of a type without infinities."""
    if dtype.is_integer:
        return int(np.iinfo(dtype.numpy).min)
    return -np.inf if dtype is not DType.F8E4M3 else float(ml_dtypes.finfo(dtype.numpy).min)  # type: ignore[no-untyped-call]


def _pool_reference(attrs: PoolAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = DType.of(x.dtype)
    result = _pool_results(attrs, TensorType(dtype, x.shape))
    last = attrs.layout == "nhwc"
    compute = np.dtype(np.float64) if dtype.is_float and attrs.kind == "sum" else dtype.numpy
    identity = lowest(dtype) if attrs.kind == "max" else 0
    space = list(zip(attrs.low, attrs.high, strict=True))
    edges = [(0, 0), *space, (0, 0)] if last else [(0, 0), (0, 0), *space]
    padded = np.pad(x, edges, constant_values=np.asarray(identity).astype(x.dtype))
    combine = np.maximum if attrs.kind == "max" else np.add
    shape = (x.shape[0], *result, x.shape[-1]) if last else (*x.shape[:2], *result)
    total = np.full(shape, identity, compute)
    for tap in itertools.product(*map(range, attrs.kernel)):
        window = tap_window(tap, attrs.strides, attrs.dilations, result)
        read: tuple[slice, ...] = (slice(None), *window) if last else (slice(None), slice(None), *window)
        combine(total, padded[read], out=total)
    return (total.astype(dtype.numpy, copy=False),)


def _pool_indexing(attrs: PoolAttrs, types: Sequence[TensorType]) -> Indexing:
    (x,) = types
    result = _pool_results(attrs, x)
    rank = len(result)
    channels = x.dims[-1] if attrs.layout == "nhwc" else x.dims[1]
    dims = [IterDim("n", x.dims[0]), IterDim("c", channels)]
    dims += [IterDim(f"y{i}", result[i]) for i in range(rank)]
    dims += [IterDim(f"k{i}", attrs.kernel[i], reduced=True) for i in range(rank)]
    window = tuple(affine(-attrs.low[i], {f"y{i}": attrs.strides[i], f"k{i}": attrs.dilations[i]}) for i in range(rank))
    space = tuple(var(f"y{i}") for i in range(rank))
    if attrs.layout == "nhwc":
        return Indexing(tuple(dims), ((var("n"), *window, var("c")),), ((var("n"), *space, var("c")),))
    return Indexing(tuple(dims), ((var("n"), var("c"), *window),), ((var("n"), var("c"), *space),))


register(
    OpDef(
        name="pool",
        formula="result[n, c, y] = max or sum over k of x[n, c, y * stride + k * dilation - low]",
        kind=Kind.WINDOW,
        operands="x",
        attrs=PoolAttrs,
        infer=_pool_infer,
        reference=_pool_reference,
        indexing=_pool_indexing,
    )
)
