"""The table of kernel kinds, and the kind of a group.

A new kind is a row here and a module beside it. If several rows accept an op (or a body, or consecutive groups), the
one added last wins; rows of packages come after these.

Invariant: only this module and those that build kernels compare kinds by name. Everything a pass needs to know about a
kernel is a field of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ppuc.compiler.lowering.kernel_kind import KernelKind, Searched, always, one_tiling
from ppuc.compiler.lowering.kernels.attention import AttentionLowering, check_attention, lower_attention
from ppuc.compiler.lowering.kernels.back_to_back import BackToBackLowering, least_clk, lower_back_to_back
from ppuc.compiler.lowering.kernels.blocks import check_matmul, lower_matmul, matmul_lowering
from ppuc.compiler.lowering.kernels.cascade import CascadeLowering, lower_cascade
from ppuc.compiler.lowering.kernels.conv import ConvLowering, check_conv, lower_conv
from ppuc.compiler.lowering.kernels.map import MapLowering, check_map, lower_map
from ppuc.compiler.lowering.kernels.moves import (
    CopyLowering,
    check_copy,
    check_move,
    lower_copy,
    lower_gather,
    lower_scatter,
    only_views,
)
from ppuc.compiler.lowering.kernels.window import WindowLowering, check_window, is_depthwise, lower_window
from ppuc.compiler.lowering.limits import require_tensors
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, NotFusable
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir.errors import UsageError
from ppuc.ir.graph import Graph, Op
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.plugins import Extensible
from ppuc.targets.schema import Target

_ROWWISE = ("map", "matmul", "copy")
"""Kinds that compute a result row from the same row of their operands."""

_HEADS = ("window", "attention")
"""Kinds that compute rows from other rows, too, for kinds that follow."""

_MOVING = ("copy", "concat")
"""Kinds that only move elements."""


def _back_to_back(kinds: Sequence[str]) -> bool:
    """Whether these are kinds of consecutive groups over the same rows; a window or attention may compute the first
    one's."""
    rest = kinds[1:] if kinds and kinds[0] in _HEADS else kinds
    return len(kinds) > 1 and "matmul" in rest and {*rest} <= {*_ROWWISE, *_MOVING}


def _stores_in_parts(kind: str) -> Callable[[Sequence[str]], bool]:
    """A predicate on kinds of consecutive groups: whether they are one of `kind` and others that move its result, which
    it may store where it belongs."""
    return lambda kinds: len(kinds) > 1 and kinds[0] == kind and {*kinds[1:]} <= {*_MOVING}


def _moves(kinds: Sequence[str]) -> bool:
    """Whether these are kinds of consecutive groups that only move elements."""
    return len(kinds) > 1 and {*kinds} <= {*_MOVING}


_ROWS = (
    KernelKind(  # elementwise ops, constant pads, reductions along some axes
        name="map",
        members=_stores_in_parts("map"),
        follows=lambda first, second: first == "map" and second in _MOVING,
        unanchored=always,
        check=lambda body, target: check_map(body),
        lower=one_tiling(lower_map),
        search=MapLowering,
        overwrites=True,
    ),
    KernelKind(  # views that must be materialised
        name="copy",
        unanchored=only_views,
        members=lambda kinds: _moves(kinds) and "concat" not in kinds,
        follows=lambda first, second: first == second == "copy",
        check=check_copy,
        lower=one_tiling(lower_copy),
        search=CopyLowering,
    ),
    KernelKind(
        name="matmul",
        members=_stores_in_parts("matmul"),
        follows=lambda first, second: first == "matmul" and second in _MOVING,
        anchors={"matmul": always},
        check=check_matmul,
        lower=lower_matmul,
        search=matmul_lowering,
        overwrites=True,
        rereads=True,
        shortest_k=64,
    ),
    KernelKind(
        name="conv",
        members=_stores_in_parts("conv"),
        follows=lambda first, second: first == "conv" and second in _MOVING,
        anchors={"conv": always},
        check=check_conv,
        lower=lower_conv,
        search=ConvLowering,
        overwrites=True,
        rereads=True,
        shortest_k=16,
    ),
    KernelKind(  # pools and depthwise convolutions, on the vector engine
        name="window",
        members=_stores_in_parts("window"),
        follows=lambda first, second: first == "window" and second in _MOVING,
        anchors={"pool": always, "conv": is_depthwise},
        check=check_window,
        lower=one_tiling(lower_window),
        search=WindowLowering,
        rereads=True,
    ),
    KernelKind(  # the tensor between the two stays in l1
        name="cascade",
        members=lambda kinds: tuple(kinds) == ("window", "matmul"),
        follows=lambda first, second: (first, second) == ("window", "matmul"),
        lower=one_tiling(lower_cascade),
        search=CascadeLowering,
        rereads=True,
    ),
    KernelKind(  # products over the same rows, with norms between them: what is between them stays in l1
        name="back-to-back",
        members=_back_to_back,
        follows=lambda first, second: first in (*_HEADS, *_ROWWISE, *_MOVING) and second in {*_ROWWISE, *_MOVING},
        least=least_clk,
        shares=True,
        lower=one_tiling(lower_back_to_back),
        search=BackToBackLowering,
        rereads=True,
    ),
    KernelKind(
        name="attention",
        members=_stores_in_parts("attention"),
        follows=lambda first, second: first == "attention" and second in _MOVING,
        anchors={"attention": always, "attention_parts": always},
        check=check_attention,
        lower=one_tiling(lower_attention),
        search=AttentionLowering,
        rereads=True,
        shortest_keys=64,
    ),
    KernelKind(  # several concatenations, and views between them, are one piecewise copy
        name="concat",
        anchors={"concat": always},
        gives_way=True,
        members=lambda kinds: _moves(kinds) and "concat" in kinds,
        follows=lambda first, second: {first, second} <= {*_MOVING},
        check=check_copy,
        lower=one_tiling(lower_copy),
        search=CopyLowering,
        epilogue=False,
    ),
    KernelKind(
        name="gather",
        anchors={"gather": always},
        check=check_move,
        lower=one_tiling(lower_gather),
        epilogue=False,
    ),
    KernelKind(
        name="scatter",
        anchors={"scatter_nd": always},
        check=check_move,
        lower=one_tiling(lower_scatter),
        epilogue=False,
        updates=0,
    ),
)


def _package_kind(name: str, found: Any) -> dict[str, KernelKind]:
    """The row that a package registers. Raises ValueError."""
    if not isinstance(found, KernelKind):
        raise ValueError("is not a ppuc.compiler.lowering.kernel_kind.KernelKind")
    if found.name != name:
        raise ValueError(f"the kind's own name is '{found.name}'")
    _check_row(found)
    _anchor(found)
    return {name: found}


KINDS: Extensible[str, KernelKind] = Extensible("ppuc.kinds", _package_kind)
"""Every row by name: built-in ones, and those that packages register in entry point group `ppuc.kinds`."""

_ANCHORED: dict[str, list[KernelKind]] = {}
"""Op name -> the kinds that such an op may anchor, those added last first."""


def add_kind(kind: KernelKind) -> KernelKind:
    """Add a row. Raises ValueError if the name is taken, an anchor or a member does not exist, or an anchor is an op
    that any kernel can contain (elementwise, a view, ...)."""
    if KINDS.holds(kind.name):
        raise ValueError(f"kernel kind '{kind.name}' is defined twice")
    _check_row(kind)
    _anchor(kind)
    KINDS[kind.name] = kind
    return kind


def _check_row(kind: KernelKind) -> None:
    for name in kind.anchors:
        if name not in OPS or not needs_kernel(name):
            raise ValueError(f"kernel kind '{kind.name}': op '{name}' cannot anchor a kernel")


def _anchor(kind: KernelKind) -> None:
    for name in kind.anchors:
        _ANCHORED.setdefault(name, []).insert(0, kind)


def _every_kind() -> Collection[KernelKind]:
    """All rows, those of packages last. All packages are loaded first, so that the choice of a row does not depend on
    when it is made."""
    return KINDS.complete().values()


# -- ops and bodies --------------------------------------------------------------------------------------------------


def needs_kernel(name: str) -> bool:
    """Whether ops of that name need a kernel of their own: neither elementwise nor reductions, nor views, pads or
    constants."""
    kind = OPS[name].kind
    return kind not in (*CHAIN_KINDS, Kind.VIEW, Kind.CONSTANT) and name not in ("insert", "pad", "unblock")


def anchoring_ops() -> frozenset[str]:
    """Names of the ops that anchor some kernel."""
    _every_kind()
    return frozenset(_ANCHORED)


def anchored_kind(op: Op) -> KernelKind | None:
    """The kind of kernel that `op` anchors; None if it anchors none."""
    _every_kind()
    return next((kind for kind in _ANCHORED.get(op.name, ()) if kind.anchors[op.name](op)), None)


def anchor_in(body: Graph) -> Op | None:
    """The anchor of `body`, which determines its kind; None for elementwise groups and copies. Anchors that give way
    are one only in a body that computes nothing: the first of them."""
    anchors = [op for op in body.ops if needs_kernel(op.name)]
    weak = [op for op in anchors if (kind := anchored_kind(op)) is not None and kind.gives_way]
    strong = [op for op in anchors if op not in weak]
    if len(strong) > 1:
        raise NotFusable("two anchors in one group")
    if strong or any(OPS[op.name].kind in CHAIN_KINDS for op in body.ops):
        return strong[0] if strong else None
    return weak[0] if weak else None


def check_group(body: Graph, target: Target) -> str:
    """The name of the kernel kind of `body`. Raises NotFusable with the reason if it has none."""
    require_tensors(body, target)
    anchor = anchor_in(body)
    if anchor is not None:
        kind = anchored_kind(anchor)
    else:
        rows = reversed([*_every_kind()])
        kind = next((row for row in rows if row.unanchored is not None and row.unanchored(body)), None)
    if kind is None:
        raise NotFusable(f"no kernel for '{anchor.name}'" if anchor is not None else "no kernel for the group")
    if kind.check is not None:
        kind.check(body, target)
    return kind.name


# -- groups ----------------------------------------------------------------------------------------------------------


def kind_named(name: str, where: str = "a group") -> KernelKind:
    """The row of that name. Raises UsageError: a dump is text, and may name an undefined kind."""
    kind = KINDS.get(name)
    if kind is None:
        raise UsageError.of(
            where,
            "has an unknown kernel kind",
            got=name or "none",
            expected=", ".join(KINDS),
            hint="if another package defines the kind, install it",
        )
    return kind


def group_kind(op: Op) -> KernelKind | None:
    """The kind of a group; None for other ops and for groups without a kind yet. Raises UsageError."""
    if not isinstance(op.attrs, GroupAttrs) or not op.attrs.kind:
        return None
    return kind_named(op.attrs.kind, f"group {op.results[0]}")


def group_anchor(op: Op) -> Op | None:
    """The anchor of a group; None for groups without a single anchor, and for other ops."""
    kind = group_kind(op)
    return anchor_in(op.body) if kind is not None and kind.anchors and op.body is not None else None


def may_follow(first: Op, second: Op, *, sharing: bool = True) -> bool:
    """Whether some kernel kind computes two groups of their kinds, possibly among more; without `sharing`, one that
    keeps all of what is between them in l1."""
    pair = _kind_name(first), _kind_name(second)
    rows = (kind for kind in _every_kind() if sharing or not kind.shares)
    return any(kind.follows is not None and kind.follows(*pair) for kind in rows)


def joined_kinds(groups: Sequence[Op]) -> list[KernelKind]:
    """The kernel kinds that may compute these consecutive groups."""
    names = tuple(map(_kind_name, groups))
    return [kind for kind in _every_kind() if kind.members is not None and kind.members(names)]


def _kind_name(op: Op) -> str:
    kind = group_kind(op)
    return "" if kind is None else kind.name


def lower_group(
    kind: str, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int = 0
) -> KernelBuilder:
    """Build the kernel of a group with the `rank`-th cheapest tiling. Raises NotFusable if there are fewer, or no
    tiling fits the target."""
    return kind_named(kind).lower(name, body, tensors, loc, target, rank)


def price_group(kind: str, body: Graph, target: Target) -> float:
    """Expected cycles of a kernel with its best tiles. Raises NotFusable if nothing fits, or the kind has no cost
    model."""
    return searched_group(kind, body, target).price


def searched_group(kind: str, body: Graph, target: Target) -> Searched:
    """A group with its best tiles, under the names of its values. Raises NotFusable like price_group."""
    search = kind_named(kind).search
    if search is None:
        raise NotFusable(f"kernels of kind {kind} have no cost model")
    return search("kernel", body, {v.name: v.name for v in (*body.params, *body.results)}, (), target)


def packages_of(kind: str, body: Graph) -> list[str]:
    """Other packages that define the kind or an op of `body`: kernels depend on their code, too."""
    functions: list[object] = [kind_named(kind).lower, *(OPS[op.name].infer for op in body.ops)]
    return sorted({f.__module__.partition(".")[0] for f in functions} - {"ppuc"})


for _row in _ROWS:
    add_kind(_row)
