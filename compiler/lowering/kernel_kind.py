"""The description of a kernel kind: the groups it accepts, how it is checked, priced and lowered, and the traits that
passes use.

`lowering.kinds` holds the table of kinds. Invariant: a trait describes what a kernel does, not which pass uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
Tiled = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], KernelBuilder]
"""Builds a kernel from its name, the body, the tensor of each parameter and result of the body, the ONNX nodes, and the
target."""


class Searched(Priced, Protocol):
    """A group with its best tiles: their price, and the kernel that they make."""

    def lower(self) -> KernelBuilder:
        """Build the kernel."""
        ...


Search = Callable[[str, Graph, Mapping[str, str], tuple[str, ...], Target], Searched]
"""Takes what Tiled takes."""


class Lower(Protocol):
    """Builds a kernel (see Tiled) with the `rank`-th cheapest tiling. Raises NotFusable if fewer tilings exist, or none
    fits the target."""

    def __call__(
        self, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int, /
    ) -> KernelBuilder: ...


def always(what: object) -> bool:
    """Accepts everything."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKind:
    """One kind of kernel. A group's kind follows from its anchor op, from its body if it has no anchor, or from the
    consecutive groups it was made of."""

    name: str
    """The kind's name in groups, dumps and reports."""
    anchors: Mapping[str, Takes] = field(default_factory=dict)
    """Names of ops that anchor such a kernel, each with a predicate on the op."""
    unanchored: TakesBody | None = None
    """Predicate on bodies without an anchor that make such a kernel (None: none do)."""
    members: Callable[[Sequence[str]], bool] | None = None
    """Predicate on the kinds of consecutive groups, each a reader of the previous one, that one such kernel may compute
    (None: it computes no such groups)."""
    follows: Callable[[str, str], bool] | None = None
    """Predicate on the kinds of two groups: whether the second may follow the first among such groups."""
    least: Callable[[Sequence[Op], Target], float] | None = None
    """Cycles that a kernel of such groups takes at the least; they need no search. None: no such bound."""
    shares: bool = False
    """The tensors between such groups may have other readers: the kernel stores those, too."""

    check: Check | None = None
    """Raises NotFusable, with the reason, if a body makes no such kernel, or a poor one, with any tiling. None: only
    `lower` can tell."""
    lower: Lower
    """Builds the kernel."""
    search: Search | None = None
    """Searches the best tiles; raises NotFusable if none fit. None: the kind has no cost model, and passes leave such
    groups unchanged."""

    gives_way: bool = False
    """A group may have several of its anchors, and if it computes something, too, its kind does not follow from them: a
    kernel stores its result through them."""
    epilogue: bool = True
    """The kernel supports an epilogue: elementwise ops can follow the anchor, and results can differ from operands in
    type. Without it, elements are stored as loaded."""
    overwrites: bool = False
    """The kernel writes each element of its result once, and reads operands of that shape only at the same point: the
    result may overwrite such an operand."""
    updates: int | None = None
    """The anchor's operand that the kernel updates in place; None: its results have their own memory."""
    rereads: bool = False
    """Every tile of result rows rereads the constants, so they benefit from l2."""
    shortest_k: int = 0
    """Minimum length of a part under split-K; 0: the kernel cannot be split along k."""
    shortest_keys: int = 0
    """Minimum keys of a part when attention is split along its keys; 0: the kernel has no keys."""


def one_tiling(lower: Tiled) -> Lower:
    """Wraps `lower`, which considers only its best tiling, as a Lower."""

    @wraps(lower)
    def ranked(
        name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...], target: Target, rank: int, /
    ) -> KernelBuilder:
        if rank:
            raise NotFusable("the kernel has one tiling")
        return lower(name, body, tensors, loc, target)

    return ranked
