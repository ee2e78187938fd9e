"""Products on 8-bit operands, or with weights stored in less than they are multiplied in, that become one product.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ppuc.compiler.options import CompileOptions
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared, prepare
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.ir.ops.blocks import UnblockAttrs, in_halves
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from tests.passes.test_horizontal_fusion import UPTO_MERGE, heads, products, self_attention
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import APART, compiled

LARGE = load_target("zhenwu-m890")


def quantized(graph: Graph, plan_of: Callable[[int], LayerPlan], attention: bool = False) -> Module:
    """`graph` with each layer of weights in the format that `plan_of` its number says."""
    ready: Prepared = prepare(module_of(graph, precision="fp8"), CompileOptions(LARGE, "fp8"))
    layers = {n.name: plan_of(i) for i, n in enumerate(n for n in ready.layers if n.weights is not None)}
    if attention:
        layers |= {n.name: LayerPlan(scales=(0.01, 0.01, 0.02)) for n in ready.attentions}
    return ready.quantized(Plan(layers))


PLANS: dict[str, Callable[[int], LayerPlan]] = {
    "static": lambda i: LayerPlan(scales=(0.01,)),
    "dynamic": lambda i: LayerPlan(),
    "int8": lambda i: LayerPlan("int8", (0.01,)),
    "scale a tensor": lambda i: LayerPlan(scales=(0.01,), weight_scale=np.array([0.001 * (i + 1)], np.float32)),
    "stored": lambda i: LayerPlan(weights_only=True),
    "repaired": lambda i: LayerPlan(scales=(0.01,), bias=np.full(64, i + 1, np.float32)),
}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", PLANS)
def test_projections_on_narrow_operands_merge(how: str, bias: bool, attention: bool) -> None:
    graph = self_attention(bias=bias)
    module = quantized(graph, PLANS[how], attention)
    inputs = {p.name: data(p.type, 7) for p in graph.params}
    done = compiled(module, LARGE, inputs, APART)
    assert [op.results[0].type.dims for op in products(done)] == [(2, 40, 3 * 64), (2, 40, 64)]


def test_columns_keep_their_numbers() -> None:
    """Where q, k and v have scales of their own as one number each, those lie beside the joint weights' columns."""
    module = quantized(self_attention(bias=False), PLANS["scale a tensor"], True)
    done = Run(LARGE, UPTO_MERGE).run(module)
    (joint, _) = products(done)
    constants = done.graph.constants()
    vectors = [constants[v.name].array() for v in joint.operands if v.name in constants and v.type.rank == 1]
    assert len(vectors) == 1
    want = [0.001 * (i + 1) * 0.01 / s for i, s in enumerate((0.01, 0.01, 0.02))]
    np.testing.assert_allclose(vectors[0], np.repeat(np.float32(want), 64), rtol=1e-6)


def test_formats_that_differ_stay_apart() -> None:
    module = quantized(self_attention(), lambda i: LayerPlan("int8" if i == 1 else "e4m3", (0.01,)))
    done = Run(LARGE, UPTO_MERGE).run(module)
    assert [op.results[0].type.elements // 80 for op in products(done)] == [2 * 64, 64, 64]


def test_weights_in_blocks_merge() -> None:
    """Codes, scales and zero points side by side; scales are stored as operands are, in bf16."""
    s = Sketch()
    rng = np.random.default_rng(0)
    x = s.op("tanh", s.param(2, 40, 64))

    def projected() -> object:
        operands = [in_halves(rng.integers(0, 16, (64, 64)).astype(np.uint8))]
        operands += [rng.random((4, 64), np.float32) / 64, rng.integers(-8, 8, (4, 64)).astype(np.int8)]
        w = s.op("unblock", *map(s.const, operands), attrs=UnblockAttrs(DType.F32, 16, DType.I8))
        return heads(s, s.matmul(x, w), 4)

    q, k, v = (projected() for _ in range(3))
    y = s.matmul(s.softmax(s.matmul(q, k, transpose_b=True)), v)  # type: ignore[arg-type]
    graph = s.graph(y)
    done = compiled(module_of(graph, precision="bf16"), LARGE, {p.name: data(p.type, 7) for p in graph.params}, APART)
    (joint,) = products(done)
    assert joint.results[0].type.dims == (2, 40, 3 * 64)
    assert {v.type.dtype for v in joint.operands} == {DType.BF16, DType.U8, DType.I8}
