"""TopK, and Unique of constants.

Invariant: the number of results is known at compile time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.registry import importer
from ppuc.ir.graph import Value
from ppuc.ir.ops.sorting import TopkAttrs


@importer("TopK")
def top_k(ctx: NodeContext) -> Sequence[Value]:
    """Always sorted, which `sorted` = 0 permits."""
    x = ctx.operand(0)
    axis = ctx.axis(-1, x.type.rank)
    given = ctx.ints("k", 1)
    if given is None or len(given) != 1:
        ctx.fail("k must be one number", got=given)
    ctx.attr("sorted")
    attrs = TopkAttrs(axis, given[0], bool(ctx.attr("largest", 1)))
    return ctx.b.emit("topk", [x], attrs, hint=ctx.hint)


@importer("Unique")
def unique(ctx: NodeContext) -> Sequence[Value]:
    """Y, the first index of each, the index in Y of each element, and counts."""
    x = ctx.need_constant(0, "the number of distinct elements")
    named = ctx.attr("axis")
    axis = None if named is None else ctx.axis(0, x.ndim)
    found, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not ctx.attr("sorted", 1):
        order = np.argsort(first, kind="stable")
        found = np.take(found, order, axis=0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], np.argsort(order, kind="stable")[inverse]
    indices = [np.asarray(i, np.int64) for i in (first, inverse, counts)]
    return [ctx.b.const(np.asarray(a), ctx.hint) for a in (found, *indices)]
