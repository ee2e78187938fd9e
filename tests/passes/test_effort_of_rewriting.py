"""Rewriting joins the names of thousands of nodes into one op in time proportional to their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ppuc.compiler.passes.locs import joined, listed
from ppuc.compiler.passes.normalise.canonicalise import RULES
from ppuc.compiler.passes.rewriter import to_fixpoint
from ppuc.ir.graph import Graph
from tests.support.effort import Name, assert_linear
from tests.support.pass_graphs import Sketch


def with_names(graph: Graph) -> Graph:
    return graph.with_ops(replace(op, loc=tuple(map(Name, op.loc))) for op in graph.ops)


def chained_views(count: int) -> Graph:
    """Views that become one."""
    s = Sketch()
    x = s.param(4, 6)
    for i in range(count):
        x = s.reshape(x, *((6, 4), (3, 8), (2, 12))[i % 3])
    return with_names(s.graph(s.op("relu", x)))


def equal_views(count: int) -> Graph:
    """Equal chains of views, whose ops become those of the first."""
    s = Sketch()
    x, weights = s.param(4, 6), s.param(24)
    for _ in range(count):
        x = s.op("mul", x, s.transpose(s.reshape(weights, 6, 4), 1, 0))
    return with_names(s.graph(x))


@pytest.mark.parametrize("make", [chained_views, equal_views], ids=lambda make: make.__name__)
def test_joining_names_is_linear(make: Callable[[int], Graph]) -> None:
    def rewriting(count: int) -> Callable[[], object]:
        graph = make(count)
        return lambda: to_fixpoint(graph, RULES)

    rewriting(8)()
    assert_linear(rewriting, 200)


def test_a_joined_op_carries_the_names_of_all_in_order() -> None:
    after = to_fixpoint(chained_views(101), RULES)
    assert [op.name for op in after.ops] == ["reshape", "relu"]
    assert after.ops[0].loc == tuple(f"node_{i}" for i in range(101))
    assert all(type(op.loc) is tuple for op in after.ops)


def test_merged_ops_carry_the_names_of_all_in_order() -> None:
    after = to_fixpoint(equal_views(50), RULES)
    (view,) = (op for op in after.ops if op.name == "transpose")
    assert view.loc == tuple(f"node_{3 * i + 1}" for i in range(50))


def test_long_locs_are_listed_once_in_order() -> None:
    names = tuple(f"n{i}" for i in range(40))
    shared = joined(names, ("a",))
    assert joined(names) is names
    assert joined(names, names) is names
    assert joined(("a", "b"), ("b",)) == ("a", "b")
    assert listed(joined(("b",), shared, ("c", "n3"), shared)) == ("b", *names, "a", "c")
