"""GridSample, RoiAlign, MaxRoiPool and DeformConv: reading images at computed positions.

Invariant: every importer makes one record; how often a region is sampled is known while importing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.context import NodeContext, importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.sampling import PADDINGS, GridSampleAttrs

_MODES = {"nearest": "nearest", "bilinear": "linear", "linear": "linear", "bicubic": "cubic", "cubic": "cubic"}
"""Opset 16 and 20 name them differently."""


@importer("GridSample")
def grid_sample(ctx: NodeContext) -> Sequence[Value]:
    mode, padding = str(ctx.attr("mode", "linear")), str(ctx.attr("padding_mode", "zeros"))
    if mode not in _MODES or padding not in PADDINGS:
        expected = f"{', '.join(_MODES)}; padding {', '.join(PADDINGS)}"
        ctx.fail("unknown mode or padding_mode", got=f"{mode}, {padding}", expected=expected)
    attrs = GridSampleAttrs(_MODES[mode], padding, bool(ctx.attr("align_corners", 0)))
    return (ctx.op("grid_sample", ctx.operand(0), ctx.operand(1), attrs=attrs),)
