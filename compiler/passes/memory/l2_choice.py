"""What lives in l2, by the traffic of device memory that each tensor saves there.

Over time, l2 is a knapsack at every step. Invariant: the tensors kept at any step fit the capacity together; what is
given up first is what saves least for the room it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that could live in l2 from step `start` to step `end`, both included, and how many bytes of device
    memory are not moved if it does."""

    name: str
    bytes: int
    start: int
    end: int
    saved: float


def occupied(candidates: Iterable[Candidate], steps: int) -> np.ndarray:
    """Bytes taken at each step, int64[steps]."""
    change = np.zeros(steps + 1, np.int64)
    for c in candidates:
        change[c.start] += c.bytes
        change[c.end + 1] -= c.bytes
    return np.cumsum(change)[:-1]


def kept(candidates: Sequence[Candidate], steps: int, capacity: int) -> list[Candidate]:
    """The candidates that stay: while some step holds too much, the cheapest way to relieve the fullest one is taken.

    Giving up a tensor larger than the excess costs all that it saves; giving up a smaller one, its share of the excess.
    """
    left = {c.name: c for c in candidates}
    taken = occupied(candidates, steps)
    while left and (excess := int(taken.max()) - capacity) > 0:
        worst = int(taken.argmax())
        here = (c for c in left.values() if c.start <= worst <= c.end)
        lost = min(here, key=lambda c: (c.saved / c.bytes * max(excess, c.bytes), c.name))
        taken[lost.start : lost.end + 1] -= lost.bytes
        del left[lost.name]
    return list(left.values())


def advanced(staged: Sequence[Candidate], others: Iterable[Candidate], steps: int, capacity: int) -> dict[str, int]:
    """The earliest step from which each of `staged` finds room, in the order in which they are needed: copies that
    start early hide behind the kernels before."""
    free = capacity - occupied([*staged, *others], steps)
    found: dict[str, int] = {}
    for c in sorted(staged, key=lambda c: (c.start, c.name)):
        at = c.start
        while at > 0 and free[at - 1] >= c.bytes:
            at -= 1
        free[at : c.start] -= c.bytes
        found[c.name] = at
    return found
