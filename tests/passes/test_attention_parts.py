"""Attention cut along its keys: parts, and what puts them together.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.ops.attention import AttentionAttrs, AttentionPartsAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.types import DType, TensorType
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")
UPTO_SPLIT = PIPELINE[: [p.name for p in PIPELINE].index("split-k") + 1]


def decoding(
    keys: int, *, heads: int = 4, groups: int = 2, rows: int = 1, mask: bool = False, causal: bool = False
) -> Graph:
    """Attention of `rows` queries over a cache given as inputs, and a projection of its result."""
    s = Sketch()
    q = s.op("tanh", s.param(1, heads, rows, 16))
    k, v = s.param(1, groups, keys, 16), s.param(1, groups, keys, 16)
    operands = [q, k, v, *([s.param(1, 1, rows, keys)] if mask else [])]
    y = s.op("attention", *operands, attrs=AttentionAttrs(0.25, causal))
    y = s.reshape(y, 1, 1, heads * 16) if rows == 1 else y
    return s.graph(s.matmul(y, s.weight(y.type.dims[-1], 24, scale=0.1)))


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return {p.name: data(p.type, i) for i, p in enumerate(graph.params)}


def anchors(module: Module) -> list[str]:
    bodies = [op.body for op in module.graph.ops if op.body is not None]
    return [o.name for b in bodies for o in b.ops if o.name.startswith("attention")]


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize(
    "graph",
    [
        decoding(2048),
        decoding(2049),
        decoding(2047, groups=4),
        decoding(2100, groups=1),
        decoding(2050, mask=True),
        decoding(2050, rows=3, causal=True),
    ],
    ids=["even", "one more", "own keys", "one group", "mask", "causal rows"],
)
def test_parts_compute_the_same(graph: Graph, precision: str) -> None:
    module = compiled(module_of(graph, precision=precision), LARGE, feeds_of(graph))
    assert anchors(module) == ["attention_parts"]


def test_what_follows_on_each_element_follows_the_whole() -> None:
    """A scale and a cast, as 8-bit operands need, and a clip; but not what adds another tensor."""
    s = Sketch()
    q, k, v = s.param(1, 8, 1, 16), s.param(1, 2, 2048, 16), s.param(1, 2, 2048, 16)
    y = s.op("attention", q, k, v, attrs=AttentionAttrs(0.25))
    z = s.op("mul", s.reshape(y, 1, 1, 128), s.number(40.0))
    z = s.op("min", s.number(100.0), s.op("relu", z))
    z = s.op("cast", z, attrs=CastAttrs(DType.F8E4M3))
    graph = s.graph(z)
    assert anchors(compiled(module_of(graph, precision="bf16"), LARGE, feeds_of(graph))) == ["attention_parts"]
    added = s.graph(s.op("add", s.reshape(y, 1, 1, 128), s.param(1, 1, 128)))
    assert anchors(split(added, LARGE)) == ["attention"]


def test_few_keys_or_enough_rows_stay_whole() -> None:
    for graph, target in ((decoding(100), LARGE), (decoding(2048, heads=64, groups=64), LARGE), (decoding(300), TINY)):
        assert anchors(split(graph, target)) == ["attention"]


def split(graph: Graph, target: Target) -> Module:
    module = replace(module_of(graph, precision="bf16"), target=target.name, target_hash=target.hash)
    return Run(target, UPTO_SPLIT).run(module)


def test_caches_in_f32_are_read_as_they_are() -> None:
    (op,) = (
        o
        for group in split(decoding(2048), LARGE).graph.ops
        if group.body is not None
        for o in group.body.ops
        if o.name == "attention_parts"
    )
    assert {v.type.dtype for v in op.operands} == {DType.F32}


@pytest.mark.parametrize("keys", [1, 5, 16, 33])
@pytest.mark.parametrize("causal", [False, True])
def test_parts_put_together_are_attention(keys: int, causal: bool) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 3, 8), (2, 2, 33, 8), (2, 2, 33, 6)))
    hidden = rng.random((2, 1, 3, 33)) < 0.4
    hidden[..., :keys] = True  # nothing of the first part is visible
    hidden[..., -1] = False
    mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
    types = [TensorType(DType.F32, x.shape) for x in (q, k, v, mask)]
    record, attrs = OPS["attention_parts"], AttentionPartsAttrs(0.3, keys, causal)
    assert record.reference is not None
    (parts,) = record.reference(attrs, q, k, v, mask)
    assert (TensorType(DType.F32, parts.shape),) == record.infer(attrs, types)
    weight = np.exp(parts[..., 6:7] - parts[..., 6:7].max(0))
    with np.errstate(invalid="ignore"):
        got = (parts[..., :6] * weight).sum(0) / (parts[..., 7:] * weight).sum(0)
    values = [Value(n, t) for n, t in zip("qkvm", types, strict=True)]
    op = Op("attention", attrs.whole, tuple(values), (Value("y", TensorType(DType.F32, (2, 4, 3, 6))),))
    arrays = dict(zip("qkvm", (q, k, v, mask), strict=True))
    want = run_graph(Graph("whole", tuple(values), op.results, (op,)), arrays)["y"]
    np.testing.assert_allclose(got, want, rtol=64 * 2**-24, atol=64 * 2**-24)
