"""Remarks of the passes that cut the graph into kernels and regroup them: entity, nodes, decision, and the costs that
it was based on."""

from __future__ import annotations

import pytest

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.passes.grouping import weight_layout as turn
from ppuc.ir.graph import Graph, Op
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.targets.cost import l2_bytes_per_clk
from ppuc.targets.description import override
from tests.support.pass_graphs import Sketch
from tests.support.remarks import LARGE, TINY, groups, node, one, price, said_by


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
