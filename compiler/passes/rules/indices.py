"""Rewrites gathers and scatters to two forms: `gather` along one axis, and `scatter_nd` of rows.

Integer arithmetic turns an index of several components into a flat row number. A negative component is first counted
from the end if it is combined with others. A row comprises the remaining dimensions.

Invariant: results are bit-identical, including the order of updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.passes.rewriter import Rules, Walk
from ppuc.compiler.passes.rules.views import reshaped
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import (
    GatherAttrs,
    GatherElementsAttrs,
    GatherNdAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
from ppuc.ir.ops.view import ExpandAttrs, SliceAttrs
from ppuc.ir.types import DType


def _wide(w: Walk, indices: Value, rows: int) -> Value:
    """`indices` in a type that holds every row number and is signed."""
    dtype = indices.type.dtype
    if dtype is DType.I64 or (dtype is DType.I32 and rows <= np.iinfo(np.int32).max):
        return indices
    return w.emit("cast", indices, attrs=CastAttrs(DType.I64))


def _from_start(w: Walk, index: Value, size: int) -> Value:
    """select(index < 0, index + size, index)."""
    dtype = index.type.dtype
    negative = w.emit("lt", index, w.scalar(0, dtype))
    return w.emit("select", negative, w.emit("add", index, w.scalar(size, dtype)), index)


def _scaled(w: Walk, index: Value, factor: int) -> Value:
    return index if factor == 1 else w.emit("mul", index, w.scalar(factor, index.type.dtype))


def _total(w: Walk, terms: Sequence[Value], count: int, dtype: DType) -> Value:
    """The sum of `terms`; `count` zeros when there are none."""
    if not terms:
        return w.const(np.zeros(count, dtype.numpy))
    total = terms[0]
    for term in terms[1:]:
        total = w.emit("add", total, term)
    return total


def _row_numbers(w: Walk, indices: Value, sizes: Sequence[int], *, batched: bool = False) -> list[Value]:
    """Terms [J] of the flat row number that indices [J, k] over dimensions of `sizes` name. A lone component is left as
    it is (its users accept negative ones) unless it is `batched`: added to other terms."""
    count = indices.type.dims[0]
    if len(sizes) == 1 and not batched:
        return [reshaped(w, indices, (count,))]
    terms = []
    for k, size in enumerate(sizes):
        if size == 1:
            continue
        one = w.emit("slice", indices, attrs=SliceAttrs((0, k), (count, 1), (1, 1)))
        index = _from_start(w, reshaped(w, one, (count,)), size)
        terms.append(_scaled(w, index, math.prod(sizes[k + 1 :])))
    return terms


def gather_nd_as_gather(w: Walk, op: Op) -> Value | None:
    """gather_nd -> gather of rows [batch * indexed dimensions, rest]."""
    x, indices = op.operands
    assert isinstance(op.attrs, GatherNdAttrs)
    batch_dims, depth = op.attrs.batch_dims, indices.type.dims[-1]
    dims, batch = x.type.dims, math.prod(x.type.dims[: op.attrs.batch_dims])
    sizes, rest = dims[batch_dims : batch_dims + depth], dims[batch_dims + depth :]
    each = math.prod(indices.type.dims[batch_dims:-1])
    if depth == 0:
        lead = (*dims[:batch_dims], *(1 for _ in indices.type.dims[batch_dims:-1]), *rest)
        return w.emit("expand", reshaped(w, x, lead), attrs=ExpandAttrs(op.result.type.dims))
    rows = batch * math.prod(sizes)
    listed = _wide(w, reshaped(w, indices, (batch * each, depth)), rows)
    dtype = listed.type.dtype
    terms = _row_numbers(w, listed, sizes, batched=batch > 1)
    if batch > 1:
        offsets = np.repeat(np.arange(batch) * math.prod(sizes), each)
        terms = [*terms, w.const(offsets.astype(dtype.numpy))]
    flat = _total(w, terms, batch * each, dtype)
    table = reshaped(w, x, (rows, math.prod(rest)))
    return reshaped(w, w.emit("gather", table, flat, attrs=GatherAttrs(0)), op.result.type.dims)


def _element_numbers(w: Walk, indices: Value, dims: Sequence[int], axis: int) -> Value:
    """Flat element numbers [M] that `indices` along `axis` name in a tensor of `dims`."""
    shape, elements = indices.type.dims, math.prod(dims)
    listed = _wide(w, indices, elements)
    if len(dims) == 1:
        return listed
    dtype, outer, inner = listed.type.dtype, math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    split = reshaped(w, listed, (outer, shape[axis], inner))
    total = _scaled(w, _from_start(w, split, dims[axis]), math.prod(dims[axis + 1 :]))
    before = _offsets(shape[:axis], dims[:axis]) * math.prod(dims[axis:])
    after = _offsets(shape[axis + 1 :], dims[axis + 1 :])
    for offsets, view in ((before, (outer, 1, 1)), (after, (1, 1, inner))):
        if offsets.any():
            total = w.emit("add", total, w.const(offsets.astype(dtype.numpy).reshape(view)))
    return reshaped(w, total, (math.prod(shape),))


def _offsets(shape: Sequence[int], dims: Sequence[int]) -> np.ndarray:
    """Flat positions, in a tensor of `dims`, of the elements of its leading corner of `shape`."""
    total = np.zeros((), np.int64)
    for extent, size in zip(shape, dims, strict=True):
        total = total[..., None] * size + np.arange(extent)
    return total.reshape(-1)


def gather_elements_as_gather(w: Walk, op: Op) -> Value | None:
    """gather_elements -> gather of single elements by flat number."""
    x, indices = op.operands
    assert isinstance(op.attrs, GatherElementsAttrs)
    flat = _element_numbers(w, indices, x.type.dims, op.attrs.axis)
    table = reshaped(w, x, (x.type.elements,))
    return reshaped(w, w.emit("gather", table, flat, attrs=GatherAttrs(0)), op.result.type.dims)


def scatter_elements_as_rows(w: Walk, op: Op) -> Value | None:
    """scatter_elements -> scatter_nd of rows of one element."""
    x, indices, updates = op.operands
    assert isinstance(op.attrs, ScatterElementsAttrs)
    flat, count = _element_numbers(w, indices, x.type.dims, op.attrs.axis), indices.type.elements
    rows = [reshaped(w, v, (n, 1)) for v, n in ((x, x.type.elements), (flat, count), (updates, count))]
    result = w.emit("scatter_nd", *rows, attrs=ScatterNdAttrs(op.attrs.reduction))
    return reshaped(w, result, op.result.type.dims)


def scatter_nd_as_rows(w: Walk, op: Op) -> Value | None:
    """scatter_nd -> scatter_nd of data [R, C] at indices [N, 1] by updates [N, C]."""
    x, indices, updates = op.operands
    depth, dims = indices.type.dims[-1], x.type.dims
    if (x.type.rank, indices.type.rank, updates.type.rank, depth) == (2, 2, 2, 1):
        wide = _wide(w, indices, dims[0])
        return None if wide is indices else w.emit("scatter_nd", x, wide, updates, attrs=op.attrs)
    count, rows = math.prod(indices.type.dims[:-1]), math.prod(dims[:depth])
    columns = math.prod(dims[depth:])
    listed = _wide(w, reshaped(w, indices, (count, depth)), rows)
    terms = _row_numbers(w, listed, dims[:depth]) if depth else []
    flat = _total(w, terms, count, listed.type.dtype)
    result = w.emit(
        "scatter_nd",
        reshaped(w, x, (rows, columns)),
        reshaped(w, flat, (count, 1)),
        reshaped(w, updates, (count, columns)),
        attrs=op.attrs,
    )
    return reshaped(w, result, op.result.type.dims)


INDEX_RULES: Rules = {
    "gather_nd": (gather_nd_as_gather,),
    "gather_elements": (gather_elements_as_gather,),
    "scatter_elements": (scatter_elements_as_rows,),
    "scatter_nd": (scatter_nd_as_rows,),
}
