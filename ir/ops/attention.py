"""Scaled dot-product attention, whole and split along keys, and its decomposition.

Invariants: scores, mask and softmax are f32 (f64 for f64 operands) whatever the operands' dtype is; the weights are
rounded to the operands' dtype before the product with v. Weights of 8-bit floats are scaled by PEAK to use the middle
of the format's range. Grouped heads: query head h reads key/value head h // (H / G).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import FLOATS, compute_dtype, convert
from ppuc.ir.ops.view import ExpandAttrs
from ppuc.ir.types import DType, TensorType, broadcast_shapes

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


PEAK = {DType.F8E4M3: 256.0, DType.F8E5M2: 32768.0}
"""The scale of 8-bit weights: the largest power of two of the format, below which most of its numbers lie."""


@dataclass(frozen=True, slots=True)
class AttentionAttrs(Attrs):
    """Scores are multiplied by `scale`. With `causal`, query m of M sees the keys up to m + S - M of S: the last query
    sees all of them. `out` is the result's type if it differs from that of q, k and v."""

    scale: float
    causal: bool = False
    out: DType | None = None


@dataclass(frozen=True, slots=True)
class AttentionPartsAttrs(Attrs):
    """As AttentionAttrs; part p has keys `p * keys` to `(p + 1) * keys`, cut off at the end."""

    scale: float
    keys: int
    causal: bool = False

    @property
    def whole(self) -> AttentionAttrs:
        """The attributes of the whole attention."""
        return AttentionAttrs(self.scale, self.causal)


def _infer(attrs: AttentionAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if not 3 <= len(types) <= 4:
        raise ValueError(f"attention takes 3 to 4 operands (got {len(types)})")
    q, k, v = types[:3]
    if any(t.rank != 4 or t.dtype is not q.dtype for t in (q, k, v)) or q.dtype not in FLOATS:
        raise ValueError(f"q, k and v of attention must be rank-4 tensors of one float type (got {q}, {k}, {v})")
    (batch, heads, m, d), (_, groups, s, _), width = q.dims, k.dims, v.dims[3]
    if k.dims != (batch, groups, s, d) or v.dims[:3] != (batch, groups, s):
        raise ValueError(f"q[B, H, M, D], k[B, G, S, D] and v[B, G, S, E] do not fit (got {q}, {k}, {v})")
    if groups == 0 or heads % groups:
        raise ValueError(f"key heads must divide query heads (got {groups} and {heads})")
    if attrs.causal and s < m:
        raise ValueError(f"causal attention needs as many keys as queries or more (got {s} and {m})")
    if len(types) == 4:
        scores = TensorType(compute_dtype(q.dtype), (batch, heads, m, s))
        if types[3].dtype is not scores.dtype or broadcast_shapes(scores.dims, types[3].dims) != scores.dims:
            raise ValueError(f"the mask of attention must broadcast to {scores} (got {types[3]})")
    if attrs.out not in (None, compute_dtype(q.dtype)):
        raise ValueError(f"attention on {q.dtype} gives that or {compute_dtype(q.dtype)} (got {attrs.out})")
    return (TensorType(attrs.out or q.dtype, (batch, heads, m, width)),)


def _reference(
    attrs: AttentionAttrs, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    dtype = DType.of(q.dtype)
    work = compute_dtype(dtype).numpy
    repeat = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(work), repeat, axis=1) for x in (k, v))
    with np.errstate(all="ignore"):
        scores = np.matmul(q.astype(work), np.swapaxes(k, 2, 3)) * work.type(attrs.scale)
        if mask is not None:
            scores = scores + mask
        if attrs.causal:
            scores = np.where(_visible(q.shape[2], k.shape[2]), scores, work.type(-np.inf))
        peak = work.type(PEAK.get(dtype, 1.0))
        weights = convert(c.softmax_array(scores, 3) * peak, dtype).astype(work)
        return (convert(np.matmul(weights, v) / peak, attrs.out or dtype),)


def _visible(m: int, s: int) -> np.ndarray:
    """bool[m, s]: the keys that each query of causal attention sees."""
    return np.tri(m, s, s - m, dtype=np.bool_)


def _repeat_heads(b: Builder, x: Value, repeat: int) -> Value:
    """x[B, G, S, D] -> [B, G * repeat, S, D], each head `repeat` times in a row."""
    batch, groups, s, d = x.type.dims
    if repeat == 1:
        return x
    spread = b("expand", c.reshape(b, x, (batch, groups, 1, s, d)), attrs=ExpandAttrs((batch, groups, repeat, s, d)))
    return c.reshape(b, spread, (batch, groups * repeat, s, d))


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    q, k, v = op.operands[:3]
    dtype, work = q.type.dtype, compute_dtype(q.type.dtype)
    repeat = q.type.dims[1] // k.type.dims[1]
    scores = b("matmul", q, _repeat_heads(b, k, repeat), attrs=MatmulAttrs(transpose_b=True, out=_wider(work, dtype)))
    scores = b("mul", scores, b.scalar(attrs.scale, work))
    if len(op.operands) == 4:
        scores = b("add", scores, op.operands[3])
    if attrs.causal:
        visible = b.const(_visible(q.type.dims[2], k.type.dims[2]), "causal")
        scores = b("select", visible, scores, b.scalar(-np.inf, work))
    weights, v = c.softmax(b, scores, 3), _repeat_heads(b, v, repeat)
    if dtype not in PEAK:
        return (b("matmul", c.cast(b, weights, dtype), v, attrs=MatmulAttrs(out=attrs.out)),)
    weights = c.cast(b, b("mul", weights, b.scalar(PEAK[dtype], work)), dtype)
    total = b("matmul", weights, v, attrs=MatmulAttrs(out=work))
    return (c.cast(b, b("mul", total, b.scalar(1 / PEAK[dtype], work)), attrs.out or dtype),)


def _wider(work: DType, dtype: DType) -> DType | None:
    return None if work is dtype else work


LOWEST = float(np.finfo(np.float32).min)
"""The maximum of a fully masked row: finite, so that the weight exp(-inf - LOWEST) of a masked key is 0, not NaN."""


def _infer_parts(attrs: AttentionPartsAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (whole,) = _infer(attrs.whole, types)
    s = types[1].dims[2]
    if not 0 < attrs.keys <= s:
        raise ValueError(f"parts have 1 to {s} keys (got {attrs.keys})")
    *lead, width = whole.dims
    return (TensorType(compute_dtype(whole.dtype), (-(-s // attrs.keys), *lead, width + 2)),)


def _reference_parts(
    attrs: AttentionPartsAttrs, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    dtype = DType.of(q.dtype)
    work = compute_dtype(dtype).numpy
    repeat = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(work), repeat, axis=1) for x in (k, v))
    scores = np.matmul(q.astype(work), np.swapaxes(k, 2, 3)) * work.type(attrs.scale)
    if mask is not None:
        scores = scores + mask
    if attrs.causal:
        scores = np.where(_visible(q.shape[2], k.shape[2]), scores, work.type(-np.inf))
    found = []
    for at in range(0, k.shape[2], attrs.keys):
        part = scores[..., at : at + attrs.keys]
        high = np.maximum(part.max(3, keepdims=True), work.type(LOWEST))
        weights = np.exp(part - high) * work.type(PEAK.get(dtype, 1.0))
        values = np.matmul(convert(weights, dtype).astype(work), v[:, :, at : at + attrs.keys])
        found.append(np.concatenate([values, high, weights.sum(3, keepdims=True)], axis=3))
    return (np.stack(found).astype(work),)


register(
    OpDef(
        name="attention_parts",
        formula="result[p] = (e . v, max, sum of e), e = exp(q . k^T * scale + mask - max) * peak, over keys of part p",
        kind=Kind.COMPOSITE,
        operands="q, k, v, mask?",
        attrs=AttentionPartsAttrs,
        infer=_infer_parts,
        reference=_reference_parts,
    )
)
register(
    OpDef(
        name="attention",
        formula="result = softmax(q . k^T * scale + mask) . v",
        kind=Kind.COMPOSITE,
        operands="q, k, v, mask?",
        attrs=AttentionAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
