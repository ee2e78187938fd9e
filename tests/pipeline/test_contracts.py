"""Contracts of passes: each can be violated, and the error names the violating pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from ppuc.compiler.passes import contracts
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import FULL_RANK, GROUPED, TILED, Contract
from ppuc.compiler.passes.tile import Tile
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.errors import InternalError, UsageError
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.movement import GatherElementsAttrs, PadAttrs
from ppuc.ir.ops.normalization import SoftmaxAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import Target, load_target
from tests.support.pass_graphs import Sketch, module_of

TINY = load_target("ppu-tiny")


def sketched() -> Module:
    """A sum without its axis, of a reflected pad, of gathered elements."""
    s = Sketch()
    x = s.param(4, 6)
    y = s.op("gather_elements", x, s.const(np.zeros((4, 6), np.int64)), attrs=GatherElementsAttrs(0))
    z = s.op("pad", y, attrs=PadAttrs((1, 1), (1, 1), (0, 0), mode="reflect"))
    return replace(module_of(s.graph(s.op("reduce", z, attrs=ReduceAttrs("sum", (1,), False)))), target_hash=TINY.hash)


def finished() -> Module:
    s = Sketch()
    module = replace(module_of(s.graph(s.op("exp", s.param(4, 6)))), target_hash=TINY.hash)
    return Run(TINY, PIPELINE).run(module)


def imported() -> Module:
    """A softmax of a product of f64, of a convolution with channels first, of nothing."""
    s = Sketch()
    x = s.op("conv", s.param(1, 4, 6, 6), s.param(8, 4, 3, 3), attrs=ConvAttrs((1, 1), (0, 0), (0, 0), (1, 1)))
    y = s.op("softmax", s.op("reshape", x, attrs=ReshapeAttrs((8, 16))), attrs=SoftmaxAttrs(1))
    z = s.op("matmul", s.param(0, 5, dtype=DType.F64), s.param(5, 3, dtype=DType.F64), attrs=MatmulAttrs())
    return replace(module_of(s.graph(y, z)), target_hash=TINY.hash)


BROKEN = {
    "primitive": imported,
    "machine_formats": imported,
    "channels_last": imported,
    "not_empty": imported,
    "few_moves": sketched,
    "plain_pads": sketched,
    "full_rank": sketched,
    "grouped": sketched,
    "spaces_assigned": sketched,
    "tiled": lambda: replace(finished(), kernels=()),
    "allocated": lambda: replace(finished(), placement=()),
    "emitted": sketched,
}
KNOWN = {c.name: c for c in vars(contracts).values() if isinstance(c, Contract)}


@pytest.mark.parametrize("name", KNOWN)
def test_every_contract_holds_in_the_end_and_can_be_broken(name: str) -> None:
    assert KNOWN[name].broken(finished(), TINY) == ""
    assert KNOWN[name].broken(BROKEN[name](), TINY) != ""


@dataclass(frozen=True)
class Careless(Pass):
    """Says that it keeps axes, and only renames the model."""

    name: ClassVar[str] = "careless"
    ensures: ClassVar[tuple[Contract, ...]] = (FULL_RANK,)

    def run(self, module: Module, target: Target) -> Module:
        return replace(module, options=(("model", "other"),))


def test_a_pass_that_breaks_its_contract_is_named() -> None:
    with pytest.raises(InternalError, match=r"^pass careless breaks its contract full_rank \(every reduction keeps"):
        Run(TINY, (Careless(),)).run(sketched())


def test_a_pass_too_early_says_what_it_needs() -> None:
    with pytest.raises(UsageError) as caught:
        Run(TINY, (Tile(),)).run(sketched())
    assert str(caught.value).startswith("pass tile: needs a module that is grouped: every op that computes or moves")
    assert "ppuc passes" in str(caught.value)


def test_what_a_pass_requires_an_earlier_one_ensures() -> None:
    held: set[str] = set()
    for step in PIPELINE:
        assert {c.name for c in step.requires} <= held, step.name
        held |= {c.name for c in step.ensures}
    assert {GROUPED.name, TILED.name} <= held
    assert held == set(KNOWN)
