"""The compute engines, and ring operations at the start and end of every instruction.

An instruction of the tensor or vector engine takes the longer of its steps and of operand delivery from l1 and acc. The
four engines of a unit share l1: it serves requests in order, but an instruction gets at least the bandwidth that the
other engines leave when it starts.

Invariant: a log row is written before the state that it describes changes.
"""

from __future__ import annotations

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.events import E_COMPLETE, log_end, put_back, schedule, wake, wake_unit
from ppuc.targets.simulator.records import Core, Filled, Flight, Instruction, Operand, Reader, Stat, Stream, Use
from ppuc.targets.simulator.tables import (
    B_ROOM,
    F_RATE,
    IN_FLIGHT,
    LOG_ENV,
    MMA,
    POP,
    PUSH,
    Code,
    Machine,
    State,
)
from ppuc.targets.simulator.work import in_ticks, mma_clk, vec_clk


@helper
def log_begin(c: Code, st: State, s: int) -> None:
    """The head reads its operands now: log it with its slots, then advance those it pops or pushes."""
    q: Stream = st.stream[s]
    ins: Instruction = c.ins[q.head]
    st.stat[q.head].n += 1
    k: Core = st.core[0]
    if k.logging:
        row = k.log
        k.log = row + 1
        st.log_t[row] = k.now
        log = st.log_i[row]
        log[0], log[1], log[2], log[3], log[4] = 0, s, q.head, q.first, q.last
        log[5], log[6] = q.low, q.high
        for d in range(ins.depth):
            log[LOG_ENV + d] = st.place[s, d].at
        at = LOG_ENV + st.place.shape[1]
        for j in range(ins.op_lo, ins.op_hi):
            op: Operand = c.op[j]
            reader: Reader = st.reader[q.unit, op.ring, ins.queue]
            held = c.ring[op.ring].producer != ins.queue or reader.waited > reader.released
            ordinal = reader.released if held and op.written == 0 else st.filled[q.unit, op.ring].filled
            log[at] = ordinal % c.ring[op.ring].depth
            at += 1
    for j in range(ins.use_lo, ins.use_hi):
        use: Use = c.use[j]
        if q.last & use.mask == use.mask:
            if use.kind == POP:
                st.reader[q.unit, use.ring, ins.queue].released += 1
            elif use.kind == PUSH:
                st.filled[q.unit, use.ring].filled += 1


@helper
def end_rings(c: Code, st: State, s: int, i: int, last: int) -> None:
    """Complete pushes and pops."""
    u = s // 4
    ins: Instruction = c.ins[i]
    for j in range(ins.use_lo, ins.use_hi):
        use: Use = c.use[j]
        if last & use.mask != use.mask:
            continue
        if use.kind == PUSH:
            ring: Filled = st.filled[u, use.ring]
            ring.pushed += 1
            wake_unit(st, u, use.ring)
        elif use.kind == POP:
            reader: Reader = st.reader[u, use.ring, ins.queue]
            reader.popped += 1
            wake_unit(st, u, use.ring)


@helper
def _l1_rate(m: Machine, st: State, s: int) -> float:
    """Bytes per cycle of l1 that the other engines leave to an instruction starting on stream s."""
    rate, now = m.numbers[0].l1_rate, st.core[0].now
    for other in range(s - s % 4, s - s % 4 + 4):
        q: Stream = st.stream[other]
        if other % 4 < 2:
            if q.flow >= 0:
                rate -= st.course[F_RATE, q.flow]
        elif other != s and q.free_at > now:
            rate -= q.l1
    return float(max(rate, 0.0))


@helper
def start_compute(c: Code, m: Machine, st: State, s: int) -> None:
    """Start executing an mma or vec; the next instruction may be decoded."""
    q: Stream = st.stream[s]
    i, now = q.head, st.core[0].now
    log_begin(c, st, s)
    flight: Flight = st.flight[s, q.next % IN_FLIGHT]
    q.next += 1
    flight.instr, flight.last = i, q.last
    ins: Instruction = c.ins[i]
    stat: Stat = st.stat[i]
    rate, drain, before = _l1_rate(m, st, s), 0, stat.l1_read + stat.l1_written
    queued = max(st.l1[q.unit] - now, 0.0)
    if ins.kind == MMA:
        clk = mma_clk(c, m, st, s, rate, queued)
        drain = c.mma[ins.desc].drain
    else:
        clk = vec_clk(c, m, st, s, rate, queued)
    asked = stat.l1_read + stat.l1_written - before
    q.l1 = asked / max(clk, 1.0)
    st.l1[q.unit] = now + queued + in_ticks(asked / m.numbers[0].l1_rate)
    stat.busy += clk
    q.mark = now
    q.free_at = now + clk
    schedule(st, q.free_at + drain, E_COMPLETE, s)
    q.pc += 1
    q.head = -1
    put_back(st, s)


@helper
def complete(c: Code, st: State, s: int) -> None:
    """The oldest mma or vec of a queue has written its results."""
    q: Stream = st.stream[s]
    flight: Flight = st.flight[s, q.oldest % IN_FLIGHT]
    q.oldest += 1
    log_end(st, s, 1)
    stat: Stat = st.stat[flight.instr]
    stat.end = max(stat.end, st.core[0].now)
    end_rings(c, st, s, flight.instr, flight.last)
    if q.cause == B_ROOM:
        wake(st, s)
