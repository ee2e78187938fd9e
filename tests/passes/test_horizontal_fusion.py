"""Products of one operand that become one product, and those that stay apart.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.grouping.horizontal_fusion import HorizontalFusion
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")
UPTO_MERGE = PIPELINE[: [p.name for p in PIPELINE].index("horizontal-fusion") + 1]


def after(graph: Graph, passes: tuple[Pass, ...] = UPTO_MERGE, precision: str = "bf16") -> Module:
    module = replace(module_of(graph, precision=precision), target=LARGE.name, target_hash=LARGE.hash)
    return Run(LARGE, passes).run(module)


def products(module: Module) -> list[Op]:
    return [op for op in module.graph.ops if getattr(op.attrs, "kind", "") == "matmul"]


def heads(s: Sketch, x: Value, count: int) -> Value:
    batch, tokens, width = x.type.dims
    return s.transpose(s.reshape(x, batch, tokens, count, width // count), 0, 2, 1, 3)


def self_attention(tokens: int = 40, width: int = 64, groups: int = 4, bias: bool = True) -> Graph:
    """softmax(q k^T) v of projections of one operand, 4 query heads and `groups` key heads."""
    s = Sketch()
    x = s.op("tanh", s.param(2, tokens, width))

    def projected(columns: int) -> Value:
        y = s.matmul(x, s.weight(width, columns, scale=width**-0.5))
        return s.op("add", y, s.weight(columns)) if bias else y

    q = heads(s, projected(width), 4)
    k, v = (heads(s, projected(width * groups // 4), groups) for _ in range(2))
    if groups < 4:
        shape = (2, groups, 4 // groups, tokens, width // 4)
        k, v = (
            s.reshape(s.expand(s.reshape(z, 2, groups, 1, tokens, width // 4), *shape), 2, 4, tokens, width // 4)
            for z in (k, v)
        )
    weights = s.softmax(s.op("mul", s.matmul(q, k, transpose_b=True), s.number(0.25)))
    y = s.reshape(s.transpose(s.matmul(weights, v), 0, 2, 1, 3), 2, tokens, width)
    return s.graph(s.matmul(y, s.weight(width, width, scale=width**-0.5)))


@pytest.mark.parametrize("target", [LARGE, TINY], ids=["m890", "tiny"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_projections_of_attention_compute_the_same(target: Target, precision: str, groups: int, bias: bool) -> None:
    graph = self_attention(tokens=19, groups=groups, bias=bias)
    compiled(module_of(graph, precision=precision), target, {p.name: data(p.type, 7) for p in graph.params})


def test_query_key_and_value_projections_merge() -> None:
    first, last = products(after(self_attention()))
    assert first.results[0].type.dims == (2, 40, 3 * 64)
    assert last.results[0].type.dims == (2, 40, 64)


def test_joint_weights_and_biases_are_side_by_side() -> None:
    graph = self_attention()
    module = after(graph, precision="model")
    first = products(module)[0]
    arrays = {op.results[0].name: op.attrs.value.array() for op in module.graph.ops if isinstance(op.attrs, ConstAttrs)}
    given = [op.attrs.value.array() for op in graph.ops if isinstance(op.attrs, ConstAttrs)]
    joint_weights, joint_bias = (arrays[v.name] for v in first.operands[1:])
    np.testing.assert_array_equal(joint_weights, np.concatenate([a for a in given if a.ndim == 2][:3], 1))
    np.testing.assert_array_equal(joint_bias, np.concatenate([a for a in given if a.ndim == 1], 0))


def test_a_product_with_an_epilogue_of_its_own_stays_apart() -> None:
    s = Sketch()
    x = s.op("tanh", s.param(40, 64))
    a, b = (s.matmul(x, s.weight(64, 64)) for _ in range(2))
    y = s.op("mul", s.op("sigmoid", a), b)
    module = after(s.graph(s.matmul(y, s.weight(64, 8))))
    assert [op.results[0].type.dims for op in products(module)] == [(40, 64), (40, 64), (40, 8)]


def test_results_of_the_model_stay_apart() -> None:
    s = Sketch()
    x = s.op("tanh", s.param(40, 64))
    module = after(s.graph(*(s.matmul(x, s.weight(64, 64)) for _ in range(2))), precision="model")
    assert len(products(module)) == 2


def test_products_of_merged_products_follow_them() -> None:
    s = Sketch()
    x = s.op("tanh", s.param(40, 64))
    first = [s.matmul(x, s.weight(64, 64)) for _ in range(2)]
    second = [s.matmul(y, s.weight(64, 64)) for y in first for _ in range(2)]
    y = s.op("tanh", s.reduce("sum", s.concat(*(s.reshape(z, 1, 40, 64) for z in second), axis=0), 0))
    graph = s.graph(y)
    assert [op.results[0].type.elements for op in products(after(graph))] == [40 * 128] + [40 * 64] * 4
    compiled(module_of(graph, precision="bf16"), LARGE, {p.name: data(p.type, 7) for p in graph.params})


def test_the_pass_leaves_a_module_without_candidates_alone() -> None:
    s = Sketch()
    before = after(s.graph(s.matmul(s.param(40, 64), s.weight(64, 64))), UPTO_MERGE[:-1])
    assert HorizontalFusion().run(before, LARGE) is before


def test_weights_of_two_formats_stay_apart() -> None:
    s = Sketch()
    x = s.param(8, 64, dtype=DType.U8)
    rng = np.random.default_rng(0)
    weights = [s.const(rng.integers(0, 60, (64, 64)).astype(dtype)) for dtype in (np.int8, np.uint8)]
    sums = [s.op("matmul", x, w, attrs=MatmulAttrs(out=DType.I32)) for w in weights]
    graph = s.graph(s.op("add", *(s.softmax(s.op("cast", y, attrs=CastAttrs(DType.F32))) for y in sums)))
    assert len(products(after(graph))) == 2


def test_a_bias_that_adds_a_dimension_does_not_merge_wrongly() -> None:
    s = Sketch()
    x = s.op("tanh", s.param(40, 64))
    y = [s.softmax(s.op("add", s.matmul(x, s.weight(64, 64)), s.weight(1, 1, 64))) for _ in range(2)]
    graph = s.graph(s.op("add", *y))
    compiled(module_of(graph, precision="bf16"), LARGE, {p.name: data(p.type, i) for i, p in enumerate(graph.params)})
