"""Watches the passes of a compilation: the text that each changes, and the cycles expected after it.

Invariant: watching changes nothing that the compiler does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.ir.text.print import print_graph
from ppuc.targets.schema import Target

MOST_LINES = 4000
"""Lines of a step's difference that are kept unless the caller says otherwise; of longer ones, the first."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a step changed in the text of the graph: a unified difference (`cut` of its lines are not kept), the lines
    added and removed, the kernels after it, and the cycles that the cost model expects for all of them, one after the
    other (None while there are no groups, or one of them has no price)."""

    step: str
    segment: int
    diff: tuple[str, ...]
    added: int
    removed: int
    cut: int
    kernels: int
    expected_clk: float | None

    def record(self) -> dict[str, Any]:
        """As JSON-able values; the difference as one text."""
        return {
            "diff": "\n".join(self.diff),
            "added": self.added,
            "removed": self.removed,
            "cut": self.cut,
            "kernels": self.kernels,
            "expected_clk": self.expected_clk,
        }


class PassWatch:
    """Collects the changes of every step of a compilation; the first adds all lines. `modules` holds the last module of
    each segment."""

    def __init__(self, target: Target, most_lines: int = MOST_LINES) -> None:
        self._most = most_lines
        self.changes: list[Change] = []
        self.modules: list[Module] = []
        self._cache = KernelCache(target)
        self._lines: list[str] = []

    def __call__(self, step: str, module: Module) -> None:
        """Take note of `module` as the outcome of `step`. A step `import` begins a segment."""
        if step == "import":
            self._lines = []
            self.modules.append(module)
        before, self._lines = self._lines, print_graph(module.graph).splitlines()
        diff = list(_difference(before, self._lines))
        signs = [line[:1] for line in diff]
        kernels = sum(op.body is not None and op.name == "group" for op in module.graph.ops)
        self.modules[-1] = module
        self.changes.append(
            Change(
                step,
                len(self.modules) - 1,
                tuple(diff[: self._most]),
                signs.count("+"),
                signs.count("-"),
                max(0, len(diff) - self._most),
                kernels,
                self._expected(module.graph),
            )
        )

    def _expected(self, graph: Graph) -> float | None:
        groups = [op for op in graph.ops if op.name == "group" and op.body is not None]
        try:
            return sum(self._cache.price(op) for op in groups) if groups else None
        except NotFusable:
            return None


def _difference(before: list[str], after: list[str]) -> Iterator[str]:
    """A unified difference with two lines of context, without its header."""
    lines = difflib.unified_diff(before, after, n=2, lineterm="")
    return (line for line in lines if not line.startswith(("---", "+++")))
