"""Pooling and depthwise convolution on the vector engine, with an epilogue.

Tiles have the spatial axes and the channels; the batch is a loop. A halo tile holds every input element that the tile's
windows reach, with the identity of the reduction outside the image, and the vector program reads one strided sub-box of
it a tap. Pooling is separable, so it runs along one spatial axis after another: the sum of the window's sizes, not
their product.

Invariant: every operand of the vec is read whole, so all steps see tiles of one extent; ragged tiles are cut when the
results are written, which is why a chain may reduce only along axes that one tile covers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.body import NotFusable, analyse
from ppuc.compiler.lowering.contraction import anchor_of, operand_ops, operand_view
from ppuc.compiler.lowering.nest import KernelBuilder, Nest, Tiling, deal
from ppuc.compiler.lowering.unmerged import UnmergedLowering, slot_bytes
from ppuc.compiler.lowering.vectorise import ProgramBuilder
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph, Op
from ppuc.ir.kernel import Load, View
from ppuc.ir.ops.window import lowest
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

MAX_TAPS = 256
"""Taps of a depthwise kernel that one vector program unrolls."""
MAX_DIRECT = 32
"""Taps along one axis that pooling combines one by one; longer windows are built by doubling."""
SPATIAL = ("z", "y", "x")


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of the anchor, one entry a spatial axis. `kind` is "max", "sum" or "conv"."""

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    dilations: tuple[int, ...]

    def halo(self, tile: Sequence[int]) -> list[int]:
        """Input extents that a tile of results reads."""
        return [
            (t - 1) * s + (k - 1) * d + 1
            for t, s, k, d in zip(tile, self.strides, self.kernel, self.dilations, strict=True)
        ]

    def order(self) -> list[int]:
        """Spatial axes in the order in which pooling reduces them: those that shrink the tile most come first."""
        return sorted(range(len(self.kernel)), key=lambda i: -self.strides[i])


def doubles(k: int, stride: int, dilation: int, tile: int) -> bool:
    """Whether a window of `k` taps along an axis is combined by doubling: two windows of length w make one of 2w."""
    if k < 4:
        return False
    halo = (tile - 1) * stride + (k - 1) * dilation + 1
    return k > MAX_DIRECT or 3 * halo * k.bit_length() < (2 * k - 1) * tile


class WindowLowering(UnmergedLowering):
    """Lowers a group around one pool or depthwise conv."""

    def __init__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
    ) -> None:
        anchor = anchor_of(body, "pool", "conv")
        result, x = anchor.results[0], anchor.operands[0].type
        self.window = _window(anchor)
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
        self.x_tensor, self.dtype = tensors[value.name], value.type.dtype
        self.w: View | None = None
        if self.window.kind == "conv":
            value, view = known[1]
            step = view.strides[-1]
            last = (step,) if repeat == 0 else (step * channels[1], step)
            self.w = View((*view.shape[:-2], *channels), (*view.strides[:-2], *last), view.offset)
            self.w_tensor, self.w_dtype = tensors[value.name], value.type.dtype
        self.order = [*range(1 + self.spatial, len(domain)), *range(1 + self.spatial)]

    def check_reductions(self) -> None:
        """Raise NotFusable when the axes that the epilogue reduces make tiles too large or too few."""
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

    def _choose(self) -> tuple[int, list[int], tuple[int, ...]]:
        """(slots of the halo ring, tiles, units per loop) of the cheapest tile that fits l1."""
        for limit in (cost.l1_budget(self.target), self.target.l1.bytes):
            for depth in (3, 2):
                best: tuple[float, list[int], tuple[int, ...]] | None = None
                for tiles in self._candidates():
                    if self._bytes(tiles, depth) > limit:
                        continue
                    price, units = self._price(tiles, depth)
                    if best is None or price < best[0]:
                        best = (price, tiles, units)
                if best is not None:
                    return depth, best[1], best[2]
        raise NotFusable(
            f"no tile of a window of {list(self.window.kernel)} elements fits l1 of {self.target.l1.bytes} bytes"
        )

    def _candidates(self) -> Iterator[list[int]]:
        axes = self.space.axes
        choices = [[1]]
        for i in self.kept:
            if axes[i].reduced:
                choices.append([axes[i].size])
            elif i <= self.spatial:
                choices.append(_even_tiles(axes[i].size, 64 if self.spatial < 3 else 16))
            else:
                choices.append(_channel_tiles(axes[i].size))
        for tiles in itertools.product(*choices):
            yield list(tiles)

    def _halo(self, tiles: Sequence[int]) -> list[int]:
        """Extents of the halo tile: spatial axes, then channels."""
        channels = [min(t, n) for t, n in zip(tiles[1 + self.spatial :], self.x.shape[1 + self.spatial :], strict=True)]
        return self.window.halo(tiles[1 : 1 + self.spatial]) + channels

    def _weights(self, tiles: Sequence[int]) -> list[int]:
        return [*self.window.kernel, *tiles[1 + self.spatial :]]

    def _bytes(self, tiles: Sequence[int], depth: int) -> int:
        total = depth * slot_bytes(math.prod(self._halo(tiles)), self.dtype.bytes) + self.epilogue_bytes(tiles)
        if self.w is not None:
            total += 2 * slot_bytes(math.prod(self._weights(tiles)), self.w_dtype.bytes)
        return total

    def _price(self, tiles: Sequence[int], depth: int) -> tuple[float, tuple[int, ...]]:
        trips = tuple(-(-self.space.axes[i].size // tiles[i]) for i in self.order)
        units = deal(trips, self.target.cu)
        active = math.prod(units)
        rounds = [-(-n // u) for n, u in zip(trips, units, strict=True)]
        iterations = math.prod(rounds)
        vec, store, extra = self.chain_price(tiles, active)
        vec += self._work(tiles) / self.target.vector.lanes
        extents = [min(e, n) for e, n in zip(self._halo(tiles), self.x.shape[1:], strict=True)]
        view = View(self.x.shape[1:], self.x.strides[1:])
        load = cost.load_clk(cost.box_traffic(view, extents, self.dtype) + extra, self.target, active)
        load += cost.overhead_clk(self.target)
        if self.w is not None:
            weights = cost.box_traffic(self.w, self._weights(tiles), self.w_dtype)
            outer = math.prod(rounds[: len(self.order) - 1 - self.spatial])
            load += cost.load_clk(weights, self.target, active) * outer / iterations
        latency = cost.latency_clk(self.target)
        beat = max(load, vec, store, (latency + load) / depth)
        return iterations * beat + latency + load + vec + store, units

    def _work(self, tiles: Sequence[int]) -> float:
        """Element operations of the window's steps."""
        if self.window.kind == "conv":
            return 4.0 * math.prod(tiles) * math.prod(self.window.kernel)
        total, shape = 0.0, self._halo(tiles)
        for i in self.window.order():
            k, t = self.window.kernel[i], tiles[1 + i]
            others = math.prod(shape) / shape[i]
            if t > 1 and doubles(k, self.window.strides[i], self.window.dilations[i], t):
                total += 3 * math.prod(shape) * k.bit_length()
            else:
                total += others * (2 * k - 1) * t
            shape[i] = t
        return total

    # building

    def lower(self) -> KernelBuilder:
        """Choose tiles and build the kernel. Raises NotFusable when no tile fits."""
        self.depth, self.tiles, self.units = self._choose()
        axes = self.space.axes
        loops = [
            Tiling(axes[i].name, axes[i].size, self.tiles[i], n) for i, n in zip(self.order, self.units, strict=True)
        ]
        nest = Nest(loops)
        by_name = {loop.name: loop for loop in loops}
        builder = ProgramBuilder()
        ins = []
        weights = ""
        if self.w is not None:
            ins.append(self._load_weights(nest, by_name))
            weights = builder.param(self.w_dtype, whole=True)
        ins.append(self._load_halo(nest, by_name))
        x = builder.param(self.dtype, whole=True)
        anchor = self._taps(builder, x, weights) if self.w is not None else self._pool(builder, x)
        self.finish_chain(nest, len(loops), builder, ins, anchor, by_name, after=False, whole=True)
        self.kernel.nests.append(nest)
        return self.kernel

    def _load_halo(self, nest: Nest, loops: Mapping[str, Tiling]) -> str:
        buffer = self.kernel.buffer("x", self.dtype, self._halo(self.tiles), depth=self.depth)
        param = self.kernel.param(self.x_tensor, self.dtype, self.x)
        index = [loops["n"].offset]
        for i in range(self.spatial):
            offset = loops[self.space.axes[1 + i].name].offset
            index.append(offset * self.window.strides[i] - self.window.low[i] + axis(i))
        index.append(loops["c"].offset + axis(self.spatial))
        index += [Affine()] * (len(self.x.shape) - len(index))
        nest.add(len(nest.loops), Load(buffer, param, tuple(index), identity(self.window.kind, self.dtype)))
        return buffer

    def _load_weights(self, nest: Nest, loops: Mapping[str, Tiling]) -> str:
        assert self.w is not None
        buffer = self.kernel.buffer("w", self.w_dtype, self._weights(self.tiles), depth=2)
        param = self.kernel.param(self.w_tensor, self.w_dtype, self.w)
        index = [axis(i) for i in range(self.spatial)]
        channels = [self.space.axes[i].name for i in self.kept[self.spatial :]]
        index += [loops[c].offset + axis(self.spatial + i) for i, c in enumerate(channels)]
        nest.add(nest.depth_of(channels), Load(buffer, param, tuple(index)))
        return buffer

    def _taps(self, builder: ProgramBuilder, x: str, w: str) -> str:
        """Multiply and add, one tap after another."""
        win, tile, halo = self.window, self.tiles[1:], self._halo(self.tiles)
        channels = len(tile) - self.spatial
        strides = [*win.strides, *[1] * channels]
        read = [*tile[: self.spatial], *halo[self.spatial :]]
        one = [*[1] * self.spatial, *tile[self.spatial :]]
        total = ""
        for tap in itertools.product(*map(range, win.kernel)):
            at = [t * d for t, d in zip(tap, win.dilations, strict=True)] + [0] * channels
            taken = builder.step("window", x, ints=(len(at), *at, *strides, *read))
            weight = builder.step("window", w, ints=(len(at), *tap, *[0] * channels, *[1] * len(at), *one))
            product = builder.step("mul", taken, weight)
            total = builder.step("add", total, product) if total else product
        return total

    def _pool(self, builder: ProgramBuilder, x: str) -> str:
        """The window's elements combined along one spatial axis after another."""
        shape = self._halo(self.tiles)
        for i in self.window.order():
            x = _AxisPool(builder, self.window, i, shape, self.tiles[1 + i]).emit(x)
            shape[i] = self.tiles[1 + i]
        return x


class _AxisPool:
    """Pooling along spatial axis `i` of a tile of `shape`, to `tile` results."""

    def __init__(self, builder: ProgramBuilder, window: Window, i: int, shape: Sequence[int], tile: int) -> None:
        self.builder, self.i, self.shape, self.tile = builder, i, tuple(shape), tile
        self.kind = window.kind
        self.combine = "max" if window.kind == "max" else "add"
        self.k, self.stride, self.dilation = window.kernel[i], window.strides[i], window.dilations[i]

    def emit(self, x: str) -> str:
        """Append the steps; returns the result's name."""
        if self.k == 1 and self.stride == 1:
            return x
        if self.tile == 1:
            taps = x if self.dilation == 1 else self._part(x, 0, self.dilation, self.k)
            return taps if self.k == 1 else self.builder.step(f"reduce_{self.kind}", taps, ints=(self.i,))
        if doubles(self.k, self.stride, self.dilation, self.tile):
            return self._doubled(x)
        total = self._results(x, 0)
        for tap in range(1, self.k):
            total = self.builder.step(self.combine, total, self._results(x, tap))
        return total

    def _part(self, x: str, offset: int, stride: int, size: int) -> str:
        rank = len(self.shape)
        offsets, strides, sizes = [0] * rank, [1] * rank, list(self.shape)
        offsets[self.i], strides[self.i], sizes[self.i] = offset, stride, size
        return self.builder.step("window", x, ints=(rank, *offsets, *strides, *sizes))

    def _results(self, x: str, tap: int) -> str:
        """What one tap reads for all results."""
        return self._part(x, tap * self.dilation, self.stride, self.tile)

    def _doubled(self, x: str) -> str:
        """Windows of 1, 2, 4, ... taps at every position; those in the binary form of k are laid end to end."""
        total, done, width, length = "", 0, 1, self.shape[self.i]
        while True:
            if self.k & width:
                part = self._results(x, done)
                total = self.builder.step(self.combine, total, part) if total else part
                done += width
            if done == self.k:
                return total
            length -= width * self.dilation
            first = self._part(x, 0, 1, length)
            x = self.builder.step(self.combine, first, self._part(x, width * self.dilation, 1, length))
            width *= 2


def identity(kind: str, dtype: DType) -> float:
    """What a halo tile holds outside the image: the identity of max (the lowest finite value where the type has no
    infinity), or zero."""
    if kind != "max":
        return 0.0
    low = lowest(dtype)
    if dtype.is_float and not np.isinf(np.asarray(low).astype(dtype.numpy).astype(np.float32)):
        return float(ml_dtypes.finfo(dtype.numpy).min)  # type: ignore[no-untyped-call]
    return float(low)


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


def _depthwise_channels(anchor: Op) -> tuple[int, ...]:
    """(channels,), or (channels, results of each). Raises NotFusable when the conv is not depthwise."""
    groups: int = anchor.attrs.groups  # type: ignore[attr-defined]
    channels, outputs = anchor.operands[0].type.dims[-1], anchor.results[0].type.dims[-1]
    taps = math.prod(anchor.operands[1].type.dims[:-2])
    if groups != channels:
        raise NotFusable(f"the convolution is not depthwise ({groups} groups of {channels} channels)")
    if groups == 1 and outputs > 1:
        raise NotFusable("a convolution of one channel to several belongs on the tensor engine")
    if taps > MAX_TAPS:
        raise NotFusable(f"a depthwise kernel of {taps} taps is too long for one vector program (at most {MAX_TAPS})")
    return (channels,) if outputs == groups else (channels, outputs // groups)


def _even_tiles(size: int, most: int) -> list[int]:
    """Tile sizes that cut an axis into 1, 2, 3, 4, 6, 8, ... nearly equal tiles."""
    counts = {1, 3} | {n * m for e in range(12) for n in (1 << e,) for m in (2, 3)}
    found = {-(-size // n) for n in counts if n <= size} | {1}
    return sorted(t for t in found if t <= max(most, 1)) or [1]


def _channel_tiles(size: int) -> list[int]:
    """All channels, or a power of two of them."""
    return sorted({size} | {1 << e for e in range(12) if 1 << e < size})


def check_window(body: Graph, target: Target) -> None:
    """Raise NotFusable when the group has no window kernel or a poor one, apart from the fit of tiles."""
    names = {v.name: v.name for v in (*body.params, *body.results)}
    WindowLowering(body.name, body, names, (), target).check_reductions()


def lower_window(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one channels-last pool or depthwise conv. Raises NotFusable."""
    return WindowLowering(name, body, tensors, loc, target).lower()
