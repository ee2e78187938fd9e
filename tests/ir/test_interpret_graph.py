"""The graph interpreter: group bodies, callbacks, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.ir.errors import InputError, InternalError
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, parse_type

X = Value("x", parse_type("f32[2]"))
ONES = np.ones(2, np.float32)


def doubled_and_negated() -> Graph:
    """-(x + x), where the addition stands in a group."""
    inner = Builder(["p"])
    p = Value("p", X.type)
    total = inner("add", p, p)
    outer = Builder(["x"], loc=("node",))
    (grouped,) = outer.emit(
        "group", [X], GroupAttrs("map"), types=[X.type], body=Graph("body", (p,), (total,), tuple(inner.ops))
    )
    return Graph("g", (X,), (outer("neg", grouped, hint="y"), X), tuple(outer.ops))


def test_bodies_run_and_every_op_is_reported() -> None:
    seen: list[tuple[str, float]] = []
    results = run_graph(
        doubled_and_negated(), {"x": ONES}, on_op=lambda op, arrays: seen.append((op.name, float(arrays[0][0])))
    )
    np.testing.assert_array_equal(results["y"], [-2, -2])
    np.testing.assert_array_equal(results["x"], ONES)
    assert seen == [("add", 2.0), ("group", 2.0), ("neg", -2.0)]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "graph @g: no value given for %x\n  expected: f32[2]"),
        ({"x": ONES, "z": ONES}, "graph @g: no such parameter\n  got: z\n  expected: x"),
        ({"x": np.ones(3)}, "graph @g: %x has another type\n  got: f64[3]\n  expected: f32[2]"),
        ({"x": np.ones(2, np.complex64)}, "graph @g: %x has another type\n  got: complex64[2]\n  expected: f32[2]"),
    ],
)
def test_feeds_must_be_the_parameters(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError) as caught:
        run_graph(doubled_and_negated(), feeds)
    assert str(caught.value) == message


def test_a_result_of_another_type_is_an_internal_error() -> None:
    wrong = Value("y", X.type.with_dtype(DType.F16))
    graph = Graph("g", (X,), (wrong,), (Op("neg", Attrs(), (X,), (wrong,), ("node",)),))
    with pytest.raises(InternalError, match=r"op neg \(node\): %y is f16\[2\], computed f32\[2\]"):
        run_graph(graph, {"x": ONES})
