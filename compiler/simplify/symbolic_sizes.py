"""Symbolic sizes: numbers, or polynomials over the model's symbols.

Symbols are sizes, so they are never negative. Invariant: equal sizes compare equal (`==`), and a size without symbols
is an int.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Monomial = tuple[str, ...]
"""Sorted symbols; () is the constant term."""


@dataclass(frozen=True, slots=True)
class Poly:
    """A sum of `coefficient * symbols`, sorted, without zero coefficients, with at least one symbol."""

    terms: tuple[tuple[Monomial, int], ...]

    def __str__(self) -> str:
        texts = ["*".join([*([] if c == 1 and m else [str(c)]), *m]) for m, c in self.terms]
        return " + ".join(texts)


Size = int | Poly


def symbol(name: str) -> Poly:
    """The size of a symbol."""
    return Poly((((name,), 1),))


def _terms(size: Size) -> dict[Monomial, int]:
    return dict(size.terms) if isinstance(size, Poly) else {(): size}


def _normal(terms: Mapping[Monomial, int]) -> Size:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    return kept[()] if kept.keys() == {()} else Poly(tuple(sorted(kept.items())))


def add(a: Size, b: Size) -> Size:
    """a + b."""
    total = _terms(a)
    for m, c in _terms(b).items():
        total[m] = total.get(m, 0) + c
    return _normal(total)


def multiply(a: Size, b: Size) -> Size:
    """a * b."""
    total: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        for n, d in _terms(b).items():
            key = tuple(sorted((*m, *n)))
            total[key] = total.get(key, 0) + c * d
    return _normal(total)


def subtract(a: Size, b: Size) -> Size:
    """a - b."""
    return add(a, multiply(b, -1))


def divide(a: Size, b: Size) -> Size | None:
    """a / b if the division is exact for all symbol values; None if that is not known."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if a == b else None
    ((symbols, factor),) = divisor.items()
    if factor == 0:
        return None
    quotient: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        left = list(m)
        for s in symbols:
            if s not in left:
                return None
            left.remove(s)
        if c % factor:
            return None
        quotient[tuple(left)] = c // factor
    return _normal(quotient)


def product(sizes: tuple[Size, ...]) -> Size:
    """The product of the sizes."""
    total: Size = 1
    for size in sizes:
        total = multiply(total, size)
    return total


def not_negative(size: Size) -> bool:
    """Whether the size is at least 0 whatever the symbols are."""
    return size >= 0 if isinstance(size, int) else all(c > 0 for _, c in size.terms)


def positive(size: Size) -> bool:
    """Whether the size is at least 1 whatever the symbols are."""
    return not_negative(subtract(size, 1))


def broadcast(a: Size, b: Size) -> Size | None:
    """The size that two axes broadcast to; None when that depends on the symbols. An axis of a known size above 1 can
    only meet 1 or itself."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        return None
    if isinstance(a, int) or isinstance(b, int):
        known = a if isinstance(a, int) else b
        return known if isinstance(known, int) and known > 1 else None
    return None


def broadcast_shapes(*shapes: tuple[Size, ...]) -> tuple[Size, ...] | None:
    """numpy's rule over whole shapes; None when unknown."""
    result: list[Size] = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i, size in enumerate(shape, len(result) - len(shape)):
            met = broadcast(result[i], size)
            if met is None:
                return None
            result[i] = met
    return tuple(result)
