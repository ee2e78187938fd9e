"""Entry points of data-movement kernels: copies through views, concatenations, gathers, scatters."""

from __future__ import annotations

from collections.abc import Mapping

from ppuc.compiler.lowering.kernels.concat import lower_concat
from ppuc.compiler.lowering.kernels.copies import Copy, add_copies, strided_copy
from ppuc.compiler.lowering.kernels.gather import lower_gather
from ppuc.compiler.lowering.kernels.move_bodies import meeting_point, moving_op
from ppuc.compiler.lowering.kernels.scatter import lower_scatter
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, NotFusable, Resolver, stored_part
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir.graph import Graph
from ppuc.ir.ops.base import OPS, Kind
from ppuc.targets.schema import Target

__all__ = ["check_move", "lower_concat", "lower_copy", "lower_gather", "lower_scatter", "only_views"]


def check_move(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group of a concat, gather or scatter has no kernel with any tiling."""
    anchor, resolver = moving_op(body), Resolver(body)
    for value in anchor.operands:
        external = resolver.external(value)
        if external is None or external.padded:
            raise NotFusable(f"operand {value} of '{anchor.name}' is not a strided view")
    if body.results != anchor.results and [stored_part(body, r)[0] for r in body.results] != list(anchor.results):
        raise NotFusable(f"'{anchor.name}' takes no epilogue")


def only_views(body: Graph) -> bool:
    """Whether a body without an anchor only renames elements or stores them as part of a tensor."""
    return not any(OPS[op.name].kind in CHAIN_KINDS or op.name == "pad" for op in body.ops)


def view_copies(body: Graph, tensors: Mapping[str, str]) -> list[Copy]:
    """One copy per non-empty result of a body of views and constant pads. Raises NotFusable."""
    for op in body.ops:
        if OPS[op.name].kind is not Kind.VIEW and op.name not in ("pad", "insert"):
            raise NotFusable(f"a copy cannot contain '{op.name}'")
    resolver, copies = Resolver(body), []
    for result in body.results:
        if result.type.elements:
            external, view = meeting_point(body, resolver, result)
            copies.append(strided_copy(external, view, tensors[external.value.name], tensors[result.name]))
    return copies


def lower_copy(
    name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target
) -> KernelBuilder:
    """Lower a group of views and constant pads: each result is stored row-major. Raises NotFusable."""
    kernel = KernelBuilder(name, loc)
    add_copies(kernel, view_copies(body, tensors), target)
    return kernel
