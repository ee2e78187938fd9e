"""Importers of ops that change shapes, and of ops whose results follow from shapes: constants and views.

Invariant: nothing here computes on data at run time; every result is a constant, a view of the input, or a select by a
constant mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.compiler.frontend.tensors import dtype_of
from ppuc.ir.graph import Value
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.types import DType, broadcast_shapes


def reshaped(ctx: NodeContext, x: Value, shape: Sequence[int]) -> Value:
    """`x` itself if it has that shape."""
    target = tuple(int(d) for d in shape)
    return x if x.type.dims == target else ctx.op("reshape", x, attrs=ReshapeAttrs(target))


def transposed(ctx: NodeContext, x: Value, perm: Sequence[int]) -> Value:
    """`x` itself if `perm` is the identity."""
    return x if list(perm) == list(range(len(perm))) else ctx.op("transpose", x, attrs=TransposeAttrs(tuple(perm)))


def expanded(ctx: NodeContext, x: Value, shape: Sequence[int]) -> Value:
    """`x` itself if it has that shape."""
    target = tuple(int(d) for d in shape)
    return x if x.type.dims == target else ctx.op("expand", x, attrs=ExpandAttrs(target))


def sliced(ctx: NodeContext, x: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
    """`size` elements of one axis from `start` on; `x` itself if that is all of it."""
    dims = x.type.dims
    if start == 0 and size == dims[axis] and step == 1:
        return x
    starts, sizes, steps = [0] * len(dims), list(dims), [1] * len(dims)
    starts[axis], sizes[axis], steps[axis] = start, size, step
    return ctx.op("slice", x, attrs=SliceAttrs(tuple(starts), tuple(sizes), tuple(steps)))


def normal_axes(ctx: NodeContext, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`axes` in [0, rank). Raises ModelError if one is out of range or given twice."""
    for axis in axes:
        if not -rank <= axis < rank:
            ctx.breaks("an axis is out of range", got=axis, expected=f"between {-rank} and {rank - 1}")
    normal = tuple(axis % rank for axis in axes)
    if len(set(normal)) != len(normal):
        ctx.fail("an axis is named twice", got=list(axes))
    return normal


@importer("Identity", "Dropout")
def identity(ctx: NodeContext) -> Sequence[Value]:
    """Dropout is the identity in inference; its mask is all true (or all one, before opset 10)."""
    x = ctx.operand(0)
    if ctx.op_type == "Identity":
        return [x]
    ctx.attr("ratio"), ctx.attr("seed")  # matter only for training
    if ctx.has(2) and bool(ctx.need_constant(2, "training mode")):
        ctx.fail("training mode is not supported", hint="export the model for inference (model.eval())")
    if len(ctx.outputs) < 2 or not ctx.outputs[1]:
        return [x]
    mask = ctx.b.scalar(1, DType.BOOL if ctx.opset >= 10 else x.type.dtype)
    return [x, expanded(ctx, mask, x.type.dims)]


@importer("Reshape")
def reshape(ctx: NodeContext) -> Sequence[Value]:
    """0 copies the input's size (unless allowzero), -1 is inferred."""
    x = ctx.operand(0)
    shape = [int(d) for d in ctx.need_constant(1, "the new shape")]
    if not ctx.attr("allowzero", 0):
        if any(d == 0 and i >= x.type.rank for i, d in enumerate(shape)):
            ctx.fail("a 0 in the new shape copies a dimension that the input lacks", got=shape, expected=x.type)
        shape = [x.type.dims[i] if d == 0 else d for i, d in enumerate(shape)]
    if -1 in shape:
        rest = math.prod(d for d in shape if d != -1)
        if shape.count(-1) > 1 or rest == 0 or x.type.elements % rest:
            ctx.fail(f"cannot reshape {x.type} to {shape}")
        shape[shape.index(-1)] = x.type.elements // rest
    return [reshaped(ctx, x, shape)]


@importer("Flatten")
def flatten(ctx: NodeContext) -> Sequence[Value]:
    """Two dimensions, split before `axis`, which may be the rank."""
    dims = ctx.shape(0)
    axis = int(ctx.attr("axis", 1))
    if not -len(dims) <= axis <= len(dims):
        ctx.breaks("axis is out of range", got=axis, expected=f"between {-len(dims)} and {len(dims)}")
    axis += len(dims) if axis < 0 else 0
    return [reshaped(ctx, ctx.operand(0), (math.prod(dims[:axis]), math.prod(dims[axis:])))]


@importer("Squeeze")
def squeeze(ctx: NodeContext) -> Sequence[Value]:
    """Without axes, all size-one dimensions are removed."""
    dims = ctx.shape(0)
    named = ctx.ints("axes", 1)
    axes = normal_axes(ctx, named, len(dims)) if named is not None else [i for i, d in enumerate(dims) if d == 1]
    for axis in axes:
        if dims[axis] != 1:
            ctx.fail(f"cannot squeeze dimension {axis}", got=ctx.type(0), expected="size 1")
    return [reshaped(ctx, ctx.operand(0), [d for i, d in enumerate(dims) if i not in axes])]


@importer("Unsqueeze")
def unsqueeze(ctx: NodeContext) -> Sequence[Value]:
    """Axes are those of the result."""
    named = ctx.ints("axes", 1)
    if named is None:
        ctx.fail("'axes' is missing")
    rank = ctx.type(0).rank + len(named)
    axes = normal_axes(ctx, named, rank)
    left = iter(ctx.shape(0))
    return [reshaped(ctx, ctx.operand(0), [1 if i in axes else next(left) for i in range(rank)])]


@importer("Transpose")
def transpose(ctx: NodeContext) -> Sequence[Value]:
    """Without perm, the dimensions are reversed."""
    perm = ctx.attr("perm", list(range(ctx.type(0).rank))[::-1])
    return [transposed(ctx, ctx.operand(0), [int(p) for p in perm])]


@importer("Expand")
def expand(ctx: NodeContext) -> Sequence[Value]:
    """Both sides broadcast: a 1 in the shape keeps the input's size."""
    shape = tuple(int(d) for d in ctx.need_constant(1, "the new shape"))
    return [expanded(ctx, ctx.operand(0), broadcast_shapes(ctx.shape(0), shape))]


@importer("Shape")
def shape(ctx: NodeContext) -> Sequence[Value]:
    """start and end clamp, as in Python."""
    dims = ctx.shape(0)
    part = dims[int(ctx.attr("start", 0)) : int(ctx.attr("end", len(dims)))]
    return [ctx.b.const(np.array(part, np.int64), ctx.hint)]


@importer("Size")
def size(ctx: NodeContext) -> Sequence[Value]:
    return [ctx.b.const(np.array(ctx.type(0).elements, np.int64), ctx.hint)]


@importer("Constant")
def constant(ctx: NodeContext) -> Sequence[Value]:
    """All attribute forms except strings and sparse tensors."""
    forms: dict[str, type[np.generic] | None] = {
        "value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    form = next((name for name in forms if name in ctx.attributes), None)
    if form is None:
        got = ", ".join(ctx.attributes) or "nothing"
        ctx.fail("the constant is of a kind that is not supported", got=got, expected=" or ".join(forms))
    return [ctx.b.const(np.asarray(ctx.attr(form), forms[form]), ctx.hint)]


@importer("ConstantOfShape")
def constant_of_shape(ctx: NodeContext) -> Sequence[Value]:
    shape = tuple(int(d) for d in ctx.need_constant(0, "the shape"))
    if min(shape, default=0) < 0:
        ctx.fail("a dimension is negative", got=list(shape))
    fill = np.asarray(ctx.attr("value", np.zeros(1, np.float32)))
    return [expanded(ctx, ctx.b.const(fill.reshape(()), ctx.hint), shape)]


LONGEST_RANGE = 1 << 26
"""Maximum elements of a range computed at compile time."""


@importer("Range")
def range_(ctx: NodeContext) -> Sequence[Value]:
    """Adds delta repeatedly, like ONNX Runtime: for floats, this differs from start + i * delta."""
    start, limit, delta = (ctx.need_constant(i, n).reshape(()) for i, n in enumerate(("start", "limit", "delta")))
    if delta == 0:
        ctx.fail("delta is zero")
    count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
    if count > LONGEST_RANGE:
        ctx.fail("the range is too long to be a constant", got=f"{count} elements", expected=f"at most {LONGEST_RANGE}")
    values = np.concatenate([start[None], np.full(max(0, count - 1), delta)])[:count]
    return [ctx.b.const(np.cumsum(values, dtype=start.dtype), ctx.hint)]


@importer("EyeLike")
def eye_like(ctx: NodeContext) -> Sequence[Value]:
    if ctx.type(0).rank != 2:
        ctx.fail("the input must be a matrix", got=ctx.type(0))
    named = ctx.attr("dtype")
    dtype = dtype_of(int(named), ctx.place) if named is not None else ctx.dtype(0)
    rows, columns = ctx.shape(0)
    return [ctx.b.const(np.eye(rows, columns, int(ctx.attr("k", 0))).astype(dtype.numpy), ctx.hint)]


@importer("Trilu")
def trilu(ctx: NodeContext) -> Sequence[Value]:
    """A constant mask selects the kept elements."""
    x = ctx.operand(0)
    if x.type.rank < 2:
        ctx.fail("the input must have two dimensions at least", got=x.type)
    k = int(ctx.need_constant(1, "the diagonal").reshape(())) if ctx.has(1) else 0
    full = np.ones(x.type.dims[-2:], np.bool_)
    mask = np.triu(full, k) if ctx.attr("upper", 1) else np.tril(full, k)
    return [ctx.op("select", ctx.b.const(mask, "mask"), x, ctx.scalar_like(0, x))]


@importer("NonZero")
def non_zero(ctx: NodeContext) -> Sequence[Value]:
    """The number of nonzero elements must be known at compile time."""
    found = np.argwhere(ctx.need_constant(0, "the number of nonzero elements"))
    return [ctx.b.const(np.ascontiguousarray(found.T, np.int64), ctx.hint)]


@importer("OneHot")
def one_hot(ctx: NodeContext) -> Sequence[Value]:
    """Compares indices with 0 .. depth - 1; negative ones count from the end, out-of-range ones give no hot element."""
    depth = int(ctx.need_constant(1, "the depth").reshape(()))
    rank = ctx.type(0).rank + 1
    axis = ctx.axis(-1, rank)
    indices = ctx.operand(0)
    if indices.type.dtype is not DType.I64:
        indices = cast_to(ctx, indices, DType.I64)
    wrapped = ctx.op("add", indices, ctx.b.scalar(depth, DType.I64))
    indices = ctx.op("select", ctx.op("lt", indices, ctx.b.scalar(0, DType.I64)), wrapped, indices)
    indices = reshaped(ctx, indices, (*ctx.shape(0)[:axis], 1, *ctx.shape(0)[axis:]))
    classes = np.arange(depth, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
    hot = ctx.op("eq", indices, ctx.b.const(classes, "classes"))
    off, on = (reshaped(ctx, sliced(ctx, ctx.operand(2), 0, i, 1), ()) for i in (0, 1))
    return [ctx.op("select", hot, on, off)]


def cast_to(ctx: NodeContext, x: Value, dtype: DType) -> Value:
    """`x` itself if it has that element type."""
    from ppuc.ir.ops.elementwise import CastAttrs

    return x if x.type.dtype is dtype else ctx.op("cast", x, attrs=CastAttrs(dtype))
