"""Assigns addresses to ranges within a capacity: greedy orders first, then exact search.

Invariant: placed ranges are aligned, within the capacity, and disjoint while live. Plans are deterministic: limits
count placements, not seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppuc.compiler.passes.memory.ranges import Assigner, Range

if TYPE_CHECKING:
    from ppuc.compiler.passes.memory.placement_search import Problem, Work

Order = Callable[[Range], tuple[int, ...]]

GREEDY: dict[str, Order] = {
    "size": lambda r: (-r.bytes, r.start),
    "area": lambda r: (-r.bytes * (r.end - r.start + 1), -r.bytes),
    "lifetime": lambda r: (r.start - r.end, -r.bytes),
    "start": lambda r: (r.start, r.start - r.end, -r.bytes),
}
"""Orders in which first fit places ranges, by the name that a plan reports."""

PLACEMENTS = 40_000_000
"""Default limit of the exact search: about 40 seconds."""

_ARENA_ROWS = 1 << 24
_REMEMBERED = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """`offsets` by name. `peak` is the highest end address, `bound` the most bytes live at any step (a lower bound on
    every plan), `method` the greedy order that fitted or "search", `placements` the number that the search tried."""

    offsets: dict[str, int]
    peak: int
    bound: int
    method: str
    placements: int = 0


@dataclass(frozen=True, slots=True)
class NoPlan:
    """No plan was found. `proved` is whether none exists; otherwise the search stopped after `placements`."""

    bound: int
    proved: bool
    placements: int = 0


def max_live(ranges: Sequence[Range], alignment: int = 1) -> int:
    """The most bytes (rounded up to the alignment) live at any step."""
    changes = [(r.start, _units(r, alignment)) for r in ranges] + [(r.end + 1, -_units(r, alignment)) for r in ranges]
    alive = fullest = 0
    for _, units in sorted(changes):  # at one step, ends come before starts
        alive += units
        fullest = max(fullest, alive)
    return fullest * alignment


def plan(ranges: Sequence[Range], capacity: int, alignment: int = 1, placements: int = PLACEMENTS) -> Plan | NoPlan:
    """Offsets in `capacity` bytes, multiples of `alignment`, for all `ranges` (with distinct names). The search tries
    at most `placements` placements; 0 tries greedy orders only."""
    bound = max_live(ranges, alignment)
    if bound > capacity // alignment * alignment:
        return NoPlan(bound, proved=True)
    for name, order in GREEDY.items():
        offsets = first_fit(sorted(ranges, key=lambda r, o=order: (*o(r), r.name)), capacity, alignment)  # type: ignore[misc]
        if len(offsets) == len(ranges):
            return Plan(offsets, _peak(ranges, offsets), bound, name)
    return _searched(ranges, capacity, alignment, placements, bound)


def first_fit(ranges: Sequence[Range], capacity: int, alignment: int = 1) -> dict[str, int]:
    """The lowest free offset for one range after another; ranges that do not fit are left out."""
    assigner = Assigner.of(ranges, capacity // alignment)
    places = ((r.name, assigner.place(Range(r.name, _units(r, alignment), r.start, r.end))) for r in ranges)
    return {name: at * alignment for name, at in places if at is not None}


def _units(item: Range, alignment: int) -> int:
    return -(-item.bytes // alignment)


def _peak(ranges: Sequence[Range], offsets: dict[str, int]) -> int:
    return max((offsets[r.name] + r.bytes for r in ranges), default=0)


def _searched(ranges: Sequence[Range], capacity: int, alignment: int, placements: int, bound: int) -> Plan | NoPlan:
    """Rotate through the orders with doubling limits: hard problems are fast in some order, but no order is always
    fast."""
    if placements <= 0:
        return NoPlan(bound, proved=False)
    from ppuc.compiler.passes.memory import placement_search as engine

    ranges = sorted(ranges, key=lambda r: (r.start, r.end, r.bytes, r.name))
    problem, sections = _problem(ranges, capacity // alignment, alignment)
    work = _work(problem, sections)
    limit, spent = len(ranges), 0
    while spent < placements:
        limit *= 2
        for order in range(engine.ORDERS):
            outcome, nodes = engine.search(problem, work, order, min(limit, placements - spent))
            spent += nodes
            if outcome == engine.SOLVED:
                offsets = {r.name: int(at) * alignment for r, at in zip(ranges, work.offset, strict=True)}
                return Plan(offsets, _peak(ranges, offsets), bound, "search", spent)
            if outcome == engine.INFEASIBLE:
                return NoPlan(bound, proved=True, placements=spent)
            if outcome == engine.TOO_LARGE or spent >= placements:
                return NoPlan(bound, proved=False, placements=spent)
    return NoPlan(bound, proved=False, placements=spent)


def _problem(ranges: Sequence[Range], capacity: int, alignment: int) -> tuple[Problem, int]:
    """The problem over sections: a section begins at the first start after an end."""
    from ppuc.compiler.passes.memory.placement_search import Problem

    early, late = np.zeros((2, len(ranges)), np.int64)
    section, ended = 0, False
    events = [(r.start, 1, i) for i, r in enumerate(ranges)] + [(r.end + 1, 0, i) for i, r in enumerate(ranges)]
    for _, starts, i in sorted(events):
        if starts:
            section += int(ended)
            early[i] = section
        else:
            late[i] = section + 1
        ended = not starts
    together = (early[:, None] < late) & (early < late[:, None])
    np.fill_diagonal(together, False)
    size = np.array([_units(r, alignment) for r in ranges], np.int64)
    lifetime = np.array([r.end - r.start + 1 for r in ranges], np.int64)
    ptr = np.concatenate([[0], np.cumsum(together.sum(1))]).astype(np.int64)
    overlap = np.nonzero(together)[1].astype(np.int32)
    return Problem(size, lifetime, early, late, ptr, overlap, capacity), section + 1


def _work(problem: Problem, sections: int) -> Work:
    from ppuc.compiler.passes.memory import placement_search as engine

    n = len(problem.size)
    arena = min(n * n + 4 * n, _ARENA_ROWS)

    def numbers(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    return engine.Work(
        offset=numbers(n),
        resting=numbers(n),
        fullest=numbers(n),
        buffer=np.zeros(arena, np.int32),
        rank=np.zeros(arena, np.int32),
        frames=numbers(n + 2, engine.FIELDS),
        hashes=np.zeros((n + 2, 2), np.uint64),
        children=numbers(2 * n + 4, engine.C_FIELDS),
        trail=numbers(len(problem.overlap) + 2 * n, 2),
        total=numbers(sections),
        lowest=numbers(sections),
        bridges=numbers(sections),
        component=numbers(sections),
        slot=numbers(sections),
        failed=np.zeros(_REMEMBERED, np.uint64),
    )
