"""Convolutions of compilers for large scratchpads (`launch.tile_sides` whole columns): weights stay, images pass.

The filters are loaded whole before the first tile, if they fit three quarters of l1. If a quarter holds them with at
least one image and its result, images are loaded whole, multiplied and stored, as many at a time as fit, one step after
another, like the heads of an attention; otherwise images, or bands of their rows, stream past the filters.

Invariant: a tile has all columns and all channels, and either whole images or rows of one.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import Rings, ranked, sizes
from ppuc.compiler.lowering.kernels.conv_tiles import FEW, ConvChoice, TiledConv
from ppuc.targets.cost import layout_weight


class ResidentConv(TiledConv, ABC):
    """Adds choices with resident filters to the search."""

    def _choose(self, rank: int) -> ConvChoice:
        if self.target.launch.tile_sides == "whole columns" and (found := self._resident()):
            return ranked(found, min(rank, len(found) - 1), "convolution", self.target)
        return super()._choose(rank)

    @property
    def _few(self) -> bool:
        """Whether all taps are one sum, because the channels of one would leave most of the array's rows empty."""
        return self.channels < FEW and math.prod(self.filter) > 1

    def _resident(self) -> list[ConvChoice]:
        """The choices; none if the filters do not fit, or no tile beside them."""
        quarter, outputs = self.target.l1.bytes // 4, self._size(len(self.at) - 1)
        filters = math.prod(self.filter) * self.channels * outputs * self.w_dtype.bytes
        if self.grouped or filters > 3 * quarter:
            return []
        found = []
        for tiles in self._images():
            held = filters + self._image_bytes(tiles) + self.epilogue_bytes(tiles, 1)
            rings = self.rings(self.room(tiles), self._image_bytes(tiles), filters) if held <= quarter else None
            if rings is not None:
                found = [self._past_filters(tiles, replace(rings, operands=1))]
        if found:
            return found
        for tiles in (*self._images(), *self._bands()):
            rings = self.rings(self.room(tiles), self._image_bytes(tiles), filters)
            found += [] if rings is None else [self._past_filters(tiles, rings)]
        return found

    def _images(self) -> Iterator[list[int]]:
        """Tiles of whole images, from few to many."""
        for count in [1] if self._few else sizes(self._size(0), 1, self._size(0)):
            tiles = [axis.size for axis in self.space.axes]
            if self.at[0] is not None:
                tiles[self.at[0]] = count
            yield tiles

    def _bands(self) -> Iterator[list[int]]:
        """Tiles of some rows of an image."""
        if self.at[1] is None or self.at[1] in self.reduced:
            return
        for rows in sizes(self._size(1) - 1, 1, self._size(1)):
            tiles = [axis.size for axis in self.space.axes]
            tiles[self.at[1]] = rows
            if self.at[0] is not None:
                tiles[self.at[0]] = 1
            yield tiles

    def _image_bytes(self, tiles: Sequence[int]) -> int:
        """l1 bytes of the images, or parts of one, that a tile needs."""
        elements = self._extent(tiles, 0) * math.prod(self._halo(tiles)) * self.channels
        return -(-elements * self.dtype.bytes // 32) * 32

    def _past_filters(self, tiles: list[int], rings: Rings) -> ConvChoice:
        """The choice of these tiles; with one slot for images, a step begins when the one before has ended."""
        known, target = self._of_tiles(tuple(tiles)), self.target
        tm, tn, active = known.points, known.columns, math.prod(known.units)
        vec, store, extra = known.epilogue
        taps = math.prod(self.filter)
        mmas, k = (1, taps * self.channels) if self._few else (taps, self.channels)
        mma = mmas * cost.mma_clk(tm, tn, k, cost.tensor_dtype(self.dtype, target), target)
        moved = self._image_bytes(tiles)
        rows = self._extent(tiles, 0) * math.prod(self._halo(tiles)[:-1])
        padding = moved * (layout_weight(self.x.shape, self.x.strides, target) - 1.0)
        load = cost.load_clk(cost.Traffic(moved, rows, padding), target, active, self.x_space)
        load += cost.overhead_clk(target)
        latency = cost.latency_clk(target, self.x_space)
        beat = cost.beat_clk(mma, load, latency, rings.operands, target.load.in_flight)
        tile = max(self.tile_clk(rings, beat, vec, store, extra), self.handed_on_clk(rings, mma, vec, tn, k))
        filters = cost.Traffic(taps * self.channels * tn * self.w_dtype.bytes, taps * self.channels)
        ends = latency + load + vec + store + cost.load_clk(filters, target, active, self.w_space)
        price = known.iterations * tile + ends
        feed = "rolled" if self._few else "taps"
        return ConvChoice(tuple(tiles), rings, known.units, price, feed, self.channels, 0, True, resident=True)


__all__ = ["ResidentConv"]
