"""The hazard checker's pass over log rows: the bytes that each instruction accesses, and whether signals order the
accesses."""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import entry, helper
from ppuc.targets.simulator.hazard_boxes import touch, walk_box
from ppuc.targets.simulator.records import Group, Instruction, Operand, Use
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
    ordered,
    report,
    signal,
    wait,
)

# l1 and acc.


@helper
def _read_slot(k: Checker, m: Machine, s: int, i: int, slot: int, stamp: int) -> None:
    u, own = s // 4, component(m, s, False) % PER_UNIT
    fine = 0  # neighbours mostly share their last access
    for j in range(k.iv[slot, 0], k.iv[slot, 1]):
        seen = k.iv_w[u, j]
        if seen != fine and not ordered(k, m, s, seen, False):
            report(k, RAW, seen, i, slot, False)
        fine = seen
        k.iv_r[u, j, own] = stamp


@helper
def _write_slot(k: Checker, m: Machine, s: int, i: int, slot: int, stamp: int) -> None:
    u = s // 4
    for j in range(k.iv[slot, 0], k.iv[slot, 1]):
        if not ordered(k, m, s, k.iv_w[u, j], True):
            report(k, WAW, k.iv_w[u, j], i, slot, False)
        for q in range(PER_UNIT):
            if not ordered(k, m, s, k.iv_r[u, j, q], True):
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
            if k.t_w[other, comp] != 0 and not ordered(k, m, s, k.t_w[other, comp], write):
                report(k, WAW if write else RAW, k.t_w[other, comp], i, t, True)
                clear = False
            if write and k.t_r[other, comp] != 0 and not ordered(k, m, s, k.t_r[other, comp], write):
                report(k, WAR, k.t_r[other, comp], i, t, True)
                clear = False
        if clear:
            k.cleared[s, other, 1 if write else 0] = k.t_n[other]


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
        touch(k, m, s, i, t, log[LOG_FROM], log[LOG_TO] - log[LOG_FROM] + 1, 1, stamp, write, False)
    else:
        walk_box(c, k, m, log, s, i, t, stamp, write)


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
