"""Base of the lowerings of one product, a matmul or a convolution, whose tiles a search chooses.

Invariant: a kernel has one nest: loops over tiles, then the loops of the reduction; the epilogue follows the latter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering.kernels.contraction import ContractionLowering, Rings
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.ir.types import Space


@dataclass(frozen=True, slots=True)
class TileChoice:
    """The chosen tile sizes and units per axis of the domain, ring depths, and the expected cycles."""

    tiles: tuple[int, ...]
    rings: Rings
    units: tuple[int, ...]
    price: float


class ProductLowering(ContractionLowering, ABC):
    """Builds the kernel of `choice` around the loads and products that a subclass adds."""

    choice: TileChoice
    transposes = True

    @property
    def price(self) -> float:
        """Expected cycles with the chosen tiles."""
        return self.choice.price

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        choice = self.choice
        self.kernel.price_clk = self.price
        loops = [Tiling(a.name, a.size, self.tiles[i], choice.units[i]) for i, a in enumerate(self.space.axes)]
        nest, acc = self.accumulate(loops)
        self.transposed = self.worth_transposing(self.tiles)
        self.epilogue(nest, len(loops), acc, after=True, out_depth=choice.rings.out)
        self.kernel.nests.append(nest)
        return self.kernel

    @abstractmethod
    def accumulate(self, loops: Sequence[Tiling]) -> tuple[Nest, str]:
        """The nest over the tiles' `loops` and those of the reduction, with the loads and the mma, and the name of the
        accumulator's buffer."""

    def accumulator(self) -> str:
        """Add the accumulator's ring, one tile per slot; returns its name."""
        shape = [self.tiles[i] for i in self.tile_axes()]
        return self.kernel.buffer("c", self.acc_dtype, shape, Space.ACC, self.choice.rings.acc)


__all__ = ["ProductLowering", "TileChoice"]
