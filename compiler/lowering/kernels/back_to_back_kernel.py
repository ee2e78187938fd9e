"""Builds the kernel of several products over the same rows from the tiles and plans that the search has chosen.

Invariant: loads of weights precede loads that wait for another kernel wherever they have room in l1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering.kernels.attention_head import AttentionHead
from ppuc.compiler.lowering.kernels.attention_head_tile import AttentionTile
from ppuc.compiler.lowering.kernels.row_products import Choice, RowProducts
from ppuc.compiler.lowering.kernels.row_stage import Local, StageLowering
from ppuc.compiler.lowering.kernels.window import WindowLowering
from ppuc.compiler.lowering.kernels.window_tile import window_tile
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.compiler.lowering.tiling.tiled import Operand
from ppuc.ir.affine import Affine, axis, var
from ppuc.ir.kernel import Load, Mma, TileRef, Vec
from ppuc.ir.types import Space

SLOTS = 4
"""Slots of the ring of weights that a loop over chunks or parts of a sum loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(Tiling):
    """The `tile` elements from `start` on of each iteration of `loop`."""

    loop: Tiling
    start: int

    @property
    def offset(self) -> Affine:
        return self.loop.offset + self.start

    @property
    def exists(self) -> bool:
        return self.loop.exists

    @property
    def bound(self) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns(Tiling):
    """One iteration for each of the `units` that divide the columns of `loop` among them."""

    loop: Tiling

    @property
    def over(self) -> str:
        return self.loop.over


class Building:
    """Builds the kernel of a choice."""

    def __init__(self, lowering: RowProducts, choice: Choice) -> None:
        self.lowering, self.choice, self.kernel = lowering, choice, lowering.kernel
        axes = lowering.stages[0].space.axes
        window = lowering.window
        names = [a.name for a in axes] if window is None else self._window_names(window, lowering.stages[0].outer)
        self.outer = [
            Tiling(names[i], axes[i].size, t, n)
            for i, (t, n) in enumerate(zip(self.choice.rows, self.choice.units, strict=True))
        ]
        self.depth = len(self.outer)
        self.buffers: dict[str, str] = {}  # computed value -> its buffer
        self.loaded: dict[tuple[object, ...], str] = {}
        self.weights: list[str] = []
        self.heads: list[str] = []
        """The buffers of what attention computes, one for each head."""
        self.shared = 0
        """Results so far that all units of the last product's columns compute."""
        last = lowering.stages[-1].at(self.choice.rows, self.choice.plans[-1].features)
        self.columns = self._chunk_loops(len(lowering.products) - 1, last, self.choice.columns)
        self.nest = Nest([*self.outer, *self.columns])

    @staticmethod
    def _window_names(window: WindowLowering, outer: int) -> list[str]:
        """The names of the row axes in the window's own terms; an image alone has no axis for the batch."""
        return [axis.name for axis in window.space.axes[1 + window.spatial - outer : 1 + window.spatial]]

    def build(self) -> KernelBuilder:
        """The finished builder."""
        lowering, plans = self.lowering, self.choice.plans
        if self.choice.resident:
            self.weights = [self._resident(j) for j in range(len(plans))]
        if lowering.window is not None:
            self._window(lowering.window)
        elif lowering.attention is not None:
            self._attention(lowering.attention)
        elif lowering.stages[0].kept:
            self._vec(self.nest, self.depth, 0, (), ())
        last = len(plans) - 1
        j = 0
        while j <= last:
            if plans[j].feeds:
                self._fed(j)
                j += 2
                continue
            chunks = self._chunk_loops(j, self._stage(j), 1)
            if j == last and self.columns:
                self._chunked(self.nest, j, self.columns)
            elif chunks:
                nest = Nest([*self.outer, *chunks])
                self._chunked(nest, j, chunks)
                self.nest.prepend(nest, self.depth)
            else:
                acc = self._whole(j)
                self._vec(self.nest, self.depth, j + 1, (), [acc])
            j += 1
        self.kernel.nests.append(self.nest)
        return self.kernel

    def _window(self, window: WindowLowering) -> None:
        """Add a tile of the window's results, and its store if others read it."""
        head, stage = self.lowering.head, self.lowering.stages[0].at(self.choice.rows)
        assert head is not None
        self.lowering.tile_window(self.choice.rows)
        names = [axis.name for axis in window.space.axes]
        loops = {name: Tiling(name, 1, 1) for name in names}
        loops |= {loop.name: loop for loop in self.outer}
        for i, size in enumerate(window.window.kernel):
            loops[f"k{names[1 + i]}"] = Tiling(f"k{names[1 + i]}", size, size)
        nest = Nest(list(self.outer))
        self.buffers[head.name] = window_tile(window, head, nest, loops, 2)
        self.nest.prepend(nest, self.depth)
        self._store(self.nest, self.depth, stage, self._loops(stage, ()), shared=True)

    def _attention(self, attention: AttentionHead) -> None:
        """Add the heads of a tile of rows, and the program that completes each of them."""
        heads = AttentionTile(attention, self.kernel, self.nest, self.outer, self.choice.rows, self.lowering.name)
        (kept,) = self.lowering.stages[0].kept
        for i, (product, total) in enumerate(heads.build()):
            size = attention.heads * attention.e
            part = Chunk("h", size, attention.e, loop=Tiling("h", size, size), start=i * attention.e)
            self._vec(self.nest, self.depth, 0, [part] if attention.heads > 1 else [], [product, total])
            self.heads.append(self.buffers[kept.name])

    def _stage(self, j: int) -> StageLowering:
        """The stage of product `j` with its chosen tiles."""
        return self.lowering.stages[j + 1].at(self.choice.rows, self.choice.plans[j].features)

    def _chunk_loops(self, j: int, stage: StageLowering, units: int) -> list[Tiling]:
        """The loops over chunks of the columns of product `j`; none if its plan feeds or takes them whole."""
        plan = self.choice.plans[j]
        if plan.feeds:
            return []
        pairs = zip(stage.features, plan.features, strict=True)
        loops = [Tiling(f"c{j}.{i}", size, tile) for i, (size, tile) in enumerate(pairs) if tile < size]
        if loops and units > 1:
            loops[0] = Tiling(loops[0].name, loops[0].size, loops[0].tile, units)
        return loops

    def _loops(self, stage: StageLowering, chunks: Sequence[Tiling]) -> dict[str, Tiling]:
        """Axis of the stage -> its loop."""
        tiled = [a for a, t in zip(stage.space.axes, stage.tiles, strict=True) if a.name.startswith("f") and t < a.size]
        return {a.name: loop for a, loop in zip(stage.space.axes, self.outer, strict=False)} | {
            a.name: c for a, c in zip(tiled, chunks, strict=True)
        }

    # loads

    def _order(self, j: int) -> list[int]:
        """The axes of the right operand of product `j`, summed ones and columns, in the order that makes its rows in
        l1 contiguous in memory."""
        view, first = self.lowering.products[j].right.view, self.lowering.products[j].right.first
        axes = [*range(len(view.shape))]
        return axes[first:] + axes[:first] if self._columns_first(j) else axes

    def _columns_first(self, j: int) -> bool:
        """Whether tiles of the weights have columns before summed axes."""
        right = self.lowering.products[j].right
        return right.view.strides[-1] != 1 and right.view.strides[right.first - 1] == 1

    def _resident(self, j: int) -> str:
        """Add the load of the whole right operand of product `j` before all loops; returns its buffer."""
        right, order = self.lowering.products[j].right, self._order(j)
        buffer = self.kernel.buffer("w", right.dtype, [right.view.shape[d] for d in order], depth=1)
        index = tuple(axis(order.index(d)) for d in range(len(order)))
        self.nest.add(0, Load(buffer, self.kernel.param(right.tensor, right.dtype, right.view), index))
        return buffer

    def _right(self, j: int, nest: Nest, chunks: Sequence[Tiling], part: Tiling | None) -> TileRef:
        """The right operand of product `j` for the loops `chunks` over its columns and `part` over its sum; adds its
        load, innermost, unless all weights are loaded before."""
        stage, right, order = self._stage(j), self.lowering.products[j].right, self._order(j)
        if self.choice.resident and not chunks and part is None:
            return TileRef(self.weights[j])
        extents = [*right.view.shape[: right.first], *stage.tiles[stage.outer :]]
        offsets = [Affine()] * len(extents)
        if part is not None:
            extents[0], offsets[0] = part.tile, part.offset
        tiled = [d for d in range(right.first, len(extents)) if extents[d] < right.view.shape[d]]
        for d, loop in zip(tiled, chunks, strict=True):
            offsets[d] = loop.offset
        kept = [d for d in order if d < right.first or extents[d] > 1]
        place = {d: at for at, d in enumerate(kept)}
        index = [offsets[d] + axis(place[d]) if d in place else offsets[d] for d in range(len(extents))]
        shape = tuple(extents[d] for d in kept)
        if self.choice.resident:
            return TileRef(self.weights[j], tuple(index[d] for d in order), shape)
        over = part if part is not None else chunks[0] if chunks else None
        slots = 2 if over is None or isinstance(over, Chunk) else min(SLOTS, over.trips + 1)
        buffer = self.kernel.buffer("w", right.dtype, shape, depth=slots)
        param = self.kernel.param(right.tensor, right.dtype, right.view)
        nest.add(len(nest.loops), Load(buffer, param, tuple(index)))
        return TileRef(buffer)

    def _left(self, j: int) -> str:
        """The buffer of the left operand of product `j`; adds its load if it is in memory."""
        left = self.lowering.products[j].left
        if isinstance(left, Local):
            return self.buffers[left.name]
        stage = self._stage(j)
        kept = [i for i in stage.tile_axes() if i < stage.outer]
        place = {i: at for at, i in enumerate(kept)}
        index, shape = [], [stage.tiles[i] if left.view.shape[i] > 1 else 1 for i in kept]
        for i, loop in enumerate(self.outer):
            offset = loop.offset if left.view.shape[i] > 1 else Affine()
            index.append(offset + axis(place[i]) if i in place and left.view.shape[i] > 1 else offset)
        for i, size in enumerate(self.lowering.products[j].sum):
            index.append(axis(len(kept) + i))
            shape.append(size)
        key = (left.tensor, left.view, tuple(shape))
        if key not in self.loaded:
            buffer = self.kernel.buffer("x", left.dtype, shape)
            param = self.kernel.param(left.tensor, left.dtype, left.view)
            self.nest.add(self.depth, Load(buffer, param, tuple(index)))
            self.loaded[key] = buffer
        return self.loaded[key]

    def _operand(self, nest: Nest, stage: StageLowering, operand: Operand, loops: Mapping[str, Tiling]) -> str:
        """The buffer of an operand of a stage's ops; adds its load."""
        access, dtype = operand.access, operand.dtype
        names = [loops[a.name].name for i, a in enumerate(stage.space.axes) if access.present(i) and a.name in loops]
        depth = nest.depth_of(names)
        shape = stage.tile_shape(access)
        index = stage.index(access, loops)
        key = (operand.tensor, access.view, shape, index)
        if depth <= self.depth and key in self.loaded:
            return self.loaded[key]
        buffer = self.kernel.buffer("t", dtype, shape, depth=2 if depth else 1)
        nest.add(depth, Load(buffer, self.kernel.param(operand.tensor, dtype, access.view), index))
        if depth <= self.depth:
            self.loaded[key] = buffer
        return buffer

    # statements

    def _vec(self, nest: Nest, depth: int, number: int, chunks: Sequence[Tiling], given: Sequence[str]) -> None:
        """Add the vector program of a stage, the loads of its operands and the stores of its results. `given` are the
        buffers of its anchor, if it has one."""
        stage = self.lowering.stages[number]
        features = self.choice.plans[number - 1].features if number else [c.tile for c in chunks] or None
        stage.at(self.choice.rows, features)
        loops = self._loops(stage, chunks)
        ins = [*given]
        ins += [self.buffers[v.name] for v in stage.locals]
        ins += [self._operand(nest, stage, operand, loops) for operand in stage.operands]
        outs = []
        for value in stage.kept:
            slots = 2 if any(source == value.name for source, _ in stage.stores) or chunks else 1
            self.buffers[value.name] = self.kernel.buffer("o", value.dtype, stage.shape(value.present), depth=slots)
            outs.append(self.buffers[value.name])
        name = self.lowering.name if number == len(self.lowering.stages) - 1 else f"{self.lowering.name}.{number}"
        program = stage.program(name)
        if all(program.name != known.name for known in self.kernel.vectors):
            self.kernel.vector(program)
        bounds = stage.bounds(loops)
        nest.add(depth, Vec(program.name, tuple(outs), tuple(ins), tuple(bounds) if any(bounds) else ()))
        self._store(nest, depth, stage, loops, shared=number < len(self.lowering.stages) - 1)

    def _store(
        self, nest: Nest, depth: int, stage: StageLowering, loops: Mapping[str, Tiling], *, shared: bool
    ) -> None:
        """Add the stores of a stage's results. Of the units that divide the last product's columns, all of which
        compute what is `shared`, the first one stores it: the others' tiles are outside the tensor."""
        for source, operand in stage.stores:
            if not shared or self.choice.columns == 1:
                stage.store(self.kernel, nest, depth, operand, self.buffers[source], loops)
                continue
            name = f"first.{self.shared}" if self.shared else "first"
            self.shared += 1
            first = Columns(name, self.choice.columns, 1, self.choice.columns, loop=self.columns[0])
            inner = Nest([*nest.loops[:depth], first])
            beyond = var(first.name, stage.space.axes[0].size)
            stage.store(self.kernel, inner, depth + 1, operand, self.buffers[source], loops, beyond=beyond)
            nest.prepend(inner, depth)

    def _mma(
        self, nest: Nest, j: int, acc: str, left: TileRef, right: TileRef, start: Sequence[Tiling],
        chunks: Sequence[Tiling], *, continues: bool = False,
    ) -> None:  # fmt: skip
        """Add a product."""
        product, stage = self.lowering.products[j], self._stage(j)
        bounds = [*stage.bounds(self._loops(stage, chunks)), *(None for _ in product.sum)]
        for i, (a, b) in enumerate(self._terms(j, left, right)):
            nest.add(
                len(nest.loops),
                Mma(
                    acc, a, b, () if i else tuple(loop.name for loop in start if loop.exists),
                    k_axes=len(product.sum), transpose_b=self._columns_first(j), continues=continues or i > 0,
                    valid=tuple(bounds) if any(bounds) else (),
                ),
            )  # fmt: skip

    def _terms(self, j: int, left: TileRef, right: TileRef) -> list[tuple[TileRef, TileRef]]:
        """The operands of product `j`, or, where a buffer holds each head of its left operand, of the head's part."""
        attention = self.lowering.attention
        if j or attention is None:
            return [(left, right)]
        shape = right.shape or next(b.shape for b in self.kernel.buffers if b.name == right.buffer)
        at = -1 if self._columns_first(j) else 0
        found = []
        for i, buffer in enumerate(self.heads):
            index = list(right.index or (axis(a) for a in range(len(shape))))
            index[at] = index[at] + i * attention.e
            part = list(shape)
            part[at] = attention.e
            found.append((TileRef(buffer), TileRef(right.buffer, tuple(index), tuple(part))))
        return found

    def _accumulator(self, j: int, depth: int) -> str:
        product, stage = self.lowering.products[j], self._stage(j)
        return self.kernel.buffer("c", product.acc_dtype, stage.shape(stage.anchor_present), Space.ACC, depth)

    def _whole(self, j: int) -> str:
        """All columns of product `j`, in parts of the sum; returns the accumulator."""
        plan, product = self.choice.plans[j], self.lowering.products[j]
        part = Tiling(f"k{j}", product.k, plan.k)
        nest = Nest([*self.outer, part])
        right = self._right(j, nest, (), part if part.exists else None)
        left = self._left(j)
        acc = self._accumulator(j, 1)
        self._mma(nest, j, acc, self._part(left, part), right, [part], ())
        self.nest.prepend(nest, self.depth)
        return acc

    def _part(self, left: str, part: Tiling) -> TileRef:
        """The part of the left operand's tile that a step of the sum multiplies."""
        if not part.exists:
            return TileRef(left)
        shape = next(b.shape for b in self.kernel.buffers if b.name == left)
        index = [axis(i) for i in range(len(shape))]
        index[-1] = index[-1] + part.offset
        return TileRef(left, tuple(index), (*shape[:-1], part.tile))

    def _chunked(self, nest: Nest, j: int, chunks: Sequence[Tiling]) -> None:
        """Product `j` and its stage in chunks of columns, whose results are stored."""
        right = self._right(j, nest, chunks, None)
        left = self._left(j)
        acc = self._accumulator(j, 2)
        self._mma(nest, j, acc, TileRef(left), right, (), chunks)
        self._vec(nest, len(nest.loops), j + 1, chunks, [acc])

    def _fed(self, j: int) -> None:
        """Product `j` in chunks of columns, each of which product `j + 1` adds to its sum; and both stages."""
        plan, stage = self.choice.plans[j], self._stage(j)
        size, together = plan.features[0], plan.together
        loop = Tiling(f"c{j}.0", stage.features[0], size * together)
        nest = Nest([*self.outer, loop])
        chunks = [Chunk(loop.name, loop.size, size, loop=loop, start=i * size) for i in range(together)]
        following = self.lowering.products[j + 1].left
        assert isinstance(following, Local)
        left, apart = self._left(j), size < stage.features[0]
        accs = []
        for chunk in chunks:
            mine = [chunk] if apart else []
            right = self._right(j, nest, mine, None)
            accs.append(self._accumulator(j, 1))
            self._mma(nest, j, accs[-1], TileRef(left), right, (), mine)
        total = self._accumulator(j + 1, 1)
        for i, (chunk, acc) in enumerate(zip(chunks, accs, strict=True)):
            self._vec(nest, len(nest.loops), j + 1, [chunk] if apart else [], [acc])
            weights = self._right(j + 1, nest, (), chunk)
            start = [] if i else [loop]
            operand = TileRef(self.buffers[following.name])
            self._mma(nest, j + 1, total, operand, weights, start, (), continues=i > 0)
        self.nest.prepend(nest, self.depth)
        self._vec(self.nest, self.depth, j + 2, (), [total])
