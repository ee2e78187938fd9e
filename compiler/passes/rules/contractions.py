"""Rewrites around contractions and windows: per-channel constants are folded into constant weights, transposes and
padding into attributes.

Folding a factor into weights changes the number of roundings by one; it is done in f32 only, and where no product
leaves the range of f32 (`ppuc.ir.scaling`).
"""

from __future__ import annotations

import math
from dataclasses import replace

from ppuc.compiler.passes.rewriter import Rules, Walk
from ppuc.compiler.passes.rules.constants import Derived
from ppuc.compiler.passes.rules.views import reshaped, transposed
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.conv_transpose import ConvTransposeAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.normalization import BatchNormAttrs
from ppuc.ir.ops.reduction import reduce_identity
from ppuc.ir.ops.view import ExpandAttrs, TransposeAttrs
from ppuc.ir.ops.window import PoolAttrs
from ppuc.ir.scaling import terms_merge, weights_take
from ppuc.ir.types import DType, broadcast_shapes

_WEIGHTED = ("conv", "conv_transpose", "matmul")


def constant_batch_norm(w: Walk, op: Op) -> Value | None:
    """batch_norm(x, ...) with constant parameters -> x * s + t per channel."""
    x, scale, bias, mean, variance = op.operands
    if any(w.resource(p) is None for p in op.operands[1:]) or any(v.type.dtype is not DType.F32 for v in op.operands):
        return None
    assert isinstance(op.attrs, BatchNormAttrs)
    root = w.emit("rsqrt", w.emit("add", variance, w.scalar(op.attrs.epsilon, DType.F32)))
    factor = w.emit("mul", scale, root)
    offset = w.emit("sub", bias, w.emit("mul", mean, factor))
    shape = tuple(d if i == 1 else 1 for i, d in enumerate(x.type.dims))
    return w.emit("add", w.emit("mul", x, reshaped(w, factor, shape)), reshaped(w, offset, shape))


def _channel_axis(op: Op) -> int:
    """The result dimension of a weighted op's output channels."""
    if op.name == "matmul" or (isinstance(op.attrs, ConvAttrs) and op.attrs.layout == "nhwc"):
        return op.result.type.rank - 1
    return 1


def _per_channel(w: Walk, op: Op, constant: Value) -> Value | None:
    """`constant`, broadcast against the result of the weighted `op`, as [channels]; None if it varies along other
    dimensions or is not constant."""
    result, axis = op.result.type, _channel_axis(op)
    if w.resource(constant) is None or broadcast_shapes(result.dims, constant.type.dims) != result.dims:
        return None
    aligned = (1,) * (result.rank - constant.type.rank) + constant.type.dims
    if any(size != 1 and i != axis for i, size in enumerate(aligned)):
        return None
    if constant.type.elements == 1 and op.name == "matmul":
        return None
    flat = reshaped(w, constant, (constant.type.elements,))
    return (
        flat if aligned[axis] == result.dims[axis] else w.emit("expand", flat, attrs=ExpandAttrs((result.dims[axis],)))
    )


def _scaled_weights(w: Walk, op: Op, factor: Value) -> Value | None:
    """The constant weights of `op` times `factor` per output channel."""
    weights, attrs = op.operands[1], op.attrs
    if w.resource(weights) is None or op.result.type.dtype is not DType.F32 or weights.type.dtype is not DType.F32:
        return None
    if isinstance(attrs, MatmulAttrs):
        axis = weights.type.rank - (2 if attrs.transpose_b else 1)
        if weights.type.rank != 2:
            return None
    elif isinstance(attrs, ConvTransposeAttrs):
        axis = 1
        if attrs.groups != 1:
            return None
    else:
        assert isinstance(attrs, ConvAttrs)
        axis = weights.type.rank - 1 if attrs.layout == "nhwc" else 0
    if (channels := _per_channel(w, op, factor)) is None:
        return None
    own, by = w.resource(weights), w.resource(factor)
    assert own is not None
    assert by is not None
    along = [-1 if i == axis else 1 for i in range(weights.type.rank)]
    if not weights_take(own.array(), by.array().reshape(along)):
        return None
    return w.emit(
        "mul",
        weights,
        reshaped(w, channels, [d if n < 0 else 1 for n, d in zip(along, weights.type.dims, strict=True)]),
    )


def scale_into_weights(w: Walk, op: Op) -> Value | None:
    """conv(x, w) * c -> conv(x, w * c), and so for matmul with constant weights."""
    inner = w.sole(op.operands[0], *_WEIGHTED)
    if inner is None or inner.result.type != op.result.type:
        return None
    weights = _scaled_weights(w, inner, op.operands[1])
    if weights is None:
        return None
    w.absorb(inner)
    return w.emit(inner.name, inner.operands[0], weights, attrs=inner.attrs)


def _biased(w: Walk, value: Value) -> tuple[Op, Op] | None:
    """(add, weighted op) when `value` is conv(x, w) + c with constant w and c of one number per channel."""
    add = w.sole(value, "add")
    if add is None or w.resource(add.operands[1]) is None:
        return None
    inner = w.sole(add.operands[0], *_WEIGHTED)
    if inner is None or inner.result.type != add.result.type or w.resource(inner.operands[1]) is None:
        return None
    return (add, inner) if _is_per_channel(inner, add.operands[1]) else None


def _is_per_channel(op: Op, constant: Value) -> bool:
    aligned = (1,) * (op.result.type.rank - constant.type.rank) + constant.type.dims
    return all(size == 1 or i == _channel_axis(op) for i, size in enumerate(aligned))


def scale_past_bias(w: Walk, op: Op) -> Value | None:
    """(conv(x, w) + b) * c -> conv(x, w * c) + b * c."""
    found = _biased(w, op.operands[0])
    if found is None or op.result.type != op.operands[0].type:
        return None
    add, inner = found
    weights = _scaled_weights(w, inner, op.operands[1])
    if weights is None:
        return None
    w.absorb(add, inner)
    product = w.emit(inner.name, inner.operands[0], weights, attrs=inner.attrs)
    return w.emit("add", product, w.emit("mul", add.operands[1], op.operands[1]))


def merge_biases(w: Walk, op: Op) -> Value | None:
    """(conv(x, w) + b) + c -> conv(x, w) + (b + c)."""
    found = _biased(w, op.operands[0])
    if found is None or op.result.type != op.operands[0].type or op.result.type.dtype is not DType.F32:
        return None
    add, inner = found
    if not _is_per_channel(inner, op.operands[1]):
        return None
    first, second = w.resource(add.operands[1]), w.resource(op.operands[1])
    if first is None or second is None or not terms_merge(first.array(), second.array()):
        return None
    w.absorb(add)
    return w.emit("add", add.operands[0], w.emit("add", add.operands[1], op.operands[1]))


def pad_into_window(w: Walk, op: Op) -> Value | None:
    """conv(pad(x)) with zeros, pool(pad(x)) with the identity -> conv or pool with padding."""
    attrs = op.attrs
    assert isinstance(attrs, ConvAttrs | PoolAttrs)
    inner = w.producer(op.operands[0], "pad")
    if inner is None:
        return None
    pad = inner.attrs
    assert isinstance(pad, PadAttrs)
    neutral = 0 if isinstance(attrs, ConvAttrs) else reduce_identity(attrs.kind, op.result.type.dtype)
    if pad.mode != "constant" or pad.value != neutral or any(pad.interior) or min((*pad.low, *pad.high)) < 0:
        return None
    space = slice(1, -1) if attrs.layout == "nhwc" else slice(2, None)
    if sum(pad.low) + sum(pad.high) != sum(pad.low[space]) + sum(pad.high[space]):
        return None
    low = tuple(a + b for a, b in zip(attrs.low, pad.low[space], strict=True))
    high = tuple(a + b for a, b in zip(attrs.high, pad.high[space], strict=True))
    w.absorb(inner)
    return w.emit(op.name, inner.operands[0], *op.operands[1:], attrs=replace(attrs, low=low, high=high))


def transpose_into_matmul(w: Walk, op: Op) -> Value | None:
    """matmul(transpose(a), b) that swaps the last two dimensions -> matmul(a, b) {transpose_a = true}."""
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs)
    flags = [attrs.transpose_a, attrs.transpose_b]
    for i in range(2):
        inner = w.producer(op.operands[i], "transpose")
        if inner is None:
            continue
        rank = inner.result.type.rank
        if inner.attrs.perm != (*range(rank - 2), rank - 1, rank - 2):  # type: ignore[attr-defined]
            continue
        w.absorb(inner)
        operands = (*op.operands[:i], inner.operands[0], *op.operands[i + 1 :])
        flags[i] ^= True
        return w.emit("matmul", *operands, attrs=replace(attrs, transpose_a=flags[0], transpose_b=flags[1]))
    return None


def flatten_into_weights(w: Walk, op: Op) -> Value | None:
    """matmul(reshape(transpose(x)), w) that permutes the dimensions the reshape merges -> matmul(reshape(x), rows of w
    permuted)."""
    flat = w.sole(op.operands[0], "reshape")
    turn = None if flat is None else w.sole(flat.operands[0], "transpose")
    weights = op.operands[1]
    if (
        flat is None
        or turn is None
        or w.resource(weights) is None
        or weights.type.rank != 2
        or op.attrs != MatmulAttrs()
    ):
        return None
    assert isinstance(turn.attrs, TransposeAttrs)
    perm, dims, depth = turn.attrs.perm, turn.result.type.dims, flat.result.type.dims[-1]
    lead = next((i for i in range(len(dims)) if math.prod(dims[i:]) == depth), None)
    if lead is None or perm[:lead] != tuple(range(lead)):
        return None
    w.absorb(flat, turn)
    rows = reshaped(w, weights, (*dims[lead:], weights.type.dims[1]))
    order = [perm.index(d) - lead for d in range(lead, len(perm))]
    swapped = reshaped(w, transposed(w, rows, (*order, len(order))), weights.type.dims)
    return w.emit("matmul", reshaped(w, turn.operands[0], flat.result.type.dims), swapped)


def drop_batch_expand(w: Walk, op: Op) -> Value | None:
    """matmul(a, expand(b)) that only repeats b over batch dimensions of a -> matmul(a, b)."""
    for i, operand in enumerate(op.operands):
        inner = w.producer(operand, "expand")
        if inner is None:
            continue
        x = inner.operands[0]
        if x.type.rank < 2 or x.type.dims[-2:] != operand.type.dims[-2:]:
            continue
        if broadcast_shapes(x.type.dims[:-2], op.operands[1 - i].type.dims[:-2]) == op.result.type.dims[:-2]:
            w.absorb(inner)
            return w.emit("matmul", *(*op.operands[:i], x, *op.operands[i + 1 :]), attrs=op.attrs)
    return None


def transpose_constant_weights(w: Walk, op: Op) -> Value | None:
    """matmul(x, w) {transpose_b = true} with constant w -> matmul(x, transpose(w))."""
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs)
    weights = op.operands[1]
    if not attrs.transpose_b or w.sole(weights, "const") is None:
        return None
    rank = weights.type.rank
    swapped = transposed(w, weights, (*range(rank - 2), rank - 1, rank - 2))
    return w.emit("matmul", op.operands[0], swapped, attrs=replace(attrs, transpose_b=False))


def weights_in_full(w: Walk, op: Op) -> Value | None:
    """conv(x, expand(c)) and matmul(x, expand(c)) with constant c -> the same with a constant of the weights' own
    shape.

    A file with placeholder weights (ConstantOfShape) stands for a network with real ones: their tiles have full size,
    and their bytes come from memory.
    """
    inner = w.producer(op.operands[1], "expand")
    resource = w.resource(inner.operands[0]) if inner is not None else None
    if inner is None or resource is None:
        return None
    return w.emit(op.name, op.operands[0], w.const(Derived(inner, (resource,), resource.name)), attrs=op.attrs)


def column_first(w: Walk, op: Op) -> Value | None:
    """matmul(m, x[k, 1]) with a matrix m that lies in memory (a constant or a graph input) -> matmul(x[1, k], m
    transposed): the matrix takes the place of weights, whose tiles, formats and layout are chosen to be streamed.

    Serial systolic arrays do better with the column: they stream all rows through one fold of it.
    """
    attrs, (matrix, column) = op.attrs, op.operands
    assert isinstance(attrs, MatmulAttrs)
    rows, columns = op.result.type.dims[-2:]
    if matrix.type.rank != 2 or column.type.rank != 2 or columns != 1 or rows == 1:
        return None
    if w.producer(matrix) is not None and w.resource(matrix) is None:
        return None
    row = reshaped(w, column, (1, column.type.elements))
    product = w.emit("matmul", row, matrix, attrs=replace(attrs, transpose_a=False, transpose_b=not attrs.transpose_a))
    return reshaped(w, product, op.result.type.dims)


CONTRACTION_RULES: Rules = {
    "batch_norm": (constant_batch_norm,),
    "mul": (scale_into_weights, scale_past_bias),
    "add": (merge_biases,),
    "conv": (pad_into_window, weights_in_full),
    "conv_transpose": (weights_in_full,),
    "pool": (pad_into_window,),
    "matmul": (
        transpose_constant_weights,
        transpose_into_matmul,
        flatten_into_weights,
        drop_batch_expand,
        weights_in_full,
    ),
}
