"""Selection of the largest or smallest elements along an axis, by ranks.

The rank of an element is the number of elements before it: larger ones (smaller ones), and equal ones of a lower index.
Ranking needs only comparisons and sums, no data-dependent moves. Rows too long to compare all pairs are split into
blocks whose winners compete again: an element among the first k is among the first k of its block.

Invariants: results are in order, equal elements by ascending index; NaN ranks with +infinity. Values are copied bit for
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.elementwise import FLOATS, NUMBERS, compute_dtype
from ppuc.ir.ops.movement import ConcatAttrs, GatherElementsAttrs, PadAttrs
from ppuc.ir.ops.reduction import reduce_identity
from ppuc.ir.ops.view import ExpandAttrs, TransposeAttrs
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder

LONGEST_RANKED = 4096
"""Maximum elements of a row for comparing all pairs."""
SHORTEST_BLOCK = 512
FEW = 8
"""Maximum results for which a long row is searched once per result."""


@dataclass(frozen=True, slots=True)
class TopkAttrs(Attrs):
    """The first `k` elements along `axis` (non-negative) in descending order, ascending unless `largest`."""

    axis: int
    k: int
    largest: bool = True


def _infer(attrs: TopkAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (x,) = types
    if x.dtype not in NUMBERS:
        raise ValueError(f"topk is not defined for {x.dtype} (got {x})")
    if not 0 <= attrs.axis < x.rank:
        raise ValueError(f"axis {attrs.axis} of topk is not an axis of {x}")
    if not 0 <= attrs.k <= x.dims[attrs.axis]:
        raise ValueError(f"k of topk must be between 0 and {x.dims[attrs.axis]} (got {attrs.k})")
    shape = (*x.dims[: attrs.axis], attrs.k, *x.dims[attrs.axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(DType.I64, shape)


def _reference(attrs: TopkAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    key = x
    if DType.of(x.dtype).is_float:
        key = x.astype(compute_dtype(DType.of(x.dtype)).numpy)
        key = np.where(np.isnan(key), np.inf, key)
    if attrs.largest:
        # A stable descending order is the reverse of a stable ascending order of the reversed row.
        last = x.shape[attrs.axis] - 1
        ascending = np.argsort(np.flip(key, attrs.axis), axis=attrs.axis, kind="stable")
        order = last - np.flip(ascending, attrs.axis)
    else:
        order = np.argsort(key, axis=attrs.axis, kind="stable")
    index = np.take(order, np.arange(attrs.k), axis=attrs.axis).astype(np.int64)
    return np.take_along_axis(x, index, axis=attrs.axis), index


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs = op.attrs
    assert isinstance(attrs, TopkAttrs)
    (x,) = op.operands
    if not op.results[0].type.elements:
        empty = [np.zeros(r.type.dims, r.type.dtype.numpy) for r in op.results]
        return [b.const(array, "empty") for array in empty]
    last = x.type.rank - 1
    perm = (*(i for i in range(last + 1) if i != attrs.axis), attrs.axis)
    rows = x if attrs.axis == last else b("transpose", x, attrs=TransposeAttrs(perm))
    lead = rows.type.dims[:-1]
    rows = c.reshape(b, rows, (rows.type.elements // rows.type.dims[-1], rows.type.dims[-1]))
    index = _order(b, _keys(b, rows), attrs)
    values = b("gather_elements", rows, index, attrs=GatherElementsAttrs(1))
    results = [c.reshape(b, v, (*lead, attrs.k)) for v in (values, c.cast(b, index, DType.I64))]
    if attrs.axis != last:
        back = tuple(perm.index(i) for i in range(last + 1))
        results = [b("transpose", v, attrs=TransposeAttrs(back)) for v in results]
    return results


def _keys(b: Builder, x: Value) -> Value:
    """Sort keys of `x`: its values, with infinity for NaN."""
    if x.type.dtype not in FLOATS:
        return x
    wide = c.widen(b, x)
    return b("select", b("isnan", wide), b.scalar(np.inf, wide.type.dtype), wide)


def _order(b: Builder, keys: Value, attrs: TopkAttrs) -> Value:
    """i32[rows, k]: indices of the first elements of keys[rows, n]."""
    rows, n = keys.type.dims
    if n == 1:
        return b.const(np.zeros((rows, 1), np.int32), "first")
    if n > LONGEST_RANKED and attrs.k <= FEW:
        return _by_search(b, keys, attrs)
    positions = b.const(np.arange(n, dtype=np.int32).reshape(1, n), "positions")
    block = max(SHORTEST_BLOCK, 4 * attrs.k)
    while n > LONGEST_RANKED and 2 * block <= n:
        keys, positions = _winners_of_blocks(b, keys, positions, block, attrs)
        n = keys.type.dims[1]
    first = _selection(b, keys, attrs.k, attrs.largest)
    return _chosen(b, first, positions, attrs.k)


def _selection(b: Builder, keys: Value, k: int, largest: bool) -> Value:
    """bool[rows, k, n]: result r is element i of keys[rows, n]."""
    rows, n = keys.type.dims
    mine, other = c.reshape(b, keys, (rows, n, 1)), c.reshape(b, keys, (rows, 1, n))
    earlier = b.const(np.tri(n, n, -1, dtype=np.bool_), "earlier")
    ties = b("and", b("eq", other, mine), earlier)
    before = b("or", b("gt" if largest else "lt", other, mine), ties)
    counted = b("select", before, b.scalar(1, DType.I32), b.scalar(0, DType.I32))
    ranks = c.reduce(b, "sum", counted, (2,), keepdims=False)
    wanted = b.const(np.arange(k, dtype=np.int32).reshape(k, 1), "ranks")
    return b("eq", c.reshape(b, ranks, (rows, 1, n)), wanted)


def _chosen(b: Builder, selection: Value, values: Value, k: int) -> Value:
    """values[rows or 1, n] -> [rows, k]: those that selection[rows, k, n] selects, exactly one per result."""
    spread = c.reshape(b, values, (values.type.dims[0], 1, values.type.dims[1]))
    lone = b("select", selection, spread, b.scalar(0, values.type.dtype))
    return c.reduce(b, "sum", lone, (2,), keepdims=False)


def _winners_of_blocks(b: Builder, keys: Value, positions: Value, block: int, attrs: TopkAttrs) -> tuple[Value, Value]:
    """keys[rows, n], positions[rows or 1, n] -> both for the first k of each block, in block order. Padding of the last
    block ranks after all real elements, of which there are at least k: it may win its block, but never the row."""
    rows, n = keys.type.dims
    blocks = -(-n // block)
    worst = reduce_identity("max" if attrs.largest else "min", keys.type.dtype)
    cut, named, extra = keys, positions, (0, blocks * block - n)
    if any(extra):
        cut = b("pad", keys, attrs=PadAttrs((0, 0), extra, (0, 0), worst))
        named = b("pad", positions, attrs=PadAttrs((0, 0), extra, (0, 0)))
    cut = c.reshape(b, cut, (rows * blocks, block))
    if named.type.dims[0] != rows:
        named = b("expand", named, attrs=ExpandAttrs((rows, blocks * block)))
    named = c.reshape(b, named, (rows * blocks, block))
    chosen = _selection(b, cut, attrs.k, attrs.largest)
    won, where = (c.reshape(b, _chosen(b, chosen, v, attrs.k), (rows, blocks * attrs.k)) for v in (cut, named))
    return won, where


def _by_search(b: Builder, keys: Value, attrs: TopkAttrs) -> Value:
    """The best element, then the best of the rest, and so on. Found elements are masked, not overwritten: elements
    equal to the overwriting value would otherwise be found repeatedly."""
    kind = "max" if attrs.largest else "min"
    n, dtype = keys.type.dims[1], keys.type.dtype
    worst = b.scalar(reduce_identity(kind, dtype), dtype)
    positions = b.const(np.arange(n, dtype=np.int32).reshape(1, n), "positions")
    beyond, found = b.scalar(n, DType.I32), []
    taken: Value | None = None
    for _ in range(attrs.k):
        left = keys if taken is None else b("select", taken, worst, keys)
        best = c.reduce(b, kind, left, (1,))
        hit = b("eq", left, best)
        if taken is not None:
            hit = b("and", hit, b("not", taken))
        index = c.reduce(b, "min", b("select", hit, positions, beyond), (1,))
        found.append(index)
        now = b("eq", positions, index)
        taken = now if taken is None else b("or", taken, now)
    return found[0] if len(found) == 1 else b.emit("concat", found, ConcatAttrs(1))[0]


register(
    OpDef(
        name="topk",
        formula="values, indices = the first k elements of x along axis in order, and where they are",
        kind=Kind.COMPOSITE,
        operands="x",
        attrs=TopkAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
