"""Finds which axis of a value in memory a product or a reduction sums, through elementwise ops and views between them.

Operands of a product often arrive in another layout: `[8, 48, 22, 22]` is scaled and rounded before a transpose makes
its channels the last axis. The channels are features then, the others rows.

Invariant: an axis is found only where one path of elementwise ops, reshapes and transposes leads to it.
"""

from __future__ import annotations

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.views import axis_before


def summed_axis(body: Graph, value: Value) -> int:
    """The axis of `value` that the first product or reduction after it sums; the last one if none is found."""
    producers = {r.name: op for op in body.ops for r in op.results}
    for op in body.ops:
        if op.name in ("matmul", "reduce"):
            found = _traced(op.operands[0], len(op.operands[0].type.dims) - 1, value, producers)
            if found is not None:
                return found
    return len(value.type.dims) - 1


def _traced(later: Value, axis: int, value: Value, producers: dict[str, Op]) -> int | None:
    """The axis of `value` that becomes `axis` of `later`; None if it is not where that comes from."""
    if later.name == value.name:
        return axis
    op = producers.get(later.name)
    if op is None:
        return None
    if op.name in ("reshape", "transpose"):
        before = axis_before(op, axis)
        return None if before is None else _traced(op.operands[0], before, value, producers)
    if OPS[op.name].kind is not Kind.ELEMENTWISE:
        return None
    same = (v for v in op.operands if v.type.dims == later.type.dims)
    return next((a for v in same if (a := _traced(v, axis, value, producers)) is not None), None)
