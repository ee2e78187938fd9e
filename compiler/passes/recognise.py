"""Attention written out as matmuls and a softmax, found again.

Everything between the score matmul and the softmax is a scale, a mask or a change of type or shape; it is read from the
softmax upward. The found op computes the same values up to f32 reassociation (the scale is applied to the scores at
once)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.fold import fold_constants
from ppuc.compiler.passes.graph_attention import Heads, Scores, key_heads, read_scores, read_weights
from ppuc.compiler.passes.graph_views import reshaped
from ppuc.compiler.passes.graph_walk import Rules, Walk, to_fixpoint, with_graph
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import compute_dtype
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.targets.description import Target

MASKED = -1e4
"""A score of this or less has weight zero beside any visible one."""
_MASK_ELEMENTS = 1 << 24
"""Constant masks beyond this size are not examined."""


def attention(w: Walk, op: Op) -> Value | None:
    """matmul(softmax(matmul(q, k^T) * scale + mask), v) -> attention(q, k, v, mask)."""
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs)
    if attrs.transpose_a or attrs.out is not None or not op.result.type.dtype.is_float:
        return None
    weights = read_weights(w, op.operands[0])
    scores = None if weights is None else read_scores(w, weights.softmax.operands[0])
    if weights is None or scores is None or any(t.rank < 2 for t in (scores.q.type, scores.k.type)):
        return None
    heads = Heads.of((*weights.leads, *scores.leads))
    v = (op.operands[1], attrs.transpose_b)
    return _emit(w, op, heads, scores, v, (*weights.ops, *scores.ops), weights.guarded) if heads is not None else None


def _emit(
    w: Walk, op: Op, heads: Heads, scores: Scores, v: tuple[Value, bool], ops: tuple[Op, ...], guarded: bool
) -> Value | None:
    if not op.result.type.dtype is scores.q.type.dtype is scores.k.type.dtype is v[0].type.dtype:
        return None
    masks = [heads.mask(w, term, compute_dtype(op.result.type.dtype)) for term in scores.masks]
    q = heads.operand(w, scores.q, scores.transpose_q)
    key = key_heads(w, heads, scores.k, scores.transpose_k)
    value = key_heads(w, heads, *v)
    if q is None or key is None or value is None or None in masks or key.type.dims[1] != value.type.dims[1]:
        return None
    w.absorb(*ops)
    mask: Value | None = None
    for term in masks:
        assert term is not None
        mask = term if mask is None else w.emit("add", mask, term)
    operands = (q, key, value) if mask is None else (q, key, value, mask)
    result = w.emit("attention", *operands, attrs=AttentionAttrs(scores.scale))
    if guarded and mask is not None:
        result = _zero_masked_rows(w, result, mask)
    return reshaped(w, result, op.result.type.dims)


def _zero_masked_rows(w: Walk, result: Value, mask: Value) -> Value:
    """Rows of the result that see no key at all are 0, not NaN."""
    best = w.emit("reduce", mask, attrs=ReduceAttrs("max", (mask.type.rank - 1,), True))
    blind = w.emit("eq", best, w.scalar(-np.inf, mask.type.dtype))
    return w.emit("select", blind, w.scalar(0, result.type.dtype), result)


def constant_mask(w: Walk, op: Op) -> Value | None:
    """attention with a constant mask that is all zeros, or zeros below the diagonal and masked above -> none, or
    causal."""
    if len(op.operands) != 4 or (resource := w.resource(op.operands[3])) is None:
        return None
    if resource.type.elements > _MASK_ELEMENTS or resource.type.rank < 2:
        return None
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    mask = resource.array().astype(np.float32)
    if not mask.any():
        return w.emit("attention", *op.operands[:3], attrs=attrs)
    m, s = op.operands[0].type.dims[2], op.operands[1].type.dims[2]
    if mask.shape[-2:] != (m, s) or s < m or attrs.causal:
        return None
    visible = np.tri(m, s, s - m, dtype=np.bool_)
    if (mask[..., visible] != 0).any() or (mask[..., ~visible] > MASKED).any():
        return None
    return w.emit("attention", *op.operands[:3], attrs=replace(attrs, causal=True))


RULES: Rules = {"matmul": (attention,), "attention": (constant_mask,), "*": (fold_constants,)}


@dataclass(frozen=True)
class Recognise:
    """Find attention in its parts.

    %s = add(mul(matmul(%q, %k) {transpose_b = true}, 0.125), %mask)
    %y = matmul(softmax(%s), %v)                    ->      %y = attention(%q, %k, %v, %mask) {scale = 0.125}
    """

    name: ClassVar[str] = "recognise"

    def run(self, module: Module, target: Target) -> Module:
        """The module with its attention patterns as `attention` ops."""
        return with_graph(module, to_fixpoint(module.graph, RULES))
