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
    """The candidates to keep: while some step exceeds the capacity, evict the candidate that is cheapest to give up at
    the fullest step; then take back evicted ones, by saving per byte, where later evictions left room.

    Evicting a tensor larger than the excess costs its whole saving; a smaller one costs its saving per byte times the
    excess.
    """
    left = {c.name: c for c in candidates if c.bytes <= capacity}
    evicted: list[Candidate] = []
    taken = occupied(left.values(), steps)
    while left and (excess := int(taken.max()) - capacity) > 0:
        worst = int(taken.argmax())
        here = (c for c in left.values() if c.start <= worst <= c.end)
        lost = min(here, key=lambda c: (c.saved / c.bytes * max(excess, c.bytes), c.name))
        taken[lost.start : lost.end + 1] -= lost.bytes
        evicted.append(left.pop(lost.name))
    for c in sorted(evicted, key=lambda c: (-c.saved / c.bytes, c.name)):
        if int(taken[c.start : c.end + 1].max()) + c.bytes <= capacity:
            taken[c.start : c.end + 1] += c.bytes
            left[c.name] = c
    return list(left.values())


def advanced(staged: Sequence[Candidate], others: Iterable[Candidate], steps: int, capacity: int) -> dict[str, int]:
    """The earliest step from which each of `staged` has room, in order of first use: early copies overlap with earlier
    kernels."""
    free = capacity - occupied([*staged, *others], steps)
    found: dict[str, int] = {}
    for c in sorted(staged, key=lambda c: (c.start, c.name)):
        at = c.start
        while at > 0 and free[at - 1] >= c.bytes:
            at -= 1
        free[at : c.start] -= c.bytes
        found[c.name] = at
    return found
