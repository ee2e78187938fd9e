"""Graph passes: values before and after agree, passes are idempotent, each rewrite does what its docstring shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from pass_graphs import (
    BLOCKS,
    Sketch,
    attention_by_hand,
    module_of,
    random_cnn,
    random_views,
    repeat_heads,
)

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.canonicalise import Canonicalise
from ppuc.compiler.passes.decompose import Decompose
from ppuc.compiler.passes.fold import Fold
from ppuc.compiler.passes.graph_constants import Derived
from ppuc.compiler.passes.layout import Layout
from ppuc.compiler.passes.legalise import Legalise
from ppuc.compiler.passes.recognise import Recognise
from ppuc.ir.analysis import use_counts, users
from ppuc.ir.errors import ModelError, UsageError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import load_target

TARGET = load_target("ppu-tiny")
FOLD, CANONICALISE, RECOGNISE, DECOMPOSE, LEGALISE, LAYOUT = (
    Fold(),
    Canonicalise(),
    Recognise(),
    Decompose(),
    Legalise(),
    Layout(),
)
PASSES: tuple[Pass, ...] = (FOLD, CANONICALISE, RECOGNISE, DECOMPOSE, LEGALISE, LAYOUT)
PIPELINE: tuple[Pass, ...] = (
    *(FOLD, CANONICALISE, RECOGNISE, FOLD, CANONICALISE, DECOMPOSE, FOLD, CANONICALISE),
    *(LEGALISE, FOLD, LAYOUT, FOLD, CANONICALISE),
)


def feeds_of(graph: Graph, seed: int = 1, integers: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for param in graph.params:
        array: np.ndarray = rng.standard_normal(param.type.dims)
        if param.type.dtype is DType.BOOL:
            # At least one visible key, so that no row of a mask is empty.
            array = rng.random(param.type.dims) < 0.7
            array[..., 0] = True
        elif integers:
            array = rng.integers(-9, 10, param.type.dims)
        feeds[param.name] = np.asarray(array).astype(param.type.dtype.numpy)
    return feeds


def outputs_of(module: Module, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = run_graph(module.graph, feeds)
    return {name: results[value] for name, value in module.outputs}


def tolerance_of(graph: Graph) -> float:
    """Relative to the largest output: f32 rounding of sums as long as the longest one, once per sum on the way."""
    lengths = [1]
    for op in graph.ops:
        if op.name in ("matmul", "conv", "reduce"):
            indexing = OPS[op.name].indexing
            assert indexing is not None
            dims = indexing(op.attrs, [v.type for v in op.operands]).dims
            lengths.append(math.prod(d.size for d in dims if d.reduced))
    return float(np.finfo(np.float32).eps) * math.sqrt(max(lengths)) * len(lengths) * 4


def assert_same(before: Module, after: Module, tolerance: float = 0.0, integers: bool = False) -> None:
    feeds = feeds_of(before.graph, integers=integers)
    expected, got = outputs_of(before, feeds), outputs_of(after, feeds)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        scale = float(np.max(np.abs(array.astype(np.float64)), initial=1.0))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * scale)


def count(graph: Graph) -> Counter[str]:
    counts = Counter(op.name for op in graph.ops)
    del counts["const"]
    return counts


def run(module: Module, *passes: Pass) -> Module:
    for each in passes:
        module = each.run(module, TARGET)
    return module


def rewritten(graph: Graph, *passes: Pass, exact: bool = True) -> Graph:
    """The graph after `passes`, with its values checked."""
    before = module_of(graph)
    after = run(before, *passes)
    assert_same(before, after, 0.0 if exact else tolerance_of(graph))
    return after.graph


def const_of(graph: Graph, value: Value) -> np.ndarray:
    return graph.constants()[value.name].array()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("precision", ["model", "fp32"])
def test_values_survive_every_pass_of_the_pipeline(block: str, precision: str) -> None:
    module = module_of(BLOCKS[block](), precision=precision)
    tolerance = tolerance_of(module.graph)
    now = module
    for each in PIPELINE:
        after = each.run(now, TARGET)
        assert_same(now, after, tolerance)
        now = after
    assert_same(module, now, tolerance)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("each", PASSES, ids=lambda p: p.name)
def test_a_second_run_returns_the_same_module(block: str, each: Pass) -> None:
    alone = run(module_of(BLOCKS[block]()), each)
    assert each.run(alone, TARGET) is alone
    late = run(module_of(BLOCKS[block]()), *PIPELINE, each)
    assert each.run(late, TARGET) is late


@pytest.mark.parametrize("seed", range(40))
def test_views_are_rewritten_exactly(seed: int) -> None:
    module = module_of(random_views(seed))
    assert_same(module, run(module, CANONICALISE), integers=True)


@pytest.mark.parametrize("seed", range(40))
def test_layout_of_random_networks(seed: int) -> None:
    module = module_of(random_cnn(seed))
    after = run(module, LAYOUT)
    assert_same(module, after, tolerance_of(module.graph))
    assert not [op for op in after.graph.ops if getattr(op.attrs, "layout", "nhwc") == "nchw"]
    assert LAYOUT.run(after, TARGET) is after


def test_rewriting_keeps_every_loc_that_still_computes() -> None:
    graph = BLOCKS["resnet_block"]()
    locs = {name for op in graph.ops if op.name != "const" for name in op.loc}
    after = rewritten(graph, CANONICALISE, exact=False)
    kept = {name for op in after.ops for name in op.loc}
    assert {name for op in graph.ops if op.name in ("conv", "batch_norm", "relu", "matmul") for name in op.loc} <= kept
    assert kept <= locs | {name for op in graph.ops for name in op.loc}


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


class TestLegalise:
    def network(self) -> Graph:
        s = Sketch()
        x = s.param(2, 3, 8, 8)
        y = s.reshape(s.op("relu", s.conv(x, 4, 3)), 2, 4, 64)
        return s.graph(s.matmul(y, s.weight(64, 5)))

    @pytest.mark.parametrize(("precision", "dtype"), [("bf16", DType.BF16), ("fp16", DType.F16)])
    def test_contractions_multiply_the_chosen_format(self, precision: str, dtype: DType) -> None:
        module = module_of(self.network(), precision=precision)
        after = run(module, LEGALISE, FOLD)
        found = [op for op in after.graph.ops if op.name in ("conv", "matmul")]
        assert len(found) == 2
        for op in found:
            assert {v.type.dtype for v in op.operands} == {dtype}
            assert op.result.type.dtype is DType.F32
        assert count(after.graph)["cast"] == 2
        # Two operands rounded once each, and as much again from the layer before.
        assert_same(module, after, 4 * 2.0 ** -(8 if dtype is DType.BF16 else 11))

    @pytest.mark.parametrize("precision", ["model", "fp32"])
    def test_f32_stays(self, precision: str) -> None:
        module = module_of(self.network(), precision=precision)
        assert LEGALISE.run(module, TARGET) is module

    def test_results_keep_the_type_of_the_model(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(2, 4, dtype=DType.F16), s.param(4, 3, dtype=DType.F16))
        module = module_of(s.graph(y), precision="model")
        after = run(module, LEGALISE)
        assert count(after.graph) == {"matmul": 1, "cast": 1}
        assert after.graph.results[0].type.dtype is DType.F16
        assert_same(module, after)

    def test_attention_is_cast_and_its_mask_is_not(self) -> None:
        module = run(module_of(BLOCKS["transformer_block"](), precision="bf16"), CANONICALISE, RECOGNISE, LEGALISE)
        (found,) = [op for op in module.graph.ops if op.name == "attention"]
        assert [v.type.dtype for v in found.operands] == [DType.BF16] * 3 + [DType.F32]

    def test_double_precision_is_refused_by_node(self) -> None:
        s = Sketch()
        y = s.op("exp", s.op("cast", s.param(3), attrs=CastAttrs(DType.F64)))
        with pytest.raises(ModelError) as error:
            LEGALISE.run(module_of(s.graph(y)), TARGET)
        assert str(error.value) == (
            "graph @test: the model computes in double precision, which no engine of the machine has\n"
            "  got: node_0, node_1\n"
            "  expected: f32 or narrower\n"
            "  hint: convert these nodes to float32 before exporting the model"
        )

    def test_an_unknown_precision_names_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match="unknown precision 'fp7'\n  expected: model, fp32, bf16, fp16"):
            LEGALISE.run(module_of(self.network(), precision="fp7"), TARGET)

    def test_a_format_without_hardware_is_refused(self) -> None:
        s = Sketch()
        y = s.matmul(s.param(2, 4, dtype=DType.I32), s.param(4, 3, dtype=DType.I32))
        with pytest.raises(UsageError, match="the tensor engine of ppu-tiny does not multiply i32"):
            LEGALISE.run(module_of(s.graph(y)), TARGET)


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


class TestAnalysis:
    def graph(self) -> Graph:
        s = Sketch()
        x = s.param(3)
        a = s.op("neg", x)
        b = s.op("exp", x)
        return s.graph(s.op("mul", a, a), b)

    def test_users_and_counts(self) -> None:
        graph = self.graph()
        assert [op.name for op in users(graph)["p"]] == ["neg", "exp"]
        assert [op.name for op in users(graph)["neg"]] == ["mul"]
        assert users(graph)["mul"] == ()
        assert use_counts(graph) == {"p": 2, "neg": 2, "mul": 1, "exp": 1}
