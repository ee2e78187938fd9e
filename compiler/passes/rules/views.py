"""Rewrites of views and data movement: removes, merges or simplifies them.

Every rule is exact: results are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.passes.rewriter import Rules, Walk
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs, PadAttrs
from ppuc.ir.ops.reduction import CumsumAttrs, ReduceAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.types import broadcast_shapes

_MAX_INDICES = 1 << 16


def reshaped(w: Walk, x: Value, shape: Sequence[int]) -> Value:
    """`x` reshaped; `x` itself if it has that shape."""
    return x if x.type.dims == tuple(shape) else w.emit("reshape", x, attrs=ReshapeAttrs(tuple(shape)))


def transposed(w: Walk, x: Value, perm: Sequence[int]) -> Value:
    """`x` with its dimensions permuted: `x` itself, a reshape if only dimensions of size one move, or a transpose."""
    if tuple(perm) == tuple(range(len(perm))):
        return x
    if keeps_order(x.type.dims, perm):
        return reshaped(w, x, [x.type.dims[p] for p in perm])
    return w.emit("transpose", x, attrs=TransposeAttrs(tuple(perm)))


def keeps_order(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether a transpose keeps the row-major order of elements: dimensions larger than one keep their order."""
    moved = [p for p in perm if shape[p] != 1]
    return moved == sorted(moved) or 0 in shape


def identity_view(w: Walk, op: Op) -> Value | None:
    """reshape, transpose, slice, expand or pad that changes nothing -> its operand."""
    x, attrs = op.operands[0], op.attrs
    if x.type != op.result.type:
        return None
    if isinstance(attrs, TransposeAttrs):
        return x if attrs.perm == tuple(range(x.type.rank)) else None
    if isinstance(attrs, SliceAttrs):
        full = all(start == 0 or size <= 1 for start, size in zip(attrs.starts, attrs.sizes, strict=True))
        forward = all(step == 1 or size <= 1 for step, size in zip(attrs.steps, attrs.sizes, strict=True))
        return x if full and forward else None
    if isinstance(attrs, PadAttrs):
        return x if not any((*attrs.low, *attrs.high)) else None
    return x


def merge_reshapes(w: Walk, op: Op) -> Value | None:
    """reshape(reshape(x)) -> reshape(x)."""
    inner = w.producer(op.operands[0], "reshape")
    if inner is None:
        return None
    w.absorb(inner)
    return reshaped(w, inner.operands[0], op.result.type.dims)


def reshape_before_swap(w: Walk, op: Op) -> Value | None:
    """reshape(transpose(x)) that regroups leading dimensions after a swap of the last two -> transpose(reshape(x))."""
    inner = w.sole(op.operands[0], "transpose")
    shape, rank = op.result.type.dims, op.result.type.rank
    if inner is None or rank < 2:
        return None
    assert isinstance(inner.attrs, TransposeAttrs)
    given = len(inner.attrs.perm)
    if inner.attrs.perm != (*range(given - 2), given - 1, given - 2) or inner.result.type.dims[-2:] != shape[-2:]:
        return None
    w.absorb(inner)
    regrouped = reshaped(w, inner.operands[0], (*shape[:-2], shape[-1], shape[-2]))
    return w.emit("transpose", regrouped, attrs=TransposeAttrs((*range(rank - 2), rank - 1, rank - 2)))


def reshape_into_reduce(w: Walk, op: Op) -> Value | None:
    """reshape(reduce(x)) that only adds or removes the reduced dimensions -> reduce(x) that keeps or drops them."""
    inner = w.sole(op.operands[0], "reduce")
    if inner is None:
        return None
    assert isinstance(inner.attrs, ReduceAttrs)
    attrs = ReduceAttrs(inner.attrs.kind, inner.attrs.axes, not inner.attrs.keepdims)
    x = inner.operands[0]
    other = [1 if i in attrs.axes else d for i, d in enumerate(x.type.dims) if attrs.keepdims or i not in attrs.axes]
    if tuple(other) != op.result.type.dims:
        return None
    w.absorb(inner)
    return w.emit("reduce", x, attrs=attrs)


def expand_as_reshape(w: Walk, op: Op) -> Value | None:
    """expand that only adds dimensions of size one -> reshape."""
    x = op.operands[0]
    return reshaped(w, x, op.result.type.dims) if x.type.elements == op.result.type.elements else None


def merge_expands(w: Walk, op: Op) -> Value | None:
    """expand(expand(x)) -> expand(x)."""
    inner = w.producer(op.operands[0], "expand")
    if inner is None:
        return None
    w.absorb(inner)
    return w.emit("expand", inner.operands[0], attrs=op.attrs)


def merge_transposes(w: Walk, op: Op) -> Value | None:
    """transpose(transpose(x)) -> transpose(x)."""
    inner = w.producer(op.operands[0], "transpose")
    if inner is None:
        return None
    assert isinstance(op.attrs, TransposeAttrs)
    assert isinstance(inner.attrs, TransposeAttrs)
    w.absorb(inner)
    return transposed(w, inner.operands[0], [inner.attrs.perm[p] for p in op.attrs.perm])


def transpose_as_reshape(w: Walk, op: Op) -> Value | None:
    """transpose that moves only dimensions of size one -> reshape."""
    assert isinstance(op.attrs, TransposeAttrs)
    x = op.operands[0]
    return reshaped(w, x, op.result.type.dims) if keeps_order(x.type.dims, op.attrs.perm) else None


def merge_slices(w: Walk, op: Op) -> Value | None:
    """slice(slice(x)) -> slice(x)."""
    inner = w.producer(op.operands[0], "slice")
    if inner is None:
        return None
    a, b = inner.attrs, op.attrs
    assert isinstance(a, SliceAttrs)
    assert isinstance(b, SliceAttrs)
    w.absorb(inner)
    starts = tuple(s + t * step for s, t, step in zip(a.starts, b.starts, a.steps, strict=True))
    steps = tuple(s * t for s, t in zip(a.steps, b.steps, strict=True))
    return w.emit("slice", inner.operands[0], attrs=SliceAttrs(starts, b.sizes, steps))


def slice_of_concat(w: Walk, op: Op) -> Value | None:
    """slice(concat(..., x, ...)) that lies inside x -> slice(x)."""
    inner = w.producer(op.operands[0], "concat")
    if inner is None or 0 in op.result.type.dims:
        return None
    attrs = op.attrs
    assert isinstance(attrs, SliceAttrs)
    assert isinstance(inner.attrs, ConcatAttrs)
    axis, first = inner.attrs.axis, 0
    ends = (attrs.starts[axis], attrs.starts[axis] + (attrs.sizes[axis] - 1) * attrs.steps[axis])
    for part in inner.operands:
        extent = part.type.dims[axis]
        if first <= min(ends) and max(ends) < first + extent:
            w.absorb(inner)
            starts = tuple(s - first if i == axis else s for i, s in enumerate(attrs.starts))
            return w.emit("slice", part, attrs=SliceAttrs(starts, attrs.sizes, attrs.steps))
        first += extent
    return None


def flatten_concat(w: Walk, op: Op) -> Value | None:
    """concat(a, concat(b, c), empty) -> concat(a, b, c); concat(a) -> a."""
    assert isinstance(op.attrs, ConcatAttrs)
    parts: list[Value] = []
    for part in op.operands:
        inner = w.sole(part, "concat")
        if inner is not None and inner.attrs == op.attrs:
            w.absorb(inner)
            parts += inner.operands
        elif part.type.dims[op.attrs.axis] != 0:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return None if not parts or tuple(parts) == op.operands else w.emit("concat", *parts, attrs=op.attrs)


def join_slices(w: Walk, op: Op) -> Value | None:
    """concat(x[0:2], x[2:5]) -> x[0:5]; joins the first such pair."""
    assert isinstance(op.attrs, ConcatAttrs)
    parts = op.operands
    for i in range(len(parts) - 1):
        joined = _joined(w, parts[i], parts[i + 1], op.attrs.axis)
        if joined is not None:
            rest = (*parts[:i], joined, *parts[i + 2 :])
            return joined if len(rest) == 1 else w.emit("concat", *rest, attrs=op.attrs)
    return None


def _joined(w: Walk, left: Value, right: Value, axis: int) -> Value | None:
    a, b = w.producer(left, "slice"), w.producer(right, "slice")
    if a is None or b is None or a.operands != b.operands:
        return None
    s, t = a.attrs, b.attrs
    assert isinstance(s, SliceAttrs)
    assert isinstance(t, SliceAttrs)
    for i, fields in enumerate(zip(s.starts, s.sizes, s.steps, t.starts, t.sizes, t.steps, strict=True)):
        start, size, step, other_start, other_size, other_step = fields
        follows = other_start == start + size * step if i == axis else (start, size) == (other_start, other_size)
        if step != other_step or not follows:
            return None
    w.absorb(a, b)
    sizes = tuple(n + t.sizes[i] if i == axis else n for i, n in enumerate(s.sizes))
    return w.emit("slice", a.operands[0], attrs=SliceAttrs(s.starts, sizes, s.steps))


def repeat_as_expand(w: Walk, op: Op) -> Value | None:
    """concat(x, x, x) along a dimension of size one -> expand(x)."""
    assert isinstance(op.attrs, ConcatAttrs)
    x = op.operands[0]
    if len(op.operands) == 1 or any(part != x for part in op.operands) or x.type.dims[op.attrs.axis] != 1:
        return None
    return w.emit("expand", x, attrs=ExpandAttrs(op.result.type.dims))


def gather_as_slice(w: Walk, op: Op) -> Value | None:
    """gather with constant indices in arithmetic progression -> slice (and reshape to the indices' dimensions)."""
    x, indices = op.operands
    resource = w.resource(indices)
    if resource is None or not 0 < indices.type.elements <= _MAX_INDICES:
        return None
    assert isinstance(op.attrs, GatherAttrs)
    axis, extent = op.attrs.axis, x.type.dims[op.attrs.axis]
    flat = resource.array().reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + extent, flat)
    steps = np.unique(np.diff(flat))
    if steps.size > 1 or 0 in steps or flat.min() < 0 or flat.max() >= extent:
        return None
    sizes = list(x.type.dims)
    sizes[axis] = flat.size
    starts = tuple(int(flat[0]) if i == axis else 0 for i in range(len(sizes)))
    strides = tuple(int(steps[0]) if i == axis and steps.size else 1 for i in range(len(sizes)))
    return reshaped(w, w.emit("slice", x, attrs=SliceAttrs(starts, tuple(sizes), strides)), op.result.type.dims)


def drop_expand(w: Walk, op: Op) -> Value | None:
    """elementwise(expand(x), y) -> elementwise(x, y) when y has the full shape already."""
    operands = list(op.operands)
    for i, operand in enumerate(operands):
        inner = w.producer(operand, "expand")
        if inner is None:
            continue
        shapes = [v.type.dims for v in (*operands[:i], inner.operands[0], *operands[i + 1 :])]
        if broadcast_shapes(*shapes) == op.result.type.dims:
            w.absorb(inner)
            operands[i] = inner.operands[0]
    return None if tuple(operands) == op.operands else w.emit(op.name, *operands, attrs=op.attrs)


def reduce_of_ones(w: Walk, op: Op) -> Value | None:
    """reduce over dimensions of size one -> reshape; those among others are left out of the reduction."""
    assert isinstance(op.attrs, ReduceAttrs)
    x = op.operands[0]
    axes = tuple(a for a in op.attrs.axes if x.type.dims[a] != 1)
    if axes == op.attrs.axes and axes:
        return None
    if not axes:
        return reshaped(w, x, op.result.type.dims)
    kept = w.emit("reduce", x, attrs=ReduceAttrs(op.attrs.kind, axes, True))
    return kept if op.attrs.keepdims else reshaped(w, kept, op.result.type.dims)


def merge_pads(w: Walk, op: Op) -> Value | None:
    """pad(pad(x)) with one constant, growing only -> pad(x)."""
    inner = w.sole(op.operands[0], "pad")
    if inner is None:
        return None
    a, b = inner.attrs, op.attrs
    assert isinstance(a, PadAttrs)
    assert isinstance(b, PadAttrs)
    if a.mode != "constant" or b.mode != "constant" or a.value != b.value or any((*a.interior, *b.interior)):
        return None
    if min((*a.low, *a.high, *b.low, *b.high)) < 0:
        return None
    w.absorb(inner)
    low = tuple(i + j for i, j in zip(a.low, b.low, strict=True))
    high = tuple(i + j for i, j in zip(a.high, b.high, strict=True))
    return w.emit("pad", inner.operands[0], attrs=PadAttrs(low, high, a.interior, a.value, a.mode))


def crop_as_slice(w: Walk, op: Op) -> Value | None:
    """pad that only crops -> slice."""
    attrs = op.attrs
    assert isinstance(attrs, PadAttrs)
    if attrs.mode != "constant" or any(attrs.interior) or max((*attrs.low, *attrs.high), default=0) > 0:
        return None
    starts = tuple(-n for n in attrs.low)
    return w.emit("slice", op.operands[0], attrs=SliceAttrs(starts, op.result.type.dims, (1,) * len(starts)))


def scan_of_one(w: Walk, op: Op) -> Value | None:
    """argreduce or exclusive cumsum along a dimension of size one -> zeros; inclusive cumsum -> its operand."""
    x, axis = op.operands[0], op.attrs.axis  # type: ignore[attr-defined]
    if x.type.dims[axis] != 1:
        return None
    if isinstance(op.attrs, CumsumAttrs) and not op.attrs.exclusive:
        return x
    return w.const(np.zeros(op.result.type.dims, op.result.type.dtype.numpy))


VIEW_RULES: Rules = {
    "argreduce": (scan_of_one,),
    "cumsum": (scan_of_one,),
    "reshape": (identity_view, merge_reshapes, reshape_before_swap, reshape_into_reduce),
    "transpose": (identity_view, merge_transposes, transpose_as_reshape),
    "slice": (identity_view, merge_slices, slice_of_concat),
    "expand": (identity_view, expand_as_reshape, merge_expands),
    "pad": (identity_view, crop_as_slice, merge_pads),
    "concat": (flatten_concat, repeat_as_expand, join_slices),
    "gather": (gather_as_slice,),
    "reduce": (reduce_of_ones,),
}
