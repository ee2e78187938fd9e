"""The decision how many parts a group is split into, and its reasons."""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.compiler.passes.remarks import listener
from ppuc.ir.graph import Op


@dataclass(frozen=True, slots=True)
class Parts:
    """`count` parts (1: not split), the expected cycles of the whole and of the best split (None without a price), and
    the reason if it is not split."""

    count: int
    whole_clk: float | None = None
    parts_clk: float | None = None
    why_whole: str = ""

    def remark(self, decision: str, op: Op, kernels: int) -> None:
        """Remark on a group that was split, adding `kernels` kernels, or was not."""
        if (remarks := listener()) is None:
            return
        name, before, after = op.results[0].name, self.whole_clk, self.parts_clk
        if self.count > 1:
            remarks.applied(decision, name, op.loc, before=before, after=after, parts=self.count, kernels=kernels)
        else:
            remarks.missed(f"not-{decision}", name, op.loc, self.why_whole, before=before, after=after)
