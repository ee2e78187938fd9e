"""The Profile of a run, from the per-instruction statistics that the event loop keeps.

Invariant: for each queue of a kernel, busy and stalls never exceed units * (end - start); the rest is idle.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ppuc.ir.program import UNIT_QUEUES, Instr, Queue
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import MARKS, FlatSegment
from ppuc.targets.simulator.energy import energy_joules
from ppuc.targets.simulator.power import steady_power
from ppuc.targets.simulator.result import STALL_CAUSES, CopyStats, Hazard, KernelStats, Profile

_INS = MARKS.index("ins")
_TENSOR = UNIT_QUEUES.index(Queue.TENSOR)
_ENGINES = [(q, queue) for q, queue in enumerate(UNIT_QUEUES) if queue in (Queue.TENSOR, Queue.VECTOR)]
_SPACE = {t.MEM_HBM: Space.HBM, t.MEM_L2: Space.L2, t.MEM_HOST: Space.HOST}


@dataclass(slots=True)
class Totals:
    """Sums over segments."""

    cycles: float = 0.0
    launch: float = 0.0
    instructions: int = 0
    lane_ops: int = 0
    sfu_ops: int = 0
    macs: Counter[DType] = field(default_factory=Counter)
    read: Counter[Space] = field(default_factory=Counter)
    write: Counter[Space] = field(default_factory=Counter)
    kernels: list[KernelStats] = field(default_factory=list)
    copies: list[CopyStats] = field(default_factory=list)
    tensor_read: Counter[str] = field(default_factory=Counter)
    tensor_write: Counter[str] = field(default_factory=Counter)

    def add(self, flat: FlatSegment, state: t.State, begin: float, target: Target) -> None:
        """Add a finished segment that started at cycle `begin`."""
        sums = _Sums(flat, state)
        kernels = [self._kernel(flat, sums, k, begin, target) for k in range(len(flat.segment.kernels))]
        self.kernels += kernels
        for i in np.flatnonzero(flat.code.ins["queue"] == 4).tolist():
            self._copy(flat, sums, i, begin)
        self.instructions += sum(sums.stat["n"])
        self.lane_ops += sum(sums.stat["lane_ops"])
        self.sfu_ops += sum(sums.stat["sfu_ops"])
        for kernel in kernels:
            self.read.update(kernel.read_bytes)
            self.write.update(kernel.write_bytes)

    def _kernel(self, flat: FlatSegment, sums: _Sums, k: int, begin: float, target: Target) -> KernelStats:
        kernel, of = flat.segment.kernels[k], sums.of_kernel
        rows = [i for q in range(4) for i in range(*sums.rows[q][k])]
        read, write, macs, ideal = self._traffic(flat, sums, k, rows, target)
        lane_ops, sfu_ops = (sum(of[name][q][k] for q in range(4)) for name in ("lane_ops", "sfu_ops"))
        ran = [i for i in rows if sums.stat["n"][i] > 0]
        start = min((sums.stat["start"][i] for i in ran), default=0.0)
        end = max((sums.stat["end"][i] for i in ran), default=0.0)
        return KernelStats(
            name=kernel.name,
            loc=kernel.loc,
            units=int(flat.code.kernel["units"][k]),
            start=begin + start,
            end=begin + end,
            busy={queue: of["busy"][q][k] for q, queue in enumerate(UNIT_QUEUES)},
            stall={
                queue: dict(zip(STALL_CAUSES, sums.stall_of_kernel[q][k], strict=True))
                for q, queue in enumerate(UNIT_QUEUES)
            },
            instructions={queue: of["n"][q][k] for q, queue in enumerate(UNIT_QUEUES)},
            read_bytes=read,
            write_bytes=write,
            macs=macs,
            ideal_tensor=ideal,
            shaped_tensor=_shaped(flat, sums, k, target),
            ideal_vector=(lane_ops / target.vector.lanes + sfu_ops / target.vector.sfu_per_clk) / target.cu,
            engine={queue: float(of["engine"][q][k]) for q, queue in _ENGINES},
            operand_wait={queue: of["operands"][q][k] for q, queue in _ENGINES},
            transfer=_transfer(sums, k),
        )

    def _traffic(
        self, flat: FlatSegment, sums: _Sums, k: int, rows: list[int], target: Target
    ) -> tuple[dict[Space, int], dict[Space, int], int, float]:
        """Bytes read and written by space, multiply-accumulates, and their cycles at the chip's peak."""
        l1_read, l1_written, acc_read, acc_written = (
            sum(sums.of_kernel[name][q][k] for q in range(4))
            for name in ("l1_read", "l1_written", "acc_read", "acc_written")
        )
        read = Counter({Space.L1: l1_read, Space.ACC: acc_read})
        write = Counter({Space.L1: l1_written, Space.ACC: acc_written})
        macs, ideal, stat = 0, 0.0, sums.stat
        for i in rows:
            kind, size, held = sums.kind[i], stat["bytes"][i], stat["held"][i]
            if kind == t.LOAD:
                read[_SPACE[sums.memory[i]]] += size - held
                read[Space.L2] += held
                self.tensor_read[flat.tensor_of(i)] += size
            elif kind == t.STORE:
                write[_SPACE[sums.memory[i]]] += size - held
                write[Space.L2] += held
                self.tensor_write[flat.tensor_of(i)] += size
            elif kind == t.MMA:
                dtype, products = flat.rings[flat.instrs[i].operands[1]].dtype, stat["macs"][i]
                self.macs[dtype] += products
                macs += products
                ideal += products / target.peak_macs_per_clk("i8" if dtype is DType.U8 else dtype)
            write[Space.HBM] += stat["evicted"][i]
        return dict(+read), dict(+write), macs, ideal

    def _copy(self, flat: FlatSegment, sums: _Sums, i: int, begin: float) -> None:
        item = flat.instrs[i].item
        if isinstance(item, Instr):
            return
        size = sums.stat["bytes"][i]
        self.read[_SPACE[sums.memory[i]]] += size
        self.write[_SPACE[int(flat.code.ins["second"][i])]] += size
        self.tensor_read[item.src] += size
        self.tensor_write[item.dst] += size
        start, end = begin + sums.stat["start"][i], begin + sums.stat["end"][i]
        self.copies.append(CopyStats(item.dst, item.queue, size, start, end))

    def profile(self, target: Target, hazards: tuple[Hazard, ...], values: bool) -> Profile:
        """The record of the whole run."""
        seconds = self.cycles * target.clk_ns * 1e-9
        energy = energy_joules(
            target,
            macs=self.macs,
            lane_ops=self.lane_ops,
            sfu_ops=self.sfu_ops,
            moved_bytes=self.read + self.write,
            instructions=self.instructions,
            seconds=seconds,
        )
        return Profile(
            target=target.name,
            target_hash=target.hash,
            clock_ghz=1.0 / target.clk_ns,
            cycles=self.cycles,
            kernels=tuple(self.kernels),
            copies=tuple(self.copies),
            read_bytes=dict(self.read),
            write_bytes=dict(self.write),
            instructions=self.instructions,
            launch_cycles=self.launch,
            energy_joules=energy,
            hazards=hazards,
            values=values,
            tensor_read=dict(self.tensor_read),
            tensor_write=dict(self.tensor_write),
            power=steady_power(target, sum(energy.values()) - energy["static"], seconds),
        )


class _Sums:
    """The statistics of a segment as lists: `stat`, `kind`, `memory` and `bandwidth` (cycles of waiting for a share of
    it) by instruction; `of_kernel` [queue, kernel] sums of each field of Stat, `stall_of_kernel` [queue, kernel,
    cause]; `rows` [queue, kernel]: first and end."""

    def __init__(self, flat: FlatSegment, state: t.State) -> None:
        marks = flat.marks[:, :, _INS]
        self.rows = np.stack([marks[:, :-1], marks[:, 1:]], 2).tolist()
        self.kind, self.memory = flat.code.ins["kind"].tolist(), flat.code.ins["memory"].tolist()
        self.stat = {name: state.stat[name].tolist() for name in state.stat.dtype.names or ()}
        names = [name for name in self.stat if name not in ("start", "end")]
        self.of_kernel = {name: _between(state.stat[name], marks).tolist() for name in names}
        self.stall_of_kernel = _between(state.stall, marks).tolist()
        self.bandwidth = state.stall[:, t.BANDWIDTH].tolist()


def _between(values: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Sums of `values` from one mark to the next. They are whole ticks, so differences of sums are exact."""
    total = np.zeros((len(values) + 1, *values.shape[1:]), values.dtype)
    np.cumsum(values, 0, out=total[1:])
    return np.asarray(total[marks[:, 1:]] - total[marks[:, :-1]])


def _shaped(flat: FlatSegment, sums: _Sums, k: int, target: Target) -> float:
    """Cycles of the chip if each unit had as many result fragments as lanes (or all there are), with products
    distributed evenly."""
    total, lanes = 0.0, target.tensor.lanes
    for i in range(*sums.rows[_TENSOR][k]):
        results, products = sums.stat["results"][i], sums.stat["products"][i]
        if results:
            dtype = flat.rings[flat.instrs[i].operands[1]].dtype
            interval = target.tensor.ii_clk["i8" if dtype is DType.U8 else str(dtype)]
            total += products * interval / (min(lanes, results) * target.cu)
    return total


def _transfer(sums: _Sums, k: int) -> dict[Space, float]:
    """Cycles of data phases by memory."""
    spent: dict[Space, float] = {}
    for q in (0, 1):
        for i in range(*sums.rows[q][k]):
            memory = _SPACE[sums.memory[i]]
            spent[memory] = spent.get(memory, 0.0) + sums.stat["busy"][i] + sums.bandwidth[i]
    return spent


__all__ = ["Totals"]
