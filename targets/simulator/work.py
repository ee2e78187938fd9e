"""Work of one instance of an instruction: boxes clipped at the edges of tensors, valid extents, cycles.

The formulas are those of ppuc.targets.cost and ppuc.targets.vector_cost, compiled. Results go to scratch fields of
State and to the head's box.

Invariant: functions change only scratch and statistics, not the course of a run.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import helper
from ppuc.targets import cost, vector_cost
from ppuc.targets.simulator.records import (
    Box,
    BoxAxis,
    BoxDim,
    Extent,
    Instruction,
    Moved,
    Numbers,
    Product,
    Stat,
    Stream,
    Term,
    Vector,
)
from ppuc.targets.simulator.tables import NO_BOUND, TICKS, Code, Machine, State

_engine_clk = helper(cost.engine_clk)
_continued_clk = helper(cost.continued_clk)
_placed = helper(cost.placed)
_operand_bytes = helper(cost.mma_operand_bytes)
_longer_row = helper(cost.longer_row)
_step_clk = helper(vector_cost.step_clk)


@helper
def in_ticks(clk: float) -> float:
    """`clk` rounded up to whole ticks."""
    return float(np.ceil(clk * TICKS) / TICKS)


@helper
def _clip(c: Code, st: State, b: int, d: int, at: int) -> None:
    """Valid extents of the tile axes that move along dimension d, clipped at its ends."""
    dim: BoxDim = c.dim[b, d]
    a1, a2 = dim.axis_1, dim.axis_2
    if a1 < 0:
        if at < 0 or at >= dim.size:
            st.valid[:] = 0
        return
    n1 = c.axis[b, a1].size
    if a2 < 0:
        st.valid[a1] = min(st.valid[a1], _inside(at, dim.factor_1, n1, dim.size))
        return
    pairs, lines = 0, 0
    for i in range(n1):
        n = _inside(at + i * dim.factor_1, dim.factor_2, c.axis[b, a2].size, dim.size)
        pairs += n
        lines += n > 0
    st.valid[a1] = lines
    st.valid[a2] = -(-pairs // lines) if lines else 0


@helper
def _inside(at: int, factor: int, n: int, size: int) -> int:
    """Number of `at + factor * (0 .. n - 1)` in [0, size)."""
    if factor < 0:
        at, factor = at + factor * (n - 1), -factor
    first = max(0, -(at // factor)) if at < 0 else 0
    last = min(n - 1, (size - 1 - at) // factor)
    return max(0, last - first + 1)


@helper
def measure_box(c: Code, st: State, s: int, b: int, depth: int) -> None:
    """Set the head's box: elements moved and fetched, elements of a contiguous run, first and last element touched
    (0, -1: none), elements from one run to the next (0: there is one), elements of a row (cost.longer_row)."""
    box: Box = c.box[b]
    for a in range(box.axes):
        st.valid[a] = c.axis[b, a].size
    first, last, empty = box.first, box.first, False
    for d in range(box.dims):
        dim: BoxDim = c.dim[b, d]
        at = dim.const
        for j in range(depth):
            at += c.coef[b, d, j] * st.place[s, j].at
        lo, hi = at + dim.low, at + dim.high
        if d == box.gather_dim:
            lo, hi = 0, dim.size - 1
        elif lo < 0 or hi >= dim.size:
            _clip(c, st, b, d, at)
            lo, hi = max(lo, 0), min(hi, dim.size - 1)
            if hi < lo:
                empty = True
        first += dim.stride * (lo if dim.stride >= 0 else hi)
        last += dim.stride * (hi if dim.stride >= 0 else lo)
    _measure_runs(c, st, s, b)
    q: Stream = st.stream[s]
    q.low, q.high = first, last
    if empty or q.moved == 0:
        q.moved, q.fetched, q.run, q.row, q.low, q.high = 0, 0, 1, 1, 0, -1


@helper
def _measure_runs(c: Code, st: State, s: int, b: int) -> None:
    """Set sizes and runs of the head's box from the valid extents of its axes."""
    box: Box = c.box[b]
    moved, fetched, run, open_run, pitch = 1, 1, 1, True, 0
    for i in range(box.axes):
        a = c.axis[b, i].order
        axis: BoxAxis = c.axis[b, a]
        n, stride = st.valid[a], abs(axis.stride)
        moved *= n
        if stride == 0 or n <= 1:
            fetched *= min(n, 1)
            continue
        fetched *= n
        open_run = open_run and stride == run and a != box.gather_axis
        if open_run:
            run *= n
        elif pitch == 0:
            pitch = stride
    q: Stream = st.stream[s]
    q.moved, q.fetched, q.run, q.pitch = moved, fetched, run, pitch
    q.row = 1
    for a in range(box.axes - 1, -1, -1):
        axis = c.axis[b, a]
        row = _longer_row(q.row, st.valid[a], axis.stride)
        if row == 0 or a == box.gather_axis:
            break
        q.row = row
        if st.valid[a] < axis.size:
            break


@helper
def _extents(c: Code, st: State, s: int, first: int, n: int, depth: int) -> None:
    """Valid extents of n axes from row `first` on into `valid`."""
    for i in range(n):
        extent: Extent = c.extent[first + i]
        if extent.limit == NO_BOUND:
            st.valid[i] = extent.size
            continue
        at = extent.const
        for j in range(depth):
            at += c.extent_coef[first + i, j] * st.place[s, j].at
        st.valid[i] = max(0, min(extent.size, extent.limit - at))


@helper
def l1_clk(m: Machine, size: float, rate: float, queued: float) -> float:
    """Cycles until l1 has moved `size` bytes: queued after earlier requests, or concurrently at `rate`."""
    in_order = queued + size / m.numbers[0].l1_rate
    return float(min(in_order, size / rate) if rate > 0.0 else in_order)


@helper
def mma_clk(c: Code, m: Machine, st: State, s: int, rate: float, queued: float) -> float:
    """Cycles of the head, an mma that reads l1 (`l1_clk`); counts them and its work in the statistics."""
    head = st.stream[s].head
    ins: Instruction = c.ins[head]
    p: Product = c.mma[ins.desc]
    t: Numbers = m.numbers[0]
    na, nn, nk = p.m_axes, p.n_axes, p.k_axes
    _extents(c, st, s, p.extent, na + nn + nk, ins.depth)
    rows, cols, k, m_time, n_time, k_time = 1, 1, 1, 1, 1, 1
    for a in range(na + nn + nk):
        n = st.valid[a]
        whole = c.extent[p.extent + a].size if t.whole_tiles else n
        if a < na:
            rows *= n
            m_time *= whole
        elif a < na + nn:
            cols *= n
            n_time *= whole
        else:
            k *= n
            k_time *= whole
    m_time, n_time = _placed(m_time, n_time, p.m, p.n, t.lane_rows, t.lane_cols, t.engine)
    busy = _engine_clk(m_time, n_time, k_time, p.m, p.n, p.k, p.interval, t.lane_rows, t.lane_cols, t.engine, t.gap)
    read = _operand_bytes(m_time, n_time, k_time, p.m, p.n, p.k, t.shared_rows, t.shared_cols, t.engine, p.size)
    restarts = (st.stream[s].first & p.restart) == p.restart
    if p.follows and not restarts:
        busy -= _continued_clk(m_time, n_time, p.m, p.n, t.lane_rows, t.lane_cols, t.engine, t.gap)
    fragments = -(-rows // p.m) * -(-cols // p.n)
    stat: Stat = st.stat[head]
    stat.l1_read += read
    stat.acc_written += rows * cols * 4
    stat.macs += rows * cols * k
    stat.engine += busy
    stat.products += fragments * -(-k // p.k)
    if restarts:
        stat.results += fragments
    else:
        stat.acc_read += rows * cols * 4
    clk = in_ticks(max(float(busy), l1_clk(m, read, rate, queued)))
    stat.operands += clk - busy
    return clk


@helper
def _elements(st: State, count: int, mask: int) -> int:
    a = 0
    while mask:
        for _ in range(mask & 3):
            count *= st.valid[a]
        mask >>= 2
        a += 1
    return count


@helper
def vec_clk(c: Code, m: Machine, st: State, s: int, rate: float, queued: float) -> float:
    """Cycles of the head, a vec that moves operands to and from l1 (`l1_clk`) and acc; counts them and its work in the
    statistics."""
    head = st.stream[s].head
    ins: Instruction = c.ins[head]
    v: Vector = c.vec[ins.desc]
    t: Numbers = m.numbers[0]
    stat: Stat = st.stat[head]
    _extents(c, st, s, v.extent, v.axes, ins.depth)
    lane, special, from_acc, from_l1 = 0.0, 0.0, 0.0, 0.0
    for j in range(v.term_lo, v.term_hi):
        term: Term = c.term[j]
        n = _elements(st, term.count, term.mask)
        stat.lane_ops += n * term.lane_ops
        stat.sfu_ops += n * term.sfu_ops
        own, looked_up = _step_clk(n, term.lane_ops, term.sfu_ops, term.tail, t.lanes, t.sfu)
        lane, special = lane + own, special + looked_up
    total = max(lane, special) if t.sfu_beside_lanes else lane + special
    for j in range(v.traffic_lo, v.traffic_hi):
        traffic: Moved = c.traffic[j]
        size = _elements(st, traffic.count, traffic.mask) * traffic.size
        if traffic.where >= 2:
            from_acc += size
        else:
            from_l1 += size
        if traffic.where == 0:
            stat.l1_read += size
        elif traffic.where == 1:
            stat.l1_written += size
        elif traffic.where == 2:
            stat.acc_read += size
        else:
            stat.acc_written += size
    stat.engine += int(total)
    clk = in_ticks(max(total, from_acc / t.acc_rate + l1_clk(m, from_l1, rate, queued)))
    stat.operands += clk - total
    return clk
