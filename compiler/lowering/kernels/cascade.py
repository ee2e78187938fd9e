"""A window (depthwise convolution or pool) and the product that reads it in one kernel: the tensor between them never
leaves l1.

A unit takes a tile of the image and walks its channels in chunks. The vector engine computes a chunk of the window's
results; the tensor engine multiplies it by the matching rows of the weights and accumulates, while the vector engine
computes the next chunk. The product's epilogue ends the tile.

Invariant: chunks divide the channels exactly, so the window computes every element of the intermediate tile; positions
of ragged tiles beyond the image are computed but not stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import operand_ops, operand_view
from ppuc.compiler.lowering.kernels.window import DEPTHS, SPATIAL, even_tiles
from ppuc.compiler.lowering.kernels.window_steps import work
from ppuc.compiler.lowering.kernels.window_tile import split_at, window_of, window_tile
from ppuc.compiler.lowering.tiling.body import NotFusable, analyse
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling, distribute
from ppuc.compiler.lowering.tiling.unmerged import UnmergedLowering, slot_bytes
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import axis
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Load, Mma, TileRef, View
from ppuc.ir.types import Space
from ppuc.targets.schema import Target

LEAST_CHUNK = 16
"""Minimum channels of a chunk: a fragment's k."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Points of a tile along the spatial axes, channels of a chunk, slots of each ring that holds a chunk's operands
    (equally deep, as one queue fills them in turn), units per outer loop."""

    points: tuple[int, ...]
    channels: int
    depth: int
    units: tuple[int, ...]
    price: float


class CascadeLowering(UnmergedLowering):
    """Lowers a group of one window and one matmul that reads its result."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        product, between = _product(body)
        first, rest = split_at(body, between)
        domain = product.results[0].type.dims
        if any(v == between for op in rest.ops for v in op.operands if op.name != "matmul") or between in body.results:
            raise NotFusable("the window's results have readers other than the product")
        window = window_of(name, first, between, tensors, loc, target)
        skip = frozenset(op.results[0].name for op in first.ops if op.name != "const") | {product.results[0].name}
        chain = analyse(body, product.results[0], domain, skip | operand_ops(rest, product))
        spatial = len(domain) - 2
        if not 0 < spatial <= len(SPATIAL):
            raise NotFusable(f"the product of {list(domain)} does not have the window's points as rows")
        names = ("n", *SPATIAL[-spatial:], "o")
        super().__init__(name, body, tensors, loc, target, chain, names, outer=1)
        if chain.reduce_axes:
            raise NotFusable("the epilogue reduces")
        self.spatial, self.between = spatial, between
        self.window = window
        self.window.kernel = self.kernel
        value, self.w = operand_view(body, product.operands[1])
        if product.attrs.transpose_b or self.w.shape != (between.type.dims[-1], domain[-1]):  # type: ignore[attr-defined]
            raise NotFusable("the weights are not a matrix of input by output channels")
        self.w_tensor, self.dtype = tensors[value.name], between.type.dtype
        self.w_dtype = value.type.dtype
        self.multiply(self.w_dtype, "product")
        self.choice = self._choose()
        self.tiles = [1, *self.choice.points, domain[-1]]
        self.window.tiles = [1, *self.choice.points, self.choice.channels]
        self.window.depth = self.choice.depth

    # the search

    def _choose(self) -> Choice:
        """The cheapest choice in half of l1 and acc or in all of it; the latter delays the next kernel's first
        loads."""
        found = [
            c
            for whole in (False, True)
            for points in self._points()
            for channels in self._chunks()
            if (c := self._try(points, channels, whole))
        ]
        if not found:
            raise NotFusable("no tile of the window's results and the product fits l1 and acc")
        return min(found, key=lambda c: c.price)

    def _points(self) -> Iterator[tuple[int, ...]]:
        sizes = [even_tiles(self.space.axes[1 + i].size, 64) for i in range(self.spatial)]

        def grow(i: int, left: int, chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if i == self.spatial:
                yield chosen
                return
            for size in sizes[i]:
                if size <= left:
                    yield from grow(i + 1, left // size, (*chosen, size))

        yield from grow(0, self.target.acc.bytes // (4 * self.space.axes[-1].size), ())

    def _chunks(self) -> list[int]:
        channels = self.between.type.dims[-1]
        return [c for c in range(LEAST_CHUNK, channels, LEAST_CHUNK) if channels % c == 0] + [channels]

    def _try(self, points: tuple[int, ...], channels: int, whole: bool) -> Choice | None:
        """The choice of these tiles with the deepest rings that fit; None if none do."""
        results = self.space.axes[-1].size
        l1 = self.target.l1.bytes if whole else cost.l1_budget(self.target)
        acc = self.target.acc.bytes if whole else cost.acc_budget(self.target)
        if 2 * math.prod(points) * results * 4 > acc:
            return None
        tiles = [1, *points, channels]
        taken = self.epilogue_bytes([1, *points, results])
        taken += 2 * sum(self.window.slot_bytes(o, tiles) for o in self.window.operands if o.written)
        slots = slot_bytes(channels * results, self.w_dtype.bytes)
        if self.window.w is not None:
            slots += slot_bytes(self.window.window.taps * channels, self.window.w_dtype.bytes)
        slots += slot_bytes(math.prod(self.window.halo_of(tiles)), self.window.dtype.bytes)
        slots += self._operand_bytes(tiles)
        depth = next((d for d in DEPTHS if taken + d * slots <= l1), 0)
        return self._priced(points, channels, depth, whole) if depth else None

    def _operand_bytes(self, tiles: Sequence[int]) -> int:
        """Slot bytes of each operand of the window's epilogue. Their rings are as deep as the window's; shallower ones
        would stall its loads."""
        return sum(self.window.slot_bytes(o, tiles) for o in self.window.operands if not o.written)

    def _priced(self, points: tuple[int, ...], channels: int, depth: int, whole: bool) -> Choice:
        axes, window, target = self.space.axes, self.window, self.target
        results, total = axes[-1].size, self.between.type.dims[-1]
        trips = tuple(-(-axes[i].size // t) for i, t in enumerate((1, *points)))
        units = distribute(trips, target.cu)
        active = math.prod(units)
        iterations = math.prod(-(-n // u) for n, u in zip(trips, units, strict=True))
        tiles, size = [1, *points, channels], math.prod(points)
        vec = work(window.window, points, [channels]) / target.vector.lanes + window.work.clk(tiles)
        extents = [min(e, n) for e, n in zip(window.halo_of(tiles), window.x.shape[1:], strict=True)]
        halo = cost.box_traffic(View(window.x.shape[1:], window.x.strides[1:]), extents, window.dtype, target)
        weights = cost.box_traffic(self.w, [channels, results], self.w_dtype, target)
        load = cost.load_clk(halo, target, active, window.x_space) + cost.load_clk(weights, target, active)
        load += (3 + sum(not operand.written for operand in window.operands)) * cost.overhead_clk(target)
        dtype = cost.tensor_dtype(self.dtype, target)
        mma = cost.mma_clk(size, results, channels, dtype, target)
        latency = cost.latency_clk(target, window.x_space)
        beat = max(mma, cost.beat_clk(vec, load, latency, depth))
        after, store, extra = self.chain_price([1, *points, results], active)
        tile = max(-(-total // channels) * beat + mma + after, store) + extra
        price = iterations * tile + latency + load + store
        if whole:
            price += cost.latency_clk(target) + load
        return Choice(points, channels, depth, units, price)

    @property
    def price(self) -> float:
        """Expected cycles with the chosen tiles."""
        return self.choice.price

    # building

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        choice, axes, window = self.choice, self.space.axes, self.window
        self.kernel.price_clk = choice.price
        outer = [
            Tiling(axes[i].name, axes[i].size, t, n)
            for i, (t, n) in enumerate(zip((1, *choice.points), choice.units, strict=True))
        ]
        chunk = Tiling("c", self.between.type.dims[-1], choice.channels)
        taps = [Tiling(f"k{axes[1 + i].name}", k, k) for i, k in enumerate(window.window.kernel)]
        nest = Nest([*outer, chunk, *taps])
        loops = {loop.name: loop for loop in nest.loops}
        results = axes[-1].size
        acc = self.kernel.buffer("acc", self.acc_dtype, [*choice.points, results], Space.ACC, 2)
        tile = window_tile(window, self.between, nest, loops, choice.depth)
        wt = self.kernel.buffer("wt", self.w_dtype, [choice.channels, results], depth=choice.depth)
        param = self.kernel.param(self.w_tensor, self.w_dtype, self.w)
        nest.add(nest.depth_of(["c"]), Load(wt, param, (chunk.offset + axis(0), axis(1))))
        bounds = (*(loop.bound for loop in outer[1:]), None, None)
        valid = bounds if any(b is not None for b in bounds) else ()
        start = ("c",) if chunk.exists else ()
        nest.add(len(nest.loops), Mma(acc, TileRef(tile), TileRef(wt), start, valid=valid))
        builder = ProgramBuilder()
        result = builder.param(self.acc_dtype)
        self.finish_chain(nest, len(outer), builder, [acc], result, loops, after=True)
        self.kernel.nests.append(nest)
        return self.kernel


def _product(body: Graph) -> tuple[Op, Value]:
    """The matmul of a body, and its computed operand. Raises NotFusable."""
    products = [op for op in body.ops if op.name == "matmul"]
    if len(products) != 1:
        raise NotFusable("a cascade has one product")
    between = products[0].operands[0]
    producer = body.producer(between)
    if producer is None or between.type.dims[:-1] != products[0].results[0].type.dims[:-1]:
        raise NotFusable("the product does not read the window's results point by point")
    if products[0].attrs.transpose_a:  # type: ignore[attr-defined]
        raise NotFusable("the product reads the window's results transposed")
    return products[0], between


def lower_cascade(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group of a window and the product of its result. Raises NotFusable."""
    return CascadeLowering(name, body, tensors, loc, target).lower()
