"""The elements that boxes of loads and stores span, for all iterations of the loops around them at once.

Invariant: a span is that of `ppuc.ir.tile.BoxPlan.span`, which the simulator uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.ir.affine import Affine
from ppuc.ir.kernel import Loop


def box_span(
    view_offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    index: Sequence[Affine],
    tile: Sequence[int],
    offsets: Sequence[np.ndarray],
    whole: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """First and last flat element of a box, for arrays of offsets per view dimension; last < first if the box is empty.
    `whole` is a dimension addressed by an index list: all of it counts."""
    first = last = np.asarray(view_offset)
    empty = np.asarray(False)
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if dim == whole:
            lo, hi = np.asarray(0), np.asarray(size - 1)
        else:
            axes = index[dim].axes
            low = sum(min(0, f * (tile[a] - 1)) for a, f in axes)
            high = sum(max(0, f * (tile[a] - 1)) for a, f in axes)
            lo = np.maximum(offsets[dim] + low, 0)
            hi = np.minimum(offsets[dim] + high, size - 1)
            empty = empty | (hi < lo)
        first = first + stride * (lo if stride >= 0 else hi)
        last = last + stride * (hi if stride >= 0 else lo)
    return np.where(empty, 0, first), np.where(empty, -1, last)


def iterations(loops: Sequence[Loop]) -> dict[str, np.ndarray]:
    """Loop variable -> its values, shaped to broadcast over the iteration space of `loops`."""
    rank = len(loops)
    return {
        loop.var: (loop.start + loop.step * np.arange(loop.trips)).reshape([-1 if i == d else 1 for i in range(rank)])
        for d, loop in enumerate(loops)
    }


__all__ = ["box_span", "iterations"]
