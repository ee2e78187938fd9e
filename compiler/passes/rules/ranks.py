"""Splits ops that walk more axes than a descriptor has dimensions into steps that do not.

Contiguous axes count as one, so this concerns tensors with many axes that are individually permuted, sliced or
repeated. Each step stores its result contiguously for the next.

Invariant: the steps compute the same elements, and each walks at most MAX_VIEW_RANK axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from ppuc.ir import views
from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.kernel import MAX_VIEW_RANK, View
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ExpandAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.rewrite import Builder

Step = Callable[[Value, int, int], Attrs]
"""The view that applies the remaining work along axes `first .. end` to the previous step's result."""


def in_steps(b: Builder, op: Op) -> Sequence[Value] | None:
    """The replacement of a transpose, slice, expand, elementwise op or reduction that walks too many axes; None for
    other ops."""
    if max((v.type.rank for v in (*op.operands, *op.results)), default=0) <= MAX_VIEW_RANK:
        return None
    attrs = op.attrs
    if isinstance(attrs, TransposeAttrs | SliceAttrs | ExpandAttrs):
        (value,) = op.operands
        if _walked(op.name, value, attrs):
            return None
        if isinstance(attrs, TransposeAttrs):
            return [_transposed(b, value, attrs.perm)]
        return [_sliced(b, value, attrs) if isinstance(attrs, SliceAttrs) else _expanded(b, value, attrs.shape)]
    if OPS[op.name].kind is Kind.ELEMENTWISE:
        return _elementwise(b, op)
    return _reduction(b, op, attrs) if isinstance(attrs, ReduceAttrs) else None


def _walked(name: str, value: Value, attrs: Attrs) -> bool:
    """Whether a descriptor can walk the view of a contiguous tensor."""
    (type_,) = OPS[name].infer(attrs, [value.type])
    op = Op(name, attrs, (value,), (Value("", type_),))
    return views.apply(op, View.contiguous(value.type.dims)) is not None


def _stepwise(b: Builder, name: str, value: Value, axes: int, step: Step) -> Value:
    """Apply ops `name` to `value` in steps, each along as many axes as a descriptor walks."""
    first = 0
    while first < axes:
        end = next(e for e in range(axes, first, -1) if e == first + 1 or _walked(name, value, step(value, first, e)))
        value = b(name, value, attrs=step(value, first, end), hint=value.name)
        first = end
    return value


def _transposed(b: Builder, value: Value, perm: Sequence[int]) -> Value:
    """Move axes of the result into place, outermost first; the others keep their order."""

    def order(placed: int) -> list[int]:
        return [*perm[:placed], *(a for a in range(len(perm)) if a not in perm[:placed])]

    def step(_: Value, first: int, end: int) -> Attrs:
        return TransposeAttrs(tuple(order(first).index(a) for a in order(end)))

    return _stepwise(b, "transpose", value, len(perm), step)


def _sliced(b: Builder, value: Value, attrs: SliceAttrs) -> Value:
    def step(now: Value, first: int, end: int) -> Attrs:
        def along(given: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
            return (*whole[:first], *given[first:end], *whole[end:])

        rank = now.type.rank
        return SliceAttrs(
            along(attrs.starts, (0,) * rank), along(attrs.sizes, now.type.dims), along(attrs.steps, (1,) * rank)
        )

    return _stepwise(b, "slice", value, value.type.rank, step)


def _expanded(b: Builder, value: Value, shape: Sequence[int]) -> Value:
    if value.type.rank < len(shape):
        dims = (1,) * (len(shape) - value.type.rank) + value.type.dims
        value = b("reshape", value, attrs=ReshapeAttrs(dims), hint=value.name)

    def step(now: Value, first: int, end: int) -> Attrs:
        return ExpandAttrs((*shape[:end], *now.type.dims[end:]))

    return _stepwise(b, "expand", value, len(shape), step)


def _elementwise(b: Builder, op: Op) -> Sequence[Value] | None:
    """An op whose operands are broadcast along different axes -> the op on operands stored in the result's shape."""
    shape = op.results[0].type.dims
    aligned = [(1,) * (len(shape) - v.type.rank) + v.type.dims for v in op.operands]
    if _runs([tuple(dims[a] != 1 for dims in aligned) for a, n in enumerate(shape) if n != 1]) <= MAX_VIEW_RANK:
        return None
    whole = [v if v.type.elements == 1 or v.type.dims == shape else _expanded(b, v, shape) for v in op.operands]
    return [b(op.name, *whole, attrs=op.attrs, hint=op.results[0].name)]


def _reduction(b: Builder, op: Op, attrs: ReduceAttrs) -> Sequence[Value] | None:
    """A reduction along inner axes -> a reduction along trailing axes."""
    (value,), result = op.operands, op.results[0]
    if _runs([a in attrs.axes for a, n in enumerate(value.type.dims) if n != 1]) <= MAX_VIEW_RANK:
        return None
    kept = [a for a in range(value.type.rank) if a not in attrs.axes]
    moved = _transposed(b, value, [*kept, *attrs.axes])
    axes = tuple(range(len(kept), value.type.rank))
    reduced = b("reduce", moved, attrs=replace(attrs, axes=axes, keepdims=True), hint=result.name)
    return [b("reshape", reduced, attrs=ReshapeAttrs(result.type.dims), hint=result.name)]


def _runs(marks: Sequence[object]) -> int:
    """Groups of equal neighbours."""
    return sum(1 for _ in groupby(marks))
