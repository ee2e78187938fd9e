"""The passes `match-attention` and `decompose`."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.passes.normalise.decompose import Decompose
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.types import DType
from tests.passes.graph_passes import (
    CANONICALISE,
    DECOMPOSE,
    RECOGNISE,
    assert_same,
    count,
    feeds_of,
    outputs_of,
    rewritten,
    run,
    tolerance_of,
)
from tests.support.pass_graphs import BLOCKS, Sketch, attention_by_hand, module_of, repeat_heads


class TestRecognise:
    def attention(self, graph: Graph) -> Op:
        """The one attention op of the rewritten graph, whose values are checked on the way."""
        after = rewritten(graph, CANONICALISE, RECOGNISE, CANONICALISE, exact=False)
        (found,) = [op for op in after.ops if op.name == "attention"]
        assert not [op for op in after.ops if op.name in ("softmax", "matmul")]
        return found

    def operands(self, s: Sketch) -> tuple[Value, Value, Value]:
        return s.param(2, 4, 5, 8), s.param(2, 4, 6, 8), s.param(2, 4, 6, 3)

    def test_plain(self) -> None:
        s = Sketch()
        found = self.attention(s.graph(attention_by_hand(s, *self.operands(s), 0.25)))
        assert found.attrs.scale == 0.25  # type: ignore[attr-defined]
        assert len(found.operands) == 3

    def test_scales_on_both_sides_multiply(self) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        q = s.op("mul", q, s.number(0.5))
        k = s.op("div", s.transpose(k, 0, 1, 3, 2), s.number(4))
        found = self.attention(s.graph(s.matmul(s.softmax(s.op("mul", s.matmul(q, k), s.number(3))), v)))
        assert found.attrs.scale == pytest.approx(0.375)  # type: ignore[attr-defined]

    def test_a_mask_below_a_scale_is_scaled(self) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        scores = s.op("add", s.matmul(q, k, transpose_b=True), s.param(2, 1, 5, 6))
        scores = s.op("add", s.op("mul", scores, s.number(0.5)), s.param(5, 6))
        assert len(self.attention(s.graph(s.matmul(s.softmax(scores), v))).operands) == 4

    @pytest.mark.parametrize("hidden", [-1e9, -np.inf, float(np.finfo(np.float32).min)])
    @pytest.mark.parametrize("when", [True, False])
    def test_a_select_is_a_mask(self, hidden: float, when: bool) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        keep = s.param(2, 1, 1, 6, dtype=DType.BOOL)
        scores, other = s.matmul(q, k, transpose_b=True), s.number(hidden)
        chosen = (keep, scores, other) if when else (s.op("not", keep), other, scores)
        assert len(self.attention(s.graph(s.matmul(s.softmax(s.op("select", *chosen)), v))).operands) == 4

    def test_a_select_between_ordinary_numbers_is_no_mask(self) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        scores = s.op("select", s.param(2, 1, 1, 6, dtype=DType.BOOL), s.matmul(q, k, True), s.number(-5))
        after = rewritten(s.graph(s.matmul(s.softmax(scores), v)), RECOGNISE)
        assert not count(after)["attention"]

    def test_scores_that_are_read_elsewhere_stay(self) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        weights = s.softmax(s.matmul(q, k, transpose_b=True))
        assert not count(rewritten(s.graph(s.matmul(weights, v), weights), RECOGNISE))["attention"]

    def test_heads_merged_with_the_batch(self) -> None:
        s = Sketch()
        q, k, v = (s.reshape(x, 8, *x.type.dims[2:]) for x in self.operands(s))
        scores = s.op("add", s.reshape(s.matmul(q, k, transpose_b=True), 2, 4, 5, 6), s.param(2, 1, 5, 6))
        found = self.attention(s.graph(s.matmul(s.softmax(s.reshape(scores, 8, 5, 6)), v)))
        assert [v.type.dims[:2] for v in found.operands] == [(2, 4), (2, 4), (2, 4), (2, 1)]

    def test_rank_three_is_one_batch(self) -> None:
        s = Sketch()
        found = self.attention(s.graph(attention_by_hand(s, s.param(4, 5, 8), s.param(4, 6, 8), s.param(4, 6, 8), 1.0)))
        assert found.operands[0].type.dims == (1, 4, 5, 8)

    def test_repeated_key_heads_are_grouped(self) -> None:
        after = rewritten(BLOCKS["grouped_attention"](), CANONICALISE, RECOGNISE, CANONICALISE, exact=False)
        (found,) = [op for op in after.ops if op.name == "attention"]
        assert [v.type.dims[1] for v in found.operands] == [6, 2, 2]
        assert found.attrs.causal  # type: ignore[attr-defined]
        assert not count(after)["expand"]

    def test_heads_repeated_by_gather_are_grouped(self) -> None:
        s = Sketch()
        q, k, v = s.param(1, 4, 5, 8), s.param(1, 2, 6, 8), s.param(1, 2, 6, 8)
        indices = s.const(np.array([0, 0, 1, 1]))
        k, v = (s.op("gather", x, indices, attrs=GatherAttrs(1)) for x in (k, v))
        found = self.attention(s.graph(attention_by_hand(s, q, k, v, 1.0)))
        assert [v.type.dims[1] for v in found.operands] == [4, 2, 2]

    def test_a_triangle_with_a_hole_is_a_mask_but_not_causal(self) -> None:
        s = Sketch()
        triangle = np.where(np.tri(5, 6, 1, dtype=bool), 0, -np.inf).astype(np.float32)
        triangle[3, 0] = -np.inf
        found = self.attention(s.graph(attention_by_hand(s, *self.operands(s), 1.0, s.const(triangle))))
        assert len(found.operands) == 4
        assert not found.attrs.causal  # type: ignore[attr-defined]

    def test_rows_without_keys_stay_zero_behind_a_nan_guard(self) -> None:
        s = Sketch()
        q, k, v = self.operands(s)
        mask = np.zeros((2, 1, 5, 6), np.float32)
        mask[1, 0, 2] = -np.inf
        feed = s.param(2, 1, 5, 6)
        weights = s.softmax(s.op("add", s.matmul(q, k, transpose_b=True), feed))
        guarded = s.op("select", s.op("isnan", weights), s.number(0), weights)
        module = module_of(s.graph(s.matmul(guarded, v)))
        after = run(module, CANONICALISE, RECOGNISE)
        assert count(after.graph)["attention"] == 1
        feeds = {**feeds_of(module.graph), feed.name: mask}
        expected, got = outputs_of(module, feeds)["out0"], outputs_of(after, feeds)["out0"]
        assert not got[1, :, 2].any()
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)

    def test_more_key_heads_than_value_heads_is_refused(self) -> None:
        s = Sketch()
        q, k, v = s.param(1, 4, 5, 8), s.param(1, 2, 6, 8), s.param(1, 4, 6, 8)
        graph = s.graph(attention_by_hand(s, q, repeat_heads(s, k, 2), v, 1.0))
        assert not count(rewritten(graph, RECOGNISE))["attention"]


class TestDecompose:
    def test_only_what_is_kept_remains_composite(self) -> None:
        module = run(module_of(BLOCKS["transformer_block"]()), CANONICALISE, RECOGNISE, DECOMPOSE)
        assert {op.name for op in module.graph.ops if OPS[op.name].decompose is not None} == {"attention"}
        module = run(module, Decompose(keep=(), kernels=False))
        assert not [op for op in module.graph.ops if OPS[op.name].decompose is not None]
        assert_same(module_of(BLOCKS["transformer_block"]()), module, tolerance_of(module.graph))
