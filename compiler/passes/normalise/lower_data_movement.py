"""Lowers data movement to the few forms that kernels support: concat, gather along an axis, scatter of rows, constant
pads that do not crop.

Afterwards every scatter_nd updates whole rows, and every cumsum runs along an axis that fits l1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import FEW_MOVES, PLAIN_PADS, Contract
from ppuc.compiler.passes.normalise.fold import fold_constants
from ppuc.compiler.passes.rewriter import Rules, to_fixpoint, with_graph
from ppuc.compiler.passes.rules.indices import INDEX_RULES
from ppuc.compiler.passes.rules.pads import PAD_RULES
from ppuc.compiler.passes.rules.scans import split_scans
from ppuc.ir.module import Module
from ppuc.targets.schema import Target


@dataclass(frozen=True)
class LowerDataMovement(Pass):
    """Rewrite pads, gathers, scatters and long scans into forms that kernels support.

    %y = pad(%x) {low = 2, mode = "reflect"}  ->  %y = concat(slice(%x) {step = -1}, %x)
    %y = gather_nd(%x, %i)                    ->  %y = gather(reshape(%x), add(mul(%i0, stride), %i1)) {axis = 0}
    """

    name: ClassVar[str] = "lower-data-movement"
    required: ClassVar[str] = "kernels support few forms of data movement"
    ensures: ClassVar[tuple[Contract, ...]] = (FEW_MOVES, PLAIN_PADS)

    def run(self, module: Module, target: Target) -> Module:
        """The module with data movement in these forms."""
        rules: Rules = {**PAD_RULES, **INDEX_RULES, "cumsum": (split_scans(target),), "*": (fold_constants,)}
        return with_graph(module, to_fixpoint(module.graph, rules))
