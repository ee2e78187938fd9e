"""Builds kernels: loops, the statements between them, parameters and buffers.

A Nest is a chain of loops, outermost first, with statements before and after the next inner loop at every depth. Loops
with a trip count of 1 are omitted: their variable is the constant 0. Invariant: `over` axes appear in the grid in loop
order, so the loops alone determine which unit runs an iteration.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.kernel import MAX_TILE_RANK, Bound, Buffer, Kernel, Load, Loop, Mma, Param, Stmt, Store, Vec, View
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram


@dataclass(frozen=True, slots=True)
class Tiling:
    """One loop: `size` divided into tiles of `tile`, with iterations distributed over `units` units."""

    name: str
    size: int
    tile: int
    units: int = 1

    @property
    def trips(self) -> int:
        return -(-self.size // self.tile)

    @property
    def exists(self) -> bool:
        """Whether the loop has more than one iteration."""
        return self.trips > 1

    @property
    def over(self) -> str:
        """The grid axis that the loop is distributed over, if it has several units."""
        return f"c{self.name}"

    @property
    def offset(self) -> Affine:
        """Start of the current tile."""
        return var(self.name) if self.exists else Affine()

    @property
    def bound(self) -> Bound | None:
        """The valid extent of a tile; None if every tile is whole."""
        return Bound(self.offset, self.size) if self.size % self.tile else None


@dataclass(slots=True)
class Nest:
    """Loops with statements around them. `before[d]` and `after[d]` are inside loop d - 1 (d = 0: outside all loops),
    before and after loop d."""

    loops: list[Tiling]
    before: dict[int, list[Stmt]] = field(default_factory=dict)
    after: dict[int, list[Stmt]] = field(default_factory=dict)

    def depth_of(self, names: Sequence[str]) -> int:
        """The smallest depth at which the variables in `names` are all bound."""
        return max((i + 1 for i, loop in enumerate(self.loops) if loop.name in names and loop.exists), default=0)

    def add(self, depth: int, stmt: Stmt, *, after: bool = False) -> None:
        """Append a statement at `depth`."""
        (self.after if after else self.before).setdefault(depth, []).append(stmt)

    def prepend(self, earlier: Nest, depth: int) -> None:
        """Add the statements of `earlier`, whose outer `depth` loops are those of this nest, before loop `depth`.
        `earlier` has no statements after its loops outside `depth`; it cannot be built afterwards."""
        for outer in range(depth + 1):
            for stmt in earlier.before.pop(outer, []):
                self.add(outer, stmt)
        for stmt in earlier.build(depth):
            self.add(depth, stmt)

    def build(self, depth: int = 0) -> tuple[Stmt, ...]:
        """The statements from `depth` inwards."""
        inner: tuple[Stmt, ...] = ()
        if depth < len(self.loops):
            loop = self.loops[depth]
            inner = self.build(depth + 1)
            if loop.exists:
                over = loop.over if loop.units > 1 else None
                inner = (Loop(loop.name, loop.size, loop.tile, inner, over),) if inner else ()
        return (*self.before.get(depth, ()), *inner, *self.after.get(depth, ()))

    @property
    def grid(self) -> tuple[tuple[str, int], ...]:
        """The grid given by the loops' unit counts."""
        return tuple((loop.over, loop.units) for loop in self.loops if loop.exists and loop.units > 1)


@dataclass(slots=True)
class KernelBuilder:
    """Parameters, buffers, vector programs and nests of one kernel. `price_clk` is its expected cycles, if the cost
    model chose it."""

    name: str
    loc: tuple[str, ...]
    params: list[Param] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    vectors: list[VectorProgram] = field(default_factory=list)
    nests: list[Nest] = field(default_factory=list)
    price_clk: float | None = None
    _names: set[str] = field(default_factory=set)

    def fresh(self, hint: str) -> str:
        """A buffer or parameter name not used in this kernel yet."""
        name, n = hint, 1
        while name in self._names:
            name, n = f"{hint}.{n}", n + 1
        self._names.add(name)
        return name

    def param(self, tensor: str, dtype: DType, view: View, *, written: bool = False) -> str:
        """A tensor operand, shared between uses with the same tensor, view and role."""
        for known in self.params:
            if (known.tensor, known.view, known.written) == (tensor, view, written):
                return known.name
        name = self.fresh(tensor)
        self.params.append(Param(name, tensor, dtype, view, Space.HBM, written))
        return name

    def buffer(self, hint: str, dtype: DType, shape: Sequence[int], space: Space = Space.L1, depth: int = 2) -> str:
        """A ring of tiles."""
        name = self.fresh(hint)
        self.buffers.append(Buffer(name, dtype, tuple(shape), space, depth))
        return name

    def vector(self, program: VectorProgram) -> str:
        """Add a vector program."""
        self.vectors.append(program)
        return program.name

    def finish(self) -> tuple[Kernel, tuple[VectorProgram, ...]]:
        """The kernel. All nests must agree on the grid axes they share."""
        grid: dict[str, int] = {}
        for nest in self.nests:
            grid.update(nest.grid)
        body = tuple(stmt for nest in self.nests for stmt in nest.build())
        kernel = Kernel(self.name, tuple(grid.items()), tuple(self.params), tuple(self.buffers), body, self.loc)
        return kernel, tuple(self.vectors)


def distribute(trips: tuple[int, ...], units: int) -> tuple[int, ...]:
    """Units per loop (outermost first) that minimise the iterations of the busiest unit. Ties prefer inner loops: all
    units then work on the same image or rows, so the next kernel can start on these early."""
    return _distribution(trips[::-1], units)[::-1]


@functools.lru_cache(maxsize=65536)
def _distribution(trips: tuple[int, ...], units: int) -> tuple[int, ...]:
    """Units per loop that minimise the iterations of the busiest unit; ties prefer the first loops."""
    best, best_cost = (1,) * len(trips), math.prod(trips)

    def search(i: int, left: int, chosen: list[int], cost: int) -> None:
        nonlocal best, best_cost
        if i == len(trips):
            if cost < best_cost:
                best, best_cost = tuple(chosen), cost
            return
        if trips[i] == 1:
            search(i + 1, left, [*chosen, 1], cost)
            return
        options = {min(trips[i], left)} | {min(trips[i], left) // d for d in (2, 4, 8, 16)} | {1}
        options |= {-(-trips[i] // w) for w in (1, 2, 3, 4) if -(-trips[i] // w) <= left}
        for n in sorted((o for o in options if o >= 1), reverse=True):
            search(i + 1, left // n, [*chosen, n], cost * -(-trips[i] // n))

    search(0, units, [], 1)
    return best


def tile_index(
    offsets: Sequence[Affine], axes: Sequence[int | None], factors: Sequence[int] | None = None
) -> tuple[Affine, ...]:
    """One affine expression per view dimension: its offset, plus `$axis` (times a factor) if it has a tile axis."""
    factors = factors or [1] * len(offsets)
    return tuple(
        offset if a is None else offset + axis(a, f) for offset, a, f in zip(offsets, axes, factors, strict=True)
    )


__all__ = [
    "MAX_TILE_RANK",
    "KernelBuilder",
    "Load",
    "Mma",
    "Nest",
    "Store",
    "Tiling",
    "Vec",
    "distribute",
    "tile_index",
]
