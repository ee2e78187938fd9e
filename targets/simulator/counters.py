"""The counters of a segment as arrays.

A group's blocks are numbered through all groups of the segment: block numbers. Each has a counter of the machine, which
later groups may take over. A counter is never reset: the bumps of earlier groups are the base that later ones count
from.

Invariant: as long as no group is bumped before the groups whose counters it takes over are complete (P12 of
ppuc.ir.verify, checked by hazard_check.py), a counter's value is the sum of the bumps of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.ir.program import CounterGroup
from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator import tables as t


def counter_arrays(groups: Sequence[CounterGroup]) -> dict[str, np.ndarray]:
    """The arrays of tables.Code about counter groups, which use counters in the order of `groups`."""
    sizes = [len(group.expect) for group in groups]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    expect = np.array([n for group in groups for n in group.expect], np.int64)
    base, before, place = np.zeros_like(expect), np.full_like(expect, -1), np.zeros_like(expect)
    used = max((group.first + n for group, n in zip(groups, sizes, strict=True)), default=0)
    value, owner = np.zeros(used, np.int64), np.full(used, -1, np.int64)
    for group, at, n in zip(groups, starts, sizes, strict=False):
        mine, blocks = slice(group.first, group.first + n), slice(at, at + n)
        base[blocks], before[blocks], place[blocks] = value[mine], owner[mine], np.arange(mine.start, mine.stop)
        value[mine] += expect[blocks]
        owner[mine] = np.where(expect[blocks] > 0, np.arange(at, at + n), owner[mine])
    rows: list[tuple[float, ...]] = [
        (g.first, max(g.block, 1), n, int(at)) for g, n, at in zip(groups, sizes, starts, strict=False)
    ]
    return {"group": rec.table(rec.Group, rows), "expect": expect, "base": base, "before": before, "place": place}


def counts_of(code: t.Code, state: t.State) -> np.ndarray:
    """Bumps of every block so far, by block number."""
    counts: np.ndarray = np.clip(state.counter[code.place] - code.base, 0, code.expect)
    return counts


def set_counts(code: t.Code, state: t.State, counts: np.ndarray) -> None:
    """Set the counters such that each block has been bumped `counts` times, by block number."""
    state.counter[:] = 0
    np.add.at(state.counter, code.place, counts)


def blocks_of(code: t.Code, groups: np.ndarray) -> np.ndarray:
    """The block numbers of some groups, one group after another."""
    at, count = code.group["at"][groups], code.group["count"][groups]
    return np.repeat(at - np.cumsum(count) + count, count) + np.arange(count.sum())


__all__ = ["blocks_of", "counter_arrays", "counts_of", "set_counts"]
