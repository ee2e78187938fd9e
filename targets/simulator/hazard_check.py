"""The hazard checker's pass over log rows: the bytes that each instruction accesses, and whether signals order the
accesses."""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import entry, helper
from ppuc.targets.simulator.records import Box, BoxAxis, Group, Instruction, Operand, Use
from ppuc.targets.simulator.tables import (
    CLAIM,
    COPY,
    IN_FLIGHT,
    LOG_END,
    LOG_ENV,
    LOG_FIRST,
    LOG_FROM,
    LOG_INSTR,
    LOG_LAST,
    LOG_STREAM,
    LOG_TO,
    POP,
    PUSH,
    STORE,
    WAIT,
    Code,
    Machine,
)
from ppuc.targets.simulator.vector_clocks import (
    PER_UNIT,
    RAW,
    WAR,
    WAW,
    Checker,
    bump,
    claim,
    component,
    join_counter,
    knows,
    report,
    signal,
    wait,
)


@helper
def _ordered(k: Checker, m: Machine, s: int, stamp: int, write: bool) -> bool:
    """Whether an earlier access is ordered before one of the instruction that stream s starts. A queue's own accesses
    are ordered, except that a transfer may read before an earlier one has written."""
    if stamp == 0:
        return True
    comp = stamp >> 52
    if comp == component(m, s, False) or (write and comp == component(m, s, True)):
        return True
    return knows(k, m, s, stamp)


# l1 and acc.


@helper
def _read_slot(k: Checker, m: Machine, s: int, i: int, slot: int, stamp: int) -> None:
    u, own = s // 4, component(m, s, False) % PER_UNIT
    fine = 0  # neighbours mostly share their last access
    for j in range(k.iv[slot, 0], k.iv[slot, 1]):
        seen = k.iv_w[u, j]
        if seen != fine and not _ordered(k, m, s, seen, False):
            report(k, RAW, seen, i, slot, False)
        fine = seen
        k.iv_r[u, j, own] = stamp


@helper
def _write_slot(k: Checker, m: Machine, s: int, i: int, slot: int, stamp: int) -> None:
    u = s // 4
    for j in range(k.iv[slot, 0], k.iv[slot, 1]):
        if not _ordered(k, m, s, k.iv_w[u, j], True):
            report(k, WAW, k.iv_w[u, j], i, slot, False)
        for q in range(PER_UNIT):
            if not _ordered(k, m, s, k.iv_r[u, j, q], True):
                report(k, WAR, k.iv_r[u, j, q], i, slot, False)
            k.iv_r[u, j, q] = 0
        k.iv_w[u, j] = stamp


# Tensors.


@helper
def _others(k: Checker, m: Machine, s: int, i: int, t: int, write: bool) -> None:
    """Check against every access of the tensors that share bytes with tensor t. A stream's knowledge only grows:
    accesses ordered before one of its earlier instructions are ordered before this one."""
    for j in range(k.ov_ptr[t], k.ov_ptr[t + 1]):
        other = k.ov[j]
        if k.cleared[s, other, 1] == k.t_n[other] or (not write and k.cleared[s, other, 0] == k.t_n[other]):
            continue
        clear = True
        for comp in range(k.t_w.shape[1]):
            if k.t_w[other, comp] != 0 and not _ordered(k, m, s, k.t_w[other, comp], write):
                report(k, WAW if write else RAW, k.t_w[other, comp], i, t, True)
                clear = False
            if write and k.t_r[other, comp] != 0 and not _ordered(k, m, s, k.t_r[other, comp], write):
                report(k, WAR, k.t_r[other, comp], i, t, True)
                clear = False
        if clear:
            k.cleared[s, other, 1 if write else 0] = k.t_n[other]


@helper
def _touch(
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
        if writer != fine_w and not soft and not _ordered(k, m, s, writer, write):
            report(k, WAW if write else RAW, writer, i, t, True)
        fine_w = writer
        if write:
            if reader != fine_r and not soft and not _ordered(k, m, s, reader, True):
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
def _walk_box(
    c: Code, k: Checker, m: Machine, log: np.ndarray, s: int, i: int, t: int, stamp: int, write: bool
) -> None:
    """Touch every element of a load's or store's box that is inside its view."""
    b = c.ins[i].desc
    box: Box = c.box[b]
    inner = _inner_axis(c, b)
    index, at, base = k.scratch[0], k.scratch[1], k.scratch[2]
    for d in range(box.dims):
        base[d] = c.dim[b, d].const if d != box.gather_dim else 0
        for j in range(c.ins[i].depth):
            base[d] += c.coef[b, d, j] * log[LOG_ENV + j] if d != box.gather_dim else 0
    for a in range(box.axes):
        index[a] = 0
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
        _touch(k, m, s, i, t, element + lo * stride, hi - lo + 1, stride, stamp, write, soft)


@helper
def _access_tensor(
    c: Code, k: Checker, m: Machine, log: np.ndarray, s: int, i: int, t: int, stamp: int, write: bool
) -> None:
    if log[LOG_TO] < log[LOG_FROM]:  # a box outside its view touches nothing and bumps nothing
        return
    _others(k, m, s, i, t, write)
    k.t_n[t] += 1
    if write:
        k.t_w[t, stamp >> 52] = stamp
    else:
        k.t_r[t, stamp >> 52] = stamp
    if k.t_gran[t, 0] == 0:
        return
    if c.ins[i].kind == COPY:
        _touch(k, m, s, i, t, log[LOG_FROM], log[LOG_TO] - log[LOG_FROM] + 1, 1, stamp, write, False)
    else:
        _walk_box(c, k, m, log, s, i, t, stamp, write)


# Instructions.


@helper
def _wait_counters(c: Code, k: Checker, log: np.ndarray, s: int, i: int) -> None:
    for j in range(c.ins[i].wait_lo, c.ins[i].wait_hi):
        group: Group = c.group[c.sync[j].group]
        lo, hi = 0, group.count - 1
        if c.sync[j].touched:
            if log[LOG_TO] < log[LOG_FROM]:
                continue
            lo, hi = log[LOG_FROM] // group.block, min(hi, log[LOG_TO] // group.block)
        for block in range(group.at + lo, group.at + hi + 1):
            join_counter(c, k, s, block)


@helper
def _begin(c: Code, m: Machine, k: Checker, log: np.ndarray) -> None:
    """Start an instruction: join the clocks it waited for, check its accesses, snapshot its clock."""
    s, i = log[LOG_STREAM], log[LOG_INSTR]
    k.seq[s] += 1
    n, issued, completed = k.seq[s], component(m, s, False), component(m, s, True)
    ins: Instruction = c.ins[i]
    for j in range(ins.use_lo, ins.use_hi):
        use: Use = c.use[j]
        if log[LOG_FIRST] & use.mask == use.mask:
            if use.kind == CLAIM:
                claim(c, k, s, use.ring)
            elif use.kind == WAIT:
                wait(c, k, s, use.ring)
    _wait_counters(c, k, log, s, i)
    if s < 4 * len(m.hop):
        k.local[s, issued % PER_UNIT] = n
    read, write = issued << 52 | i << 32 | n, completed << 52 | i << 32 | n
    slots = LOG_ENV + c.coef.shape[2]
    for written in range(2):
        for j in range(ins.op_lo, ins.op_hi):
            op: Operand = c.op[j]
            slot = k.slot0[op.ring] + log[slots + j - ins.op_lo]
            if op.written == written and written:
                _write_slot(k, m, s, i, slot, write)
            elif op.written == written:
                _read_slot(k, m, s, i, slot, read)
    if k.t_of[i, 0] >= 0:
        _access_tensor(c, k, m, log, s, i, k.t_of[i, 0], read, False)
    if k.t_of[i, 1] >= 0:
        _access_tensor(c, k, m, log, s, i, k.t_of[i, 1], write, True)
    entry_row = k.snap[s, n % IN_FLIGHT]
    for j in range(PER_UNIT):
        entry_row[j] = k.local[s, j]
    entry_row[PER_UNIT], entry_row[PER_UNIT + 1], entry_row[PER_UNIT + 2] = k.far[s], i, log[LOG_LAST]
    entry_row[PER_UNIT + 3], entry_row[PER_UNIT + 4] = log[LOG_FROM], log[LOG_TO]


@helper
def _release(c: Code, m: Machine, k: Checker, s: int) -> None:
    """Retire an instruction's slots: its clock joins its pushes and pops. A store does this before it completes; only
    counters signal that its data is in memory."""
    k.released[s] += 1
    n = k.released[s]
    row = k.snap[s, n % IN_FLIGHT]
    i, last = row[PER_UNIT + 1], row[PER_UNIT + 2]
    ins: Instruction = c.ins[i]
    for j in range(ins.use_lo, ins.use_hi):
        use: Use = c.use[j]
        if last & use.mask == use.mask and use.kind in (PUSH, POP):
            signal(c, k, m, s, use.ring, use.kind == PUSH, row, n if ins.kind != STORE else 0)


@helper
def _end(c: Code, m: Machine, k: Checker, s: int) -> None:
    """Complete the oldest instruction of a stream: its clock joins its bumps."""
    k.done[s] += 1
    n = k.done[s]
    row = k.snap[s, n % IN_FLIGHT]
    i, last, first_e, last_e = row[PER_UNIT + 1], row[PER_UNIT + 2], row[PER_UNIT + 3], row[PER_UNIT + 4]
    ins: Instruction = c.ins[i]
    if ins.kind != STORE:
        _release(c, m, k, s)
    for j in range(ins.bump_lo, ins.bump_hi):
        group: Group = c.group[c.sync[j].group]
        lo, hi = 0, 0
        if c.sync[j].touched:
            if last_e < first_e:
                continue
            lo, hi = first_e // group.block, min(group.count - 1, last_e // group.block)
        elif last != ins.done_mask:
            continue
        for block in range(group.at + lo, group.at + hi + 1):
            bump(c, k, m, s, block, row, n)


@entry
def run(c: Code, m: Machine, k: Checker, log: np.ndarray, at: int, pool_limit: int) -> int:
    """Check rows from `at` on; returns the first unchecked row if the pool of far vectors fills up."""
    while at < len(log):
        if k.num[0] >= pool_limit:
            return at
        if log[at, LOG_END] == 1:
            _end(c, m, k, log[at, LOG_STREAM])
        elif log[at, LOG_END] == 2:
            _release(c, m, k, log[at, LOG_STREAM])
        else:
            _begin(c, m, k, log[at])
        at += 1
    return at
