"""Tile search for attention kernels: operand views, capacity and cost of each choice.

Invariant: the choice that `choose` returns fits l1 and acc, rings included, as the kernel allocates them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.attention_steps import softmax_clk
from ppuc.compiler.lowering.kernels.contraction import anchor_of, operand_ops, operand_view, sizes
from ppuc.compiler.lowering.tiling.body import Chain, External, NotFusable, analyse
from ppuc.compiler.lowering.tiling.nest import Tiling, distribute
from ppuc.compiler.lowering.tiling.space import Access
from ppuc.compiler.lowering.tiling.unmerged import UnmergedLowering, access_of, slot_bytes
from ppuc.ir import views
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import View
from ppuc.ir.ops.attention import AttentionPartsAttrs
from ppuc.targets.cost import drain_clk, mma_shape
from ppuc.targets.schema import Target

LONG = 16
"""Times the longest tiles of other engines: long ones are worthwhile where weights stay in a systolic array."""

PARTS = (1, 2, 3, 4)
"""Candidate numbers of parts of rows, and of tiles of keys in an iteration."""

ROW = 3
"""The loop over query rows. Loops of the nest: batch, group, head of the group, query row, value column, part of the
keys (if there are several), key, depth of q . k."""

BANDS = 32
"""Maximum bands of rows of causal attention: these compute 1 / 64 of all scores too many."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A candidate: heads and query rows of a part, parts, keys of a tile, depth of q . k per step, value columns, and
    ring slots of streamed tiles, of tiles passed between engines, and of queries and results. An iteration covers the
    parts of `groups` groups of heads, each with its own keys, and of a single part `together` tiles of keys."""

    heads: int
    rows: int
    parts: int
    keys: int
    depth: int
    columns: int
    slots: int
    acc_slots: int
    end_slots: int = 2
    groups: int = 1
    together: int = 1

    @property
    def points(self) -> int:
        """Rows of a part over all its heads."""
        return self.heads * self.rows

    @property
    def lanes(self) -> int:
        """Parts of an iteration."""
        return self.parts * self.groups


@dataclass(frozen=True, slots=True)
class Source:
    """An operand in memory: its view and whether its second-to-last axis is the contiguous one (its tiles are then
    loaded with the last axis first)."""

    tensor: str
    view: View
    swapped: bool


class TiledAttention(UnmergedLowering):
    """A group around one attention, its operands in memory, and the search for its tiles."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        anchor = anchor_of(body, "attention", "attention_parts")
        self.batch, heads, self.m, self.d = anchor.operands[0].type.dims
        _, self.g, self.s, self.e = anchor.operands[2].type.dims
        self.r = heads // self.g
        known = [operand_view(body, value) for value in anchor.operands]
        result = anchor.results[0]
        domain = (self.batch, self.g, self.r, self.m, self.e)
        self.span = self.s
        """Keys of one walk: all, or those of a part."""
        if isinstance(anchor.attrs, AttentionPartsAttrs):
            self.span = anchor.attrs.keys
            if body.results != (result,):
                raise NotFusable("attention split along its keys takes no epilogue")
            part = External(result, part_views(result.type.dims, domain)[0])
            chain = Chain(domain, result, outputs={result.name: (part,)})
        else:
            chain = analyse(body, result, domain, frozenset({result.name}) | operand_ops(body, anchor))
        super().__init__(name, body, tensors, loc, target, chain, "bgrme", outer=2)
        if chain.reduce_axes:
            raise NotFusable("attention takes no reduction as epilogue")
        self.dtype = known[0][0].type.dtype
        if any(value.type.dtype is not self.dtype for value, _ in known[:3]):
            raise NotFusable("q, k and v of attention are stored in different types")
        if not target.tensor.supports(cost.tensor_dtype(self.dtype, target)):
            raise NotFusable(f"the tensor engine does not support {self.dtype}")
        self.scale: float = anchor.attrs.scale  # type: ignore[attr-defined]
        self.masked: bool = anchor.attrs.causal and self.m > 1  # type: ignore[attr-defined]
        self.space_of_keys = known[1][0].space
        self.sources = {}
        for key, (value, view) in zip("qkv", known[:3], strict=True):
            view = _split_heads(view, self.g, self.r) if key == "q" else view
            swapped = view.strides[-1] != 1 and view.strides[-2] == 1
            self.sources[key] = Source(tensors[value.name], view, swapped)
        self.mask: Access | None = None
        if len(known) == 4:
            value, view = known[3]
            full = views.expand(view, (self.batch, heads, self.m, self.s))
            self.mask = access_of(_split_heads(full, self.g, self.r))
            self.mask_tensor, self.mask_dtype = tensors[value.name], value.type.dtype

    @property
    def walks(self) -> int:
        """Walks over keys for each tile of rows: one, or one per part."""
        return -(-self.s // self.span)

    @property
    def price(self) -> float:
        """Expected cycles with the cheapest tiles. Raises NotFusable if none fit."""
        return self._price(self.choose())

    def choose(self) -> Shape:
        """The cheapest tiles that fit. Tiles that use more than half of l1 or acc pay for delaying the next kernel's
        first loads."""
        prices = {shape: self._price(shape) for shape in self._candidates(False)}
        alone = cost.memory_latency_clk(self.target) + cost.latency_clk(self.target)
        for shape in self._candidates(True):
            prices.setdefault(shape, self._price(shape) + alone)
        if prices:
            return min(prices, key=lambda shape: prices[shape])
        raise NotFusable(
            f"no tile of attention with heads of {self.d} and {self.e} elements fits l1 ({self.target.l1.bytes} B) "
            f"and acc ({self.target.acc.bytes} B)"
        )

    @property
    def causal(self) -> bool:
        """Whether rows see only keys up to their own position, in a walk over all keys that is cut there."""
        return self.masked and self.walks == 1

    def unmasked_tiles(self, shape: Shape, start: int) -> int:
        """Tiles of keys that every row from `start` on sees, from the first on, in a walk over all keys."""
        return max(start + self.s - self.m + 1, 0) // shape.keys if self.causal else 0

    def bands(self, shape: Shape, rows: Tiling) -> list[tuple[int, int]]:
        """The ranges of rows that walk the same keys: all rows, or the bands of causal attention, unless one tile holds
        all keys."""
        banded = self.causal and shape.keys < self.s
        return bands_of(self.m, rows.tile * rows.units) if banded else [(0, self.m)]

    def seen(self, stop: int) -> int:
        """Keys that the rows before `stop` see."""
        return max(stop + self.s - self.m, 1) if self.causal else self.span

    def _heads(self) -> list[tuple[int, int]]:
        """Candidates for (depth of q . k per step, value columns): whole heads, and parts of them where whole ones take
        too much l1."""
        crowded = self.walks == 1 and 64 * (self.d + self.e) * self.dtype.bytes > cost.l1_budget(self.target) // 2
        if not crowded:
            return [(self.d, self.e)]
        return list(itertools.product(_halves(self.d), _halves(self.e)))

    def _candidates(self, full: bool) -> Iterator[Shape]:
        """Tiles that fit, with the most ring slots that fit."""
        long = LONG if self.target.tensor.organisation == "systolic" else 1
        rows = [(1, t) for t in _tiles(self.m, 256 * long, 4)]
        rows += [(h, self.m) for h in _tiles(self.r, max(256 * long // max(self.m, 1), 1), 1) if h > 1]
        spans = _tiles(self.span, 1024 * long, 16)
        for (d, e), (h, m), s in itertools.product(self._heads(), rows, spans):
            for parts, groups, together in self._interleaved(h * m, m, s):
                if (shape := self._deepest(Shape(h, m, parts, s, d, e, 3, 2, 2, groups, together), full)) is not None:
                    yield shape

    def _interleaved(self, points: int, rows: int, keys: int) -> list[tuple[int, int, int]]:
        """Candidate numbers of parts of rows, of groups of heads, and of tiles of keys that an iteration interleaves.
        Compilers that load operators whole run the steps of an attention one after another; heads that fill neither
        rows nor columns of an array take them together, as many as fill its rows."""
        if self.target.launch.tile_sides != "whole columns":
            found = [(n, 1, 1) for n in PARTS if rows * (n - 1) < self.m]
            count = -(-self.span // keys)
            if not self.masked and self.walks == 1:
                found += [(1, 1, n) for n in PARTS[1:] if count % n == 0]
            return found
        array = mma_shape(cost.tensor_dtype(self.dtype, self.target), self.target)
        if keys < self.span or self.walks > 1 or keys > array.n:
            return [(1, 1, 1)]
        return [(1, n, 1) for n in (1, 2, 4, 8, 16, 32) if n == 1 or (n * points <= array.k and self.g % n == 0)]

    def _deepest(self, shape: Shape, full: bool) -> Shape | None:
        """`shape` with the most ring slots that fit; None if none do."""
        for streams, acc, ends in ((3, 2, 2), (2, 2, 2), (2, 1, 2), (2, 1, 1), (1, 1, 2), (1, 1, 1)):
            shape = replace(shape, slots=streams, acc_slots=acc, end_slots=ends)
            if self._fits(shape, full):
                return shape
        return None

    def _fits(self, shape: Shape, full: bool) -> bool:
        p, size = shape.points, self.dtype.bytes
        streams = slot_bytes(shape.keys * shape.depth, size) + slot_bytes(shape.keys * shape.columns, size)
        masks = 0
        if self.mask is not None:
            slots = shape.slots if self.mask.present(4) and shape.keys < self.span else 2
            masks = slots * slot_bytes(math.prod(self.mask_tile(shape)), self.mask_dtype.bytes)
        q = slot_bytes(p * shape.depth, size) * (shape.end_slots if shape.depth == self.d else shape.slots)
        own = q + shape.together * (masks + shape.acc_slots * slot_bytes(p * shape.keys, size))
        if shape.keys < self.span or self.walks > 1:
            own += (3 + shape.together) * slot_bytes(p, 4) + slot_bytes(p * shape.columns, 4)
        else:
            own += shape.acc_slots * slot_bytes(p, 4)
        own += self.epilogue_bytes(epilogue_tiles(shape), shape.end_slots)
        l1 = self.target.l1.bytes if full else cost.l1_budget(self.target)
        acc = self.target.acc.bytes if full else cost.acc_budget(self.target)
        tiles = shape.lanes * shape.together * shape.acc_slots * p * (shape.keys + shape.columns) * 4
        streams *= shape.groups * shape.together * shape.slots
        return streams + shape.lanes * own <= l1 and tiles <= acc

    def loops(self, shape: Shape) -> tuple[list[Tiling], float]:
        """(loops over the domain, iterations of the busiest unit)."""
        tiles = [1, shape.groups, shape.heads, shape.rows * shape.parts, shape.columns]
        trips = tuple(-(-axis.size // t) for axis, t in zip(self.space.axes, tiles, strict=True))
        if self.walks > 1:
            units = distribute((*trips, self.walks), self.target.cu)
            iterations = float(math.prod(-(-n // u) for n, u in zip((*trips, self.walks), units, strict=True)))
            self.walk_units = units[-1]
        elif self.causal and shape.keys < self.s and trips[ROW] > 1:
            units = distribute_bands(trips, self.m, self.s, tiles[ROW], self.target.cu)
            iterations = float(math.prod(-(-n // u) for n, u in zip(trips, units, strict=True)))
        else:
            units, iterations = self.distribution(tiles)
        named = zip(self.space.axes, tiles, units, strict=False)
        return [Tiling(axis.name, axis.size, tile, n) for axis, tile, n in named], iterations

    def _price(self, shape: Shape) -> float:
        """Cycles of the busiest unit. While the vector engine computes the softmax of one part of rows, or of one tile
        of keys, the tensor engine works on others. With one ring slot, loads do not overlap."""
        target, dtype = self.target, cost.tensor_dtype(self.dtype, self.target)
        loops, iterations = self.loops(shape)
        active = math.prod(loop.units for loop in loops) * (self.walk_units if self.walks > 1 else 1)
        p, parts = shape.points, shape.lanes
        chunks = -(-self.d // shape.depth)
        scores = chunks * cost.mma_clk(p, shape.keys, shape.depth, dtype, target)
        product = cost.mma_clk(p, shape.columns, shape.keys, dtype, target)
        rescale = cost.vec_clk(p * shape.columns, 2, target) if shape.keys < self.span else 0.0
        load = self._stream_clk(shape, active) * shape.groups * shape.together
        latency = cost.latency_clk(target, self.space_of_keys)
        fragment = mma_shape(dtype, target)
        drains = ((shape.keys, shape.depth), (shape.columns, shape.keys))
        handovers = 4 * cost.overhead_clk(target) + sum(drain_clk(target, fragment, n, k) for n, k in drains)

        @functools.cache
        def engines(masked: bool) -> float:
            """Cycles from one iteration over keys to the next if these were there."""
            softmax, tiles = self._softmax_clk(shape, masked), parts * shape.together
            first_to_last = scores + softmax * tiles + rescale * (shape.together - 1) + product + handovers
            return max((scores + product) * tiles, (softmax + rescale) * tiles, first_to_last)

        @functools.cache
        def beat(masked: bool) -> float:
            work = engines(masked)
            return max(work, load, (latency + load) / shape.slots) if shape.slots > 1 else work + latency + load

        vec, store, extra = self.chain_price(epilogue_tiles(shape), active)
        source = self.sources["q"]
        q = cost.box_traffic(source.view, [1, 1, shape.heads, shape.rows, self.d], self.dtype, self.target)
        queries = cost.load_clk(q * parts, target, active)
        ends = parts * (vec + store + extra) + queries
        if shape.end_slots == 1:
            ends += latency
        rows, total, tiles = loops[ROW], 0.0, 0
        for band in self.bands(shape, rows):
            visible, walks = (
                self.unmasked_tiles(shape, band[0]),
                -(-self.seen(band[1]) // (shape.keys * shape.together)),
            )
            hidden = max(walks - 1 - visible, 0) * beat(self.masked)
            count = math.ceil((band[1] - band[0]) / (rows.tile * rows.units))
            total += count * (visible * beat(False) + hidden + max(engines(self.masked), load) + ends)
            tiles += count
        return iterations / tiles * total + latency + load / shape.together

    def _softmax_clk(self, shape: Shape, masked: bool) -> float:
        """Cycles of the softmax of one part's scores of a tile of keys."""
        elements = shape.points * shape.keys
        return softmax_clk(elements, self.target, mask=self.mask is not None, causal=masked)

    def _stream_clk(self, shape: Shape, active: int) -> float:
        """Load cycles of one tile of keys: k, v and the mask, and q again if its depth is split."""
        k = cost.box_traffic(self.sources["k"].view, [1, 1, shape.keys, self.d], self.dtype, self.target)
        v = cost.box_traffic(self.sources["v"].view, [1, 1, shape.keys, shape.columns], self.dtype, self.target)
        total, loads = k + v, 2
        if self.mask is not None:
            extents = [1, 1, *self.mask_tile(shape)]
            total = total + cost.box_traffic(self.mask.view, extents, self.mask_dtype, self.target) * shape.parts
            loads += shape.parts
        if shape.depth < self.d:
            q = cost.box_traffic(
                self.sources["q"].view, [1, 1, shape.heads, shape.rows, self.d], self.dtype, self.target
            )
            total = total + q * shape.parts
            loads += -(-self.d // shape.depth) * (1 + shape.parts)
        return cost.load_clk(total, self.target, active, self.space_of_keys) + loads * cost.overhead_clk(self.target)

    def mask_tile(self, shape: Shape) -> list[int]:
        assert self.mask is not None
        extents = (shape.heads, shape.rows, shape.keys)
        return [t if self.mask.present(2 + i) else 1 for i, t in enumerate(extents)]


def bands_of(m: int, wave: int) -> list[tuple[int, int]]:
    """The bands of `m` rows of causal attention, if the units take `wave` rows at a time: a wave each, or several so
    that there are at most BANDS. Each walks the keys up to its last row's: the units have equal work, whichever of its
    tiles they take."""
    step = wave * -(-m // (wave * BANDS))
    return [(start, min(start + step, m)) for start in range(0, m, step)]


@functools.lru_cache(maxsize=4096)
def distribute_bands(trips: tuple[int, ...], m: int, s: int, tile: int, units: int) -> tuple[int, ...]:
    """Units per loop that minimise the keys that the busiest unit walks in causal attention of `m` rows, in tiles of
    `tile`, to `s` keys. Ties prefer units along the rows."""
    best, least = (1,) * len(trips), math.inf
    waves = {-(-trips[ROW] // n) for n in range(1, trips[ROW] + 1)}
    for n in sorted((n for n in waves if n <= units), reverse=True):
        others = distribute((*trips[:ROW], *trips[ROW + 1 :]), units // n)
        chosen = (*others[:ROW], n, *others[ROW:])
        wave = tile * n
        keys = sum(math.ceil((stop - start) / wave) * (stop + s - m) for start, stop in bands_of(m, wave))
        keys *= math.prod(-(-t // u) for i, (t, u) in enumerate(zip(trips, chosen, strict=True)) if i != ROW)
        if keys < least:
            best, least = chosen, keys
    return best


def part_views(dims: tuple[int, ...], domain: tuple[int, ...]) -> tuple[View, View, View]:
    """Views of the sums, maxima and totals in the result of split attention [parts, batch, heads, m, e + 2], with the
    axes of `domain` (batch, group, head of the group, m, e), of part 0."""
    *_, m, e = domain
    pitch = e + 2
    strides = (domain[1] * domain[2] * m * pitch, domain[2] * m * pitch, m * pitch, pitch, 1)
    one = (*domain[:-1], 1)
    return View(domain, strides), View(one, strides, e), View(one, strides, e + 1)


def epilogue_tiles(shape: Shape) -> list[int]:
    """The result tile of one part of rows."""
    return [1, 1, shape.heads, shape.rows, shape.columns]


def _split_heads(view: View, groups: int, repeat: int) -> View:
    """[batch, heads, x, y] -> [batch, groups, heads of a group, x, y]."""
    b, _, x, y = view.strides
    step = view.strides[1]
    shape = (view.shape[0], groups, repeat, *view.shape[2:])
    return View(shape, (b, step * repeat, step, x, y), view.offset)


def _tiles(size: int, most: int, step: int) -> list[int]:
    """Tile sizes of an axis: powers of two below 16, then the candidates of other contractions, and sizes that cut the
    axis into 2 to 8 nearly equal tiles (multiples of `step`)."""
    small = [n for n in (1, 2, 4, 8) if n < size]
    even = [-(-size // (n * step)) * step for n in range(2, 9)]
    return sorted({*small, *sizes(size, 16, most), *(t for t in even if t <= min(size, most))})


def _halves(size: int) -> list[int]:
    """`size`, its half, its quarter, ..., rounded up to 16."""
    found = {size}
    while size > 16:
        size = -(-size // 32) * 16
        found.add(size)
    return sorted(found)
