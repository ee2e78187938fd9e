"""Recognises attention written out as matmuls and a softmax.

Matching walks backwards from the softmax to the score matmul; ops between them must be scales, masks, casts or
reshapes. The matched op computes the same values up to f32 reassociation (the scale is applied once, to the scores)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.locs import listed
from ppuc.compiler.passes.normalise.fold import fold_constants
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import Rules, Walk, to_fixpoint, with_graph
from ppuc.compiler.passes.rules.attention import Heads, NoMatch, Scores, key_heads, read_scores, read_weights
from ppuc.compiler.passes.rules.constants import identity_of
from ppuc.compiler.passes.rules.views import reshaped
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import compute_dtype
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.targets.description import Target

MASKED = -1e4
"""A score at or below this has weight zero next to any visible score."""
_MASK_ELEMENTS = 1 << 24
"""Larger constant masks are not examined."""


class Attentions:
    """The rule that matches attention, its matches, and its near misses (products fed by a softmax)."""

    def __init__(self) -> None:
        self.remarks = listener()
        self.missed: dict[str, tuple[Op, str]] = {}
        """Result of a product -> the product, and why it did not match."""

    def attention(self, w: Walk, op: Op) -> Value | None:
        """matmul(softmax(matmul(q, k^T) * scale + mask), v) -> attention(q, k, v, mask)."""
        attrs = op.attrs
        assert isinstance(attrs, MatmulAttrs)
        try:
            if attrs.transpose_a or attrs.out is not None or not op.result.type.dtype.is_float:
                raise NoMatch("the weights are transposed, or the product is not of floats")
            weights = read_weights(w, op.operands[0])
            scores = read_scores(w, weights.softmax.operands[0])
            if any(t.rank < 2 for t in (scores.q.type, scores.k.type)):
                raise NoMatch("queries or keys are vectors")
            heads = Heads.of((*weights.leads, *scores.leads))
            v = (op.operands[1], attrs.transpose_b)
            found = _emit(w, op, heads, scores, v, (*weights.ops, *scores.ops), weights.guarded)
        except NoMatch as why:
            if self.remarks is not None and _between_products(w, op):
                self.missed[op.result.name] = op, str(why)
            return None
        self.missed.pop(op.result.name, None)
        if self.remarks is not None:
            self.remarks.applied(
                "attention", op.result.name, listed(w.builder.loc), heads=heads.heads, batch=heads.batch
            )
        return found

    def remark_missed(self, graph: Graph) -> None:
        """Remarks on the near misses that `graph` still contains."""
        if self.remarks is not None:
            left = {op.results[0].name for op in graph.ops}
            for name, (op, why) in self.missed.items():
                if name in left:
                    self.remarks.missed("not-attention", name, listed(op.loc), why)


DEPTH = 8
"""Maximum ops between the products and the softmax for the three to count as a near miss."""


def _between_products(w: Walk, op: Op) -> bool:
    """Whether the left operand of product `op` depends on a nearby softmax of a product."""
    softmax = _behind(w, op.operands[0], "softmax")
    return softmax is not None and _behind(w, softmax.operands[0], "matmul") is not None


def _behind(w: Walk, value: Value, name: str) -> Op | None:
    """The op called `name` among the nearest producers of `value`."""
    values = [value]
    for _ in range(DEPTH):
        ops = [op for v in values if (op := w.producer(v)) is not None and op.name != "const"]
        found = next((op for op in ops if op.name == name), None)
        if found is not None or not ops:
            return found
        values = [v for op in ops if op.name not in ("matmul", "conv") for v in op.operands]
    return None


def _emit(
    w: Walk, op: Op, heads: Heads, scores: Scores, v: tuple[Value, bool], ops: tuple[Op, ...], guarded: bool
) -> Value:
    if not op.result.type.dtype is scores.q.type.dtype is scores.k.type.dtype is v[0].type.dtype:
        raise NoMatch("queries, keys, values and result differ in type")
    masks = [heads.mask(w, term, compute_dtype(op.result.type.dtype)) for term in scores.masks]
    q = heads.operand(w, scores.q, scores.transpose_q)
    key = key_heads(w, heads, scores.k, scores.transpose_k)
    value = key_heads(w, heads, *v)
    if q is None or key is None or value is None or key.type.dims[1] != value.type.dims[1]:
        raise NoMatch("queries, keys and values do not have the same heads")
    if None in masks:
        raise NoMatch("a mask's heads do not match the scores'")
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
    """Make fully masked rows of the result 0 instead of NaN."""
    best = w.emit("reduce", mask, attrs=ReduceAttrs("max", (mask.type.rank - 1,), True))
    blind = w.emit("eq", best, w.scalar(-np.inf, mask.type.dtype))
    return w.emit("select", blind, w.scalar(0, result.type.dtype), result)


class ConstantMasks:
    """The rule on constant masks. Layers often share one: it is examined once."""

    def __init__(self) -> None:
        self._shapes: dict[object, str] = {}

    def constant_mask(self, w: Walk, op: Op) -> Value | None:
        """attention with a constant mask of zeros -> no mask; with zeros below the diagonal and hidden scores above ->
        causal."""
        if len(op.operands) != 4 or (resource := w.resource(op.operands[3])) is None:
            return None
        if resource.type.elements > _MASK_ELEMENTS or resource.type.rank < 2:
            return None
        attrs = op.attrs
        assert isinstance(attrs, AttentionAttrs)
        key = identity_of(resource)
        if key not in self._shapes:
            self._shapes[key] = _shape_of_mask(resource.array().astype(np.float32))
        if self._shapes[key] == "zeros":
            return w.emit("attention", *op.operands[:3], attrs=attrs)
        scores = (op.operands[0].type.dims[2], op.operands[1].type.dims[2])
        if self._shapes[key] != "causal" or resource.type.dims[-2:] != scores or attrs.causal:
            return None
        return w.emit("attention", *op.operands[:3], attrs=replace(attrs, causal=True))


def _shape_of_mask(mask: np.ndarray) -> str:
    """What a mask of rank 2 or more hides: nothing ("zeros"), what lies above the diagonal that ends in the last corner
    ("causal"), or "other"."""
    if not mask.any():
        return "zeros"
    m, s = mask.shape[-2:]
    visible = np.tri(m, s, s - m, dtype=np.bool_)
    if s < m or (mask[..., visible] != 0).any() or (mask[..., ~visible] > MASKED).any():
        return "other"
    return "causal"


@dataclass(frozen=True)
class MatchAttention(Pass):
    """Match attention written out as matmuls and a softmax.

    %s = add(mul(matmul(%q, %k) {transpose_b = true}, 0.125), %mask)
    %y = matmul(softmax(%s), %v)                    ->      %y = attention(%q, %k, %v, %mask) {scale = 0.125}
    """

    name: ClassVar[str] = "match-attention"

    def run(self, module: Module, target: Target) -> Module:
        """The module with matched patterns as `attention` ops."""
        found = Attentions()
        rules: Rules = {
            "matmul": (found.attention,),
            "attention": (ConstantMasks().constant_mask,),
            "*": (fold_constants,),
        }
        graph = to_fixpoint(module.graph, rules)
        found.remark_missed(graph)
        return with_graph(module, graph)
