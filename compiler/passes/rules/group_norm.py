"""Rewrites group normalisation to full rank.

Models merge the channels of a group with all positions: [N, C, *S] -> [N, G, R]. A channels-last image cannot be viewed
that way without a transpose, but it can as [N, *S, G, C / G]. So the merge is sunk below the reductions and the
arithmetic, until it meets the reshape that undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppuc.compiler.passes.rewriter import Rule, Rules, Walk
from ppuc.compiler.passes.rules.views import reshaped
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.base import Kind
from ppuc.ir.ops.reduction import ReduceAttrs


def _groups(op: Op) -> bool:
    """Whether a reshape takes [N, C, *S] to [N, G, R] with G dividing C."""
    x, y = op.operands[0].type.dims, op.result.type.dims
    return len(x) >= 4 and len(y) == 3 and x[0] == y[0] and x[1] != y[1] and y[1] > 1 and x[1] % y[1] == 0


def _merges(w: Walk, value: Value) -> Value | None:
    """x of `value` = reshape(x) from [N, G, c, *S] to [N, G, R]."""
    op = w.producer(value, "reshape")
    if op is None or value.type.rank != 3:
        return None
    x = op.operands[0]
    return x if x.type.rank > 3 and x.type.dims[:2] == value.type.dims[:2] else None


def _split_groups(wanted: Mapping[str, Op]) -> Rule:
    def split_groups(w: Walk, op: Op) -> Value | None:
        if op.result.name not in wanted or not _groups(op):
            return None
        x, shape = op.operands[0], op.result.type.dims
        apart = reshaped(w, x, (*shape[:2], x.type.dims[1] // shape[1], *x.type.dims[2:]))
        return reshaped(w, apart, shape)

    return split_groups


def _reduce_apart(w: Walk, op: Op) -> Value | None:
    """reduce(merge(x)) over the merged dimension -> reduce(x) over all dimensions it merges."""
    attrs = op.attrs
    assert isinstance(attrs, ReduceAttrs)
    x = _merges(w, op.operands[0])
    if x is None or attrs.axes != (2,) or not attrs.keepdims:
        return None
    return reshaped(
        w, w.emit("reduce", x, attrs=ReduceAttrs(attrs.kind, tuple(range(2, x.type.rank)), True)), op.result.type.dims
    )


def _reshape_apart(w: Walk, op: Op) -> Value | None:
    """reshape(merge(x)) -> reshape(x)."""
    x = _merges(w, op.operands[0])
    return None if x is None else reshaped(w, x, op.result.type.dims)


def _elementwise_apart(w: Walk, op: Op) -> Value | None:
    """elementwise(merge(x), y) -> merge(elementwise(x, y)), for y one number, one per group, or merged likewise."""
    found = [_merges(w, v) for v in op.operands]
    full = next(
        (x for x, v in zip(found, op.operands, strict=True) if x is not None and v.type.dims == op.result.type.dims),
        None,
    )
    if full is None:
        return None
    operands: list[Value] = []
    for value, x in zip(op.operands, found, strict=True):
        if x is not None and x.type.dims == full.type.dims:
            operands.append(x)
        elif value.type.rank == 0:
            operands.append(value)
        elif value.type.rank == 3 and value.type.dims[2] == 1:
            operands.append(reshaped(w, value, (*value.type.dims[:2], *(1 for _ in full.type.dims[2:]))))
        else:
            return None
    return reshaped(w, w.emit(op.name, *operands, attrs=op.attrs), op.result.type.dims)


def group_rules(graph: Graph) -> Rules | None:
    """Rules that rewrite the group normalisations of `graph` to full rank; None if it has none."""
    readers = users(graph)
    wanted = {
        op.result.name: op
        for op in graph.ops
        if op.name == "reshape" and _groups(op) and any(reader.name == "reduce" for reader in readers[op.result.name])
    }
    if not wanted:
        return None
    rules: dict[str, tuple[Rule, ...]] = {
        name: (_elementwise_apart,) for name, record in OPS.items() if record.kind is Kind.ELEMENTWISE
    }
    return {**rules, "reduce": (_reduce_apart,), "reshape": (_split_groups(wanted), _reshape_apart)}
