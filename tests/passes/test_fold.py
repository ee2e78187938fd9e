"""The pass `fold`: constants evaluated eagerly, constants evaluated lazily, and constants that are merged."""

from __future__ import annotations

import numpy as np

from ppuc.compiler.passes.rules.constants import Derived
from tests.passes.graph_passes import CANONICALISE, FOLD, count, rewritten, run
from tests.support.pass_graphs import Sketch, module_of


class TestFold:
    def test_small_results_are_computed_at_once(self) -> None:
        s = Sketch()
        x, w = s.param(2, 3), s.weight(3, 2)
        after = rewritten(s.graph(s.op("mul", x, s.transpose(w, 1, 0))), FOLD)
        assert count(after) == {"mul": 1}
        assert not isinstance(after.constants()[after.ops[-1].operands[1].name], Derived)

    def test_large_results_are_computed_when_needed(self) -> None:
        s = Sketch()
        x, w = s.param(300, 200), s.weight(200, 300)
        graph = s.graph(s.op("mul", x, s.transpose(s.op("neg", w), 1, 0)))
        after = run(module_of(graph), FOLD).graph
        derived = after.constants()[after.ops[-1].operands[1].name]
        assert isinstance(derived, Derived)
        again = run(module_of(graph), FOLD).graph.constants()[after.ops[-1].operands[1].name]
        assert derived.key == again.key
        assert derived == again
        assert derived is not again
        np.testing.assert_array_equal(derived.array(), -graph.constants()[w.name].array().T)

    def test_keys_of_large_results_tell_recipes_apart(self) -> None:
        s = Sketch()
        w = s.weight(200, 300)
        s.param(1)
        graph = s.graph(s.op("neg", w), s.op("abs", w))
        keys = {r.key for r in run(module_of(graph), FOLD).graph.constants().values()}
        assert len(keys) == 2

    def test_growth_is_left_to_the_program(self) -> None:
        s = Sketch()
        x = s.param(1 << 16)
        after = rewritten(s.graph(s.op("add", x, s.expand(s.weight(1), 1 << 16))), FOLD)
        assert count(after) == {"add": 1, "expand": 1}

    def test_weights_that_a_file_leaves_out_have_their_full_size(self) -> None:
        s = Sketch()
        x = s.param(3, 300)
        graph = s.graph(s.matmul(x, s.expand(s.number(0.5), 400, 300), transpose_b=True))
        after = rewritten(graph, CANONICALISE)
        assert count(after) == {"matmul": 1}
        (weights,) = after.constants().values()
        assert weights.type.dims == (300, 400)
        assert (weights.array() == 0.5).all()

    def test_equal_constants_and_ops_are_merged(self) -> None:
        s = Sketch()
        x = s.param(300, 300)
        big = s.weight(300, 300)
        twin = s.const(s.b.ops[0].attrs.value.array().copy())  # type: ignore[attr-defined]
        a, b = s.op("mul", x, big), s.op("mul", x, twin)
        after = rewritten(s.graph(s.op("add", a, b)), FOLD)
        assert count(after) == {"mul": 1, "add": 1}
        assert len(after.constants()) == 1
        assert set(after.ops[-2].loc) == {"node_2", "node_3"}

    def test_constants_that_agree_in_part_stay_apart(self) -> None:
        s = Sketch()
        first = np.zeros((300, 300), np.float32)
        second = first.copy()
        second[7, 11] = 1
        after = rewritten(s.graph(s.op("add", s.op("mul", s.param(300, 300), s.const(first)), s.const(second))), FOLD)
        assert len(after.constants()) == 2
