"""Composites into primitives. Afterwards the only composites are those that `keep` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.passes.graph_walk import Walk, to_fixpoint, with_graph
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.targets.description import Target


def expand_composite(w: Walk, op: Op) -> Sequence[Value] | None:
    """composite(...) -> what its record says it is made of."""
    expand = OPS[op.name].decompose
    return None if expand is None else expand(w.builder, op)


@dataclass(frozen=True)
class Decompose:
    """Expand composite ops (softmax, normalisations, resize, ...) into primitives.

    %y = softmax(%x) {axis = 1}
    ->
    %m = reduce(%x) {kind = max}; %e = exp(sub(%x, %m)); %y = div(%e, reduce(%e) {kind = sum})
    """

    name: ClassVar[str] = "decompose"
    keep: tuple[str, ...] = ("attention", "unblock")

    def run(self, module: Module, target: Target) -> Module:
        """The module without composites other than those in `keep`."""
        rules = {
            name: (expand_composite,) for name, op in OPS.items() if op.decompose is not None and name not in self.keep
        }
        return with_graph(module, to_fixpoint(module.graph, rules))
