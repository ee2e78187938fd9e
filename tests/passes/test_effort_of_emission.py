"""Balancing and emission do work in proportion to a kernel's statements, and a mask that layers share is examined
once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.passes.balance_units import BalanceUnits
from ppuc.compiler.passes.emit.rings import ring_uses, sites_of
from ppuc.compiler.passes.emit.streams import Emit
from ppuc.compiler.passes.memory.allocate import Allocate
from ppuc.compiler.passes.normalise import match_attention
from ppuc.ir.affine import axis, var
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Buffer, Kernel, Load, Loop, Param, Store, View
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.types import DType, Space
from tests.passes.graph_passes import run
from tests.passes.late_passes import LARGE, TO_KERNELS, after
from tests.support.effort import Name, assert_linear
from tests.support.pass_graphs import Sketch, module_of


def tiles_in_one_loop(number: int) -> Kernel:
    """A kernel that moves `number` tiles, each through a buffer of its own, in every iteration of one loop."""
    view = View.contiguous((4 * LARGE.cu, 4))
    params = (Param("x", "x", DType.F32, view, Space.HBM), Param("y", "y", DType.F32, view, Space.HBM, written=True))
    buffers = tuple(Buffer(Name(f"t{i}"), DType.F32, (4, 4), Space.L1, 2) for i in range(number))
    where = (var("i") + axis(0), axis(1))
    moves = [(Load(b.name, "x", where), Store("y", b.name, where)) for b in buffers]
    loop = Loop("i", 4 * LARGE.cu, 4, tuple(stmt for pair in moves for stmt in pair), over="c")
    return Kernel("k", (("c", LARGE.cu),), params, buffers, (loop,))


def deriving_rings(number: int) -> Callable[[], object]:
    kernel = tiles_in_one_loop(number)
    return lambda: ring_uses(kernel, sites_of(kernel))


def balancing(number: int) -> Callable[[], object]:
    module = replace(module_of(Graph("g", (), (), ())), kernels=(tiles_in_one_loop(number),))
    return lambda: BalanceUnits().run(module, LARGE)


@pytest.mark.parametrize("work", [deriving_rings, balancing], ids=lambda work: work.__name__)
def test_work_on_a_kernel_is_linear_in_its_statements(work: Callable[[int], Callable[[], object]]) -> None:
    work(4)()
    assert_linear(work, 100)


def emitting(blocks: int) -> Callable[[], object]:
    """Emission of a chain of residual sums, each of which overwrites the sum before: one tensor has all as writers."""
    s = Sketch()
    x = s.param(16, 32)
    for _ in range(blocks):
        x = s.op("add", s.matmul(s.op("tanh", x), s.weight(32, 32)), x)
    module = after(s.graph(x), (*TO_KERNELS, Allocate()), LARGE)
    return lambda: Emit().run(module, LARGE)


def test_emission_is_linear_in_the_writers_of_a_tensor() -> None:
    emitting(2)()
    assert_linear(emitting, 120)


def test_a_mask_that_layers_share_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[str] = []

    def examined(mask: np.ndarray) -> str:
        shapes.append(examine(mask))
        return shapes[-1]

    examine = match_attention._shape_of_mask
    monkeypatch.setattr(match_attention, "_shape_of_mask", examined)
    s = Sketch()
    x, mask = s.param(1, 2, 6, 8), s.const(np.where(np.tri(6, dtype=bool), 0, -np.inf).astype(np.float32))
    for _ in range(5):
        x = s.op("attention", x, x, x, mask, attrs=AttentionAttrs(1.0))
    matched = run(module_of(s.graph(x)), match_attention.MatchAttention())
    assert [op.attrs.causal for op in matched.graph.ops] == [True] * 5  # type: ignore[attr-defined]
    assert shapes == ["causal"]
