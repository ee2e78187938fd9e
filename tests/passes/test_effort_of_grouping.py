"""Grouping, and the search of tiles for `ppuc check`, do work in proportion to the graph, and search a form once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ppuc.compiler.lowering import kernel_cache
from ppuc.compiler.lowering.kinds import lower_group
from ppuc.compiler.passes.grouping.fuse import Grouping
from ppuc.compiler.passes.tile import without_tiling
from ppuc.ir.graph import Graph
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


def scaled(count: int) -> Graph:
    s = Sketch()
    x = s.param(4, 16)
    return s.graph(*(s.op("add", x, s.number(i + 0.5)) for i in range(count)))


@pytest.mark.parametrize("make", [contractions, sums_of_branches], ids=lambda f: f.__name__)
def test_grouping_is_linear(make: Callable[[int], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPUC_CACHE_DIR", "")
    target = replace(TINY, sync=replace(TINY.sync, rings_per_cu=12))  # groups that end after a few branches
    Grouping(make(60), target, True).build()  # what is done once
    assert_linear(lambda n: Grouping(make(n), target, True).build, 60)


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
