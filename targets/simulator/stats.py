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
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.energy import energy_joules
from ppuc.targets.simulator.power import steady_power
from ppuc.targets.simulator.result import STALL_CAUSES, CopyStats, Hazard, KernelStats, Profile

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
        kernel_of, queue_of = flat.code.ins["kernel"], flat.code.ins["queue"]
        for k in range(len(flat.segment.kernels)):
            self.kernels.append(self._kernel(flat, state, k, np.flatnonzero(kernel_of == k), begin, target))
        for i in np.flatnonzero(queue_of == 4):
            self._copy(flat, state, int(i), begin)
        self.instructions += int(state.stat["n"].sum())
        self.lane_ops += int(state.stat["lane_ops"].sum())
        self.sfu_ops += int(state.stat["sfu_ops"].sum())
        for kernel in self.kernels[len(self.kernels) - len(flat.segment.kernels) :]:
            self.read.update(kernel.read_bytes)
            self.write.update(kernel.write_bytes)

    def _kernel(
        self, flat: FlatSegment, state: t.State, k: int, rows: np.ndarray, begin: float, target: Target
    ) -> KernelStats:
        kernel, stat = flat.segment.kernels[k], state.stat[rows]
        busy: dict[Queue, float] = {}
        stall: dict[Queue, dict[str, float]] = {}
        count: dict[Queue, int] = {}
        for q, queue in enumerate(UNIT_QUEUES):
            mine = rows[flat.code.ins["queue"][rows] == q]
            busy[queue] = float(state.stat["busy"][mine].sum())
            stall[queue] = dict(zip(STALL_CAUSES, state.stall[mine].sum(0).tolist(), strict=True))
            count[queue] = int(state.stat["n"][mine].sum())
        read, write, macs, ideal = self._traffic(flat, state, rows, target)
        engine, operand_wait = _engine(flat, state, rows)
        lane_ops, sfu_ops = int(stat["lane_ops"].sum()), int(stat["sfu_ops"].sum())
        ran = stat[stat["n"] > 0]
        start, end = (ran["start"].min(), ran["end"].max()) if len(ran) else (0.0, 0.0)
        return KernelStats(
            name=kernel.name,
            loc=kernel.loc,
            units=int(flat.code.kernel["units"][k]),
            start=begin + float(start),
            end=begin + float(end),
            busy=busy,
            stall=stall,
            instructions=count,
            read_bytes=read,
            write_bytes=write,
            macs=macs,
            ideal_tensor=ideal,
            shaped_tensor=_shaped(flat, state, rows, target),
            ideal_vector=(lane_ops / target.vector.lanes + sfu_ops / target.vector.sfu_per_clk) / target.cu,
            engine=engine,
            operand_wait=operand_wait,
            transfer=_transfer(flat, state, rows),
        )

    def _traffic(
        self, flat: FlatSegment, state: t.State, rows: np.ndarray, target: Target
    ) -> tuple[dict[Space, int], dict[Space, int], int, float]:
        """Bytes read and written by space, multiply-accumulates, and their cycles at the chip's peak."""
        sums = {
            name: int(state.stat[name][rows].sum()) for name in ("l1_read", "l1_written", "acc_read", "acc_written")
        }
        read = Counter({Space.L1: sums["l1_read"], Space.ACC: sums["acc_read"]})
        write = Counter({Space.L1: sums["l1_written"], Space.ACC: sums["acc_written"]})
        macs, ideal = 0, 0.0
        for i in rows.tolist():
            kind, memory = flat.code.ins["kind"][i], int(flat.code.ins["memory"][i])
            size, held, evicted, products = (int(state.stat[name][i]) for name in ("bytes", "held", "evicted", "macs"))
            if kind == t.LOAD:
                read[_SPACE[memory]] += size - held
                read[Space.L2] += held
                self.tensor_read[flat.tensor_of(i)] += size
            elif kind == t.STORE:
                write[_SPACE[memory]] += size - held
                write[Space.L2] += held
                self.tensor_write[flat.tensor_of(i)] += size
            elif kind == t.MMA:
                dtype = flat.rings[flat.instrs[i].operands[1]].dtype
                self.macs[dtype] += products
                macs += products
                ideal += products / target.peak_macs_per_clk("i8" if dtype is DType.U8 else dtype)
            write[Space.HBM] += evicted
        return dict(+read), dict(+write), macs, ideal

    def _copy(self, flat: FlatSegment, state: t.State, i: int, begin: float) -> None:
        item = flat.instrs[i].item
        if isinstance(item, Instr):
            return
        size = int(state.stat["bytes"][i])
        self.read[_SPACE[int(flat.code.ins["memory"][i])]] += size
        self.write[_SPACE[int(flat.code.ins["second"][i])]] += size
        self.tensor_read[item.src] += size
        self.tensor_write[item.dst] += size
        start, end = begin + float(state.stat["start"][i]), begin + float(state.stat["end"][i])
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


def _engine(flat: FlatSegment, state: t.State, rows: np.ndarray) -> tuple[dict[Queue, float], dict[Queue, float]]:
    """Engine cycles of the tensor and vector queues, and further cycles in which they waited for l1 and acc."""
    engine, wait = {}, {}
    for q, queue in ((2, Queue.TENSOR), (3, Queue.VECTOR)):
        mine = state.stat[rows[flat.code.ins["queue"][rows] == q]]
        engine[queue], wait[queue] = float(mine["engine"].sum()), float(mine["operands"].sum())
    return engine, wait


def _shaped(flat: FlatSegment, state: t.State, rows: np.ndarray, target: Target) -> float:
    """Cycles of the chip if each unit had as many result fragments as lanes (or all there are), with products
    distributed evenly."""
    total, lanes = 0.0, target.tensor.lanes
    for i in rows.tolist():
        results, products = int(state.stat["results"][i]), int(state.stat["products"][i])
        if results:
            dtype = flat.rings[flat.instrs[i].operands[1]].dtype
            interval = target.tensor.ii_clk["i8" if dtype is DType.U8 else str(dtype)]
            total += products * interval / (min(lanes, results) * target.cu)
    return total


def _transfer(flat: FlatSegment, state: t.State, rows: np.ndarray) -> dict[Space, float]:
    """Cycles of data phases by memory."""
    spent: dict[Space, float] = {}
    for i in rows.tolist():
        if flat.code.ins["kind"][i] in (t.LOAD, t.STORE):
            memory = _SPACE[int(flat.code.ins["memory"][i])]
            spent[memory] = spent.get(memory, 0.0) + float(state.stat["busy"][i] + state.stall[i, t.BANDWIDTH])
    return spent


__all__ = ["Totals"]
