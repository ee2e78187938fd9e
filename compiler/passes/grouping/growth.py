"""The state of one group while it grows, which can be copied to try out several ops at once.

Invariant: an op that is not part of the group taints its results, and no op that reads a tainted value joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ppuc.compiler.passes.grouping.frontier import Frontier
from ppuc.compiler.passes.grouping.fuse_graph import is_view
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs

Shape = tuple[int, ...]


@dataclass(slots=True)
class Growth:
    """A growing group. `passed` are results of the group and of views of them that its readers read through."""

    graph: Graph
    members: list[int]
    frontier: Frontier
    inside: set[str] = field(default_factory=set)
    tainted: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, users: Mapping[str, Sequence[int]], seed: int) -> Growth:
        """The group of op `seed` alone."""
        growth = Growth(graph, [], Frontier(users))
        growth.join([seed])
        return growth

    def copy(self) -> Growth:
        """A group in the same state."""
        sets = ({*self.inside}, {*self.tainted}, {*self.passed})
        return Growth(self.graph, [*self.members], self.frontier.copy(), *sets, {**self.refused})

    def join(self, ops: Iterable[int]) -> None:
        """Add ops to the group, whose readers then wait."""
        for i in ops:
            self.members.append(i)
            names = [r.name for r in self.graph.ops[i].results]
            self.inside.update(names)
            self.passed.update(names)
            self.frontier.add(names, near=True)

    def refuse(self, i: int, why_not: str) -> None:
        """Leave op `i` out."""
        op = self.graph.ops[i]
        self.refused[i] = why_not
        names = [r.name for r in op.results]
        self.tainted.update(names)
        near = (is_view(op) or op.name == "pad") and op.operands[0].name in self.passed
        self.passed.update(names if near else ())
        self.frontier.add(names, near=near)

    def reached(self, value: Value) -> bool:
        """Whether `value` depends on the group, or is part of it."""
        return value.name in self.inside or value.name in self.tainted


class Batch:
    """Ops that join a group with one check for all: each computes, element by element or along the same axes, values of
    one shape. A group that ends within them fits a kernel when all of them do, so that they join as one at a time
    would. The first op of a batch is arbitrary."""

    def __init__(self) -> None:
        self.run: list[tuple[int, list[int]]] = []
        """The ops in order, each with the producers that join with it."""
        self._shapes: set[Shape] | None = set()

    def takes(self, growth: Growth, i: int, own: Sequence[int]) -> bool:
        """Add op `i` of `growth` and its producers `own`, unless it needs a check of its own."""
        shapes = _shapes(growth, i, own)
        joint = None if shapes is None or self._shapes is None else self._shapes | shapes
        fits = joint is not None and _along_one(joint)
        if self.run and not fits:
            return False
        self.run.append((i, [*own]))
        self._shapes = joint if fits else None
        return True


def _shapes(growth: Growth, i: int, own: Sequence[int]) -> set[Shape] | None:
    """The shapes of what op `i` and its producers compute and read from the group; None if some op is neither
    elementwise nor a scan or a reduction."""
    ops = [growth.graph.ops[j] for j in (*own, i)]
    if not all(len(op.results) == 1 and _plain(op) for op in ops):
        return None
    values = [v for op in ops for v in op.operands if v.name in growth.inside or _reduces(op)]
    return {v.type.dims for v in (*values, *(op.results[0] for op in ops))}


def _plain(op: Op) -> bool:
    return OPS[op.name].kind in (Kind.ELEMENTWISE, Kind.SCAN) or (_reduces(op) and op.attrs.keepdims)  # type: ignore[attr-defined]


def _reduces(op: Op) -> bool:
    return isinstance(op.attrs, ReduceAttrs | ArgreduceAttrs)


def _along_one(shapes: set[Shape]) -> bool:
    """Whether `shapes` are one shape, or one and the same reduced along some axes."""
    if len(shapes) < 2:
        return True
    if len(shapes) > 2:
        return False
    one, other = sorted(shapes)
    return len(one) == len(other) and all(a in (1, b) for a, b in zip(one, other, strict=True))
