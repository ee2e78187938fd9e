"""Bands of causal attention: rows that walk the keys up to the band's last row, as loops of one kernel.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.lowering.kernels import attention_tiles
from ppuc.compiler.lowering.kernels.attention_tiles import BANDS, ROW, Shape, TiledAttention, bands_of, distribute_bands
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel, Loop, Mma
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")
ALONE = tuple(p for p in PIPELINE if p.name != "cascade")
"""Passes that leave attention a kernel of its own."""

UPTO_TILE = PIPELINE[: [p.name for p in PIPELINE].index("tile") + 1]


def attention(
    m: int,
    past: int = 0,
    *,
    heads: int = 2,
    groups: int = 1,
    width: int = 8,
    ending: str = "merge",
    mask: tuple[int, ...] | None = None,
    causal: bool = True,
) -> Graph:
    """Attention of `m` queries over `past` + `m` keys; its heads are merged, scaled and added to, or are the result."""
    s = Sketch()
    q = s.op("tanh", s.param(1, heads, m, width))
    k, v = (s.op("tanh", s.param(1, groups, past + m, width)) for _ in range(2))
    operands = [q, k, v, *([s.param(*mask)] if mask else [])]
    y = s.op("attention", *operands, attrs=AttentionAttrs(0.3, causal=causal))
    if ending == "heads":
        return s.graph(y)
    y = s.reshape(s.transpose(y, 0, 2, 1, 3), 1, m, heads * width)
    if ending == "added":
        y = s.op("add", s.op("mul", y, s.number(0.5)), s.op("mul", s.param(m, heads * width), s.param(1, m, 1)))
    return s.graph(s.matmul(y, s.weight(heads * width, 12, scale=0.2)))


def kernel_of(module: Module) -> Kernel:
    (found,) = [k for k in module.kernels if any("softmax" in getattr(s, "program", "") for _, s in k.statements())]
    return found


def score_loops(kernel: Kernel) -> list[tuple[Loop, ...]]:
    """The loops around each product of queries and keys (that of the first part, if an iteration takes several)."""
    return [loops for loops, stmt in kernel.statements() if isinstance(stmt, Mma) and stmt.dst == "scores"]


def computed(kernel: Kernel) -> int:
    """Products of tiles of queries and keys that all units run, for the first part of rows."""
    return sum(int(np.prod([loop.trips for loop in loops])) for loops in score_loops(kernel))


@pytest.mark.parametrize("target", [TINY, LARGE], ids=["tiny", "m890"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize(
    "graph",
    [
        attention(96),
        attention(70, ending="heads"),
        attention(97, past=13, heads=4, groups=2),
        attention(65, ending="added"),
        attention(70, past=5, mask=(70, 75)),
        attention(70, past=5, mask=(1, 75)),
        attention(70, past=5, mask=(70, 1)),
    ],
    ids=["even", "heads", "past and groups", "epilogue", "mask", "mask of keys", "mask of rows"],
)
def test_bands_compute_the_same(
    graph: Graph, precision: str, target: Target, parts: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(self: TiledAttention) -> Shape:
        return Shape(1, 8, parts, 16, self.d, self.e, 2, 1)

    monkeypatch.setattr(TiledAttention, "choose", choose)
    monkeypatch.setattr(attention_tiles, "distribute_bands", lambda trips, *_: (1, 1, 1, min(units, trips[ROW]), 1))
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    kernel = kernel_of(compiled(module_of(graph, precision=precision), target, feeds, ALONE))
    m = graph.params[0].type.dims[2]
    bands = bands_of(m, 8 * parts * units)
    rows = {loop.var: loop for loops in score_loops(kernel) for loop in loops if loop.var.partition(".")[0] == "m"}
    assert [loop.stop for loop in rows.values()] == [stop - start for start, stop in bands]
    past = graph.params[1].type.dims[2] - m
    by_band = {
        key: sum(loop.stop for *_, loop in group)
        for key, group in itertools.groupby(score_loops(kernel), lambda loops: loops[-2].var)
    }
    assert list(by_band.values()) == [past + stop for _, stop in bands]


def prepared(graph: Graph) -> Module:
    module = replace(module_of(graph, precision="bf16"), target=LARGE.name, target_hash=LARGE.hash)
    return Run(LARGE, UPTO_TILE).run(module)


def test_long_prompts_skip_most_of_the_masked_keys() -> None:
    sizes = {"heads": 32, "groups": 8, "width": 128}
    causal, whole = (kernel_of(prepared(attention(2048, causal=c, **sizes))) for c in (True, False))  # type: ignore[arg-type]
    rows, keys = (score_loops(causal)[0][i].step for i in (-2, -1))
    share = computed(causal) * rows * keys / (8 * 4 * 2048 * 2048)
    assert 0.5 < share < 0.57
    assert len(score_loops(whole)) == 1


@given(st.integers(1, 5000), st.integers(1, 700))
def test_bands_cover_the_rows_once(m: int, wave: int) -> None:
    bands = bands_of(m, wave)
    assert [row for start, stop in bands for row in range(start, stop)] == list(range(m))
    assert len(bands) <= BANDS
    assert all((stop - start) % wave == 0 for start, stop in bands[:-1])


@pytest.mark.parametrize(
    ("trips", "units"),
    [((1, 8, 4, 16, 1), (1, 8, 4, 2, 1)), ((8, 8, 1, 4, 1), (8, 8, 1, 1, 1)), ((1, 1, 1, 64, 1), (1, 1, 1, 64, 1))],
)
def test_units_go_to_the_heads_first(trips: tuple[int, ...], units: tuple[int, ...]) -> None:
    """The fewer units share the rows of a head, the more bands, and the fewer masked keys."""
    assert distribute_bands(trips, 128 * trips[ROW], 128 * trips[ROW], 128, 64) == units


def test_one_tile_of_keys_has_no_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TiledAttention, "choose", lambda self: Shape(1, 8, 1, 40, self.d, self.e, 2, 1))
    kernel = kernel_of(prepared(attention(40)))
    assert len(score_loops(kernel)) == 1
