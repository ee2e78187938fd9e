"""Convolutions (channels last) on the tensor engine, with an epilogue.

Four ways to feed the engine:
  taps    an input tile with its halo is loaded once per channel chunk; each filter tap multiplies a shifted, strided
          view of it by that tap's weights. Overlapping windows load no element twice.
  tapwise each filter tap multiplies an input tile that was loaded for it alone: for windows that reach far (large
          dilations, long filters), whose halo fits no memory or is mostly not read.
  packed  `load.window` unrolls windows so that filter window and channels form one long k axis: for first layers, whose
          few channels would leave most of a fragment's k empty.
  rolled  the same product, its windows read from the input tile with its halo: overlapping windows are one strided view
          of it, so that the load moves rows of the image instead of rows of windows.

Axes of the domain are never merged: [n, *spatial, group, channels of the group]. Invariant: the input tile always
keeps all spatial axes and the channel axis, whatever their size; the accumulator keeps those larger than one, as every
epilogue tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import (
    analyse_anchor,
    anchor_of,
    operand_ops,
    operand_view,
    ranked,
    sizes,
)
from ppuc.compiler.lowering.kernels.product import ProductLowering, TileChoice
from ppuc.compiler.lowering.tiling.body import NotFusable, analyse
from ppuc.compiler.lowering.tiling.nest import MAX_TILE_RANK, KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.tiled import groups as merged_groups
from ppuc.ir import views
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Bound, Load, Mma, TileRef, View
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.targets.schema import Target

FEW = 16
"""With fewer input channels, the filter window also fills a fragment's k."""

FAR = 16
"""Distance between a window's first and last tap along an axis from which loading the input per tap is considered."""

POINTS = ((16, 32, 64, 128, 256), (8, 4, 2, 1))
"""Candidate result points of a tile: those that fill a fragment's rows, then fewer in case their halo does not fit."""


@dataclass(frozen=True, slots=True)
class ConvChoice(TileChoice):
    """Tiles of the domain's axes and the walk over the filter: the feed, channels per chunk, filter rows per window
    load (packed) or whether one load brings the weights of all taps."""

    feed: str
    channels: int
    rows: int
    all_taps: bool


class ConvLowering(ProductLowering):
    """Lowers a group around one nhwc conv; `rank` selects a tiling by price, 0 being the cheapest."""

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
        found = self._fed(feeds) or self._fed(["tapwise"])
        return ranked(found, rank, "convolution", self.target)

    def _fed(self, feeds: Sequence[str]) -> list[ConvChoice]:
        """The best choice for each tile, with as many points as fit."""
        for points in POINTS:
            choices = (self._best(tiles, feed) for tiles in self._tile_candidates(points) for feed in feeds)
            found = [choice for choice in choices if choice is not None]
            if found:
                return found
        return []

    def _tile_candidates(self, sizes_of_space: Sequence[int]) -> list[list[int]]:
        """Tiles of all merged axes: images and groups one at a time, space (some of `sizes_of_space` points) from whole
        rows to squares, channels."""
        axes = self.space.axes
        channel = self.at[-1]
        spaces = [self.at[1 + d] for d in range(self.spatial)]
        free = [s for s in spaces if s is not None]
        found: set[tuple[int, ...]] = set()
        for points, tn in itertools.product(
            sizes_of_space, sizes(axes[channel].size, 16, 256) if channel is not None else [1]
        ):
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

    def _best(self, tiles: list[int], feed: str) -> ConvChoice | None:
        tm = math.prod(self._extent(tiles, 1 + d) for d in range(self.spatial))
        tn = self._extent(tiles, len(self.at) - 1)
        units, iterations = self.distribution(tiles)
        active = math.prod(units)
        vec, store, extra = self.chain_price(tiles, active)
        dtype = cost.tensor_dtype(self.dtype, self.target)
        latency = cost.latency_clk(self.target, self.x_space, self.w_space)
        overhead = cost.overhead_clk(self.target)
        best: ConvChoice | None = None
        for x_bytes, x_rows, w_elements, (channels, rows, all_taps, steps, mmas, k) in self._steps(tiles, feed, tn):
            rings = self.rings(tiles, _align(x_bytes) + _align(w_elements * self.dtype.bytes))
            if rings is None:
                continue
            mma = mmas * cost.mma_clk(tm, tn, k, dtype, self.target)
            loads = 2 if all_taps else 1 + mmas
            weights = cost.Traffic(w_elements * self.dtype.bytes, w_elements / max(min(tn, w_elements), 1)) * (
                loads - 1
            )
            load = cost.load_clk(cost.Traffic(x_bytes, x_rows), self.target, active, self.x_space) + loads * overhead
            load += cost.load_clk(weights, self.target, active, self.w_space)
            beat = cost.beat_clk(mma, load, latency, rings.operands)
            if loads > 2:  # one load per tap's weights: as many as the ring has slots hide the latency
                beat = max(beat, mmas * (latency + load / loads) / rings.operands)
            drain = vec if rings.out > 1 else vec + store
            tile = max(steps * beat + extra, drain, store)
            if rings.acc == 1:
                tile += vec
            price = iterations * tile + latency + load + vec + store + self.alone_clk(rings, load)
            if best is None or price < best.price:
                best = ConvChoice(tuple(tiles), rings, units, price, feed, channels, rows, all_taps)
        return best

    def _steps(
        self, tiles: list[int], feed: str, tn: int
    ) -> list[tuple[int, float, int, tuple[int, int, bool, int, int, int]]]:
        """Ways to cut the reduction: (input tile bytes, its rows, weight tile elements, (channels, filter rows, all
        taps, steps, mmas a step, k of one mma))."""
        size = self.dtype.bytes
        taps, c = math.prod(self.filter), self.channels
        found: list[tuple[int, float, int, tuple[int, int, bool, int, int, int]]] = []
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
            extents = [self._extent(tiles, 1 + d) for d in range(self.spatial)]
            points = math.prod(extents)
            for channels in sizes(c, 16, 512):
                dense = channels == c and not self.grouped and self.attrs.strides[-1] == 1
                runs = points // extents[-1] if dense else points
                steps = taps * -(-c // channels)
                found.append((points * channels * size, runs, channels * tn, (channels, 0, False, steps, 1, channels)))
            return found
        halo = math.prod(self._halo(tiles))
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

    # building

    def accumulate(self, loops: Sequence[Tiling]) -> tuple[Nest, str]:
        """The loops over the filter and the channels, with the loads and the mma of the chosen feed."""
        choice = self.choice
        if choice.feed == "rolled":
            inner = []
        elif choice.feed == "packed":
            inner = [Tiling("k0", self.filter[0], choice.rows)]
        else:
            inner = [Tiling("ci", self.channels, choice.channels)]
            inner += [Tiling(f"k{d}", n, 1) for d, n in enumerate(self.filter)]
        nest = Nest([*loops, *inner])
        acc = self.accumulator()
        named = {loop.name: loop for loop in nest.loops}
        feeds = {"taps": self._taps, "tapwise": self._tapwise, "rolled": self._rolled, "packed": self._packed}
        feed = feeds[choice.feed]
        mma = feed(nest, named, acc)
        nest.add(len(nest.loops), mma)
        return nest, acc

    def _offset(self, named: Mapping[str, Tiling], domain_axis: int) -> Affine:
        at = self.at[domain_axis]
        return Affine() if at is None else named[self.space.axes[at].name].offset

    def _group(self, named: Mapping[str, Tiling]) -> list[Affine]:
        """Index along the group axis, if there is one."""
        return [self._offset(named, self.spatial + 1)] if self.grouped else []

    def _valid(self, named: Mapping[str, Tiling], k: Sequence[Tiling]) -> tuple[Bound | None, ...]:
        bounds: list[Bound | None] = []
        for d in (*range(1, self.spatial + 1), len(self.at) - 1):
            at = self.at[d]
            bounds.append(None if at is None else named[self.space.axes[at].name].bound)
        bounds += [loop.bound for loop in k]
        return tuple(bounds) if any(b is not None for b in bounds) else ()

    def _taps(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        choice, a, n = self.choice, self.attrs, self.spatial
        chunk = named["ci"]
        xt = self.kernel.buffer(
            "xt", self.dtype, [*self._halo(self.tiles), choice.channels], depth=choice.rings.operands
        )
        index = [self._offset(named, 0)]
        index += [self._offset(named, 1 + d) * a.strides[d] - a.low[d] + axis(d) for d in range(n)]
        index += [*self._group(named), chunk.offset + axis(n)]
        outer = len(nest.loops) - n
        wt = self._weights(nest, named, outer)  # first: weights never wait for another kernel
        nest.add(outer, Load(xt, self.kernel.param(self.x_tensor, self.dtype, self.x), tuple(index)))
        taps = [named[f"k{d}"] for d in range(n)]
        points = [self._extent(self.tiles, 1 + d) for d in range(n)]
        window = [tap.offset * a.dilations[d] + axis(d, a.strides[d]) for d, tap in enumerate(taps)]
        x_ref = TileRef(xt, (*window, axis(n)), (*points, choice.channels))
        tn = self._extent(self.tiles, len(self.at) - 1)
        w_ref = TileRef(wt)
        if choice.all_taps:
            w_ref = TileRef(wt, (*(tap.offset for tap in taps), axis(0), axis(1)), (choice.channels, tn))
        start = tuple(loop.name for loop in (chunk, *taps) if loop.exists)
        return Mma(acc, x_ref, w_ref, start, valid=self._valid(named, [chunk]))

    def _tapwise(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        choice, a, n = self.choice, self.attrs, self.spatial
        chunk, taps = named["ci"], [named[f"k{d}"] for d in range(n)]
        points = [self._extent(self.tiles, 1 + d) for d in range(n)]
        xt = self.kernel.buffer("xt", self.dtype, [*points, choice.channels], depth=choice.rings.operands)
        index = [self._offset(named, 0)]
        for d, tap in enumerate(taps):
            at = self._offset(named, 1 + d) * a.strides[d] - a.low[d] + tap.offset * a.dilations[d]
            index.append(at + axis(d, a.strides[d]))
        index += [*self._group(named), chunk.offset + axis(n)]
        wt = self._weights(nest, named, len(nest.loops))
        nest.add(len(nest.loops), Load(xt, self.kernel.param(self.x_tensor, self.dtype, self.x), tuple(index)))
        start = tuple(loop.name for loop in (chunk, *taps) if loop.exists)
        return Mma(acc, TileRef(xt), TileRef(wt), start, valid=self._valid(named, [chunk]))

    def _weights(self, nest: Nest, named: Mapping[str, Tiling], outer: int) -> str:
        """Load the weights: of all taps beside the input tile, or of one tap inside the tap loops."""
        choice, n = self.choice, self.spatial
        tn = self._extent(self.tiles, len(self.at) - 1)
        taps = self.filter if choice.all_taps else ()
        wt = self.kernel.buffer("wt", self.w_dtype, [*taps, choice.channels, tn], depth=choice.rings.operands)
        lead = [axis(d) for d in range(n)] if choice.all_taps else [named[f"k{d}"].offset for d in range(n)]
        base = n if choice.all_taps else 0
        index = [
            *lead,
            named["ci"].offset + axis(base),
            *self._group(named),
            self._offset(named, len(self.at) - 1) + axis(base + 1),
        ]
        param = self.kernel.param(self.w_tensor, self.w_dtype, self.w)
        nest.add(outer if choice.all_taps else len(nest.loops), Load(wt, param, tuple(index)))
        return wt

    def _rolled(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        a, n, depth = self.attrs, self.spatial, self.choice.rings.operands
        xt = self.kernel.buffer("xt", self.dtype, [*self._halo(self.tiles), self.channels], depth=depth)
        index = [self._offset(named, 0)]
        index += [self._offset(named, 1 + d) * a.strides[d] - a.low[d] + axis(d) for d in range(n)]
        tn = self._extent(self.tiles, len(self.at) - 1)
        wt = self.kernel.buffer("wt", self.w_dtype, [*self.filter, self.channels, tn], depth=depth)
        w_index = (*(axis(d) for d in range(n + 1)), self._offset(named, len(self.at) - 1) + axis(n + 1))
        nest.add(len(nest.loops), Load(wt, self.kernel.param(self.w_tensor, self.w_dtype, self.w), w_index))
        param = self.kernel.param(self.x_tensor, self.dtype, self.x)
        nest.add(len(nest.loops), Load(xt, param, (*index, axis(n))))
        window = [axis(d, a.strides[d]) + axis(n + d, a.dilations[d]) for d in range(n)]
        points = [self._extent(self.tiles, 1 + d) for d in range(n)]
        x_ref = TileRef(xt, (*window, axis(2 * n)), (*points, *self.filter, self.channels))
        k = [Tiling("", s, s) for s in (*self.filter, self.channels)]
        return Mma(acc, x_ref, TileRef(wt), (), k_axes=n + 1, valid=self._valid(named, k))

    def _packed(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        choice, a, n = self.choice, self.attrs, self.spatial
        points = [self._extent(self.tiles, 1 + d) for d in range(n)]
        window = [choice.rows, *self.filter[1:]]
        xt = self.kernel.buffer("xt", self.dtype, [*points, *window, self.channels], depth=choice.rings.operands)
        first = named["k0"]
        index = [self._offset(named, 0)]
        for d in range(n):
            at = self._offset(named, 1 + d) * a.strides[d] - a.low[d]
            at = at + axis(d, a.strides[d]) + axis(n + d, a.dilations[d])
            index.append(at + first.offset * a.dilations[0] if d == 0 else at)
        index.append(axis(2 * n))
        depth = len(nest.loops)
        tn = self._extent(self.tiles, len(self.at) - 1)
        wt = self.kernel.buffer("wt", self.w_dtype, [*window, self.channels, tn], depth=choice.rings.operands)
        w_index = [first.offset + axis(0), *(axis(d) for d in range(1, n)), axis(n)]
        w_index.append(self._offset(named, len(self.at) - 1) + axis(n + 1))
        nest.add(depth, Load(wt, self.kernel.param(self.w_tensor, self.w_dtype, self.w), tuple(w_index)))
        nest.add(depth, Load(xt, self.kernel.param(self.x_tensor, self.dtype, self.x), tuple(index)))
        k = [first, *(Tiling("", s, s) for s in (*self.filter[1:], self.channels))]
        start = (first.name,) if first.exists else ()
        return Mma(acc, TileRef(xt), TileRef(wt), start, k_axes=n + 1, valid=self._valid(named, k))


def _align(size: int) -> int:
    return -(-size // 32) * 32


def check_conv(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group has no convolution kernel, or a poor one, with any tiling: a reduction (global
    pooling) needs the whole image in one tile."""
    anchor = anchor_of(body, "conv")
    chain = analyse_anchor(body, anchor)
    for value in anchor.operands[:2]:
        operand_view(body, value)
    if not chain.reduce_axes:
        return
    result, x = anchor.results[0].type.dims, anchor.operands[0].type
    if set(chain.reduce_axes) - set(range(1, len(result) - 1)) or anchor.attrs.groups != 1:  # type: ignore[attr-defined]
        raise NotFusable("the reduction runs over channels")
    points = math.prod(result[1:-1])
    halo = math.prod(x.dims[1:-1]) * 4
    if points > 256 or points * 16 * 4 > cost.acc_budget(target) or halo * 16 * x.dtype.bytes > cost.l1_budget(target):
        raise NotFusable(f"an image of {points} points does not fit one tile")
    if result[0] * -(-result[-1] // 16) * 2 < target.cu:
        raise NotFusable("whole images would leave units idle")


def lower_conv(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int = 0
) -> KernelBuilder:
    """Lower a group around one channels-last convolution, tiled as the `rank`-th cheapest candidate. Raises
    NotFusable."""
    return ConvLowering(name, body, tensors, loc, target, rank).lower()
