"""Weights that few rows read, stored by columns if device memory delivers them faster that way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.grouping import weight_layout as turn
from ppuc.compiler.passes.grouping.weight_layout import WeightLayout
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import prepare
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.targets.description import load_target, override
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = override(load_target("zhenwu-m890"), "l2.bytes=8388608")
"""64 units whose l2 does not wait for what they read once."""
UPTO_TURN = PIPELINE[: [p.name for p in PIPELINE].index("weight-layout") + 1]


def product(rows: int, columns: int, depth: int = 1024, shared: bool = False) -> Graph:
    s = Sketch()
    w = s.weight(depth, columns, scale=1 / 32)
    x = s.op("tanh", s.param(rows, depth))
    y = s.op("tanh", s.matmul(x, w))
    return s.graph(s.op("add", y, s.op("tanh", s.matmul(s.op("relu", x), w))) if shared else y)


def stored(graph: Graph, weights_only: bool) -> Module:
    """With weights in 8 bits, and operands if not `weights_only`."""
    module = replace(module_of(graph, precision="fp8"), target=LARGE.name, target_hash=LARGE.hash)
    ready = prepare(module, CompileOptions(LARGE, "fp8"))
    plan = LayerPlan("e4m3", () if weights_only else (0.01,), weights_only=weights_only)
    return ready.quantized(Plan({layer.name: plan for layer in ready.layers}))


def weights_of(module: Module) -> list[tuple[Op, Value]]:
    """Each product's matmul and the type of the constant that it reads."""
    constants = module.graph.constants()
    groups = [op for op in module.graph.ops if getattr(op.attrs, "kind", "") == "matmul"]
    found = []
    for op in groups:
        assert op.body is not None
        (matmul,) = [o for o in op.body.ops if o.name == "matmul"]
        (weights,) = [v for v in op.operands if v.name in constants and v.type.bytes >= 1 << 20]
        found.append((matmul, weights))
    return found


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("columns", [1024, 1032])
def test_turned_products_compute_the_same(columns: int, weights_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "GAIN", 100.0)
    graph = product(1, columns)
    module = stored(graph, weights_only)
    before = Run(LARGE, UPTO_TURN[:-1]).run(module)
    ((plain, given),) = weights_of(before)
    assert (plain.attrs.transpose_b, given.type.dims) == (False, (1024, columns))  # type: ignore[attr-defined]
    done = compiled(module, LARGE, {p.name: data(p.type, 3) for p in graph.params})
    ((matmul, turned),) = weights_of(done)
    assert (matmul.attrs.transpose_b, turned.type.dims) == (True, (columns, 1024))  # type: ignore[attr-defined]
    old, new = (m.graph.constants()[v.name].array() for m, v in ((before, given), (done, turned)))
    np.testing.assert_array_equal(new.view(np.uint8).T, old.view(np.uint8))


def test_narrow_columns_are_turned() -> None:
    """64 bytes of a row for each unit are less than a burst: else fewer units would share the columns."""
    before = Run(LARGE, UPTO_TURN[:-1]).run(stored(product(1, 4096, 4096), False))
    ((matmul, _),) = weights_of(WeightLayout().run(before, LARGE))
    assert matmul.attrs.transpose_b  # type: ignore[attr-defined]


def test_what_many_rows_or_two_products_read_stays() -> None:
    for graph in (product(64, 4096), product(1, 4096, shared=True)):
        before = Run(LARGE, UPTO_TURN[:-1]).run(stored(graph, False))
        assert WeightLayout().run(before, LARGE) is before


def test_rows_that_are_long_enough_stay() -> None:
    before = Run(LARGE, UPTO_TURN[:-1]).run(stored(product(1, 16384), False))
    assert WeightLayout().run(before, LARGE) is before
