"""Copies of a run's state at one time, for comparison with later ones (loop_shift.py).

Invariant: what is not copied is scratch, is derived from what is copied, or belongs to kernels and copies that no
stream is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import MARKS, FlatSegment

_FREE = ("low", "high", "oldest", "data", "next", "free_at", "mark", "began")
SAME_IN_STREAM = np.array([i for i, name in enumerate(rec.dtype_of(rec.Stream).names or ()) if name not in _FREE])
"""Numbers of the fields of Stream that are the same in equal states."""

_COPIED = ("core", "stream", "place", "coordinate", "counter", "waiting", "l1", "begun")
_INS = MARKS.index("ins")


def signature(state: t.State) -> bytes:
    """Equal in equal states: what each stream is about to do."""
    streams = state.stream
    number = streams["next"] - streams["oldest"]
    return bytes(ints(streams)[:, SAME_IN_STREAM].tobytes() + number.tobytes())


@dataclass(frozen=True, slots=True)
class Moment:
    """A copy of the part of a state that may change: of rings and statistics, those of `kernels`, which streams are in
    (`rings`, a range, and `rows`); `flights`, the instructions in flight, in the order of their streams `of`; sorted
    events."""

    now: float
    state: t.State
    kernels: tuple[int, int]
    rings: slice
    rows: np.ndarray
    of: np.ndarray
    flights: np.ndarray

    @staticmethod
    def at(flat: FlatSegment, state: t.State, kernel_of: np.ndarray, ring0: np.ndarray) -> Moment:
        """Of the current state. `kernel_of`: the kernel of each node; `ring0`: the first ring of each kernel, and the
        end."""
        of, column = in_flight(state)
        flights = state.flight[of, column]
        at, flying = kernel_of[state.stream["pc"][: 4 * flat.machine.units]], flat.code.ins["kernel"][flights["instr"]]
        first = int(min(at.min(), flying[flying >= 0].min(initial=at.max())))
        end = min(int(at.max()) + 1, len(ring0) - 1)
        marks = flat.marks[:, :, _INS]
        rows = np.concatenate([np.arange(marks[q, first], marks[q, end]) for q in range(4)])
        rings = slice(int(ring0[first]), int(ring0[end]))
        kept = {name: getattr(state, name).copy() for name in _COPIED}
        heap, flows = int(state.core["heap"][0]), int(state.core["flows"][0])
        kept |= {"heap": np.sort(state.heap[:heap]), "stat": state.stat[rows], "stall": state.stall[rows]}
        kept |= {"filled": state.filled[:, rings].copy(), "reader": state.reader[:, rings].copy()}
        kept |= {"flow": state.flow[:, :flows].copy(), "course": state.course[: t.F_KEPT, :flows].copy()}
        now = float(state.core["now"][0])
        return Moment(now, state._replace(**kept), (first, end), rings, rows, of, flights)


def in_flight(state: t.State) -> tuple[np.ndarray, np.ndarray]:
    """Stream and column in State.flight of each instruction in flight, by stream, the oldest first."""
    oldest = state.stream["oldest"]
    count = state.stream["next"] - oldest
    of = np.repeat(np.arange(len(count)), count)
    since = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    return of, (oldest[of] + since) % t.IN_FLIGHT


def ints(table: np.ndarray) -> np.ndarray:
    """A table of records as int64 [..., fields]; floats by their bits."""
    return table.view(np.int64).reshape(*table.shape, -1)


__all__ = ["SAME_IN_STREAM", "Moment", "in_flight", "ints", "signature"]
