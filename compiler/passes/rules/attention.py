"""Matches attention backwards: from the weights to the softmax, to the scores, to the heads.

A level is the shape of the scores at one point of the chain; its lead is the dimensions before the last two. Reshapes
between levels only regroup leads, so the same heads can be (B, H) at one level and (B * H) at the next.

A mismatch raises NoMatch with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ppuc.compiler.passes.rewriter import Walk
from ppuc.compiler.passes.rules.views import reshaped, transposed
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import GatherAttrs
from ppuc.ir.ops.normalization import SoftmaxAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.scaling import moderate
from ppuc.ir.types import DType

Lead = tuple[int, ...]

HIDDEN = -1e30
"""A finite mask value that stands for a hidden score: adding any score to it leaves it unchanged in f32."""
_NEGLIGIBLE = -1e4


class NoMatch(Exception):  # noqa: N818 - an outcome of looking, not an error
    """The pattern does not match attention, for the reason given."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The softmax that feeds the left operand of the last matmul, the ops between (softmax included), and whether a
    select replaces NaN weights with zeros."""

    softmax: Op
    ops: tuple[Op, ...]
    leads: tuple[Lead, ...]
    guarded: bool


@dataclass(frozen=True, slots=True)
class Mask:
    """A term of the scores: `value` times `scale`, or, when `hidden` is given, `hidden` where the condition `value` is
    `when` and 0 elsewhere. `lead` is that of its level."""

    value: Value
    lead: Lead
    scale: float = 1.0
    hidden: float | None = None
    when: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """`q . k^T * scale + masks`; the flags say that an operand is stored with its last two dimensions swapped."""

    q: Value
    k: Value
    transpose_q: bool
    transpose_k: bool
    scale: float
    masks: tuple[Mask, ...] = ()
    ops: tuple[Op, ...] = ()
    leads: tuple[Lead, ...] = field(default=())


def _lead(value: Value) -> Lead:
    return value.type.dims[:-2]


def _regroups_lead(op: Op) -> bool:
    if op.name != "reshape":
        return False
    x, y = op.operands[0].type, op.result.type
    return x.rank >= 2 and y.rank >= 2 and x.dims[-2:] == y.dims[-2:]


def _passes_through(op: Op) -> bool:
    """A cast between floats or a reshape of leading dimensions."""
    return op.operands[0].type.dtype.is_float if op.name == "cast" else _regroups_lead(op)


def read_weights(w: Walk, value: Value) -> Weights:
    """Find the softmax over the last dimension that feeds `value`. Raises NoMatch."""
    ops: list[Op] = []
    leads = [_lead(value)]
    guarded = False
    op = _sole(w, value, "weights")
    while True:
        ops.append(op)
        if op.name == "softmax":
            assert isinstance(op.attrs, SoftmaxAttrs)
            if op.attrs.axis != op.result.type.rank - 1:
                raise NoMatch("the softmax does not run along the last dimension")
            return Weights(op, tuple(ops), tuple(leads), guarded)
        if op.name == "select":
            op = _nan_guarded(w, op)
            guarded = True
            continue
        if not _passes_through(op):
            raise NoMatch(f"'{op.name}' lies between the softmax and the product with the values")
        leads.append(_lead(op.operands[0]))
        op = _sole(w, op.operands[0], "weights")


def _sole(w: Walk, value: Value, what: str) -> Op:
    """The producer of `value`, which must have no other reader. Raises NoMatch."""
    op = w.sole(value)
    if op is None:
        computed = w.producer(value) is not None
        raise NoMatch(f"the {what} have other readers" if computed else f"the {what} are an input")
    return op


def _nan_guarded(w: Walk, op: Op) -> Op:
    """The softmax p of select(isnan(p), 0, p), without other readers. Raises NoMatch."""
    condition, zero, p = op.operands
    test, softmax = w.sole(condition, "isnan"), w.producer(p, "softmax")
    if test is None or test.operands[0] != p or w.number(zero) != 0 or w.uses(p) != 2 or softmax is None:
        raise NoMatch("'select' changes the weights")
    return softmax


def read_scores(w: Walk, value: Value, after: float = 1.0) -> Scores:
    """Read the chain of scores that ends in `value`; the softmax reads them times `after`. Raises NoMatch."""
    op = _sole(w, value, "scores")
    if value.type.rank < 2:
        raise NoMatch("the scores are not matrices")
    found = _read_op(w, op, value, after)
    return replace(found, ops=(*found.ops, op), leads=(*found.leads, _lead(value)))


def _read_op(w: Walk, op: Op, value: Value, after: float) -> Scores:
    if op.name == "matmul":
        return _read_matmul(w, op, after)
    if _passes_through(op):
        return read_scores(w, op.operands[0], after)
    if op.name == "select":
        return _read_select(w, op, after)
    if op.name == "add":
        return _read_sum(w, op, value, after)
    factor = _factor(w, op)
    if factor is None:
        raise NoMatch(f"'{op.name}' lies between the product and the softmax")
    return read_scores(w, op.operands[0], after * factor)


def _read_sum(w: Walk, op: Op, value: Value, after: float) -> Scores:
    """Scores and a mask, in either order."""
    why = NoMatch("a term of the scores is broadcast")
    for term, mask in (op.operands, op.operands[::-1]):
        if term.type == value.type:
            try:
                found = read_scores(w, term, after)
            except NoMatch as reason:
                why = reason
            else:
                return replace(found, masks=(*found.masks, Mask(mask, _lead(value), after)))
    raise why


def _factor(w: Walk, op: Op | None) -> float | None:
    """c of x * c or x / c with one constant number."""
    if op is None or op.name not in ("mul", "div") or op.operands[0].type != op.result.type:
        return None
    number = w.number(op.operands[1])
    if not number or not moderate(float(number)):
        return None
    return float(number) if op.name == "mul" else 1 / number


def _read_select(w: Walk, op: Op, after: float) -> Scores:
    condition, x, y = op.operands
    why = NoMatch("'select' changes the scores")
    for scores, other, when in ((y, x, True), (x, y, False)):
        number = w.number(other)
        if number is None or number > _NEGLIGIBLE or scores.type != op.result.type or after <= 0:
            continue
        try:
            found = read_scores(w, scores, after)
        except NoMatch as reason:
            why = reason
            continue
        hidden = number if math.isinf(number) else HIDDEN
        return replace(found, masks=(*found.masks, Mask(condition, _lead(scores), hidden=hidden, when=when)))
    raise why


def _read_matmul(w: Walk, op: Op, after: float) -> Scores:
    attrs = op.attrs
    assert isinstance(attrs, MatmulAttrs)
    q, q_factor, transpose_q = _unscaled(w, op.operands[0], attrs.transpose_a)
    k, k_factor, transpose_k = _unscaled(w, op.operands[1], not attrs.transpose_b)
    scale = after * q_factor * k_factor
    if not moderate(scale):
        raise NoMatch("factors of the scores leave the range of f32 together")
    return Scores(q, k, transpose_q, transpose_k, scale)


def _unscaled(w: Walk, value: Value, swapped: bool) -> tuple[Value, float, bool]:
    """`value` without constant factors and without swaps of its last two dimensions."""
    factor = 1.0
    while (op := w.producer(value)) is not None:
        number = _factor(w, op)
        if number is not None:
            factor *= number
        elif op.name == "transpose" and _swaps(op):
            swapped = not swapped
        else:
            break
        value = op.operands[0]
    return value, factor, swapped


def _swaps(op: Op) -> bool:
    assert isinstance(op.attrs, TransposeAttrs)
    rank = len(op.attrs.perm)
    return op.attrs.perm == (*range(rank - 2), rank - 1, rank - 2)


@dataclass(frozen=True, slots=True)
class Heads:
    """`batch` and `heads`: the common form of the leads of all levels."""

    batch: int
    heads: int

    @classmethod
    def of(cls, leads: tuple[Lead, ...]) -> Heads:
        """From the first level of rank 4, else by merging all but the last leading dimension. Raises NoMatch if levels
        differ in their number of matrices."""
        if len({math.prod(lead) for lead in leads}) != 1:
            raise NoMatch("the number of matrices changes between levels")
        chosen = next((lead for lead in leads if len(lead) == 2), leads[0])
        return cls(math.prod(chosen[:-1]), chosen[-1] if chosen else 1)

    def operand(self, w: Walk, x: Value, swapped: bool) -> Value | None:
        """`x` as [B, H, rows, columns]; None when its lead is not B * H."""
        if math.prod(_lead(x)) != self.batch * self.heads:
            return None
        x = reshaped(w, x, (self.batch, self.heads, *x.type.dims[-2:]))
        return transposed(w, x, (0, 1, 3, 2)) if swapped else x

    def mask(self, w: Walk, mask: Mask, dtype: DType) -> Value | None:
        """The mask as a term of `dtype` that broadcasts to [B, H, M, S]; None when its lead cannot be regrouped."""
        shape = mask.value.type.dims
        aligned = (1,) * (len(mask.lead) + 2 - len(shape)) + shape
        lead = self._lead_of(aligned[:-2], mask.lead)
        if lead is None:
            return None
        value = reshaped(w, mask.value, (*lead, *aligned[-2:])) if len(shape) > 2 else mask.value
        if mask.hidden is not None:
            chosen = (w.scalar(mask.hidden, dtype), w.scalar(0, dtype))
            return w.emit("select", value, *(chosen if mask.when else chosen[::-1]))
        value = value if value.type.dtype is dtype else w.emit("cast", value, attrs=CastAttrs(dtype))
        return value if mask.scale == 1 else w.emit("mul", value, w.scalar(mask.scale, dtype))

    def _lead_of(self, lead: Lead, level: Lead) -> Lead | None:
        """The two leading dimensions of a mask with `lead` at a level whose full lead is `level`."""
        if math.prod(lead) == 1:
            return (1, 1)
        if lead == level:
            return (self.batch, self.heads)
        if level[-1] == self.heads and math.prod(lead[:-1]) in (1, self.batch):
            return (math.prod(lead[:-1]), lead[-1])
        return None


def key_heads(w: Walk, heads: Heads, x: Value, swapped: bool) -> Value | None:
    """Keys or values as [B, G, S, D], looking through ops that repeat each of G heads H / G times; G = H without such
    ops."""
    op = w.producer(x)
    if op is not None and not swapped:
        if op.name == "gather" and (groups := _gathered_groups(w, op, heads)):
            return reshaped(w, op.operands[0], (heads.batch, groups, *x.type.dims[-2:]))
        spread = w.producer(op.operands[0], "expand") if _regroups(op) else None
        if spread is not None and (groups := _expanded_groups(spread, x, heads)):
            return reshaped(w, spread.operands[0], (heads.batch, groups, *x.type.dims[-2:]))
    if math.prod(_lead(x)) == heads.batch != heads.batch * heads.heads and _lead(x)[-1:] == (1,):
        x = reshaped(w, x, (heads.batch, 1, *x.type.dims[-2:]))
        return transposed(w, x, (0, 1, 3, 2)) if swapped else x
    return heads.operand(w, x, swapped)


def _regroups(op: Op) -> bool:
    return op.name == "reshape" and op.operands[0].type.rank >= 4


def _expanded_groups(spread: Op, x: Value, heads: Heads) -> int | None:
    """G when `spread` repeats [B, G, 1, S, D] to [B, G, H / G, S, D]."""
    source, shape = spread.operands[0].type.dims, spread.result.type.dims
    if len(source) != len(shape) or len(shape) < 4 or shape[-2:] != x.type.dims[-2:]:
        return None
    if source[:-3] != shape[:-3] or source[-2:] != shape[-2:] or source[-3] != 1:
        return None
    groups, repeat = shape[-4], shape[-3]
    return groups if groups * repeat == heads.heads and math.prod(shape[:-4]) == heads.batch else None


def _gathered_groups(w: Walk, op: Op, heads: Heads) -> int | None:
    """G when the gather repeats each head consecutively: indices 0 0 0 1 1 1 ..."""
    assert isinstance(op.attrs, GatherAttrs)
    indices = w.resource(op.operands[1])
    x = op.operands[0].type
    if indices is None or indices.type.rank != 1 or op.attrs.axis != x.rank - 3 or indices.type.dims != (heads.heads,):
        return None
    groups = x.dims[-3]
    if groups == 0 or heads.heads % groups or math.prod(x.dims[:-3]) != heads.batch:
        return None
    expected = np.repeat(np.arange(groups), heads.heads // groups)
    return groups if np.array_equal(indices.array(), expected) else None
