"""Findings of a verifier, collected so that one run reports every broken invariant."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import Kernel
from ppuc.ir.vector import VectorProgram

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


class Checked:
    """The records of the last module that was found well-formed. Records are frozen: what a pass leaves as it is needs
    no second check of its own rules. Kernels hold for the vector programs they were checked with."""

    def __init__(self) -> None:
        self._known: dict[int, object] = {}  # by identity; the values keep identities from being used again
        self._seen: dict[int, object] = {}
        self._vectors: tuple[VectorProgram, ...] = ()

    def begin(self, vectors: tuple[VectorProgram, ...]) -> None:
        """A module with these vector programs is to be checked."""
        if vectors != self._vectors:
            self._known = {key: item for key, item in self._known.items() if not isinstance(item, Kernel)}
        self._vectors, self._seen = vectors, {}

    def holds(self, item: Op | Graph | Kernel) -> bool:
        """Whether `item` is part of the last module, too."""
        self._seen[id(item)] = item
        return id(item) in self._known

    def end(self) -> None:
        """The module is well-formed."""
        self._known, self._seen = self._seen, {}


class Findings:
    """Collects findings. `where` (the kernel, segment or graph being checked) prefixes each entity."""

    def __init__(self, checked: Checked | None = None) -> None:
        self.checked = checked if checked is not None else Checked()
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
