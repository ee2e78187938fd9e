"""Compares two states of a run some iterations of loops apart, and applies the difference repeatedly.

Between the states, some streams have gone round the loop that they are in; of these, each stands at the same
instruction, some iterations later. The states are equal if all else that the event loop reads is: times less the
current time, and of rings, what one queue is ahead of another. Streams that did nothing meanwhile keep their times.

What depends on the iteration bounds the number of repetitions: the first and last iteration of the loop, the edges of
tensors, the last use of a ring, the end of a transfer that goes on beside the loop. Counters stay as they are: loops
that bump them by the blocks touched, or wait for blocks of an incomplete group, are not repeated.

Invariant: state that is not compared cannot influence the event loop. Statistics are whole ticks, like times, so their
sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.steady_state.moment import SAME_IN_STREAM, Moment, in_flight, ints

_CORE = ("heap", "flows", "stack", "wakes", "done", "stale", "over", "streams", "writers", "hbm_rate")
_FLIGHT = np.array([i for i, name in enumerate(rec.dtype_of(rec.Flight).names or ())
                    if name not in ("low", "high", "ready", "land")])  # fmt: skip
_SUMS = [name for name in rec.dtype_of(rec.Stat).names or () if name not in ("start", "end")]
_PATH = (*range(t.F_PATH, t.F_PATH + t.P_PORTS + 1), t.F_REM, t.F_RATE, t.F_READS, t.F_WRITES)
_TIMES = (t.F_UPD, t.F_FIN)


class LoopShift:
    """The change from `before` to `here`, which can happen `times` more times. By stream: whether it `moved`, and
    whether it is `turning`, by how many `iterations` of the loop at `depth`, the variable by `steps`. `still`: data
    phases whose rates have not changed meanwhile."""

    def __init__(self, flat: FlatSegment, before: Moment, here: Moment) -> None:
        self.flat, self.before, self.here = flat, before, here
        self.a, self.b, self.period = before.state, here.state, here.now - before.now
        self.moved = (ints(self.a.stream) != ints(self.b.stream)).any(1)
        self.streams = np.flatnonzero(self.moved)
        places = ints(self.b.place) - ints(self.a.place)
        self.steps, self.iterations, self.trips = places[..., 0], places[..., 1], places[..., 2]
        self.turning = self.iterations.any(1)
        self.depth = np.argmax(self.iterations != 0, 1)
        self.still = (self.a.course[_TIMES, :] == self.b.course[_TIMES, :]).all(0)
        self.times = 0

    @staticmethod
    def between(flat: FlatSegment, before: Moment, here: Moment) -> LoopShift | None:
        """The change if both states are equal otherwise, and it can happen again; else None."""
        if before.kernels != here.kernels or not np.array_equal(before.of, here.of):
            return None
        if not np.array_equal(before.state.flow, here.state.flow):
            return None
        shift = LoopShift(flat, before, here)
        if not shift._same():
            return None
        shift.times = min(shift._bounds(), default=0)
        return shift if shift.times > 0 else None

    # Equal states.

    def _same(self) -> bool:
        """Whether the later state equals the earlier one, except for iterations, and times by the period."""
        return (
            bool(self.turning.any())
            and self._same_places()
            and self._same_streams()
            and self._same_flights()
            and all(np.array_equal(x, y) for x, y in self._pairs(self.a, self.b))
            and self._same_rings()
        )

    def _same_places(self) -> bool:
        """Whether each stream moved in one loop at most, forwards, and not from its first iteration."""
        first = self.a.place["it"][self.turning, self.depth[self.turning]]
        return not (
            self.turning[~self.moved].any()
            or self.trips.any()
            or (self.iterations < 0).any()
            or ((self.iterations != 0).sum(1) > 1).any()
            or self.steps[self.iterations == 0].any()
            or (first < 1).any()
        )

    def _same_streams(self) -> bool:
        x, y = self.a.stream[self.streams], self.b.stream[self.streams]
        if (ints(x)[:, SAME_IN_STREAM] != ints(y)[:, SAME_IN_STREAM]).any():
            return False
        transfers = self._transfers[self.moved]
        issued, freed = y["next"] - x["next"], y["free_at"] - x["free_at"]
        resting = (freed == 0) & (x["free_at"] <= x["mark"]) & (x["free_at"] <= self.before.now)
        data = (y["data"] - x["data"] == issued) | ~transfers
        begun = self.a.begun[self.flat.code.ins["kernel"][x["head"]]]
        charged = (x["head"] < 0) | (begun <= x["mark"]) | np.isinf(begun)  # waiting time from `mark` on, or none
        flowing = (y["began"] - x["began"] == self.period) | (x["flow"] < 0)
        alike = (y["oldest"] - x["oldest"] == issued) & data & ((issued > 0) == self.turning[self.moved])
        alike &= (y["mark"] - x["mark"] == self.period) & ((freed == self.period) | resting) & charged & flowing
        return bool(alike.all())

    @property
    def _transfers(self) -> np.ndarray:
        number = np.arange(len(self.moved))
        transfers: np.ndarray = (number % 4 < 2) | (number >= 4 * self.flat.machine.units)
        return transfers

    def _same_flights(self) -> bool:
        """Whether the instructions in flight of streams that moved are equal."""
        of = self.before.of
        moved, moving = self.moved[of], (self.moved & self._transfers)[of]
        x, y = self.before.flights, self.here.flights
        alike = (ints(x)[moved][:, _FLIGHT] == ints(y)[moved][:, _FLIGHT]).all()
        for f in ("ready", "land"):
            alike &= (x[f][moving] + self.period == y[f][moving]).all()
        return bool(alike)

    def _pairs(self, a: t.State, b: t.State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for f in _CORE:
            yield a.core[f], b.core[f]
        ticks = int(self.period * t.TICKS) << (int(a.core["stream_bits"][0]) + t.KIND_BITS)
        yield a.heap + ticks, b.heap
        yield a.course[_PATH, :], b.course[_PATH, :]
        yield a.course[_TIMES, :][:, ~self.still] + self.period, b.course[_TIMES, :][:, ~self.still]
        yield np.maximum(a.l1 - self.before.now, 0.0), np.maximum(b.l1 - self.here.now, 0.0)
        for name in ("coordinate", "counter", "waiting", "begun"):
            yield getattr(a, name), getattr(b, name)

    def _same_rings(self) -> bool:
        """Whether the queues of each ring moved on together, and not from the ring's first use."""
        filled, reader = ints(self.b.filled) - ints(self.a.filled), ints(self.b.reader) - ints(self.a.reader)
        self.filled, self.reader = filled, reader
        moved = filled[..., :1]
        consumers = self.flat.code.ring["consumers"][self.here.rings, None] >> np.arange(4) & 1
        return bool(
            (filled == moved).all()
            and (reader == (moved * consumers)[..., None]).all()
            and (self.a.filled["claimed"][moved[..., 0] > 0] > 0).all()
        )

    # The number of repetitions.

    def _bounds(self) -> Iterator[int]:
        """Upper bounds of it; 0 if an instruction does not behave the same in all iterations."""
        streams = np.flatnonzero(self.turning)
        depth = self.depth[streams]
        places, further = self.b.place[streams, depth], self.iterations[streams, depth]
        yield int(((places["trips"] - 2 - places["it"]) // further).min())
        moved, total = self.filled[..., 0], self.flat.code.total[:, self.here.rings]
        on = moved > 0
        yield int(((total - 1 - self.b.filled["pushed"])[on] // moved[on]).min(initial=1 << 40))
        ends = self.b.course[t.F_FIN][self.still]
        yield int(np.ceil((ends.min(initial=1e15) - self.here.now) / self.period)) - 1
        ran = self.here.rows[self.b.stat["n"] > self.a.stat["n"]]
        for i in ran.tolist():
            yield self._repetitions(i, streams)

    def _repetitions(self, i: int, streams: np.ndarray) -> int:
        """How often instruction `i` can run like now, in those of `streams` that it belongs to."""
        c = self.flat.code
        ins = c.ins[i]
        mine = streams[streams % 4 == ins["queue"]]
        if (self.depth[mine] != ins["depth"] - 1).any() or not self._counters_rest(ins):
            return 0
        at, step = self.b.place["at"][mine, : ins["depth"]], self.steps[mine, self.depth[mine]]
        if ins["kind"] in (t.LOAD, t.STORE):
            return self._inside(ins["desc"], at, step)
        if ins["kind"] == t.MMA:
            p = c.mma[ins["desc"]]
            return self._whole(p["extent"], p["m_axes"] + p["n_axes"] + p["k_axes"], at, step)
        return self._whole(c.vec[ins["desc"]]["extent"], c.vec[ins["desc"]]["axes"], at, step)

    def _counters_rest(self, ins: np.void) -> bool:
        """Whether an instruction bumps no block that it touches, and waits for complete blocks at most."""
        c = self.flat.code
        if c.sync["touched"][ins["bump_lo"] : ins["bump_hi"]].any():
            return False
        for group, touched in c.sync[ins["wait_lo"] : ins["wait_hi"]].tolist():
            first, _, count, at = c.group[group].tolist()
            whole = c.base[at : at + count] + c.expect[at : at + count]
            if touched and (self.b.counter[first : first + count] < whole).any():
                return False
        return True

    def _inside(self, b: int, at: np.ndarray, step: np.ndarray) -> int:
        """How often box `b` moves on inside of its tensor, `step` further in the innermost loop each time."""
        c, depth = self.flat.code, at.shape[1]
        dim, coef = c.dim[b], c.coef[b][:, :depth]
        offset, move = dim["const"] + at @ coef.T, step[:, None] * coef[:, depth - 1]
        low, high = offset + dim["low"], offset + dim["high"] + 1 - dim["size"]
        moves = (move != 0) & (np.arange(len(dim)) != c.box["gather_dim"][b])
        return min(_until(low, -move, moves), _until(-high, move, moves))

    def _whole(self, first: int, axes: int, at: np.ndarray, step: np.ndarray) -> int:
        """How often the tile of an mma or vec is a whole one."""
        c, depth = self.flat.code, at.shape[1]
        extent, coef = c.extent[first : first + axes], c.extent_coef[first : first + axes, :depth]
        move = step[:, None] * coef[:, depth - 1]
        moves = (move != 0) & (extent["limit"] != t.NO_BOUND)
        room = np.where(extent["limit"] != t.NO_BOUND, extent["limit"] - extent["size"], 0)
        return _until(room - extent["const"] - at @ coef.T, move, moves)

    # The state after all repetitions.

    def apply(self, state: t.State) -> None:
        """Advance `state`, which is at `here`."""
        later, on, flows = self.times * self.period, self.streams, self.a.flow.shape[1]
        state.core["now"] += later
        moving = np.flatnonzero(~self.still)
        for row in _TIMES:
            state.course[row, moving] += later
        state.core["finish"] = state.course[t.F_FIN, :flows].min(initial=np.inf)
        heap = int(state.core["heap"][0])
        state.heap[:heap] += int(later * t.TICKS) << (int(state.core["stream_bits"][0]) + t.KIND_BITS)
        state.l1[:] += later
        for f in ("low", "high", "free_at", "mark"):
            state.stream[f][on] += self.times * (self.b.stream[f] - self.a.stream[f])[on]
        state.stream["began"][on] += later
        state.place["at"] += self.times * self.steps
        state.place["it"] += self.times * self.iterations
        live = self.moved[self.here.of]
        of, column = (x[live] for x in in_flight(state))
        for f in ("low", "high"):
            state.flight[f][of, column] += self.times * (self.here.flights[f] - self.before.flights[f])[live]
        for f in ("ready", "land"):
            state.flight[f][of, column] += later
        for table, change in ((state.filled, self.filled), (state.reader, self.reader)):
            for i, f in enumerate(table.dtype.names or ()):
                table[f][:, self.here.rings] += self.times * change[..., i]
        self._add_statistics(state, later)

    def _add_statistics(self, state: t.State, later: float) -> None:
        rows, a, b = self.here.rows, self.a, self.b
        for f in _SUMS:
            state.stat[f][rows] += self.times * (b.stat[f] - a.stat[f])
        ended = rows[b.stat["end"] > a.stat["end"]]
        state.stat["end"][ended] += later
        state.stall[rows] += self.times * (b.stall - a.stall)


def _until(room: np.ndarray, move: np.ndarray, on: np.ndarray) -> int:
    """How often `room` can shrink by `move` and stay at 0 or more, where `on`, if it was so before the last time."""
    if ((room < 0) | (room + move < 0))[on].any():
        return 0
    shrinking = on & (move > 0)
    return int((room[shrinking] // move[shrinking]).min(initial=1 << 40))


__all__ = ["LoopShift"]
