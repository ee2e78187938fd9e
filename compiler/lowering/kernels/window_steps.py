"""Sliding windows as steps of a vector program, and their geometry.

A window step reads a halo tile: every input element that the windows of a result tile reach. Depthwise convolution
multiplies and adds one strided sub-box of it per tap. Pooling is separable, so it runs along one spatial axis after
another, with a cost of the sum of the window's sizes instead of their product.

Invariant: steps compute whole tiles, independent of valid extents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.ops.window import lowest
from ppuc.ir.types import DType

MAX_DIRECT = 32
"""Maximum taps along one axis that pooling combines one by one; longer windows use doubling."""


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a window, with one entry per spatial axis. `kind` is "max", "sum" or "conv"."""

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    dilations: tuple[int, ...]

    def halo(self, tile: Sequence[int]) -> list[int]:
        """Input extents that a result tile reads."""
        return [
            (t - 1) * s + (k - 1) * d + 1
            for t, s, k, d in zip(tile, self.strides, self.kernel, self.dilations, strict=True)
        ]

    @property
    def taps(self) -> int:
        """Elements of one window."""
        return math.prod(self.kernel)

    def order(self) -> list[int]:
        """Spatial axes in the order in which pooling reduces them: those that shrink the tile most come first."""
        return sorted(range(len(self.kernel)), key=lambda i: -self.strides[i])


def doubles(k: int, stride: int, dilation: int, tile: int) -> bool:
    """Whether a window of `k` taps along an axis is combined by doubling: two windows of length w form one of 2w."""
    if k < 4:
        return False
    halo = (tile - 1) * stride + (k - 1) * dilation + 1
    return k > MAX_DIRECT or 3 * halo * k.bit_length() < (2 * k - 1) * tile


def work(window: Window, tile: Sequence[int], channels: Sequence[int]) -> float:
    """Element operations of the steps for a tile of results (`tile`, then `channels`)."""
    if window.kind == "conv":
        return 1.0 * math.prod(tile) * math.prod(channels) * window.taps
    total, shape = 0.0, [*window.halo(tile), *channels]
    for i in window.order():
        k, t = window.kernel[i], tile[i]
        if t > 1 and doubles(k, window.strides[i], window.dilations[i], t):
            total += 3 * math.prod(shape) * k.bit_length()
        else:
            total += math.prod(shape) / shape[i] * (2 * k - 1) * t
        shape[i] = t
    return total


def emit_taps(
    builder: ProgramBuilder,
    window: Window,
    x: str,
    w: str,
    tile: Sequence[int],
    halo: Sequence[int],
    start: str = "",
) -> str:
    """Multiply and add, one tap after another, to `start` if there is one. `tile` and `halo` are extents of results and
    inputs, spatial axes, then channels (1 in the halo where a channel is repeated)."""
    spatial = len(window.kernel)
    channels = len(tile) - spatial
    strides = [*window.strides, *[1] * channels]
    read = [*tile[:spatial], *halo[spatial:]]
    one = [*[1] * spatial, *tile[spatial:]]
    total = start
    for tap in itertools.product(*map(range, window.kernel)):
        at = [t * d for t, d in zip(tap, window.dilations, strict=True)] + [0] * channels
        taken = builder.step("window", x, ints=(len(at), *at, *strides, *read))
        weight = builder.step("window", w, ints=(len(at), *tap, *[0] * channels, *[1] * len(at), *one))
        total = builder.step("mac", taken, weight, total) if total else builder.step("mul", taken, weight)
    return total


def emit_pool(builder: ProgramBuilder, window: Window, x: str, tile: Sequence[int], halo: Sequence[int]) -> str:
    """Combine the windows' elements along one spatial axis after another."""
    shape = list(halo)
    for i in window.order():
        x = _AxisPool(builder, window, i, shape, tile[i]).emit(x)
        shape[i] = tile[i]
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
        """The elements that one tap reads for all results."""
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
    """Value of a halo tile outside the image: the identity of max, or zero."""
    return float(lowest(dtype)) if kind == "max" else 0.0
