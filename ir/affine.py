"""Affine expressions over loop variables and tile axes: `const + sum(coefficient * name)`.

Names: a loop variable is a bare name (`m`, printed `%m`), a tile axis is `$0`, `$1`, ... (the index along that axis of
the tile that is being moved). Invariant: terms are sorted by name and carry no zero coefficient, so equal expressions
are equal objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Affine:
    """`const + sum(coefficient * name for name, coefficient in terms)`; build with `affine`, not directly."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        total = dict(self.terms)
        for name, coefficient in other.terms:
            total[name] = total.get(name, 0) + coefficient
        return affine(self.const + other.const, total)

    def __sub__(self, other: int) -> Affine:
        return self + -other

    def __mul__(self, factor: int) -> Affine:
        return affine(self.const * factor, {n: c * factor for n, c in self.terms})

    def __str__(self) -> str:
        parts: list[str] = []
        for name, coefficient in self.terms:
            shown = name if name.startswith("$") else f"%{name}"
            sign = "-" if coefficient < 0 else "+"
            text = shown if abs(coefficient) == 1 else f"{shown} * {abs(coefficient)}"
            parts.append(f"{sign} {text}")
        if self.const or not parts:
            parts.append(f"{'-' if self.const < 0 else '+'} {abs(self.const)}")
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def value(self, env: Mapping[str, int]) -> int:
        """Evaluate with every name bound in `env`."""
        return self.const + sum(c * env[n] for n, c in self.terms)

    def coefficient(self, name: str) -> int:
        """The factor of `name`, 0 when absent."""
        return next((c for n, c in self.terms if n == name), 0)

    @property
    def loops(self) -> Affine:
        """The part that does not depend on tile axes."""
        return Affine(self.const, tuple(t for t in self.terms if not t[0].startswith("$")))

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """(tile axis, coefficient) pairs."""
        return tuple((int(n[1:]), c) for n, c in self.terms if n.startswith("$"))


def affine(const: int = 0, terms: Mapping[str, int] | None = None) -> Affine:
    """The normal form of `const + sum(terms)`."""
    return Affine(const, tuple(sorted((n, c) for n, c in (terms or {}).items() if c)))


def var(name: str, factor: int = 1) -> Affine:
    """`factor * %name`."""
    return affine(0, {name: factor})


def axis(index: int, factor: int = 1) -> Affine:
    """`factor * $index`."""
    return affine(0, {f"${index}": factor})
