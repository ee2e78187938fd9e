"""The kinds of groups: which op anchors one, whether a body fits, and which lowering builds its kernel.

Adding a kind of kernel is one row here and one module beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.attention import AttentionLowering, check_attention, lower_attention
from ppuc.compiler.lowering.blocks import lower_matmul, matmul_lowering, stored_weights
from ppuc.compiler.lowering.body import CHAIN_KINDS, Chain, NotFusable, Resolver, stored_part
from ppuc.compiler.lowering.cascade import CascadeLowering, lower_cascade
from ppuc.compiler.lowering.contraction import analyse_anchor, operand_view
from ppuc.compiler.lowering.conv import ConvLowering, lower_conv
from ppuc.compiler.lowering.limits import require_loads
from ppuc.compiler.lowering.map import MapLowering, check_map, lower_map
from ppuc.compiler.lowering.moves import lower_concat, lower_copy, lower_gather, lower_scatter
from ppuc.compiler.lowering.nest import KernelBuilder
from ppuc.compiler.lowering.window import WindowLowering, check_window, lower_window
from ppuc.ir.graph import Graph, Op
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.targets.schema import Target

Lower = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], KernelBuilder]
RankedLower = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target, int], KernelBuilder]
Check = Callable[[Graph, Op, Target], None]


def kind_of(op: Op) -> str:
    """The kind of group that `op` anchors; "map" for elementwise ops and reductions, "view", "const", "copy" (a
    pad)."""
    record = OPS[op.name]
    if op.name == "conv":
        attrs = op.attrs
        assert isinstance(attrs, ConvAttrs)
        x, w = (v.type.dims for v in op.operands)
        return "window" if attrs.groups == x[-1] and w[-1] == attrs.groups > 1 and attrs.layout == "nhwc" else "conv"
    if record.kind in CHAIN_KINDS:
        return "map"
    if record.kind is Kind.VIEW or op.name == "insert":
        return "view"
    return ANCHORS.get(op.name, op.name)


ANCHORS = {
    "matmul": "matmul",
    "pool": "window",
    "attention": "attention",
    "attention_parts": "attention",
    "concat": "concat",
    "gather": "gather",
    "scatter_nd": "scatter",
    "pad": "copy",
    "const": "const",
    "unblock": "const",
}


def anchor_in(body: Graph) -> Op | None:
    """The op of `body` that decides its kind; None for elementwise groups and copies."""
    anchors = [op for op in body.ops if kind_of(op) not in ("map", "view", "const", "copy")]
    if len(anchors) > 1:
        raise NotFusable("two anchors in one group")
    return anchors[0] if anchors else None


def check_group(body: Graph, target: Target) -> str:
    """The kind of kernel that `body` makes. Raises NotFusable with the reason when it makes none."""
    require_loads(body, target)
    anchor = anchor_in(body)
    if anchor is None:
        check_map(body)
        computes = any(OPS[op.name].kind in CHAIN_KINDS or op.name == "pad" for op in body.ops)
        return "map" if computes else "copy"
    kind = kind_of(anchor)
    if kind not in KINDS:
        raise NotFusable(f"no kernel for '{anchor.name}'")
    KINDS[kind].check(body, anchor, target)
    return kind


def lower_group(
    kind: str, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int = 0
) -> KernelBuilder:
    """Build the kernel of a group, in the `rank`-th cheapest of the ways its lowering considers. Raises NotFusable when
    there are no more, or no tiling fits the machine."""
    tiled = KINDS[kind]
    if tiled.ranked is not None:
        return tiled.ranked(name, body, tensors, loc, target, rank)
    if rank:
        raise NotFusable(f"a {kind} kernel has one tiling")
    return tiled.lower(name, body, tensors, loc, target)


def price_group(kind: str, body: Graph, target: Target) -> float:
    """Cycles that the cost model expects of a kernel of a kind that is priced (matmul, conv, map, attention, window,
    cascade) with its best tiles. Raises NotFusable when nothing fits."""
    tensors = {v.name: v.name for v in (*body.params, *body.results)}
    if kind == "map":
        return MapLowering("kernel", body, tensors, (), target).price
    if kind == "attention":
        return AttentionLowering("kernel", body, tensors, (), target).price
    if kind == "matmul":
        return matmul_lowering("kernel", body, tensors, (), target).choice.price
    if kind == "cascade":
        return CascadeLowering("kernel", body, tensors, (), target).choice.price
    if kind == "window":
        window = WindowLowering("kernel", body, tensors, (), target)
        window.choose()
        return window.price
    return ConvLowering("kernel", body, tensors, (), target).choice.price


def _check_chain(body: Graph, anchor: Op) -> Chain:
    chain = analyse_anchor(body, anchor)
    in_blocks = anchor.name == "matmul" and stored_weights(body, anchor) is not None
    for value in anchor.operands[: 1 if in_blocks else 2]:
        operand_view(body, value)
    return chain


def _check_matmul(body: Graph, anchor: Op, target: Target) -> None:
    """A reduction needs whole rows in the accumulator and enough of them to keep every unit busy."""
    chain = _check_chain(body, anchor)
    if not chain.reduce_axes:
        return
    n = anchor.results[0].type.dims[-1]
    if math.prod(chain.domain[a] for a in chain.reduce_axes) != n or chain.reduce_axes[-1] != len(chain.domain) - 1:
        raise NotFusable("the reduction runs over more than the columns of the product")
    rows = math.prod(anchor.results[0].type.dims) // max(n, 1)
    if 16 * n * 4 > cost.acc_budget(target):
        raise NotFusable(f"a row of {n} columns does not fit the accumulator")
    if -(-rows // 16) * 4 < 3 * target.cu:
        raise NotFusable(f"{rows} rows, kept whole, would leave units idle")


def _check_conv(body: Graph, anchor: Op, target: Target) -> None:
    """A reduction (global pooling) needs the whole image in one tile."""
    chain = _check_chain(body, anchor)
    if not chain.reduce_axes:
        return
    result, x = anchor.results[0].type.dims, anchor.operands[0].type
    if set(chain.reduce_axes) - set(range(1, len(result) - 1)) or anchor.attrs.groups != 1:  # type: ignore[attr-defined]
        raise NotFusable("the reduction runs over channels")
    points = math.prod(result[1:-1])
    halo = math.prod(x.dims[1:-1]) * 4
    if points > 256 or points * 16 * 4 > cost.acc_budget(target) or halo * 16 * x.dtype.bytes > cost.l1_budget(target):
        raise NotFusable(f"an image of {points} points does not fit one tile")
    if result[0] * -(-result[-1] // 16) * 2 < target.cu:
        raise NotFusable("whole images would leave units idle")


def _check_move(body: Graph, anchor: Op, target: Target) -> None:
    resolver = Resolver(body)
    for value in anchor.operands:
        external = resolver.external(value)
        if external is None or external.padded:
            raise NotFusable(f"operand {value} of '{anchor.name}' is not a strided view")
    if body.results != anchor.results and [stored_part(body, r)[0] for r in body.results] != list(anchor.results):
        raise NotFusable(f"'{anchor.name}' takes no epilogue")


@dataclass(frozen=True, slots=True)
class GroupKind:
    """How a kind is checked and lowered."""

    check: Check
    lower: Lower
    ranked: RankedLower | None = None


KINDS: dict[str, GroupKind] = {
    "map": GroupKind(lambda body, anchor, target: None, lower_map),
    "copy": GroupKind(lambda body, anchor, target: None, lower_copy),
    "matmul": GroupKind(_check_matmul, lower_matmul, lower_matmul),
    "conv": GroupKind(_check_conv, lower_conv, lower_conv),
    "window": GroupKind(lambda body, anchor, target: check_window(body, target), lower_window),
    "cascade": GroupKind(lambda body, anchor, target: None, lower_cascade),
    "attention": GroupKind(lambda body, anchor, target: check_attention(body, target), lower_attention),
    "concat": GroupKind(_check_move, lower_concat),
    "gather": GroupKind(_check_move, lower_gather),
    "scatter": GroupKind(_check_move, lower_scatter),
}
