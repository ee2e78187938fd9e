"""Importers of ops that move elements: slices, joins, pads, gathers, scatters, and rearrangements between dimensions.

Invariant: an op that only renames elements (Slice, Split, Tile, DepthToSpace, a Gather of one constant index) becomes
views; data moves only if necessary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.shape import expanded, normal_axes, reshaped, sliced, transposed
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.movement import (
    ConcatAttrs,
    GatherAttrs,
    GatherElementsAttrs,
    GatherNdAttrs,
    PadAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
from ppuc.ir.ops.view import SliceAttrs


@importer("Slice")
def slice_(ctx: NodeContext) -> Sequence[Value]:
    """Starts and ends clamp as in Python, except that for a negative step, an end below -size means "through element
    0"."""
    x = ctx.operand(0)
    dims = x.type.dims
    begins, ends = ctx.ints("starts", 1), ctx.ints("ends", 2)
    if begins is None or ends is None:
        ctx.fail("'starts' or 'ends' is missing")
    axes = normal_axes(ctx, ctx.ints("axes", 3) or tuple(range(len(begins))), len(dims))
    steps = ctx.ints("steps", 4) or (1,) * len(begins)
    if not len(begins) == len(ends) == len(axes) == len(steps):
        ctx.fail("'starts', 'ends', 'axes' and 'steps' differ in length", got=[begins, ends, axes, steps])
    start, size, stride = [0] * len(dims), list(dims), [1] * len(dims)
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        if step == 0:
            ctx.fail("a step is zero")
        reach = range(dims[axis])[_clamped(begin, dims[axis], step) : _end(end, dims[axis], step) : step]
        start[axis], size[axis], stride[axis] = (reach.start if reach else 0), len(reach), (step if reach else 1)
    if size == list(dims) and stride == [1] * len(dims):
        return [x]
    return [ctx.op("slice", x, attrs=SliceAttrs(tuple(start), tuple(size), tuple(stride)))]


def _clamped(index: int, size: int, step: int) -> int:
    index += size if index < 0 else 0
    return max(0, min(index, size if step > 0 else size - 1))


def _end(index: int, size: int, step: int) -> int | None:
    index += size if index < 0 else 0
    if step < 0 and index < 0:
        return None
    return max(0, min(index, size))


@importer("Concat")
def concat(ctx: NodeContext) -> Sequence[Value]:
    """Empty operands are dropped."""
    operands = [ctx.operand(i) for i in range(len(ctx.inputs)) if ctx.has(i)]
    if not operands:
        ctx.fail("there is nothing to concatenate")
    axis = ctx.axis(1, operands[0].type.rank)
    filled = [v for v in operands if v.type.dims[axis : axis + 1] != (0,)] or operands[:1]
    return filled if len(filled) == 1 else [ctx.op("concat", *filled, attrs=ConcatAttrs(axis))]


@importer("Split")
def split(ctx: NodeContext) -> Sequence[Value]:
    """Sizes as given, else equal parts; with num_outputs the last part may be smaller."""
    x = ctx.operand(0)
    axis = ctx.axis(0, x.type.rank)
    extent = x.type.dims[axis]
    count = len(ctx.outputs)
    sizes = ctx.ints("split", 1)
    if sizes is None:
        parts = int(ctx.attr("num_outputs", count))
        if "num_outputs" not in ctx.attributes and extent % parts:
            ctx.fail(f"dimension {axis} does not divide into {parts} equal parts", got=x.type)
        each = -(-extent // parts)
        if (parts - 1) * each >= extent > 0:
            ctx.fail(f"dimension {axis} does not divide into {parts} parts with elements", got=x.type)
        sizes = tuple(max(0, min(each, extent - i * each)) for i in range(parts))
    if sum(sizes) != extent or min(sizes, default=0) < 0 or len(sizes) < count:
        ctx.fail(f"the parts do not make up dimension {axis} of {x.type}", got=list(sizes), expected=f"sum {extent}")
    starts = np.cumsum((0, *sizes)).tolist()
    return [sliced(ctx, x, axis, starts[i], sizes[i]) for i in range(count)]


@importer("Pad")
def pad(ctx: NodeContext) -> Sequence[Value]:
    """Negative pads crop; in modes other than constant, before padding."""
    x = ctx.operand(0)
    rank = x.type.rank
    pads = ctx.ints("pads", 1)
    axes = normal_axes(ctx, ctx.ints("axes", 3) or tuple(range(rank)), rank)
    if pads is None or len(pads) != 2 * len(axes):
        ctx.fail("'pads' needs two numbers for each padded dimension", got=pads, expected=f"{2 * len(axes)} numbers")
    low, high = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        low[axis], high[axis] = pads[i], pads[len(axes) + i]
    mode = ctx.attr("mode", "constant")
    if mode != "constant":
        for axis in range(rank):
            cut = (max(0, -low[axis]), max(0, -high[axis]))
            x = sliced(ctx, x, axis, cut[0], max(0, x.type.dims[axis] - sum(cut)))
        low, high = [max(0, p) for p in low], [max(0, p) for p in high]
    if not any(low) and not any(high):
        return [x]
    return [ctx.op("pad", x, attrs=PadAttrs(tuple(low), tuple(high), (0,) * rank, _pad_value(ctx), mode))]


def _pad_value(ctx: NodeContext) -> float:
    """The pad value; an attribute up to opset 10."""
    if not ctx.has(2):
        return float(ctx.attr("value", 0.0))
    given = ctx.need_constant(2, "the pad value").reshape(-1)[0]
    value = float(given)
    if ctx.dtype(0).is_integer and int(value) != int(given):
        ctx.fail("the pad value is too large to be exact", got=given, expected="at most 2**53")
    return value


@importer("Tile")
def tile(ctx: NodeContext) -> Sequence[Value]:
    """[a, b] repeated (r, s) times is [1, a, 1, b] expanded to [r, a, s, b]."""
    x = ctx.operand(0)
    repeats = [int(r) for r in ctx.need_constant(1, "'repeats'")]
    if len(repeats) != x.type.rank or min(repeats, default=1) < 0:
        ctx.fail("'repeats' needs one count for each dimension", got=repeats, expected=x.type)
    pairs = list(zip(repeats, x.type.dims, strict=True))
    split_dims = [d for r, size in pairs for d in ((1, size) if r != 1 else (size,))]
    tiled_dims = [d for r, size in pairs for d in ((r, size) if r != 1 else (size,))]
    spread = expanded(ctx, reshaped(ctx, x, split_dims), tiled_dims)
    return [reshaped(ctx, spread, [r * size for r, size in pairs])]


@importer("Gather")
def gather(ctx: NodeContext) -> Sequence[Value]:
    """One constant index, or constant indices at a regular distance, make a view."""
    x, indices = ctx.operand(0), ctx.operand(1)
    axis = ctx.axis(0, x.type.rank)
    extent = x.type.dims[axis]
    known = ctx.constant(1)
    if known is not None:
        if known.size and not -extent <= known.min() <= known.max() < extent:
            ctx.fail("an index is out of range", got=f"{known.min()} to {known.max()}", expected=f"below {extent}")
        regular = _progression(np.where(known < 0, known + extent, known).reshape(-1))
        if regular is not None:
            part = sliced(ctx, x, axis, *regular)
            return [reshaped(ctx, part, x.type.dims[:axis] + indices.type.dims + x.type.dims[axis + 1 :])]
    return [ctx.op("gather", x, indices, attrs=GatherAttrs(axis))]


def _progression(indices: np.ndarray) -> tuple[int, int, int] | None:
    """(start, size, step) of indices at a regular, nonzero distance."""
    if indices.size == 0:
        return None
    steps = np.diff(indices.astype(np.int64))
    step = int(steps[0]) if steps.size else 1
    return (int(indices[0]), indices.size, step) if step and np.all(steps == step) else None


@importer("GatherElements")
def gather_elements(ctx: NodeContext) -> Sequence[Value]:
    axis = ctx.axis(0, ctx.type(0).rank)
    return [ctx.op("gather_elements", ctx.operand(0), ctx.operand(1), attrs=GatherElementsAttrs(axis))]


@importer("GatherND")
def gather_nd(ctx: NodeContext) -> Sequence[Value]:
    attrs = GatherNdAttrs(int(ctx.attr("batch_dims", 0)))
    return [ctx.op("gather_nd", ctx.operand(0), ctx.operand(1), attrs=attrs)]


@importer("ScatterND")
def scatter_nd(ctx: NodeContext) -> Sequence[Value]:
    attrs = ScatterNdAttrs(str(ctx.attr("reduction", "none")))
    return [ctx.op("scatter_nd", ctx.operand(0), ctx.operand(1), ctx.operand(2), attrs=attrs)]


@importer("ScatterElements", "Scatter")
def scatter_elements(ctx: NodeContext) -> Sequence[Value]:
    attrs = ScatterElementsAttrs(ctx.axis(0, ctx.type(0).rank), str(ctx.attr("reduction", "none")))
    return [ctx.op("scatter_elements", ctx.operand(0), ctx.operand(1), ctx.operand(2), attrs=attrs)]


@importer("TensorScatter")
def tensor_scatter(ctx: NodeContext) -> Sequence[Value]:
    """Writes rows at each sample's position: a scatter into the cache with the axes up to the row's merged."""
    cache, update = ctx.operand(0), ctx.operand(1)
    axis = ctx.axis(-2, cache.type.rank)
    mode = str(ctx.attr("mode", "linear"))
    if axis == 0 or mode not in ("linear", "circular"):
        ctx.fail("axis 0 holds the samples" if axis == 0 else "the mode is unknown", got=axis or mode)
    lead, (length, *rest) = cache.type.dims[:axis], cache.type.dims[axis:]
    rows = update.type.dims[axis] if update.type.rank == cache.type.rank else -1
    if update.type.dims != (*lead, rows, *rest) or rows > length:
        ctx.fail("the update does not fit the cache", got=update.type, expected=f"{cache.type} with fewer rows")
    steps = ctx.b.const(np.arange(rows, dtype=np.int64).reshape((1, rows)), "rows")
    place = steps
    if ctx.has(2):
        if ctx.shape(2) != lead[:1]:
            ctx.fail("there is no place for each sample", got=ctx.type(2), expected=f"{lead[0]} numbers")
        place = ctx.op("add", reshaped(ctx, ctx.operand(2), (lead[0], 1)), steps)
    if mode == "circular":
        place = ctx.op("mod", place, ctx.b.const(np.array(length, np.int64), "length"))
    count = int(np.prod(lead, dtype=np.int64))
    own = (lead[0], count // max(lead[0], 1), rows)
    place = expanded(ctx, reshaped(ctx, place, (place.type.dims[0], 1, rows)), own)
    start = np.arange(count, dtype=np.int64).reshape(own[0], own[1], 1) * length
    place = ctx.op("add", place, ctx.b.const(start, "start"))
    joined = ctx.op(
        "scatter_nd",
        reshaped(ctx, cache, (count * length, *rest)),
        reshaped(ctx, place, (count * rows, 1)),
        reshaped(ctx, update, (count * rows, *rest)),
        attrs=ScatterNdAttrs("none"),
    )
    return [reshaped(ctx, joined, cache.type.dims)]


@importer("Compress")
def compress(ctx: NodeContext) -> Sequence[Value]:
    """A gather of the elements that the condition, which must be constant, selects; without an axis, of the flattened
    input."""
    x = ctx.operand(0)
    condition = ctx.need_constant(1, "the size of the result")
    axis = ctx.axis(0, x.type.rank) if "axis" in ctx.attributes else 0
    if "axis" not in ctx.attributes:
        x = reshaped(ctx, x, (x.type.elements,))
    chosen = np.flatnonzero(condition[: x.type.dims[axis]])
    return [ctx.op("gather", x, ctx.b.const(chosen.astype(np.int64), "chosen"), attrs=GatherAttrs(axis))]


@importer("ReverseSequence")
def reverse_sequence(ctx: NodeContext) -> Sequence[Value]:
    """A gather over batch and time as one dimension, with indices from the (constant) lengths."""
    batch_axis, time_axis = ctx.axis(1, 2, "batch_axis"), ctx.axis(0, 2, "time_axis")
    if batch_axis == time_axis:
        ctx.fail("batch_axis and time_axis are the same", got=batch_axis)
    x = ctx.operand(0)
    lengths = ctx.need_constant(1, "the order of the result")
    order = [1, 0, *range(2, x.type.rank)]
    rows = transposed(ctx, x, order) if time_axis == 0 else x
    batch, time = rows.type.dims[:2]
    if lengths.shape != (batch,) or lengths.min(initial=0) < 0 or lengths.max(initial=0) > time:
        ctx.fail("the lengths do not fit the input", got=lengths.tolist(), expected=f"{batch} numbers up to {time}")
    steps = np.arange(time)
    source = np.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps) + time * np.arange(batch)[:, None]
    flat = reshaped(ctx, rows, (batch * time, *rows.type.dims[2:]))
    moved = ctx.op("gather", flat, ctx.b.const(source.astype(np.int64), "source"), attrs=GatherAttrs(0))
    return [transposed(ctx, moved, order) if time_axis == 0 else moved]


@importer("DepthToSpace")
def depth_to_space(ctx: NodeContext) -> Sequence[Value]:
    """In mode DCR the block is the outer part of the channels, in CRD the inner part."""
    n, c, h, w, block = _image(ctx)
    if c % (block * block):
        ctx.fail("channels do not divide by blocksize * blocksize", got=ctx.type(0), expected=f"{block * block}")
    depth = c // (block * block)
    if ctx.attr("mode", "DCR") == "DCR":
        split_dims, perm = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split_dims, perm = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    moved = transposed(ctx, reshaped(ctx, ctx.operand(0), split_dims), perm)
    return [reshaped(ctx, moved, (n, depth, h * block, w * block))]


@importer("SpaceToDepth")
def space_to_depth(ctx: NodeContext) -> Sequence[Value]:
    n, c, h, w, block = _image(ctx)
    if h % block or w % block:
        ctx.fail("height and width do not divide by blocksize", got=ctx.type(0), expected=f"{block}")
    orders = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}
    mode = ctx.attr("mode", "DCR")
    if mode not in orders:
        ctx.fail("the mode is unknown", got=repr(mode), expected=" or ".join(orders))
    split = reshaped(ctx, ctx.operand(0), (n, c, h // block, block, w // block, block))
    return [reshaped(ctx, transposed(ctx, split, orders[mode]), (n, c * block * block, h // block, w // block))]


def _image(ctx: NodeContext) -> tuple[int, int, int, int, int]:
    """n, c, h, w and the block size."""
    if ctx.type(0).rank != 4:
        ctx.fail("the input must have four dimensions", got=ctx.type(0))
    block = int(ctx.attr("blocksize", 0))
    if block < 1:
        ctx.fail("blocksize must be positive", got=block)
    n, c, h, w = ctx.shape(0)
    return n, c, h, w, block
