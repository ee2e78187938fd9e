"""Live ranges and first fit: the basis of every address search.

Invariant: ranges placed by one Assigner that overlap in time are disjoint in memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
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
    """First-fit addresses for ranges between steps `first` and `last`, in the order they are offered.

    A segment tree over the steps: each node keeps the bytes that ranges across all its steps take, and those that any
    range within them takes. Placing a range takes time proportional to the logarithm of the steps, as long as free
    bytes are not in many small pieces."""

    def __init__(self, capacity: int, first: int, last: int) -> None:
        self.capacity = capacity
        self._first = first
        self._leaves = 1 << max(last - first, 0).bit_length()
        self._across: dict[int, _Taken] = {}
        self._within: dict[int, _Taken] = {}

    @classmethod
    def of(cls, ranges: Sequence[Range], capacity: int) -> Assigner:
        """An assigner for these ranges."""
        return cls(capacity, min((r.start for r in ranges), default=0), max((r.end for r in ranges), default=0))

    def place(self, item: Range) -> int | None:
        """The lowest address at which `item` overlaps nothing alive with it; None when there is none."""
        nodes, above = self._nodes(item)
        taken = [self._within[n] for n in nodes if n in self._within]
        taken += [self._across[n] for n in above if n in self._across]
        at, before = 0, -1
        while at != before:
            before = at
            for bytes in taken:
                at = bytes.free_from(at, item.bytes)
        if at + item.bytes > self.capacity:
            return None
        for n in nodes:
            self._across.setdefault(n, _Taken()).add(at, at + item.bytes)
            while n and self._within.setdefault(n, _Taken()).add(at, at + item.bytes):
                n >>= 1  # a node that had the bytes has told those above it
        return at

    def _nodes(self, item: Range) -> tuple[list[int], set[int]]:
        """The fewest nodes whose spans are the steps of `item`, and the nodes above them."""
        nodes: list[int] = []
        low, high = item.start - self._first + self._leaves, item.end - self._first + self._leaves + 1
        while low < high:
            if low & 1:
                nodes.append(low)
            if high & 1:
                nodes.append(high - 1)
            low, high = (low + 1) >> 1, high >> 1
        above: set[int] = set()
        for n in nodes:
            while (n := n >> 1) and n not in above:
                above.add(n)
        return nodes, above


class _Taken:
    """Bytes that are taken, as disjoint intervals in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> bool:
        """Take the bytes from `start` to `end`; returns whether some were free."""
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)  # those it touches
        if low < high:
            if self._starts[low] <= start and end <= self._ends[low]:
                return False
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        return True

    def free_from(self, at: int, size: int) -> int:
        """The lowest address from `at` where `size` bytes are free."""
        for k in range(bisect_right(self._ends, at), len(self._ends)):
            if self._starts[k] - at >= size:
                break
            at = self._ends[k]
        return at
