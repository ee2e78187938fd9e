"""Graph passes: values before and after agree, passes are idempotent, each rewrite does what its docstring shows."""

from __future__ import annotations

import pytest

from ppuc.compiler.passes.base import Pass
from tests.passes.graph_passes import (
    CANONICALISE,
    DECOMPOSE,
    FOLD,
    LAYOUT,
    LEGALISE,
    PIPELINE,
    RECOGNISE,
    TARGET,
    assert_same,
    rewritten,
    run,
    tolerance_of,
)
from tests.support.pass_graphs import BLOCKS, module_of, random_views

PASSES: tuple[Pass, ...] = (FOLD, CANONICALISE, RECOGNISE, DECOMPOSE, LEGALISE, LAYOUT)


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


def test_rewriting_keeps_every_loc_that_still_computes() -> None:
    graph = BLOCKS["resnet_block"]()
    locs = {name for op in graph.ops if op.name != "const" for name in op.loc}
    after = rewritten(graph, CANONICALISE, exact=False)
    kept = {name for op in after.ops for name in op.loc}
    assert {name for op in graph.ops if op.name in ("conv", "batch_norm", "relu", "matmul") for name in op.loc} <= kept
    assert kept <= locs | {name for op in graph.ops for name in op.loc}
