"""Bodies of data-movement groups: their anchor, and the views before and after it.

Invariant: a body without an exact answer raises NotFusable with the reason.
"""

from __future__ import annotations

from ppuc.compiler.lowering.tiling.body import External, NotFusable, Resolver, stored_part
from ppuc.ir import views
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import View
from ppuc.ir.ops.base import OPS, Kind


def stored_view(body: Graph, anchor: Op) -> View:
    """The view of `anchor`'s result in the row-major result of the body. Raises NotFusable if the ops after the anchor
    are not a chain of views that a store can apply."""
    (value, stored), path = stored_part(body, single_result(body)), []
    while (op := body.producer(value)) is not anchor:
        if op is None or OPS[op.name].kind is not Kind.VIEW:
            raise NotFusable(f"{value} is not a view of the result of '{anchor.name}'")
        path.append(op)
        value = op.operands[0]
    view: View | None = stored
    for op in path:
        view = None if view is None else views.undo(op, view)
    if view is None:
        raise NotFusable("the result cannot be stored through the views after it without a copy")
    return view


def single_result(body: Graph) -> Value:
    """The body's only result."""
    if len(body.results) != 1:
        raise NotFusable(f"a movement has one result, the group has {len(body.results)}")
    return body.results[0]


def moving_op(body: Graph) -> Op:
    """The one op of the body that moves elements, besides views and pads. Raises NotFusable unless there is exactly
    one."""
    found = [op for op in body.ops if OPS[op.name].kind is Kind.MOVE and op.name not in ("pad", "insert")]
    if len(found) != 1:
        raise NotFusable(f"a data-movement kernel has one op (got {len(found)})")
    return found[0]


def only_anchor(body: Graph, name: str) -> Op:
    """The body's one op `name`; all others must be views and pads. Raises NotFusable."""
    anchors = [op for op in body.ops if OPS[op.name].kind is not Kind.VIEW and op.name not in ("pad", "insert")]
    if [op.name for op in anchors] != [name]:
        others = ", ".join(op.name for op in anchors) or "nothing"
        raise NotFusable(f"a kernel of '{name}' cannot contain {others}")
    return anchors[0]


def flat_list(resolver: Resolver, indices: Value) -> External:
    """`indices` as a one-dimensional view of a parameter. Raises NotFusable."""
    source = resolver.external(indices)
    if source is None or source.padded:
        raise NotFusable(f"the indices {indices} are not a view of a parameter")
    flat = views.reshape(source.view, (indices.type.elements,))
    if flat is None:
        raise NotFusable(f"the indices {indices} are not one strided list")
    return External(source.value, flat)


def unpadded(resolver: Resolver, value: Value) -> External:
    """The view of `value` in memory. Raises NotFusable if it is computed or padded."""
    source = resolver.external(value)
    if source is None or source.padded:
        raise NotFusable(f"{value} is not a view of a parameter")
    return source
