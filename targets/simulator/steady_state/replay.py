"""Skips repeated layers: when the state of a run recurs, the repetitions are applied at once.

The run stops whenever unit 0 begins to load the first kernel of a further period (repeats.py). Its state is compared
with those at earlier stops, relative to the period: nodes, instructions, rings, kernels and counter groups less the
shift of the text, times less the current time. If one is equal, the interval between the two stops repeats, later and
further down, as long as the text repeats; so the state after all remaining repetitions is computed at once.

Invariant: a run with skips is bit-identical to one without. Equal states have equal futures because the event loop is a
function of the compared state, and times are whole ticks, whose sums are exact.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from ppuc.targets.simulator import tables as t
from ppuc.targets.simulator.decode import MARKS, FlatSegment
from ppuc.targets.simulator.steady_state.repeats import Repeats, find_repeats
from ppuc.targets.simulator.steady_state.shift import Shift, Stop

PERIODS_BACK = 8
"""Number of earlier stops to compare with: copies are distributed over queues, so a state may recur only every few
layers."""

_NODE = MARKS.index("node")


class Replay:
    """Watches one run of a segment."""

    def __init__(self, flat: FlatSegment, repeats: Repeats) -> None:
        self._flat, self._repeats = flat, repeats
        self._next = repeats.first
        self._stops: deque[Stop] = deque(maxlen=PERIODS_BACK)

    @staticmethod
    def of(flat: FlatSegment, state: t.State) -> Replay | None:
        """The replay of a starting run; None if nothing repeats, or if every event is recorded (by a log or a cached
        l2)."""
        if state.core["logging"][0] or flat.machine.numbers["cached"][0] or (flat.code.kernel["around"] >= 0).any():
            return None
        repeats = find_repeats(flat)
        if repeats is None:
            return None
        replay = Replay(flat, repeats)
        replay._set_stop(state)
        return replay

    def stop(self, state: t.State) -> None:
        """Handle a stop, if it is at the next layer: skip repetitions and set the next stop."""
        if state.stream["pc"][0] < state.watch["pc"][t.W_LAYERS]:
            return
        here = self._record(state)
        for back, before in enumerate(reversed(self._stops), 1):
            shift = Shift.between(self._flat, self._repeats, before, here, back)
            if shift is not None and shift.same():
                shift.apply(state)
                self._next = self._repeats.last
                break
        else:
            self._stops.append(here)
            self._next += self._repeats.period
        self._set_stop(state)

    def _set_stop(self, state: t.State) -> None:
        marks = self._flat.marks[0, :, _NODE]
        inside = self._next < self._repeats.last
        state.watch["pc"][t.W_LAYERS] = marks[self._next] if inside else len(self._flat.code.node)

    def _record(self, state: t.State) -> Stop:
        """The unfinished part of the state."""
        flat, c, units = self._flat, self._flat.code, 4 * self._flat.machine.units
        streams, queue = state.stream, np.arange(units) % 4
        at = np.zeros(units, np.int64)
        for q in range(4):
            mine = queue == q
            at[mine] = np.searchsorted(flat.marks[q, :, _NODE], streams["pc"][:units][mine], side="right") - 1
        busy = streams["next"] > streams["oldest"]
        oldest = state.flight["instr"][np.arange(len(streams)), streams["oldest"] % t.IN_FLIGHT]
        first = min(
            int(at.min()), int(c.ins["kernel"][oldest[:units][busy[:units]]].min(initial=len(flat.segment.kernels)))
        )
        copies = np.zeros((len(streams) - units, 2), np.int64)
        for s in range(units, len(streams)):
            node = c.node[streams["pc"][s]]
            end = int(node["arg"]) + 1 if node["op"] == t.NODE_INSTR else self._end_of_copies(s)
            copies[s - units] = oldest[s] if busy[s] else end - (node["op"] == t.NODE_INSTR), end
        return Stop(_copied(state), float(state.core["now"][0]), first, int(at.max()) + 1, copies)

    def _end_of_copies(self, s: int) -> int:
        """The instruction number after the last copy of a stage stream."""
        nodes, begin = self._flat.code.node, int(self._flat.code.stream_pc[s])
        last = begin + int(np.argmax(nodes["op"][begin:] == t.NODE_STOP)) - 1
        return int(nodes["arg"][last]) + 1


def _copied(state: t.State) -> t.State:
    """A copy of `state`, except logs and scratch."""
    kept = {"log_t", "log_i", "valid", "order", "resource", "open", "demand", "changed", "cache"}
    return state._replace(**{name: getattr(state, name).copy() for name in state._fields if name not in kept})
