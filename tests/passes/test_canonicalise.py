"""The pass `canonicalise`: one canonical form per computation."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from ppuc.ir.graph import Graph, Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.types import DType
from tests.passes.graph_passes import CANONICALISE, count, rewritten, run
from tests.support.pass_graphs import Sketch, module_of


def const_of(graph: Graph, value: Value) -> np.ndarray:
    return graph.constants()[value.name].array()


class TestCanonicalise:
    def test_views_that_change_nothing_vanish(self) -> None:
        s = Sketch()
        x = s.param(2, 3, 4)
        y = s.transpose(s.transpose(s.reshape(s.reshape(x, 6, 4), 2, 3, 4), 1, 0, 2), 1, 0, 2)
        y = s.expand(s.slice(s.pad(y, (0, 0, 0), (0, 0, 0)), (0, 0, 0), (2, 3, 4)), 2, 3, 4)
        assert count(rewritten(s.graph(s.op("neg", s.concat(y, axis=0))), CANONICALISE)) == {"neg": 1}

    def test_a_transpose_of_ones_is_a_reshape(self) -> None:
        s = Sketch()
        after = rewritten(s.graph(s.transpose(s.param(2, 1, 3, 1), 1, 0, 3, 2)), CANONICALISE)
        assert count(after) == {"reshape": 1}

    def test_slices_of_one_tensor_join(self) -> None:
        s = Sketch()
        x = s.param(7, 2)
        parts = (s.slice(x, (1, 0), (2, 2)), s.slice(x, (3, 0), (2, 2)), s.slice(x, (5, 0), (2, 2)))
        after = rewritten(s.graph(s.concat(*parts, axis=0)), CANONICALISE)
        assert count(after) == {"slice": 1}
        assert after.results[0].type.dims == (6, 2)

    @pytest.mark.parametrize(
        ("indices", "expected"),
        [
            (np.array([2, 3, 4]), {"slice": 1}),
            (np.array([-1, -3]), {"slice": 1}),
            (np.array(3), {"slice": 1, "reshape": 1}),
            (np.array([[1, 2], [3, 4]]), {"slice": 1, "reshape": 1}),
            (np.array([0, 1, 3]), {"gather": 1}),
            (np.array([1, 1]), {"gather": 1}),
        ],
    )
    def test_regular_gathers_are_slices(self, indices: np.ndarray, expected: dict[str, int]) -> None:
        s = Sketch()
        y = s.op("gather", s.param(2, 5, 3), s.const(indices), attrs=GatherAttrs(1))
        assert count(rewritten(s.graph(y), CANONICALISE)) == expected

    def test_neutral_operands_vanish_unless_they_broadcast(self) -> None:
        s = Sketch()
        x = s.param(3)
        y = s.op("div", s.op("mul", s.op("add", x, s.number(0)), s.number(1)), s.const(np.ones(3, np.float32)))
        wider = s.op("add", y, s.const(np.zeros((2, 3), np.float32)))
        assert count(rewritten(s.graph(wider), CANONICALISE)) == {"add": 1}

    def test_constant_factors_merge_and_constant_terms_do_not(self) -> None:
        s = Sketch()
        x = s.param(4)
        y = s.op("mul", s.op("mul", x, s.number(0.3)), s.weight(4))
        y = s.op("add", s.op("add", y, s.number(1e8)), s.number(-1e8))
        assert count(rewritten(s.graph(y), CANONICALISE, exact=False)) == {"mul": 1, "add": 2}

    def test_factors_whose_product_overflows_stay_apart(self) -> None:
        s = Sketch()
        y = s.op("mul", s.op("mul", s.param(4), s.number(1e30)), s.number(1e30))
        assert count(run(module_of(s.graph(y)), CANONICALISE).graph) == {"mul": 2}

    def test_integer_terms_merge(self) -> None:
        s = Sketch()
        y = s.op("add", s.op("add", s.param(4, dtype=DType.I32), s.number(3, DType.I32)), s.number(4, DType.I32))
        after = rewritten(s.graph(y), CANONICALISE)
        assert count(after) == {"add": 1}
        assert const_of(after, after.ops[-1].operands[1]) == 7

    def test_layer_norm_multiplies_by_the_reciprocal_root(self) -> None:
        s = Sketch()
        after = rewritten(s.graph(s.layer_norm(s.param(4, 64))), CANONICALISE, exact=False)
        assert count(after) == {"reduce": 2, "mul": 5, "sub": 1, "add": 2, "rsqrt": 1}

    @pytest.mark.parametrize(("power", "expected"), [(2, {"mul": 1}), (3, {"mul": 2}), (0.5, {"sqrt": 1})])
    def test_known_powers(self, power: float, expected: dict[str, int]) -> None:
        s = Sketch()
        x = s.op("abs", s.param(9))
        after = rewritten(s.graph(s.op("pow", x, s.number(power))), CANONICALISE, exact=False)
        assert count(after) - Counter({"abs": 1}) == expected

    def test_a_cast_and_back_vanishes_only_when_nothing_is_lost(self) -> None:
        s = Sketch()
        x = s.param(5, dtype=DType.F16)
        wide = s.op("cast", s.op("cast", x, attrs=CastAttrs(DType.F32)), attrs=CastAttrs(DType.F16))
        narrow = s.op("cast", s.op("cast", x, attrs=CastAttrs(DType.I8)), attrs=CastAttrs(DType.F16))
        assert count(rewritten(s.graph(s.op("add", wide, narrow)), CANONICALISE)) == {"cast": 2, "add": 1}

    def test_batch_norm_moves_into_the_convolution(self) -> None:
        s = Sketch()
        y = s.op("add", s.conv(s.param(1, 3, 5, 5), 4, 3), s.weight(4, 1, 1))
        after = rewritten(s.graph(s.batch_norm(y)), CANONICALISE, exact=False)
        assert count(after) == {"conv": 1, "add": 1}

    def test_a_shared_convolution_keeps_its_weights(self) -> None:
        s = Sketch()
        y = s.conv(s.param(1, 3, 5, 5), 4, 3)
        after = rewritten(s.graph(s.batch_norm(y), y), CANONICALISE, exact=False)
        assert count(after) == {"conv": 1, "mul": 1, "add": 1}

    @pytest.mark.parametrize(("value", "expected"), [(0.0, {"conv": 1}), (1.0, {"conv": 1, "pad": 1})])
    def test_zero_padding_moves_into_the_convolution(self, value: float, expected: dict[str, int]) -> None:
        s = Sketch()
        y = s.conv(s.pad(s.param(1, 3, 5, 5), (0, 0, 2, 0), (0, 0, 0, 1), value), 4, 3)
        assert count(rewritten(s.graph(y), CANONICALISE, exact=False)) == expected

    def test_pool_takes_padding_with_its_identity_only(self) -> None:
        s = Sketch()
        x = s.param(1, 2, 5, 5)
        low, high = (0, 0, 1, 1), (0, 0, 1, 1)
        best = s.pool("max", s.pad(x, low, high, -math.inf), 3, 2)
        clipped = s.pool("max", s.pad(x, low, high, 0.0), 3, 2)
        assert count(rewritten(s.graph(best, clipped), CANONICALISE)) == {"pool": 2, "pad": 1}

    def test_repeated_constants_become_numbers_when_the_shape_stays(self) -> None:
        s = Sketch()
        x = s.param(3, 1)
        same = s.op("mul", x, s.const(np.full((3, 1), 2.5, np.float32)))
        wider = s.op("mul", x, s.const(np.full((3, 4), 2.5, np.float32)))
        after = rewritten(s.graph(same, wider), CANONICALISE)
        assert sorted(r.type.rank for r in after.constants().values()) == [0, 2]

    def test_an_expand_that_broadcasting_repeats_vanishes(self) -> None:
        s = Sketch()
        x, y = s.param(1, 4), s.param(3, 4)
        needed = s.op("neg", s.expand(x, 3, 4))
        after = rewritten(s.graph(s.op("add", s.expand(x, 3, 4), y), needed), CANONICALISE)
        assert count(after) == {"add": 1, "expand": 1, "neg": 1}

    def test_transposes_of_weights_and_operands_move_into_matmul(self) -> None:
        s = Sketch()
        a, b, w = s.param(3, 4, 5), s.param(3, 6, 5), s.weight(7, 6)
        y = s.matmul(s.matmul(a, s.transpose(b, 0, 2, 1)), w, transpose_b=True)
        after = rewritten(s.graph(y), CANONICALISE, exact=False)
        assert count(after) == {"matmul": 2}
        assert [op.attrs.transpose_b for op in after.ops if op.name == "matmul"] == [True, False]  # type: ignore[attr-defined]
