"""The passes `memory-space-assignment` and `tile`: memories of values, and kernels of groups."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.lowering.kinds import lower_group
from ppuc.compiler.passes.grouping.fuse import Fuse
from ppuc.compiler.passes.memory.live_ranges import assign, live_ranges, storage_roots
from ppuc.compiler.passes.memory.memory_space_assignment import MemorySpaceAssignment
from ppuc.compiler.passes.memory.ranges import Range
from ppuc.compiler.passes.normalise.legalise_for_kernels import LegaliseForKernels
from ppuc.compiler.passes.tile import Tile
from ppuc.ir.errors import CapacityError
from ppuc.ir.types import Space
from ppuc.targets.description import override
from tests.passes.late_passes import TINY, TO_GROUPS, TO_KERNELS, TO_PROGRAM, after, checked, groups
from tests.support.pass_graphs import Sketch


def test_weights_that_many_tiles_read_are_staged_before_they_are_needed() -> None:
    s = Sketch()
    weights = s.weight(16, 32), s.weight(32, 8)
    z = s.matmul(s.op("relu", s.matmul(s.param(200, 16), weights[0])), weights[1])
    module = after(s.graph(z), (*TO_GROUPS, MemorySpaceAssignment()))
    names = [op.name for op in module.graph.ops]
    assert [op.operands[0].name for op in module.graph.ops if op.name == "stage"] == [w.name for w in weights]
    assert max(i for i, name in enumerate(names) if name == "stage") < names.index("group")
    assert all(op.results[0].space is Space.L2 for op in module.graph.ops if op.name == "stage")
    plain = after(s.graph(z), (*TO_GROUPS, MemorySpaceAssignment(stage=False)))
    assert "stage" not in [op.name for op in plain.graph.ops]
    checked(s.graph(z), passes=(*TO_GROUPS, MemorySpaceAssignment(stage=False), *TO_PROGRAM[4:]))


def test_operands_of_the_first_kernel_are_staged_if_that_saves_more_than_the_copies_take() -> None:
    """A product that reads its weights 20 times, and copies that take 0.1 us or 1 ms to start."""
    for start_ns, staged in ((100, 1), (1_000_000, 0)):
        s = Sketch()
        graph = s.graph(s.matmul(s.param(2_560, 64), s.weight(64, 32)))
        machine = override(TINY, f"stage.start_ns={start_ns}")
        module = after(graph, (*TO_GROUPS, MemorySpaceAssignment()), machine)
        assert [op.name for op in module.graph.ops].count("stage") == staged


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
        s.graph(s.op("exp", s.matmul(s.reshape(y, 6, 4), s.weight(4, 4)))),
        (LegaliseForKernels(), Fuse(epilogues=False)),
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
