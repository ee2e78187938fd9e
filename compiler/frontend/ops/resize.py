"""Resize (opset 10 and later) and Upsample (7 and 9) as one `resize` op.

Invariant: `scales` of the op are the f32 numbers that ONNX Runtime computes coordinates with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.resize import ResizeAttrs
from ppuc.ir.types import DType

_F32 = np.float32

Shapes = tuple[list[int], list[float]]
"""Result sizes and scales of every axis."""


@importer("Upsample")
def upsample(ctx: NodeContext) -> Sequence[Value]:
    given = ctx.attr("scales")
    scales = np.asarray(given) if given is not None else ctx.need_constant(1, "'scales'")
    return (_old_resize(ctx, scales),)


@importer("Resize")
def resize(ctx: NodeContext) -> Sequence[Value]:
    if ctx.opset < 11:
        return (_old_resize(ctx, ctx.need_constant(1, "'scales'")),)
    rank = len(ctx.shape(0))
    axes = _axes(ctx, rank)
    coordinates = str(ctx.attr("coordinate_transformation_mode", "half_pixel"))
    scales = ctx.need_constant(2, "'scales'") if ctx.has(2) else np.zeros(0)
    sizes = ctx.need_constant(3, "'sizes'") if ctx.has(3) else np.zeros(0)
    if (scales.size > 0) == (sizes.size > 0):
        ctx.fail("exactly one of 'scales' and 'sizes' must be given", got=f"scales {scales}, sizes {sizes}")
    attrs = ResizeAttrs(
        sizes=(),
        scales=(),
        mode=str(ctx.attr("mode", "nearest")),
        coordinates=coordinates,
        nearest=str(ctx.attr("nearest_mode", "round_prefer_floor")),
        cubic_a=float(ctx.attr("cubic_coeff_a", -0.75)),
        exclude_outside=bool(ctx.attr("exclude_outside", 0)),
        extrapolation=float(ctx.attr("extrapolation_value", 0.0)),
        antialias=bool(ctx.attr("antialias", 0)),
        roi=_roi(ctx, axes, rank) if coordinates == "tf_crop_and_resize" else (),
    )
    _check_rounding(ctx, attrs)
    return (_emit(ctx, attrs, _by_scales(ctx, scales, axes) if scales.size else _by_sizes(ctx, sizes, axes)),)


def _check_rounding(ctx: NodeContext, attrs: ResizeAttrs) -> None:
    """ONNX does not define the rounding of interpolated integers; ONNX Runtime truncates."""
    dtype = ctx.dtype(0)
    if dtype.is_float or attrs.mode == "nearest":
        return
    if attrs.mode == "cubic" or attrs.antialias or dtype not in (DType.I8, DType.U8, DType.I32):
        ctx.fail("how integers are rounded is not defined here", got=f"{ctx.type(0)}, {attrs.mode}", expected="floats")


def _old_resize(ctx: NodeContext, scales: np.ndarray) -> Value:
    """Before opset 11: asymmetric coordinates; nearest rounds down where an axis grows and up where it shrinks."""
    mode = str(ctx.attr("mode", "nearest"))
    attrs = ResizeAttrs((), (), "linear" if mode == "bilinear" else mode, "asymmetric", "simple")
    return _emit(ctx, attrs, _by_scales(ctx, scales, range(len(ctx.shape(0)))))


def _axes(ctx: NodeContext, rank: int) -> Sequence[int]:
    """The axes that scales, sizes and roi refer to."""
    given = ctx.attr("axes")
    if given is None:
        return range(rank)
    axes = [int(a) + (rank if a < 0 else 0) for a in given]
    if len(set(axes)) != len(axes) or any(not 0 <= a < rank for a in axes):
        ctx.fail("axes must be different axes of X", got=list(given), expected=f"axes of {ctx.type(0)}")
    return axes


def _roi(ctx: NodeContext, axes: Sequence[int], rank: int) -> tuple[float, ...]:
    """Starts, then ends, of all axes; the full range for those not in `axes`."""
    given = ctx.need_constant(1, "'roi'")
    if given.size != 2 * len(axes):
        ctx.fail("roi needs a start and an end for each axis", got=f"{given.size} numbers", expected=2 * len(axes))
    bounds = [0.0] * rank + [1.0] * rank
    for i, axis in enumerate(axes):
        bounds[axis], bounds[rank + axis] = float(given[i]), float(given[len(axes) + i])
    return tuple(bounds)


def _by_scales(ctx: NodeContext, given: np.ndarray, axes: Sequence[int]) -> Shapes:
    """Sizes are floor(size * scale), in f32 as ONNX Runtime computes them."""
    if given.size != len(axes):
        ctx.fail("scales needs one entry for each axis", got=given.tolist(), expected=f"{len(axes)} entries")
    shape = ctx.shape(0)
    sizes, scales = list(shape), [1.0] * len(shape)
    for axis, scale in zip(axes, given.astype(_F32), strict=True):
        scales[axis] = float(scale)
        sizes[axis] = int(np.floor(_F32(shape[axis]) * scale))
    return sizes, scales


def _by_sizes(ctx: NodeContext, given: np.ndarray, axes: Sequence[int]) -> Shapes:
    """Sizes as given, or with a keep_aspect_ratio_policy the nearest ones with a common scale."""
    if given.size != len(axes):
        ctx.fail("sizes needs one entry for each axis", got=given.tolist(), expected=f"{len(axes)} entries")
    policy = str(ctx.attr("keep_aspect_ratio_policy", "stretch"))
    if policy not in ("stretch", "not_larger", "not_smaller"):
        ctx.fail("keep_aspect_ratio_policy has no such mode", got=policy, expected="stretch, not_larger or not_smaller")
    shape = ctx.shape(0)
    sizes, scales = list(shape), [1.0] * len(shape)
    ratios = [_F32(size) / _F32(shape[axis]) for axis, size in zip(axes, given.tolist(), strict=True)]
    common = min(ratios) if policy == "not_larger" else max(ratios)
    for axis, ratio, size in zip(axes, ratios, given.tolist(), strict=True):
        scales[axis] = float(ratio if policy == "stretch" else common)
        sizes[axis] = size if policy == "stretch" else int(np.floor(common * _F32(shape[axis]) + _F32(0.5)))
    return sizes, scales


def _emit(ctx: NodeContext, attrs: ResizeAttrs, shapes: Shapes) -> Value:
    """Emit the op; input 0 itself if all scales are 1, which ONNX Runtime copies even with a region of interest."""
    sizes, scales = shapes
    if tuple(sizes) == ctx.shape(0) and all(s == 1 for s in scales):
        return ctx.operand(0)
    x, attrs = ctx.operand(0), replace(attrs, sizes=tuple(sizes), scales=tuple(scales))
    if x.type.dtype.is_float or attrs.mode == "nearest":
        return ctx.op("resize", x, attrs=attrs)
    wide = ctx.op("resize", ctx.op("cast", x, attrs=CastAttrs(DType.F32)), attrs=attrs)
    return ctx.op("cast", wide, attrs=CastAttrs(x.type.dtype))
