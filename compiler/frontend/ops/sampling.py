"""AffineGrid, GridSample, RoiAlign, MaxRoiPool and DeformConv: reading images at computed positions.

Invariant: the number of samples per region is known at compile time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, sliced
from ppuc.compiler.frontend.ops.windows import explicit_pads, spatial_attr
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.deform import DeformConvAttrs
from ppuc.ir.ops.regions import MaxRoiPoolAttrs, RoiAlignAttrs
from ppuc.ir.ops.sampling import PADDINGS, GridSampleAttrs
from ppuc.ir.types import DType

_MODES = {"nearest": "nearest", "bilinear": "linear", "linear": "linear", "bicubic": "cubic", "cubic": "cubic"}
"""Opset 16 and 20 name them differently."""


@importer("AffineGrid")
def affine_grid(ctx: NodeContext) -> Sequence[Value]:
    """Positions [N, (D,) H, W, rank], innermost axis first, that theta [N, rank, rank + 1] makes of a regular grid.
    ONNX defines the op as a function too, but one that loses the batch axis where N is 1."""
    theta = ctx.operand(0)
    batch, *sizes = (int(n) for i, n in enumerate(ctx.need_constant(1, "'size'").reshape(-1)) if i != 1)
    rank = len(sizes)
    if rank not in (2, 3) or theta.type.dims != (batch, rank, rank + 1):
        ctx.fail(
            "theta and size do not fit", got=f"{theta.type} and {sizes}", expected=f"[{batch}, {rank}, {rank + 1}]"
        )
    corners = bool(ctx.attr("align_corners", 0))
    axes = np.meshgrid(*(_positions(n, corners) for n in sizes), indexing="ij")
    points = np.stack([*(a.reshape(-1) for a in reversed(axes)), np.ones(axes[0].size)], -1)
    grid = ctx.b.const(points.astype(theta.type.dtype.numpy))
    moved = ctx.op("matmul", grid, theta, attrs=MatmulAttrs(transpose_b=True))
    return (reshaped(ctx, moved, (batch, *sizes, rank)),)


def _positions(size: int, corners: bool) -> np.ndarray:
    """`size` positions from -1 to 1: with `corners` both ends (-1 alone for one), else the middles of equal parts."""
    return -1 + np.arange(size) * (2 / max(size - 1, 1)) if corners else -1 + (2 * np.arange(size) + 1) / size


@importer("GridSample")
def grid_sample(ctx: NodeContext) -> Sequence[Value]:
    mode, padding = str(ctx.attr("mode", "linear")), str(ctx.attr("padding_mode", "zeros"))
    if mode not in _MODES or padding not in PADDINGS:
        expected = f"{', '.join(_MODES)}; padding {', '.join(PADDINGS)}"
        ctx.fail("unknown mode or padding_mode", got=f"{mode}, {padding}", expected=expected)
    attrs = GridSampleAttrs(_MODES[mode], padding, bool(ctx.attr("align_corners", 0)))
    return (ctx.op("grid_sample", ctx.operand(0), ctx.operand(1), attrs=attrs),)


@importer("RoiAlign")
def roi_align(ctx: NodeContext) -> Sequence[Value]:
    mode = str(ctx.attr("mode", "avg"))
    plain = "half_pixel" if ctx.opset >= 16 else "output_half_pixel"
    coordinates = str(ctx.attr("coordinate_transformation_mode", plain))
    if mode not in ("avg", "max") or coordinates not in ("half_pixel", "output_half_pixel"):
        ctx.fail("unknown mode", got=f"{mode}, {coordinates}", expected="avg or max; half_pixel or output_half_pixel")
    ratio = int(ctx.attr("sampling_ratio", 0))
    if ratio < 1:
        ctx.fail(
            "the number of samples depends on the size of each region",
            got=f"sampling_ratio = {ratio}",
            expected="a positive number of samples along each side of a bin",
            hint="export the model with sampling_ratio = 2, the usual choice",
        )
    size = (int(ctx.attr("output_height", 1)), int(ctx.attr("output_width", 1)))
    scale = float(ctx.attr("spatial_scale", 1.0))
    attrs = RoiAlignAttrs(size, ratio, scale, mode == "max", coordinates == "half_pixel")
    image = cast_to(ctx, ctx.operand(2), DType.I32)
    return (ctx.op("roi_align", ctx.operand(0), ctx.operand(1), image, attrs=attrs),)


@importer("MaxRoiPool")
def max_roi_pool(ctx: NodeContext) -> Sequence[Value]:
    """Regions [R, 5] are the number of the image and four edges."""
    regions = ctx.operand(1)
    if regions.type.rank != 2 or regions.type.dims[1] != 5:
        ctx.fail("regions need five numbers each", got=regions.type, expected="a tensor [regions, 5]")
    height, width = (int(i) for i in ctx.attr("pooled_shape", (0, 0)))
    image = reshaped(ctx, sliced(ctx, regions, 1, 0, 1), (regions.type.dims[0],))
    attrs = MaxRoiPoolAttrs((height, width), float(ctx.attr("spatial_scale", 1.0)))
    boxes = sliced(ctx, regions, 1, 1, 4)
    return (ctx.op("max_roi_pool", ctx.operand(0), boxes, cast_to(ctx, image, DType.I32), attrs=attrs),)


@importer("DeformConv")
def deform_conv(ctx: NodeContext) -> Sequence[Value]:
    """Two spatial axes; a bias is added after."""
    if any(ctx.type(i).rank != 4 for i in range(3)):
        ctx.fail("only images with two spatial axes are supported", got=ctx.type(0), expected="X[N, C, H, W]")
    if spatial_attr(ctx, "kernel_shape", 2, 0) not in ((0, 0), ctx.shape(1)[2:]):
        ctx.fail("kernel_shape contradicts the weights", got=ctx.attr("kernel_shape"), expected=ctx.shape(1)[2:])
    strides, dilations = (_pair(spatial_attr(ctx, n, 2, 1)) for n in ("strides", "dilations"))
    low, high = (_pair(side) for side in explicit_pads(ctx, 2))
    groups, offset_groups = int(ctx.attr("group", 1)), int(ctx.attr("offset_group", 1))
    attrs = DeformConvAttrs(strides, low, high, dilations, groups, offset_groups)
    mask = [ctx.operand(4)] if ctx.has(4) else []
    y = ctx.op("deform_conv", *(ctx.operand(i) for i in range(3)), *mask, attrs=attrs)
    if not ctx.has(3):
        return (y,)
    return (ctx.op("add", y, reshaped(ctx, ctx.operand(3), (1, y.type.dims[1], 1, 1))),)


def _pair(given: tuple[int, ...]) -> tuple[int, int]:
    height, width = given
    return height, width
