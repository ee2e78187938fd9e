"""Rewrites pads to those that loads support: constant, not cropping, and without interior padding.

Invariant: results are bit-identical. Positions come from numpy.pad applied to a list of positions, as in the op's
reference, so modes agree with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ppuc.compiler.passes.rewriter import Rules, Walk
from ppuc.compiler.passes.rules.views import identity_view, reshaped
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs, PadAttrs
from ppuc.ir.ops.view import ExpandAttrs, SliceAttrs

MOST_PARTS = 8
"""Maximum slices that a mirrored or wrapped axis is concatenated from; beyond that it is gathered."""


def _pad_attrs(op: Op) -> PadAttrs:
    assert isinstance(op.attrs, PadAttrs)
    return op.attrs


def pad_of_nothing(w: Walk, op: Op) -> Value | None:
    """Constant pad that keeps no element of its operand -> expand(value)."""
    attrs, x = _pad_attrs(op), op.operands[0].type
    spread = [n + max(n - 1, 0) * i for n, i in zip(x.dims, attrs.interior, strict=True)]
    kept = [min(low + n, out) - max(low, 0) for low, n, out in zip(attrs.low, spread, op.result.type.dims, strict=True)]
    if attrs.mode != "constant" or (x.elements and min(kept, default=1) > 0):
        return None
    return w.emit("expand", w.scalar(attrs.value or 0.0, x.dtype), attrs=ExpandAttrs(op.result.type.dims))


def pad_between_elements(w: Walk, op: Op) -> Value | None:
    """pad of [n] with interior i -> [n, 1] padded to [n, 1 + i], seen as [n * (1 + i)] and cut to its last element."""
    attrs, x = _pad_attrs(op), op.operands[0]
    spread = [i > 0 and n > 1 for n, i in zip(x.type.dims, attrs.interior, strict=True)]
    none = (0,) * len(spread)
    if not any(spread):
        return w.emit("pad", x, attrs=replace(attrs, interior=none)) if any(attrs.interior) else None
    apart: list[int] = []
    high: list[int] = []
    wide: list[int] = []
    sizes: list[int] = []
    for n, i, apply in zip(x.type.dims, attrs.interior, spread, strict=True):
        apart += [n, 1] if apply else [n]
        high += [0, i] if apply else [0]
        wide.append(n * (1 + i) if apply else n)
        sizes.append(n + (n - 1) * i if apply else n)
    flat = (0,) * len(apart)
    grown = w.emit("pad", reshaped(w, x, apart), attrs=PadAttrs(flat, tuple(high), flat, attrs.value))
    cut = w.emit("slice", reshaped(w, grown, wide), attrs=SliceAttrs(none, tuple(sizes), (1,) * len(sizes)))
    return w.emit("pad", cut, attrs=replace(attrs, interior=none))


def pad_that_crops(w: Walk, op: Op) -> Value | None:
    """pad with negative extents -> pad(slice(x)) with none."""
    attrs, x = _pad_attrs(op), op.operands[0]
    if any(attrs.interior) or min((*attrs.low, *attrs.high), default=0) >= 0:
        return None
    starts = tuple(max(0, -low) for low in attrs.low)
    sizes = tuple(n - start - max(0, -high) for n, start, high in zip(x.type.dims, starts, attrs.high, strict=True))
    cut = w.emit("slice", x, attrs=SliceAttrs(starts, sizes, (1,) * len(sizes)))
    low, high = (tuple(max(0, n) for n in side) for side in (attrs.low, attrs.high))
    return w.emit("pad", cut, attrs=replace(attrs, low=low, high=high))


def pad_by_copies(w: Walk, op: Op) -> Value | None:
    """pad in mode edge, reflect or wrap -> per axis, a concat of slices (reversed ones step backwards)."""
    attrs, value = _pad_attrs(op), op.operands[0]
    if attrs.mode == "constant":
        return None
    for axis, (low, high) in enumerate(zip(attrs.low, attrs.high, strict=True)):
        if low or high:
            positions = np.pad(np.arange(value.type.dims[axis]), (low, high), mode=attrs.mode)  # type: ignore[call-overload]
            value = _picked(w, value, axis, positions)
    return value


def _picked(w: Walk, x: Value, axis: int, positions: np.ndarray) -> Value:
    """`x` at `positions` along `axis`."""
    found = runs(positions)
    if len(found) > MOST_PARTS:
        return w.emit("gather", x, w.const(positions.astype(np.int64)), attrs=GatherAttrs(axis))
    parts = [_run(w, x, axis, *run) for run in found]
    return parts[0] if len(parts) == 1 else w.emit("concat", *parts, attrs=ConcatAttrs(axis))


def _run(w: Walk, x: Value, axis: int, start: int, size: int, step: int) -> Value:
    dims = x.type.dims
    starts = tuple(start if i == axis else 0 for i in range(len(dims)))
    steps = tuple(step if i == axis and step else 1 for i in range(len(dims)))
    sizes = tuple((size if step else 1) if i == axis else n for i, n in enumerate(dims))
    part = w.emit("slice", x, attrs=SliceAttrs(starts, sizes, steps))
    wanted = tuple(size if i == axis else n for i, n in enumerate(dims))
    return part if sizes == wanted else w.emit("expand", part, attrs=ExpandAttrs(wanted))


def runs(positions: np.ndarray) -> list[tuple[int, int, int]]:
    """`positions` as (start, size, step) of stretches in which neighbours differ by the same step of -1, 0 or 1."""
    steps = np.diff(positions)
    turns = np.append(np.flatnonzero(np.diff(steps)) + 1, steps.size)  # where a stretch of equal steps ends
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < positions.size:
        step = int(steps[at]) if at < steps.size else 1
        last = int(turns[np.searchsorted(turns, at, "right")]) if at < steps.size and abs(step) <= 1 else at
        found.append((int(positions[at]), last - at + 1, step if last > at else 1))
        at = last + 1
    return found


PAD_RULES: Rules = {"pad": (identity_view, pad_of_nothing, pad_by_copies, pad_between_elements, pad_that_crops)}
