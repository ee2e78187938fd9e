"""Values that share bytes in l2: which may, what orders them, and that results do not change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.compiler.passes.emit.counters import CounterPlan
from ppuc.compiler.passes.memory.l2_plan import overwritten, plan_l2
from ppuc.compiler.passes.memory.ranges import Range
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Value
from ppuc.ir.module import Module
from ppuc.ir.types import Space
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import APART, compiled

TARGETS = [load_target("ppu-tiny"), load_target("zhenwu-m890")]


def checked(s: Sketch, *results: Value, target: Target = TARGETS[0]) -> Module:
    """The module after the pipeline, re-executed after every pass; its program is simulated and has no hazard."""
    graph = s.graph(*results)
    return compiled(module_of(graph), target, {p.name: data(p.type, i) for i, p in enumerate(graph.params)}, APART)


def shared(module: Module) -> list[tuple[str, str]]:
    """(result, operand) at one address of l2."""
    at = {p.name: p.address for p in module.placement if p.space is Space.L2}
    pairs = overwritten(module.graph).items()
    return [(new, old) for new, old in pairs if new in at and old in at and at[new] == at[old]]


def residual(s: Sketch, x: Value, width: int) -> Value:
    h = s.op("relu", s.matmul(x, s.weight(width, width, scale=0.1)))
    return s.op("relu", s.op("add", s.matmul(h, s.weight(width, width, scale=0.1)), x))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [1, 33, 70])
def test_residual_sums_are_written_over_what_they_add_to(target: Target, rows: int) -> None:
    s = Sketch()
    x = s.op("relu", s.matmul(s.param(rows, 40), s.weight(40, 40)))
    for _ in range(3):
        x = residual(s, x, 40)
    module = checked(s, s.matmul(x, s.weight(40, 5)), target=target)
    assert len(shared(module)) == 3
    assert module.program is not None
    tensors = {t.name: t for t in module.program.tensors}
    assert all(new not in tensors for new, _ in shared(module))
    first = min(old for _, old in shared(module) if old in tensors)
    groups = [g for g in module.program.segments[0].counters if g.tensor == first]
    assert [g.kind for g in groups].count("full") == 4  # one writer after another
    assert any(".read." in g.name for g in groups)  # the block's first product reads it too


def test_convolutions_write_over_their_shortcut() -> None:
    s = Sketch()
    x = s.op("relu", s.conv(s.param(2, 3, 9, 11), 8, 3))
    y = s.op("relu", s.op("add", s.conv(s.op("relu", s.conv(x, 8, 3)), 8, 3), x))
    module = checked(s, s.op("neg", s.pool("max", y, 3, 2)))
    assert len(shared(module)) == 1


def test_what_is_read_later_is_kept() -> None:
    s = Sketch()
    x = s.op("relu", s.matmul(s.param(40, 40), s.weight(40, 40)))
    y = residual(s, x, 40)
    module = checked(s, s.op("neg", s.matmul(s.op("add", s.matmul(y, s.weight(40, 40)), x), s.weight(40, 4))))
    assert not [pair for pair in shared(module) if pair[1] == x.name and pair[0] == y.name]


def test_what_is_broadcast_reduced_or_of_another_type_is_kept() -> None:
    s = Sketch()
    h = s.op("relu", s.matmul(s.param(40, 40), s.weight(40, 40)))
    row = s.op("relu", s.matmul(s.param(1, 40), s.weight(40, 40)))
    y = s.op("exp", s.op("add", s.matmul(h, s.weight(40, 40, scale=0.05)), row))
    z = s.softmax(s.op("add", s.matmul(y, s.weight(40, 40, scale=0.05)), h))
    assert not shared(checked(s, s.matmul(z, s.weight(40, 4))))


def test_a_kernel_that_reads_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Sketch()
    x = s.op("relu", s.matmul(s.param(33, 40), s.weight(40, 40)))
    module = checked(s, s.matmul(residual(s, x, 40), s.weight(40, 5)))
    accesses = CounterPlan._accesses

    def moved(self: CounterPlan, tensor: str, kernel: str, kind: type) -> list:  # type: ignore[type-arg]
        found = accesses(self, tensor, kernel, kind)
        return [
            (site, replace(p, view=replace(p.view, offset=p.view.offset + (kind.__name__ == "Load"))))
            for site, p in found
        ]

    monkeypatch.setattr(CounterPlan, "_accesses", moved)
    with pytest.raises(InternalError, match="at other points than it reads"):
        PIPELINE[-1].run(replace(module, program=None), TARGETS[0])


def test_a_pair_without_room_is_separated() -> None:
    """The operand lives where a large range lives, the result where another does: together they fit nowhere."""
    ranges = [
        Range("old", 100, 0, 2),
        Range("new", 100, 2, 4),
        Range("low", 60, 0, 1, rank=1),
        Range("high", 60, 3, 4, rank=1),
        Range("middle", 40, 0, 4, rank=1),
    ]
    by_name = {r.name: r for r in ranges}
    at, failed = plan_l2(by_name, {"new": "old"}, 300)
    assert not failed
    assert at["new"] == at["old"]
    at, failed = plan_l2(by_name, {"new": "old"}, 200)
    assert not failed
    assert at["new"] == at["old"]
    for a in ranges:
        for b in ranges:
            if a.name < b.name and a.start <= b.end and b.start <= a.end and {a.name, b.name} != {"old", "new"}:
                assert at[a.name] + a.bytes <= at[b.name] or at[b.name] + b.bytes <= at[a.name]
    _, failed = plan_l2(by_name, {"new": "old"}, 90)
    assert set(failed) == {"old", "new", "low", "high", "middle"} - set(plan_l2(by_name, {}, 90)[0])
