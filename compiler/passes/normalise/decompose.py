"""Expands composite ops into primitives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.lowering.kinds import anchoring_ops
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import PRIMITIVE, Contract
from ppuc.compiler.passes.rewriter import Rule, Walk, to_fixpoint, with_graph
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.targets.description import Target


def _expand(name: str) -> Rule:
    """The rule composite(...) -> its record's decomposition."""

    def expand(w: Walk, op: Op) -> Sequence[Value] | None:
        parts = OPS[name].decompose
        assert parts is not None
        return parts(w.builder, op)

    expand.__name__ = f"expand_{name}"
    return expand


@dataclass(frozen=True)
class Decompose(Pass):
    """Expand composite ops (softmax, normalisations, resize, ...) into primitives.

    Composites named in `keep` remain and, with `kernels`, those that have a kernel.

    %y = softmax(%x) {axis = 1}
    ->
    %m = reduce(%x) {kind = max}; %e = exp(sub(%x, %m)); %y = div(%e, reduce(%e) {kind = sum})
    """

    name: ClassVar[str] = "decompose"
    required: ClassVar[str] = "kernels are built from primitive ops"
    ensures: ClassVar[tuple[Contract, ...]] = (PRIMITIVE,)
    keep: tuple[str, ...] = ("unblock",)
    kernels: bool = True

    def run(self, module: Module, target: Target) -> Module:
        """The module without composites other than those in `keep` and, with `kernels`, those that have a kernel."""
        kept = {*self.keep, *(anchoring_ops() if self.kernels else ())}
        rules = {name: (_expand(name),) for name, op in OPS.items() if op.decompose is not None and name not in kept}
        return with_graph(module, to_fixpoint(module.graph, rules))
