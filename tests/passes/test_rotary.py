"""Rotary embeddings: the halves exchanged by a view, in one kernel with the norm before it.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.passes.rewriter import to_fixpoint
from ppuc.compiler.passes.rules.rotary import ROTARY_RULES
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops.view import SliceAttrs
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import APART, compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")


def rms_norm(s: Sketch, x: Value) -> Value:
    root = s.op("rsqrt", s.op("add", s.mean(s.op("mul", x, x), x.type.rank - 1), s.number(1e-6)))
    return s.op("mul", s.op("mul", x, root), s.weight(x.type.dims[-1]))


def rotated(s: Sketch, x: Value, swapped: bool = False) -> Value:
    """concat(-x[h:], x[:h]); when `swapped` the sign is on the other half, which is another function."""
    *lead, width = x.type.dims
    parts = [s.slice(x, [*(0 for _ in lead), at], [*lead, width // 2]) for at in (0, width // 2)]
    low, high = (parts[0], s.op("neg", parts[1])) if not swapped else (s.op("neg", parts[0]), parts[1])
    return s.concat(high, low, axis=len(lead))


def embedded(
    normed: bool = True, order: int = 0, heads: int = 3, tokens: int = 5, width: int = 16, *, first: bool = False
) -> Graph:
    """A rotary embedding of a product's heads; `order` permutes the operands of its sum and products. The norm comes
    `first`, before heads and tokens change places, or after."""
    s = Sketch()
    y = s.matmul(s.param(2, tokens, 24), s.weight(24, heads * width, scale=0.2))
    x = s.reshape(y, 2, tokens, heads, width)
    x = rms_norm(s, x) if normed and first else x
    x = s.transpose(x, 0, 2, 1, 3)
    x = rms_norm(s, x) if normed and not first else x
    cos, sin = s.param(tokens, width), s.param(1, 1, tokens, width)
    straight = s.op("mul", *((x, cos) if order & 1 else (cos, x)))
    turn = rotated(s, x)
    crossed = s.op("mul", *((turn, sin) if order & 2 else (sin, turn)))
    return s.graph(s.op("add", *((straight, crossed) if order & 4 else (crossed, straight))))


def groups(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if op.name == "group"]


@pytest.mark.parametrize("target", [LARGE, TINY], ids=["m890", "tiny"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("normed", [True, False], ids=["norm", "plain"])
def test_embedding_and_norm_are_one_kernel(target: Target, precision: str, normed: bool) -> None:
    graph = embedded(normed)
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    kinds = [op.attrs.kind for op in groups(compiled(module_of(graph, precision=precision), target, feeds, APART))]  # type: ignore[attr-defined]
    assert kinds[-2:] == ["matmul", "map"]
    assert "concat" not in kinds


@pytest.mark.parametrize("target", [LARGE, TINY], ids=["m890", "tiny"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_norm_before_the_heads_move_is_in_the_kernel(target: Target, precision: str) -> None:
    graph = embedded(first=True)
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    kinds = [op.attrs.kind for op in groups(compiled(module_of(graph, precision=precision), target, feeds, APART))]  # type: ignore[attr-defined]
    assert kinds[-2:] == ["matmul", "map"]


@pytest.mark.parametrize("order", range(8))
@pytest.mark.parametrize("normed", [True, False], ids=["norm", "plain"])
def test_values_are_the_same_in_any_order_of_operands(order: int, normed: bool) -> None:
    graph = embedded(normed, order)
    after = to_fixpoint(graph, ROTARY_RULES)
    assert all(op.name != "concat" for op in after.ops)
    assert sum(isinstance(op.attrs, SliceAttrs) for op in after.ops) == (2 if normed else 1)
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    want, got = (next(iter(run_graph(g, feeds)[r.name] for r in g.results)) for g in (graph, after))
    np.testing.assert_allclose(got, want, rtol=16 * 2**-24, atol=16 * 2**-24)


def test_another_sign_or_half_is_left_alone() -> None:
    s = Sketch()
    x = s.param(4, 16)
    y = s.op("add", s.op("mul", x, s.param(4, 16)), s.op("mul", rotated(s, x, swapped=True), s.param(4, 16)))
    graph = s.graph(y)
    assert to_fixpoint(graph, ROTARY_RULES) is graph
    s = Sketch()
    x, other = s.param(4, 16), s.param(4, 16)
    y = s.op("add", s.op("mul", other, s.param(4, 16)), s.op("mul", rotated(s, x), s.param(4, 16)))
    graph = s.graph(y)
    assert to_fixpoint(graph, ROTARY_RULES) is graph
