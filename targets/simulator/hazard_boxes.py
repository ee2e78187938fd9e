"""The elements that a load or store accesses, for the hazard checker: granules of the boxes inside their views.

Invariant: a box touches each of its granules in the order of the tile's axes, the one with the smallest stride last.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.records import Box, BoxAxis, BoxDim
from ppuc.targets.simulator.tables import LOG_ENV, Code, Machine
from ppuc.targets.simulator.vector_clocks import RAW, WAR, WAW, Checker, ordered, report


@helper
def touch(
    k: Checker, m: Machine, s: int, i: int, t: int, first: int, n: int, stride: int, stamp: int, write: bool, soft: bool
) -> None:
    """Record reads or writes of n elements first, first + stride, ...; `soft` writes are not checked."""
    size, base, fine_w, fine_r = k.t_gran[t, 0], k.t_gran[t, 1], 0, 0
    if stride < 0:
        first, stride = first + stride * (n - 1), -stride
    pieces = (first + n - 1) // size - first // size + 1 if stride == 1 else n
    for j in range(pieces):
        g = base + (first // size + j if stride == 1 else (first + j * stride) // size)
        writer, reader = k.last[g, 0], k.last[g, 1]
        if writer != fine_w and not soft and not ordered(k, m, s, writer, write):
            report(k, WAW if write else RAW, writer, i, t, True)
        fine_w = writer
        if write:
            if reader != fine_r and not soft and not ordered(k, m, s, reader, True):
                report(k, WAR, reader, i, t, True)
            fine_r = reader
            k.last[g, 0] = stamp
        else:
            k.last[g, 1] = stamp


@helper
def _axis_size(c: Code, b: int, a: int) -> int:
    """Size of a tile axis; for the axis of an index list, the size of the indexed dimension, as the list may name any
    row."""
    return int(c.dim[b, c.box[b].gather_dim].size if a == c.box[b].gather_axis else c.axis[b, a].size)


@helper
def _inner_axis(c: Code, b: int) -> int:
    """The axis with the smallest stride in memory, or -1."""
    for j in range(c.box[b].axes):
        a = c.axis[b, j].order
        if c.axis[b, a].stride != 0 and _axis_size(c, b, a) > 1:
            return int(a)
    return -1


@helper
def walk_box(c: Code, k: Checker, m: Machine, log: np.ndarray, s: int, i: int, t: int, stamp: int, write: bool) -> None:
    """Touch every element of a load's or store's box that is inside its view."""
    b = c.ins[i].desc
    box: Box = c.box[b]
    inner = _inner_axis(c, b)
    index, at, base = k.scratch[0], k.scratch[1], k.scratch[2]
    for d in range(box.dims):
        base[d] = c.dim[b, d].const if d != box.gather_dim else 0
        for j in range(c.ins[i].depth):
            base[d] += c.coef[b, d, j] * log[LOG_ENV + j] if d != box.gather_dim else 0
    index[:] = 0
    if _is_aligned(c, k, t, b, inner):
        _walk_inside(c, k, m, s, i, t, b, inner, stamp, write)
        return
    soft = write and box.gather_dim >= 0
    while True:
        for d in range(box.dims):
            at[d] = base[d]
        for a in range(box.axes):
            axis: BoxAxis = c.axis[b, a]
            if axis.dim >= 0:
                at[axis.dim] += index[a] * axis.factor
        _walk_run(c, k, m, s, i, t, b, inner, stamp, write, soft)
        a = box.axes - 1
        while a >= 0:
            if a != inner and c.axis[b, a].stride != 0:
                index[a] += 1
                if index[a] < _axis_size(c, b, a):
                    break
                index[a] = 0
            a -= 1
        if a < 0:
            return


@helper
def _is_aligned(c: Code, k: Checker, t: int, b: int, inner: int) -> bool:
    """Whether a box, whose offsets are in scratch row 2, is inside its view and repeats its first run at distances of
    whole granules."""
    box: Box = c.box[b]
    base, size = k.scratch[2], k.t_gran[t, 0]
    if box.gather_dim >= 0:
        return False
    for d in range(box.dims):
        dim: BoxDim = c.dim[b, d]
        if base[d] + dim.low < 0 or base[d] + dim.high >= dim.size:
            return False
    for a in range(box.axes):
        if a != inner and c.axis[b, a].size > 1 and c.axis[b, a].stride % size != 0:
            return False
    return inner < 0 or abs(c.axis[b, inner].stride) == 1 or c.axis[b, inner].stride % size == 0


@helper
def _walk_inside(
    c: Code, k: Checker, m: Machine, s: int, i: int, t: int, b: int, inner: int, stamp: int, write: bool
) -> None:
    """Touch an aligned box granule by granule, in the order of `walk_box`."""
    box: Box = c.box[b]
    index, base, size = k.scratch[0], k.scratch[2], k.t_gran[t, 0]
    first, n, step = box.first, 1, 1
    for d in range(box.dims):
        first += base[d] * c.dim[b, d].stride
    if inner >= 0:
        axis: BoxAxis = c.axis[b, inner]
        reach = (axis.size - 1) * axis.stride
        first += min(0, reach)
        if abs(axis.stride) == 1:
            n = (first + abs(reach)) // size - first // size + 1
        else:
            n, step = axis.size, abs(axis.stride) // size
    g, fine_w, fine_r = k.t_gran[t, 1] + first // size, 0, 0
    while True:
        for at in range(g, g + n * step, step):
            writer, reader = k.last[at, 0], k.last[at, 1]
            if writer != fine_w and not ordered(k, m, s, writer, write):
                report(k, WAW if write else RAW, writer, i, t, True)
            fine_w = writer
            if write:
                if reader != fine_r and not ordered(k, m, s, reader, True):
                    report(k, WAR, reader, i, t, True)
                fine_r = reader
            k.last[at, 0 if write else 1] = stamp
        a = box.axes - 1
        while a >= 0:
            outer: BoxAxis = c.axis[b, a]
            if a != inner and outer.stride != 0:
                index[a] += 1
                g += outer.stride // size
                if index[a] < outer.size:
                    break
                g -= outer.size * (outer.stride // size)
                index[a] = 0
            a -= 1
        if a < 0:
            return


@helper
def _walk_run(
    c: Code, k: Checker, m: Machine, s: int, i: int, t: int, b: int, inner: int, stamp: int, write: bool, soft: bool
) -> None:
    """Touch the elements along the inner axis, with the other indices from scratch row 1."""
    at = k.scratch[1]
    along = c.axis[b, inner].dim if inner >= 0 else -1
    element, lo, hi = c.box[b].first, 0, 0
    for d in range(c.box[b].dims):
        size = c.dim[b, d].size
        element += at[d] * c.dim[b, d].stride
        if d == along:
            f = c.axis[b, inner].factor
            hi = _axis_size(c, b, inner) - 1
            if f > 0:
                lo, hi = max(0, -(at[d] // f)), min(hi, (size - 1 - at[d]) // f)
            else:
                lo, hi = max(0, -((size - 1 - at[d]) // -f)), min(hi, at[d] // -f)
        elif at[d] < 0 or at[d] >= size:
            return
    if hi >= lo:
        stride = c.axis[b, inner].stride if inner >= 0 else 1
        touch(k, m, s, i, t, element + lo * stride, hi - lo + 1, stride, stamp, write, soft)
