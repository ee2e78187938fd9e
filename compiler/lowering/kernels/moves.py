"""Entry points of data-movement kernels: copies through views, concatenations, gathers, scatters."""

from __future__ import annotations

from ppuc.compiler.lowering.kernels.gather import lower_gather
from ppuc.compiler.lowering.kernels.move_bodies import moving_op
from ppuc.compiler.lowering.kernels.piecewise import CopyLowering, check_copy, lower_copy
from ppuc.compiler.lowering.kernels.scatter import lower_scatter
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, NotFusable, Resolver, stored_part
from ppuc.ir.graph import Graph
from ppuc.ir.ops.base import OPS
from ppuc.targets.schema import Target

__all__ = ["CopyLowering", "check_copy", "check_move", "lower_copy", "lower_gather", "lower_scatter", "only_views"]


def check_move(body: Graph, target: Target) -> None:
    """Raise NotFusable if the group of a gather or scatter has no kernel with any tiling."""
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
