"""Moves bytes as log rows say: boxes between memories and slots, operands to lanes, results from lanes.

Operands are read at an instruction's start and results written on its completion, in the order of the log. (A load is
read on completion if nothing was written in between: that saves a copy.) Arithmetic is not done here, except that
products are added to their sums: `run` returns COMPUTE when numbers are needed, and is called again when the lanes have
been computed.

A product's sum needs no numbers before a vector program reads it, so products of many iterations gather in a lane. The
products of a unit are added in the order of their starts.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import entry, helper
from ppuc.ir.jit.pointers import (
    move,
    read_1,
    read_2,
    read_4,
    read_float,
    read_long,
    write_4,
    write_8,
    write_float,
)
from ppuc.targets.simulator.tables import (
    COPY,
    LOAD,
    LOG_END,
    LOG_ENV,
    LOG_FIRST,
    LOG_INSTR,
    LOG_STREAM,
    MMA,
    STORE,
    VEC,
)
from ppuc.targets.simulator.value_boxes import transfer
from ppuc.targets.simulator.value_tables import (
    SMALLEST_BLOCK,
    Core,
    Flight,
    Key,
    Lane,
    Pending,
    Plans,
    Progress,
    Queue,
    Step,
    Tile,
)

CALL = COPY
"""Kind of instructions that Python functions execute."""

DONE, COMPUTE, ROOM, CALLED, READ = range(5)
"""Return values of `run`: the log is at its end; lanes must be computed; blocks need memory; the instruction of the
row before the next one is of kind CALL. Within `run`, READ: an instruction in flight must read before the row."""


# Blocks.


@helper
def _take(st: Progress, order: int) -> int:
    """The address of a block; `run` has made sure that there is memory."""
    found = st.blocks[order]
    if found != 0:
        st.blocks[order] = read_long(found, 0)
        return int(found)
    k: Core = st.core[0]
    found = k.free
    k.free += SMALLEST_BLOCK << order
    return int(found)


@helper
def _release(st: Progress, order: int, block: int) -> None:
    write_8(block, 0, np.uint64(st.blocks[order]))
    st.blocks[order] = block


@helper
def _read_indices(step: Step, origin: int, to: int) -> None:
    """Copy an index list to int64."""
    for i in range(step.indices):
        found = np.int64(0)
        if step.index_size == 8:
            found = read_long(origin, 8 * i)
        elif step.index_size == 4:
            bits = read_4(origin, 4 * i)
            found = np.int64(np.int32(bits)) if step.index_signed else np.int64(bits)
        elif step.index_size == 2:
            short = read_2(origin, 2 * i)
            found = np.int64(np.int16(short)) if step.index_signed else np.int64(short)
        else:
            byte = read_1(origin, i)
            found = np.int64(np.int8(byte)) if step.index_signed else np.int64(byte)
        write_8(to, 8 * i, np.uint64(found))


# Instructions.


@helper
def _slot(p: Plans, st: Progress, unit: int, j: int, slot: int) -> int:
    """The address of a slot of operand j."""
    tile: Tile = p.tile[j]
    return int(tile.at + unit * tile.unit + slot * tile.slot)


@helper
def _has_room(st: Progress, order: int) -> bool:
    """Whether a block can be taken; if not, what for."""
    k: Core = st.core[0]
    k.order = order
    return bool(st.blocks[order] != 0 or k.free + (SMALLEST_BLOCK << order) <= k.end)


@helper
def _cannot_start(p: Plans, st: Progress, i: int, unit: int) -> int:
    """COMPUTE or ROOM if that must come first, else DONE."""
    step: Step = p.step[i]
    k: Core = st.core[0]
    if step.kind == MMA or step.kind == VEC:
        lane: Lane = st.lane[step.lane]
        if lane.count > 0 and (lane.owner != i or lane.count >= step.capacity):
            return COMPUTE
        if k.pending == len(st.pending) or (step.kind == VEC and step.acc and st.sums[unit] > 0):
            return COMPUTE
    elif not step.late and not _has_room(st, step.order):
        return ROOM
    return DONE


@helper
def _start(p: Plans, st: Progress, row: np.ndarray, depth: int) -> int:
    s, i = row[LOG_STREAM], row[LOG_INSTR]
    step: Step = p.step[i]
    if step.kind != CALL:
        status = _cannot_start(p, st, i, s >> 2)
        if status != DONE:
            return status
    q: Queue = st.queue[s]
    place = (q.oldest + q.count) % st.flight.shape[1]
    q.count += 1
    held: Flight = st.flight[s, place]
    held.instr, held.block, held.entry = i, 0, -1
    held.fresh = 1 if (row[LOG_FIRST] & step.restart) == step.restart else 0
    values = st.values[s, place]
    for j in range(len(values)):
        values[j] = row[LOG_ENV + j]
    if step.kind == CALL:
        return CALLED
    if step.kind == MMA or step.kind == VEC:
        _enter(p, st, s, place, depth)
    elif not step.late:
        held.block = _take(st, step.order)
        if step.indices:
            list_at = _slot(p, st, s >> 2, step.tile_lo + 1, values[depth + 1])
            _read_indices(step, list_at, held.block + p.tile[step.tile_lo].size)
    if not step.late:
        k: Core = st.core[0]
        k.reader, k.place = s, place
    return DONE


@helper
def _overwrites(p: Plans, st: Progress, i: int) -> int:
    """READ if instruction i, which completes, may write what a load in flight has yet to read; ROOM if that needs
    memory; else DONE."""
    by: Step = p.step[i]
    for s in range(len(st.queue)):
        q: Queue = st.queue[s]
        for n in range(q.count):
            place = (q.oldest + n) % st.flight.shape[1]
            held: Flight = st.flight[s, place]
            step: Step = p.step[held.instr]
            if step.late and held.block == 0 and step.low < by.high and by.low < step.high:
                if not _has_room(st, step.order):
                    return ROOM
                held.block = _take(st, step.order)
                k: Core = st.core[0]
                k.reader, k.place = s, place
                return READ
    return DONE


@helper
def _read_operands(p: Plans, st: Progress, s: int, place: int, depth: int) -> None:
    """Copy what an instruction reads to its block, or to its lane."""
    held: Flight = st.flight[s, place]
    step: Step = p.step[held.instr]
    values, unit = st.values[s, place], s >> 2
    for j in range(step.read_lo, step.read_hi):
        tile: Tile = p.tile[j]
        origin, to, rows = step.memory, held.block, held.block + tile.size
        if step.kind != LOAD:
            origin = _slot(p, st, unit, j, values[depth + j - step.tile_lo])
        if held.entry >= 0:
            to = st.lane[step.lane].at + tile.stack + st.pending[held.entry].index * tile.part
        if tile.box < 0:
            move(to, origin, tile.part)
        else:
            transfer(p, st, tile.box, values, origin, to, rows, step.pad, False)


@helper
def _enter(p: Plans, st: Progress, s: int, place: int, depth: int) -> None:
    """Give a product or vector program, which starts, its place in a lane, and write its key."""
    held: Flight = st.flight[s, place]
    values, unit = st.values[s, place], s >> 2
    k: Core = st.core[0]
    step: Step = p.step[held.instr]
    lane: Lane = st.lane[step.lane]
    keys = step.key_hi - step.key_lo
    at = lane.at + step.keys + 8 * keys * lane.count
    for j in range(keys):
        key: Key = p.key[step.key_lo + j]
        number = key.const
        for d in range(depth):
            number += p.key_coef[step.key_lo + j, d] * values[d]
        number = max(key.low, min(key.high, number))
        write_8(at, 8 * j, np.uint64(number))
        if lane.count > 0 and read_long(at, 8 * (j - keys)) != number:
            lane.mixed = 1
    held.entry = k.pending
    x: Pending = st.pending[k.pending]
    x.instr, x.index, x.stream, x.place, x.done, x.fresh = held.instr, lane.count, s, place, 0, held.fresh
    if step.kind == MMA:
        x.acc = _slot(p, st, unit, step.tile_lo, values[depth])
        st.sums[unit] += 1
    k.pending += 1
    k.need += SMALLEST_BLOCK << step.order
    lane.owner = held.instr
    lane.count += 1


@helper
def _accumulate(acc: int, product: int, size: int, fresh: int, floats: int) -> None:
    """Add a product to its sum, or begin the sum with it; `size` bytes."""
    if fresh:
        move(acc, product, size)
    elif floats:
        for at in range(0, size, 4):
            write_float(acc, at, read_float(acc, at) + read_float(product, at))
    else:
        for at in range(0, size, 4):
            write_4(acc, at, np.uint32(read_4(acc, at) + read_4(product, at)))


@helper
def _complete(p: Plans, st: Progress, s: int, depth: int) -> int:
    q: Queue = st.queue[s]
    place = q.oldest
    held: Flight = st.flight[s, place]
    values, unit = st.values[s, place], s >> 2
    step: Step = p.step[held.instr]
    if step.kind == VEC and held.entry >= 0:
        return COMPUTE
    if step.kind == STORE or step.kind == CALL:
        status = _overwrites(p, st, held.instr)
        if status != DONE:
            return status
    first = _slot(p, st, unit, step.tile_lo, values[depth]) if step.kind != CALL else 0
    if step.kind == STORE or (step.late and held.block == 0):
        tile = held.block if step.kind == STORE else first
        rows = held.block + p.tile[step.tile_lo].size
        transfer(p, st, step.box, values, step.memory, tile, rows, step.pad, step.kind == STORE)
    elif step.kind == LOAD:
        move(first, held.block, p.tile[step.tile_lo].size)
    elif step.kind == MMA and held.entry >= 0:
        st.pending[held.entry].done = 1
    elif step.kind == MMA:
        _accumulate(first, held.block, step.size, held.fresh, step.floats)
    elif step.kind == VEC:
        at = held.block
        for j in range(step.read_hi, step.tile_hi):
            size = p.tile[j].size
            move(_slot(p, st, unit, j, values[depth + j - step.tile_lo]), at, size)
            at += size
    if held.block != 0:
        _release(st, step.order, held.block)
    q.oldest = (place + 1) % st.flight.shape[1]
    q.count -= 1
    return CALLED if step.kind == CALL else DONE


@helper
def _deliver(p: Plans, st: Progress) -> None:
    """Take the results from lanes: completed products go to their sums, others to blocks. Empty the lanes."""
    k: Core = st.core[0]
    for e in range(k.pending):
        x: Pending = st.pending[e]
        step: Step = p.step[x.instr]
        first = st.result[step.lane, 0] + x.index * step.size
        if x.done:
            _accumulate(x.acc, first, step.size, x.fresh, step.floats)
            continue
        held: Flight = st.flight[x.stream, x.place]
        held.block, held.entry = _take(st, step.order), -1
        if step.kind == MMA:
            move(held.block, first, step.size)
            continue
        at = held.block
        for j in range(step.read_hi, step.tile_hi):
            size = p.tile[j].size
            move(at, st.result[step.lane, j - step.read_hi] + x.index * size, size)
            at += size
    for j in range(len(st.lane)):
        lane: Lane = st.lane[j]
        lane.count, lane.mixed = 0, 0
    st.sums[:] = 0
    k.pending, k.need, k.computed = 0, 0, 0


@entry
def run(p: Plans, st: Progress, log: np.ndarray) -> int:
    """Execute log rows from the next one on, until numbers are needed, an instruction is to be called, or the log is at
    its end."""
    k: Core = st.core[0]
    depth = p.coef.shape[2]
    if k.computed:
        _deliver(p, st)
    while k.row < len(log):
        row = log[k.row]
        status = DONE
        if row[LOG_END] == 0:
            status = _start(p, st, row, depth)
        elif row[LOG_END] == 1:
            status = _complete(p, st, row[LOG_STREAM], depth)
        if status in (COMPUTE, ROOM):
            return status
        if k.reader >= 0:
            _read_operands(p, st, k.reader, k.place, depth)
            k.reader = -1
        if status != READ:
            k.row += 1
        if status == CALLED:
            return status
    return DONE


__all__ = ["CALL", "CALLED", "COMPUTE", "DONE", "ROOM", "run"]
