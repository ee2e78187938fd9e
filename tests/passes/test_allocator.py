"""Address assignment: plans are legal, hard instances are solved at their lower bound, infeasibility is proven."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.passes.memory.live_ranges import assign
from ppuc.compiler.passes.memory.minimalloc import GREEDY, NoPlan, Plan, first_fit, max_live, plan
from ppuc.compiler.passes.memory.ranges import Assigner, Range
from tests.support.effort import calls_of
from tests.support.live_ranges import assert_legal, dissected


@st.composite
def range_lists(draw: st.DrawFn, most: int = 24, steps: int = 12, size: int = 40) -> list[Range]:
    found = []
    for i in range(draw(st.integers(0, most))):
        start = draw(st.integers(-1, steps))
        found.append(Range(f"t{i}", draw(st.integers(1, size)), start, draw(st.integers(start, steps))))
    return found


@settings(deadline=None, max_examples=150)
@given(range_lists(), st.sampled_from([1, 4, 16]), st.floats(1.0, 1.4))
def test_every_plan_is_legal(ranges: list[Range], alignment: int, room: float) -> None:
    bound = max_live(ranges, alignment)
    capacity = int(bound * room)
    found = plan(ranges, capacity, alignment, placements=20_000)
    assert found.bound == bound
    if isinstance(found, Plan):
        assert_legal(ranges, found.offsets, capacity, alignment)
        assert found.peak == max((found.offsets[r.name] + r.bytes for r in ranges), default=0)
        assert found.peak + alignment > max_live(ranges)
    else:
        assert room < 1.4
        assert found.proved or found.placements > 0


@settings(deadline=None, max_examples=150)
@given(range_lists())
def test_the_bound_is_the_fullest_step(ranges: list[Range]) -> None:
    fullest = max((sum(r.bytes for r in ranges if r.start <= t <= r.end) for t in range(-1, 13)), default=0)
    assert max_live(ranges) == fullest
    if fullest:
        refused = plan(ranges, fullest - 1)
        assert refused == NoPlan(fullest, proved=True)


def lowest_free(item: Range, placed: dict[str, int], ranges: Sequence[Range], capacity: int) -> int | None:
    """The lowest address at which `item` overlaps nothing alive with it, by trying all."""
    alive = [r for r in ranges if r.name in placed and r.start <= item.end and item.start <= r.end]
    for at in range(capacity - item.bytes + 1):
        if all(at + item.bytes <= placed[r.name] or placed[r.name] + r.bytes <= at for r in alive):
            return at
    return None


@settings(deadline=None, max_examples=150)
@given(range_lists(), st.floats(0.5, 1.4))
def test_first_fit_takes_the_lowest_free_address(ranges: list[Range], room: float) -> None:
    capacity = int(max_live(ranges) * room)
    assigner, placed = Assigner.of(ranges, capacity), dict[str, int]()
    for item in ranges:
        expected = lowest_free(item, placed, ranges, capacity)
        assert assigner.place(item) == expected
        if expected is not None:
            placed[item.name] = expected


class Number(int):
    """A number whose comparisons are calls, which `calls_of` counts."""

    def __lt__(self, other: int) -> bool:
        return int(self) < other

    def __gt__(self, other: int) -> bool:
        return int(self) > other


def test_first_fit_of_a_chain_does_not_compare_all_ranges() -> None:
    """Each range overlaps its neighbours and a few that live throughout."""

    def placing(count: int) -> int:
        ranges = [Range(f"t{i}", 3 + i % 5, Number(i), Number(i + 1 + i % 3)) for i in range(count)]
        ranges += [Range(f"w{i}", 2, Number(-1), Number(count)) for i in range(count)]
        return calls_of(lambda: first_fit(ranges, 10 * count))

    assert placing(1000) < 2.5 * placing(500)


def exhaustive(ranges: Sequence[Range], capacity: int) -> bool:
    """Whether some order of first fit places everything: one does if any plan exists (place by rising offset)."""
    return any(len(first_fit(order, capacity)) == len(ranges) for order in itertools.permutations(ranges))


@settings(deadline=None, max_examples=120)
@given(range_lists(most=6, steps=5, size=5), st.integers(0, 2))
def test_search_agrees_with_trying_every_order(ranges: list[Range], slack: int) -> None:
    capacity = max_live(ranges) + slack
    found = plan(ranges, capacity)
    assert isinstance(found, Plan) == exhaustive(ranges, capacity)


def test_search_proves_that_nothing_fits_although_the_bound_would() -> None:
    # `e` sends `f` to an edge, `b` sends `d` to an edge; then `c` has no place that leaves both `a` and `g` two bytes.
    ranges = [
        Range("a", 2, 1, 2), Range("b", 3, 5, 5), Range("c", 1, 1, 4), Range("d", 1, 3, 5), Range("e", 3, 0, 0),
        Range("f", 1, 0, 3), Range("g", 2, 4, 4),
    ]  # fmt: skip
    assert max_live(ranges) == 4
    assert not exhaustive(ranges, 4)
    refused = plan(ranges, 4)
    assert isinstance(refused, NoPlan)
    assert refused.proved
    assert isinstance(plan(ranges, 5), Plan)


@pytest.mark.parametrize("seed", range(6))
def test_gapless_instances_are_solved_where_greedy_orders_fail(seed: int) -> None:
    ranges = dissected(seed, 90)
    found = plan(ranges, 4096, placements=8_000_000)
    assert isinstance(found, Plan)
    assert found.peak == found.bound == 4096
    assert_legal(ranges, found.offsets, 4096)
    greedy = [len(first_fit(sorted(ranges, key=order), 4096)) == len(ranges) for order in GREEDY.values()]
    assert (found.method == "search") == (not any(greedy))
    assert not any(greedy), "the instance is too easy to test the search"


def test_plans_do_not_depend_on_the_order_of_the_ranges() -> None:
    ranges = dissected(3, 60)
    found = plan(ranges, 4096)
    assert found == plan(ranges[::-1], 4096)


def test_the_limit_is_kept() -> None:
    found = plan(dissected(1, 300, steps=256), 4096, placements=50)
    assert isinstance(found, NoPlan)
    assert not found.proved
    assert found.placements <= 51


def test_assign_keeps_to_first_fit_when_that_fits() -> None:
    ranges = [Range("a", 512, 0, 1), Range("b", 256, 1, 2), Range("c", 512, 2, 3)]
    assert assign(ranges, 768) == ({"a": 0, "c": 0, "b": 512}, [])


@pytest.mark.parametrize("seed", range(4))
def test_assign_searches_where_first_fit_fails(seed: int) -> None:
    ranges = dissected(seed, 60)
    by_size = first_fit(sorted(ranges, key=lambda r: (-r.bytes, r.start, r.name)), 4096)
    assert len(by_size) < len(ranges)
    offsets, failed = assign(ranges, 4096)
    assert failed == []
    assert_legal(ranges, offsets, 4096)


def test_assign_names_what_found_no_room() -> None:
    ranges = [Range("a", 600, 0, 1), Range("b", 500, 1, 2), Range("c", 300, 2, 3)]
    offsets, failed = assign(ranges, 1000)
    assert failed == ["b"]
    assert_legal([ranges[0], ranges[2]], offsets, 1000)


@pytest.mark.parametrize("seed", range(3))
def test_against_omnimalloc(seed: int) -> None:
    omnimalloc = pytest.importorskip("omnimalloc")
    rng = random.Random(seed)
    ranges = []
    for i in range(60):
        start = rng.randint(0, 80)
        ranges.append(Range(f"t{i}", rng.randint(1, 500), start, start + rng.randint(0, 25)))

    def pool(offsets: dict[str, int] | None) -> object:
        entries = [
            omnimalloc.Allocation(r.name, r.bytes, r.start, r.end + 1, offsets[r.name] if offsets else None)
            for r in ranges
        ]
        return omnimalloc.Pool(id="pool", allocations=tuple(entries))

    theirs = omnimalloc.allocate(pool(None))
    found = plan(ranges, theirs.size)
    assert isinstance(found, Plan)
    omnimalloc.validate_allocation(pool(found.offsets))
    with pytest.raises(ValueError, match=r".+"):
        omnimalloc.validate_allocation(pool(dict.fromkeys(found.offsets, 0)))
