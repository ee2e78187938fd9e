"""Findings of a verifier, collected so that one run reports every broken invariant."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

IDENTIFIER = re.compile(r"[A-Za-z0-9_.]+")
"""Names of values, buffers, loops and rings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`entity` (a value, buffer, ring, ...) breaks invariant `rule` (G3, K5, ...). `instruction` is the printed line,
    empty if there is none."""

    rule: str
    entity: str
    instruction: str
    message: str

    def __str__(self) -> str:
        text = f"{self.rule} {self.entity}: {self.message}"
        return f"{text}\n    {self.instruction}" if self.instruction else text


class Findings:
    """Collects findings. `where` (the kernel, segment or graph being checked) prefixes each entity."""

    def __init__(self) -> None:
        self.items: list[Finding] = []
        self.where = ""

    def add(self, rule: str, entity: str, message: str, show: Callable[[], str] | None = None) -> None:
        """Report `entity`; `show` prints the instruction (called only for findings, because printing is slow)."""
        self.items.append(Finding(rule, f"{self.where}{entity}", show() if show is not None else "", message))

    def names(self, rule: str, kind: str, names: list[str]) -> None:
        """Check that `names` of one scope are well-formed and distinct."""
        seen: set[str] = set()
        for name in names:
            if not IDENTIFIER.fullmatch(name):
                self.add(rule, f"{kind} '{name}'", "the name has characters other than letters, digits, '_' and '.'")
            if name in seen:
                self.add(rule, f"{kind} '{name}'", "the name is defined twice")
            seen.add(name)
