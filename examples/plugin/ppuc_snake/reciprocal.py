"""The pass `snake_reciprocal`: snake with a constant alpha multiplies by 1 / alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.rewriter import Walk, to_fixpoint, with_graph
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.targets.description import Target


def by_reciprocal(w: Walk, op: Op) -> Value | None:
    """snake(x, const alpha) -> x + s s (1 / alpha), with s = sin(alpha x)."""
    x, alpha = op.operands
    known = w.resource(alpha)
    if known is None or not np.all(known.array()):
        return None
    s = w.emit("sin", w.emit("mul", x, alpha))
    return w.emit("add", x, w.emit("mul", w.emit("mul", s, s), w.const(np.float32(1) / known.array())))


@dataclass(frozen=True)
class SnakeReciprocal(Pass):
    """Multiply by the reciprocal of a constant alpha: a vector engine divides several times slower.

    %y = snake(%x, %alpha)  ->  %s = sin(mul(%x, %alpha)); %y = add(%x, mul(mul(%s, %s), 1 / %alpha))
    """

    name: ClassVar[str] = "snake_reciprocal"
    after: ClassVar[str] = "canonicalise"

    def run(self, module: Module, target: Target) -> Module:
        """The module without snakes of a constant alpha."""
        return with_graph(module, to_fixpoint(module.graph, {"snake": (by_reciprocal,)}))
