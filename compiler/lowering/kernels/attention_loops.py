"""Loops and buffers of attention kernels: walks over keys, and parts of rows and groups of heads that an iteration
interleaves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ppuc.compiler.lowering.tiling.nest import Nest, Tiling
from ppuc.ir.affine import Affine, var
from ppuc.ir.kernel import Bound


@dataclass(frozen=True, slots=True)
class PartKeys(Tiling):
    """The keys of part `p`: `size` keys from `p * size` on, of `limit` in total."""

    limit: int = 0

    @property
    def offset(self) -> Affine:
        return var("p", self.size) + (var(self.name) if self.exists else Affine())

    @property
    def bound(self) -> Bound | None:
        return Bound(self.offset, self.limit) if self.limit % self.size or self.size % self.tile else None


@dataclass(frozen=True, slots=True)
class Range(Tiling):
    """`size` keys or rows from `start` on, in a loop even if one tile holds them: loops that follow one another then
    share rings, but no slots."""

    start: int = 0

    @property
    def exists(self) -> bool:
        return True

    @property
    def offset(self) -> Affine:
        return var(self.name) + self.start

    @property
    def bound(self) -> Bound | None:
        return Bound(self.offset, self.start + self.size) if self.size % self.tile else None


@dataclass(frozen=True, slots=True)
class Band(Range):
    """One of several ranges of the rows `axis`, all distributed over the same units."""

    axis: str = ""

    @property
    def over(self) -> str:
        return f"c{self.axis}"


@dataclass(frozen=True, slots=True)
class Part(Tiling):
    """The rows, or the group of heads, from `shift` on of each tile of `loop`."""

    loop: Tiling = field(kw_only=True)
    shift: int = 0

    @classmethod
    def of(cls, loop: Tiling, shift: int) -> Part:
        """A part of each tile of `loop`."""
        return cls(loop.name, loop.size, loop.tile, loop.units, loop=loop, shift=shift)

    @property
    def offset(self) -> Affine:
        return self.loop.offset + self.shift

    @property
    def bound(self) -> Bound | None:
        whole = self.loop.bound
        return None if whole is None else Bound(self.offset, whole.limit)


@dataclass(frozen=True, slots=True)
class KeyTile(Tiling):
    """The `tile` keys from `shift` on of each iteration of `loop`, which covers several such tiles."""

    loop: Tiling = field(kw_only=True)
    shift: int = 0

    @property
    def offset(self) -> Affine:
        return self.loop.offset + self.shift

    @property
    def exists(self) -> bool:
        return self.loop.exists

    @property
    def bound(self) -> Bound | None:
        last = self.shift + self.tile == self.loop.tile
        return Bound(self.offset, self.size) if last and self.size % self.tile else None


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk over keys: the nest with its loops, and whether rows see only keys up to their own position. An
    iteration takes one tile of keys, or several, one of which is `tile`."""

    nest: Nest
    masked: bool
    tile: KeyTile | None = None

    @property
    def keys(self) -> Tiling:
        """The loop over keys."""
        return self.tile or self.nest.loops[-2]

    def tiles(self, count: int) -> list[Walk]:
        """The walk for each of the tiles of keys of an iteration."""
        loop = self.nest.loops[-2]
        if count == 1:
            return [self]
        size = loop.tile // count
        return [
            replace(self, tile=KeyTile(loop.name, loop.size, size, loop=loop, shift=i * size)) for i in range(count)
        ]

    @property
    def depth(self) -> Tiling:
        """The loop over the depth of q . k."""
        return self.nest.loops[-1]


@dataclass(slots=True)
class Lane:
    """The loops over one part of rows of one group of heads by axis, and its buffers: `matrices` those of k and v,
    `ends` those of the epilogue by operand."""

    loops: dict[str, Tiling] = field(default_factory=dict)
    matrices: dict[str, str] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    query: str = ""
    mask: str = ""
    scores: str = ""
    product: str = ""
    weights: str = ""
    high: str = ""
    total: str = ""
    alpha: str = ""
    result: str = ""


def bounds_of(*loops: Tiling) -> tuple[Bound | None, ...]:
    """Valid extents along the axes of these loops; () if every tile is whole."""
    bounds = tuple(loop.bound for loop in loops)
    return bounds if any(bound is not None for bound in bounds) else ()
