"""What one kind of kernel is: which groups of ops it takes, how it is checked, priced and lowered, and what other parts
of the compiler need to know of its kernels.

The rows are in `lowering.kinds`. Invariant: a trait says what a kernel does, never which pass asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Protocol

from ppuc.compiler.lowering.cost import Priced
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.lowering.tiling.nest import KernelBuilder
from ppuc.ir.graph import Graph, Op
from ppuc.targets.schema import Target

Takes = Callable[[Op], bool]
TakesBody = Callable[[Graph], bool]
Check = Callable[[Graph, Target], object]
Price = Callable[[Graph, Target], float]
Tiled = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], KernelBuilder]
"""Builds a kernel: its name, the body, which tensor each parameter and result of the body stands for, the ONNX nodes,
the machine."""


class Lower(Protocol):
    """Builds a kernel (see Tiled) with the `rank`-th cheapest tiling. Raises NotFusable when there are not as many, or
    none fits the machine."""

    def __call__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int, /
    ) -> KernelBuilder: ...


def always(what: object) -> bool:
    """Takes everything."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKind:
    """One kind of kernel. A group is of the kind that its one anchor op, its body without an anchor, or the row of
    groups it was made of belongs to."""

    name: str
    """What groups, dumps and reports call the kind."""
    anchors: Mapping[str, Takes] = field(default_factory=dict)
    """Names of ops that anchor such a kernel, and which of the ops of that name do."""
    unanchored: TakesBody | None = None
    """Which bodies without an anchor make such a kernel (None: none)."""
    members: tuple[str, ...] = ()
    """Kinds of groups in a row, each the only reader of the one before it, that one such kernel can compute."""

    check: Check | None = None
    """Raises NotFusable, with the reason, when a body makes no such kernel or a poor one, whatever its tiles. None:
    nothing but `lower` can tell."""
    lower: Lower
    """Builds the kernel."""
    price: Price | None = None
    """Cycles that the cost model expects with the best tiles; raises NotFusable when none fit. None: there is no model,
    and passes leave such groups as they are."""

    epilogue: bool = True
    """The kernel computes on what it stores: elementwise ops can follow the anchor, and results can have another type
    than operands. Without it, elements are stored as they are loaded."""
    overwrites: bool = False
    """The kernel writes each element of its result once, and reads operands of that shape at the same point and nowhere
    else: the result may take the memory of such an operand."""
    updates: int | None = None
    """The operand of the anchor of which the kernel changes some elements in place; None: its results have memory of
    their own."""
    rereads: bool = False
    """Every tile of rows of the result reads the constants again: they are worth room in l2."""
    shortest_k: int = 0
    """Least length of a part when the kernel's sum is cut into partial sums; 0: it cannot be cut."""
    shortest_keys: int = 0
    """Least keys of a part when the kernel's keys are cut into parts that are put together afterwards; 0: it has no
    keys."""


def one_tiling(lower: Tiled) -> Lower:
    """`lower`, which considers no tiling but its best, as a Lower."""

    @wraps(lower)
    def ranked(
        name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int, /
    ) -> KernelBuilder:
        if rank:
            raise NotFusable("the kernel has one tiling")
        return lower(name, body, tensors, loc, target)

    return ranked


def price_of(lowering: Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], Priced]) -> Price:
    """The price that a lowering finds for its best tiles, as a Price."""

    @wraps(lowering)
    def price(body: Graph, target: Target) -> float:
        return lowering("kernel", body, {v.name: v.name for v in (*body.params, *body.results)}, (), target).price

    return price
