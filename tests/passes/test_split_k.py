"""Split-K: which contractions are cut along what they sum over, and that nothing else changes.

`compiled` re-executes the module after every pass, simulates the program and compares it to the bit with its kernels.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.compiler.passes.grouping.split_k import SplitK, Splitting
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.errors import CapacityError
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.ir.ops.movement import InsertAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled

LARGE = load_target("zhenwu-m890")
TINY = load_target("ppu-tiny")
UPTO_SPLIT = PIPELINE[: [p.name for p in PIPELINE].index("split-k") + 1]


def groups(graph: Graph, precision: str = "bf16", passes: tuple[object, ...] = UPTO_SPLIT) -> list[Op]:
    module = replace(module_of(graph, precision=precision), target=LARGE.name, target_hash=LARGE.hash)
    done = Run(LARGE, passes).run(module)  # type: ignore[arg-type]
    return [op for op in done.graph.ops if op.name == "group"]


def checked(graph: Graph, precision: str, target: object = LARGE) -> Module:
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    return compiled(module_of(graph, precision=precision), target, feeds)  # type: ignore[arg-type]


def narrow_product(m: int, k: int, n: int, batch: int = 0) -> Graph:
    """relu(x w + b) + r: few results, a long sum."""
    s = Sketch()
    lead = (batch,) if batch else ()
    y = s.matmul(s.param(*lead, m, k), s.weight(k, n, scale=k**-0.5))
    return s.graph(s.op("add", s.op("relu", s.op("add", y, s.weight(n))), s.param(*lead, m, n)))


def grown_cache() -> Graph:
    """Heads of a product appended to a cache, as the last rows of its memory."""
    s = Sketch()
    y = s.matmul(s.param(1, 3, 4096), s.weight(4096, 32, scale=4096**-0.5))
    rows = s.transpose(s.reshape(y, 1, 3, 4, 8), 0, 2, 1, 3)
    return s.graph(s.op("insert", s.param(1, 4, 20, 8), rows, attrs=InsertAttrs((0, 0, 17, 0))))


def narrow_conv(channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Graph:
    s = Sketch()
    y = s.op("relu", s.conv(s.param(1, channels, 5, 6), 32, kernel, stride, groups))
    return s.graph(s.op("add", y, s.number(1.0)))


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize(
    "graph",
    [
        narrow_product(7, 4096, 40),
        narrow_product(1, 4096, 65),
        narrow_product(5, 4096, 33, batch=3),
        grown_cache(),
        narrow_conv(512, 3),
        narrow_conv(256, 3, stride=2),
    ],
    ids=["rows", "vector", "batch", "cache", "conv", "strided conv"],
)
def test_cut_contractions_compute_the_same(graph: Graph, precision: str) -> None:
    module = checked(graph, precision)
    kinds = [op.attrs.kind for op in module.graph.ops if op.name == "group"]  # type: ignore[attr-defined]
    assert kinds[-2:] in (["matmul", "map"], ["conv", "map"])


def test_parts_are_added_in_order_and_the_epilogue_follows() -> None:
    *_, first, second = groups(narrow_product(7, 4096, 40))
    assert first.results[0].type.dtype is DType.F32
    parts = first.results[0].type.dims[0]
    assert first.results[0].type.dims == (parts, 7, 40)
    assert parts >= 2
    assert second.body is not None
    assert [op.name for op in second.body.ops].count("add") == parts - 1 + 2
    starts = [op.attrs.starts[0] for op in second.body.ops if isinstance(op.attrs, SliceAttrs)]
    assert starts == list(range(parts))
    assert second.results[0].type.dims == (7, 40)


@pytest.mark.parametrize(
    "graph",
    [
        narrow_product(4096, 1024, 4096),
        narrow_product(7, 96, 40),
        narrow_product(7, 4099, 40),
        narrow_conv(512, 3, groups=4),
    ],
    ids=["enough tiles", "short sum", "prime sum", "grouped"],
)
def test_contractions_that_stay_whole(graph: Graph) -> None:
    whole = groups(graph, passes=UPTO_SPLIT[:-1])
    assert [op.results for op in groups(graph)] == [op.results for op in whole]


def test_a_machine_of_few_units_is_busy_without() -> None:
    module = checked(narrow_product(200, 300, 64), "model", TINY)
    assert [op.attrs.kind for op in module.graph.ops if op.name == "group"] == ["matmul"]  # type: ignore[attr-defined]


def test_the_pass_leaves_a_module_without_candidates_alone() -> None:
    module = replace(module_of(narrow_product(4096, 1024, 4096)), target=LARGE.name, target_hash=LARGE.hash)
    before = Run(LARGE, UPTO_SPLIT[:-1]).run(module)
    assert SplitK().run(before, LARGE) is before


@pytest.mark.parametrize("length", [1, 300, 8192])
def test_a_product_of_two_vectors_has_no_rows(length: int) -> None:
    s = Sketch()
    y = s.matmul(s.reshape(s.param(length), 1, length), s.weight(length, 1, scale=length**-0.5))
    checked(s.graph(s.reshape(y)), "fp32")


def test_a_product_that_fits_no_tile_is_the_users_to_know() -> None:
    small = override(LARGE, "l1.bytes=10")
    module = replace(module_of(narrow_product(7, 512, 40)), target=small.name, target_hash=small.hash)
    with pytest.raises(CapacityError, match="fits l1"):
        Run(small, PIPELINE).run(module)


CACHED = [load_target(name) for name in ("h100-class", "a100-class")]


@pytest.mark.parametrize("target", CACHED, ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 16384, 2048), (7, 65536, 64), (65, 65536, 512), (81, 6144, 512), (300, 8192, 300)]
)
def test_operands_read_from_device_memory_rule_out_only_what_is_not_cheapest(
    m: int, k: int, n: int, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> list[list[str]]:
        s = Sketch()
        module = module_of(s.graph(s.matmul(s.param(m, k), s.param(k, n))), precision="bf16")
        module = replace(module, target=target.name, target_hash=target.hash)
        done = Run(target, UPTO_SPLIT).run(module)
        return [[str(v.type) for v in op.results] for op in done.graph.ops if op.name == "group"]

    bounded = parts()
    monkeypatch.setattr(Splitting, "_read_clk", lambda *_: 0.0)
    assert parts() == bounded
