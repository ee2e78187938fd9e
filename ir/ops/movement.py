"""Movement: concat, pad, gathers and scatters.

Invariant: `concat`, `pad` and the gathers copy elements bit for bit. Only a scatter with a reduction computes: narrow
floats in f32, rounded once. Indices may be negative, counting from the end, as in ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.ir.affine import var
from ppuc.ir.graph import Attrs
from ppuc.ir.ops.base import Indexing, IterDim, Kind, OpDef, dim_names, register
from ppuc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True)
class ConcatAttrs(Attrs):
    """Operands are joined along `axis` (non-negative)."""

    axis: int


@dataclass(frozen=True, slots=True)
class PadAttrs(Attrs):
    """Elements added before (`low`), after (`high`) and between neighbours (`interior`), per dimension. `value` is the
    fill in mode 'constant', where negative `low` and `high` crop. Modes 'edge', 'reflect' (the edge not repeated) and
    'wrap' have no interior."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    interior: tuple[int, ...]
    value: float = 0.0
    mode: str = "constant"


@dataclass(frozen=True, slots=True)
class GatherAttrs(Attrs):
    """The dimensions of the indices replace `axis` (non-negative)."""

    axis: int = 0


@dataclass(frozen=True, slots=True)
class GatherElementsAttrs(Attrs):
    """`axis` (non-negative) is the dimension that the indices replace."""

    axis: int = 0


@dataclass(frozen=True, slots=True)
class GatherNdAttrs(Attrs):
    """The first `batch_dims` dimensions are shared by data and indices."""

    batch_dims: int = 0


@dataclass(frozen=True, slots=True)
class ScatterNdAttrs(Attrs):
    """`reduction` is 'none' (the last update wins), 'add', 'mul', 'min' or 'max'."""

    reduction: str = "none"


@dataclass(frozen=True, slots=True)
class ScatterElementsAttrs(Attrs):
    """`axis` (non-negative) is the dimension that the indices replace; `reduction` as in scatter_nd."""

    axis: int = 0
    reduction: str = "none"


@dataclass(frozen=True, slots=True)
class InsertAttrs(Attrs):
    """`starts`: where the part begins, per dimension."""

    starts: tuple[int, ...]


def _check_axis(axis: int, type: TensorType) -> None:
    if not 0 <= axis < type.rank:
        raise ValueError(f"axis {axis} is out of range for {type}")


def _check_indices(type: TensorType) -> None:
    if not type.dtype.is_integer:
        raise ValueError(f"indices must be integers, got {type}")


def _infer_concat(attrs: ConcatAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    first = types[0]
    _check_axis(attrs.axis, first)
    for other in types[1:]:
        rest = [(a, b) for i, (a, b) in enumerate(zip(first.dims, other.dims, strict=False)) if i != attrs.axis]
        if other.dtype is not first.dtype or other.rank != first.rank or any(a != b for a, b in rest):
            raise ValueError(f"cannot concatenate {first} and {other} along axis {attrs.axis}")
    shape = list(first.dims)
    shape[attrs.axis] = sum(t.dims[attrs.axis] for t in types)
    return (TensorType(first.dtype, tuple(shape)),)


def _infer_insert(attrs: InsertAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    base, part = types
    if part.dtype is not base.dtype or not len(attrs.starts) == part.rank == base.rank:
        raise ValueError(f"cannot insert {part} at {list(attrs.starts)} into {base}")
    if any(s < 0 or s + n > size for s, n, size in zip(attrs.starts, part.dims, base.dims, strict=True)):
        raise ValueError(f"{part} at {list(attrs.starts)} reaches out of {base}")
    return (base,)


def _insert(attrs: InsertAttrs, base: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, ...]:
    result = base.copy()
    result[tuple(slice(s, s + n) for s, n in zip(attrs.starts, part.shape, strict=True))] = part
    return (result,)


def _infer_pad(attrs: PadAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (x,) = types
    if not len(attrs.low) == len(attrs.high) == len(attrs.interior) == x.rank:
        raise ValueError(f"pad needs low, high and interior for each dimension of {x}")
    if attrs.mode not in ("constant", "edge", "reflect", "wrap"):
        raise ValueError(f"unknown pad mode '{attrs.mode}'")
    if min(attrs.interior, default=0) < 0:
        raise ValueError(f"interior padding {list(attrs.interior)} is negative")
    if attrs.mode != "constant":
        if any(attrs.interior) or min(attrs.low + attrs.high, default=0) < 0:
            raise ValueError(f"mode '{attrs.mode}' neither crops nor pads between elements")
        if any(size == 0 and low + high for size, low, high in zip(x.dims, attrs.low, attrs.high, strict=True)):
            raise ValueError(f"mode '{attrs.mode}' has nothing to pad {x} with")
    sizes = zip(x.dims, attrs.low, attrs.high, attrs.interior, strict=True)
    shape = tuple(low + size + max(size - 1, 0) * inner + high for size, low, high, inner in sizes)
    if min(shape, default=0) < 0:
        raise ValueError(f"padding {list(attrs.low)}, {list(attrs.high)} crops more than {x} has")
    return (TensorType(x.dtype, shape),)


def _pad(attrs: PadAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    if attrs.mode != "constant":
        return (np.pad(x, tuple(zip(attrs.low, attrs.high, strict=True)), mode=attrs.mode),)  # type: ignore[call-overload]
    (out,) = _infer_pad(attrs, [TensorType(DType.of(x.dtype), x.shape)])
    result = np.full(out.dims, attrs.value, x.dtype) if attrs.value else np.zeros(out.dims, x.dtype)
    source, target = [], []
    for size, extent, low, inner in zip(x.shape, out.dims, attrs.low, attrs.interior, strict=True):
        step = inner + 1
        first = max(0, -(low // step))
        last = max(first, min(size, -((low - extent) // step)))
        source.append(slice(first, last))
        begin = max(0, low + first * step)
        target.append(slice(begin, begin + (last - first) * step, step))
    result[tuple(target)] = x[tuple(source)]
    return (result,)


def _index_pad(attrs: PadAttrs, types: Sequence[TensorType]) -> Indexing | None:
    """Reads outside the operand yield the pad value. None if the access is not affine (other modes, interior
    padding)."""
    if attrs.mode != "constant" or any(attrs.interior):
        return None
    shape = _infer_pad(attrs, types)[0].dims
    names = dim_names(len(shape))
    dims = tuple(IterDim(n, s) for n, s in zip(names, shape, strict=True))
    read = tuple(var(n) - low for n, low in zip(names, attrs.low, strict=True))
    return Indexing(dims, (read,), (tuple(var(n) for n in names),))


def _infer_gather(attrs: GatherAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices = types
    _check_axis(attrs.axis, x)
    _check_indices(indices)
    return (TensorType(x.dtype, x.dims[: attrs.axis] + indices.dims + x.dims[attrs.axis + 1 :]),)


def _gather(attrs: GatherAttrs, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.take(x, indices.astype(np.int64), axis=attrs.axis),)


def _infer_gather_elements(attrs: GatherElementsAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices = types
    _check_axis(attrs.axis, x)
    _check_indices(indices)
    _check_inside(x, indices, attrs.axis)
    return (TensorType(x.dtype, indices.dims),)


def _check_inside(x: TensorType, indices: TensorType, axis: int) -> None:
    if x.rank != indices.rank or any(
        i > d for n, (d, i) in enumerate(zip(x.dims, indices.dims, strict=False)) if n != axis
    ):
        raise ValueError(f"indices {indices} do not lie inside {x} beside axis {axis}")


def _element_index(indices: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """Full index arrays of each element named by `indices` along `axis`."""
    grid: list[np.ndarray] = list(np.ogrid[tuple(slice(0, n) for n in indices.shape)])
    grid[axis] = indices.astype(np.int64)
    return tuple(grid)


def _infer_gather_nd(attrs: GatherNdAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices = types
    b = attrs.batch_dims
    _check_indices(indices)
    if indices.rank == 0 or not 0 <= b < min(x.rank, indices.rank):
        raise ValueError(f"batch_dims {b} is out of range for {x} and {indices}")
    if x.dims[:b] != indices.dims[:b]:
        raise ValueError(f"the first {b} dimensions of {x} and {indices} differ")
    depth = indices.dims[-1]
    if b + depth > x.rank:
        raise ValueError(f"indices {indices} name {depth} dimensions after {b} batch dimensions, {x} has {x.rank}")
    return (TensorType(x.dtype, indices.dims[:-1] + x.dims[b + depth :]),)


def _gather_nd(attrs: GatherNdAttrs, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    b = attrs.batch_dims
    (out,) = _infer_gather_nd(attrs, [TensorType(DType.of(a.dtype), a.shape) for a in (x, indices)])
    batch = math.prod(x.shape[:b])
    data = x.reshape(batch, *x.shape[b:])
    flat = indices.reshape(batch, math.prod(indices.shape[b:-1]), indices.shape[-1]).astype(np.int64)
    index = (np.arange(batch)[:, None], *np.moveaxis(flat, -1, 0))
    return (np.broadcast_to(data[index], (*flat.shape[:2], *data.shape[1 + flat.shape[2] :])).reshape(out.dims),)


def _check_scatter(reduction: str, x: TensorType, indices: TensorType, updates: TensorType) -> None:
    _check_indices(indices)
    if reduction not in ("none", "add", "mul", "min", "max"):
        raise ValueError(f"unknown reduction '{reduction}'")
    if updates.dtype is not x.dtype:
        raise ValueError(f"updates {updates} and data {x} differ in element type")


def _infer_scatter_nd(attrs: ScatterNdAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices, updates = types
    _check_scatter(attrs.reduction, x, indices, updates)
    if indices.rank == 0 or indices.dims[-1] > x.rank:
        raise ValueError(f"the last dimension of indices {indices} names more dimensions than {x} has")
    expected = indices.dims[:-1] + x.dims[indices.dims[-1] :]
    if updates.dims != expected:
        raise ValueError(f"updates {updates} should have shape {list(expected)} for {x} and indices {indices}")
    return (x,)


def _infer_scatter_elements(attrs: ScatterElementsAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices, updates = types
    _check_axis(attrs.axis, x)
    _check_scatter(attrs.reduction, x, indices, updates)
    _check_inside(x, indices, attrs.axis)
    if updates.dims != indices.dims:
        raise ValueError(f"updates {updates} and indices {indices} differ in shape")
    return (x,)


_UFUNC: dict[str, Any] = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
_BOOL_UFUNC: dict[str, Any] = {**_UFUNC, "add": np.logical_or, "mul": np.logical_and}


def _update(x: np.ndarray, index: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    """`x` with `updates` combined into it at `index`, in row-major order of the updates."""
    dtype = x.dtype
    if reduction == "none":
        out = np.array(x, order="C")
        out[index] = updates
        return out
    narrow = DType.of(dtype).is_float and dtype.itemsize < 4
    out = x.astype(np.float32 if narrow else dtype)
    table = _BOOL_UFUNC if dtype == np.bool_ else _UFUNC
    table[reduction].at(out, index, updates.astype(out.dtype))
    return out.astype(dtype)


def _scatter_nd(
    attrs: ScatterNdAttrs, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> tuple[np.ndarray, ...]:
    if indices.shape[-1] == 0:
        index: tuple[np.ndarray, ...] = (np.zeros(indices.shape[:-1], np.int64),)
        return (_update(x[None], index, updates, attrs.reduction)[0],)
    return (_update(x, tuple(np.moveaxis(indices.astype(np.int64), -1, 0)), updates, attrs.reduction),)


def _scatter_elements(
    attrs: ScatterElementsAttrs, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> tuple[np.ndarray, ...]:
    return (_update(x, _element_index(indices, attrs.axis), updates, attrs.reduction),)


register(
    OpDef(
        name="concat",
        formula="result = operands joined along axis",
        kind=Kind.MOVE,
        operands="...",
        attrs=ConcatAttrs,
        infer=_infer_concat,
        reference=lambda attrs, *arrays: (np.concatenate(arrays, axis=attrs.axis),),
    )
)
register(
    OpDef(
        name="insert",
        formula="result = base; result[starts...] = part. A group that ends in it stores into the memory of base",
        kind=Kind.MOVE,
        operands="base, part",
        attrs=InsertAttrs,
        infer=_infer_insert,
        reference=_insert,
    )
)
register(
    OpDef(
        name="pad",
        formula="result[low + i * (interior + 1)] = x[i]; elsewhere value, or what mode says",
        kind=Kind.MOVE,
        operands="x",
        attrs=PadAttrs,
        infer=_infer_pad,
        reference=_pad,
        indexing=_index_pad,
    )
)
register(
    OpDef(
        name="gather",
        formula="result[i..., j..., k...] = x[i..., indices[j...], k...]",
        kind=Kind.MOVE,
        operands="x, indices",
        attrs=GatherAttrs,
        infer=_infer_gather,
        reference=_gather,
    )
)
register(
    OpDef(
        name="gather_elements",
        formula="result[i, j, k] = x[i, indices[i, j, k], k]   (axis = 1)",
        kind=Kind.MOVE,
        operands="x, indices",
        attrs=GatherElementsAttrs,
        infer=_infer_gather_elements,
        reference=lambda attrs, x, indices: (x[_element_index(indices, attrs.axis)],),
    )
)
register(
    OpDef(
        name="gather_nd",
        formula="result[b..., j..., k...] = x[b..., indices[b..., j..., :]..., k...]",
        kind=Kind.MOVE,
        operands="x, indices",
        attrs=GatherNdAttrs,
        infer=_infer_gather_nd,
        reference=_gather_nd,
    )
)
register(
    OpDef(
        name="scatter_nd",
        formula="result = x; result[indices[j..., :]..., k...] (reduction)= updates[j..., k...]",
        kind=Kind.MOVE,
        operands="x, indices, updates",
        attrs=ScatterNdAttrs,
        infer=_infer_scatter_nd,
        reference=_scatter_nd,
    )
)
register(
    OpDef(
        name="scatter_elements",
        formula="result = x; result[i, indices[i, j, k], k] (reduction)= updates[i, j, k]   (axis = 1)",
        kind=Kind.MOVE,
        operands="x, indices, updates",
        attrs=ScatterElementsAttrs,
        infer=_infer_scatter_elements,
        reference=_scatter_elements,
    )
)
