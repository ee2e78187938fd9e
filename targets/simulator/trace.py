"""Events of a run as a table, with flows (pushes and counters), bytes, energy and occupancy of l1.

Invariant: the means per instruction times the number of its instances are the profile's bytes and dynamic energy; a
flow never ends before its source event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.energy import energy_joules

EVENT = np.dtype(
    [
        ("start", "f8"),
        ("end", "f8"),
        ("unit", "i4"),
        ("queue", "i4"),
        ("instr", "i4"),
        ("kernel", "i4"),
        ("segment", "i4"),
    ]
)
"""start, end in cycles; unit (-1 on stage queues); queue: index into UNIT_QUEUES, or the stage queue's number; instr:
index into the run's event names; kernel: index into the profile's kernels, -1 for copies."""

FLOW = np.dtype([("source", "i8"), ("sink", "i8"), ("label", "i4")])
"""Two connected events, by position in the event table, and the label of the flow: an index into `Details.labels`."""

CHANGE = np.dtype([("time", "f8"), ("unit", "i4"), ("bytes", "i8")])
"""Bytes of l1 that a unit's rings claim (positive) or free (negative) at some time."""


@dataclass(frozen=True, slots=True)
class Details:
    """Additional data of a trace. Per instruction (by `instr`): mean bytes of hbm and of l2, and mean dynamic energy,
    of one instance."""

    hbm_bytes: np.ndarray
    l2_bytes: np.ndarray
    joules: np.ndarray
    flows: np.ndarray = field(default_factory=lambda: np.empty(0, FLOW))
    labels: tuple[str, ...] = ()
    occupancy: np.ndarray = field(default_factory=lambda: np.empty(0, CHANGE))
    idle_w: float = 0.0


class EventTable:
    """Collects log rows; `names` are the texts of instructions, in segment order."""

    def __init__(self, target: Target) -> None:
        self.names: list[str] = []
        self._target = target
        self._tables: list[np.ndarray] = []
        self._flows: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._means: list[np.ndarray] = []
        self._labels: list[str] = []
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []
        self._kernels, self._events = 0, 0

    def consume(self, times: np.ndarray, rows: np.ndarray) -> None:
        """Keep log rows."""
        self._chunks.append((times.copy(), rows[:, : t.LOG_ENV].copy()))

    def close(self, flat: FlatSegment, state: t.State, begin: float) -> None:
        """End the segment that began at cycle `begin`."""
        instances = Instances(flat, self._chunks, begin)
        self._chunks = []
        units = 4 * flat.machine.units
        stream, instr = instances.stream, instances.instr
        out = np.empty(len(instr), EVENT)
        out["start"], out["end"] = instances.start, instances.end
        out["unit"] = np.where(stream < units, stream // 4, -1)
        out["queue"] = np.where(stream < units, stream % 4, stream - units)
        kernel = flat.code.ins["kernel"][instr]
        out["kernel"] = np.where(kernel >= 0, kernel + self._kernels, -1)
        out["instr"], out["segment"] = instr + len(self.names), len(self._tables)
        order = np.argsort(out["start"], kind="stable")
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order)) + self._events
        self._add_flows(instances.ring_flows(), position, [f"%{r.name}" for r in flat.rings])
        self._add_flows(instances.counter_flows(), position, [g.name for g in flat.segment.counters])
        self._changes.append(instances.occupancy())
        self._means.append(_means(flat, state, self._target))
        self._tables.append(out[order])
        self.names += [flat.instr_name(i) for i in range(len(flat.instrs))]
        self._kernels += len(flat.segment.kernels)
        self._events += len(order)

    def _add_flows(self, flows: np.ndarray, position: np.ndarray, labels: list[str]) -> None:
        flows["source"], flows["sink"] = position[flows["source"]], position[flows["sink"]]
        flows["label"] += len(self._labels)
        self._labels += labels
        self._flows.append(flows)

    def table(self) -> np.ndarray:
        """All events, of dtype EVENT, in order of their starts."""
        return np.concatenate(self._tables) if self._tables else np.empty(0, EVENT)

    def details(self) -> Details:
        """Flows and details of the events in `table`."""
        means = np.concatenate([np.zeros((0, 3)), *self._means])
        return Details(
            hbm_bytes=means[:, 0],
            l2_bytes=means[:, 1],
            joules=means[:, 2],
            flows=np.concatenate([np.empty(0, FLOW), *self._flows]),
            labels=tuple(self._labels),
            occupancy=np.concatenate([np.empty(0, CHANGE), *self._changes]),
            idle_w=self._target.power.idle_w,
        )


def _means(flat: FlatSegment, state: t.State, target: Target) -> np.ndarray:
    """[instructions, 3]: bytes of hbm, bytes of l2, and joules of one instance of each."""
    out = np.zeros((len(flat.instrs), 3))
    for i, info in enumerate(flat.instrs):
        stat, ins = state.stat[i], flat.code.ins[i]
        n = int(stat["n"])
        if n == 0:
            continue
        moved = {
            Space.L1: int(stat["l1_read"] + stat["l1_written"]),
            Space.ACC: int(stat["acc_read"] + stat["acc_written"]),
        }
        for column in ("memory", "second"):
            memory = int(ins[column])
            if memory >= 0:
                held = int(stat["held"] - stat["evicted"])
                moved[_SPACES[memory]] = moved.get(_SPACES[memory], 0) + int(stat["bytes"]) - held
                moved[Space.L2] = moved.get(Space.L2, 0) + held
        macs: Mapping[DType, int] = {}
        if ins["kind"] == t.MMA:
            macs = {flat.rings[info.operands[1]].dtype: int(stat["macs"])}
        lane_ops, sfu_ops = int(stat["lane_ops"]), int(stat["sfu_ops"])
        energy = energy_joules(
            target, macs=macs, lane_ops=lane_ops, sfu_ops=sfu_ops, moved_bytes=moved, instructions=n, seconds=0.0
        )
        out[i] = np.array([moved.get(Space.HBM, 0), moved.get(Space.L2, 0), sum(energy.values())]) / n
    return out


class Instances:
    """The instances of a segment's instructions, by stream in order, and their dependences."""

    def __init__(self, flat: FlatSegment, chunks: list[tuple[np.ndarray, np.ndarray]], begin: float) -> None:
        times = np.concatenate([np.zeros(0), *(when for when, _ in chunks)])
        rows = np.concatenate([t.ints(0, t.LOG_ENV), *(log for _, log in chunks)])
        starts, ends = np.flatnonzero(rows[:, 0] == 0), np.flatnonzero(rows[:, 0] == 1)
        # A stream's completions come in the order of its starts: stable sorts by stream pair them up.
        starts = starts[np.argsort(rows[starts, t.LOG_STREAM], kind="stable")]
        ends = ends[np.argsort(rows[ends, t.LOG_STREAM], kind="stable")]
        self.flat = flat
        self.start, self.end = begin + times[starts], begin + times[ends]
        (self.stream, self.instr, self.first, self.last, self.low, self.high) = rows[starts, 1 : t.LOG_ENV].T
        order = np.argsort(self.instr, kind="stable")
        self._of = np.split(order, np.searchsorted(self.instr[order], np.arange(1, len(flat.instrs))))

    def _uses(self, kind: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ring, unit, instance) of every operation of a kind, in the order of each stream."""
        code = self.flat.code
        rings, found = [t.ints(0)], [t.ints(0)]
        masks = self.first if kind in (t.CLAIM, t.WAIT) else self.last
        for i, mine in enumerate(self._of[: len(self.flat.instrs)]):
            for use, ring, mask in code.use[code.ins["use_lo"][i] : code.ins["use_hi"][i]].tolist():
                if use == kind:
                    chosen = mine[masks[mine] & mask == mask]
                    rings.append(np.full(len(chosen), ring))
                    found.append(chosen)
        instance = np.concatenate(found)
        return np.concatenate(rings), self.stream[instance] // 4, instance

    def _ranked(self, kind: int, by_queue: bool) -> tuple[np.ndarray, np.ndarray]:
        """(key, instance): the key combines ring, unit and the number of earlier operations of the kind there (in the
        same queue, with `by_queue`)."""
        ring, unit, instance = self._uses(kind)
        queue = self.stream[instance] % 4 if by_queue else np.zeros_like(ring)
        order = np.lexsort((instance, self.start[instance], queue, unit, ring))
        ring, unit, queue, instance = ring[order], unit[order], queue[order], instance[order]
        place = (ring * self.flat.machine.units + unit) * 4 + queue
        head = np.flatnonzero(np.diff(place, prepend=-1))
        rank = np.arange(len(place)) - np.repeat(head, np.diff(head, append=len(place)))
        return (place // 4) * _RANKS + rank, instance

    def ring_flows(self) -> np.ndarray:
        """Flows from every push to the waits for the slot it filled."""
        pushes, source = self._ranked(t.PUSH, by_queue=False)
        waits, sink = self._ranked(t.WAIT, by_queue=True)
        at = np.searchsorted(pushes, waits)
        held = at < len(pushes)
        held[held] = pushes[at[held]] == waits[held]
        flows = np.empty(int(held.sum()), FLOW)
        flows["source"], flows["sink"] = source[at[held]], sink[held]
        flows["label"] = waits[held] // _RANKS // self.flat.machine.units
        return flows

    def occupancy(self) -> np.ndarray:
        """Times at which slots in l1 are claimed, and freed by their last consumer."""
        claims, claimer = self._ranked(t.CLAIM, by_queue=False)
        pops, popper = self._ranked(t.POP, by_queue=True)
        order = np.lexsort((self.end[popper], pops))
        pops, popper = pops[order], popper[order]
        latest = np.flatnonzero(np.diff(pops, append=-1))
        keys = np.concatenate([claims, pops[latest]])
        ring, unit = np.divmod(keys // _RANKS, self.flat.machine.units)
        out = np.empty(len(keys), CHANGE)
        out["time"] = np.concatenate([self.start[claimer], self.end[popper[latest]]])
        out["unit"] = unit
        size = np.array([r.slot_bytes if r.space is Space.L1 else 0 for r in self.flat.rings], np.int64)
        out["bytes"] = size[ring] * np.repeat([1, -1], [len(claims), len(latest)])
        return out[np.argsort(out["time"], kind="stable")]

    def counter_flows(self) -> np.ndarray:
        """Flows to every instance that waited for counters, from the transfer that completed the last of them."""
        code = self.flat.code
        counters, bumper, _ = self._ranges(bump=True)
        done = np.full(len(code.expect), -1, np.int64)
        order = np.argsort(self.end[bumper], kind="stable")
        done[counters[order]] = bumper[order]
        counters, waiter, group = self._ranges(bump=False)
        source = done[counters]
        held = source >= 0
        source, waiter, group = source[held], waiter[held], group[held]
        order = np.lexsort((self.end[source], waiter))
        source, waiter, group = source[order], waiter[order], group[order]
        latest = np.flatnonzero(np.diff(waiter, append=-1))
        flows = np.empty(len(latest), FLOW)
        flows["source"], flows["sink"], flows["label"] = source[latest], waiter[latest], group[latest]
        return flows

    def _ranges(self, *, bump: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(block number, instance, group) for each counter that each instance bumps or waits for."""
        code = self.flat.code
        firsts, counts, instances, groups = [t.ints(0)], [t.ints(0)], [t.ints(0)], [t.ints(0)]
        for i, mine in enumerate(self._of[: len(self.flat.instrs)]):
            lo, hi = (code.ins[field][i] for field in (("bump_lo", "bump_hi") if bump else ("wait_lo", "wait_hi")))
            for group, touched in code.sync[lo:hi].tolist():
                _, block, n, at = code.group[group].tolist()
                chosen = mine[self.high[mine] >= self.low[mine]] if touched else mine
                if bump and not touched:
                    chosen = mine[self.last[mine] == code.ins["done_mask"][i]]
                low = self.low[chosen] // block if touched else np.zeros_like(chosen)
                high = np.minimum(self.high[chosen] // block, n - 1) if touched else np.full_like(chosen, n - 1)
                firsts.append(at + low)
                counts.append(high - low + 1)
                instances.append(chosen)
                groups.append(np.full_like(chosen, group))
        first, count, instance, named = (np.concatenate(x) for x in (firsts, counts, instances, groups))
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count) + offset, np.repeat(instance, count), np.repeat(named, count)


_SPACES = (Space.HBM, Space.L2, Space.HOST)
_RANKS = 1 << 32
"""Upper bound on the operations on one ring of one unit."""

__all__ = ["CHANGE", "EVENT", "FLOW", "Details", "EventTable"]
