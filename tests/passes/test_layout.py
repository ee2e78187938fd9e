"""The pass `layout`: channels last, with few transposes."""

from __future__ import annotations

import pytest

from ppuc.ir.graph import Op
from tests.passes.graph_passes import (
    CANONICALISE,
    DECOMPOSE,
    FOLD,
    LAYOUT,
    PIPELINE,
    RECOGNISE,
    TARGET,
    assert_same,
    rewritten,
    run,
    tolerance_of,
)
from tests.support.pass_graphs import BLOCKS, Sketch, module_of, random_cnn


@pytest.mark.parametrize("seed", range(40))
def test_layout_of_random_networks(seed: int) -> None:
    module = module_of(random_cnn(seed))
    after = run(module, LAYOUT)
    assert_same(module, after, tolerance_of(module.graph))
    assert not [op for op in after.graph.ops if getattr(op.attrs, "layout", "nhwc") == "nchw"]
    assert LAYOUT.run(after, TARGET) is after


class TestLayout:
    def transposes(self, block: str) -> list[Op]:
        module = run(module_of(BLOCKS[block]()), *PIPELINE)
        return [op for op in module.graph.ops if op.name == "transpose"]

    @pytest.mark.parametrize("block", ["small_cnn", "resnet_block"])
    def test_only_the_input_is_transposed(self, block: str) -> None:
        (only,) = self.transposes(block)
        assert only.operands[0].name == "p"

    @pytest.mark.parametrize("block", ["mobilenet_block", "channels_first_norm", "group_normed"])
    def test_only_input_and_output_are_transposed(self, block: str) -> None:
        assert len(self.transposes(block)) == 2

    def test_transposes_that_a_reduction_shrinks_move_behind_it(self) -> None:
        s = Sketch()
        y = s.op("relu", s.transpose(s.param(4, 5, 6), 2, 0, 1))
        after = rewritten(s.graph(s.reduce("sum", y, 2, keepdims=False)), LAYOUT, exact=False)
        sizes = [op.result.type.elements for op in after.ops if op.name == "transpose"]
        assert sizes == [24]

    def test_a_graph_without_a_better_layout_is_left_alone(self) -> None:
        module = run(module_of(BLOCKS["transformer_block"]()), CANONICALISE, RECOGNISE, DECOMPOSE, CANONICALISE)
        assert LAYOUT.run(module, TARGET) is module

    def test_one_dimensional_convolutions(self) -> None:
        s = Sketch()
        y = s.op("relu", s.conv(s.param(1, 4, 16), 8, 3))
        rows = s.transpose(s.pool("sum", y, 2, 2), 0, 2, 1)
        after = rewritten(s.graph(s.matmul(rows, s.weight(8, 3))), LAYOUT, FOLD, CANONICALISE, exact=False)
        assert [op.operands[0].name for op in after.ops if op.name in ("transpose", "reshape")] == ["p"]

    def test_inputs_and_outputs_keep_their_types(self) -> None:
        graph = BLOCKS["mobilenet_block"]()
        after = run(module_of(graph), *PIPELINE).graph
        assert after.params == graph.params
        assert [r.type for r in after.results] == [r.type for r in graph.results]
