"""Live ranges and first fit: the basis of every address search.

Invariant: ranges placed by one Assigner that overlap in time are disjoint in memory.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from ppuc.ir.types import TensorType

ALIGNMENT = 256
"""Bytes to which tensors in l2 and hbm are aligned: two l2 lines."""


def padded(type: TensorType) -> int:
    """Bytes that a tensor takes, rounded up to the alignment (at least one unit of it)."""
    return max(ALIGNMENT, -(-type.bytes // ALIGNMENT) * ALIGNMENT)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes needed from step `start` to step `end`, both included. Ranges of lower `rank` are placed first, so that
    frequently read tensors take precedence over merely large ones."""

    name: str
    bytes: int
    start: int
    end: int
    rank: int = 0


class Assigner:
    """First-fit addresses for ranges, in the order they are offered."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._starts: list[int] = []
        self._placed: list[tuple[int, int, int, int]] = []  # address, end address, first step, last step
        self.peak = 0

    def place(self, item: Range) -> int | None:
        """The lowest address at which `item` overlaps nothing alive with it; None when there is none."""
        at = 0
        for low, high, first, last in self._placed:
            if first > item.end or last < item.start:
                continue
            if low - at >= item.bytes:
                break
            at = max(at, high)
        if at + item.bytes > self.capacity:
            return None
        where = bisect.bisect(self._starts, at)
        self._starts.insert(where, at)
        self._placed.insert(where, (at, at + item.bytes, item.start, item.end))
        self.peak = max(self.peak, at + item.bytes)
        return at
