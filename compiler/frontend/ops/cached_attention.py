"""The attention ops of com.microsoft: Attention, MultiHeadAttention and GroupQueryAttention.

Invariant: all of them end in `attend`; they differ only in how queries, keys, values and masks are packed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.attention import (
    Mask,
    add_mask,
    angles,
    appended,
    attend,
    frontier,
    merge_heads,
    rotated,
    split_heads,
)
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, sliced
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import compute_dtype
from ppuc.ir.ops.movement import ConcatAttrs, PadAttrs, ScatterNdAttrs
from ppuc.ir.types import DType


def _scale(ctx: NodeContext, size: int) -> float:
    given = float(ctx.attr("scale", 0.0))
    return given or 1 / math.sqrt(size)


def _refuse(ctx: NodeContext, what: str, *present: bool) -> None:
    if any(present):
        ctx.fail(f"{what} not supported")


def _padding(ctx: NodeContext, mask: Mask, index: int, batch: int, keys: int) -> None:
    """Input `index`: the padding keys, as numbers [B, S] (0: padding), [B, M, S], or valid lengths [B]."""
    if not ctx.has(index):
        return
    given = ctx.operand(index)
    if given.type.dims == (batch,):
        places = ctx.b.const(np.arange(keys, dtype=np.int32), "keys")
        mask.allowed.append(ctx.op("lt", places, reshaped(ctx, cast_to(ctx, given, DType.I32), (batch, 1, 1, 1))))
    elif given.type.rank in (2, 3) and given.type.dims[0] == batch and given.type.dims[-1] == keys:
        shape = (batch, 1, 1, keys) if given.type.rank == 2 else (batch, 1, *given.type.dims[1:])
        mask.allowed.append(ctx.op("ne", reshaped(ctx, given, shape), ctx.scalar_like(0, given)))
    else:
        ctx.fail("the padding mask is of a form that is not supported", got=given.type, expected=f"[{batch}, {keys}]")


def _finish(
    ctx: NodeContext, q: Value, k: Value, v: Value, mask: Mask, bias_index: int, first: int
) -> tuple[Value, Value, Value]:
    """(output [B, M, H * E], k, v). Masks in these ops subtract `mask_filter_value`, so that a query that sees nothing
    averages over all keys."""
    work, queries, keys = compute_dtype(q.type.dtype), q.type.dims[2], k.type.dims[2]
    mask.hidden = float(ctx.attr("mask_filter_value", -10000.0))
    if ctx.has(bias_index):
        add_mask(ctx, mask, ctx.operand(bias_index), (*q.type.dims[:3], keys), work)
    if ctx.attr("unidirectional", 0):
        mask.causal = first + queries == keys and not mask.allowed
        if not mask.causal:
            mask.restrict(frontier(queries, keys, first, right=0))
    y, _ = attend(ctx, q, k, v, mask, _scale(ctx, q.type.dims[3]))
    return merge_heads(ctx, y), k, v


@importer("Attention", domain="com.microsoft")
def attention_of_ort(ctx: NodeContext) -> Sequence[Value]:
    """Projects the input to queries, keys and values first; `present` stacks keys and values."""
    x, heads = ctx.operand(0), int(ctx.attr("num_heads", 0))
    _refuse(
        ctx,
        "rotation and shared buffers are",
        *(bool(ctx.attr(n, 0)) for n in ("do_rotary", "past_present_share_buffer")),
    )
    projected = ctx.op("matmul", x, ctx.operand(1), attrs=MatmulAttrs())
    if ctx.has(2):
        projected = ctx.op("add", projected, ctx.operand(2))
    hidden = projected.type.dims[2]
    given: Sequence[int] = ctx.attr("qkv_hidden_sizes", [])
    sizes = [int(s) for s in given] or [hidden // 3] * 3
    starts = (0, sizes[0], sizes[0] + sizes[1])
    q, k, v = (split_heads(ctx, sliced(ctx, projected, 2, a, n), heads) for a, n in zip(starts, sizes, strict=True))
    past: list[Value | None] = [None, None]
    if ctx.has(4):
        past = [reshaped(ctx, sliced(ctx, ctx.operand(4), 0, i, 1), ctx.shape(4)[1:]) for i in range(2)]
    first = past[0].type.dims[2] if past[0] is not None else 0
    k, v = appended(ctx, past[0], k), appended(ctx, past[1], v)
    mask = Mask()
    _padding(ctx, mask, 3, x.type.dims[0], k.type.dims[2])
    y, k, v = _finish(ctx, q, k, v, mask, 5, first)
    if len(ctx.outputs) < 2 or not ctx.outputs[1]:
        return (y,)
    both = [reshaped(ctx, t, (1, *t.type.dims)) for t in (k, v)]
    return (y, ctx.b.emit("concat", both, ConcatAttrs(0), hint=ctx.hint)[0])


def _unpacked(ctx: NodeContext, heads: int) -> tuple[Value, Value, Value]:
    """q, k, v [B, H, *, D] of MultiHeadAttention, the bias added."""
    q = ctx.operand(0)
    if q.type.rank == 5:  # [B, M, H, 3, D]
        parts = [sliced(ctx, q, 3, i, 1) for i in range(3)]
        parts = [reshaped(ctx, p, (*p.type.dims[:2], p.type.dims[2] * p.type.dims[4])) for p in parts]
    elif ctx.has(1) and ctx.type(1).rank == 5:  # [B, S, H, 2, D]
        pair = [sliced(ctx, ctx.operand(1), 3, i, 1) for i in range(2)]
        parts = [q, *(reshaped(ctx, p, (*p.type.dims[:2], p.type.dims[2] * p.type.dims[4])) for p in pair)]
    else:
        parts = [q, ctx.operand(1), ctx.operand(2)]
    if ctx.has(3):
        start, biased = 0, []
        for part in parts:
            if part.type.rank == 4:
                biased.append(part)
                continue
            width = part.type.dims[2]
            biased.append(ctx.op("add", part, sliced(ctx, ctx.operand(3), 0, start, width)))
            start += width
        parts = biased
    q, k, v = (split_heads(ctx, p, heads) for p in parts)
    return q, k, v


@importer("MultiHeadAttention", domain="com.microsoft")
def multi_head_attention(ctx: NodeContext) -> Sequence[Value]:
    """Output, and keys and values with the past prepended."""
    _refuse(ctx, "a shared buffer is", ctx.has(8), ctx.has(9))
    q, k, v = _unpacked(ctx, int(ctx.attr("num_heads", 0)))
    past = [ctx.operand(i) if ctx.has(i) else None for i in (6, 7)]
    first = past[0].type.dims[2] if past[0] is not None else 0
    k, v = appended(ctx, past[0], k), appended(ctx, past[1], v)
    mask = Mask()
    _padding(ctx, mask, 4, q.type.dims[0], k.type.dims[2])
    return _finish(ctx, q, k, v, mask, 5, first)


def _written(ctx: NodeContext, past: Value | None, new: Value, at: Value, capacity: int) -> Value:
    """[B, G, capacity, D]: the past with `new`[B, G, M, D] from row `at` i32[B, 1] on."""
    batch, groups, count, size = new.type.dims
    held = past.type.dims[2] if past is not None else 0
    if past is None or not held:
        base = ctx.b.const(np.zeros((batch, groups, capacity, size), new.type.dtype.numpy), "empty")
    else:
        none = (0, 0, 0, 0)
        base = past if held == capacity else ctx.op("pad", past, attrs=PadAttrs(none, (0, 0, capacity - held, 0), none))
    offsets = (np.arange(batch * groups) * capacity).reshape(batch, groups, 1) + np.arange(count)
    rows = ctx.op("add", reshaped(ctx, at, (batch, 1, 1)), ctx.b.const(offsets.astype(np.int32), "rows"))
    updates, total = batch * groups * count, batch * groups * capacity
    operands = (
        reshaped(ctx, base, (total, size)),
        reshaped(ctx, rows, (updates, 1)),
        reshaped(ctx, new, (updates, size)),
    )
    return reshaped(ctx, ctx.op("scatter_nd", *operands, attrs=ScatterNdAttrs()), base.type.dims)


@importer("GroupQueryAttention", domain="com.microsoft")
def group_query_attention(ctx: NodeContext) -> Sequence[Value]:
    """Output, present keys and values. Sequence b has seqlens_k[b] + 1 keys in total, the new ones last."""
    heads, groups = int(ctx.attr("num_heads", 0)), int(ctx.attr("kv_num_heads", 0))
    _refuse(ctx, "quantized caches, sinks and normalised heads are", *(ctx.has(i) for i in range(11, 16)))
    _refuse(ctx, "smooth softmax is", int(ctx.attr("smooth_softmax", 0)) > 0)
    if not ctx.attr("causal", 1):
        ctx.fail("only causal attention is supported", got="causal = 0", expected="causal = 1")
    q, k, v = _queries(ctx, heads, groups)
    queries, batch = q.type.dims[2], q.type.dims[0]
    past = [ctx.operand(i) if ctx.has(i) else None for i in (3, 4)]
    total = int(ctx.need_constant(6, "total_sequence_length").reshape(-1)[0])
    held = past[0].type.dims[2] if past[0] is not None else 0
    capacity = max(held, total)
    at = ctx.b.const(np.zeros((batch, 1), np.int32), "start")
    if queries != total:
        valid = reshaped(ctx, cast_to(ctx, ctx.operand(5), DType.I32), (batch, 1))
        at = ctx.op("add", valid, ctx.b.scalar(1 - queries, DType.I32))
    if ctx.attr("do_rotary", 0):
        steps = ctx.op("add", at, ctx.b.const(np.arange(queries, dtype=np.int32)[None], "steps"))
        positions = ctx.operand(9) if ctx.has(9) else steps
        cos, sin = (angles(ctx, ctx.operand(i), positions) for i in (7, 8))
        size, interleaved = 2 * cos.type.dims[3], bool(ctx.attr("rotary_interleaved", 0))
        q, k = (rotated(ctx, x, cos, sin, size, interleaved) for x in (q, k))
    k, v = (_written(ctx, p, x, at, capacity) for p, x in zip(past, (k, v), strict=True))
    mask = Mask()
    first = reshaped(ctx, at, (batch, 1, 1, 1))
    own = ctx.op("add", first, ctx.b.const(np.arange(queries, dtype=np.int32)[:, None], "queries"))
    distance = ctx.op("sub", ctx.b.const(np.arange(capacity, dtype=np.int32), "keys"), own)
    mask.allowed.append(ctx.op("le", distance, ctx.b.scalar(0, DType.I32)))
    window = int(ctx.attr("local_window_size", -1))
    if window > 0:
        mask.allowed.append(ctx.op("gt", distance, ctx.b.scalar(-window, DType.I32)))
    if ctx.has(10):
        add_mask(ctx, mask, ctx.operand(10), (*q.type.dims[:3], capacity), compute_dtype(q.type.dtype))
    y, _ = attend(ctx, q, k, v, mask, _scale(ctx, q.type.dims[3]), float(ctx.attr("softcap", 0.0)))
    return (merge_heads(ctx, y), k, v)


def _queries(ctx: NodeContext, heads: int, groups: int) -> tuple[Value, Value, Value]:
    """q[B, H, M, D], k and v[B, G, M, D], packed into one input or not."""
    if ctx.has(1):
        q, k, v = (split_heads(ctx, ctx.operand(i), heads if i == 0 else groups) for i in range(3))
        return q, k, v
    every = split_heads(ctx, ctx.operand(0), heads + 2 * groups)
    return (
        sliced(ctx, every, 1, 0, heads),
        sliced(ctx, every, 1, heads, groups),
        sliced(ctx, every, 1, heads + groups, groups),
    )
