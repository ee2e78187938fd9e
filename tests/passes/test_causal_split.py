"""Causal attention split by rows.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppuc.compiler.passes.grouping.causal_split import Banding
from ppuc.compiler.passes.grouping.parts import Parts
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")
UPTO_BANDS = PIPELINE[: [p.name for p in PIPELINE].index("causal-split") + 1]


def causal(
    m: int, past: int = 0, *, heads: int = 2, groups: int = 1, width: int = 8, ending: str = "merge", mask: bool = False
) -> Graph:
    """Causal attention of `m` queries over `past` + `m` keys; its heads are merged, scaled and added to, or are the
    result."""
    s = Sketch()
    q = s.op("tanh", s.param(1, heads, m, width))
    k, v = (s.op("tanh", s.param(1, groups, past + m, width)) for _ in range(2))
    operands = [q, k, v, *([s.param(m, past + m)] if mask else [])]
    y = s.op("attention", *operands, attrs=AttentionAttrs(0.3, causal=True))
    if ending == "heads":
        return s.graph(y)
    y = s.reshape(s.transpose(y, 0, 2, 1, 3), 1, m, heads * width)
    if ending == "added":
        y = s.op("add", s.op("mul", y, s.number(0.5)), s.op("mul", s.param(m, heads * width), s.param(1, m, 1)))
    return s.graph(s.matmul(y, s.weight(heads * width, 12, scale=0.2)))


def attentions(module: Module) -> list[Op]:
    bodies = [op.body for op in module.graph.ops if op.body is not None]
    return [o for body in bodies for o in body.ops if o.name == "attention"]


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return {p.name: data(p.type, i) for i, p in enumerate(graph.params)}


@pytest.mark.parametrize("target", [TINY, LARGE], ids=["tiny", "m890"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize(
    "graph",
    [
        causal(96),
        causal(70, ending="heads"),
        causal(97, past=13, heads=4, groups=2),
        causal(65, ending="added"),
        causal(70, past=5, mask=True),
    ],
    ids=["even", "heads", "past and groups", "epilogue", "mask"],
)
def test_bands_compute_the_same(graph: Graph, precision: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Banding, "_best", lambda self, op, attention: Parts(3))
    m = graph.params[0].type.dims[2]
    module = compiled(module_of(graph, precision=precision), target, feeds_of(graph))
    found = attentions(module)
    rows = [op.operands[0].type.dims[2] for op in found]
    keys = [op.operands[1].type.dims[2] for op in found]
    past = graph.params[1].type.dims[2] - m
    assert sum(rows) == m
    assert set(rows[:-1]) == {-(-m // 96) * 32}
    assert keys == [past + sum(rows[: i + 1]) for i in range(len(rows))]


def prepared(graph: Graph) -> Module:
    module = replace(module_of(graph, precision="bf16"), target=LARGE.name, target_hash=LARGE.hash)
    return Run(LARGE, UPTO_BANDS).run(module)


def test_long_prompts_are_cut_and_short_ones_are_not() -> None:
    found = attentions(prepared(causal(2048, heads=32, groups=8, width=128)))
    assert len(found) > 4
    work = sum(op.operands[0].type.dims[2] * op.operands[1].type.dims[2] for op in found)
    assert work < 0.6 * 2048 * 2048
    assert len(attentions(prepared(causal(128, heads=32, groups=8, width=128)))) == 1
    assert len(attentions(prepared(causal(1, past=4096, heads=32, groups=8, width=128)))) == 1


def test_attention_without_a_direction_stays_whole() -> None:
    s = Sketch()
    operands: list[Value] = [s.op("tanh", s.param(1, 32, 2048, 64)) for _ in range(3)]
    graph = s.graph(s.op("attention", *operands, attrs=AttentionAttrs(0.3)))
    assert len(attentions(prepared(graph))) == 1
