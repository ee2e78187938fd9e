"""What the tests of joined kernels share: compiling a sketch with every check, and joining wherever a kernel exists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ppuc.compiler.passes.grouping.cascade import Cascading
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.targets.schema import Target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled


def checked(s: Sketch, target: Target, *results: Value, precision: str = "model") -> Module:
    """The module after the pipeline, re-executed after every pass; its program is simulated and has no hazard."""
    graph = s.graph(*results)
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    return compiled(module_of(graph, precision=precision), target, feeds, PIPELINE)


def kinds(module: Module) -> list[str]:
    """The kernel kind of every group."""
    return [op.attrs.kind for op in module.graph.ops if op.name == "group"]  # type: ignore[attr-defined]


def join_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the more groups a kernel computes the cheaper."""
    price = Cascading._price

    def cheap(self: Cascading, members: Sequence[Op]) -> float | None:
        found = price(self, members)
        return None if found is None else found / 1000 ** (len(members) - 1)

    monkeypatch.setattr(Cascading, "_price", cheap)
