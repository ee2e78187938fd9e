"""The event loop: determines when every instruction of a segment starts and ends.

A stream (an instruction queue of a unit, or a stage queue) tries to issue its head, which blocks until its rings have
room or data, its counters are complete and its queue has room (issue.py). Compute queues decode one instruction ahead:
issue overlaps with execution of the previous instruction (engines.py). Transfers are in transfers.py, the bandwidth
they share in bandwidth.py. Ring and counter operations take effect on completion.

Simultaneous events are handled together: completions, then starts, then heads that may proceed; then bandwidth is
redistributed. Their order is by event kind and stream number, so a run is deterministic.

Invariant: every wake-up comes from the push, pop, bump or retirement that can satisfy the blocked head; `run` may
return with FULL or PAUSED after any event and be called again.
"""

from __future__ import annotations

from ppuc.ir.jit.decorators import entry, helper
from ppuc.targets.simulator.bandwidth import refill
from ppuc.targets.simulator.engines import complete, start_compute
from ppuc.targets.simulator.events import (
    E_COMPLETE,
    E_LAND,
    E_READY,
    E_START,
    next_event,
    next_time,
    put_back,
    wake_all,
)
from ppuc.targets.simulator.issue import try_head
from ppuc.targets.simulator.records import Core, Stream, Watch
from ppuc.targets.simulator.tables import Code, Machine, State
from ppuc.targets.simulator.transfers import end_flows, land, start_flow

DONE, FULL, DEADLOCK, PAUSED = range(4)
"""Return values of `run`."""

_INFINITE = float("inf")


@helper
def _handle(c: Code, m: Machine, st: State) -> None:
    kind, s = next_event(st)
    if kind == E_COMPLETE:
        complete(c, st, s)
    elif kind == E_LAND:
        land(c, st, s)
    elif kind == E_READY:
        start_flow(c, m, st, s)
    elif kind == E_START:
        start_compute(c, m, st, s)
    else:
        q: Stream = st.stream[s]
        q.pc += 1
        q.head = -1
        put_back(st, s)


@helper
def _paused(st: State) -> bool:
    """Whether the run is to pause before time advances."""
    for j in range(len(st.watch)):
        watch: Watch = st.watch[j]
        q: Stream = st.stream[watch.stream]
        if q.pc >= watch.pc and q.next >= watch.next:
            return True
    return False


@entry
def run(c: Code, m: Machine, st: State) -> int:
    """Run until everything is done, the log is full (empty it and call again), a watched stream is where
    to pause, or all streams are blocked (deadlock)."""
    rows = len(st.log_t) - len(st.stream) - 8
    k: Core = st.core[0]
    while True:
        if k.logging and k.log > rows:
            return FULL
        if next_time(st) <= k.now:
            _handle(c, m, st)
        elif k.finish <= k.now:
            end_flows(c, m, st)
        elif k.wakes > 0:
            wake_all(c, st)
        elif k.stack > 0:
            k.stack -= 1
            try_head(c, m, st, st.listed[k.stack].stack)
        elif k.stale:
            refill(m, st)
        else:
            time = min(k.finish, next_time(st))
            if time == _INFINITE:
                return DONE if k.done == len(st.stream) else DEADLOCK
            if _paused(st):
                return PAUSED
            k.now = time


__all__ = ["DEADLOCK", "DONE", "FULL", "PAUSED", "run"]
