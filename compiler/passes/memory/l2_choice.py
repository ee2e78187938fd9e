"""Chooses the tensors that live in l2 by the device-memory traffic they save.

Each step is a knapsack problem. Invariant: the tensors kept at any step fit the capacity; those that save least per
byte are evicted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate for l2 from step `start` to step `end`, both included, and the bytes of device-memory traffic it
    saves."""

    name: str
    bytes: int
    start: int
    end: int
    saved: float


def occupied(candidates: Iterable[Candidate], steps: int) -> np.ndarray:
    """Occupied bytes at each step, int64[steps]."""
    change = np.zeros(steps + 1, np.int64)
    for c in candidates:
        change[c.start] += c.bytes
        change[c.end + 1] -= c.bytes
    return np.cumsum(change)[:-1]


def kept(candidates: Sequence[Candidate], steps: int, capacity: int) -> list[Candidate]:
    """The candidates to keep: the better of two choices, in the order of `candidates`. One relieves the fullest step
    (`_relieved`), which suits tensors of similar live ranges; the other takes candidates by saving per byte and step
    for which they take room, which keeps one long-lived tensor from displacing many short-lived ones in turn."""
    fitting = [c for c in candidates if c.bytes <= capacity]
    by_density = sorted(fitting, key=lambda c: (-c.saved / (c.bytes * (c.end - c.start + 1)), c.name))
    dense = _filled([], by_density, np.zeros(steps, np.int64), capacity)
    best = max(_relieved(fitting, steps, capacity), dense, key=lambda chosen: sum(c.saved for c in chosen))
    names = {c.name for c in best}
    return [c for c in fitting if c.name in names]


def _relieved(candidates: Sequence[Candidate], steps: int, capacity: int) -> list[Candidate]:
    """While some step exceeds the capacity, evict the candidate that is cheapest to give up at the fullest step; then
    take back evicted ones, by saving per byte, where later evictions left room.

    Evicting a tensor larger than the excess costs its whole saving; a smaller one costs its saving per byte times the
    excess.
    """
    taken = occupied(candidates, steps)
    start, end = (np.array([getattr(c, side) for c in candidates], np.int64) for side in ("start", "end"))
    stays = np.ones(len(candidates), bool)
    evicted: list[Candidate] = []
    while (excess := int(taken.max(initial=0)) - capacity) > 0:
        worst = int(taken.argmax())
        here = np.flatnonzero(stays & (start <= worst) & (worst <= end)).tolist()
        place = min(here, key=lambda i: _loss(candidates[i], excess))
        lost, stays[place] = candidates[place], False
        taken[lost.start : lost.end + 1] -= lost.bytes
        evicted.append(lost)
    evicted.sort(key=lambda c: (-c.saved / c.bytes, c.name))
    return _filled([c for c, left in zip(candidates, stays, strict=True) if left], evicted, taken, capacity)


def _loss(c: Candidate, excess: int) -> tuple[float, str]:
    """What evicting a candidate costs where there are `excess` bytes too many; then its name."""
    return c.saved / c.bytes * max(excess, c.bytes), c.name


def _filled(chosen: list[Candidate], others: Iterable[Candidate], taken: np.ndarray, capacity: int) -> list[Candidate]:
    """`chosen`, which occupy `taken` bytes at each step, and those of `others` that still fit, in their order."""
    for c in others:
        if int(taken[c.start : c.end + 1].max()) + c.bytes <= capacity:
            taken[c.start : c.end + 1] += c.bytes
            chosen.append(c)
    return chosen


def advanced(staged: Sequence[Candidate], others: Iterable[Candidate], steps: int, capacity: int) -> dict[str, int]:
    """The earliest step from which each of `staged` has room, in order of first use: early copies overlap with earlier
    kernels."""
    free = capacity - occupied([*staged, *others], steps)
    found: dict[str, int] = {}
    for c in sorted(staged, key=lambda c: (c.start, c.name)):
        at = _room_from(free, c.start, c.bytes)
        free[at : c.start] -= c.bytes
        found[c.name] = at
    return found


_WINDOW = 64
"""Steps that are looked at together for room; twice as many each time."""


def _room_from(free: np.ndarray, end: int, size: int) -> int:
    """The earliest step from which `size` bytes are free at every step before `end`."""
    width = _WINDOW
    while end > 0:
        low = max(0, end - width)
        full = np.flatnonzero(free[low:end] < size)
        if full.size:
            return low + int(full[-1]) + 1
        end, width = low, 2 * width
    return 0
