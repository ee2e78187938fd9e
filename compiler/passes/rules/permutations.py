"""Forms of ops on operands stored with permuted dimensions.

A value v is stored in perm p when the stored tensor is transpose(v, p). A Form says: with operands in these perms and
these attributes, the op computes its result in that perm. Perms of a value that differ only in the positions of
size-one dimensions hold the same bytes (`same_bytes`); converting between them is a reshape.

Invariant: running an op in a form and transposing back gives bit-identical results except for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ppuc.ir.graph import Attrs, Op
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import Kind
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs

Perm = tuple[int, ...]


def identity(rank: int) -> Perm:
    return tuple(range(rank))


def channels_last(rank: int) -> Perm:
    """The perm that stores [N, C, *S] as [N, *S, C]."""
    return (0, *range(2, rank), 1)


def compose(outer: Perm, inner: Perm) -> Perm:
    """The perm of transpose(transpose(x, outer), inner)."""
    return tuple(outer[i] for i in inner)


def inverse(perm: Perm) -> Perm:
    return tuple(perm.index(i) for i in range(len(perm)))


def swapped(rank: int) -> Perm:
    """The perm that swaps the last two dimensions."""
    return (*range(rank - 2), rank - 1, rank - 2)


def same_bytes(dims: Sequence[int], p: Perm, q: Perm) -> bool:
    """Whether a tensor of shape `dims` has the same bytes in both perms."""
    return p == q or [d for d in p if dims[d] != 1] == [d for d in q if dims[d] != 1]


@dataclass(frozen=True, slots=True)
class Form:
    """`operands[i]` is the perm of operand i, aligned to the op's rank if it is broadcast from fewer dimensions; None
    leaves it as it is."""

    attrs: Attrs
    operands: tuple[Perm | None, ...]
    result: Perm


def form_from_operand(op: Op, index: int, perm: Perm) -> Form | None:
    """The form with operand `index` stored in `perm`; None if there is none, or if the operand is broadcast and so
    leaves most dimensions undetermined."""
    if len(perm) != op.operands[index].type.rank:
        return None
    if op.name in ("reduce", "argreduce"):
        return _reduction(op, perm)
    if op.name == "reshape":
        other = _regrouped(op.operands[0].type.dims, op.result.type.dims, perm)
        return None if other is None else _reshape(op, perm, other)
    if op.operands[index].type.dims != op.result.type.dims and OPS[op.name].kind is Kind.ELEMENTWISE:
        return None
    return form_of_result(op, perm) if len(perm) == op.result.type.rank else None


def form_of_result(op: Op, perm: Perm) -> Form | None:
    """The form with the result stored in `perm`; None if there is none, or if the result alone does not determine
    it."""
    if len(op.results) != 1 or len(perm) != op.result.type.rank or op.body is not None:
        return None
    if op.name == "reshape":
        other = _regrouped(op.result.type.dims, op.operands[0].type.dims, perm)
        return None if other is None else _reshape(op, other, perm)
    if op.name == "reduce" and not op.attrs.keepdims:  # type: ignore[attr-defined]
        return None
    if OPS[op.name].kind is Kind.ELEMENTWISE:
        return Form(op.attrs, tuple(perm for _ in op.operands), perm)
    attrs = _ATTRS.get(op.name)
    if attrs is None or (op.name == "gather" and op.operands[1].type.rank != 1):
        return None
    operands = (perm, None) if op.name == "gather" else tuple(perm for _ in op.operands)
    return Form(attrs(op.attrs, perm), operands, perm)


def _permuted(attrs: Any, perm: Perm, *names: str) -> Any:
    return replace(attrs, **{name: tuple(getattr(attrs, name)[p] for p in perm) for name in names})


def _axes(attrs: ReduceAttrs, perm: Perm) -> ReduceAttrs:
    return replace(attrs, axes=tuple(sorted(perm.index(a) for a in attrs.axes)))


def _axis(attrs: Any, perm: Perm) -> Any:
    return replace(attrs, axis=perm.index(attrs.axis))


_ATTRS: dict[str, Callable[[Any, Perm], Attrs]] = {
    "concat": _axis,
    "cumsum": _axis,
    "gather": _axis,
    "pad": lambda attrs, perm: _permuted(attrs, perm, "low", "high", "interior"),
    "slice": lambda attrs, perm: _permuted(attrs, perm, "starts", "sizes", "steps"),
    "expand": lambda attrs, perm: _permuted(attrs, perm, "shape"),
    "reduce": _axes,
}
"""Op name -> its attributes on operands and result in a perm, for ops whose dimensions correspond one to one."""


def _reduction(op: Op, perm: Perm) -> Form:
    attrs = op.attrs
    if isinstance(attrs, ReduceAttrs):
        axes, moved = attrs.axes, _axes(attrs, perm)
    else:
        assert isinstance(attrs, ArgreduceAttrs)
        axes, moved = (attrs.axis,), _axis(attrs, perm)
    if attrs.keepdims:
        return Form(moved, (perm,), perm)
    kept = [d for d in range(len(perm)) if d not in axes]
    return Form(moved, (perm,), tuple(kept.index(d) for d in perm if d not in axes))


def _reshape(op: Op, operand: Perm, result: Perm) -> Form:
    return Form(ReshapeAttrs(tuple(op.result.type.dims[d] for d in result)), (operand,), result)


def _blocks(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest partition of the dimensions of `a` and `b` into runs with equal products, in order; size-one
    dimensions are left out."""
    left, right = ([i for i, size in enumerate(shape) if size != 1] for shape in (a, b))
    blocks: list[tuple[list[int], list[int]]] = []
    while left:
        xs, ys = [left.pop(0)], [right.pop(0)]
        x, y = a[xs[0]], b[ys[0]]
        while x != y:
            if x < y:
                xs.append(left.pop(0))
                x *= a[xs[-1]]
            else:
                ys.append(right.pop(0))
                y *= b[ys[-1]]
        blocks.append((xs, ys))
    return blocks


def _regrouped(a: Sequence[int], b: Sequence[int], perm: Perm) -> Perm | None:
    """The perm of a tensor of shape `b` whose bytes are those of one of shape `a` (a reshape of it) in `perm`; None if
    `perm` separates dimensions that the reshape merges or splits."""
    if 0 in a:
        return None
    order = [d for d in perm if a[d] != 1]
    moved: list[tuple[int, list[int]]] = []
    for xs, ys in _blocks(a, b):
        at = order.index(xs[0])
        if order[at : at + len(xs)] != xs:
            return None
        moved.append((at, ys))
    return _with_ones([d for _, ys in sorted(moved) for d in ys], b)


def _with_ones(order: list[int], shape: Sequence[int]) -> Perm:
    """`order` with size-one dimensions inserted, each after its left neighbour in `shape`, where an expand may merge
    with it."""
    for d, size in enumerate(shape):
        if size == 1:
            order.insert(order.index(d - 1) + 1 if d else 0, d)
    return tuple(order)
