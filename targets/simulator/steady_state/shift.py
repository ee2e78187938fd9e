"""Compares two states of a run at different repetitions of its text up to a shift, and applies the shift repeatedly.

A relative state consists of nodes, instructions, rings and kernels less the shift of the text, counter groups as paired
by alike kernels and copies, and times less the current time.

Invariant: state that `same` does not compare cannot influence the event loop (scratch, and data of finished kernels and
copies).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.counters import blocks_of, counts_of, set_counts
from ppuc.targets.simulator.decode import MARKS, FlatSegment
from ppuc.targets.simulator.steady_state.repeats import Repeats

_INS, _NODE, _SYNC = (MARKS.index(name) for name in ("ins", "node", "sync"))
_CORE = ("heap", "flows", "stack", "wakes", "done", "stale", "over", "hbm_rate")
_STREAM = ("first", "last", "measured", "cause", "waking", "flow", "l1")
_BOX = ("moved", "fetched", "run", "row", "low", "high", "pitch")
_FLOW = (*range(t.F_PATH, t.F_PATH + t.P_PORTS + 1), t.F_REM, t.F_RATE, t.F_READS, t.F_WRITES)
_TIMES = (t.F_UPD, t.F_FIN)
_FLIGHT = ("last", "low", "high", "bytes", "l1", "memory", "cap", "weight")


@dataclass(frozen=True, slots=True)
class Stop:
    """The unfinished part of an earlier state. `first` and `end`: kernels that some stream has begun and not all have
    finished; `copies` [stage queues, 2]: instruction numbers from the oldest copy in flight to the one after the
    head."""

    state: t.State
    now: float
    first: int
    end: int
    copies: np.ndarray


class Shift:
    """The shift from stop `before` to stop `here`, which can repeat `times` times. `phi`: the counter group that
    replaces a group (-1: untouched)."""

    def __init__(self, flat: FlatSegment, kernels: int, before: Stop, here: Stop, phi: np.ndarray, times: int) -> None:
        self.flat, self.kernels, self.phi, self.times = flat, kernels, phi, times
        self.before, self.here, self.period = before, here, here.now - before.now
        self.ring0 = np.searchsorted(flat.ring_kernel, np.arange(len(flat.segment.kernels) + 1))
        self.rings = int(self.ring0[here.first] - self.ring0[before.first])
        marks = flat.marks[:, here.first] - flat.marks[:, before.first]
        copies = here.copies[:, 0] - before.copies[:, 0]
        units = flat.machine.units
        number = np.arange(4 * units + len(copies))
        self._transfers = (number % 4 < 2) | (number >= 4 * units)
        self.ins = np.concatenate([np.tile(marks[:, _INS], units), copies])
        self.nodes = np.concatenate([np.tile(marks[:, _NODE], units), copies])

    @staticmethod
    def between(flat: FlatSegment, repeats: Repeats, before: Stop, here: Stop, back: int) -> Shift | None:
        """The shift over `back` periods if the text around both stops repeats at least once more; else None."""
        kernels = back * repeats.period
        if (here.first, here.end) != (before.first + kernels, before.end + kernels) or before.first < repeats.first:
            return None
        if len({tuple(column) for column in (here.copies - before.copies).T.tolist()}) > 1:
            return None
        for times in range((repeats.last - here.end) // kernels + 1, 0, -1):
            phi = _paired_groups(flat, before, here, kernels, times)
            if phi is not None:
                return Shift(flat, kernels, before, here, phi, times)
        return None

    # Equal states.

    def same(self) -> bool:
        """Whether the later state equals the shifted earlier one."""
        a, b = self.before.state, self.here.state
        pairs = (*self._core(a, b), *self._streams(a, b), *self._flights(a, b), *self._tables(a, b))
        return all(np.array_equal(x, y) for x, y in pairs) and self._same_counters(a, b)

    def _core(self, a: t.State, b: t.State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for f in _CORE:
            yield a.core[f], b.core[f]
        yield a.core["finish"] + self.period, b.core["finish"]
        n, flows = int(a.core["heap"][0]), int(a.core["flows"][0])
        yield np.sort(a.heap[:n]) + _heap_time(a, self.period), np.sort(b.heap[:n])
        yield a.flow[:, :flows], b.flow[:, :flows]
        yield a.course[_FLOW, :flows], b.course[_FLOW, :flows]
        yield _later(a.course[_TIMES, :flows], self.period), b.course[_TIMES, :flows]
        yield np.maximum(a.l1 - self.before.now, 0.0), np.maximum(b.l1 - self.here.now, 0.0)

    def _streams(self, a: t.State, b: t.State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield a.stream["pc"] + self.nodes, b.stream["pc"]
        yield a.stream["head"] >= 0, b.stream["head"] >= 0
        live = (a.stream["head"] >= 0) | (a.stream["next"] > a.stream["oldest"])
        x, y, code = a.stream[live], b.stream[live], self.flat.code
        headed = (x["head"] >= 0) & (y["head"] >= 0)
        one, two = x["head"][headed], y["head"][headed]
        yield one + self.ins[live][headed], two
        yield x["use"][headed] - code.ins["use_lo"][one], y["use"][headed] - code.ins["use_lo"][two]
        yield x["wait"][headed] - code.ins["wait_lo"][one], y["wait"][headed] - code.ins["wait_lo"][two]
        for f in _STREAM:
            yield x[f], y[f]
        yield x["next"] - x["oldest"], y["next"] - y["oldest"]
        moving = self._transfers[live]
        yield (x["data"] - x["oldest"])[moving], (y["data"] - y["oldest"])[moving]
        yield x["next"] == 0, y["next"] == 0
        for f in _BOX:
            yield x[f][x["measured"] > 0], y[f][x["measured"] > 0]
        for f in ("mark", "free_at"):  # an engine free before the mark counts as free since the mark
            yield np.maximum(x[f], x["mark"]) + self.period, np.maximum(y[f], y["mark"])
        yield x["began"][x["flow"] >= 0] + self.period, y["began"][x["flow"] >= 0]
        on_ring, on_group = np.isin(x["cause"], (t.B_DATA, t.B_SPACE, t.B_AFTER)), x["cause"] == t.B_COUNTER
        yield x["what"][on_ring] + self.rings, y["what"][on_ring]
        yield self.phi[x["what"][on_group]], y["what"][on_group]
        yield x["waiter"][on_group], y["waiter"][on_group]
        yield a.place[live], b.place[live]
        yield a.coordinate[live], b.coordinate[live]

    def _flights(self, a: t.State, b: t.State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = a.stream["next"] - a.stream["oldest"]
        for i in range(int(count.max())):
            on = np.flatnonzero(count > i)
            x, y = (s.flight[on, (s.stream["oldest"][on] + i) % t.IN_FLIGHT] for s in (a, b))
            yield x["instr"] + self.ins[on], y["instr"]
            yield x["last"], y["last"]
            x, y = x[self._transfers[on]], y[self._transfers[on]]
            for f in _FLIGHT:
                yield x[f], y[f]
            for f in ("ready", "land"):
                yield x[f] + self.period, y[f]

    def _tables(self, a: t.State, b: t.State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        r0, r1 = self.ring0[self.before.first], self.ring0[self.before.end]
        yield a.filled[:, r0:r1], b.filled[:, r0 + self.rings : r1 + self.rings]
        yield a.reader[:, r0:r1], b.reader[:, r0 + self.rings : r1 + self.rings]
        k0, k1 = self.before.first, self.before.end
        yield a.begun[k0:k1] + self.period, b.begun[k0 + self.kernels : k1 + self.kernels]
        for first, _, end, move in self._instructions():
            low, high = first, end - move
            x, y = a.stat[low:high], b.stat[low + move : high + move]
            for f in x.dtype.names or ():
                if f not in ("start", "end"):
                    yield x[f], y[f]
            yield x["start"] + self.period, y["start"]
            yield np.where(x["end"] > 0, x["end"] + self.period, 0.0), y["end"]
            yield a.stall[low:high], b.stall[low + move : high + move]

    def _same_counters(self, a: t.State, b: t.State) -> bool:
        code, own = self.flat.code, np.arange(len(self.phi))
        before, here = counts_of(code, a), counts_of(code, b)
        fixed = blocks_of(code, np.flatnonzero(self.phi == own))
        if (before[fixed] < code.expect[fixed]).any():
            return False
        moved = np.flatnonzero((self.phi >= 0) & (self.phi != own))
        x, y = blocks_of(code, moved), blocks_of(code, self.phi[moved])
        return np.array_equal(before[x], here[y]) and np.array_equal(a.waiting[moved], b.waiting[self.phi[moved]])

    def _instructions(self) -> Iterator[tuple[int, int, int, int]]:
        """(first live at `before`, first live at `here`, end of those live at `here`, shift) by queue."""
        marks, before, here = self.flat.marks[:, :, _INS], self.before, self.here
        for q in range(4):
            yield int(marks[q, before.first]), int(marks[q, here.first]), int(marks[q, here.end]), int(self.ins[q])
        for s, (low, end) in enumerate(here.copies.tolist()):
            yield int(before.copies[s, 0]), low, end, low - int(before.copies[s, 0])

    # The state after all repetitions.

    def apply(self, state: t.State) -> None:
        """Advance `state`, which is at `here`, by `times` shifts."""
        later = self.times * self.period
        state.core["now"] += later
        state.core["finish"] += later
        state.course[_TIMES, :] = _later(state.course[_TIMES, :], later)
        state.heap[:] += _heap_time(state, later)
        state.l1[:] += later
        self._move_streams(state, later)
        state.flight["instr"] += self.times * self.ins[:, None]
        state.flight["ready"] += later
        state.flight["land"] += later
        r0, r1, r2 = (int(self.ring0[k]) for k in (self.before.first, self.here.first, self.here.end))
        for table in (state.filled, state.reader):
            self._spread(table.swapaxes(0, 1), r0, r1, r2, self.rings)
        self._spread(state.begun, self.before.first, self.here.first, self.here.end, self.kernels, timed=True)
        for rows in self._instructions():
            self._spread(state.stall, *rows)
            for f in state.stat.dtype.names or ():
                self._spread(state.stat[f], *rows, timed=f in ("start", "end"))
        self._move_counters(state)

    def _move_streams(self, state: t.State, later: float) -> None:
        q, code = state.stream, self.flat.code
        q["pc"] += self.times * self.nodes
        headed = np.flatnonzero(q["head"] >= 0)
        old = q["head"][headed]
        new = old + self.times * self.ins[headed]
        for cursor, low in (("use", "use_lo"), ("wait", "wait_lo")):
            q[cursor][headed] += code.ins[low][new] - code.ins[low][old]
        q["head"][headed] = new
        q["what"][np.isin(q["cause"], (t.B_DATA, t.B_SPACE, t.B_AFTER))] += self.times * self.rings
        waiting = q["cause"] == t.B_COUNTER
        for _ in range(self.times):
            q["what"][waiting] = self.phi[q["what"][waiting]]
        for f in ("free_at", "mark", "began"):
            q[f] += later

    def _spread(self, table: np.ndarray, low: int, live: int, end: int, move: int, *, timed: bool = False) -> None:
        """Write the rows after the repetitions: rows [low, live) are a finished period, [live, end) are unfinished."""
        if move == 0:
            return
        done, rest = table[low:live].copy(), table[live:end].copy()
        for i in range(1, self.times + 1):
            table[low + i * move : live + i * move] = _later(done, i * self.period) if timed else done
        shift = self.times * move
        table[live + shift : end + shift] = _later(rest, self.times * self.period) if timed else rest

    def _move_counters(self, state: t.State) -> None:
        moved = np.flatnonzero((self.phi >= 0) & (self.phi != np.arange(len(self.phi))))
        code, counts = self.flat.code, counts_of(self.flat.code, state)
        x, y = blocks_of(code, moved), blocks_of(code, self.phi[moved])
        for _ in range(self.times):
            counts[y] = counts[x]
            waiting = state.waiting[moved]
            state.waiting[moved] = -1
            state.waiting[self.phi[moved]] = waiting
        set_counts(code, state, counts)


def _heap_time(state: t.State, clk: float) -> int:
    """A time as part of a key of the heap."""
    return int(clk * t.TICKS) << (int(state.core["stream_bits"][0]) + t.KIND_BITS)


def _later(times: np.ndarray, by: float) -> np.ndarray:
    """Shift times of past events; 0 and inf mean never."""
    return np.where(times > 0, times + by, times)


def _paired_groups(flat: FlatSegment, before: Stop, here: Stop, kernels: int, times: int) -> np.ndarray | None:
    """The replacement of each counter group, from the instructions in `times` shifts; None if it is not a bijection
    between equal groups, or a copy differs from its replacement."""
    c, pairs = flat.code, []
    marks, first, end = flat.marks[:, :, _SYNC], before.first, here.end + (times - 1) * kernels
    for q in range(4):
        low, high = marks[q, first], marks[q, end]
        move = marks[q, first + kernels] - low
        one, two = c.sync["group"][low:high], c.sync["group"][low + move : high + move]
        if len(one) != len(two):  # the last kernels have fewer waits than earlier ones
            return None
        pairs.append((one, two))
    for (low, high), old in zip(here.copies.tolist(), before.copies[:, 0].tolist(), strict=True):
        move = low - old
        x, y = c.ins[old : high + (times - 1) * move], c.ins[low : high + times * move]
        if len(x) != len(y) or (move and not _alike_copies(c, x, y)):
            return None
        for a, b in zip(x, y, strict=True) if move else ():
            pairs.append((c.sync["group"][a["wait_lo"] : a["bump_hi"]], c.sync["group"][b["wait_lo"] : b["bump_hi"]]))
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    phi = np.full(len(c.group), -1, np.int64)
    phi[x] = y
    if (phi[x] != y).any() or len(np.unique(phi[phi >= 0])) != len(np.unique(x)):
        return None
    a, b = c.group[np.unique(x)], c.group[phi[np.unique(x)]]
    alike = np.array_equal(a["block"], b["block"]) and np.array_equal(a["count"], b["count"])
    one, two = blocks_of(c, np.unique(x)), blocks_of(c, phi[np.unique(x)])
    return phi if alike and np.array_equal(c.expect[one], c.expect[two]) else None


def _alike_copies(c: t.Code, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two runs of copies on one queue are equal except for tensors and counter groups."""
    one, two = ([z["memory"], z["second"], z["bump_lo"] - z["wait_lo"], z["bump_hi"] - z["bump_lo"]] for z in (x, y))
    return np.array_equal(one, two) and np.array_equal(c.copy[x["desc"]], c.copy[y["desc"]])


__all__ = ["Shift", "Stop"]
