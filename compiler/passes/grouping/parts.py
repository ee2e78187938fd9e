"""How many parts a group is cut into, and what that decision was made from."""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.compiler.passes.remarks import listener
from ppuc.ir.graph import Op


@dataclass(frozen=True, slots=True)
class Parts:
    """`count` parts (1: the group stays whole), the cycles expected of the whole and of the best number of parts (None
    where there is no price), and why the group stays whole if it does."""

    count: int
    whole_clk: float | None = None
    parts_clk: float | None = None
    why_whole: str = ""

    def say(self, decision: str, op: Op, kernels: int) -> None:
        """Remark on the group that was cut, into so many kernels more than one, or was not."""
        if (remarks := listener()) is None:
            return
        name, before, after = op.results[0].name, self.whole_clk, self.parts_clk
        if self.count > 1:
            remarks.applied(decision, name, op.loc, before=before, after=after, parts=self.count, kernels=kernels)
        else:
            remarks.missed(f"not-{decision}", name, op.loc, self.why_whole, before=before, after=after)
