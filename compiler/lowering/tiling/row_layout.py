"""Layouts of computed values over shared rows: which part of the rows, or of the features, each axis of a value is.

Values of consecutive kernels have different shapes: `[64, 49, 48]` windows of an image become `[1, 3136, 48]` tokens
through a reshape and a transpose. Both are the same rows in another order. An *atom* is an indivisible part of an
axis; a reshape splits atoms, a transpose exchanges them, and the operands of an elementwise op have the same atoms.

Invariant: a value's atoms are rows, which all values of a kernel share, or features, which differ from product to
product; no atom is in two axes of a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.kernel import View

Layout = tuple[tuple[int, ...], ...]
"""The atoms of each axis, outermost first; () for an axis of one element."""


@dataclass(slots=True)
class Atoms:
    """Atoms by number. A split atom is replaced by its parts, a unified one by the other, wherever it occurs."""

    sizes: list[int] = field(default_factory=list)
    row: list[bool] = field(default_factory=list)
    floating: list[bool] = field(default_factory=list)
    _parts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def new(self, size: int, *, row: bool, floating: bool = False) -> tuple[int, ...]:
        """An atom of that many elements; none for a single one. `floating` rows belong to a value that no computed one
        has determined the order of."""
        if size == 1:
            return ()
        self.sizes.append(size)
        self.row.append(row)
        self.floating.append(floating)
        return (len(self.sizes) - 1,)

    def leaves(self, atoms: Sequence[int]) -> tuple[int, ...]:
        """The indivisible parts of `atoms`."""
        found: list[int] = []
        for atom in atoms:
            parts = self._parts.get(atom)
            found += (atom,) if parts is None else self.leaves(parts)
        return tuple(found)

    def size(self, atoms: Sequence[int]) -> int:
        """The number of elements of an axis of these atoms."""
        return math.prod(self.sizes[a] for a in atoms)

    def _split(self, atom: int, outer: int) -> tuple[int, int]:
        """The atom as `outer` times the rest. Raises NotFusable."""
        if self.sizes[atom] % outer:
            raise NotFusable("a reshape cuts the rows where another does not")
        kind = {"row": self.row[atom], "floating": self.floating[atom]}
        (first,), (second,) = self.new(outer, **kind), self.new(self.sizes[atom] // outer, **kind)
        self._parts[atom] = (first, second)
        return first, second

    def reshaped(self, layout: Layout, shape: Sequence[int]) -> Layout:
        """The layout of a value reshaped to `shape`. Raises NotFusable."""
        left = list(self.leaves([a for axis in layout for a in axis]))
        found: list[tuple[int, ...]] = []
        for size in shape:
            axis: list[int] = []
            need = size
            while need > 1:
                if not left:
                    raise NotFusable("a reshape repeats rows")
                atom = left.pop(0)
                if self.sizes[atom] > need:
                    atom, rest = self._split(atom, need)
                    left.insert(0, rest)
                if need % self.sizes[atom]:
                    raise NotFusable("a reshape cuts the rows where another does not")
                need //= self.sizes[atom]
                axis.append(atom)
            found.append(tuple(axis))
        return tuple(found)

    def unify(self, a: Sequence[int], b: Sequence[int]) -> None:
        """Make two axes of an elementwise op's operands one. Raises NotFusable if they are different rows."""
        first, second = list(self.leaves(a)), list(self.leaves(b))
        while first and second:
            x, y = first.pop(0), second.pop(0)
            if self.sizes[x] > self.sizes[y]:
                x, rest = self._split(x, self.sizes[y])
                first.insert(0, rest)
            elif self.sizes[y] > self.sizes[x]:
                y, rest = self._split(y, self.sizes[x])
                second.insert(0, rest)
            if x == y:
                continue
            if self.row[x] != self.row[y]:
                raise NotFusable("an op combines rows with features")
            if self.floating[y] or not self.row[x]:
                self._parts[y] = (x,)
            elif self.floating[x]:
                self._parts[x] = (y,)
            else:
                raise NotFusable("an op combines rows in different orders")
        if first or second:
            raise NotFusable("an op combines axes of different sizes")


def spread(view: View, layout: Layout, domain: Sequence[int], atoms: Atoms) -> View:
    """An operand or result, seen through `view` with an axis for each of `layout` (fewer: the last ones), as a view
    with an axis for each leaf in `domain`, stride 0 where it is broadcast. Raises NotFusable if it has others."""
    strides = dict.fromkeys(domain, 0)
    for size, stride, axis in zip(view.shape, view.strides, layout[len(layout) - len(view.shape) :], strict=True):
        inner = stride
        for atom in reversed(atoms.leaves(axis)) if size > 1 else ():
            if atom not in strides:
                raise NotFusable("a value has rows that others do not have")
            if stride == 0:
                raise NotFusable("an operand repeats elements")
            strides[atom] = inner
            inner *= atoms.sizes[atom]
    sizes = (atoms.sizes[a] if strides[a] else 1 for a in domain)
    return View(tuple(sizes), tuple(strides.values()), view.offset)
