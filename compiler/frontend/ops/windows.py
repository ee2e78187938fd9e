"""The window attributes that ONNX convolutions and pools share: kernel_shape, strides, dilations, pads, auto_pad.

Invariant: what `read_window` returns has one entry a spatial axis in every field, and no automatic padding left in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.compiler.frontend.context import NodeContext

_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


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
    """The window over `space` of the node, whose kernel sizes are `kernel`. SAME pads so that results are
    ceil(size / stride), with an odd element at the end (UPPER) or at the start (LOWER)."""
    rank = len(space)
    strides = spatial_attr(ctx, "strides", rank, 1)
    dilations = spatial_attr(ctx, "dilations", rank, 1)
    mode = auto_pad(ctx)
    low, high = explicit_pads(ctx, rank) if mode == "NOTSET" else ((0,) * rank, (0,) * rank)
    if min(*low, *high) < 0:
        ctx.fail("pads must not be negative", got=[*low, *high])
    window = Window(tuple(kernel), strides, dilations, low, high)
    if not mode.startswith("SAME"):
        return window
    total = [
        max((-(-n // s) - 1) * s + window.extent(i) - n, 0) for i, (n, s) in enumerate(zip(space, strides, strict=True))
    ]
    smaller = tuple(n // 2 for n in total)
    larger = tuple(n - n // 2 for n in total)
    low, high = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    return Window(window.kernel, strides, dilations, low, high)
