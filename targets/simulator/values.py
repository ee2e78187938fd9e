"""Executes logged instructions: operands are read at the start, results are written on completion.

The event loop determines the order, ppuc.ir.tile the arithmetic. A missing wait therefore reads stale bytes and gives a
wrong value.

Invariant: results depend only on the order of log rows, not on their times; completions of a stream are in the order of
its starts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.ir.kernel import Buffer, Load, Mma, Param, Store, Vec
from ppuc.ir.numerics import widen
from ppuc.ir.program import Copy, Ring
from ppuc.ir.tile import LoadPlan, MmaPlan, StorePlan, VecPlan
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.memory import ChipMemory, UnitMemory
from ppuc.targets.simulator.shapes import restart_mask
from ppuc.targets.simulator.tables import LOG_ENV

Commit = Callable[[], None]
Start = Callable[[int, list[int], list[int], int], Commit]
"""(unit, loop values, slots of the operands, first-iteration mask) -> what to do on completion."""


class SegmentValues:
    """Executes the log of one segment on the memories of a chip."""

    def __init__(
        self, flat: FlatSegment, vectors: Mapping[str, VectorProgram], chip: ChipMemory, target: Target
    ) -> None:
        self._chip, self._vectors, self._flat = chip, vectors, flat
        self._units = UnitMemory(flat.rings, target.cu)
        self._starts = [self._plan(i) for i in range(len(flat.instrs))]
        self._depth = flat.code.depth
        self._pending: list[deque[Commit]] = [deque() for _ in flat.code.stream_pc]

    def consume(self, log: np.ndarray) -> None:
        """Execute log rows in order."""
        pending, starts, at = self._pending, self._starts, LOG_ENV + self._depth
        with np.errstate(all="ignore"):
            for row in log.tolist():
                stream = row[1]
                if row[0] == 1:
                    pending[stream].popleft()()
                elif row[0] == 0:
                    pending[stream].append(starts[row[2]](stream >> 2, row[LOG_ENV:at], row[at:], row[3]))

    def _plan(self, index: int) -> Start:
        info = self._flat.instrs[index]
        if isinstance(info.item, Copy):
            return self._copy(info.item)
        stmt, rings = info.item.stmt, info.operands
        buffers = [_buffer(self._flat.rings[r]) for r in rings]
        slots = {name: d for d, name in enumerate(info.loops)}
        params = {p.name: p for p in self._flat.segment.kernels[info.kernel].params}
        if isinstance(stmt, Load):
            return self._load(LoadPlan(stmt, params[stmt.src], buffers[0], slots), params[stmt.src], rings, buffers)
        if isinstance(stmt, Store):
            return self._store(StorePlan(stmt, params[stmt.dst], buffers[0], slots), params[stmt.dst], rings, buffers)
        if isinstance(stmt, Mma):
            restart = restart_mask(stmt, slots)
            return self._mma(MmaPlan(stmt, buffers[0], buffers[1], buffers[2], slots), rings, restart)
        n = len(stmt.ins)
        return self._vec(VecPlan(stmt, self._vectors[stmt.program], buffers[:n], buffers[n:], slots), stmt, rings)

    def _copy(self, copy: Copy) -> Start:
        src, dst = self._chip.bytes_of(copy.src), self._chip.bytes_of(copy.dst)
        size = self._chip.element_bytes(copy.src)
        where = slice(copy.start * size, (copy.start + copy.count) * size)

        def start(unit: int, env: list[int], slots: list[int], first: int) -> Commit:
            data = src[where].copy()
            return lambda: dst.__setitem__(where, data)

        return start

    def _load(self, plan: LoadPlan, param: Param, rings: Sequence[int], buffers: Sequence[Buffer]) -> Start:
        memory, slot, run = self._chip.bytes_of(param.tensor), self._units.slot, plan.run
        shape, bits, dst = buffers[0].shape, plan.box.bits, rings[0]
        indices = self._indices(rings, buffers)

        def start(unit: int, env: list[int], slots: list[int], first: int) -> Commit:
            data = np.empty(shape, bits)
            run(memory, data, env, indices(unit, slots) if indices else None)
            tile = slot(unit, dst, slots[0])
            return lambda: np.copyto(tile, data)

        return start

    def _store(self, plan: StorePlan, param: Param, rings: Sequence[int], buffers: Sequence[Buffer]) -> Start:
        memory, slot, run, src = self._chip.bytes_of(param.tensor), self._units.slot, plan.run, rings[0]
        indices = self._indices(rings, buffers)

        def start(unit: int, env: list[int], slots: list[int], first: int) -> Commit:
            data = slot(unit, src, slots[0]).copy()
            rows = indices(unit, slots) if indices else None
            return lambda: run(memory, data, env, rows)

        return start

    def _indices(
        self, rings: Sequence[int], buffers: Sequence[Buffer]
    ) -> Callable[[int, list[int]], np.ndarray] | None:
        if len(rings) == 1:
            return None
        ring, dtype, slot = rings[1], buffers[1].dtype, self._units.slot
        return lambda unit, slots: widen(slot(unit, ring, slots[1]), dtype).astype(np.int64)

    def _mma(self, plan: MmaPlan, rings: Sequence[int], restart: int) -> Start:
        slot, product, commit = self._units.slot, plan.product, plan.commit
        acc, a, b = rings

        def start(unit: int, env: list[int], slots: list[int], first: int) -> Commit:
            value = product(slot(unit, a, slots[1]), slot(unit, b, slots[2]), env)
            tile, fresh = slot(unit, acc, slots[0]), first & restart == restart
            return lambda: commit(tile, value, fresh)

        return start

    def _vec(self, plan: VecPlan, stmt: Vec, rings: Sequence[int]) -> Start:
        slot, compute, n = self._units.slot, plan.compute, len(stmt.ins)
        ins, outs = rings[:n], rings[n:]

        def start(unit: int, env: list[int], slots: list[int], first: int) -> Commit:
            values = compute([slot(unit, r, i) for r, i in zip(ins, slots, strict=False)], env)
            tiles = [slot(unit, r, i) for r, i in zip(outs, slots[n:], strict=False)]

            def commit() -> None:
                for tile, value in zip(tiles, values, strict=True):
                    tile[...] = value

            return commit

        return start


def _buffer(ring: Ring) -> Buffer:
    return Buffer(ring.name, ring.dtype, ring.shape, ring.space, ring.depth)
