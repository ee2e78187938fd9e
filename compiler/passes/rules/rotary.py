"""Rotary embeddings as elementwise ops on a reversed view.

Models write `x cos + rotate(x) sin` with rotate(x) = concat(-x[h:], x[:h]). On [..., 2, h] the rotation is a reversed
view with a sign, so the pattern becomes elementwise: one kernel, together with the preceding norm, reads x twice
instead of writing and reading its halves. A norm of x (x times values reduced from it) is computed in the same shape:
its reduction runs over both halves of the split dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppuc.compiler.passes.rewriter import Rules, Walk
from ppuc.compiler.passes.rules.views import reshaped, transposed
from ppuc.ir.graph import Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import Kind
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import SliceAttrs, TransposeAttrs

_READERS = 3
"""Number of readers of x in a rotary embedding: a product and two slices."""

_DEEPEST = 16
"""Maximum ops of a norm that are followed."""


def rotary(w: Walk, op: Op) -> Value | None:
    """add(mul(x, cos), mul(concat(neg(x[h:]), x[:h]), sin)) -> the same on [..., 2, h], with the halves swapped by a
    view."""
    for straight, crossed in (op.operands, op.operands[::-1]):
        product = w.sole(crossed, "mul")
        scaled = w.sole(straight, "mul")
        if product is None or scaled is None:
            continue
        for product_operand, sine in (product.operands, product.operands[::-1]):
            x = _rotated(w, product_operand)
            if x is None or x not in scaled.operands or x.type != op.result.type:
                continue
            cosine = scaled.operands[1 - scaled.operands.index(x)]
            if any(not _splits(v, x) for v in (sine, cosine)):
                continue
            w.absorb(product, scaled)
            halves = Halves(w, x)
            sign = np.array([[-1.0], [1.0]]).astype(x.type.dtype.numpy)
            left = w.emit("mul", halves.split(x), halves.apart(cosine))
            right = w.emit("mul", w.emit("mul", halves.flip(x), w.const(sign)), halves.apart(sine))
            return reshaped(w, w.emit("add", left, right), op.result.type.dims)
    return None


def _rotated(w: Walk, value: Value) -> Value | None:
    """x of concat(neg(x[h:]), x[:h]) along the last dimension."""
    op = w.sole(value, "concat")
    if op is None or len(op.operands) != 2 or op.attrs != ConcatAttrs(value.type.rank - 1) or value.type.dims[-1] % 2:
        return None
    negated, low = w.sole(op.operands[0], "neg"), w.sole(op.operands[1], "slice")
    high = None if negated is None else w.sole(negated.operands[0], "slice")
    if low is None or high is None or low.operands != high.operands or low.operands[0].type != value.type:
        return None
    half = value.type.dims[-1] // 2
    rank = value.type.rank
    sizes = (*value.type.dims[:-1], half)
    for part, start in ((low, 0), (high, half)):
        if part.attrs != SliceAttrs((*(0 for _ in range(rank - 1)), start), sizes, (1,) * rank):
            return None
    return low.operands[0]


def _splits(value: Value, x: Value) -> bool:
    """Whether a factor's last dimension can be split like that of x, or is broadcast."""
    return value.type.rank == 0 or value.type.dims[-1] in (1, x.type.dims[-1])


class Halves:
    """`x` [..., 2 h] in the shape [..., 2, h], unchanged or with the halves swapped. If x is a norm followed by a
    transpose (heads before tokens), the norm is computed on permuted dimensions."""

    def __init__(self, w: Walk, x: Value) -> None:
        self.w, self.x = w, x
        self.width = x.type.dims[-1]
        self.normed, self.perm = x, tuple[int, ...]()
        turn = w.producer(x, "transpose") if w.uses(x) <= _READERS else None
        if turn is not None and w.uses(turn.operands[0]) == 1:
            assert isinstance(turn.attrs, TransposeAttrs)
            if turn.attrs.perm[-1] == x.type.rank - 1:
                self.normed, self.perm = turn.operands[0], turn.attrs.perm
        self.root = self._root(self.normed)
        if self.root is self.normed:
            self.root, self.normed, self.perm = x, x, ()
        self._depends: dict[str, bool] = {self.root.name: True}
        self._split: dict[str, Value] = {}

    def _root(self, x: Value) -> Value:
        """The operand of the norm that x is; x itself if it is not a norm or has other readers."""
        value, reduced = x, False
        for _ in range(_DEEPEST):
            op = self.w.producer(value, "mul")
            if op is None or (value is self.x and self.w.uses(x) > _READERS):
                break
            a, b = op.operands
            if b.type == value.type and self._scale(a):
                a, b = b, a
            if a.type != value.type or not self._scale(b):
                break
            reduced |= self.w.resource(b) is None
            value = a
        return value if reduced and self._reduces_only(x, value) else x

    def _scale(self, value: Value) -> bool:
        """Whether a factor is a constant or one number per row."""
        return self.w.resource(value) is not None or (value.type.rank > 0 and value.type.dims[-1] == 1)

    def _reduces_only(self, x: Value, root: Value) -> bool:
        """Whether x is computed from `root` by elementwise ops and reductions along rows alone."""
        stack, seen = [x], {root.name}
        while stack:
            value = stack.pop()
            if value.name in seen:
                continue
            seen.add(value.name)
            op = self.w.producer(value)
            if op is None or op.name == "const":
                if self.perm and value.type.rank not in (0, 1, len(self.perm)):
                    return False
                continue
            if len(seen) > 2 * _DEEPEST or not (OPS[op.name].kind is Kind.ELEMENTWISE or self._reduces_rows(op)):
                return False
            stack += op.operands
        return True

    def _reduces_rows(self, op: Op) -> bool:
        attrs = op.attrs
        if not isinstance(attrs, ReduceAttrs) or not attrs.keepdims:
            return False
        operand = op.operands[0].type
        return attrs.axes == (operand.rank - 1,) and operand.dims[-1] == self.width

    def _follows(self, value: Value) -> Op | None:
        """The op that computes `value` from the root; None if `value` does not depend on it."""
        if value.name == self.root.name:
            return None
        op = self.w.producer(value)
        if value.name not in self._depends:
            known = op is not None and op.name != "const"
            self._depends[value.name] = known and op is not None and any(map(self._comes, op.operands))
        return op if self._depends[value.name] else None

    def _comes(self, value: Value) -> bool:
        return value.name == self.root.name or self._follows(value) is not None

    def split(self, value: Value) -> Value:
        """`value` (x or one of its operands) as [..., 2, h]."""
        if value.name == self.x.name:
            value = self.normed
        if value.name not in self._split:
            self._split[value.name] = self._as(value, self.split)
        return self._split[value.name]

    def _as(self, value: Value, operand: Callable[[Value], Value]) -> Value:
        op = self._follows(value)
        if op is None:
            return self._leaf(value)
        if isinstance(op.attrs, ReduceAttrs):
            x = self.split(op.operands[0])
            rank = x.type.rank
            return self.w.emit("reduce", x, attrs=ReduceAttrs(op.attrs.kind, (rank - 2, rank - 1), True))
        return self.w.emit(op.name, *(operand(v) for v in op.operands), attrs=op.attrs)

    def _leaf(self, value: Value) -> Value:
        """An input of the norm, with its dimensions permuted as in x."""
        if self.perm and value.type.rank == len(self.perm):
            value = transposed(self.w, value, self.perm)
        return self.apart(value)

    def apart(self, value: Value) -> Value:
        """A value in the shape of x, or broadcast to it, as [..., 2, h] or [..., 1, 1]."""
        if value.type.rank == 0:
            return value
        *lead, last = value.type.dims
        return reshaped(self.w, value, (*lead, 1, 1) if last == 1 else (*lead, 2, last // 2))

    def flip(self, value: Value) -> Value:
        """`value` (x or one of its operands) as [..., 2, h] with its halves swapped."""
        if value.name == self.x.name:
            value = self.normed
        if value.type.rank == 0 or value.type.dims[-1] == 1:
            return self.split(value)
        if self._follows(value) is not None:
            return self._as(value, self.flip)
        x = self._leaf(value)
        rank, dims = x.type.rank, x.type.dims
        starts = tuple(1 if i == rank - 2 else 0 for i in range(rank))
        steps = tuple(-1 if i == rank - 2 else 1 for i in range(rank))
        return self.w.emit("slice", x, attrs=SliceAttrs(starts, dims, steps))


ROTARY_RULES: Rules = {"add": (rotary,)}
