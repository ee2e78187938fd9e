"""Standard Attention and RotaryEmbedding, and code shared with the attention ops of com.microsoft.

A Mask collects the restrictions on a query's keys: compile-time comparisons, run-time comparisons, and added biases.
Invariants: a single `attention` op has no other outputs; softcap and exposed scores are expanded into primitives. A
fully masked query yields zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, sliced, transposed
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import compute_dtype
from ppuc.ir.ops.movement import ConcatAttrs, GatherAttrs, PadAttrs
from ppuc.ir.ops.normalization import SoftmaxAttrs
from ppuc.ir.ops.view import ExpandAttrs
from ppuc.ir.types import DType, broadcast_shapes


@dataclass(slots=True)
class Mask:
    """The keys that a query sees: those that `known` (bool) and all of `allowed` (bool Values) permit, with `biases`
    (compute dtype) added to their scores. All broadcast to [B, H, M, S]. `hidden`: the value of masked scores."""

    known: np.ndarray | None = None
    allowed: list[Value] = field(default_factory=list)
    biases: list[Value] = field(default_factory=list)
    causal: bool = False
    hidden: float = -math.inf

    def restrict(self, allowed: np.ndarray) -> None:
        """Mask keys that `allowed` does not permit."""
        self.known = allowed if self.known is None else self.known & allowed

    def bias(self, ctx: NodeContext, dtype: DType) -> Value | None:
        """The sum of all restrictions, to be added to the scores."""
        allowed = list(self.allowed)
        if self.known is not None and not self.known.all():
            allowed.append(ctx.b.const(self.known, "mask"))
        total = None
        for bias in self.biases:
            total = bias if total is None else ctx.op("add", total, bias)
        if not allowed:
            return total
        both = allowed[0]
        for other in allowed[1:]:
            both = ctx.op("and", both, other)
        zero = total if total is not None else ctx.b.scalar(0, dtype)
        return ctx.op("select", both, zero, ctx.b.scalar(self.hidden, dtype))

    def may_hide_all(self) -> bool:
        """Whether some query may be fully masked."""
        if not math.isinf(self.hidden):
            return False
        hides = self.known is not None and not self.known.any(-1).all()
        return bool(self.allowed or self.biases) or hides


def split_heads(ctx: NodeContext, x: Value, heads: int) -> Value:
    """[B, M, H * D] -> [B, H, M, D]; four dimensions stay as they are."""
    if x.type.rank == 4:
        return x
    if x.type.rank != 3 or heads < 1 or x.type.dims[2] % heads:
        ctx.fail("the hidden size does not divide into heads", got=f"{x.type}, {heads} heads")
    batch, length, hidden = x.type.dims
    return transposed(ctx, reshaped(ctx, x, (batch, length, heads, hidden // heads)), (0, 2, 1, 3))


def merge_heads(ctx: NodeContext, x: Value) -> Value:
    """[B, H, M, D] -> [B, M, H * D]."""
    batch, heads, length, size = x.type.dims
    return reshaped(ctx, transposed(ctx, x, (0, 2, 1, 3)), (batch, length, heads * size))


def appended(ctx: NodeContext, past: Value | None, new: Value) -> Value:
    """[B, G, P, D] and [B, G, S, D] -> [B, G, P + S, D]."""
    if past is None or not past.type.dims[2]:
        return new
    return ctx.b.emit("concat", [past, new], ConcatAttrs(2), hint=ctx.hint)[0]


def frontier(queries: int, keys: int, first: int, left: int = -1, right: int = -1) -> np.ndarray:
    """bool[M, S]: query m is at key m + `first` and sees `left` keys before it and `right` after it (-1: all)."""
    distance = np.arange(keys) - (np.arange(queries)[:, None] + first)
    return ((distance >= -left) | (left < 0)) & ((distance <= right) | (right < 0))


def attend(
    ctx: NodeContext, q: Value, k: Value, v: Value, mask: Mask, scale: float, softcap: float = 0.0, expose: int = -1
) -> tuple[Value, Value | None]:
    """y[B, H, M, E] of q[B, H, M, D], k[B, G, S, D], v[B, G, S, E], and the scores that `expose` names: 0 scaled
    products, 1 after softcap, 2 with the bias, 3 the weights (-1: none)."""
    work = compute_dtype(q.type.dtype)
    bias = mask.bias(ctx, work)
    if not softcap and expose < 0:
        rest = [] if bias is None else [bias]
        y, scores = ctx.op("attention", q, k, v, *rest, attrs=AttentionAttrs(scale, mask.causal)), None
    else:
        y, scores = _written_out(ctx, (q, k, v), mask, bias, scale, softcap, expose)
    if bias is not None and mask.may_hide_all():
        seen = ctx.op("gt", c.reduce(ctx.b, "max", bias, (bias.type.rank - 1,)), ctx.b.scalar(-np.inf, work))
        y = ctx.op("select", seen, y, ctx.scalar_like(0, y))
        if scores is not None and expose == 3:
            scores = ctx.op("select", seen, scores, ctx.scalar_like(0, scores))
    return y, scores


def _written_out(
    ctx: NodeContext,
    operands: tuple[Value, Value, Value],
    mask: Mask,
    bias: Value | None,
    scale: float,
    softcap: float,
    expose: int,
) -> tuple[Value, Value]:
    q, k, v = operands
    dtype, work = q.type.dtype, compute_dtype(q.type.dtype)
    k, v = (_repeated(ctx, x, q.type.dims[1]) for x in (k, v))
    out = None if work is dtype else work
    products = ctx.op("matmul", q, k, attrs=MatmulAttrs(transpose_b=True, out=out))
    scores = [ctx.op("mul", products, ctx.b.scalar(scale, work))]
    capped = scores[0]
    if softcap:
        capped = ctx.op("tanh", ctx.op("div", capped, ctx.b.scalar(softcap, work)))
        capped = ctx.op("mul", capped, ctx.b.scalar(softcap, work))
    biased = capped if bias is None else ctx.op("add", capped, bias)
    if mask.causal:
        m, s = q.type.dims[2], k.type.dims[2]
        visible = ctx.b.const(frontier(m, s, s - m, right=0), "causal")
        biased = ctx.op("select", visible, biased, ctx.b.scalar(-np.inf, work))
    weights = ctx.op("softmax", biased, attrs=SoftmaxAttrs(3))
    scores += [capped, biased, weights]
    y = ctx.op("matmul", cast_to(ctx, weights, dtype), v)
    return y, cast_to(ctx, scores[max(expose, 0)], dtype)


def _repeated(ctx: NodeContext, x: Value, heads: int) -> Value:
    """[B, G, S, D] -> [B, H, S, D], each head for as many query heads."""
    batch, groups, length, size = x.type.dims
    if groups == heads:
        return x
    wide = (batch, groups, heads // groups, length, size)
    spread = ctx.op("expand", reshaped(ctx, x, (batch, groups, 1, length, size)), attrs=ExpandAttrs(wide))
    return reshaped(ctx, spread, (batch, heads, length, size))


def add_mask(ctx: NodeContext, mask: Mask, given: Value, shape: Sequence[int], work: DType) -> None:
    """Add a bool mask of allowed keys, or a bias; if it covers fewer keys, the rest are masked."""
    missing = shape[3] - given.type.dims[-1] if given.type.rank else 0
    flag = given.type.dtype is DType.BOOL
    if missing > 0 and given.type.dims[-1] != 1:
        none, high = (0,) * given.type.rank, (*(0,) * (given.type.rank - 1), missing)
        given = ctx.op("pad", given, attrs=PadAttrs(none, high, none, 0.0 if flag else -math.inf))
    try:
        fits = broadcast_shapes(tuple(shape), given.type.dims) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        ctx.fail("the mask does not broadcast to the scores", got=given.type, expected=f"{list(shape)}")
    known = ctx.constants(given) if flag else None
    if known is not None:
        mask.restrict(known)
    elif flag:
        mask.allowed.append(given)
    else:
        mask.biases.append(cast_to(ctx, given, work))


def _lengths_mask(ctx: NodeContext, mask: Mask, queries: int, keys: int, left: int, right: int) -> None:
    """Valid keys per batch: those from a length on are padding, and queries are the last of the valid ones."""
    lengths = reshaped(ctx, cast_to(ctx, ctx.operand(6), DType.I32), (ctx.type(6).elements, 1, 1, 1))
    keys_at = ctx.b.const(np.arange(keys, dtype=np.int32), "keys")
    mask.allowed.append(ctx.op("lt", keys_at, lengths))
    if left < 0 and right < 0:
        return
    place = np.arange(queries, dtype=np.int32)[:, None] - queries
    at = ctx.op("add", lengths, ctx.b.const(place, "queries"))
    distance = ctx.op("sub", keys_at, at)
    if right >= 0:
        mask.allowed.append(ctx.op("le", distance, ctx.b.scalar(right, DType.I32)))
    if left >= 0:
        mask.allowed.append(ctx.op("ge", distance, ctx.b.scalar(-left, DType.I32)))


@importer("Attention")
def attention(ctx: NodeContext) -> Sequence[Value]:
    """Y, the keys and values with the past prepended, and scores."""
    flat = ctx.type(0).rank == 3
    heads, groups = (int(ctx.attr(n, 0)) for n in ("q_num_heads", "kv_num_heads"))
    q, k, v = (split_heads(ctx, ctx.operand(i), heads if i == 0 else groups) for i in range(3))
    past = [ctx.operand(i) if ctx.has(i) else None for i in (4, 5)]
    k, v = appended(ctx, past[0], k), appended(ctx, past[1], v)
    queries, keys, work = q.type.dims[2], k.type.dims[2], compute_dtype(q.type.dtype)
    mask = Mask()
    if ctx.has(3):
        add_mask(ctx, mask, ctx.operand(3), (*q.type.dims[:3], keys), work)
    left, right = int(ctx.attr("left_window_size", -1)), int(ctx.attr("right_window_size", -1))
    if ctx.attr("is_causal", 0):
        right = 0 if right < 0 else min(right, 0)
    if ctx.has(6):
        _lengths_mask(ctx, mask, queries, keys, left, right)
    elif left >= 0 or right >= 0:
        first = past[0].type.dims[2] if past[0] is not None else 0
        mask.causal = left < 0 and right == 0 and first + queries == keys
        if not mask.causal:
            mask.restrict(frontier(queries, keys, first, left, right))
    precision = int(ctx.attr("softmax_precision", 1))
    if precision not in (1, 10, 16):
        ctx.fail("the softmax can only be computed in float32", got=f"softmax_precision = {precision}", expected="1")
    scale = float(ctx.attr("scale", 1 / math.sqrt(q.type.dims[3])))
    exposed = len(ctx.outputs) > 3 and bool(ctx.outputs[3])
    mode = int(ctx.attr("qk_matmul_output_mode", 0)) if exposed else -1
    y, scores = attend(ctx, q, k, v, mask, scale, float(ctx.attr("softcap", 0.0)), mode)
    return (merge_heads(ctx, y) if flat else y, k, v, *([scores] if scores is not None and exposed else []))


def rotated(ctx: NodeContext, x: Value, cos: Value, sin: Value, size: int, interleaved: bool) -> Value:
    """x[B, H, M, D] with pairs among its first `size` elements rotated by angles [B or 1, 1, M, size / 2]."""
    depth, half = x.type.dims[3], size // 2
    if size % 2 or size > depth or cos.type.dims[3] != half:
        ctx.fail("the rotated size does not fit heads and caches", got=f"{size} of {depth}, cache {cos.type}")
    work = compute_dtype(x.type.dtype)
    wide = cast_to(ctx, sliced(ctx, x, 3, 0, size), work)
    step, second = (2, 1) if interleaved else (1, half)
    real, imaginary = sliced(ctx, wide, 3, 0, half, step), sliced(ctx, wide, 3, second, half, step)
    cos, sin = cast_to(ctx, cos, work), cast_to(ctx, sin, work)
    moved = [
        ctx.op("sub", ctx.op("mul", real, cos), ctx.op("mul", imaginary, sin)),
        ctx.op("add", ctx.op("mul", real, sin), ctx.op("mul", imaginary, cos)),
    ]
    if interleaved:
        apart = [reshaped(ctx, t, (*t.type.dims, 1)) for t in moved]
        joined = reshaped(ctx, ctx.b.emit("concat", apart, ConcatAttrs(4), hint=ctx.hint)[0], wide.type.dims)
    else:
        joined = ctx.b.emit("concat", moved, ConcatAttrs(3), hint=ctx.hint)[0]
    joined = cast_to(ctx, joined, x.type.dtype)
    if size == depth:
        return joined
    return ctx.b.emit("concat", [joined, sliced(ctx, x, 3, size, depth - size)], ConcatAttrs(3), hint=ctx.hint)[0]


def angles(ctx: NodeContext, cache: Value, positions: Value | None) -> Value:
    """[B, 1, M, size / 2]: rows of `cache` at positions [B, M]; without these the cache is [B, M, size / 2] itself."""
    rows = cache if positions is None else ctx.op("gather", cache, positions, attrs=GatherAttrs(0))
    if rows.type.rank != 3:
        ctx.fail("the caches do not fit the positions", got=rows.type, expected="[batch, length, half the size]")
    return reshaped(ctx, rows, (rows.type.dims[0], 1, *rows.type.dims[1:]))


@importer("RotaryEmbedding")
def rotary_embedding(ctx: NodeContext) -> Sequence[Value]:
    x, positions = ctx.operand(0), ctx.operand(3) if ctx.has(3) else None
    heads = split_heads(ctx, x, int(ctx.attr("num_heads", 0)))
    cos, sin = (angles(ctx, ctx.operand(i), positions) for i in (1, 2))
    size = int(ctx.attr("rotary_embedding_dim", 0)) or heads.type.dims[3]
    y = rotated(ctx, heads, cos, sin, size, bool(ctx.attr("interleaved", 0)))
    return (merge_heads(ctx, y) if x.type.rank == 3 else y,)


@importer("RotaryEmbedding", domain="com.microsoft")
def rotary_embedding_of_ort(ctx: NodeContext) -> Sequence[Value]:
    """Positions are [B, M], or one number that all sequences start from."""
    x = ctx.operand(0)
    heads = int(ctx.attr("num_heads", 0))
    size = int(ctx.attr("rotary_embedding_dim", 0))
    if x.type.rank == 3 and not size:
        size = 2 * ctx.shape(2)[1]
    heads = heads or x.type.dims[2] // max(size, 1) if x.type.rank == 3 else heads
    split = split_heads(ctx, x, heads)
    positions = ctx.operand(1)
    if positions.type.elements == 1 and positions.type.rank < 2:
        steps = ctx.b.const(np.arange(split.type.dims[2], dtype=positions.type.dtype.numpy)[None], "steps")
        positions = ctx.op("add", reshaped(ctx, positions, ()), steps)
    if ctx.attr("is_packed_batching", 0) or float(ctx.attr("scale", 1.0)) != 1:
        ctx.fail("packed batches and scaled angles are not supported")
    cos, sin = (angles(ctx, ctx.operand(i), positions) for i in (2, 3))
    y = rotated(ctx, split, cos, sin, size or split.type.dims[3], bool(ctx.attr("interleaved", 0)))
    return (merge_heads(ctx, y) if x.type.rank == 3 else y,)
