"""Remarks of the other passes on their decisions: entity, nodes, decision, and the costs that it was based on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppuc.ir.graph import Graph
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.ops.normalization import SoftmaxAttrs
from ppuc.ir.types import DType
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import override
from tests.support.pass_graphs import Sketch
from tests.support.remarks import LARGE, TINY, groups, node, one, price, said_by


class TestMemorySpaceAssignment:
    def test_what_has_no_room(self) -> None:
        s = Sketch()
        x = s.op("tanh", s.param(256, 256))
        big = s.op("exp", s.matmul(x, s.weight(256, 256, scale=0.1)))
        y = s.op("add", s.op("exp", s.matmul(big, s.weight(256, 256, scale=0.1))), big)
        target = override(TINY, "l2.bytes=393216")  # 1.5 tensors
        remarks, _, after = said_by(
            "memory-space-assignment", s.graph(s.op("tanh", s.matmul(y, s.weight(256, 8)))), target, "model"
        )
        spaces = {r.name: str(r.space) for op in after.graph.ops for r in op.results}
        there = [r for r in remarks if r.decision == "in-l2"]
        kept = [r for r in remarks if r.decision == "kept-in-hbm"]
        assert there
        assert kept
        assert {spaces[r.entity] for r in there} == {"l2"}
        assert {spaces[r.entity] for r in kept} == {"hbm"}
        staged = {r.entity for r in remarks if r.decision == "staged"}
        assert staged == {op.operands[0].name for op in after.graph.ops if op.name == "stage"}
        for remark in kept:
            assert remark.reason.startswith("no room ")
            assert "of 393,216 bytes" in remark.reason
            saved = float(remark.details["saved_bytes"])
            assert remark.lost_clk == pytest.approx(saved / hbm_bytes_per_clk(target), abs=0.1)

    def test_weights_that_few_rows_read_stay(self) -> None:
        s = Sketch()
        w = s.weight(256, 512)
        y = s.matmul(s.op("tanh", s.param(1, 256)), w)
        remarks, _, _ = said_by("memory-space-assignment", s.graph(s.op("tanh", y)), TINY, "model")
        refused = [r for r in remarks if r.decision == "not-staged" and r.details["bytes"] == 256 * 512 * 4]
        assert [r.reason for r in refused] in (
            ["few rows read it: each byte is read about once"],
            ["it is larger than l2"],
        )


class TestRules:
    """Rewrite rules: one remark each, with the number of its applications and the first nodes."""

    def test_canonicalise(self) -> None:
        s = Sketch()
        x = s.param(4, 6, 8)
        values = [s.transpose(s.transpose(s.op("exp", x), 1, 0, 2), 2, 1, 0) for _ in range(2)]
        graph = s.graph(s.op("add", values[0], s.op("neg", s.op("neg", values[1]))))
        remarks, _, _ = said_by("canonicalise", graph)
        merged = one(remarks, "merge-transposes")
        transposes = [op for op in graph.ops if op.name == "transpose"]
        assert merged.details == {"count": 1}  # the other is equal to it by then
        assert merged.nodes == (*transposes[1].loc, *transposes[3].loc)
        assert one(remarks, "involution").nodes == graph.ops[-2].loc

    def test_fold(self) -> None:
        s = Sketch()
        w, x = s.op("exp", s.weight(3, 4)), s.param(3, 4)
        graph = s.graph(s.op("add", s.op("mul", s.op("abs", x), s.op("abs", x)), s.op("neg", w)))
        remarks, _, _ = said_by("fold", graph)
        assert one(remarks, "merge-equal").details == {"count": 1}
        folded = one(remarks, "fold-constants")
        assert folded.details == {"count": 2}
        assert folded.nodes == (node(w, graph), graph.ops[-2].loc[0])

    def test_decompose_names_what_it_expands(self) -> None:
        s = Sketch()
        y = s.softmax(s.op("exp", s.param(4, 8)))
        graph = s.graph(y)
        remarks, _, _ = said_by("decompose", graph)
        assert one(remarks, "expand-softmax").nodes == (node(y, graph),)

    def test_moves(self) -> None:
        s = Sketch()
        y = s.pad(s.op("exp", s.param(4, 8)), (0, -1), (0, 0))
        graph = s.graph(s.op("neg", y))
        remarks, _, _ = said_by("lower-data-movement", graph)
        assert {r.decision for r in remarks} <= {"pad-that-crops", "crop-as-slice", "fold-constants"}
        assert all(r.nodes == (node(y, graph),) for r in remarks)

    def test_legalise_and_prepare(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(8, 16, dtype=DType.F16), s.const(np.ones((16, 8), np.float16)))
        graph = s.graph(s.reduce("sum", s.op("exp", y), 1, keepdims=False))
        remarks, _, _ = said_by("legalise", graph)
        changed = one(remarks, "product-in-format")
        assert (changed.nodes, changed.details) == ((node(y, graph),), {"count": 1})
        remarks, _, _ = said_by("legalise-for-kernels", graph)
        assert one(remarks, "reduce-keeping-axes").nodes == graph.ops[-1].loc


class TestRecognise:
    def attention(self, s: Sketch, *, axis: int = 3, read_twice: bool = False, between: str = "") -> Graph:
        q, k, v = (s.param(1, 2, 8, 16) for _ in range(3))
        scores = s.matmul(q, k, transpose_b=True)
        if between:
            scores = s.op(between, scores)
        weights = s.op("softmax", scores, attrs=SoftmaxAttrs(axis))
        y = s.matmul(weights, v)
        return s.graph(y, *([s.op("exp", weights)] if read_twice else []))

    def test_what_was_found(self) -> None:
        graph = self.attention(Sketch())
        remarks, _, after = said_by("match-attention", graph)
        found = one(remarks, "attention")
        assert found.entity == graph.results[0].name
        assert set(found.nodes) == {op.loc[0] for op in graph.ops}
        assert found.details == {"heads": 2, "batch": 1}
        assert [op.name for op in after.graph.ops] == ["attention"]

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"axis": 2}, "the softmax does not run along the last dimension"),
            ({"read_twice": True}, "the weights have other readers"),
            ({"between": "tanh"}, "'tanh' lies between the product and the softmax"),
        ],
    )
    def test_near_misses(self, options: dict[str, Any], why: str) -> None:
        graph = self.attention(Sketch(), **options)
        remarks, _, _ = said_by("match-attention", graph)
        missed = one(remarks, "not-attention")
        assert (missed.kind, missed.entity, missed.reason) == ("missed", graph.results[0].name, why)
        assert missed.nodes == (node(graph.results[0], graph),)

    def test_other_products_are_no_near_misses(self) -> None:
        s = Sketch()
        y = s.matmul(s.softmax(s.param(8, 8)), s.weight(8, 8))
        assert said_by("match-attention", s.graph(s.matmul(y, s.weight(8, 8))))[0] == []


class TestLayout:
    def test_transposes_that_remain(self) -> None:
        s = Sketch()
        y = s.conv(s.param(1, 3, 8, 8), 8, 3)
        graph = s.graph(s.op("relu", y))
        remarks, _, after = said_by("layout", graph, precision="model")
        assert one(remarks, "channels-last").nodes == (node(y, graph),)
        transposes = [op for op in after.graph.ops if op.name == "transpose" and "c" not in op.operands[0].name]
        remain = [r for r in remarks if r.decision == "transposed"]
        assert {r.entity for r in remain} <= {op.results[0].name for op in after.graph.ops if op.name == "transpose"}
        assert len(remain) == 2
        assert transposes
        assert remain[0].reason.startswith(
            "an input of the model has it in another dimension order than required by 'conv'"
        )
        assert remain[1].reason.startswith("'conv' stores it in another dimension order than required by 'relu'")
        assert remain[0].details["bytes"] == 3 * 64 * 4


class TestTile:
    def test_price_tiles_and_bound(self) -> None:
        s = Sketch()
        big = s.matmul(s.op("tanh", s.param(2048, 2048)), s.weight(2048, 2048, scale=0.02))
        graph = s.graph(s.op("neg", s.op("exp", s.matmul(big, s.weight(2048, 16)))))
        remarks, before, after = said_by("tile", graph)
        kernels = {k.name: k for k in after.kernels}
        assert [r.entity for r in remarks] == list(kernels)
        for remark, op in zip(remarks, groups(before), strict=True):
            assert remark.decision == "tiled"
            assert remark.nodes == op.loc
            assert remark.after_clk == price(op)
            assert remark.details["units"] == kernels[remark.entity].units
            queues = {name: float(remark.details[f"{name}_clk"]) for name in ("load", "tensor", "vector", "store")}
            assert remark.details["bound"] in (max(queues, key=queues.__getitem__), "latency")
        product = next(r for r in remarks if r.nodes[0] == node(big, graph))
        assert product.details["bound"] == "tensor"
        # every multiplier busy: 2048^3 products on all units
        least = 2048**3 / LARGE.peak_macs_per_clk(DType.BF16)
        assert least <= float(product.details["tensor_clk"]) < 1.3 * least
        assert "k 2048/" in str(product.details["tiles"])

    def test_kinds_without_a_cost_model_have_no_price(self) -> None:
        s = Sketch()
        y = s.op("gather", s.param(100, 64), s.const(np.array([3, 1, 4, 1, 5, 9, 2])), attrs=GatherAttrs(0))
        remarks, _, _ = said_by("tile", s.graph(s.op("neg", s.op("exp", y))), TINY, "model")
        assert remarks[0].after_clk is None


class TestAllocate:
    def test_memories_and_overwritten_operands(self) -> None:
        s = Sketch()
        x = s.op("relu", s.matmul(s.param(64, 64), s.weight(64, 64)))
        y = s.op("add", s.matmul(s.op("relu", s.matmul(x, s.weight(64, 64))), s.weight(64, 64)), x)
        graph = s.graph(s.matmul(y, s.weight(64, 8)))
        remarks, _, after = said_by("allocate", graph, TINY, "model")
        for remark in (r for r in remarks if r.decision == "allocated"):
            held = [p for p in after.placement if str(p.space) == remark.entity]
            assert remark.details["tensors"] == len(held)
            assert remark.details["extent_bytes"] == max(p.address + p.bytes for p in held)
            assert remark.details["alive_bytes"] <= remark.details["extent_bytes"]  # type: ignore[operator]
        over = one(remarks, "overwrites")
        assert node(y, graph) in over.nodes
        at = {p.name: p.address for p in after.placement if str(p.space) == "l2"}
        assert at[over.entity] == at[str(over.details["operand"])]


class TestEmit:
    def test_streams(self) -> None:
        s = Sketch()
        graph = s.graph(s.op("neg", s.matmul(s.param(64, 64), s.weight(64, 64))))
        remarks, _, after = said_by("emit", graph, TINY, "model")
        (segment,) = after.program.segments  # type: ignore[union-attr]
        assert one(remarks, "streams").details == {
            "emitted": len(segment.kernels),
            "rings": sum(len(k.rings) for k in segment.kernels),
            "copies": len(segment.copies),
            "counters": sum(len(g.expect) for g in segment.counters),
        }
