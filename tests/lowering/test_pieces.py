"""Pieces of moved values: copied one by one, they make up what the ops compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.lowering.tiling.not_fusable import NotFusable
from ppuc.compiler.lowering.tiling.pieces import Piece, follow, whole
from ppuc.ir.graph import Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.kernel import View
from tests.support.moved_values import from_windows, moved, moves, rolled, to_windows
from tests.support.pass_graphs import Sketch


def flat(view: View) -> np.ndarray:
    """The flat element of every index."""
    found = np.full(view.shape, view.offset)
    for axis, stride in enumerate(view.strides):
        found = found + stride * np.arange(view.shape[axis]).reshape([-1] + [1] * (len(view.shape) - axis - 1))
    return found.reshape(-1)


def pieces_of(graph: Graph) -> list[Piece]:
    (result,), params = graph.results, {p.name for p in graph.params}
    return follow(graph, whole(result, View.contiguous(result.type.dims)), lambda p: p.value.name in params)


def assert_right(graph: Graph) -> list[Piece]:
    """The pieces of the only result, which every element of is in once, with the right value."""
    (x,), (result,) = graph.params, graph.results
    array = np.arange(x.type.elements, dtype=np.float32).reshape(x.type.dims)
    want = run_graph(graph, {x.name: array})[result.name]
    pieces, got = pieces_of(graph), np.full(result.type.elements, -1.0)
    for piece in pieces:
        at = flat(piece.stored())
        assert np.all(got[at] == -1)
        got[at] = array.reshape(-1)[flat(piece.read(View.contiguous(x.type.dims)))]
    np.testing.assert_array_equal(got, want.reshape(-1))
    return pieces


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from([(12,), (1, 36, 8), (2, 6, 8, 12), (4, 7, 9), (3, 1, 5)]),
    steps=moves(7),
)
def test_any_chain(shape: tuple[int, ...], steps: list[tuple[str, int, int, int]]) -> None:
    s = Sketch()
    graph = s.graph(moved(s, s.param(*shape), steps))
    refused = ""
    try:
        assert_right(graph)
    except NotFusable as error:
        refused = str(error)
    expected = ("in steps of", "is not made of parts", "regroups elements", "is scattered in more than")
    assert not refused or any(what in refused for what in expected)


def two_rolls(s: Sketch, x: Value) -> Value:
    return rolled(s, rolled(s, x, 1, -3), 2, -3)


@pytest.mark.parametrize(
    ("name", "count"),
    [("one roll", 2), ("two rolls", 4), ("to windows", 9), ("from windows", 9), ("there and back", 1)],
)
def test_how_many_pieces(name: str, count: int) -> None:
    s = Sketch()
    x = s.param(1, 28, 28, 6) if name != "from windows" else s.param(16, 49, 6)
    y = {
        "one roll": lambda: rolled(s, x, 1, 4),
        "two rolls": lambda: two_rolls(s, x),
        "to windows": lambda: to_windows(s, two_rolls(s, x), 7),
        "from windows": lambda: two_rolls(s, from_windows(s, x, 1, 28, 28)),
        "there and back": lambda: rolled(s, rolled(s, x, 1, -3), 1, 3),
    }[name]()
    assert len(assert_right(s.graph(y))) == count


def test_regrouped_elements_are_refused() -> None:
    s = Sketch()
    y = s.reshape(s.transpose(s.param(4, 6), 1, 0), 8, 3)
    with pytest.raises(NotFusable, match="regroups elements across dimensions"):
        pieces_of(s.graph(s.slice(y, (1, 1), (5, 2))))
