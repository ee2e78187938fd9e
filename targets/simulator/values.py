"""Executes logged instructions: operands are read at the start, results are written on completion.

The event loop determines the order, ppuc.ir.tile the arithmetic, value_loop.py moves the bytes. A missing wait
therefore reads stale bytes and gives a wrong value.

Products and vector programs are computed many at a time, because a call of numpy takes longer than the arithmetic of a
tile. What a tile computes does not depend on the others.

Invariant: results depend only on the order of log rows, not on their times, nor on how many tiles are computed at once;
completions of a stream are in the order of its starts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ppuc.ir.jit.pointers import address_of
from ppuc.ir.kernel import Buffer, Load, Mma, Param, Store
from ppuc.ir.numerics import widen
from ppuc.ir.program import Copy, Ring
from ppuc.ir.tile import LoadPlan, MmaPlan, StorePlan
from ppuc.ir.vector import VectorProgram
from ppuc.ir.vector_steps import VecPlan
from ppuc.targets.schema import Target
from ppuc.targets.simulator import value_loop
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.memory import ChipMemory, UnitMemory
from ppuc.targets.simulator.tables import LOG_END, LOG_ENV, LOG_INSTR, LOG_STREAM
from ppuc.targets.simulator.value_plans import Plans
from ppuc.targets.simulator.value_tables import CHUNK, LANES, SMALLEST_BLOCK, new_progress

Commit = Callable[[], None]
Start = Callable[[int, list[int], list[int]], Commit]
"""(unit, loop values, slots of the operands) -> what to do on completion."""


class SegmentValues:
    """Executes the log of one segment on the memories of a chip."""

    def __init__(
        self, flat: FlatSegment, vectors: Mapping[str, VectorProgram], chip: ChipMemory, target: Target
    ) -> None:
        self._chip, self._vectors, self._flat = chip, vectors, flat
        self._units = UnitMemory(flat.rings, target.cu)
        self._calls: dict[int, Start] = {}
        self._called: list[deque[Commit]] = [deque() for _ in flat.code.stream_pc]
        self._depth = flat.code.depth
        plans = Plans(flat, chip, self._units)
        for index in range(len(flat.instrs)):
            self._add(plans, index)
        self._plans, self._batched = plans.arrays(), plans.batched
        operands = (flat.code.ins["op_hi"] - flat.code.ins["op_lo"]).max(initial=0)
        width, streams = self._depth + max(1, int(operands)), len(flat.code.stream_pc)
        self._progress = new_progress(self._plans, streams, target.cu, width, plans.results)
        self._lanes = self._new_lanes()
        self._stacks: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        self._chunks: list[np.ndarray] = []
        self._results: list[np.ndarray] = []

    def consume(self, log: np.ndarray) -> None:
        """Execute log rows in order."""
        core = self._progress.core
        core["row"] = 0
        with np.errstate(all="ignore"):
            while True:
                status = value_loop.run(self._plans, self._progress, log)
                if status == value_loop.DONE:
                    return
                if status == value_loop.COMPUTE:
                    self._compute()
                elif status == value_loop.ROOM:
                    self._add_chunk(SMALLEST_BLOCK << int(core["order"][0]))
                else:
                    self._call(log[int(core["row"][0]) - 1])

    # Many tiles at once.

    def _compute(self) -> None:
        """Compute what is in the lanes, and provide memory for the results."""
        progress, core = self._progress, self._progress.core
        self._results = []
        for lane in np.flatnonzero(progress.lane["count"]).tolist():
            owner, count, mixed, _ = progress.lane[lane].item()
            for j, result in enumerate(self._computed(owner, count, mixed)):
                progress.result[lane, j] = address_of(result)
                self._results.append(result)
        core["computed"] = 1
        need = int(core["need"][0])
        if core["free"][0] + need > core["end"][0]:
            self._add_chunk(need)

    def _computed(self, index: int, count: int, mixed: int) -> list[np.ndarray]:
        """The results of the first `count` instances in the lane of an instruction, [count, *shape] each."""
        plan = self._batched[index].plan
        stacks, keys = self._stacks_of(index)
        operands = [stack[:count] for stack in stacks]
        if isinstance(plan, MmaPlan):
            return [plan.products(*operands)]
        if not mixed:
            return [np.ascontiguousarray(r) for r in plan.compute_all(count, operands, *_numbers(plan, keys[0]))]
        rows, group = np.unique(keys[:count], axis=0, return_inverse=True)
        results: list[np.ndarray] = []
        for g, row in enumerate(rows):
            members = np.flatnonzero(group.reshape(-1) == g)
            found = plan.compute_all(len(members), [x[members] for x in operands], *_numbers(plan, row))
            results = results or [np.empty((count, *r.shape[1:]), r.dtype) for r in found]
            for result, part in zip(results, found, strict=True):
                result[members] = part
        return results

    def _stacks_of(self, index: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Views of the lane of an instruction: a stack for each operand, and the keys of the instances."""
        if index not in self._stacks:
            b = self._batched[index]
            lane = self._lanes[b.lane]
            stacks = [_view(lane, s.offset, (b.capacity, *s.shape), s.bits) for s in b.stacks]
            self._stacks[index] = stacks, _view(lane, b.keys_at, (b.capacity, b.keys), np.dtype(np.int64))
        return self._stacks[index]

    def _new_lanes(self) -> list[np.ndarray]:
        sizes = [max((b.lane_bytes for b in self._batched.values() if b.lane == n), default=0) for n in range(LANES)]
        lanes = [np.empty(size, np.uint8) for size in sizes]
        self._progress.lane["at"] = [address_of(lane) for lane in lanes]
        return lanes

    def _add_chunk(self, size: int) -> None:
        """Memory for blocks; what is left of the last is not used."""
        chunk = np.empty(max(size, CHUNK), np.uint8)
        self._chunks.append(chunk)
        core = self._progress.core
        core["free"] = address_of(chunk)
        core["end"] = address_of(chunk) + chunk.size

    # One instruction at a time.

    def _call(self, row: np.ndarray) -> None:
        stream = int(row[LOG_STREAM])
        if row[LOG_END]:
            self._called[stream].popleft()()
            return
        at = LOG_ENV + self._depth
        start = self._calls[int(row[LOG_INSTR])]
        self._called[stream].append(start(stream >> 2, row[LOG_ENV:at].tolist(), row[at:].tolist()))

    def _add(self, plans: Plans, index: int) -> None:
        """Plan an instruction."""
        info = self._flat.instrs[index]
        if isinstance(info.item, Copy):
            plans.call(self._chip.bytes_of(info.item.dst))
            self._calls[index] = self._copy(info.item)
            return
        stmt, rings = info.item.stmt, info.operands
        buffers = [_buffer(self._flat.rings[r]) for r in rings]
        slots = {name: d for d, name in enumerate(info.loops)}
        params = {p.name: p for p in self._flat.segment.kernels[info.kernel].params}
        if isinstance(stmt, Load):
            plans.load(LoadPlan(stmt, params[stmt.src], buffers[0], slots), params[stmt.src], rings)
        elif isinstance(stmt, Store):
            plan = StorePlan(stmt, params[stmt.dst], buffers[0], slots)
            if stmt.scatter is not None and stmt.combine:
                plans.call(self._chip.bytes_of(params[stmt.dst].tensor))
                self._calls[index] = self._combine(plan, params[stmt.dst], rings, buffers)
            else:
                plans.store(plan, params[stmt.dst], rings)
        elif isinstance(stmt, Mma):
            plans.mma(MmaPlan(stmt, buffers[0], buffers[1], buffers[2], slots), rings)
        else:
            n = len(stmt.ins)
            plans.vec(VecPlan(stmt, self._vectors[stmt.program], buffers[:n], buffers[n:], slots), rings)

    def _copy(self, copy: Copy) -> Start:
        src, dst = self._chip.bytes_of(copy.src), self._chip.bytes_of(copy.dst)
        size = self._chip.element_bytes(copy.src)
        where = slice(copy.start * size, (copy.start + copy.count) * size)

        def start(unit: int, env: list[int], slots: list[int]) -> Commit:
            data = src[where].copy()
            return lambda: dst.__setitem__(where, data)

        return start

    def _combine(self, plan: StorePlan, param: Param, rings: Sequence[int], buffers: Sequence[Buffer]) -> Start:
        """A store that combines elements with those in memory."""
        memory, slot, run, (src, index) = self._chip.bytes_of(param.tensor), self._units.slot, plan.run, rings
        dtype = buffers[1].dtype

        def start(unit: int, env: list[int], slots: list[int]) -> Commit:
            data = slot(unit, src, slots[0]).copy()
            rows = widen(slot(unit, index, slots[1]), dtype).astype(np.int64)
            return lambda: run(memory, data, env, rows)

        return start


def _numbers(plan: VecPlan, key: np.ndarray) -> tuple[list[int | None], list[int]]:
    """Valid extents and scalars of an instance."""
    numbers = iter(key.tolist())
    return [None if bound is None else next(numbers) for bound in plan.bounds], list(numbers)


def _view(lane: np.ndarray, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.ndarray(shape, dtype, lane, offset)


def _buffer(ring: Ring) -> Buffer:
    return Buffer(ring.name, ring.dtype, ring.shape, ring.space, ring.depth)
