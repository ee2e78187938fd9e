"""The window attributes shared by ONNX convolutions and pools: kernel_shape, strides, dilations, pads, auto_pad.

Invariant: the window from `read_window` has one entry per spatial axis in every field, with automatic padding resolved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.frontend.context import NodeContext

_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


LARGEST_PADDED = 1 << 24
"""Elements that padding may blow the spatial axes of an input up to, unless these are large themselves."""


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel sizes, strides and dilations; elements added before (`low`) and after (`high`) each axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def extent(self, axis: int) -> int:
        """Elements from the first to the last tap."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def results(self, space: Sequence[int]) -> tuple[int, ...]:
        """Positions of the window on each axis of `space`."""
        sizes = enumerate(zip(space, self.low, self.high, self.strides, strict=True))
        return tuple((n + low + high - self.extent(i)) // stride + 1 for i, (n, low, high, stride) in sizes)

    def touching(self, space: Sequence[int]) -> Window:
        """The window without the taps at its ends that lie in the padding wherever it is: a kernel that is much larger
        than what it slides over has few others."""
        kernel, low, high = list(self.kernel), list(self.low), list(self.high)
        for i, last in enumerate(n - 1 for n in self.results(space)):
            step = self.dilations[i]
            first = min(max(-(-(low[i] - self.strides[i] * last) // step), 0), low[i] // step, kernel[i] - 1)
            end = (low[i] + space[i] - 1) // step
            beyond = min(max(kernel[i] - 1 - end, 0), high[i] // step, kernel[i] - 1 - first)
            kernel[i] -= first + beyond
            low[i] -= first * step
            high[i] -= beyond * step
        return Window(tuple(kernel), self.strides, self.dilations, tuple(low), tuple(high))


def spatial_attr(ctx: NodeContext, name: str, rank: int, default: int) -> tuple[int, ...]:
    """Attribute `name`: `rank` ints."""
    given = ctx.attr(name)
    if given is None:
        return (default,) * rank
    if len(given) != rank:
        ctx.fail(f"{name} needs one entry for each spatial axis", got=list(given), expected=f"{rank} entries")
    if name in ("strides", "dilations", "kernel_shape") and min(given) < 1:
        ctx.fail(f"{name} must be positive", got=list(given))
    return tuple(int(i) for i in given)


def auto_pad(ctx: NodeContext) -> str:
    """The auto_pad attribute, checked."""
    mode = str(ctx.attr("auto_pad", "NOTSET"))
    if mode not in _AUTO_PADS:
        ctx.fail("auto_pad has no such mode", got=mode, expected=" or ".join(_AUTO_PADS))
    return mode


def explicit_pads(ctx: NodeContext, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Attribute `pads` as (low, high)."""
    pads = [int(i) for i in ctx.attr("pads", [0] * (2 * rank))]
    if len(pads) != 2 * rank:
        ctx.fail("pads needs a begin and an end for each spatial axis", got=pads, expected=f"{2 * rank} entries")
    return tuple(pads[:rank]), tuple(pads[rank:])


def read_window(ctx: NodeContext, space: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over `space` with kernel sizes `kernel`. SAME pads so that result sizes are ceil(size /
    stride), with an odd element at the end (UPPER) or at the start (LOWER)."""
    rank = len(space)
    strides = spatial_attr(ctx, "strides", rank, 1)
    dilations = spatial_attr(ctx, "dilations", rank, 1)
    mode = auto_pad(ctx)
    low, high = explicit_pads(ctx, rank) if mode == "NOTSET" else ((0,) * rank, (0,) * rank)
    if min(*low, *high) < 0:
        ctx.fail("pads must not be negative", got=[*low, *high])
    window = Window(tuple(kernel), strides, dilations, low, high)
    if not mode.startswith("SAME"):
        _limit_padding(ctx, space, window)
        return window
    total = [
        max((-(-n // s) - 1) * s + window.extent(i) - n, 0) for i, (n, s) in enumerate(zip(space, strides, strict=True))
    ]
    smaller = tuple(n // 2 for n in total)
    larger = tuple(n - n // 2 for n in total)
    low, high = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    window = Window(window.kernel, strides, dilations, low, high)
    _limit_padding(ctx, space, window)
    return window


def _limit_padding(ctx: NodeContext, space: Sequence[int], window: Window) -> None:
    """Refuse padding that nobody can mean: all of it would be stored or walked over."""
    padded = math.prod(n + low + high for n, low, high in zip(space, window.low, window.high, strict=True))
    if padded > max(LARGEST_PADDED, 16 * math.prod(space)):
        got, expected = f"{padded:,} elements", f"at most {max(LARGEST_PADDED, 16 * math.prod(space)):,}"
        ctx.breaks("padding makes the spatial axes of the input too large", got=got, expected=expected)
