"""Running graph passes on small graphs and comparing values before and after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.normalise.canonicalise import Canonicalise
from ppuc.compiler.passes.normalise.decompose import Decompose
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.passes.normalise.layout import Layout
from ppuc.compiler.passes.normalise.legalise import Legalise
from ppuc.compiler.passes.normalise.match_attention import MatchAttention
from ppuc.ir.graph import Graph
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from tests.support.pass_graphs import module_of

TARGET = load_target("ppu-tiny")
FOLD, CANONICALISE, RECOGNISE, DECOMPOSE, LEGALISE, LAYOUT = (
    Fold(),
    Canonicalise(),
    MatchAttention(),
    Decompose(),
    Legalise(),
    Layout(),
)
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
            pattern = OPS[op.name].pattern(op)
            assert pattern is not None
            lengths.append(math.prod(d.size for d in pattern.dims if d.reduced))
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
