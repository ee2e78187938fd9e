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

import math
from collections.abc import Mapping, Sequence

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernels.contraction import analyse_anchor, anchor_of, operand_view
from ppuc.compiler.lowering.kernels.conv_resident import ResidentConv
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import KernelBuilder, Nest, Tiling
from ppuc.ir.affine import Affine, axis
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Bound, Load, Mma, TileRef
from ppuc.targets.schema import Target


class ConvLowering(ResidentConv):
    """Builds the kernel of a group around one nhwc conv."""

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

    @property
    def _lead(self) -> int:
        """1 if tiles have an axis of images before the others."""
        return int(self._extent(self.tiles, 0) > 1)

    def _rows(self) -> list[int]:
        """The tile's extents along the rows of a product: images if it has several, and space."""
        return [self._extent(self.tiles, d) for d in range(1 - self._lead, self.spatial + 1)]

    def _image(self, named: Mapping[str, Tiling]) -> Affine:
        """Index along the images."""
        return self._offset(named, 0) + axis(0) if self._lead else self._offset(named, 0)

    def _valid(self, named: Mapping[str, Tiling], k: Sequence[Tiling]) -> tuple[Bound | None, ...]:
        bounds: list[Bound | None] = []
        for d in (*range(1 - self._lead, self.spatial + 1), len(self.at) - 1):
            at = self.at[d]
            bounds.append(None if at is None else named[self.space.axes[at].name].bound)
        bounds += [loop.bound for loop in k]
        return tuple(bounds) if any(b is not None for b in bounds) else ()

    def _taps(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        choice, a, n, lead = self.choice, self.attrs, self.spatial, self._lead
        chunk, images = named["ci"], [self._extent(self.tiles, 0)] * lead
        shape = [*images, *self._halo(self.tiles), choice.channels]
        xt = self.kernel.buffer("xt", self.dtype, shape, depth=choice.rings.operands)
        index = [self._image(named)]
        index += [self._offset(named, 1 + d) * a.strides[d] - a.low[d] + axis(lead + d) for d in range(n)]
        index += [*self._group(named), chunk.offset + axis(lead + n)]
        outer = len(nest.loops) - n
        wt = self._weights(nest, named, outer)  # first: weights never wait for another kernel
        nest.add(outer, Load(xt, self.kernel.param(self.x_tensor, self.dtype, self.x), tuple(index)))
        taps = [named[f"k{d}"] for d in range(n)]
        window = [axis(0)] * lead
        window += [tap.offset * a.dilations[d] + axis(lead + d, a.strides[d]) for d, tap in enumerate(taps)]
        x_ref = TileRef(xt, (*window, axis(lead + n)), (*self._rows(), choice.channels))
        tn = self._extent(self.tiles, len(self.at) - 1)
        w_ref = TileRef(wt)
        if choice.all_taps:
            w_ref = TileRef(wt, (*(tap.offset for tap in taps), axis(0), axis(1)), (choice.channels, tn))
        start = tuple(loop.name for loop in (chunk, *taps) if loop.exists)
        return Mma(acc, x_ref, w_ref, start, valid=self._valid(named, [chunk]))

    def _tapwise(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        choice, a, n = self.choice, self.attrs, self.spatial
        chunk, taps = named["ci"], [named[f"k{d}"] for d in range(n)]
        lead = self._lead
        xt = self.kernel.buffer("xt", self.dtype, [*self._rows(), choice.channels], depth=choice.rings.operands)
        index = [self._image(named)]
        for d, tap in enumerate(taps):
            at = self._offset(named, 1 + d) * a.strides[d] - a.low[d] + tap.offset * a.dilations[d]
            index.append(at + axis(lead + d, a.strides[d]))
        index += [*self._group(named), chunk.offset + axis(lead + n)]
        wt = self._weights(nest, named, len(nest.loops))
        nest.add(len(nest.loops), Load(xt, self.kernel.param(self.x_tensor, self.dtype, self.x), tuple(index)))
        start = tuple(loop.name for loop in (chunk, *taps) if loop.exists)
        return Mma(acc, TileRef(xt), TileRef(wt), start, valid=self._valid(named, [chunk]))

    def _weights(self, nest: Nest, named: Mapping[str, Tiling], outer: int) -> str:
        """Load the weights: of all taps, once or beside each input tile, or of one tap inside the tap loops."""
        choice, n = self.choice, self.spatial
        tn = self._extent(self.tiles, len(self.at) - 1)
        taps = self.filter if choice.all_taps else ()
        depth = 1 if choice.resident else choice.rings.operands
        wt = self.kernel.buffer("wt", self.w_dtype, [*taps, choice.channels, tn], depth=depth)
        lead = [axis(d) for d in range(n)] if choice.all_taps else [named[f"k{d}"].offset for d in range(n)]
        base = n if choice.all_taps else 0
        index = [
            *lead,
            named["ci"].offset + axis(base),
            *self._group(named),
            self._offset(named, len(self.at) - 1) + axis(base + 1),
        ]
        param = self.kernel.param(self.w_tensor, self.w_dtype, self.w)
        where = outer if choice.all_taps else len(nest.loops)
        nest.add(0 if choice.resident else where, Load(wt, param, tuple(index)))
        return wt

    def _rolled(self, nest: Nest, named: Mapping[str, Tiling], acc: str) -> Mma:
        a, n, depth = self.attrs, self.spatial, self.choice.rings.operands
        xt = self.kernel.buffer("xt", self.dtype, [*self._halo(self.tiles), self.channels], depth=depth)
        index = [self._offset(named, 0)]
        index += [self._offset(named, 1 + d) * a.strides[d] - a.low[d] + axis(d) for d in range(n)]
        tn = self._extent(self.tiles, len(self.at) - 1)
        once = self.choice.resident
        wt = self.kernel.buffer("wt", self.w_dtype, [*self.filter, self.channels, tn], depth=1 if once else depth)
        w_index = (*(axis(d) for d in range(n + 1)), self._offset(named, len(self.at) - 1) + axis(n + 1))
        nest.add(
            0 if once else len(nest.loops), Load(wt, self.kernel.param(self.w_tensor, self.w_dtype, self.w), w_index)
        )
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
