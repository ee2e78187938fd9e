"""Counters of the machine for counter groups.

A group needs its counters from the first step that bumps it to the last one (its live range; waits may come later: a
counter is never reset, so what was reached stays reached). After that, a later group of the same size may take them
over. Everything that bumps the later group first waits until the earlier one is complete, so that bumps of the two are
never confused. Such a wait costs time only if the earlier group was still live a short while ago: counters are taken
over in the order in which they become free, and stay free for `distance` steps if the machine has enough.

Sizes do not mix, so that repeated layers take over counters in the same way: each group from the one that has the same
place a fixed number of layers before. The instructions of repeated layers stay alike, and the simulator can skip them.

Invariant: a group takes over counters only of a group whose live range ends before its own begins, so waits for it
never wait for a later step.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DISTANCE = 128
"""Steps (kernels and staged tensors) for which a counter stays free if possible: copies may run that far ahead."""


@dataclass(frozen=True, slots=True)
class LiveGroup:
    """A group of `size` counters; steps `first` to `last` bump it."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """First counter of each group, in the order in which groups use counters; the group whose counters a group takes
    over; and the number of counters used."""

    first: Mapping[str, int]
    before: Mapping[str, str]
    used: int


def separate(groups: Sequence[LiveGroup]) -> Allocation:
    """Counters of its own for each group, in the order of `groups`."""
    first, used = {}, 0
    for group in groups:
        first[group.name] = used
        used += group.size
    return Allocation(first, {}, used)


def shared(groups: Sequence[LiveGroup], distance: int) -> Allocation:
    """As few counters as the live ranges allow, if each stays free for `distance` steps (at least 1)."""
    pools: dict[int, _Pool] = {}
    for group in sorted(groups, key=lambda g: g.first):
        pools.setdefault(group.size, _Pool()).add(group, distance)
    starts, used = {}, 0
    for size in sorted(pools):
        starts[size] = used
        used += size * pools[size].ranges
    first, before = {}, {}
    for group in sorted(groups, key=lambda g: g.first):
        place, earlier = pools[group.size].places[group.name]
        first[group.name] = starts[group.size] + group.size * place
        if earlier is not None:
            before[group.name] = earlier
    return Allocation(first, before, used)


class _Pool:
    """Ranges of counters for groups of one size. `places` maps a group to its range and the earlier group there."""

    def __init__(self) -> None:
        self.ranges = 0
        self.places: dict[str, tuple[int, str | None]] = {}
        self._ends: list[
            tuple[int, int, int, str]
        ] = []  # last step, number, range, name of the latest group of a range

    def add(self, group: LiveGroup, distance: int) -> None:
        """Place a group that begins no earlier than those before it."""
        place, earlier = self.ranges, None
        if self._ends and self._ends[0][0] + distance <= group.first:
            _, _, place, earlier = heapq.heappop(self._ends)
        else:
            self.ranges += 1
        heapq.heappush(self._ends, (group.last, len(self.places), place, group.name))
        self.places[group.name] = place, earlier


__all__ = ["DISTANCE", "Allocation", "LiveGroup", "separate", "shared"]
