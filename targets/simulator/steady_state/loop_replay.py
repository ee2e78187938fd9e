"""Skips repeated iterations of loops: when the state of a run recurs, the repetitions are applied at once.

A product's inner loop soon settles: in every iteration, all units do the same as in the last one or a few iterations
before. The run stops at iterations of the loop of one unit, compares states (loop_shift.py), and skips the iterations
whose outcome is thus known.

Invariant: a run with skips is bit-identical to one without (see replay.py).
"""

from __future__ import annotations

import numpy as np

from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import MARKS, FlatSegment
from ppuc.targets.simulator.steady_state.loop_shift import LoopShift
from ppuc.targets.simulator.steady_state.moment import Moment, signature
from ppuc.targets.simulator.steady_state.once import once_a_segment

LEAST_ITERATIONS = 6000
"""Iterations of a loop that is worth watching, over all units of its kernel: a search takes about a millisecond, like
1,200 iterations, and never leaves out all of them."""

TRIES = 16
"""Stops in one run of a loop."""

LEAST_SKIPPED = 4
"""Iterations before the end of a loop where no search is worth its stops."""

MOST_PASSED = 64
"""Runs of loops that pass without a stop, at most, after others in vain."""

_NODE = MARKS.index("node")


class LoopReplay:
    """Watches one run of a segment. `loops`: by kernel, the number of the loop to watch (-1: none)."""

    def __init__(self, flat: FlatSegment, loops: np.ndarray) -> None:
        self._flat, self._loops = flat, loops
        kernels = len(flat.segment.kernels)
        self._kernel_of = np.full(len(flat.code.node), kernels, np.int64)
        for marks in flat.marks[:, :, _NODE]:
            self._kernel_of[marks[0] : marks[-1]] = np.repeat(np.arange(kernels), np.diff(marks))
        self._ring0 = np.searchsorted(flat.ring_kernel, np.arange(kernels + 1))
        self._kernel = 0
        self._stops: list[tuple[int, bytes, Moment | None]] = []
        self._first, self._pass, self._passed = 1, 0, 0

    @staticmethod
    def of(flat: FlatSegment, state: t.State) -> LoopReplay | None:
        """The replay of a starting run; None if no loop is long, or if every event is recorded (by a log or a cached
        l2)."""
        if state.core["logging"][0] or flat.machine.numbers["cached"][0] or (flat.code.kernel["around"] >= 0).any():
            return None
        loops = _long_loops(flat)
        if (loops < 0).all():
            return None
        replay = LoopReplay(flat, loops)
        replay._aim(state)
        return replay

    def stop(self, state: t.State) -> None:
        """Handle a stop, if it is at the loop to watch, and set the next one."""
        watch = state.watch[t.W_LOOPS]
        q = state.stream[watch["stream"]]
        if q["pc"] < watch["pc"] or q["next"] < watch["next"]:
            return
        loop = self._flat.code.loop[self._loops[self._kernel]]
        if not loop["body"] <= q["pc"] < loop["after"]:
            self._stops.clear()
            self._aim(state)
            return
        issues = int(loop["after"] - 1 - loop["body"])
        watch["next"] = q["next"] + issues * self._iterations(state, state.place[watch["stream"], loop["depth"]])

    def _iterations(self, state: t.State, place: np.void) -> int:
        """Handle a stop inside of a loop at `place`; returns the iterations until the next one."""
        at, rest = int(place["it"]), int(place["trips"] - place["it"])
        if self._passed < self._pass and not self._stops:
            self._passed += 1
            return rest + 1
        first = min(self._first, int(place["trips"]) // 2)
        if at < first and not self._stops:
            return first - at
        key = signature(state)
        earlier = [(begin, moment) for begin, other, moment in self._stops if other == key]
        here = None
        if earlier or (not self._stops and self._first > 1):
            here = Moment.at(self._flat, state, self._kernel_of, self._ring0)
            for begin, before in reversed(earlier):
                shift = None if before is None else LoopShift.between(self._flat, before, here)
                if shift is not None:
                    shift.apply(state)
                    self._search(max(1, begin - 1), 0)
                    return int(place["trips"] - place["it"]) + 1
        self._stops.append((at, key, here))
        if len(self._stops) < TRIES and rest > LEAST_SKIPPED:
            return 1
        self._search(at + 1 if rest > LEAST_SKIPPED else 1, min(2 * self._pass + 1, MOST_PASSED))
        return rest + 1

    def _search(self, first: int, passing: int) -> None:
        """Search the next run of a loop from iteration `first` on, after `passing` others."""
        self._stops.clear()
        self._first, self._pass, self._passed = first, passing, 0

    def _aim(self, state: t.State) -> None:
        """Set the next stop outside of the loop that is watched."""
        watch, ends = state.watch[t.W_LOOPS], self._flat.marks[0, 1:, _NODE]
        for kernel in range(self._kernel, len(self._loops)):
            s = 4 * int(self._flat.code.kernel["first"][kernel])
            q = state.stream[s]
            if self._loops[kernel] >= 0 and q["pc"] < ends[kernel]:
                body = self._flat.code.loop["body"][self._loops[kernel]]
                self._kernel = kernel
                watch["stream"], watch["pc"] = s, body
                watch["next"] = q["next"] + 1 if q["pc"] >= body else 0
                return
        watch["pc"] = len(self._flat.code.node)


@once_a_segment
def _long_loops(flat: FlatSegment) -> np.ndarray:
    """By kernel, the innermost loop of its load queue that takes the most iterations, if these are many; -1: none."""
    c, kernels = flat.code, len(flat.segment.kernels)
    found = np.full(kernels, -1, np.int64)
    if not len(c.loop):
        return found
    loop = c.loop
    instructions = np.concatenate([[0], np.cumsum(c.node["op"] == t.NODE_INSTR)])
    inner = instructions[loop["after"] - 1] - instructions[loop["body"]] == loop["after"] - 1 - loop["body"]
    radix = np.where(loop["axis"] >= 0, c.radix[loop["kernel"], np.maximum(loop["axis"], 0)], 1)
    trips = -((loop["start"] - loop["stop"]) // (loop["step"] * radix))
    loading = (loop["body"] < flat.marks[0, -1, _NODE]) & (loop["after"] - 1 > loop["body"])
    deepest = _deepest_bumps(flat)
    many = trips * c.kernel["units"][loop["kernel"]] >= LEAST_ITERATIONS
    for i in np.flatnonzero(inner & loading & many).tolist():
        k = loop["kernel"][i]
        if loop["depth"][i] < deepest[k]:
            continue
        if found[k] < 0 or trips[found[k]] < trips[i]:
            found[k] = i
    return found


def _deepest_bumps(flat: FlatSegment) -> np.ndarray:
    """By kernel, the most loops around an instruction that bumps the blocks it touches."""
    c, deepest = flat.code, np.zeros(len(flat.segment.kernels), np.int64)
    bumps = np.concatenate([[0], np.cumsum(c.sync["touched"])])
    bumping = (bumps[c.ins["bump_hi"]] > bumps[c.ins["bump_lo"]]) & (c.ins["kernel"] >= 0)
    np.maximum.at(deepest, c.ins["kernel"][bumping], c.ins["depth"][bumping])
    return deepest


__all__ = ["LoopReplay"]
