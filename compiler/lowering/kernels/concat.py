"""Concatenation: one strided copy per operand into its slice of the result.

Operands are read through the views before the concat, and the result is stored through those after it, so no view is
materialised. Invariant: the slices partition the result.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppuc.compiler.lowering.kernels.copies import Copy, add_copies, strided_copy
from ppuc.compiler.lowering.kernels.move_bodies import only_anchor, stored_view
from ppuc.compiler.lowering.tiling.body import NotFusable, Resolver
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir import views
from ppuc.ir.graph import Graph
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.targets.schema import Target


def lower_concat(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group around one `concat`. Raises NotFusable."""
    kernel = KernelBuilder(name, loc)
    add_copies(kernel, concat_copies(body, tensors), target)
    return kernel


def concat_copies(body: Graph, tensors: Mapping[str, str]) -> list[Copy]:
    """The copies of the body's one `concat`, one per non-empty operand. Raises NotFusable."""
    anchor = only_anchor(body, "concat")
    assert isinstance(anchor.attrs, ConcatAttrs)
    if not anchor.result.type.elements:
        return []
    resolver, axis, whole = Resolver(body), anchor.attrs.axis, stored_view(body, anchor)
    result, first, copies = tensors[body.results[0].name], 0, []
    for operand in anchor.operands:
        dims = operand.type.dims
        if operand.type.elements:
            source = resolver.external(operand)
            if source is None:
                raise NotFusable(f"operand {operand} is not a view of a parameter")
            starts = [first if i == axis else 0 for i in range(len(dims))]
            part = views.take_slice(whole, starts, dims, [1] * len(dims))
            copies.append(strided_copy(source, part, tensors[source.value.name], result))
        first += dims[axis]
    return copies
