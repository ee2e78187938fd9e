"""Attention with a streaming softmax (FlashAttention: Dao, Fu, Ermon, Rudra, Re 2022; Milakov and Gimelshein 2018).

For a tile of query rows the kernel walks the keys once: scores on the tensor engine, then on the vector engine the
running maximum and sum of each row and the weights relative to that maximum, then weights times values, added to what
earlier keys gave after that is rescaled by exp(old maximum - new maximum). When all keys fit one tile there is nothing
to carry and the weights are normalised at once.

Rows are (head within its key/value group, query): heads that share keys share the loaded tiles. Where it pays, a loop
iteration holds two parts of rows whose statements alternate, so that the tensor engine computes one part's scores while
the vector engine is at the other's softmax.

Invariant: the maximum starts at the lowest finite f32, so a row whose keys so far are all hidden has weights
exp(-inf) = 0 and not NaN; a row with no visible key at all ends as 0 / 0, which is NaN as in the decomposition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.body import NotFusable, analyse
from ppuc.compiler.lowering.contraction import anchor_of, operand_ops, operand_view, sizes
from ppuc.compiler.lowering.nest import KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.space import Access
from ppuc.compiler.lowering.unmerged import UnmergedLowering, access_of, slot_bytes
from ppuc.compiler.lowering.vectorise import ProgramBuilder
from ppuc.ir import views
from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Bound, Load, Mma, TileRef, Vec, View
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target

LOWEST = float(np.finfo(np.float32).min)
ROW, KEY = 3, 5
"""Loops of the nest: batch, group, head of the group, query row, value column, key, depth of q . k."""


@dataclass(frozen=True, slots=True)
class Part(Tiling):
    """The rows from `shift` on of each tile of a loop."""

    shift: int = 0

    @property
    def offset(self) -> Affine:
        return (var(self.name) if self.trips > 1 else Affine()) + self.shift


@dataclass(frozen=True, slots=True)
class Shape:
    """A candidate: heads and query rows of a part, parts, keys of a tile, depth of q . k at a time, value columns, and
    ring slots of streamed tiles and of what passes between the engines."""

    heads: int
    rows: int
    parts: int
    keys: int
    depth: int
    columns: int
    slots: int
    acc_slots: int

    @property
    def points(self) -> int:
        """Rows of a part over all its heads."""
        return self.heads * self.rows


@dataclass(slots=True)
class Lane:
    """The buffers of one part of rows and its loops by name."""

    loops: dict[str, Tiling]
    scores: str = ""
    product: str = ""
    weights: str = ""
    high: str = ""
    total: str = ""
    alpha: str = ""
    result: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """An operand in memory: its view and whether its second-to-last axis is the contiguous one (its tiles are then
    loaded with the last axis first)."""

    tensor: str
    view: View
    swapped: bool


class AttentionLowering(UnmergedLowering):
    """Lowers a group around one attention."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        anchor = anchor_of(body, "attention")
        self.batch, heads, self.m, self.d = anchor.operands[0].type.dims
        _, self.g, self.s, self.e = anchor.operands[2].type.dims
        self.r = heads // self.g
        known = [operand_view(body, value) for value in anchor.operands]
        result = anchor.results[0]
        domain = (self.batch, self.g, self.r, self.m, self.e)
        chain = analyse(body, result, domain, frozenset({result.name}) | operand_ops(body, anchor))
        super().__init__(name, body, tensors, loc, target, chain, "bgrme", outer=2)
        if chain.reduce_axes:
            raise NotFusable("attention takes no reduction as epilogue")
        self.dtype = known[0][0].type.dtype
        if any(value.type.dtype is not self.dtype for value, _ in known[:3]):
            raise NotFusable("q, k and v of attention are stored in different types")
        if not target.tensor.supports(cost.tensor_dtype(self.dtype, target)):
            raise NotFusable(f"the tensor engine does not take {self.dtype}")
        self.scale: float = anchor.attrs.scale  # type: ignore[attr-defined]
        self.causal: bool = anchor.attrs.causal  # type: ignore[attr-defined]
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

    # the search

    def _choose(self) -> Shape:
        """The cheapest tiles that fit, in half of l1 if any do."""
        for full in (False, True):
            shapes = list(self._candidates(full))
            if shapes:
                return min(shapes, key=self._price)
        raise NotFusable(
            f"no tile of attention with heads of {self.d} and {self.e} elements fits l1 ({self.target.l1.bytes} B) "
            f"and acc ({self.target.acc.bytes} B)"
        )

    def _heads(self) -> list[tuple[int, int]]:
        """(depth of q . k at a time, value columns): whole heads, and parts of them where whole ones crowd l1."""
        crowded = 64 * (self.d + self.e) * self.dtype.bytes > cost.l1_budget(self.target) // 2
        if not crowded:
            return [(self.d, self.e)]
        return list(itertools.product(_halves(self.d), _halves(self.e)))

    def _candidates(self, full: bool) -> Iterator[Shape]:
        """Tiles that fit, with as many ring slots as do."""
        rows = [(1, t) for t in _tiles(self.m, 256, 4)]
        rows += [(h, self.m) for h in _tiles(self.r, max(256 // max(self.m, 1), 1), 1) if h > 1]
        for (d, e), (h, m), s, parts in itertools.product(self._heads(), rows, _tiles(self.s, 1024, 16), (1, 2)):
            if parts > 1 and m == self.m:
                continue
            for streams, acc in ((3, 2), (2, 2), (2, 1), (1, 1)):
                shape = Shape(h, m, parts, s, d, e, streams, acc)
                if self._fits(shape, full):
                    yield shape
                    break

    def _fits(self, shape: Shape, full: bool) -> bool:
        p, size = shape.points, self.dtype.bytes
        streams = slot_bytes(shape.keys * shape.depth, size) + slot_bytes(shape.keys * shape.columns, size)
        if self.mask is not None:
            streams += shape.parts * slot_bytes(math.prod(self._mask_tile(shape)), self.mask_dtype.bytes)
        q = slot_bytes(p * shape.depth, size) * (2 if shape.depth == self.d else shape.slots)
        own = q + shape.acc_slots * slot_bytes(p * shape.keys, size)
        if shape.keys < self.s:
            own += 4 * slot_bytes(p, 4) + slot_bytes(p * shape.columns, 4)
        own += self.epilogue_bytes(_epilogue_tiles(shape))
        l1 = self.target.l1.bytes if full else cost.l1_budget(self.target)
        acc = self.target.acc.bytes if full else cost.acc_budget(self.target)
        tiles = shape.parts * shape.acc_slots * p * (shape.keys + shape.columns) * 4
        return shape.slots * streams + shape.parts * own <= l1 and tiles <= acc

    def _loops(self, shape: Shape) -> tuple[list[Tiling], int, int]:
        """(loops over the domain, units at work, iterations of the busiest unit)."""
        tiles = [1, 1, shape.heads, shape.rows * shape.parts, shape.columns]
        units, iterations = self.dealt(tiles)
        loops = [Tiling(a.name, a.size, t, n) for a, t, n in zip(self.space.axes, tiles, units, strict=True)]
        return loops, math.prod(units), iterations

    def _price(self, shape: Shape) -> float:
        """Cycles of the busiest unit. With one part of rows scores, softmax and product wait for each other; with two,
        only each engine's own work and one part's chain bound an iteration. One ring slot leaves loads no time to
        overlap."""
        target, dtype = self.target, cost.tensor_dtype(self.dtype, self.target)
        _, active, iterations = self._loops(shape)
        p, parts, lanes = shape.points, shape.parts, target.vector.lanes
        chunks = -(-self.d // shape.depth)
        scores = chunks * cost.mma_clk(p, shape.keys, shape.depth, dtype, target)
        product = cost.mma_clk(p, shape.columns, shape.keys, dtype, target)
        steps = 7 + lanes // target.vector.sfu_per_clk + (self.mask is not None) + 2 * self.causal
        softmax = cost.vec_clk(p * shape.keys, steps, target)
        tensor, vector, walks = scores + product, softmax, -(-self.s // shape.keys)
        if walks > 1:
            vector += cost.vec_clk(p * shape.columns, 2, target)
        load = self._stream_clk(shape, active)
        latency = cost.latency_clk(target)
        chain = scores + softmax + product
        engines = max(tensor * parts, vector * parts, chain if parts > 1 else max(chain, vector))
        beat = max(engines, load, (latency + load) / shape.slots) if shape.slots > 1 else engines + latency + load
        vec, store, extra = self.chain_price(_epilogue_tiles(shape), active)
        source = self.sources["q"]
        q = cost.box_traffic(source.view, [1, 1, shape.heads, shape.rows, self.d], self.dtype) + extra
        ends = parts * (vec + store) + cost.load_clk(q * parts, target, active)
        last = max(engines, chain, load)
        return iterations * ((walks - 1) * beat + last + ends) + latency + load

    def _stream_clk(self, shape: Shape, active: int) -> float:
        """Load cycles of one tile of keys: k, v and the mask, and q again where its depth is cut."""
        k = cost.box_traffic(self.sources["k"].view, [1, 1, shape.keys, self.d], self.dtype)
        v = cost.box_traffic(self.sources["v"].view, [1, 1, shape.keys, shape.columns], self.dtype)
        total, loads = k + v, 2
        if self.mask is not None:
            extents = [1, 1, *self._mask_tile(shape)]
            total = total + cost.box_traffic(self.mask.view, extents, self.mask_dtype) * shape.parts
            loads += shape.parts
        if shape.depth < self.d:
            q = cost.box_traffic(self.sources["q"].view, [1, 1, shape.heads, shape.rows, self.d], self.dtype)
            total = total + q * shape.parts
            loads += -(-self.d // shape.depth) * (1 + shape.parts)
        return cost.load_clk(total, self.target, active) + loads * cost.overhead_clk(self.target)

    def _mask_tile(self, shape: Shape) -> list[int]:
        assert self.mask is not None
        extents = (shape.heads, shape.rows, shape.keys)
        return [t if self.mask.present(2 + i) else 1 for i, t in enumerate(extents)]

    # building

    def lower(self) -> KernelBuilder:
        """Choose tiles and build the kernel. Raises NotFusable when no tile fits."""
        self.shape = shape = self._choose()
        self.tiles = _epilogue_tiles(shape)
        loops, _, _ = self._loops(shape)
        self.keys, self.depth = Tiling("s", self.s, shape.keys), Tiling("d", self.d, shape.depth)
        nest = Nest([*loops, self.keys, self.depth])
        self.streaming = self.keys.exists
        lanes = [self._lane(loops, i) for i in range(shape.parts)]
        if self.streaming:
            for lane in lanes:
                self._start(nest, lane)
        k = self._load_keys(nest)
        for lane in lanes:
            self._scores(nest, lane, k)
        v = self._load_values(nest)
        for lane in lanes:
            self._softmax(nest, lane)
        for lane in lanes:
            self._product(nest, lane, v)
        for lane in lanes:
            self._finish(nest, lane)
        self.kernel.nests.append(nest)
        return self.kernel

    def _lane(self, loops: Sequence[Tiling], part: int) -> Lane:
        shape, kernel = self.shape, self.kernel
        by_name = {loop.name: loop for loop in loops}
        row = loops[ROW]
        by_name["m"] = Part(row.name, row.size, row.tile, row.units, part * shape.rows)
        lane = Lane(by_name | {"s": self.keys, "d": self.depth})
        h, m, s, e = shape.heads, shape.rows, shape.keys, shape.columns
        lane.scores = kernel.buffer("scores", DType.F32, (h, m, s), Space.ACC, shape.acc_slots)
        lane.product = kernel.buffer("product", DType.F32, (h, m, e), Space.ACC, shape.acc_slots)
        lane.weights = kernel.buffer("weights", self.dtype, (h, m, s), depth=shape.acc_slots)
        if self.streaming:
            lane.high = kernel.buffer("high", DType.F32, (h, m, 1), depth=1)
            lane.total = kernel.buffer("total", DType.F32, (h, m, 1), depth=1)
            lane.alpha = kernel.buffer("alpha", DType.F32, (h, m, 1), depth=1)
            lane.result = kernel.buffer("sum", DType.F32, (h, m, e), depth=1)
        return lane

    def _bounds(self, lane: Lane, *names: str) -> tuple[Bound | None, ...]:
        """Valid extents along the axes of these loops; () when every tile is whole."""
        bounds = tuple(lane.loops[n].bound for n in names)
        return bounds if any(b is not None for b in bounds) else ()

    def _vector(self, builder: ProgramBuilder, suffix: str, results: Sequence[tuple[str, DType]]) -> str:
        """Add a vector program (the parts of an iteration share them)."""
        name = f"{self.name}.{suffix}"
        if all(known.name != name for known in self.kernel.vectors):
            self.kernel.vector(builder.finish(name, results))
        return name

    def _start(self, nest: Nest, lane: Lane) -> None:
        """The states before any key."""
        builder = ProgramBuilder()
        low, zero = builder.const(LOWEST, DType.F32), builder.const(0.0, DType.F32)
        name = self._vector(builder, "start", [(low, DType.F32), (zero, DType.F32), (zero, DType.F32)])
        nest.add(KEY, Vec(name, (lane.high, lane.total, lane.result), ()))

    def _load_keys(self, nest: Nest) -> str:
        shape = self.shape
        return self._load_matrix(nest, "k", (shape.keys, shape.depth), (self.keys, self.depth), KEY + 2)

    def _load_values(self, nest: Nest) -> str:
        shape = self.shape
        loops = (self.keys, nest.loops[KEY - 1])
        return self._load_matrix(nest, "v", (shape.keys, shape.columns), loops, KEY + 1, after=True)

    def _load_matrix(
        self,
        nest: Nest,
        key: str,
        tile: tuple[int, int],
        loops: tuple[Tiling, Tiling],
        depth: int,
        *,
        after: bool = False,
    ) -> str:
        """Load a tile of k or v, its two axes swapped where memory is."""
        source = self.sources[key]
        buffer = self.kernel.buffer(key, self.dtype, tile[::-1] if source.swapped else tile, depth=self.shape.slots)
        index = [nest.loops[0].offset, nest.loops[1].offset]
        index += [loop.offset + axis(1 - i if source.swapped else i) for i, loop in enumerate(loops)]
        param = self.kernel.param(source.tensor, self.dtype, source.view)
        nest.add(depth, Load(buffer, param, tuple(index)), after=after)
        return buffer

    def _load_queries(self, nest: Nest, lane: Lane) -> str:
        source, shape = self.sources["q"], self.shape
        tile = (shape.heads, shape.rows, shape.depth)
        order = (0, 1, 2)
        if source.swapped:
            tile, order = (tile[2], *tile[:2]), (1, 2, 0)
        depth = nest.depth_of(("b", "g", "r", "m", "d"))
        buffer = self.kernel.buffer("q", self.dtype, tile, depth=shape.slots if self.depth.exists else 2)
        index = [nest.loops[0].offset, nest.loops[1].offset]
        index += [lane.loops[n].offset + axis(order[i]) for i, n in enumerate("rmd")]
        param = self.kernel.param(source.tensor, self.dtype, source.view)
        nest.add(depth, Load(buffer, param, tuple(index)))
        return buffer

    def _scores(self, nest: Nest, lane: Lane, k: str) -> None:
        q = self._load_queries(nest, lane)
        mma = Mma(
            lane.scores,
            TileRef(q),
            TileRef(k),
            ("d",) if self.depth.exists else (),
            transpose_a=self.sources["q"].swapped,
            transpose_b=not self.sources["k"].swapped,
            valid=self._bounds(lane, "r", "m", "s", "d"),
        )
        nest.add(KEY + 2, mma)

    def _product(self, nest: Nest, lane: Lane, v: str) -> None:
        mma = Mma(
            lane.product,
            TileRef(lane.weights),
            TileRef(v),
            (),
            transpose_b=self.sources["v"].swapped,
            valid=self._bounds(lane, "r", "m", "e", "s"),
        )
        nest.add(KEY + 1, mma, after=True)
        if not self.streaming:
            return
        builder = ProgramBuilder()
        old, alpha, new = (builder.param(DType.F32) for _ in range(3))
        total = builder.step("add", builder.step("mul", old, alpha), new)
        name = self._vector(builder, "rescale", [(total, DType.F32)])
        ins = (lane.result, lane.alpha, lane.product)
        nest.add(KEY + 1, Vec(name, (lane.result,), ins, self._bounds(lane, "r", "m", "e")), after=True)

    def _softmax(self, nest: Nest, lane: Lane) -> None:
        """Weights of one tile of keys, and the states after it."""
        builder, ins, scalars = ProgramBuilder(), [lane.scores], list[Affine]()
        x = self._masked_scores(nest, lane, builder, ins, scalars)
        high = builder.step("reduce_max", x, ints=(2,))
        if self.streaming:
            old, total = builder.param(DType.F32), builder.param(DType.F32)
            ins += [lane.high, lane.total]
            high = builder.step("max", old, high)
        weights = builder.step("exp", builder.step("sub", x, high))
        here = builder.step("reduce_sum", weights, ints=(2,))
        if self.streaming:
            alpha = builder.step("exp", builder.step("sub", old, high))
            total = builder.step("add", builder.step("mul", total, alpha), here)
            results = [(weights, self.dtype), (high, DType.F32), (total, DType.F32), (alpha, DType.F32)]
            outs = [lane.weights, lane.high, lane.total, lane.alpha]
        else:
            results = [(builder.step("mul", weights, builder.step("reciprocal", here)), self.dtype)]
            outs = [lane.weights]
        name = self._vector(builder, "softmax", results)
        vec = Vec(name, tuple(outs), tuple(ins), self._bounds(lane, "r", "m", "s"), tuple(scalars))
        nest.add(KEY + 1, vec, after=True)

    def _masked_scores(
        self, nest: Nest, lane: Lane, builder: ProgramBuilder, ins: list[str], scalars: list[Affine]
    ) -> str:
        """Steps from the accumulator to what the softmax sees."""
        x = builder.param(DType.F32)
        if self.scale != 1:
            x = builder.step("mul", x, builder.const(self.scale, DType.F32))
        if self.mask is not None:
            ins.append(self._load_mask(nest, lane))
            x = builder.step("add", x, builder.param(self.mask_dtype))
        if self.causal:
            row = self._position(builder, x, 1, lane.loops["m"].offset + (self.s - self.m), scalars)
            key = self._position(builder, x, 2, self.keys.offset, scalars)
            visible = builder.step("le", key, row)
            x = builder.step("select", visible, x, builder.const(-math.inf, DType.F32))
        return x

    def _position(
        self, builder: ProgramBuilder, like: str, along: int, offset: Affine, scalars: list[Affine]
    ) -> str:
        """Positions along a tile axis, from `offset` on; in i32, because comparing a whole tile in i64 costs twice."""
        count = self.shape.rows if along == 1 else self.shape.keys
        scalars.append(offset)
        start = builder.step("scalar", ints=(len(scalars) - 1,))
        position = builder.step("add", builder.step("iota", like, ints=(along, count)), start)
        return builder.step("cast", position, dtype=DType.I32)

    def _load_mask(self, nest: Nest, lane: Lane) -> str:
        assert self.mask is not None
        param = self.kernel.param(self.mask_tensor, self.mask_dtype, self.mask.view)
        names = [n for i, n in enumerate("bgrms") if self.mask.present(i)]
        where = nest.depth_of(names)
        index = []
        for i, n in enumerate("bgrms"):
            offset = lane.loops[n].offset if self.mask.present(i) else Affine()
            index.append(offset + axis(i - 2) if i >= 2 and self.mask.present(i) else offset)
        streamed = where == nest.depth_of(("s",)) and self.streaming
        buffer = self.kernel.buffer(
            "mask", self.mask_dtype, self._mask_tile(self.shape), depth=self.shape.slots if streamed else 2
        )
        nest.add(where, Load(buffer, param, tuple(index)))
        return buffer

    def _finish(self, nest: Nest, lane: Lane) -> None:
        builder = ProgramBuilder()
        anchor = builder.param(DType.F32)
        ins = [lane.product]
        if self.streaming:
            ins = [lane.result, lane.total]
            total = builder.param(DType.F32)
            anchor = builder.step("mul", anchor, builder.step("reciprocal", total))
        self.finish_chain(nest, KEY, builder, ins, anchor, lane.loops, after=True)


def _epilogue_tiles(shape: Shape) -> list[int]:
    """The tile of the result that one part of rows gives."""
    return [1, 1, shape.heads, shape.rows, shape.columns]


def _split_heads(view: View, groups: int, repeat: int) -> View:
    """[batch, heads, x, y] -> [batch, groups, heads of a group, x, y]."""
    b, _, x, y = view.strides
    step = view.strides[1]
    shape = (view.shape[0], groups, repeat, *view.shape[2:])
    return View(shape, (b, step * repeat, step, x, y), view.offset)


def _tiles(size: int, most: int, step: int) -> list[int]:
    """Tile sizes of an axis: below 16 powers of two, then as other contractions choose them, and what cuts the axis into
    2 to 8 tiles of nearly equal size (multiples of `step`)."""
    small = [n for n in (1, 2, 4, 8) if n < size]
    even = [-(-(-(-size // n)) // step) * step for n in range(2, 9)]
    return sorted({*small, *sizes(size, 16, most), *(t for t in even if t <= min(size, most))})


def _halves(size: int) -> list[int]:
    """`size`, its half, its quarter, ..., rounded up to 16."""
    found = {size}
    while size > 16:
        size = -(-size // 32) * 16
        found.add(size)
    return sorted(found)


def check_attention(body: Graph, target: Target) -> None:
    """Raise NotFusable when the group has no attention kernel, apart from the fit of tiles."""
    AttentionLowering(body.name, body, {v.name: v.name for v in (*body.params, *body.results)}, (), target)


def lower_attention(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one attention. Raises NotFusable."""
    return AttentionLowering(name, body, tensors, loc, target).lower()
