"""Passes from prepare to emit: what they make of graphs, and that modules compute the same before and after each.

`compiled` re-executes the module after every pass and simulates the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.lowering.kinds import lower_group
from ppuc.compiler.lowering.memory import assign, live_ranges, storage_roots, updated_operand
from ppuc.compiler.lowering.ranges import Range
from ppuc.compiler.passes.allocate import Allocate
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.emit import Emit
from ppuc.compiler.passes.emit_rings import RingOwners, claiming_units, ring_uses, sites_of
from ppuc.compiler.passes.fuse import Fuse
from ppuc.compiler.passes.place import Place
from ppuc.compiler.passes.precision import Precision
from ppuc.compiler.passes.prepare import Prepare, most_joined
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.errors import CapacityError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Kernel, Load
from ppuc.ir.module import Module
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import GatherAttrs, ScatterNdAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.program import Instr, Program, StreamNode
from ppuc.ir.types import DType, Space
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.group_kernels import data
from tests.pass_graphs import BLOCKS, Sketch, module_of
from tests.whole_pipeline import compiled

TINY = load_target("ppu-tiny")
LARGE = load_target("zhenwu-m890")
TO_GROUPS: tuple[Pass, ...] = (Prepare(), Fuse())
TO_KERNELS: tuple[Pass, ...] = (*TO_GROUPS, Precision(), Place(), Tile())
TO_PROGRAM: tuple[Pass, ...] = (*TO_KERNELS, Allocate(), Emit())


def after(graph: Graph, passes: Sequence[Pass], target: Target = TINY, **options: str) -> Module:
    """The verified module after `passes`, none before them."""
    module = replace(module_of(graph, **options), target=target.name, target_hash=target.hash)
    return Run(target, passes).run(module)


def inputs_of(graph: Graph) -> dict[str, np.ndarray]:
    return {p.name: data(p.type, i) for i, p in enumerate(graph.params)}


def checked(graph: Graph, target: Target = TINY, passes: Sequence[Pass] | None = None, **options: str) -> Module:
    """The module after the pipeline (or `passes`), re-executed after every pass and simulated."""
    return compiled(module_of(graph, **options), target, inputs_of(graph), PIPELINE if passes is None else passes)


def groups(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if op.name == "group"]


def kinds(module: Module) -> list[str]:
    return [op.attrs.kind for op in groups(module) if isinstance(op.attrs, GroupAttrs)]


def members(group: Op) -> list[str]:
    assert group.body is not None
    return [op.name for op in group.body.ops if op.name != "const"]


# -- prepare ---------------------------------------------------------------------------------------------------------


def prepared(graph: Graph) -> list[Op]:
    return [op for op in after(graph, (Prepare(),)).graph.ops if op.name != "const"]


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
    module = after(s.graph(y), (Prepare(), Fuse(epilogues=False)))
    assert kinds(module) == ["matmul", "map", "map"]
    checked(s.graph(y), passes=(Prepare(), Fuse(epilogues=False), *TO_PROGRAM[2:]))


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


# -- precision -------------------------------------------------------------------------------------------------------


def test_narrow_formats_start_at_contractions() -> None:
    """Operands and what descends from a product are narrow; positions and results of the model are not."""
    s = Sketch()
    x, places = s.param(8, 16), s.param(8, 12)
    y = s.op("relu", s.matmul(x, s.weight(16, 12)))
    z = s.op("add", s.matmul(y, s.weight(12, 12)), s.op("floor", places))
    module = after(s.graph(z, s.op("floor", places)), (*TO_GROUPS, Precision()), precision="bf16")
    types = {r.name: r.type.dtype for op in module.graph.ops for r in op.results}
    assert types[y.name] is DType.BF16
    assert types[z.name] is DType.F32
    assert all(op.attrs.value.type.dtype is DType.BF16 for op in module.graph.ops if op.name == "const")  # type: ignore[attr-defined]
    for precision in ("bf16", "fp16"):
        checked(s.graph(z, s.op("floor", places)), precision=precision)


@pytest.mark.parametrize("precision", ["model", "fp32"])
def test_wide_precisions_change_nothing(precision: str) -> None:
    s = Sketch()
    module = after(s.graph(s.matmul(s.param(8, 16), s.weight(16, 12))), TO_GROUPS, precision=precision)
    assert Precision().run(module, TINY) is module


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("block", ["small_cnn", "mobilenet_block", "transformer_block"])
def test_blocks_in_narrow_formats(block: str, precision: str) -> None:
    checked(BLOCKS[block](), precision=precision)


# -- place and tile --------------------------------------------------------------------------------------------------


def test_weights_that_many_tiles_read_are_staged_before_they_are_needed() -> None:
    s = Sketch()
    y = s.matmul(s.param(200, 16), s.weight(16, 32))
    z = s.matmul(s.op("relu", y), s.weight(32, 8))
    module = after(s.graph(z), (*TO_GROUPS, Place()))
    names = [op.name for op in module.graph.ops]
    assert names.count("stage") == 3  # both weights, and the input
    assert max(i for i, name in enumerate(names) if name == "stage") < names.index("group")
    assert all(op.results[0].space is Space.L2 for op in module.graph.ops if op.name == "stage")
    plain = after(s.graph(z), (*TO_GROUPS, Place(stage=False)))
    assert "stage" not in [op.name for op in plain.graph.ops]
    checked(s.graph(z), passes=(*TO_GROUPS, Place(stage=False), *TO_PROGRAM[4:]))


def test_what_does_not_fit_l2_goes_to_hbm() -> None:
    s = Sketch()
    x = s.op("relu", s.param(80, 400))
    y = s.op("add", s.matmul(x, s.weight(400, 400, scale=0.05)), x)
    module = checked(s.graph(s.op("neg", y)))
    spaces = {r.name: r.space for op in module.graph.ops for r in op.results}
    assert spaces[x.name] is Space.HBM


def test_ranges_alive_together_are_disjoint() -> None:
    rng = np.random.default_rng(0)
    ranges = [
        Range(f"r{i}", 256 * int(rng.integers(1, 9)), int(a), int(a + rng.integers(0, 9)))
        for i, a in enumerate(rng.integers(0, 40, 80))
    ]
    at, failed = assign(ranges, 1 << 20)
    assert not failed
    for i, a in enumerate(ranges):
        for b in ranges[:i]:
            if a.start <= b.end and b.start <= a.end:
                assert at[a.name] + a.bytes <= at[b.name] or at[b.name] + b.bytes <= at[a.name]


def test_live_ranges_follow_memory_not_names() -> None:
    s = Sketch()
    x = s.op("relu", s.param(6, 4))
    y = s.op("neg", s.reshape(x, 24))
    graph = after(
        s.graph(s.op("exp", s.matmul(s.reshape(y, 6, 4), s.weight(4, 4)))), (Prepare(), Fuse(epilogues=False))
    )
    ranges = live_ranges(graph.graph, storage_roots(graph.graph))
    step = {op.results[0].name: i for i, op in enumerate(graph.graph.ops)}
    assert ranges[x.name] == (step[x.name], step[y.name])


def test_equal_groups_have_one_kernel_up_to_names() -> None:
    """Reuse gives what lowering the group itself would have built."""
    s = Sketch()
    x = s.param(33, 16)
    for _ in range(3):
        x = s.op("relu", s.op("add", s.matmul(x, s.weight(16, 16)), s.weight(16)))
    module = after(s.graph(x), (*TO_GROUPS, Tile()))
    for op, kernel in zip(groups(module), module.kernels, strict=True):
        assert op.body is not None
        tensors = {i.name: o.name for i, o in zip(op.body.params, op.operands, strict=True)}
        tensors |= {i.name: o.name for i, o in zip(op.body.results, op.results, strict=True)}
        own, vectors = lower_group("matmul", kernel.name, op.body, tensors, op.loc, TINY).finish()
        assert own == kernel
        assert set(vectors) <= set(module.vectors)
    assert len({v.name for v in module.vectors}) == len(module.vectors) == 3


def test_a_group_that_no_tile_fits_is_named() -> None:
    s = Sketch()
    y = s.matmul(s.param(64, 64), s.weight(64, 64))
    cramped = override(TINY, "l1.bytes=128")
    with pytest.raises(
        CapacityError, match=r"node node_1: no tiling fits ppu-tiny[\s\S]*no tile of the matmul fits l1"
    ):
        after(s.graph(y), TO_KERNELS, cramped)


def test_a_model_that_hbm_does_not_hold_is_refused() -> None:
    s = Sketch()
    y = s.matmul(s.param(4, 300), s.weight(300, 300))
    with pytest.raises(CapacityError, match="does not fit"):
        after(s.graph(y), TO_KERNELS, override(TINY, "hbm.bytes=100000"))


# -- allocate and emit -----------------------------------------------------------------------------------------------


def two_layers() -> Graph:
    s = Sketch()
    h = s.op("relu", s.op("add", s.matmul(s.param(70, 20), s.weight(20, 33)), s.weight(33)))
    return s.graph(s.matmul(h, s.weight(33, 7)))


def program_of(module: Module) -> Program:
    assert module.program is not None
    return module.program


def test_kernels_take_l1_from_alternate_ends() -> None:
    module = checked(two_layers())
    first, second = program_of(module).segments[0].kernels
    assert min(r.base for r in first.rings if r.space is Space.L1) == 0
    assert max(r.base + r.slot_bytes * r.depth for r in second.rings if r.space is Space.L1) == TINY.l1.bytes
    rings = [(r.base, r.base + r.slot_bytes * r.depth) for r in first.rings if r.space is Space.L1]
    assert all(a[1] <= b[0] for a, b in zip(sorted(rings), sorted(rings)[1:], strict=False))


def test_a_reader_waits_for_the_blocks_it_touches() -> None:
    module = checked(two_layers())
    segment = program_of(module).segments[0]
    (hidden,) = (g for g in segment.counters if g.tensor == module.graph.ops[-1].operands[0].name and g.kind == "full")
    assert len(hidden.expect) > 1
    second = segment.kernels[1]
    waits = [
        (instr.stmt.src, wait.group, wait.touched)
        for _, body in second.streams
        for instr in flat(body)
        if isinstance(instr.stmt, Load)
        for wait in instr.waits
    ]
    assert ("relu", hidden.name, True) in waits


def flat(body: Sequence[StreamNode]) -> list[Instr]:
    """Instructions of a stream, loops opened."""
    found: list[Instr] = []
    for node in body:
        found += [node] if isinstance(node, Instr) else flat(node.body)
    return found


def idle_units_kernel() -> Kernel:
    """A concat of a long and a short operand: units that the short one gives nothing never claim its ring."""
    s = Sketch()
    module = after(s.graph(s.concat(s.param(4000), s.param(40), axis=0)), TO_KERNELS, LARGE)
    return module.kernels[0]


def test_units_without_an_iteration_claim_nothing() -> None:
    kernel = idle_units_kernel()
    sites = sites_of(kernel)
    units = claiming_units(kernel, sites, ring_uses(kernel, sites)[0])
    assert units["t"] == frozenset(range(kernel.units))
    assert units["t.1"] < units["t"]


def test_rings_come_after_earlier_holders_on_units_that_did_not_claim_in_between() -> None:
    owners = RingOwners()
    assert owners.take(Space.L1, 0, 100, "a", frozenset(range(8))) == ()
    assert owners.take(Space.L1, 0, 100, "b", frozenset(range(2))) == ("a",)
    assert owners.take(Space.L1, 50, 100, "c", frozenset(range(8))) == ("a", "b")
    assert owners.take(Space.L1, 60, 10, "d", frozenset(range(8))) == ("c",)
    assert owners.take(Space.L1, 0, 50, "e", frozenset(range(8))) == ("a", "b")
    assert owners.take(Space.L1, 40, 20, "f", frozenset(range(8))) == ("c", "e")
    assert owners.take(Space.ACC, 0, 100, "g", frozenset(range(8))) == ()


def test_kernels_hold_their_locations_to_the_last_instruction() -> None:
    module = checked(two_layers())
    assert [k.loc for k in program_of(module).segments[0].kernels] == [k.loc for k in module.kernels]
    assert all(k.loc for k in module.kernels)
