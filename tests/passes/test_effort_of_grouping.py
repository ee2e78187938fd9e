"""Grouping, and the search of tiles for `ppuc check`, do work in proportion to the graph, and search a form once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ppuc.compiler.lowering import kernel_cache
from ppuc.compiler.lowering.kinds import lower_group
from ppuc.compiler.passes.grouping.fuse import Grouping
from ppuc.compiler.passes.grouping.horizontal_fusion import Merging
from ppuc.compiler.passes.grouping.in_place_concat import Joining
from ppuc.compiler.passes.tile import without_tiling
from ppuc.ir.graph import Graph
from ppuc.targets.description import load_target
from tests.passes.late_passes import TINY
from tests.support.effort import assert_linear
from tests.support.pass_graphs import Sketch


def contractions(count: int) -> Graph:
    s = Sketch()
    x, w = s.param(4, 16), s.weight(16, 16)
    for _ in range(count):
        x = s.op("relu", s.matmul(x, w))
    return s.graph(x)


def sums_of_branches(count: int) -> Graph:
    s = Sketch()
    x = s.op("relu", s.param(1, 8))
    for _ in range(count):
        x = s.op("add", x, s.op("relu", s.param(1, 8)))
    return s.graph(x)


def chain_read_at_the_end(count: int) -> Graph:
    """A chain whose every result is added up in the end, so that no kernel keeps one to itself."""
    s = Sketch()
    chain = [s.param(1, 8)]
    for i in range(count):
        chain.append(s.op(("tanh", "abs")[i % 2], chain[-1]))
    total = chain[0]
    for x in chain[1:]:
        total = s.op("add", total, x)
    return s.graph(total)


def tree(count: int) -> Graph:
    """Chains whose results are added up two at a time."""
    s = Sketch()
    level = [s.param(1, 8) for _ in range(4)]
    for i in range(count):
        level.append(s.op(("tanh", "abs", "relu", "neg")[i % 4], level[-4]))
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [*(s.op("add", a, b) for a, b in pairs), *level[len(level) // 2 * 2 :]]
    return s.graph(level[0])


def concatenations(count: int) -> Graph:
    """Pairs of results that are concatenated, and read besides."""
    s = Sketch()
    x, w, wholes = s.param(4, 16), s.weight(16, 16), []
    for _ in range(count):
        a, b = s.matmul(x, w), s.matmul(x, w)
        wholes.append(s.concat(a, b, axis=0))
        x = s.op("add", a, b)
    return s.graph(x, *wholes)


def scaled(count: int) -> Graph:
    s = Sketch()
    x = s.param(4, 16)
    return s.graph(*(s.op("add", x, s.number(i + 0.5)) for i in range(count)))


FEW_RINGS = replace(TINY, sync=replace(TINY.sync, rings_per_cu=12))
"""A target whose groups end after a few branches."""


@pytest.mark.parametrize("make", [contractions, sums_of_branches], ids=lambda f: f.__name__)
def test_grouping_is_linear(make: Callable[[int], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPUC_CACHE_DIR", "")
    target = FEW_RINGS
    Grouping(make(60), target, True).build()  # what is done once
    assert_linear(lambda n: Grouping(make(n), target, True).build, 60)


def projections(count: int) -> Graph:
    """Pairs of products of one operand, whose sum is the operand of the next pair."""
    s = Sketch()
    x, weights = s.param(40, 64), [s.weight(64, 64) for _ in range(2)]
    for _ in range(count):
        x = s.op("add", *(s.matmul(x, w) for w in weights))
    return s.graph(x)


def test_horizontal_fusion_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPUC_CACHE_DIR", "")
    target = load_target("zhenwu-m890")

    def merging(count: int) -> Callable[[], Graph]:
        return Merging(Grouping(projections(count), target, False).build(), target).build

    merged = merging(20)()
    assert sum(op.name == "group" for op in merged.ops) == 40  # a product and a sum for each pair
    assert_linear(merging, 150)


def test_concatenating_in_place_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPUC_CACHE_DIR", "")

    def joining(count: int) -> Callable[[], object]:
        grouped = Grouping(concatenations(count), TINY, True).build()
        return Joining(grouped, TINY).build

    joined = joining(40)()
    assert isinstance(joined, Graph)
    assert sum(op.name == "empty" for op in joined.ops) == 40
    assert_linear(joining, 40)


def test_kernels_that_differ_in_a_number_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPUC_CACHE_DIR", "")
    grouped = Grouping(scaled(20), TINY, True).build()
    assert len([op for op in grouped.ops if op.name == "group"]) == 20
    searched = []

    def counted(kind: str, *more: object) -> object:
        searched.append(kind)
        return lower_group(kind, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_cache, "lower_group", counted)
    assert without_tiling(grouped, TINY) == ()
    assert searched == ["map"]


@pytest.mark.parametrize("make", [chain_read_at_the_end, tree], ids=lambda f: f.__name__)
def test_ops_that_are_stored_anyway_are_not_offered_to_every_group(
    make: Callable[[int], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last op of each kernel of such a chain is recomputed by its readers; those before it are not left out in
    turn, which would offer each of them to as many groups as a group has ops."""
    checked: list[int] = []
    check = Grouping._check

    def counted(self: Grouping, members: Sequence[int]) -> str:
        checked.append(len(members))
        return check(self, members)

    monkeypatch.setattr(Grouping, "_check", counted)
    grouped = Grouping(make(400), FEW_RINGS, True).build()
    groups = [op for op in grouped.ops if op.name == "group"]
    assert len(groups) < 100
    assert len(checked) < 1_500
    assert sum(checked) < 20_000
