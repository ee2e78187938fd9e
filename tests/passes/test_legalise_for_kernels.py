"""The pass `legalise-for-kernels`: the forms that kernels support."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ppuc.compiler.passes.normalise.legalise_for_kernels import LegaliseForKernels, most_joined
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.movement import GatherAttrs, ScatterNdAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs
from ppuc.targets.schema import Target
from tests.passes.late_passes import LARGE, TINY, after, checked, kinds
from tests.support.pass_graphs import Sketch


def prepared(graph: Graph) -> list[Op]:
    return [op for op in after(graph, (LegaliseForKernels(),)).graph.ops if op.name != "const"]


def test_reductions_keep_their_axes() -> None:
    s = Sketch()
    x = s.param(3, 4)
    total = s.reduce("sum", x, 0, 1, keepdims=False)
    best = s.op("argreduce", x, attrs=ArgreduceAttrs("max", 1, False))
    ops = prepared(s.graph(total, best))
    assert [op.name for op in ops] == ["reduce", "reshape", "argreduce", "reshape"]
    assert all(op.attrs.keepdims for op in ops if isinstance(op.attrs, ReduceAttrs | ArgreduceAttrs))
    checked(s.graph(total, best))


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolutions_are_matmuls(stride: int) -> None:
    s = Sketch()
    y = s.conv(s.param(2, 5, 7, 6), 3, 1, stride=stride)
    module = checked(s.graph(y))
    assert kinds(module) == ["matmul"]


def empty_product(s: Sketch) -> Value:
    return s.matmul(s.param(4, 0), s.param(0, 3))


def empty_sum(s: Sketch) -> Value:
    return s.reduce("sum", s.op("relu", s.param(4, 0)), 1)


def joined_with_nothing(s: Sketch) -> Value:
    return s.concat(s.param(0, 3), s.param(2, 3), s.param(0, 3), axis=0)


def padded_nothing(s: Sketch) -> Value:
    return s.pad(s.param(0, 3), (2, 0), (0, 1), 1.5)


def scattered_nothing(s: Sketch) -> Value:
    return s.op("scatter_nd", s.param(4, 3), s.const(np.zeros((0, 1), np.int64)), s.param(0, 3), attrs=ScatterNdAttrs())


def gathered_nothing(s: Sketch) -> Value:
    return s.op("gather", s.param(4, 3), s.const(np.zeros((0, 2), np.int64)), attrs=GatherAttrs(0))


def nothing_at_all(s: Sketch) -> Value:
    x = s.param(3, 0, 2)
    return s.op("add", s.transpose(s.op("neg", x), 2, 1, 0), s.reshape(x, 2, 0, 3))


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "build",
    [
        empty_product,
        empty_sum,
        joined_with_nothing,
        padded_nothing,
        scattered_nothing,
        gathered_nothing,
        nothing_at_all,
    ],
)
def test_no_kernel_sees_an_empty_tensor(build: Callable[[Sketch], Value], target: Target) -> None:
    s = Sketch()
    graph = s.graph(build(s))
    for op in prepared(graph):
        assert all(0 not in v.type.dims for v in op.operands)
    checked(graph, target)
    s = Sketch()  # and where something else reads the result
    y = build(s)
    checked(s.graph(s.op("add", y, s.weight(*y.type.dims)), y), target)


def test_many_operands_are_joined_in_steps() -> None:
    s = Sketch()
    parts = [s.param(1, 3) for _ in range(most_joined(TINY) + 5)]
    graph = s.graph(s.concat(*parts, axis=0))
    joins = [op for op in prepared(graph) if op.name == "concat"]
    assert sorted(len(op.operands) for op in joins) == [2, 5, most_joined(TINY)]
    checked(graph)


def test_copies_of_one_kernel_share_l1() -> None:
    s = Sketch()
    x = s.op("relu", s.param(1, 32, 63))
    checked(s.graph(s.concat(x, s.param(1, 32, 63), x, x, x, s.param(2, 32, 63), axis=0)))
