"""Pooling and depthwise convolution on the vector engine, with an epilogue.

Tiles have the spatial axes and the channels; the batch is a loop. A halo tile holds every input element that the tile's
windows reach, with the reduction's identity outside the image. One vector program computes window and epilogue. A
window whose halo exceeds l1, or with too many taps for one program, is walked in blocks of taps, with partial results
in a state tile.

Invariants: a window computes whole tiles, so every operand of its vec is read whole, and ragged tiles are clipped when
results are written. Blocks divide the window exactly, so no tap outside it is combined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels import chunked
from ppuc.compiler.lowering.kernels.contraction import anchor_of, operand_ops, operand_view
from ppuc.compiler.lowering.kernels.window_steps import Window, emit_pool, emit_taps, identity, work
from ppuc.compiler.lowering.tiling.body import NotFusable, analyse
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling, distribute
from ppuc.compiler.lowering.tiling.tiled import Operand
from ppuc.compiler.lowering.tiling.unmerged import UnmergedLowering, slot_bytes
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import Load, Vec, View
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.types import DType
from ppuc.ir.vector import compute_dtype
from ppuc.targets.schema import Target

MAX_TAPS = 256
"""Maximum taps of a depthwise kernel that one vector program unrolls."""
SPATIAL = ("z", "y", "x")


DEPTHS = (8, 6, 4, 3, 2)
"""Candidate slots of the halo ring, deepest first: it hides the most latency."""


class WindowLowering(UnmergedLowering):
    """Lowers a group around one pool or depthwise conv."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        anchor = anchor_of(body, "pool", "conv")
        result, x = anchor.results[0], anchor.operands[0].type
        self.window = self.block = _window(anchor)
        self.spatial = len(self.window.kernel)
        channels: tuple[int, ...] = (x.dims[-1],)
        if self.window.kind == "conv":
            channels = _depthwise_channels(anchor)
        known = [operand_view(body, value) for value in anchor.operands]
        domain = (*result.type.dims[:-1], *channels)
        chain = analyse(body, result, domain, frozenset({result.name}) | operand_ops(body, anchor))
        names = ("n", *SPATIAL[-self.spatial :], *("c", "r")[: len(channels)])
        super().__init__(name, body, tensors, loc, target, chain, names, outer=1)
        if 0 in chain.reduce_axes and domain[0] > 1:
            raise NotFusable("the epilogue reduces over the batch")
        value, view = known[0]
        repeat = len(channels) - 1
        self.x = View(view.shape + (1,) * repeat, view.strides + (0,) * repeat, view.offset)
        self.x_tensor, self.dtype, self.x_space = tensors[value.name], value.type.dtype, value.space
        self.w: View | None = None
        if self.window.kind == "conv":
            value, view = known[1]
            step = view.strides[-1]
            last = (step,) if repeat == 0 else (step * channels[1], step)
            self.w = View((*view.shape[:-2], *channels), (*view.strides[:-2], *last), view.offset)
            self.w_tensor, self.w_dtype = tensors[value.name], value.type.dtype
        self.order = [*range(1 + self.spatial, len(domain)), *range(1 + self.spatial)]

    def check_reductions(self) -> None:
        """Raise NotFusable if the axes that the epilogue reduces make tiles too large or too few."""
        axes = self.space.axes
        if not self.reduced:
            return
        least = [a.size if a.reduced else min(4, a.size) if i <= self.spatial else 1 for i, a in enumerate(axes)]
        least[0] = 1
        if self._bytes(least, 2) > cost.l1_budget(self.target):
            raise NotFusable(f"a tile of {least[1:]} elements, whole along the reduction, does not fit l1")
        if 4 * math.prod(-(-a.size // t) for a, t in zip(axes, least, strict=True)) < 3 * self.target.cu:
            raise NotFusable("tiles that are whole along the reduction would leave units idle")

    # the search

    @property
    def price(self) -> float:
        """Expected cycles with the cheapest tiles. Raises NotFusable if none fit."""
        return self.choose()

    def choose(self) -> float:
        """Choose the block of taps, the slots of the halo ring, the tiles and the units, and return their price: the
        largest block with a tile that fits l1, then the cheapest tile, in half of l1 if one fits."""
        least = [a.size if a.reduced else 1 for a in self.space.axes]
        limits = (cost.l1_budget(self.target), self.target.l1.bytes)
        for block in self._blocks():
            self.block = block
            if self._bytes(least, 2) > self.target.l1.bytes:
                continue
            for limit in limits:
                priced = []
                for tiles in self._candidates():
                    self.depth = next((d for d in DEPTHS if self._bytes(tiles, d) <= limit), 0)
                    if self.depth:
                        priced.append((*self._price(tiles), tiles, self.depth))
                if priced:
                    price, self.units, self.tiles, self.depth = min(priced, key=lambda p: p[0])
                    return price
        raise NotFusable(
            f"no tile of a window of {list(self.window.kernel)} elements fits l1 of {self.target.l1.bytes} bytes"
        )

    def _blocks(self) -> Iterator[Window]:
        """The window, then ever smaller blocks of it, split along the outermost axes first."""
        kernel = list(self.window.kernel)
        for i, size in enumerate(self.window.kernel):
            for part in divisors(size):
                if part == size and i > 0:
                    continue
                kernel[i] = part
                if self.w is None or math.prod(kernel) <= MAX_TAPS:
                    yield replace(self.window, kernel=tuple(kernel))

    def _candidates(self) -> Iterator[list[int]]:
        axes = self.space.axes
        choices = [[1]]
        for i in self.kept:
            if axes[i].reduced:
                choices.append([axes[i].size])
            elif i <= self.spatial:
                choices.append(even_tiles(axes[i].size, 64 if self.spatial < 3 else 16))
            else:
                choices.append(_channel_tiles(axes[i].size))
        for tiles in itertools.product(*choices):
            yield list(tiles)

    def halo_of(self, tiles: Sequence[int]) -> list[int]:
        """Extents of the halo tile: spatial axes, then channels."""
        channels = [min(t, n) for t, n in zip(tiles[1 + self.spatial :], self.x.shape[1 + self.spatial :], strict=True)]
        return self.block.halo(tiles[1 : 1 + self.spatial]) + channels

    def _weights(self, tiles: Sequence[int]) -> list[int]:
        return [*self.block.kernel, *tiles[1 + self.spatial :]]

    def _bytes(self, tiles: Sequence[int], depth: int) -> int:
        total = depth * slot_bytes(math.prod(self.halo_of(tiles)), self.dtype.bytes) + self.epilogue_bytes(tiles)
        if self.w is not None:
            total += 2 * slot_bytes(math.prod(self._weights(tiles)), self.w_dtype.bytes)
        if self.block != self.window:
            total += slot_bytes(math.prod(tiles), 8)
        return total

    def _price(self, tiles: Sequence[int]) -> tuple[float, tuple[int, ...]]:
        trips = tuple(-(-self.space.axes[i].size // tiles[i]) for i in self.order)
        units = distribute(trips, self.target.cu)
        active = math.prod(units)
        rounds = [-(-n // u) for n, u in zip(trips, units, strict=True)]
        iterations = math.prod(rounds)
        vec, store, extra = self.chain_price(tiles, active)
        blocks = self.window.taps // self.block.taps
        steps = work(self.block, tiles[1 : 1 + self.spatial], tiles[1 + self.spatial :])
        vec += blocks * steps / self.target.vector.lanes
        extents = [min(e, n) for e, n in zip(self.halo_of(tiles), self.x.shape[1:], strict=True)]
        view = View(self.x.shape[1:], self.x.strides[1:])
        halo = cost.box_traffic(view, extents, self.dtype, self.target) * blocks
        load = cost.load_clk(halo, self.target, active, self.x_space) + extra
        load += blocks * cost.overhead_clk(self.target)
        if self.w is not None:
            weights = cost.box_traffic(self.w, self._weights(tiles), self.w_dtype, self.target)
            outer = math.prod(rounds[: len(self.order) - 1 - self.spatial])
            load += cost.load_clk(weights, self.target, active) * (outer / iterations if blocks == 1 else blocks)
        latency = cost.latency_clk(self.target, self.x_space)
        beat = max(store, cost.beat_clk(vec, load, blocks * latency, self.depth))
        return iterations * beat + latency + load + vec + store, units

    # building

    def lower(self) -> KernelBuilder:
        """Choose tiles and build the kernel. Raises NotFusable when no tile fits."""
        self.choose()
        self.kernel.price_clk = self.price
        axes = self.space.axes
        loops = [
            Tiling(axes[i].name, axes[i].size, self.tiles[i], n) for i, n in zip(self.order, self.units, strict=True)
        ]
        taps = [
            Tiling(f"k{axes[1 + i].name}", k, b)
            for i, (k, b) in enumerate(zip(self.window.kernel, self.block.kernel, strict=True))
        ]
        nest = Nest([*loops, *taps])
        by_name = {loop.name: loop for loop in nest.loops}
        builder, ins = ProgramBuilder(), []
        weights = ""
        if self.w is not None:
            ins.append(self.load_weights(nest, by_name))
            weights = builder.param(self.w_dtype, whole=True)
        ins.append(self.load_halo(nest, by_name))
        x = builder.param(self.dtype, whole=True)
        tile, halo = self.tiles[1:], self.halo_of(self.tiles)
        if self.w is not None:
            result = emit_taps(builder, self.block, x, weights, tile, halo)
        else:
            result = emit_pool(builder, self.block, x, tile, halo)
        whole, depth = self.block == self.window, len(nest.loops)
        if not whole:
            depth = len(loops)
            ins = [self._accumulate(nest, depth, builder, ins, result)]
            builder = ProgramBuilder()
            result = builder.param(self._state_dtype)
        self.finish_chain(nest, depth, builder, ins, result, by_name, after=not whole, whole=whole)
        self.kernel.nests.append(nest)
        return self.kernel

    @property
    def _state_dtype(self) -> DType:
        return compute_dtype(self.dtype)

    def _accumulate(self, nest: Nest, depth: int, builder: ProgramBuilder, ins: Sequence[str], partial: str) -> str:
        """Combine one block's `partial` result into a state tile, initialised to the identity; returns the state."""
        kind, dtype = "max" if self.window.kind == "max" else "sum", self._state_dtype
        state = self.kernel.buffer("s", dtype, self.tiles[1:], depth=1)
        start = ProgramBuilder()
        neutral = start.const(chunked.identity(kind, dtype), dtype)
        name = self.kernel.vector(start.finish(f"{self.name}.start", [(neutral, dtype)]))
        nest.add(depth, Vec(name, (state,), ()))
        old = builder.param(dtype, whole=True)
        total = builder.step(chunked.COMBINE[kind], old, partial)
        name = self.kernel.vector(builder.finish(f"{self.name}.block", [(total, dtype)]))
        nest.add(len(nest.loops), Vec(name, (state,), (*ins, state)))
        return state

    def load_operand(self, nest: Nest, operand: Operand, loops: Mapping[str, Tiling], depth: int = 2) -> str:
        """Add the load of an operand of the chain; returns the buffer."""
        axes = [a.name for i, a in enumerate(self.space.axes) if operand.access.present(i)]
        buffer = self.kernel.buffer("t", operand.dtype, self.tile_shape(operand.access), depth=depth)
        param = self.kernel.param(operand.tensor, operand.dtype, operand.access.view)
        nest.add(nest.depth_of(axes), Load(buffer, param, self.index(operand.access, loops), operand.access.pad))
        return buffer

    def load_halo(self, nest: Nest, loops: Mapping[str, Tiling]) -> str:
        """Add the load of a result tile's input elements; returns the buffer."""
        buffer = self.kernel.buffer("x", self.dtype, self.halo_of(self.tiles), depth=self.depth)
        param = self.kernel.param(self.x_tensor, self.dtype, self.x)
        index = [loops["n"].offset]
        for i in range(self.spatial):
            name, win = self.space.axes[1 + i].name, self.window
            offset = loops[name].offset * win.strides[i] + loops[f"k{name}"].offset * win.dilations[i]
            index.append(offset - win.low[i] + axis(i))
        index.append(loops["c"].offset + axis(self.spatial))
        index += [Affine()] * (len(self.x.shape) - len(index))
        nest.add(len(nest.loops), Load(buffer, param, tuple(index), identity(self.window.kind, self.dtype)))
        return buffer

    def load_weights(self, nest: Nest, loops: Mapping[str, Tiling], depth: int = 2) -> str:
        """Add the load of a depthwise kernel for the tile's channels; returns the buffer."""
        assert self.w is not None
        buffer = self.kernel.buffer("w", self.w_dtype, self._weights(self.tiles), depth=depth)
        param = self.kernel.param(self.w_tensor, self.w_dtype, self.w)
        axes = [f"k{self.space.axes[1 + i].name}" for i in range(self.spatial)]
        axes += [self.space.axes[i].name for i in self.kept[self.spatial :]]
        index = [loops[name].offset + axis(i) for i, name in enumerate(axes)]
        nest.add(nest.depth_of(axes), Load(buffer, param, tuple(index)))
        return buffer


def _window(anchor: Op) -> Window:
    attrs = anchor.attrs
    if attrs.layout != "nhwc":  # type: ignore[attr-defined]
        raise NotFusable(f"the {anchor.name} is {attrs.layout}, kernels take nhwc")  # type: ignore[attr-defined]
    pool = anchor.name == "pool"
    kernel = attrs.kernel if pool else anchor.operands[1].type.dims[:-2]  # type: ignore[attr-defined]
    if len(kernel) > len(SPATIAL):
        raise NotFusable(f"a window over {len(kernel)} spatial axes")
    kind: str = attrs.kind if pool else "conv"  # type: ignore[attr-defined]
    return Window(kind, tuple(kernel), attrs.strides, attrs.low, attrs.dilations)  # type: ignore[attr-defined]


def is_depthwise(conv: Op) -> bool:
    """Whether a channels-last convolution is depthwise: several groups of one input channel each."""
    attrs = conv.attrs
    assert isinstance(attrs, ConvAttrs)
    x, w = (v.type.dims for v in conv.operands)
    return attrs.groups == x[-1] and w[-1] == attrs.groups > 1 and attrs.layout == "nhwc"


def _depthwise_channels(anchor: Op) -> tuple[int, ...]:
    """(channels,), or (channels, results per channel). Raises NotFusable if the conv is not depthwise."""
    groups: int = anchor.attrs.groups  # type: ignore[attr-defined]
    channels, outputs = anchor.operands[0].type.dims[-1], anchor.results[0].type.dims[-1]
    if groups != channels:
        raise NotFusable(f"the convolution is not depthwise ({groups} groups of {channels} channels)")
    if groups == 1 and outputs > 1:
        raise NotFusable("a convolution from one channel to several runs on the tensor engine")
    return (channels,) if outputs == groups else (channels, outputs // groups)


def even_tiles(size: int, most: int) -> list[int]:
    """Tile sizes that cut an axis into 1, 2, 3, 4, 6, 8, ... nearly equal tiles."""
    counts = {1, 3} | {n * m for e in range(12) for n in (1 << e,) for m in (2, 3)}
    found = {-(-size // n) for n in counts if n <= size} | {1}
    return sorted(t for t in found if t <= max(most, 1)) or [1]


def _channel_tiles(size: int) -> list[int]:
    """All channels, or a power of two of them."""
    return sorted({size} | {1 << e for e in range(12) if 1 << e < size})


def check_window(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group has no window kernel, or a poor one, with any tiling."""
    names = {v.name: v.name for v in (*body.params, *body.results)}
    WindowLowering(body.name, body, names, (), target).check_reductions()


def lower_window(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one channels-last pool or depthwise conv. Raises NotFusable."""
    return WindowLowering(name, body, tensors, loc, target).lower()


def divisors(n: int) -> Iterator[int]:
    """The divisors of `n`, largest first."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    yield from (n // d for d in small)
    yield from (d for d in reversed(small) if d * d != n)
