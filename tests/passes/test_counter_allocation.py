"""Counters of the machine for counter groups: live ranges never meet on a counter, and repetition stays repetition."""

from __future__ import annotations

import itertools
import random

import pytest

from ppuc.compiler.passes.emit.counter_allocation import Allocation, LiveGroup, separate, shared


def random_groups(seed: int) -> list[LiveGroup]:
    rng = random.Random(seed)
    firsts = [rng.randrange(60) for _ in range(80)]
    return [
        LiveGroup(f"g{i}", rng.choice((1, 1, 3, 8)), at, at + rng.choice((0, 0, 1, 9))) for i, at in enumerate(firsts)
    ]


def counters_of(group: LiveGroup, allocation: Allocation) -> set[int]:
    first = allocation.first[group.name]
    return set(range(first, first + group.size))


@pytest.mark.parametrize("distance", [1, 2, 16])
@pytest.mark.parametrize("seed", range(8))
def test_groups_that_share_counters_live_one_after_another(seed: int, distance: int) -> None:
    groups = random_groups(seed)
    found = shared(groups, distance)
    order = {name: i for i, name in enumerate(found.first)}
    for one, other in itertools.combinations(sorted(groups, key=lambda g: order[g.name]), 2):
        both = counters_of(one, found) & counters_of(other, found)
        assert not both or one.last + distance <= other.first, (one, other)
    assert found.used == 1 + max(max(counters_of(g, found)) for g in groups)


@pytest.mark.parametrize("seed", range(8))
def test_a_group_takes_over_from_the_last_that_had_its_counters(seed: int) -> None:
    groups = {g.name: g for g in random_groups(seed)}
    found = shared([*groups.values()], 1)
    owner: dict[int, str] = {}
    for name in found.first:
        before = {owner[c] for c in counters_of(groups[name], found) if c in owner}
        assert before == ({found.before[name]} if name in found.before else set())
        owner |= dict.fromkeys(counters_of(groups[name], found), name)


@pytest.mark.parametrize("seed", range(8))
def test_no_more_counters_than_are_live_at_a_time(seed: int) -> None:
    groups = random_groups(seed)
    most = {
        size: max(sum(g.first <= step <= g.last for g in groups if g.size == size) for step in range(80))
        for size in (1, 3, 8)
    }
    assert shared(groups, 1).used == sum(size * count for size, count in most.items())


def test_repeated_layers_take_over_in_the_same_way() -> None:
    """A layer is 6 steps with groups of two sizes, one of which lives through half of it."""
    layer = [(4, 0, 0), (1, 0, 3), (4, 2, 2), (2, 3, 3), (1, 4, 4), (1, 5, 7)]
    groups = [
        LiveGroup(f"{n}.{i}", size, 6 * n + first, 6 * n + last)
        for n in range(40)
        for i, (size, first, last) in enumerate(layer)
    ]
    found = shared(groups, 20)
    for n in range(20, 39):
        for i in range(len(layer)):
            then, place = found.before[f"{n}.{i}"].split(".")
            assert found.before[f"{n + 1}.{i}"] == f"{int(then) + 1}.{place}"


def test_counters_of_their_own() -> None:
    groups = [LiveGroup("a", 3, 0, 0), LiveGroup("b", 1, 5, 9), LiveGroup("c", 2, 1, 1)]
    assert separate(groups) == Allocation({"a": 0, "b": 3, "c": 4}, {}, 6)
