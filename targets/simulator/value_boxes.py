"""Moves boxes between memories and tiles: the compiled form of ppuc.ir.tile.LoadPlan and StorePlan.

Invariant: elements outside the view are not accessed.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import helper
from ppuc.ir.jit.pointers import move, read_1, read_2, read_4, read_8, read_long, write_1, write_2, write_4, write_8
from ppuc.targets.simulator.value_tables import Patch, Plans, Progress, Run, Side


@helper
def _copy(to: int, to_step: int, origin: int, step: int, n: int, width: int) -> None:
    """Copy n elements of `width` bytes that lie `to_step` and `step` bytes apart."""
    if step == width and to_step == width:
        move(to, origin, n * width)
    elif width == 4:
        for i in range(n):
            write_4(to, i * to_step, read_4(origin, i * step))
    elif width == 2:
        for i in range(n):
            write_2(to, i * to_step, read_2(origin, i * step))
    elif width == 1:
        for i in range(n):
            write_1(to, i * to_step, read_1(origin, i * step))
    else:
        for i in range(n):
            write_8(to, i * to_step, read_8(origin, i * step))


@helper
def _fill(to: int, n: int, width: int, bits: int) -> None:
    for i in range(n):
        if width == 4:
            write_4(to, 4 * i, np.uint32(bits))
        elif width == 2:
            write_2(to, 2 * i, np.uint16(bits))
        elif width == 1:
            write_1(to, i, np.uint8(bits))
        else:
            write_8(to, 8 * i, np.uint64(bits))


@helper
def transfer(
    p: Plans, st: Progress, b: int, values: np.ndarray, memory: int, tile: int, rows: int, pad: int, store: bool
) -> None:
    """Move box b between memory and a tile at these addresses, for loop values; `rows`: address of a list of int64
    positions. What lies outside the view is padded, or not stored."""
    box: Patch = p.patch[b]
    at, inside = memory + box.first, box.gather_dim < 0
    for d in range(box.dims):
        side: Side = p.side[b, d]
        position = side.const
        for j in range(p.coef.shape[2]):
            position += p.coef[b, d, j] * values[j]
        st.position[d] = position
        at += position * side.stride
        if position + side.low < 0 or position + side.high >= side.size:
            inside = False
    st.counts[:] = 0
    if inside:
        _whole(p, st, b, at, tile, store)
    else:
        _clipped(p, st, b, at, tile, rows, pad, store)


@helper
def _whole(p: Plans, st: Progress, b: int, at: int, tile: int, store: bool) -> None:
    """Move a box that is inside its view; scratch `counts` is zero."""
    box: Patch = p.patch[b]
    width, last = box.width, box.runs - 1
    inner: Run = p.run[b, last]
    n, step = inner.size, inner.stride
    for _ in range(box.times):
        to, to_step, origin, origin_step = (at, step, tile, width) if store else (tile, width, at, step)
        _copy(to, to_step, origin, origin_step, n, width)
        tile += n * width
        for a in range(last - 1, -1, -1):
            run: Run = p.run[b, a]
            st.counts[a] += 1
            at += run.stride
            if st.counts[a] < run.size:
                break
            at -= run.stride * run.size
            st.counts[a] = 0


@helper
def _clipped(p: Plans, st: Progress, b: int, at: int, tile: int, rows: int, pad: int, store: bool) -> None:
    """Move the part of a box that is inside its view, row by row of the tile; scratch `position` is that of the first
    element, and `counts` is zero."""
    box: Patch = p.patch[b]
    width, last, dims = box.width, box.axes - 1, box.dims
    alone = last == box.gather_axis  # each element of a row has its own place in the list
    n = 1 if alone or last < 0 else p.axis[b, last].size
    step = 0 if alone or last < 0 else p.axis[b, last].stride
    outer = last if alone else last - 1
    times = 1
    for a in range(outer + 1):
        times *= p.axis[b, a].size
    for _ in range(times):
        lo, hi, origin = 0, n, at
        for d in range(dims):
            side: Side = p.side[b, d]
            if d == box.gather_dim:
                row = read_long(rows, 8 * st.counts[box.gather_axis])
                row = row + side.size if row < 0 else row
                if row < 0 or row >= side.size:
                    hi = 0
                origin += row * side.gathered
                continue
            position, factor = st.position[d], 0 if alone or last < 0 else p.factor[b, d, last]
            if factor == 0:
                if position < 0 or position >= side.size:
                    hi = 0
            elif factor > 0:
                lo = max(lo, -(position // factor))
                hi = min(hi, (side.size - 1 - position) // factor + 1)
            else:
                lo = max(lo, -((side.size - 1 - position) // -factor))
                hi = min(hi, position // -factor + 1)
        if hi <= lo:
            lo, hi = 0, 0
        if not store:
            _fill(tile, lo, width, pad)
            _fill(tile + hi * width, n - hi, width, pad)
        memory, part = origin + lo * step, tile + lo * width
        to, to_step, source, source_step = (memory, step, part, width) if store else (part, width, memory, step)
        _copy(to, to_step, source, source_step, hi - lo, width)
        tile += n * width
        for a in range(outer, -1, -1):
            axis: Run = p.axis[b, a]
            st.counts[a] += 1
            back = axis.size if st.counts[a] == axis.size else 0
            at += axis.stride * (1 - back)
            for d in range(dims):
                st.position[d] += p.factor[b, d, a] * (1 - back)
            if back == 0:
                break
            st.counts[a] = 0
