"""Attention with a streaming softmax (FlashAttention: Dao, Fu, Ermon, Rudra, Re 2022; Milakov and Gimelshein 2018).

For a tile of query rows the kernel walks the keys once: scores on the tensor engine, then on the vector engine the
running maximum and sum of each row and the weights relative to that maximum, then weights times values, added to the
earlier result rescaled by exp(old maximum - new maximum). If all keys fit one tile, nothing is carried. The weighted
sum, not each weight, is divided by the total: it has fewer elements. The factor PEAK on 8-bit float weights therefore
cancels: the total contains it too.

Rows are (head within its key/value group, query): heads that share keys share the loaded tiles. Where it is faster, a
loop iteration interleaves two parts of rows, so that the tensor engine computes one part's scores while the vector
engine computes the other's softmax.

Invariant: the maximum starts at the lowest finite f32, so a row whose keys so far are all masked has weights exp(-inf)
= 0, not NaN; a fully masked row ends as 0 / 0 = NaN, as in the decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering.kernels.attention_tiles import TiledAttention, epilogue_tiles, part_views
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Bound, Load, Mma, Store, TileRef, Vec, View
from ppuc.ir.ops.attention import LOWEST, PEAK
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target

ROW = 3
"""Loops of the nest: batch, group, head of the group, query row, value column, part of the keys (if there are several),
key, depth of q . k."""


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
class Part(Tiling):
    """The rows from `shift` on of each tile of a loop."""

    shift: int = 0

    @property
    def offset(self) -> Affine:
        return (var(self.name) if self.trips > 1 else Affine()) + self.shift


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


class AttentionLowering(TiledAttention):
    """Lowers a group around one attention."""

    def lower(self) -> KernelBuilder:
        """Choose tiles and build the kernel. Raises NotFusable when no tile fits."""
        self.shape = shape = self.choose()
        self.kernel.price_clk = self._price(shape)
        self.tiles = epilogue_tiles(shape)
        loops, _, _ = self.loops(shape)
        self.keys, self.depth = Tiling("s", self.s, shape.keys), Tiling("d", self.d, shape.depth)
        if self.walks > 1:
            self.keys = PartKeys("s", self.span, shape.keys, limit=self.s)
            loops.append(Tiling("p", self.walks, 1, self.walk_units))
        self.key = len(loops)
        nest = Nest([*loops, self.keys, self.depth])
        self.streaming = self.keys.exists or self.walks > 1
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
        else:
            lane.total = kernel.buffer("total", DType.F32, (h, m, 1), depth=shape.acc_slots)
        return lane

    def _bounds(self, lane: Lane, *names: str) -> tuple[Bound | None, ...]:
        """Valid extents along the axes of these loops; () if every tile is whole."""
        bounds = tuple(lane.loops[n].bound for n in names)
        return bounds if any(b is not None for b in bounds) else ()

    def _vector(self, builder: ProgramBuilder, suffix: str, results: Sequence[tuple[str, DType]]) -> str:
        """Add a vector program (parts of an iteration share programs)."""
        name = f"{self.name}.{suffix}"
        if all(known.name != name for known in self.kernel.vectors):
            self.kernel.vector(builder.finish(name, results))
        return name

    def _start(self, nest: Nest, lane: Lane) -> None:
        """Initialise the states."""
        builder = ProgramBuilder()
        low, zero = builder.const(LOWEST, DType.F32), builder.const(0.0, DType.F32)
        name = self._vector(builder, "start", [(low, DType.F32), (zero, DType.F32), (zero, DType.F32)])
        nest.add(self.key, Vec(name, (lane.high, lane.total, lane.result), ()))

    def _load_keys(self, nest: Nest) -> str:
        shape = self.shape
        return self._load_matrix(nest, "k", (shape.keys, shape.depth), (self.keys, self.depth), self.key + 2)

    def _load_values(self, nest: Nest) -> str:
        shape = self.shape
        loops = (self.keys, nest.loops[ROW + 1])
        return self._load_matrix(nest, "v", (shape.keys, shape.columns), loops, self.key + 1, after=True)

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
        """Load a tile of k or v, with its two axes swapped if they are in memory."""
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
        nest.add(self.key + 2, mma)

    def _product(self, nest: Nest, lane: Lane, v: str) -> None:
        mma = Mma(
            lane.product,
            TileRef(lane.weights),
            TileRef(v),
            (),
            transpose_b=self.sources["v"].swapped,
            valid=self._bounds(lane, "r", "m", "e", "s"),
        )
        nest.add(self.key + 1, mma, after=True)
        if not self.streaming:
            return
        builder = ProgramBuilder()
        old, alpha, new = (builder.param(DType.F32) for _ in range(3))
        total = builder.step("add", builder.step("mul", old, alpha), new)
        name = self._vector(builder, "rescale", [(total, DType.F32)])
        ins = (lane.result, lane.alpha, lane.product)
        nest.add(self.key + 1, Vec(name, (lane.result,), ins, self._bounds(lane, "r", "m", "e")), after=True)

    def _softmax(self, nest: Nest, lane: Lane) -> None:
        """Compute the weights of one tile of keys and update the states."""
        builder, ins, scalars = ProgramBuilder(), [lane.scores], list[Affine]()
        x, factor = self._masked_scores(nest, lane, builder, ins, scalars)
        high = builder.step("reduce_max", x, ints=(2,))
        if factor != 1:
            scale = builder.const(factor, DType.F32)
            x, high = builder.step("mul", x, scale), builder.step("mul", high, scale)
        if self.streaming:
            old, total = builder.param(DType.F32), builder.param(DType.F32)
            ins += [lane.high, lane.total]
            high = builder.step("max", old, high)
        shift = builder.step("sub", builder.const(math.log(PEAK.get(self.dtype, 1.0)), DType.F32), high)
        weights = builder.step("exp", builder.step("add", x, shift))
        here = builder.step("reduce_sum", weights, ints=(2,))
        results, outs = [(weights, self.dtype), (here, DType.F32)], [lane.weights, lane.total]
        if self.streaming:
            alpha = builder.step("exp", builder.step("sub", old, high))
            total = builder.step("add", builder.step("mul", total, alpha), here)
            results = [(weights, self.dtype), (total, DType.F32), (high, DType.F32), (alpha, DType.F32)]
            outs += [lane.high, lane.alpha]
        name = self._vector(builder, "softmax", results)
        vec = Vec(name, tuple(outs), tuple(ins), self._bounds(lane, "r", "m", "s"), tuple(scalars))
        nest.add(self.key + 1, vec, after=True)

    def _masked_scores(
        self, nest: Nest, lane: Lane, builder: ProgramBuilder, ins: list[str], scalars: list[Affine]
    ) -> tuple[str, float]:
        """Steps from the accumulator to the scores, and a positive factor still to be applied, so that the engine fuses
        that product with the subtraction of the maximum."""
        x, factor = builder.param(DType.F32), self.scale
        if self.mask is not None or factor <= 0:
            x, factor = builder.step("mul", x, builder.const(factor, DType.F32)), 1.0
        if self.mask is not None:
            ins.append(self._load_mask(nest, lane))
            x = builder.step("add", x, builder.param(self.mask_dtype))
        if self.causal:
            row = self._position(builder, x, 1, lane.loops["m"].offset + (self.s - self.m), scalars)
            key = self._position(builder, x, 2, self.keys.offset, scalars)
            visible = builder.step("le", key, row)
            x = builder.step("select", visible, x, builder.const(-math.inf, DType.F32))
        return x, factor

    def _position(self, builder: ProgramBuilder, like: str, along: int, offset: Affine, scalars: list[Affine]) -> str:
        """Positions along a tile axis, from `offset` on; in i32, because comparing a tile in i64 costs twice as
        much."""
        count = self.shape.rows if along == 1 else self.shape.keys
        scalars.append(offset)
        start = builder.step("scalar", ints=(len(scalars) - 1,))
        position = builder.step("add", builder.step("iota", like, ints=(along, count)), start)
        return builder.step("cast", position, dtype=DType.I32)

    def _load_mask(self, nest: Nest, lane: Lane) -> str:
        assert self.mask is not None
        param = self.kernel.param(self.mask_tensor, self.mask_dtype, self.mask.view)
        names = [n for i, n in enumerate("bgrms") if self.mask.present(i)]
        names += ["p"] if "s" in names else []
        where = nest.depth_of(names)
        index = []
        for i, n in enumerate("bgrms"):
            offset = lane.loops[n].offset if self.mask.present(i) else Affine()
            index.append(offset + axis(i - 2) if i >= 2 and self.mask.present(i) else offset)
        streamed = where == nest.depth_of(("s",)) and self.streaming
        buffer = self.kernel.buffer(
            "mask", self.mask_dtype, self.mask_tile(self.shape), depth=self.shape.slots if streamed else 2
        )
        nest.add(where, Load(buffer, param, tuple(index)))
        return buffer

    def _store_part(self, nest: Nest, lane: Lane) -> None:
        """Store the sums, maxima and totals of one part."""
        (result,) = self.body.results
        domain = self.chain.domain
        stride = math.prod(result.type.dims[1:])
        buffers = (lane.result, lane.high, lane.total)
        for buffer, view in zip(buffers, part_views(result.type.dims, domain), strict=True):
            whole = View((self.walks, *view.shape), (stride, *view.strides), view.offset)
            param = self.kernel.param(self.tensors[result.name], result.type.dtype, whole, written=True)
            index = [var("p"), nest.loops[0].offset, nest.loops[1].offset]
            index += [lane.loops[n].offset + axis(i) for i, n in enumerate("rm")]
            nest.add(self.key, Store(param, buffer, (*index, axis(2))), after=True)

    def _finish(self, nest: Nest, lane: Lane) -> None:
        if self.walks > 1:
            self._store_part(nest, lane)
            return
        builder = ProgramBuilder()
        anchor = builder.param(DType.F32)
        ins = [lane.result if self.streaming else lane.product, lane.total]
        total = builder.param(DType.F32)
        anchor = builder.step("mul", anchor, builder.step("reciprocal", total))
        self.finish_chain(nest, self.key, builder, ins, anchor, lane.loops, after=True)


def check_attention(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group has no attention kernel with any tiling."""
    AttentionLowering(body.name, body, {v.name: v.name for v in (*body.params, *body.results)}, (), target)


def lower_attention(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one attention. Raises NotFusable."""
    return AttentionLowering(name, body, tensors, loc, target).lower()
