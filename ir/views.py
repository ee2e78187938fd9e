"""Algebra of strided views: reshape, transpose, slice and expand.

Every function returns a View of the same flat memory whose row-major elements are those of the op's result; `reshape`
returns None if no strided view exists (the elements would have to be copied).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppuc.ir.graph import Op
from ppuc.ir.kernel import MAX_VIEW_RANK, View


def transpose(view: View, perm: Sequence[int]) -> View:
    """Axes in the order `perm`."""
    return View(tuple(view.shape[p] for p in perm), tuple(view.strides[p] for p in perm), view.offset)


def take_slice(view: View, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> View:
    """`starts[d] + i * steps[d]` for i in 0..sizes[d]; steps may be negative."""
    offset = view.offset + sum(s * t for s, t in zip(starts, view.strides, strict=True))
    return View(tuple(sizes), tuple(p * t for p, t in zip(steps, view.strides, strict=True)), offset)


def expand(view: View, shape: Sequence[int]) -> View:
    """numpy.broadcast_to: new and repeated axes get stride 0."""
    lead = len(shape) - len(view.shape)
    strides = [0] * lead
    strides += [
        0 if have == 1 and want != 1 else stride
        for have, want, stride in zip(view.shape, shape[lead:], view.strides, strict=True)
    ]
    return View(tuple(shape), tuple(strides), view.offset)


def coalesced(view: View) -> View:
    """The same elements with size-1 axes dropped and neighbouring axes merged where strides allow it."""
    shape: list[int] = []
    strides: list[int] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size == 1:
            continue
        if shape and strides[-1] == stride * size:
            shape[-1] *= size
            strides[-1] = stride
        else:
            shape.append(size)
            strides.append(stride)
    return View(tuple(shape), tuple(strides), view.offset)


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """The view with another shape, or None when that needs a copy (numpy's no-copy reshape rule)."""
    if 0 in shape:
        return View(tuple(shape), (0,) * len(shape), view.offset)
    blocks = list(zip(*(lambda v: (v.shape, v.strides))(coalesced(view)), strict=True))
    strides = [0] * len(shape)
    left, stride = 1, 0  # elements of the current block not yet assigned, from its fastest axis
    for i in range(len(shape) - 1, -1, -1):
        if shape[i] == 1:
            strides[i] = 0
            continue
        if left == 1:
            if not blocks:
                return None
            left, stride = blocks.pop()
        if left % shape[i]:
            return None
        strides[i] = stride
        stride *= shape[i]
        left //= shape[i]
    return View(tuple(shape), tuple(strides), view.offset) if left == 1 and not blocks else None


def apply(op: Op, view: View) -> View | None:
    """The view of a VIEW op's result, given its operand's view; None if it needs a copy or has more dimensions than a
    descriptor."""
    result = _applied(op, view)
    if result is None or len(result.shape) <= MAX_VIEW_RANK:
        return result
    return result if len(coalesced(result).shape) <= MAX_VIEW_RANK else None


def _applied(op: Op, view: View) -> View | None:
    shape = op.results[0].type.dims
    attrs = op.attrs
    if op.name == "reshape":
        return reshape(view, shape)
    if op.name == "transpose":
        return transpose(view, attrs.perm)  # type: ignore[attr-defined]
    if op.name == "slice":
        return take_slice(view, attrs.starts, attrs.sizes, attrs.steps)  # type: ignore[attr-defined]
    if op.name == "expand":
        return expand(view, shape)
    raise ValueError(f"'{op.name}' is not a view")


def undo(op: Op, view: View) -> View | None:
    """Inverse of `apply` for the views that keep every element (reshape, transpose): from a view in the shape of the
    op's result to one in the shape of its operand. None for others, or when a copy would be needed."""
    if op.name == "reshape":
        return reshape(view, op.operands[0].type.dims)
    if op.name == "transpose":
        perm = op.attrs.perm  # type: ignore[attr-defined]
        inverse = [0] * len(perm)
        for i, p in enumerate(perm):
            inverse[p] = i
        return transpose(view, inverse)
    return None


def axis_before(view: Op, axis: int) -> int | None:
    """The axis of a view's operand that corresponds to `axis` of its result; None if there is none."""
    before, after = view.operands[0].type.dims, view.results[0].type.dims
    if view.name == "transpose":
        return int(view.attrs.perm[axis])  # type: ignore[attr-defined]
    outer, size = math.prod(after[:axis]), after[axis]
    return next((a for a, d in enumerate(before) if d == size and math.prod(before[:a]) == outer), None)
