"""Tile search for convolutions: operand views, feeds, capacity and cost of each choice.

Axes of the domain are never merged: [n, *spatial, group, channels of the group]. Invariant: the accumulator and the
input tile of a choice fit their memories, rings included, as the kernel allocates them.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import (
    Room,
    anchor_of,
    operand_ops,
    operand_view,
    ranked,
    searched,
    sizes,
)
from ppuc.compiler.lowering.kernels.folds import array_clk, fewest_cycles, parts, serial_array
from ppuc.compiler.lowering.kernels.product import ProductLowering, TileChoice
from ppuc.compiler.lowering.tiling.body import NotFusable, analyse
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK
from ppuc.compiler.lowering.tiling.tiled import groups as merged_groups
from ppuc.ir import views
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import View
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.targets.cost import mma_shape
from ppuc.targets.schema import Target

FEW = 16
"""With fewer input channels, the filter window also fills a fragment's k."""

FAR = 16
"""Distance between a window's first and last tap along an axis from which loading the input per tap is considered."""

MOST_POINTS = 512
"""Result points up to which a tile takes the same part of several images: those of one may leave fragments empty."""

SEVERAL = ("taps", "tapwise")
"""Feeds whose tiles may hold several images."""

POINTS = ((16, 32, 64, 128, 256), (8, 4, 2, 1))
"""Candidate result points of a tile: those that fill a fragment's rows, then fewer in case their halo does not fit."""


Step = tuple[int, float, int, tuple[int, int, bool, int, int, int]]
"""A way to cut the reduction: bytes of an input tile, its rows, elements of a weight tile, and (channels, filter rows,
all taps, steps, mmas a step, k of one mma)."""


@dataclass(frozen=True, slots=True)
class ConvChoice(TileChoice):
    """Tiles of the domain's axes and the walk over the filter: the feed, channels per chunk, filter rows per window
    load (packed) or whether one load brings the weights of all taps; `resident`: it does so before the first tile."""

    feed: str
    channels: int
    rows: int
    all_taps: bool
    resident: bool = False


@dataclass(frozen=True, slots=True)
class TileFacts:
    """What all steps of tiles have in common: result points and columns of a tile, units per axis and iterations of the
    busiest one, cycles of the epilogue (vector, store, load), and what is left of l1."""

    points: int
    columns: int
    units: tuple[int, ...]
    iterations: float
    epilogue: tuple[float, float, float]
    room: tuple[Room, ...]


class TiledConv(ProductLowering, ABC):
    """A group around one nhwc conv, its operands in memory, and the search for its tiles: `rank` selects a tiling by
    price, 0 being the cheapest."""

    choice: ConvChoice

    def __init__(
        self,
        name: str,
        body: Graph,
        tensors: Mapping[str, str],
        loc: tuple[str, ...],
        target: Target,
        rank: int = 0,
    ) -> None:
        anchor = anchor_of(body, "conv")
        attrs = anchor.attrs
        assert isinstance(attrs, ConvAttrs)
        if attrs.layout != "nhwc":
            raise NotFusable("convolutions must be channels last")
        self.attrs = attrs
        (x_value, x), (w_value, w) = (operand_view(body, v) for v in anchor.operands)
        result = anchor.results[0].type.dims
        self.spatial = len(attrs.strides)
        self.filter = w.shape[: self.spatial]
        self.channels, outputs = w.shape[-2], result[-1] // attrs.groups
        domain = result if attrs.groups == 1 else (*result[:-1], attrs.groups, outputs)
        self.grouped = attrs.groups > 1
        skip = frozenset({anchor.results[0].name}) | operand_ops(body, anchor)
        chain = analyse(body, anchor.results[0], domain, skip)
        super().__init__(name, body, tensors, loc, target, chain, separate=range(len(domain)))
        position = {group[0]: i for i, group in enumerate(merged_groups(domain, self.space))}
        self.at = [position.get(d) for d in range(len(domain))]  # domain axis -> merged axis, None where the size is 1
        self.x, self.w = self._split(x, w)
        self.x_tensor, self.w_tensor = tensors[x_value.name], tensors[w_value.name]
        self.x_space, self.w_space = x_value.space, w_value.space
        self.dtype, self.w_dtype = x_value.type.dtype, w_value.type.dtype
        self.multiply(self.w_dtype, "convolution")
        if self.at[0] in self.reduced or (self.grouped and self.at[-2] in self.reduced):
            raise NotFusable("the epilogue reduces over images or groups")
        self._facts: dict[tuple[int, ...], TileFacts] = {}
        self.choice = self._choose(rank)
        self.tiles = list(self.choice.tiles)

    def _split(self, x: View, w: View) -> tuple[View, View]:
        """x as [n, *s, (g,) c] and w as [*k, c, (g,) o]."""
        if not self.grouped:
            return x, w
        g = self.attrs.groups
        x_split = views.reshape(x, (*x.shape[:-1], g, self.channels))
        w_split = views.reshape(w, (*w.shape[:-1], g, w.shape[-1] // g))
        if x_split is None or w_split is None:
            raise NotFusable("the groups of an operand are not adjacent in memory")
        return x_split, w_split

    # domain axes: 0 = n, 1 .. spatial = space, then (group,) channels

    def _extent(self, tiles: Sequence[int], domain_axis: int) -> int:
        at = self.at[domain_axis]
        return 1 if at is None else tiles[at]

    def _size(self, domain_axis: int) -> int:
        at = self.at[domain_axis]
        return 1 if at is None else self.space.axes[at].size

    def _halo(self, tiles: Sequence[int]) -> list[int]:
        a = self.attrs
        return [
            (self._extent(tiles, 1 + d) - 1) * a.strides[d] + (self.filter[d] - 1) * a.dilations[d] + 1
            for d in range(self.spatial)
        ]

    def _choose(self, rank: int) -> ConvChoice:
        feeds = ["taps"]
        if math.prod(self.filter) > 1 and self.channels < FEW and not self.grouped:
            feeds += ["rolled", "packed"] if 2 * self.spatial + 1 <= MAX_TILE_RANK else ["rolled"]
        if any((taps - 1) * d >= FAR for taps, d in zip(self.filter, self.attrs.dilations, strict=True)):
            feeds.append("tapwise")
        if serial_array(self.target):
            return ranked(self._folded(feeds), rank, "convolution", self.target)
        found = self._fed(feeds, rank) or self._fed(["tapwise"], rank)
        return ranked(found, rank, "convolution", self.target)

    def _fed(self, feeds: Sequence[str], rank: int) -> list[ConvChoice]:
        """The best choices for tiles and feeds, with as many points as fit."""
        for points in POINTS:
            candidates = self._tile_candidates(points)
            tilings = [(tiles, feed) for tiles in candidates for feed in feeds]
            several = [tiles for tiles in candidates for tiles in self._several_images(tiles)]
            tilings += [(tiles, feed) for tiles in several for feed in feeds if feed in SEVERAL]
            bounded = [(self._least(tiles), (tiles, feed)) for tiles, feed in tilings]
            if found := searched(bounded, lambda tiling: self._best(*tiling), rank):
                return found
        return []

    def _least(self, tiles: Sequence[int]) -> float:
        """Lower bound on the cost of any choice with these tiles: tensor-engine cycles of the busiest unit."""
        known, dtype = self._of_tiles(tuple(tiles)), cost.tensor_dtype(self.dtype, self.target)
        k = math.prod(self.filter) * self.channels
        return known.iterations * cost.mma_clk(known.points, known.columns, k, dtype, self.target)

    def _folded(self, feeds: Sequence[str]) -> list[ConvChoice]:
        """The choices with the fewest cycles on a serial array, which takes all taps as one sum if it can."""
        if math.prod(self.filter) > 1 and not self.grouped:
            feeds = list(dict.fromkeys((*feeds, "rolled")))
        image = math.prod(self._size(1 + d) for d in range(self.spatial))
        tilings: list[tuple[float, tuple[list[int], str, Step]]] = []
        for tiles in self._tile_candidates((*itertools.chain(*POINTS), *sizes(image, 512, image))):
            tn = self._extent(tiles, len(self.at) - 1)
            for feed in dict.fromkeys((*feeds, "tapwise")):
                for step in self._steps(tiles, feed, tn):
                    tilings.append((self._array_clk(tiles, feed, step), (tiles, feed, step)))
        return fewest_cycles(tilings, self._priced)

    def _tile_candidates(self, sizes_of_space: Sequence[int]) -> list[list[int]]:
        """Tiles of all merged axes: images and groups one at a time, space (some of `sizes_of_space` points) from whole
        rows to squares, channels."""
        axes = self.space.axes
        channel = self.at[-1]
        spaces = [self.at[1 + d] for d in range(self.spatial)]
        free = [s for s in spaces if s is not None]
        found: set[tuple[int, ...]] = set()
        for points, tn in itertools.product(sizes_of_space, self._columns()):
            for width in (axes[free[-1]].size, 4, 8, 16, 32) if free else (1,):
                tiles = [1] * len(axes)
                left = points
                for i in reversed(free):
                    size = min(axes[i].size, max(1, left), width if i == free[-1] else left)
                    tiles[i] = max(1, size)
                    left //= tiles[i]
                if channel is not None:
                    tiles[channel] = tn
                for i in self.reduced:
                    tiles[i] = axes[i].size
                found.add(tuple(tiles))
        return [list(t) for t in sorted(found)]

    def _several_images(self, tiles: Sequence[int]) -> Iterator[list[int]]:
        """These tiles with several images each, of numbers that leave less of the engine's rows empty than smaller
        ones."""
        at, points = self.at[0], math.prod(self._extent(tiles, 1 + d) for d in range(self.spatial))
        if at is None:
            return
        dtype = cost.tensor_dtype(self.dtype, self.target)
        rows, images, most = mma_shape(dtype, self.target).m * self.target.tensor.lane_grid[0], 1, self._size(0)
        filled = points / (-(-points // rows) * rows)
        while filled < 1 and (images := images * 2) <= min(most, MOST_POINTS // points):
            together = images * points / (-(-images * points // rows) * rows)
            if together > filled:
                yield [images if i == at else tile for i, tile in enumerate(tiles)]
                filled = together

    def _columns(self) -> list[int]:
        """Candidate channels of a tile."""
        count = self._size(len(self.at) - 1)
        found = sizes(count, 16, 256)
        if serial_array(self.target):
            array = mma_shape(cost.tensor_dtype(self.dtype, self.target), self.target)
            found = sorted({*found, *sizes(count, max(array.n, 16), count)})
        return found

    def _best(self, tiles: list[int], feed: str) -> ConvChoice | None:
        """The cheapest choice for these tiles and this feed."""
        tn = self._extent(tiles, len(self.at) - 1)
        found = (self._priced((tiles, feed, step)) for step in self._steps(tiles, feed, tn))
        return min((c for c in found if c is not None), key=lambda c: c.price, default=None)

    def _priced(self, tiling: tuple[list[int], str, Step]) -> ConvChoice | None:
        """The choice of these tiles, feed and step; None if it does not fit."""
        tiles, feed, (x_bytes, x_rows, w_elements, (channels, rows, all_taps, steps, mmas, k)) = tiling
        known = self._of_tiles(tuple(tiles))
        rings = self.rings(known.room, _align(x_bytes) + _align(w_elements * self.dtype.bytes))
        if rings is None:
            return None
        tm, tn, units, active = known.points, known.columns, known.units, math.prod(known.units)
        iterations, (vec, store, extra) = known.iterations, known.epilogue
        latency = cost.latency_clk(self.target, self.x_space, self.w_space)
        mma = mmas * cost.mma_clk(tm, tn, k, cost.tensor_dtype(self.dtype, self.target), self.target)
        loads = 2 if all_taps else 1 + mmas
        weights = cost.Traffic(w_elements * self.dtype.bytes, w_elements / max(min(tn, w_elements), 1)) * (loads - 1)
        load = cost.load_clk(cost.Traffic(x_bytes, x_rows), self.target, active, self.x_space)
        load += loads * cost.overhead_clk(self.target)
        load += cost.load_clk(weights, self.target, active, self.w_space)
        beat = cost.beat_clk(mma, load, latency, rings.operands)
        if loads > 2:  # one load per tap's weights: as many as the ring has slots hide the latency
            beat = max(beat, mmas * (latency + load / loads) / rings.operands)
        drain = vec if rings.out > 1 else vec + store
        tile = max(steps * beat + extra, drain, store)
        if rings.acc == 1:
            tile += vec
        price = iterations * tile + latency + load + vec + store + self.alone_clk(rings, load)
        return ConvChoice(tuple(tiles), rings, units, price, feed, channels, rows, all_taps)

    def _of_tiles(self, tiles: tuple[int, ...]) -> TileFacts:
        """What all steps of these tiles have in common."""
        if tiles not in self._facts:
            units, iterations = self.distribution(tiles)
            points = math.prod(self._extent(tiles, d) for d in range(1 + self.spatial))
            columns, epilogue = self._extent(tiles, len(self.at) - 1), self.chain_price(tiles, math.prod(units))
            self._facts[tiles] = TileFacts(points, columns, units, iterations, epilogue, self.room(tiles))
        return self._facts[tiles]

    def _array_clk(self, tiles: Sequence[int], feed: str, step: Step) -> float:
        """Cycles of the whole convolution on a serial array."""
        channels, rows, *_, k = step[3]
        taps, inner = math.prod(self.filter), math.prod(self.filter[1:]) * self.channels
        if feed == "packed":
            sums = [min(rows, self.filter[0] - at) * inner for at in range(0, self.filter[0], rows)]
        elif feed == "rolled":
            sums = [k]
        else:
            sums = [min(channels, self.channels - at) for at in range(0, self.channels, channels)] * taps
        size = {at: (self.space.axes[at].size, tiles[at]) for at in self.at if at is not None}
        space, last = [self.at[1 + d] for d in range(self.spatial)], self.at[-1]
        points = parts(size[at] for at in space if at is not None)
        cols = parts(size[at] for at in (last,) if at is not None)
        others = parts(both for at, both in size.items() if at not in (*space, last))
        dtype = cost.tensor_dtype(self.dtype, self.target)
        return sum(count for _, count in others) * array_clk(points, cols, sums, dtype, self.target)

    def _steps(self, tiles: list[int], feed: str, tn: int) -> list[Step]:
        """Ways to cut the reduction."""
        size = self.dtype.bytes
        taps, c = math.prod(self.filter), self.channels
        found: list[Step] = []
        if feed == "packed":
            points = math.prod(self._extent(tiles, 1 + d) for d in range(self.spatial))
            inner = math.prod(self.filter[1:]) * c
            for rows in sizes(self.filter[0], 1, self.filter[0]):
                k = rows * inner
                runs = points * rows * (math.prod(self.filter[1:-1]))
                steps = -(-self.filter[0] // rows)
                found.append((points * k * size, runs, k * tn, (c, rows, True, steps, 1, k)))
            return found
        if feed == "tapwise":
            extents = [self._extent(tiles, d) for d in range(1 + self.spatial)]
            points = math.prod(extents)
            for channels in sizes(c, 16, 512):
                dense = channels == c and not self.grouped and self.attrs.strides[-1] == 1
                runs = points // extents[-1] if dense else points
                steps = taps * -(-c // channels)
                found.append((points * channels * size, runs, channels * tn, (channels, 0, False, steps, 1, channels)))
            return found
        halo = self._extent(tiles, 0) * math.prod(self._halo(tiles))
        if feed == "rolled":
            runs = halo // self._halo(tiles)[-1]
            return [(halo * c * size, runs, taps * c * tn, (c, 0, True, 1, 1, taps * c))]
        for channels in sizes(c, 16, 512):
            runs = halo if channels < c else max(1, halo // self._halo(tiles)[-1])
            steps = -(-c // channels)
            for all_taps in (True, False) if taps > 1 else (True,):
                weights = channels * tn * (taps if all_taps else 1)
                found.append((halo * channels * size, runs, weights, (channels, 0, all_taps, steps, taps, channels)))
        return found


def _align(size: int) -> int:
    return -(-size // 32) * 32


__all__ = ["ConvChoice", "TiledConv"]
