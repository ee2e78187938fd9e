"""Reductions along axes, arg-reductions and running sums.

Invariants: sums and products of f16, bf16 and f8 accumulate in f32, those of f32 in f64 (the reference is more precise
than the target), and are rounded once; integers wrap. A reduction over no elements gives its identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ppuc.ir.affine import Affine, var
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, dim_names, register
from ppuc.ir.ops.elementwise import BOOLS, NUMBERS, compute_dtype, convert
from ppuc.ir.types import DType, TensorType

REDUCE_KINDS = ("sum", "max", "min", "prod")


@dataclass(frozen=True, slots=True)
class ReduceAttrs(Attrs):
    """`kind` is one of REDUCE_KINDS; `axes` are sorted, distinct and non-negative."""

    kind: str
    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, slots=True)
class ArgreduceAttrs(Attrs):
    """`kind` is `max` or `min`; among equal extremes, the first or the last index is taken."""

    kind: str
    axis: int
    keepdims: bool
    last: bool = False


@dataclass(frozen=True, slots=True)
class CumsumAttrs(Attrs):
    """`exclusive` leaves the element itself out of its sum; `reverse` sums from the end."""

    axis: int
    exclusive: bool = False
    reverse: bool = False


def reduce_identity(kind: str, dtype: DType) -> float | int | bool:
    """The identity of a reduction of `kind` over `dtype`: 0, 1, or the lowest or highest value."""
    if kind in ("sum", "prod"):
        return int(kind == "prod")
    highest = kind == "min"
    if dtype is DType.BOOL:
        return highest
    if dtype.is_integer:
        limits = np.iinfo(dtype.numpy)
        return int(limits.max if highest else limits.min)
    if dtype in (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8E5M2):
        return float("inf") if highest else float("-inf")
    finite = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return float(finite.max if highest else finite.min)


def _accumulator(dtype: DType) -> np.dtype:
    return np.dtype(np.float64) if dtype is DType.F32 else compute_dtype(dtype).numpy


def _check_operand(name: str, types: Sequence[TensorType], allowed: frozenset[DType]) -> TensorType:
    if len(types) != 1:
        raise ValueError(f"{name} takes 1 operand (got {len(types)})")
    if types[0].dtype not in allowed:
        raise ValueError(f"{name} is not defined for {types[0].dtype} (got {types[0]})")
    return types[0]


def _check_axis(name: str, axis: int, x: TensorType) -> None:
    if not 0 <= axis < x.rank:
        raise ValueError(f"axis {axis} of {name} is not an axis of {x}")


def _reduced_shape(shape: Sequence[int], axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
    return tuple(1 if i in axes else s for i, s in enumerate(shape) if keepdims or i not in axes)


def _infer_reduce(attrs: ReduceAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if attrs.kind not in REDUCE_KINDS:
        raise ValueError(f"reduce kind must be one of {', '.join(REDUCE_KINDS)} (got '{attrs.kind}')")
    allowed = NUMBERS | BOOLS if attrs.kind in ("max", "min") else NUMBERS
    x = _check_operand(f"reduce {attrs.kind}", types, allowed)
    for axis in attrs.axes:
        _check_axis(f"reduce {attrs.kind}", axis, x)
    if list(attrs.axes) != sorted(set(attrs.axes)):
        raise ValueError(f"axes of reduce must be sorted and distinct (got {list(attrs.axes)})")
    return (TensorType(x.dtype, _reduced_shape(x.dims, attrs.axes, attrs.keepdims)),)


def _reference_reduce(attrs: ReduceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = DType.of(x.dtype)
    with np.errstate(all="ignore"):
        if attrs.kind in ("sum", "prod"):
            accumulator = _accumulator(dtype)
            reduce = np.sum if attrs.kind == "sum" else np.prod
            wide = reduce(
                x.astype(accumulator, copy=False), axis=attrs.axes, keepdims=attrs.keepdims, dtype=accumulator
            )
        else:
            work = x.astype(compute_dtype(dtype).numpy, copy=False)
            extreme = np.max if attrs.kind == "max" else np.min
            identity = reduce_identity(attrs.kind, dtype)
            wide = extreme(work, axis=attrs.axes, keepdims=attrs.keepdims, initial=identity)
    # A maximum is one of the elements, so an infinity among f8 elements stays one; sums and products saturate.
    return (convert(np.asarray(wide), dtype, saturate=attrs.kind in ("sum", "prod")),)


def _indexing(shape: Sequence[int], axes: Sequence[int], keepdims: bool) -> Indexing:
    names = dim_names(len(shape))
    dims = tuple(IterDim(n, s, i in axes) for i, (n, s) in enumerate(zip(names, shape, strict=True)))
    result = tuple(Affine() if d.reduced else var(d.name) for d in dims if keepdims or not d.reduced)
    return Indexing(dims, (tuple(var(n) for n in names),), (result,))


register(
    OpDef(
        name="reduce",
        formula="result = sum, max, min or product of x along axes",
        kind=Kind.REDUCTION,
        operands="x",
        attrs=ReduceAttrs,
        infer=_infer_reduce,
        reference=_reference_reduce,
        indexing=lambda attrs, types: _indexing(types[0].dims, attrs.axes, attrs.keepdims),
    )
)


def _infer_argreduce(attrs: ArgreduceAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if attrs.kind not in ("max", "min"):
        raise ValueError(f"argreduce kind must be max or min (got '{attrs.kind}')")
    x = _check_operand(f"arg{attrs.kind}", types, NUMBERS)
    _check_axis(f"arg{attrs.kind}", attrs.axis, x)
    if x.dims[attrs.axis] == 0:
        raise ValueError(f"arg{attrs.kind} over an empty axis (axis {attrs.axis} of {x})")
    return (TensorType(DType.I64, _reduced_shape(x.dims, (attrs.axis,), attrs.keepdims)),)


def _reference_argreduce(attrs: ArgreduceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    work = x.astype(compute_dtype(DType.of(x.dtype)).numpy, copy=False)
    pick = np.argmax if attrs.kind == "max" else np.argmin
    if attrs.last:
        index = x.shape[attrs.axis] - 1 - pick(np.flip(work, attrs.axis), axis=attrs.axis, keepdims=attrs.keepdims)
    else:
        index = pick(work, axis=attrs.axis, keepdims=attrs.keepdims)
    return (np.asarray(index, np.int64),)


register(
    OpDef(
        name="argreduce",
        formula="result = index of the largest or smallest element of x along axis",
        kind=Kind.REDUCTION,
        operands="x",
        attrs=ArgreduceAttrs,
        infer=_infer_argreduce,
        reference=_reference_argreduce,
        indexing=lambda attrs, types: _indexing(types[0].dims, (attrs.axis,), attrs.keepdims),
    )
)


def _infer_cumsum(attrs: CumsumAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x = _check_operand("cumsum", types, NUMBERS)
    _check_axis("cumsum", attrs.axis, x)
    return (x,)


def _reference_cumsum(attrs: CumsumAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    dtype = DType.of(x.dtype)
    accumulator = _accumulator(dtype)
    work = np.flip(x, attrs.axis) if attrs.reverse else x
    with np.errstate(all="ignore"):
        total = np.cumsum(work.astype(accumulator, copy=False), axis=attrs.axis, dtype=accumulator)
    if attrs.exclusive:
        total = np.roll(total, 1, attrs.axis)
        total[(slice(None),) * attrs.axis + (slice(0, 1),)] = 0
    return (convert(np.flip(total, attrs.axis) if attrs.reverse else total, dtype),)


register(
    OpDef(
        name="cumsum",
        formula="result[i] = sum of x[j] for j <= i along axis",
        kind=Kind.SCAN,
        operands="x",
        attrs=CumsumAttrs,
        infer=_infer_cumsum,
        reference=_reference_cumsum,
    )
)
