"""Elementwise groups that read an operand along other axes than they write: loaded in memory order, then transposed."""

from __future__ import annotations

import pytest

from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.module import Module
from ppuc.targets.description import load_target
from tests.support.group_kernels import data
from tests.support.pass_graphs import Sketch, module_of
from tests.support.whole_pipeline import compiled


def checked(s: Sketch, target: str, *results: object) -> Module:
    graph = s.graph(*results)  # type: ignore[arg-type]
    feeds = {p.name: data(p.type, i) for i, p in enumerate(graph.params)}
    return compiled(module_of(graph), load_target(target), feeds, PIPELINE)


def turns(module: Module) -> int:
    return sum(step.op == "transpose" for v in module.vectors for step in v.steps)


@pytest.mark.parametrize("points", [20479, 20480, 20481])
def test_channels_last_of_a_few_channels(points: int) -> None:
    """Partial tiles are computed whole and clipped when they are stored."""
    s = Sketch()
    x = s.param(2, 3, points)
    module = checked(s, "zhenwu-m890", s.op("add", s.transpose(s.op("relu", x), 0, 2, 1), s.weight(3)))
    assert turns(module) == 1


def test_one_of_two_operands_is_turned() -> None:
    s = Sketch()
    a, b = s.param(70000, 4), s.param(4, 70000)
    module = checked(s, "zhenwu-m890", s.op("mul", s.op("exp", a), s.transpose(b, 1, 0)))
    assert turns(module) == 1


def test_reduced_tiles_are_turned_whole() -> None:
    s = Sketch()
    x = s.param(6, 60000)
    module = checked(s, "zhenwu-m890", s.softmax(s.transpose(x, 1, 0)))
    assert turns(module) == 1
