"""One canonical form for each computation. Invariant: the pass is idempotent.

The rules are in `rules/` by subject: views and movement, arithmetic, contractions. Constants that rewrites produce are
folded along the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.lowering.kernels.folds import serial_array
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.normalise.fold import fold_constants
from ppuc.compiler.passes.rewriter import Rules, to_fixpoint, with_graph
from ppuc.compiler.passes.rules.arithmetic import ARITHMETIC_RULES
from ppuc.compiler.passes.rules.contractions import CONTRACTION_RULES, column_first
from ppuc.compiler.passes.rules.views import VIEW_RULES
from ppuc.ir.module import Module
from ppuc.targets.description import Target


def _merged(*tables: Rules) -> Rules:
    """The rules of all tables, an earlier table's first."""
    return {
        name: tuple(rule for t in tables for rule in t.get(name, ())) for name in sorted({n for t in tables for n in t})
    }


RULES = _merged(CONTRACTION_RULES, VIEW_RULES, ARITHMETIC_RULES, {"*": (fold_constants,)})
_ROWS_FIRST = _merged({"matmul": (column_first,)}, RULES)
"""Also for machines that multiply one row faster than one column."""


@dataclass(frozen=True)
class Canonicalise(Pass):
    """Remove redundant ops and rewrite the others into canonical form.

    %t = transpose(transpose(%x))               ->  %t = transpose(%x)
    %y = div(%a, sqrt(%v))                      ->  %y = mul(%a, rsqrt(%v))
    %z = batch_norm(conv(%x, %w), ...)          ->  %z = add(conv(%x, %w1), %b1)
    """

    name: ClassVar[str] = "canonicalise"

    def run(self, module: Module, target: Target) -> Module:
        """The module in canonical form."""
        rules = RULES if serial_array(target) else _ROWS_FIRST
        return with_graph(module, to_fixpoint(module.graph, rules))
