"""The choice of values for l2: a knapsack over time, and the space for prefetched copies."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.passes.memory.l2_choice import Candidate, advanced, kept, occupied

STEPS = 8


@st.composite
def candidate(draw: st.DrawFn, name: str) -> Candidate:
    start = draw(st.integers(0, STEPS - 1))
    size = draw(st.integers(1, 50))
    return Candidate(name, size, start, draw(st.integers(start, STEPS - 1)), size * draw(st.integers(1, 9)))


@st.composite
def candidates(draw: st.DrawFn, most: int = 8) -> list[Candidate]:
    return [draw(candidate(f"c{i}")) for i in range(draw(st.integers(0, most)))]


@given(candidates(), st.integers(0, 120))
def test_what_is_kept_fits_at_every_step(all_of_them: list[Candidate], capacity: int) -> None:
    chosen = kept(all_of_them, STEPS, capacity)
    assert set(chosen) <= set(all_of_them)
    assert occupied(chosen, STEPS).max(initial=0) <= capacity


@given(candidates(), st.integers(0, 120))
def test_nothing_that_fits_beside_the_kept_is_left_out(all_of_them: list[Candidate], capacity: int) -> None:
    chosen = kept(all_of_them, STEPS, capacity)
    taken = occupied(chosen, STEPS)
    for c in all_of_them:
        assert c in chosen or taken[c.start : c.end + 1].max() + c.bytes > capacity


def test_a_tensor_larger_than_the_memory_displaces_nothing() -> None:
    huge, panel = Candidate("huge", 100, 0, 7, 9000.0), Candidate("panel", 10, 2, 3, 90.0)
    assert kept([huge, panel], STEPS, 50) == [panel]


@given(candidates())
def test_everything_is_kept_where_there_is_room(all_of_them: list[Candidate]) -> None:
    room = int(occupied(all_of_them, STEPS).max(initial=0))
    assert kept(all_of_them, STEPS, room) == all_of_them


@settings(max_examples=60, derandomize=True)
@given(candidates(most=6), st.integers(20, 100))
def test_a_good_part_of_the_best_choice_is_saved(all_of_them: list[Candidate], capacity: int) -> None:
    """Against every subset. Greedy relief of the fullest step has no better bound when tensors are nearly as large as
    the memory; networks have many small ones."""
    fitting = [c for c in all_of_them if c.bytes <= capacity]
    best = max(
        sum(c.saved for c in subset)
        for n in range(len(fitting) + 1)
        for subset in combinations(fitting, n)
        if occupied(subset, STEPS).max(initial=0) <= capacity
    )
    assert sum(c.saved for c in kept(fitting, STEPS, capacity)) >= 0.3 * best


def test_the_least_saving_for_its_room_goes_first() -> None:
    often, seldom = Candidate("often", 10, 0, 3, 100.0), Candidate("seldom", 10, 0, 3, 20.0)
    assert kept([often, seldom], STEPS, 15) == [often]
    small = Candidate("small", 5, 0, 3, 30.0)
    assert kept([often, small, seldom], STEPS, 20) == [often, small]


@given(candidates(), candidates(), st.integers(0, 150))
def test_copies_start_as_early_as_there_is_room(
    staged: list[Candidate], others: list[Candidate], capacity: int
) -> None:
    others = [Candidate(f"o.{c.name}", c.bytes, c.start, c.end, c.saved) for c in others]
    before = occupied([*staged, *others], STEPS)
    starts = advanced(staged, others, STEPS, capacity)
    moved = [Candidate(c.name, c.bytes, starts[c.name], c.end, c.saved) for c in staged]
    after = occupied([*moved, *others], STEPS)
    assert all(starts[c.name] <= c.start for c in staged)
    assert all(now == then or now <= capacity for now, then in zip(after, before, strict=True))


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(1, 9))
def test_copies_start_after_the_last_step_without_room(free: list[int], size: int) -> None:
    """However far back that is."""
    steps = len(free)
    others = [Candidate(f"o{i}", 9 - bytes, i, i, 1.0) for i, bytes in enumerate(free)]
    full = [i for i, bytes in enumerate(free) if bytes < size]
    starts = advanced([Candidate("c", size, steps, steps, 1.0)], others, steps + 1, 9)
    assert starts == {"c": full[-1] + 1 if full else 0}


def test_earlier_needs_come_first() -> None:
    first, second = Candidate("first", 10, 3, 4, 1.0), Candidate("second", 10, 5, 6, 1.0)
    assert advanced([second, first], [], STEPS, 15) == {"first": 0, "second": 5}
    assert advanced([second, first], [], STEPS, 25) == {"first": 0, "second": 0}
