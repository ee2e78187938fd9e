"""Attention with a streaming softmax (FlashAttention: Dao, Fu, Ermon, Rudra, Re 2022; Milakov and Gimelshein 2018).

For a tile of query rows the kernel walks the keys once: scores on the tensor engine, then on the vector engine the
running maximum and sum of each row and the weights relative to that maximum, then weights times values, added to the
earlier result rescaled by exp(old maximum - new maximum). If all keys fit one tile, nothing is carried. The weighted
sum, not each weight, is divided by the total: it has fewer elements. The factor PEAK on 8-bit float weights therefore
cancels: the total contains it too.

Rows are (head within its key/value group, query): heads that share keys share the loaded tiles. Where it is faster, a
loop iteration interleaves up to four parts of rows (FlashAttention-3: Shah et al. 2024, with two), or, of few rows, up
to four tiles of keys, so that the tensor engine works on some while the vector engine computes the softmax of another.
Causal attention takes its rows in bands: each walks the keys that all its rows see, without a mask, and then those that
its last row sees, and no others.

Invariant: the maximum starts at the lowest finite f32, so a row whose keys so far are all masked has weights exp(-inf)
= 0, not NaN; a fully masked row ends as 0 / 0 = NaN, as in the decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering.kernels.attention_loops import Band, Lane, Part, PartKeys, Range, Walk, bounds_of
from ppuc.compiler.lowering.kernels.attention_steps import maximum, relative_weights, scaled_scores, visible_scores
from ppuc.compiler.lowering.kernels.attention_tiles import ROW, TiledAttention, epilogue_tiles, part_views
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Load, Mma, Store, TileRef, Vec, View
from ppuc.ir.ops.attention import LOWEST
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target


class AttentionLowering(TiledAttention):
    """Lowers a group around one attention."""

    def lower(self) -> KernelBuilder:
        """Choose tiles and build the kernel. Raises NotFusable when no tile fits."""
        self.shape = shape = self.choose()
        self.kernel.price_clk = self._price(shape)
        self.tiles = epilogue_tiles(shape)
        self.streaming = self.span > shape.keys or self.walks > 1
        loops, _ = self.loops(shape)
        self.key = len(loops) + (self.walks > 1)
        bands = self.bands(shape, loops[ROW])
        lanes = [self._lane() for _ in range(shape.lanes)]
        lanes += [self._lane(lanes[0]) for _ in range(1, shape.together)]
        for key in "kv":
            for group in range(shape.groups * shape.together):
                buffer = self._matrix_buffer(key)
                for lane in lanes[group * shape.parts : (group + 1) * shape.parts]:
                    lane.matrices[key] = buffer
        *earlier, nest = (self._band(loops, lanes, rows, f".{i}" if i else "") for i, rows in enumerate(bands))
        for each in earlier:
            nest.prepend(each, ROW)
        self.kernel.nests.append(nest)
        return self.kernel

    def _band(self, loops: Sequence[Tiling], lanes: Sequence[Lane], rows: tuple[int, int], suffix: str) -> Nest:
        """The nest of one band of rows; `suffix` makes its loops' names unique."""
        start, stop = rows
        if stop - start < self.m:
            m, e = loops[ROW], loops[ROW + 1]
            m = Band(f"m{suffix}", stop - start, m.tile, m.units, start=start, axis="m")
            loops = [*loops[:ROW], m, Band(f"e{suffix}", e.size, e.tile, e.units, axis="e") if e.exists else e]
        if self.walks > 1:
            loops = [*loops, Tiling("p", self.walks, 1, self.walk_units)]
        walks = self._walks(loops, rows, suffix)
        nest = walks[-1].nest
        rows_of = lanes[: self.shape.lanes]
        for i, lane in enumerate(lanes):
            lane.loops = self._parts_of(loops, i % self.shape.lanes)
        for lane in rows_of if self.streaming else ():
            self._start(nest, lane)
        for walk in walks:
            self._steps(walk, lanes)
            if walk.nest is not nest:
                nest.prepend(walk.nest, self.key)
        for lane in rows_of:
            self._finish(nest, lane)
        return nest

    def _walks(self, loops: Sequence[Tiling], rows: tuple[int, int], suffix: str) -> list[Walk]:
        """One walk over all keys; for causal attention, one over the keys that every row of the band sees, if they fill
        a tile, and one over the others that its last row sees."""
        shape = self.shape
        depth = Tiling(f"d{suffix}", self.d, shape.depth)
        if self.walks > 1:
            return [Walk(Nest([*loops, PartKeys("s", self.span, shape.keys, limit=self.s), depth]), self.masked)]
        keys, visible = self.seen(rows[1]), self.unmasked_tiles(shape, rows[0]) * shape.keys
        if not visible:
            tile = shape.keys * shape.together
            whole = Range(f"s{suffix}", keys, tile) if suffix or keys < self.s else Tiling("s", keys, tile)
            return [Walk(Nest([*loops, whole, depth]), self.masked)]
        first = Walk(Nest([*loops, Range(f"s{suffix}", visible, shape.keys), depth]), False)
        if visible == keys:
            return [first]
        last = Range(f"t{suffix}", keys - visible, shape.keys, start=visible)
        return [first, Walk(Nest([*loops, last, Tiling(f"f{suffix}", depth.size, depth.tile)]), True)]

    def _steps(self, walk: Walk, lanes: Sequence[Lane]) -> None:
        """Add what an iteration over a tile of keys, or several, does."""
        parts, columns = self.shape.parts, walk.nest.loops[ROW + 1]
        tiles = [tile for tile in walk.tiles(self.shape.together) for _ in range(self.shape.lanes)]
        steps = list(zip(tiles, lanes, strict=True))
        for i, (tile, lane) in enumerate(steps):
            if i % parts == 0:
                self._load_matrix(tile, lane, "k", (tile.keys, walk.depth), self.key + 2)
            self._scores(tile, lane)
        for tile, lane in steps[::parts]:
            self._load_matrix(tile, lane, "v", (tile.keys, columns), self.key + 1, after=True)
        # rows of one part follow the softmax of their next keys, so that the vector engine does not wait for a product
        ahead = 1 if self.shape.together > 1 else len(steps)
        for tile, lane in steps[:ahead]:
            self._softmax(tile, lane)
        for i, (tile, lane) in enumerate(steps):
            for later in steps[i + ahead : i + ahead + 1]:
                self._softmax(*later)
            self._product(tile, lane)

    def _parts_of(self, loops: Sequence[Tiling], part: int) -> dict[str, Tiling]:
        """The loops of one part of rows, by axis."""
        shape, names = self.shape, [axis.name for axis in self.space.axes]
        by_axis = dict(zip(names, loops, strict=False))
        by_axis["g"] = Part.of(by_axis["g"], part // shape.parts)
        by_axis["m"] = Part.of(by_axis["m"], part % shape.parts * shape.rows)
        return by_axis

    def _lane(self, before: Lane | None = None) -> Lane:
        """The buffers of a part of rows; of its next tile of keys, if the states of `before` continue."""
        shape, kernel = self.shape, self.kernel
        lane = Lane()
        h, m, s, e = shape.heads, shape.rows, shape.keys, shape.columns
        lane.scores = kernel.buffer("scores", DType.F32, (h, m, s), Space.ACC, shape.acc_slots)
        lane.product = kernel.buffer("product", DType.F32, (h, m, e), Space.ACC, shape.acc_slots)
        lane.weights = kernel.buffer("weights", self.dtype, (h, m, s), depth=shape.acc_slots)
        if self.streaming:
            lane.alpha = kernel.buffer("alpha", DType.F32, (h, m, 1), depth=1)
        if before is not None:
            lane.query, lane.high, lane.total, lane.result = before.query, before.high, before.total, before.result
            return lane
        tile = (h, m, shape.depth)
        slots = shape.slots if shape.depth < self.d else shape.end_slots
        lane.query = kernel.buffer(
            "q", self.dtype, (tile[2], *tile[:2]) if self.sources["q"].swapped else tile, depth=slots
        )
        if self.streaming:
            lane.high = kernel.buffer("high", DType.F32, (h, m, 1), depth=1)
            lane.total = kernel.buffer("total", DType.F32, (h, m, 1), depth=1)
            lane.result = kernel.buffer("sum", DType.F32, (h, m, e), depth=1)
        else:
            lane.total = kernel.buffer("total", DType.F32, (h, m, 1), depth=shape.acc_slots)
        return lane

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

    def _matrix_buffer(self, key: str) -> str:
        """The ring of the tiles of k or v."""
        shape = self.shape
        tile = (shape.keys, shape.depth if key == "k" else shape.columns)
        return self.kernel.buffer(key, self.dtype, tile[::-1] if self.sources[key].swapped else tile, depth=shape.slots)

    def _load_matrix(
        self, walk: Walk, lane: Lane, key: str, loops: tuple[Tiling, Tiling], depth: int, *, after: bool = False
    ) -> None:
        """Load a tile of k or v of the lane's group, with its two axes swapped if they are in memory."""
        source, nest = self.sources[key], walk.nest
        index = [nest.loops[0].offset, lane.loops["g"].offset]
        index += [loop.offset + axis(1 - i if source.swapped else i) for i, loop in enumerate(loops)]
        param = self.kernel.param(source.tensor, self.dtype, source.view)
        nest.add(depth, Load(lane.matrices[key], param, tuple(index)), after=after)

    def _load_queries(self, walk: Walk, lane: Lane) -> None:
        """Load the lane's queries: once, or, if their depth is split, with each tile of keys."""
        source, nest = self.sources["q"], walk.nest
        order = (1, 2, 0) if source.swapped else (0, 1, 2)
        loops = (lane.loops["r"], lane.loops["m"], walk.depth)
        index = [nest.loops[0].offset, lane.loops["g"].offset]
        index += [loop.offset + axis(order[i]) for i, loop in enumerate(loops)]
        param = self.kernel.param(source.tensor, self.dtype, source.view)
        depth = self.key + 2 if walk.depth.exists else nest.depth_of([lane.loops[n].name for n in "bgrm"])
        self.load_once(nest, depth, Load(lane.query, param, tuple(index)))

    def _scores(self, walk: Walk, lane: Lane) -> None:
        self._load_queries(walk, lane)
        loops = (lane.loops["r"], lane.loops["m"], walk.keys, walk.depth)
        mma = Mma(
            lane.scores,
            TileRef(lane.query),
            TileRef(lane.matrices["k"]),
            (walk.depth.name,) if walk.depth.exists else (),
            transpose_a=self.sources["q"].swapped,
            transpose_b=not self.sources["k"].swapped,
            valid=bounds_of(*loops),
        )
        walk.nest.add(self.key + 2, mma)

    def _product(self, walk: Walk, lane: Lane) -> None:
        rows, columns = (lane.loops["r"], lane.loops["m"]), lane.loops["e"]
        mma = Mma(
            lane.product,
            TileRef(lane.weights),
            TileRef(lane.matrices["v"]),
            (),
            transpose_b=self.sources["v"].swapped,
            valid=bounds_of(*rows, columns, walk.keys),
        )
        walk.nest.add(self.key + 1, mma, after=True)
        if not self.streaming:
            return
        builder = ProgramBuilder()
        old, alpha, new = (builder.param(DType.F32) for _ in range(3))
        total = builder.step("add", builder.step("mul", old, alpha), new)
        name = self._vector(builder, "rescale", [(total, DType.F32)])
        ins = (lane.result, lane.alpha, lane.product)
        walk.nest.add(self.key + 1, Vec(name, (lane.result,), ins, bounds_of(*rows, columns)), after=True)

    def _softmax(self, walk: Walk, lane: Lane) -> None:
        """Compute the weights of one tile of keys and update the states."""
        builder, ins, scalars = ProgramBuilder(), [lane.scores], list[Affine]()
        x, factor = self._masked_scores(walk, lane, builder, ins, scalars)
        x, high = maximum(builder, x, factor, 2)
        if self.streaming:
            old, total = builder.param(DType.F32), builder.param(DType.F32)
            ins += [lane.high, lane.total]
            high = builder.step("max", old, high)
        weights, here = relative_weights(builder, x, high, self.dtype, 2)
        results, outs = [(weights, self.dtype), (here, DType.F32)], [lane.weights, lane.total]
        if self.streaming:
            alpha = builder.step("exp", builder.step("sub", old, high))
            total = builder.step("add", builder.step("mul", total, alpha), here)
            results = [(weights, self.dtype), (total, DType.F32), (high, DType.F32), (alpha, DType.F32)]
            outs += [lane.high, lane.alpha]
        name = self._vector(builder, "softmax" if walk.masked == self.masked else "visible", results)
        bounds = bounds_of(lane.loops["r"], lane.loops["m"], walk.keys)
        walk.nest.add(self.key + 1, Vec(name, tuple(outs), tuple(ins), bounds, tuple(scalars)), after=True)

    def _masked_scores(
        self, walk: Walk, lane: Lane, builder: ProgramBuilder, ins: list[str], scalars: list[Affine]
    ) -> tuple[str, float]:
        """Steps from the accumulator to the scores, and a positive factor still to be applied, so that the engine fuses
        that product with the subtraction of the maximum."""
        apart = self.mask is not None
        x, factor = scaled_scores(builder, builder.param(DType.F32), self.scale, apart=apart)
        if self.mask is not None:
            self._load_mask(walk, lane)
            ins.append(lane.mask)
            x = builder.step("add", x, builder.param(self.mask_dtype))
        if walk.masked:
            row = self._position(builder, x, 1, lane.loops["m"].offset + (self.s - self.m), scalars)
            key = self._position(builder, x, 2, walk.keys.offset, scalars)
            x = visible_scores(builder, x, key, row)
        return x, factor

    def _position(self, builder: ProgramBuilder, like: str, along: int, offset: Affine, scalars: list[Affine]) -> str:
        """Positions along a tile axis, from `offset` on; in i32, because comparing a tile in i64 costs twice as
        much."""
        count = self.shape.rows if along == 1 else self.shape.keys
        scalars.append(offset)
        start = builder.step("scalar", ints=(len(scalars) - 1,))
        position = builder.step("add", builder.step("iota", like, ints=(along, count)), start)
        return builder.step("cast", position, dtype=DType.I32)

    def _load_mask(self, walk: Walk, lane: Lane) -> None:
        """Load the lane's mask: with each tile of keys, or once if it is the same for all keys."""
        assert self.mask is not None
        streamed = self.mask.present(4) and self.streaming
        param = self.kernel.param(self.mask_tensor, self.mask_dtype, self.mask.view)
        loops = lane.loops | {"s": walk.keys}
        index = []
        for i, n in enumerate("bgrms"):
            offset = loops[n].offset if self.mask.present(i) else Affine()
            index.append(offset + axis(i - 2) if i >= 2 and self.mask.present(i) else offset)
        if not lane.mask:
            slots = self.shape.slots if streamed and self.shape.keys < self.span else 2
            lane.mask = self.kernel.buffer("mask", self.mask_dtype, self.mask_tile(self.shape), depth=slots)
        where = walk.nest.depth_of([loops[n].name for i, n in enumerate("bgrm") if self.mask.present(i)])
        self.load_once(walk.nest, self.key + 1 if streamed else where, Load(lane.mask, param, tuple(index)))

    def _store_part(self, nest: Nest, lane: Lane) -> None:
        """Store the sums, maxima and totals of one part."""
        (result,) = self.body.results
        domain = self.chain.domain
        stride = math.prod(result.type.dims[1:])
        buffers = (lane.result, lane.high, lane.total)
        for buffer, view in zip(buffers, part_views(result.type.dims, domain), strict=True):
            whole = View((self.walks, *view.shape), (stride, *view.strides), view.offset)
            param = self.kernel.param(self.tensors[result.name], result.type.dtype, whole, written=True)
            index = [var("p"), nest.loops[0].offset, lane.loops["g"].offset]
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
        slots = self.shape.end_slots
        self.finish_chain(nest, self.key, builder, ins, anchor, lane.loops, after=True, slots=slots, buffers=lane.ends)


def check_attention(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group has no attention kernel with any tiling."""
    AttentionLowering(body.name, body, {v.name: v.name for v in (*body.params, *body.results)}, (), target)


def lower_attention(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one attention. Raises NotFusable."""
    return AttentionLowering(name, body, tensors, loc, target).lower()
