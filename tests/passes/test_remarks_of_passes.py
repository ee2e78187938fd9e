"""Remarks of each pass on its decisions: entity, nodes, decision, and the costs that it was based on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.passes.grouping import weight_layout as turn
from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.ops.normalization import SoftmaxAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.types import DType
from ppuc.targets.cost import hbm_bytes_per_clk, l2_bytes_per_clk
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.support.pass_graphs import Sketch, module_of

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")


def said_by(
    name: str, graph: Graph, target: Target = LARGE, precision: str = "bf16"
) -> tuple[list[Remark], Module, Module]:
    """What the first pass `name` of the pipeline says, and the module before and after it."""
    at = [p.name for p in PIPELINE].index(name)
    module = replace(module_of(graph, precision=precision), target=target.name, target_hash=target.hash)
    before = Run(target, PIPELINE[:at]).run(module)
    run = Run(target, PIPELINE[at : at + 1], listening=True)
    after = run.run(before)
    (record,) = run.records
    assert {r.pass_name for r in record.remarks} <= {name}
    return list(record.remarks), before, after


def one(remarks: list[Remark], decision: str) -> Remark:
    (found,) = [r for r in remarks if r.decision == decision]
    return found


def groups(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if op.name == "group"]


def price(op: Op, target: Target = LARGE) -> float:
    return round(KernelCache(target).price(op), 1)


def node(value_or_op: object, graph: Graph) -> str:
    """The ONNX node of what computes a value of the sketch."""
    return next(op.loc[0] for op in graph.ops if op.results[0] == value_or_op)


class TestFuse:
    def test_edges_and_groups(self) -> None:
        s = Sketch()
        p = s.matmul(s.param(40, 32), s.weight(32, 32))
        r = s.op("relu", p)
        q = s.matmul(r, s.weight(32, 32))
        y = s.op("add", q, r)
        graph = s.graph(y)
        remarks, _, after = said_by("fuse", graph, TINY, "model")
        nodes = {v: node(v, graph) for v in (p, r, q, y)}
        first, second = [m for m in remarks if m.decision == "grouped"]
        assert (first.entity, first.nodes) == (groups(after)[0].results[0].name, (nodes[p], nodes[r]))
        assert (second.nodes, second.details["kind"]) == ((nodes[q], nodes[y]), "matmul")
        assert sum(m.details.get("kernels", 0) for m in remarks) == len(groups(after)) == 2  # type: ignore[misc]
        fused = [m.nodes for m in remarks if m.decision == "fused"]
        assert fused == [(nodes[p], nodes[r]), (nodes[q], nodes[y])]
        apart = {m.nodes: m for m in remarks if m.decision == "not-fused"}
        assert set(apart) == {(nodes[r], nodes[q]), (nodes[r], nodes[y])}
        refused = apart[nodes[r], nodes[y]]
        assert "the kernel would depend on itself" in refused.reason
        assert refused.details["bytes"] == 40 * 32 * 4
        # read here, and written once for the two that read it
        assert refused.lost_clk == pytest.approx(1.5 * 40 * 32 * 4 / l2_bytes_per_clk(TINY), abs=0.1)

    def test_a_pad_that_is_read_through_has_no_edge_of_its_own(self) -> None:
        s = Sketch()
        a = s.op("exp", s.param(1, 3, 6, 6))
        y = s.op("add", s.op("exp", s.pad(a, (0, 0, 1, 1), (0, 0, 1, 1))), s.number(1.0))
        graph = s.graph(y, s.op("neg", s.op("exp", a)))
        remarks, _, _ = said_by("fuse", graph, TINY, "model")
        assert not [r for r in remarks if "pad" in (r.details.get("from_op"), r.details.get("to_op"))]

    def test_a_copy_is_said_to_be_one(self) -> None:
        s = Sketch()
        x = s.param(64, 96)
        remarks, _, after = said_by("fuse", s.graph(s.transpose(x, 1, 0)), TINY, "model")
        copied = one(remarks, "copied")
        assert copied.entity == groups(after)[0].results[0].name
        assert copied.reason == "'transpose' is an output of the model"
        assert copied.details["kernels"] == 1


class TestStorageTypes:
    def test_what_is_stored_narrow_and_what_is_not(self) -> None:
        s = Sketch()
        x, mask = s.param(64, 64), s.op("exp", s.param(64, 64))
        p = s.op("relu", s.matmul(x, s.weight(64, 64)))
        y = s.op("add", s.matmul(p, s.weight(64, 64)), s.matmul(x, mask))
        graph = s.graph(
            y, s.op("neg", s.op("reduce", s.op("abs", s.param(8, 8)), attrs=ReduceAttrs("sum", (1,), True)))
        )
        remarks, _, after = said_by("storage-types", graph)
        narrow = [r for r in remarks if r.decision == "stored-narrow" and node(p, graph) in r.nodes]
        assert [r.details for r in narrow] == [{"bytes": 64 * 64 * 2, "saved_bytes": 64 * 64 * 2}]
        wide = [r for r in remarks if r.decision == "stored-wide" and node(y, graph) in r.nodes]
        assert "model input or output" in wide[0].reason
        cast = one(remarks, "cast-kernel")
        assert cast.entity in {op.results[0].name for op in groups(after)}
        assert cast.details == {"bytes": 64 * 64 * 2, "kernels": 1}


class TestHorizontalFusion:
    def test_products_of_one_operand(self) -> None:
        s = Sketch()
        x = s.op("tanh", s.param(64, 256))
        a, b = (s.matmul(x, s.weight(256, 64, scale=0.1)) for _ in range(2))
        graph = s.graph(s.matmul(a, b, transpose_b=True))
        remarks, before, after = said_by("horizontal-fusion", graph)
        merged = one(remarks, "merged")
        products = [op for op in groups(before) if op.loc[0] in (node(a, graph), node(b, graph))]
        (joint,) = [op for op in groups(after) if op.loc == merged.nodes]
        assert merged.entity == joint.results[0].name
        assert merged.nodes == (node(a, graph), node(b, graph))
        assert len(products) == 2
        assert merged.before_clk == pytest.approx(sum(map(price, products)), abs=0.2)
        assert merged.after_clk == price(joint)
        assert merged.details == {"kernels": -1}

    def test_slower_products_stay_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = KernelCache.price

        def wide_is_dear(self: KernelCache, group: Op, body: Graph | None = None) -> float:
            return original(self, group, body) * (100 if group.results[0].type.dims[-1] == 128 else 1)

        monkeypatch.setattr(KernelCache, "price", wide_is_dear)
        s = Sketch()
        x = s.op("tanh", s.param(64, 256))
        a, b = (s.matmul(x, s.weight(256, 64, scale=0.1)) for _ in range(2))
        graph = s.graph(s.matmul(a, b, transpose_b=True))
        remarks, _, _ = said_by("horizontal-fusion", graph)
        refused = one(remarks, "not-merged")
        assert refused.nodes == (node(a, graph), node(b, graph))
        assert refused.reason == "one product of all columns is slower"
        assert refused.before_clk is not None
        assert refused.after_clk is not None
        assert refused.after_clk > refused.before_clk


class TestSplitK:
    def test_a_long_sum(self) -> None:
        s = Sketch()
        y = s.matmul(s.op("tanh", s.param(7, 4096)), s.weight(4096, 40, scale=1 / 64))
        graph = s.graph(s.op("relu", y))
        remarks, before, after = said_by("split-k", graph)
        cut, (_, whole) = one(remarks, "split-k"), groups(before)
        assert (cut.entity, cut.nodes) == (whole.results[0].name, whole.loc)
        assert node(y, graph) in cut.nodes
        first, second = groups(after)[1:]
        assert cut.details == {"parts": first.results[0].type.dims[0], "kernels": 1}
        assert cut.before_clk is not None
        assert cut.after_clk is not None
        assert price(first) + price(second) < cut.after_clk < cut.before_clk == price(whole)

    def test_refusals_say_why(self) -> None:
        s = Sketch()
        x = s.op("tanh", s.param(1, 64, 8, 8))
        y = s.op("tanh", s.conv(x, 64, 3, groups=2))
        short = s.matmul(s.op("tanh", s.param(7, 40)), s.weight(40, 40))
        remarks, _, _ = said_by("split-k", s.graph(y, s.op("relu", short)), precision="model")
        reasons = {r.nodes[0]: r.reason for r in remarks if r.decision == "not-split-k"}
        graph = s.graph(y, short)
        assert len(reasons) == 2
        assert "grouped" in reasons[next(op.loc[0] for op in graph.ops if op.name == "conv")]

    def test_keys(self) -> None:
        s = Sketch()
        q, (k, v) = s.op("tanh", s.param(1, 4, 1, 64)), (s.op("tanh", s.param(1, 4, 8192, 64)) for _ in range(2))
        graph = s.graph(s.op("neg", s.op("attention", q, k, v, attrs=AttentionAttrs(0.125))))
        remarks, _, _ = said_by("split-k", graph)
        cut = one(remarks, "split-keys")
        assert cut.before_clk is not None
        assert cut.after_clk is not None
        assert cut.after_clk < cut.before_clk
        assert cut.nodes[0] == next(op.loc[0] for op in graph.ops if op.name == "attention")


class TestBatchSplit:
    SMALL = override(override(TINY, "l2.bytes=49152"), "hbm.gbs=1")

    def products(self, batch: int) -> Graph:
        s = Sketch()
        hidden = s.op("exp", s.matmul(s.param(batch, 64, 16), s.weight(16, 64, scale=0.1)))
        return s.graph(s.matmul(hidden, s.weight(64, 16, scale=0.1)))

    def test_tensors_larger_than_l2(self) -> None:
        remarks, before, after = said_by("batch-split", self.products(8), self.SMALL)
        split, last = one(remarks, "batch-split"), groups(before)[-1]
        assert split.entity == last.results[0].name
        assert set(split.nodes) >= set(last.loc)
        assert split.details["kernels"] == len(groups(after)) - len(groups(before))
        assert split.before_clk is not None
        assert split.after_clk is not None
        assert split.after_clk < split.before_clk

    def test_tensors_that_fit_are_no_question(self) -> None:
        assert said_by("batch-split", self.products(1), self.SMALL)[0] == []


class TestSplitN:
    SMALL = override(TINY, "l2.bytes=524288")

    def test_large_weights(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(512, 64), s.weight(64, 4096, scale=0.1))
        remarks, before, after = said_by("split-n", s.graph(s.op("relu", y)), self.SMALL)
        cut, whole = one(remarks, "split-n"), groups(before)[-1]
        assert (cut.entity, cut.nodes) == (whole.results[0].name, whole.loc)
        assert cut.details["parts"] == len(groups(after)) - len(groups(before)) + 1
        assert cut.before_clk is not None
        assert cut.before_clk >= price(whole, self.SMALL)

    def test_weights_that_fit_are_no_question(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(512, 64), s.weight(64, 512, scale=0.1))
        assert said_by("split-n", s.graph(y), self.SMALL)[0] == []


class TestInPlaceConcat:
    def test_parts_in_place_and_copied(self) -> None:
        s = Sketch()
        x, z = s.param(40, 32), s.param(40, 16)
        a = s.op("relu", s.matmul(x, s.weight(32, 32)))
        whole = s.concat(a, z, axis=1)
        graph = s.graph(whole)
        remarks, before, after = said_by("in-place-concat", graph, TINY, "model")
        concat = node(whole, graph)
        joined = one(remarks, "in-place")
        assert (joined.entity, joined.nodes) == (whole.name, (concat,))
        assert joined.details == {"parts": 2, "kernels": len(groups(after)) - len(groups(before))}
        assert one(remarks, "part-in-place").entity == a.name
        copied = one(remarks, "part-copied")
        assert (copied.entity, copied.reason) == (z.name, "it is an input of the model")
        assert copied.details["bytes"] == 40 * 16 * 4

    def test_many_copies_are_one_kernel(self) -> None:
        s = Sketch()
        whole = s.concat(*(s.param(40, 16) for _ in range(3)), axis=1)
        remarks, _, _ = said_by("in-place-concat", s.graph(whole), TINY, "model")
        refused = one(remarks, "not-in-place")
        assert (refused.entity, refused.reason) == (whole.name, "3 parts need a copy, which one kernel makes faster")
        assert refused.lost_clk == pytest.approx(2 * 40 * 48 * 4 / l2_bytes_per_clk(TINY), abs=0.1)


class TestCascade:
    def test_a_window_and_its_product(self) -> None:
        s = Sketch()
        x = s.op("relu", s.conv(s.param(2, 3, 56, 56), 96, 3))
        d = s.op("relu", s.conv(x, 96, 3, groups=96))
        y = s.op("relu", s.conv(d, 24, 1))
        graph = s.graph(s.op("neg", y))
        remarks, before, after = said_by("cascade", graph)
        (remark,) = remarks
        window, product = groups(before)[-2:]
        assert remark.entity == window.results[0].name
        assert remark.nodes == (*window.loc, *product.loc)
        assert remark.details["writers"] == len(window.loc)
        assert remark.before_clk is not None
        assert remark.before_clk > price(window) + price(product)  # and the handover
        made = [op for op in groups(after) if op.attrs.kind == "cascade"]  # type: ignore[attr-defined]
        assert remark.decision == ("cascaded" if made else "not-cascaded")
        assert remark.details.get("kernels", 0) == -len(made)
        if made:
            assert remark.after_clk == price(made[0])


class TestWeightLayout:
    TARGET = override(LARGE, "l2.bytes=8388608")

    @pytest.mark.parametrize(("columns", "decision"), [(1024, "stored-by-columns"), (65536, "stored-by-rows")])
    def test_weights_of_few_rows(self, columns: int, decision: str) -> None:
        s = Sketch()
        w = s.weight(2048, columns, scale=1 / 32)
        y = s.matmul(s.op("tanh", s.param(1, 2048)), w)
        graph = s.graph(s.op("tanh", y))
        remarks, _, after = said_by("weight-layout", graph, self.TARGET)
        remark = one(remarks, decision)
        assert node(y, graph) in remark.nodes
        assert remark.details["bytes"] == 2048 * columns * 2
        assert remark.before_clk is not None
        assert remark.after_clk is not None
        faster = remark.after_clk <= turn.GAIN * remark.before_clk
        assert faster == (decision == "stored-by-columns") == any("turned" in name for name in after.graph.constants())


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
