"""Passes from legalise-for-kernels to emit: their results, and that modules compute the same before and after each.

`compiled` re-executes the module after every pass and simulates the program.
"""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.passes.grouping.fuse import Fuse
from ppuc.compiler.passes.memory.live_ranges import storage_roots, updated_operand
from ppuc.compiler.passes.normalise.legalise_for_kernels import LegaliseForKernels
from ppuc.ir.graph import Op
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import ScatterNdAttrs
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.types import DType
from ppuc.targets.schema import Target
from tests.passes.late_passes import LARGE, TINY, TO_GROUPS, TO_PROGRAM, after, checked, groups, kinds
from tests.support.pass_graphs import BLOCKS, Sketch


def members(group: Op) -> list[str]:
    assert group.body is not None
    return [op.name for op in group.body.ops if op.name != "const"]


# -- fuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [TINY, LARGE], ids=lambda t: t.name)
@pytest.mark.parametrize("block", list(BLOCKS))
def test_blocks_of_networks(block: str, target: Target) -> None:
    checked(BLOCKS[block](), target)


def test_a_contraction_takes_its_epilogue() -> None:
    s = Sketch()
    y = s.op("relu", s.op("add", s.matmul(s.param(8, 16), s.weight(16, 12)), s.weight(12)))
    (group,) = groups(after(s.graph(s.op("add", y, s.param(8, 12))), TO_GROUPS))
    assert members(group) == ["matmul", "add", "relu", "add"]
    assert isinstance(group.attrs, GroupAttrs)
    assert group.attrs.kind == "matmul"


def test_the_other_branches_of_an_op_join_with_it() -> None:
    s = Sketch()
    other = s.op("mul", s.op("tanh", s.param(8, 12)), s.param(8, 12))
    graph = s.graph(s.op("add", s.matmul(s.param(8, 16), s.weight(16, 12)), other))
    (group,) = groups(after(graph, TO_GROUPS))
    assert members(group) == ["tanh", "mul", "matmul", "add"]
    checked(graph)


def test_a_branch_that_others_read_or_that_is_broadcast_stays_outside() -> None:
    s = Sketch()
    shared, row = s.op("tanh", s.param(8, 12)), s.op("exp", s.param(1, 12))
    y = s.matmul(s.param(8, 16), s.weight(16, 12))
    graph = s.graph(s.op("add", s.op("add", y, shared), row), s.reduce("sum", shared, 0))
    found = [members(group) for group in groups(after(graph, TO_GROUPS))]
    assert ["matmul", "add", "add"] in found
    assert len(found) == 3
    checked(graph)


def test_without_epilogues_every_op_stands_alone() -> None:
    s = Sketch()
    y = s.op("relu", s.op("add", s.matmul(s.param(8, 16), s.weight(16, 12)), s.weight(12)))
    module = after(s.graph(y), (LegaliseForKernels(), Fuse(epilogues=False)))
    assert kinds(module) == ["matmul", "map", "map"]
    checked(s.graph(y), passes=(LegaliseForKernels(), Fuse(epilogues=False), *TO_PROGRAM[2:]))


def test_a_softmax_is_one_kernel() -> None:
    s = Sketch()
    x = s.param(40, 33)
    e = s.op("exp", s.op("sub", x, s.reduce("max", x, 1)))
    (group,) = groups(after(s.graph(s.op("div", e, s.reduce("sum", e, 1))), TO_GROUPS))
    assert members(group) == ["reduce", "sub", "exp", "reduce", "div"]


def test_two_contractions_are_two_kernels() -> None:
    s = Sketch()
    y = s.matmul(s.op("relu", s.matmul(s.param(8, 16), s.weight(16, 12))), s.weight(12, 4))
    assert kinds(after(s.graph(y), TO_GROUPS)) == ["matmul", "matmul"]


def test_no_path_leaves_a_group_and_comes_back() -> None:
    """The add reads the first product and what the second makes of it, so it cannot be part of the first."""
    s = Sketch()
    a = s.matmul(s.param(8, 16), s.weight(16, 16))
    b = s.op("add", a, s.matmul(s.op("relu", a), s.weight(16, 16)))
    first, *_, last = groups(after(s.graph(b), TO_GROUPS))
    assert first.results[0] == a
    assert members(last) == ["matmul", "add"]
    checked(s.graph(b))


def test_reshapes_of_memory_are_aliases() -> None:
    s = Sketch()
    x = s.op("relu", s.param(6, 4))
    y = s.reshape(x, 3, 8)
    module = after(s.graph(x, y), TO_GROUPS)
    assert [op.name for op in module.graph.ops] == ["group", "reshape"]
    assert storage_roots(module.graph)[y.name] == x.name
    checked(s.graph(x, y))


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_of_a_tensor_is_no_alias_of_it(first: int) -> None:
    """The first rows lie where the tensor does, but a reshape of it they are not."""
    s = Sketch()
    x = s.op("relu", s.param(6, 4))
    part = s.slice(x, (first, 0), (3, 4))
    assert kinds(after(s.graph(x, part), TO_GROUPS)) == ["map", "copy"]
    checked(s.graph(x, part, s.reshape(part, 12)))


def test_a_scatter_into_a_part_of_a_tensor() -> None:
    s = Sketch()
    x = s.op("relu", s.param(6, 4))
    part = s.slice(x, (0, 0), (3, 4))
    y = s.op("scatter_nd", part, s.const(np.array([[2], [0]])), s.param(2, 4), attrs=ScatterNdAttrs())
    checked(s.graph(x, y))


def test_views_of_views_are_copied_once() -> None:
    """Neither reshape is a strided view of what it reads: the transpose and its reshape end in memory."""
    s = Sketch()
    x = s.param(2, 3, 4, 5)
    y = s.reshape(s.transpose(x, 0, 2, 1, 3), 8, 15)
    z = s.reshape(s.transpose(y, 1, 0), 5, 24)
    checked(s.graph(z, s.op("neg", z)))
    part = s.slice(y, (0, 2), (8, 7))
    checked(s.graph(part, s.reshape(part, 4, 14)))
    assert kinds(after(s.graph(part), TO_GROUPS)) == ["copy", "copy"]


def test_pads_are_read_in_place_or_copied() -> None:
    s = Sketch()
    x = s.pad(s.param(4, 6), (1, 0), (0, 2), 3.0)
    assert kinds(after(s.graph(s.op("neg", x)), TO_GROUPS)) == ["map"]
    s = Sketch()  # a broadcast pad has no descriptor
    x = s.pad(s.param(6), (1,), (2,), 3.0)
    graph = s.graph(s.op("add", x, s.param(4, 9)))
    assert [members(group) for group in groups(after(graph, TO_GROUPS))] == [["pad"], ["add"]]
    checked(graph)


def test_sums_of_repeated_elements() -> None:
    """The group of a sum reads the repeated operand from memory, where it has all its elements."""
    s = Sketch()
    x = s.expand(s.param(4, 1, 7), 4, 9, 7)
    graph = s.graph(s.reduce("sum", x, 1), s.reduce("sum", s.op("abs", x), 1, 2), s.reduce("max", x, 1))
    checked(graph)
    checked(graph, LARGE)


def test_a_copy_that_widens() -> None:
    s = Sketch()
    x = s.param(5, 40, dtype=DType.F16)
    checked(s.graph(s.op("cast", s.transpose(x, 1, 0), attrs=CastAttrs(DType.F32))))


@pytest.mark.parametrize("what", ["parameter", "constant", "alias", "twice", "empty parameter"])
def test_results_have_memory_of_their_own(what: str) -> None:
    s = Sketch()
    x, w = s.param(4, 3), s.weight(2, 3)
    y = s.op("relu", x)
    extra = {"parameter": x, "constant": w, "alias": s.reshape(x, 12), "twice": y}.get(what) or s.param(0, 3)
    module = checked(s.graph(y, extra))
    assert module.program is not None
    fixed = {p.name for p in module.graph.params} | set(module.graph.constants())
    assert not fixed & {tensor for _, tensor in module.program.outputs}


def test_a_scatter_updates_a_copy_in_place() -> None:
    """What it updates is read elsewhere too, and keeps its values."""
    s = Sketch()
    x = s.op("relu", s.param(6, 4))
    y = s.op("scatter_nd", x, s.const(np.array([[5], [0]])), s.weight(2, 4), attrs=ScatterNdAttrs())
    module = checked(s.graph(s.op("neg", x), y, x))
    (scatter,) = (op for op in groups(module) if isinstance(op.attrs, GroupAttrs) and op.attrs.kind == "scatter")
    position = updated_operand(scatter)
    assert position is not None
    roots = storage_roots(module.graph)
    assert roots[scatter.results[0].name] == roots[scatter.operands[position].name] != roots[x.name]
