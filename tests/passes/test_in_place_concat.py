"""Concatenations computed in place: what is inserted where, and that the programs compute the same, without hazards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppuc.compiler.passes.memory.live_ranges import storage_roots
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.ops.movement import InsertAttrs
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.types import DType, TensorType
from ppuc.targets.description import load_target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import APART, compiled

TINY = load_target("ppu-tiny")
LARGE = load_target("zhenwu-m890")


def checked(graph: Graph, target: str = "ppu-tiny", **options: str) -> Module:
    """The compiled module, re-executed after every pass and simulated."""
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    return compiled(module_of(graph, **options), load_target(target), inputs, APART)


def inserts(module: Module) -> list[str]:
    """Kinds of the groups that end in an insert."""
    found = []
    for op in module.graph.ops:
        if op.body is not None and any(inner.name == "insert" for inner in op.body.ops):
            assert isinstance(op.attrs, GroupAttrs)
            found.append(op.attrs.kind)
    return found


def concats(module: Module) -> int:
    return sum(inner.name == "concat" for op in module.graph.ops for inner in (op.body.ops if op.body else ()))


def test_insert_puts_a_part_into_a_copy_of_its_base() -> None:
    base, part = np.zeros((3, 4), np.float32), np.ones((2, 2), np.float32)
    (result,) = OPS["insert"].reference(InsertAttrs((1, 2)), base, part)  # type: ignore[misc]
    assert result[1:, 2:].all()
    assert result.sum() == 4
    assert not base.any()


@pytest.mark.parametrize(
    ("starts", "part", "dtype"),
    [((2, 0), (2, 4), DType.F32), ((-1, 0), (1, 4), DType.F32), ((0,), (1, 4), DType.F32), ((0, 0), (1, 4), DType.F16)],
)
def test_insert_refuses_parts_that_do_not_lie_inside(
    starts: tuple[int, ...], part: tuple[int, ...], dtype: DType
) -> None:
    with pytest.raises(ValueError, match=r"insert|reaches out"):
        OPS["insert"].infer(InsertAttrs(starts), [TensorType(DType.F32, (3, 4)), TensorType(dtype, part)])


def branches(s: Sketch, x: Value, count: int) -> list[Value]:
    return [s.op("relu", s.matmul(x, s.weight(x.type.dims[1], 32 * (i + 1)))) for i in range(count)]


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_products_are_stored_in_their_columns(target: str, precision: str) -> None:
    s = Sketch()
    y = s.concat(*branches(s, s.param(48, 40), 3), axis=1)
    module = checked(s.graph(s.softmax(y)), target, precision=precision)
    assert inserts(module) == ["matmul"] * 3
    assert not concats(module)


def test_a_joined_tensor_may_be_an_output() -> None:
    s = Sketch()
    y = s.concat(*branches(s, s.param(48, 40), 2), axis=1)
    module = checked(s.graph(y))
    assert inserts(module) == ["matmul"] * 2
    roots = storage_roots(module.graph)
    assert len({roots[r.name] for op in module.graph.ops if inserts_part(op) for r in op.results}) == 1


def inserts_part(op: Op) -> bool:
    return op.body is not None and any(inner.name == "insert" for inner in op.body.ops)


def test_other_readers_of_a_part_read_a_slice_of_the_whole() -> None:
    s = Sketch()
    a, b = branches(s, s.param(48, 40), 2)
    joined = s.concat(a, b, axis=1)
    module = checked(s.graph(s.softmax(joined), s.softmax(s.matmul(a, s.weight(32, 8)))))
    assert inserts(module) == ["matmul"] * 2


def test_one_part_may_be_an_input() -> None:
    s = Sketch()
    x = s.param(48, 40)
    (a,) = branches(s, x, 1)
    module = checked(s.graph(s.softmax(s.concat(a, x, axis=1))))
    assert inserts(module) == ["matmul", "copy"]


def two_inputs(s: Sketch) -> Value:
    x = s.param(48, 40)
    (a,) = branches(s, x, 1)
    return s.concat(a, x, s.param(48, 8), axis=1)


def short_rows(s: Sketch) -> Value:
    x = s.param(256, 40)
    parts = [s.op("relu", s.matmul(x, s.weight(40, 4))) for _ in range(2)]
    return s.concat(*parts, axis=1)


def a_part_that_is_an_output(s: Sketch) -> Value:
    x = s.param(48, 40)
    s.kept = branches(s, x, 1)  # type: ignore[attr-defined]
    return s.concat(s.kept[0], s.param(48, 8), axis=1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [two_inputs, short_rows, a_part_that_is_an_output])
def test_what_would_not_pay_stays_a_concat(make: Callable[[Sketch], Value]) -> None:
    s = Sketch()
    y = s.softmax(make(s))
    module = checked(s.graph(y, *getattr(s, "kept", ())))
    assert not inserts(module)
    assert concats(module) == 1


@settings(max_examples=12, deadline=None)
@given(
    rank=st.integers(2, 4), axis=st.integers(0, 3), sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_axis_and_sizes(rank: int, axis: int, sizes: list[int], seed: int) -> None:
    """Parts of any size along any axis, of elementwise and row-wise groups, one of them read elsewhere too."""
    s, axis = Sketch(seed), axis % rank
    shape = [3, 5, 2, 16][-rank:]
    parts = []
    for i, size in enumerate(sizes):
        shape[axis] = size
        parts.append(s.softmax(s.param(*shape)) if i % 2 else s.op("exp", s.param(*shape)))
    y = s.op("relu", s.concat(*parts, axis=axis))
    checked(s.graph(s.softmax(y), s.op("neg", parts[0])))


def test_join_alone_keeps_the_graphs_meaning() -> None:
    s = Sketch()
    graph = s.graph(s.concat(*branches(s, s.param(48, 40), 3), axis=1))
    at = next(i for i, p in enumerate(PIPELINE) if p.name == "in-place-concat")
    module = replace(module_of(graph), target=LARGE.name, target_hash=LARGE.hash)
    for step in PIPELINE[:at]:
        module = step.run(module, LARGE)
    joined = PIPELINE[at].run(module, LARGE)
    assert inserts(joined) == ["matmul"] * 3
    feeds = {p.name: data(p.type, 0) for p in graph.params}
    before, now = run_graph(module.graph, feeds), run_graph(joined.graph, feeds)
    for (_, a), (_, b) in zip(module.outputs, joined.outputs, strict=True):
        assert np.array_equal(before[a], now[b])


def test_of_two_results_of_one_group_one_is_copied() -> None:
    """A group cannot insert into a whole that holds another of its results before it has run."""
    s = Sketch()
    a = s.op("sigmoid", s.matmul(s.param(16, 9, 33), s.weight(33, 1)))
    b = s.op("div", a, s.op("sqrt", s.op("mul", a, a)))
    module = checked(s.graph(s.op("reciprocal", s.concat(a, b, axis=0))))
    assert [op.attrs.kind for op in module.graph.ops if isinstance(op.attrs, GroupAttrs)][:1] == ["matmul"]
    for op in module.graph.ops:
        if op.body is not None:
            assert sum(inner.name == "insert" for inner in op.body.ops) <= 1


def test_a_part_that_was_copied_for_one_whole_stays_where_the_copy_reads_it() -> None:
    s = Sketch()
    x, z = s.param(64, 40), s.param(64, 40)
    short = s.op("relu", s.matmul(x, s.weight(40, 4)))
    wide = s.op("relu", s.matmul(z, s.weight(40, 64)))
    other = s.op("tanh", s.matmul(z, s.weight(40, 4)))
    beside = s.concat(short, wide, axis=1)  # rows of 4 elements: copied
    below = s.concat(short, other, axis=0)  # one run: could be computed in place
    module = checked(s.graph(s.softmax(beside), s.softmax(below)))
    assert "copy" in inserts(module)
