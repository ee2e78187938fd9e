"""Simulate a program: time, values and hazards of every segment, one after another.

The event loop (event_loop.py) logs starts and completions for values, hazards and trace. The log is drained whenever it
is full, so memory does not grow with trip counts; without readers, nothing is logged.

Invariant: outputs do not depend on the target's timing numbers, nor on the size of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ppuc.ir.errors import InternalError
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target
from ppuc.targets.simulator import event_loop
from ppuc.targets.simulator.deadlock import describe_deadlock
from ppuc.targets.simulator.decode import FlatSegment
from ppuc.targets.simulator.hazards import HazardChecker
from ppuc.targets.simulator.launch import launch_clk
from ppuc.targets.simulator.memory import ChipMemory
from ppuc.targets.simulator.prepare import prepare
from ppuc.targets.simulator.result import Hazard, Profile
from ppuc.targets.simulator.stats import Totals
from ppuc.targets.simulator.steady_state.loop_replay import LoopReplay
from ppuc.targets.simulator.steady_state.replay import Replay
from ppuc.targets.simulator.tables import State, new_state
from ppuc.targets.simulator.trace import Details, EventTable
from ppuc.targets.simulator.values import SegmentValues

LOG_ROWS = 1 << 15
Progress = Callable[[str, float], None]
"""Called with a segment's name and the cycles simulated so far."""
Before = Callable[[int, ChipMemory], None]
"""Called before a segment's launch with its number and the memory, to write inputs that are unknown at the start."""


@dataclass(frozen=True, slots=True)
class RawResult:
    """`outputs` by tensor name, flat (empty for timing only). `events` has a row per instruction instance
    (`trace.EVENT`), `event_names` are the texts for its `instr` column, `details` holds the flows between events."""

    outputs: Mapping[str, np.ndarray]
    profile: Profile
    events: np.ndarray | None = None
    event_names: tuple[str, ...] = ()
    details: Details | None = None


def simulate(
    program: Program,
    vectors: tuple[VectorProgram, ...],
    target: Target,
    constants: Mapping[str, Resource],
    inputs: Mapping[str, np.ndarray] | None,
    *,
    check_hazards: bool = True,
    trace: bool = False,
    progress: Progress | None = None,
    before: Before | None = None,
    log_rows: int = LOG_ROWS,
    replay: bool = True,
) -> RawResult:
    """Run `program` on `target`.

    `inputs` are arrays by tensor name (None: timing only, which needs no constants either); `constants` are resources
    by tensor name. Hazards are checked when values are computed, or with `trace`; they are reported in the profile, not
    raised. With `replay`, exactly repeated layers are skipped (steady_state/replay.py). Raises CapacityError for a
    program that exceeds a limit of `target`, InputError for invalid inputs and InternalError if the program
    deadlocks."""
    launched = prepare(program, vectors, target)
    chip = None if inputs is None else ChipMemory(program, constants, inputs, late=before is not None)
    by_name = {v.name: v for v in vectors}
    totals, hazards, events = Totals(), list[Hazard](), EventTable(target) if trace else None
    with threadpool_limits(1, user_api="blas"):
        for launch in launched:
            flat = launch.flat
            if launch.first and before is not None and chip is not None:
                before(launch.segment, chip)
            begin = totals.cycles + launch_clk(target, launch.first)
            totals.launch += begin - totals.cycles
            values = None if chip is None else SegmentValues(flat, by_name, chip, target)
            checker = HazardChecker(program, flat) if check_hazards and chip is not None else None
            state = _run(flat, values, checker, events, begin, log_rows, progress, replay)
            if events is not None:
                events.close(flat, state, begin)
            totals.add(flat, state, begin, target)
            totals.cycles = begin + float(state.core["now"][0])
            hazards += checker.hazards() if checker else ()
    outputs = {} if chip is None else {name: chip.values_of(name) for _, name in program.outputs}
    profile = totals.profile(target, tuple(hazards), chip is not None)
    if events is None:
        return RawResult(outputs, profile)
    return RawResult(outputs, profile, events.table(), tuple(events.names), events.details())


def run_flat(flat: FlatSegment) -> State:
    """Run one launch for timing only; returns its final state."""
    return _run(flat, None, None, None, 0.0, 0, None, True)


def _run(
    flat: FlatSegment,
    values: SegmentValues | None,
    checker: HazardChecker | None,
    events: EventTable | None,
    begin: float,
    log_rows: int,
    progress: Progress | None,
    replay: bool,
) -> State:
    readers = [reader for reader in (values, checker) if reader is not None]
    rows = max(log_rows, 2 * len(flat.code.stream_pc) + 16) if readers or events is not None else 0
    state = new_state(flat.code, flat.machine, rows)
    skipping = [x for x in (Replay.of(flat, state), LoopReplay.of(flat, state)) if x is not None] if replay else []
    while True:
        status = event_loop.run(flat.code, flat.machine, state)
        if status == event_loop.PAUSED:
            for replayed in skipping:
                replayed.stop(state)
            continue
        used = int(state.core["log"][0])
        for reader in readers:
            reader.consume(state.log_i[:used])
        if events is not None:
            events.consume(state.log_t[:used], state.log_i[:used])
        state.core["log"] = 0
        if progress is not None:
            progress(flat.segment.name, begin + float(state.core["now"][0]))
        if status == event_loop.DONE:
            return state
        if status == event_loop.DEADLOCK:
            raise InternalError(describe_deadlock(flat, state))


__all__ = ["Progress", "RawResult", "run_flat", "simulate"]
