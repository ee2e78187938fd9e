"""Products cut into panels of columns: which are, and that programs compute the same with weights read once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.passes.grouping.split_n import Paneling, SplitN
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.types import Space
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target
from ppuc.targets.simulator.result import Profile
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled, simulated

SMALL = override(load_target("ppu-tiny"), "l2.bytes=524288")
"""A machine whose l2 holds two panels of some 100 kB."""


def checked(graph: Graph, target: Target = SMALL, cut: bool = True, **options: str) -> tuple[Module, Profile]:
    """The compiled module, re-executed after every pass, and its profile."""
    inputs = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    passes = tuple(p for p in PIPELINE if cut or not isinstance(p, SplitN))
    module = replace(module_of(graph, **options), target=target.name, target_hash=target.hash)
    done = compiled(module, target, inputs, passes)
    return done, simulated(done, target, inputs).profile


def panels(module: Module) -> int:
    """Groups that insert a product."""
    return sum(
        {"matmul", "insert"} <= {inner.name for inner in op.body.ops} for op in module.graph.ops if op.body is not None
    )


def product(s: Sketch, rows: int = 512, columns: int = 4096) -> Value:
    return s.matmul(s.param(rows, 64), s.weight(64, columns, scale=0.1))


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_large_weights_are_read_once(precision: str) -> None:
    s = Sketch()
    graph = s.graph(s.op("relu", product(s)))
    module, profile = checked(graph, precision=precision)
    whole, before = checked(graph, cut=False, precision=precision)
    assert panels(module) > 1
    assert not panels(whole)
    weights, x = 64 * 4096 * (2 if precision == "bf16" else 4), 512 * 64 * 4
    assert profile.read_bytes[Space.HBM] == weights + x
    assert before.read_bytes[Space.HBM] > 3 * weights


def test_what_follows_is_cut_too() -> None:
    s = Sketch()
    residual, gate = s.param(512, 4096), s.param(512, 1)
    y = s.op("add", s.op("mul", s.op("relu", s.op("add", product(s), s.weight(4096))), gate), residual)
    module, _ = checked(s.graph(y))
    assert panels(module) > 1
    assert sum(op.name == "group" for op in module.graph.ops) == panels(module)


@pytest.mark.parametrize("columns", [4096, 4096 + 64, 4096 + 48])
def test_the_last_panel_may_be_narrower(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of 640 columns are preferred; 48 columns beyond a multiple of 64 end the last panel too."""
    monkeypatch.setattr(Paneling, "_price", lambda self, op, width: width * (1.0 if width == 640 else 1.5))
    s = Sketch()
    y = s.op("add", s.op("relu", product(s, columns=columns)), s.weight(columns))
    module, _ = checked(s.graph(y), precision="bf16")
    results = [
        inner.operands[1].type.dims[1]
        for op in module.graph.ops
        if op.body
        for inner in op.body.ops
        if inner.name == "insert"
    ]
    assert results == [640] * (columns // 640) + [columns % 640]


def test_small_weights_stay_whole() -> None:
    s = Sketch()
    module, _ = checked(s.graph(product(s, columns=512)))
    assert not panels(module)


def test_few_rows_read_weights_once_anyway() -> None:
    s = Sketch()
    module, _ = checked(s.graph(product(s, rows=64)))
    assert not panels(module)


def test_rows_that_are_reduced_stay_whole() -> None:
    s = Sketch()
    module, _ = checked(s.graph(s.op("neg", s.reduce("max", product(s), 1))))
    assert not any(
        {"matmul", "insert", "reduce"} <= {inner.name for inner in op.body.ops} for op in module.graph.ops if op.body
    )


def test_what_l2_cannot_hold_is_priced_in_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """2560 rows of 64 are larger than l2, a panel of the weights and their bias are not."""
    priced: list[set[int]] = []
    price = KernelCache.price

    def recorded(cache: KernelCache, group: Op, body: Graph | None = None) -> float:
        if body is not None:
            priced.append({p.type.elements for p in body.params if p.space is Space.HBM})
        return price(cache, group, body)

    monkeypatch.setattr(KernelCache, "price", recorded)
    s = Sketch()
    graph = s.graph(s.op("add", product(s, rows=2560), s.weight(4096)))
    Run(SMALL, PIPELINE[: [p.name for p in PIPELINE].index("split-n") + 1]).run(
        replace(module_of(graph), target=SMALL.name, target_hash=SMALL.hash)
    )
    assert {2560 * 64} in priced
    assert {2560 * 64, 64 * 4096} in priced
