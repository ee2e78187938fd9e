"""Groups ops into kernels.

A group grows from a seed op along the graph: a consumer joins if the body still fits one kernel (lowering's own
analysis decides) and no path leaves and re-enters the group. Anchors (matmul, conv, pool, attention) take their
epilogues first; remaining ops form row-wise and elementwise groups; data movement forms groups of its own. Views
between groups are free: each group loads or stores through them. Where that is impossible or slow, the view becomes a
copy.

The top level keeps groups, constants and aliases (reshapes that need no copy). A group's body contains its one-element
constants; every other operand is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import anchored_kind, needs_kernel
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import (
    CHANNELS_LAST,
    FEW_MOVES,
    FULL_RANK,
    GROUPED,
    MACHINE_FORMATS,
    NOT_EMPTY,
    PLAIN_PADS,
    PRIMITIVE,
    Contract,
)
from ppuc.compiler.passes.grouping.fuse_graph import GroupedGraph, is_view
from ppuc.compiler.passes.grouping.fuse_remarks import remark_groups
from ppuc.compiler.passes.grouping.growth import Batch, Growth
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS, Kind
from ppuc.targets.schema import Target

Run = list[tuple[int, list[int]]]
"""Consumers that join a group one after the other, each with the producers that join with it."""

MOST_TRIED = 256
"""Ops that are offered to one group before it is closed."""


@dataclass(frozen=True, slots=True)
class Fuse(Pass):
    """Group ops into kernels: anchors with their epilogues, row-wise chains, moves.

    %1 = matmul(%x, %w); %2 = add(%1, %b); %3 = relu(%2)
        ->  %3 = group(%x, %w, %b) {kind = "matmul"} { %1 = matmul ...; %2 = add ...; %3 = relu ... }
    """

    epilogues: bool = True
    name: ClassVar[str] = "fuse"
    required: ClassVar[str] = "kernels are built from groups"
    requires: ClassVar[tuple[Contract, ...]] = (
        PRIMITIVE,
        FEW_MOVES,
        PLAIN_PADS,
        MACHINE_FORMATS,
        CHANNELS_LAST,
        FULL_RANK,
        NOT_EMPTY,
    )
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with its ops in groups."""
        return with_graph(module, Grouping(module.graph, target, self.epilogues).build())


class Grouping(GroupedGraph):
    """One walk over a graph that assigns every computing op to a group."""

    def __init__(self, graph: Graph, target: Target, epilogues: bool) -> None:
        super().__init__(graph, target)
        self.epilogues = epilogues
        self.refused: dict[tuple[int, int], str] = {}
        """(group, op) -> why the op, a consumer of the group, is not part of it."""
        self.brought: dict[int, list[int]] = {}
        """Op of a group -> the producers that joined with it."""
        self.stretch = MOST_TRIED
        """Ops to add with one check: fewer than did not fit, twice those that did."""
        self.lowered = KernelCache(target)

    # -- growing -------------------------------------------------------------------------------------------------

    def build(self) -> Graph:
        """The grouped graph."""
        for i, op in enumerate(self.graph.ops):
            if needs_kernel(op.name):
                self._grow(i)
        for i in range(len(self.graph.ops)):
            if self._on_chain(i) and i not in self.group_of and not self._read_through(i):
                self._grow(i)
        self._break_cycles()
        for i, op in enumerate(self.graph.ops):
            if op.name == "insert" and i not in self.group_of:
                self._new_group(i)
        self._copies()
        graph = self._assemble()
        if (remarks := listener()) is not None:
            remark_groups(self, graph, self.refused, remarks)
        return graph

    def _grow(self, seed: int) -> None:
        """Grow a group from `seed`."""
        number = self._new_group(seed)
        members = self.groups[number]
        self._read_apart(seed, self._check)
        kind = anchored_kind(self.graph.ops[seed])
        if (kind is None or kind.epilogue) and self.epilogues:
            self._extend(number, seed)
        self._shed(members)
        while len(members) > 1 and (why_not := self._misfit(members)):
            self._drop_last(number, why_not)
        if len(members) == 1 and any(is_view(op) or op.name == "pad" for op in self._ops_of(members)):
            self._read_apart(seed, self._misfit)

    def _break_cycles(self) -> None:
        """Break cycles between groups by removing ops from them. Growth rules out a path that leaves and re-enters a
        group through single ops, but not one through another group."""
        while cycle := self.cycle():
            number = max((n for n in cycle if len(self.groups[n]) > 1), key=lambda n: self.groups[n][-1])
            alone = self._drop_last(number, "the kernel and another one would depend on each other")
            alone += self.groups[number] if len(self.groups[number]) == 1 else []
            for i in alone:
                if i in self.group_of:
                    self._read_apart(i, self._misfit)
                elif self._on_chain(i):
                    self._new_group(i)
                    self._read_apart(i, self._misfit)

    def _drop_last(self, number: int, why_not: str) -> list[int]:
        """Remove the last op of a group, which no other member reads, and the producers that joined with it."""
        members = self.groups[number]
        dropped = [members[-1], *self.brought.pop(members[-1], ())]
        self.refused[number, members[-1]] = why_not
        for i in dropped:
            members.remove(i)
            self._release(i)
        return dropped

    def _ops_of(self, members: Sequence[int]) -> list[Op]:
        return [self.graph.ops[i] for i in self._needed(members)]

    def _read_apart(self, seed: int, obstacle: Callable[[Sequence[int]], str]) -> None:
        """Stop reading through pads, then also through views, until `seed` alone forms a valid group."""
        for apart in ((), ("pad",), ("pad", "view")):
            if len(apart) >= len(self.apart.get(seed, ())):
                self.apart[seed] = apart
                if not obstacle([seed]):
                    return

    def _shed(self, members: list[int]) -> None:
        """Leave out ops whose results only other groups read and whose operands are stored anyway: the readers
        recompute them, which saves writing a tensor. What such an op reads stays, or it would not be stored."""
        if len(members) == 1:
            return
        stored = {r.name for r in self._body(members)[1]}
        inside = set(members)
        spare = [
            i
            for i in members[1:]
            if all(r.name in stored and r.name not in self.outputs for r in self.graph.ops[i].results)
            and OPS[self.graph.ops[i].name].kind is Kind.ELEMENTWISE
            and all(v.name in stored for v in self.graph.ops[i].operands if self.position.get(v.name) in inside)
            and not self._read_inside(i, inside)
        ]
        for i in spare:
            members.remove(i)
            self.refused[self._release(i), i] = "its readers recompute it from a tensor that is stored anyway"

    def _read_inside(self, i: int, members: AbstractSet[int]) -> bool:
        return any(u in members for r in self.graph.ops[i].results for u in self.users.get(r.name, ()))

    def _misfit(self, members: Sequence[int]) -> str:
        """Why no kernel of the group fits the target's memories; "" if one does."""
        body, _ = self._body(members)
        try:
            return self.lowered.obstacle(self._kind(members, body), body)
        except NotFusable as error:
            return str(error)

    def _extend(self, number: int, seed: int) -> None:
        """Try every later consumer of the group in order; one that fails taints its dependents. Ops that are alike join
        with one check; if it fails, half of them are tried, and never again as many."""
        members, growth = self.groups[number], Growth.of(self.graph, self.users, seed)
        room: int | None = None  # ops that may still fit, if more are known not to
        while True:
            before = growth.copy()
            run = self._batch(growth, self.stretch if room is None else (room + 1) // 2 or 1)
            if not run:
                break
            why_not = self._check(sorted(growth.members))
            if why_not:
                growth = before
                if len(run) > 1:
                    room = self.stretch = len(run) - 1
                    continue
                run = self._alone(growth, why_not if not run[0][1] else "")
                room = None
            elif room is not None:
                room -= len(run)
            else:
                self.stretch = max(self.stretch, 2 * len(run))
            self.brought.update(run)
            joined = [j for i, own in run for j in (*own, i)]
            members += joined
            members.sort()
            self._assign(joined, number)
        self.refused.update({(number, i): why_not for i, why_not in growth.refused.items()})

    def _batch(self, growth: Growth, most: int) -> Run:
        """Let the next ops join without a check, at most `most`: the first that may, and those like it."""
        batch = Batch()
        while len(batch.run) < most and (i := self._next(growth)) is not None:
            own = self._own_producers(i, growth)
            if not batch.takes(growth, i, own):
                growth.frontier.put_back(i)
                break
            growth.join((*own, i))
        return batch.run

    def _next(self, growth: Growth) -> int | None:
        """The next op that may join; those before it are refused."""
        while growth.frontier and growth.frontier.offered <= MOST_TRIED:
            i = growth.frontier.pop()
            why_not = self._obstacle(i, growth)
            if not why_not:
                return i
            growth.refuse(i, why_not)
        return None

    def _alone(self, growth: Growth, why_not: str) -> Run:
        """Let the next op that may join do so without its producers if it fits, or refuse it. `why_not` is why it does
        not fit, if known."""
        i = self._next(growth)
        assert i is not None
        why_not = why_not or self._check(sorted((*growth.members, i)))
        if why_not:
            growth.refuse(i, why_not)
            return []
        growth.join([i])
        return [(i, [])]

    def _obstacle(self, i: int, growth: Growth) -> str:
        """Why an op cannot join a group regardless of kernel support; "" if it can."""
        op = self.graph.ops[i]
        if op.name == "insert":
            return self._not_stored_inside(i, growth.inside)
        if not is_view(op) and OPS[op.name].kind not in CHAIN_KINDS:
            return f"'{op.name}' starts a kernel of its own"
        if i in self.group_of:
            return f"'{op.name}' is in another kernel already"
        if is_view(op) and (op.name not in ("reshape", "transpose") or not self._worth_storing(op)):
            return f"'{op.name}' is a view that its readers read through"
        if any(self._inserted(v) for v in op.operands):
            return f"'{op.name}' reads memory that an insert modifies"
        if any(v.name in growth.tainted for v in op.operands):
            return "another operand depends on the kernel's results: the kernel would depend on itself"
        if not any(v.name in growth.inside for v in op.operands):
            return f"'{op.name}' reads the kernel's results through ops that are not part of it"
        return ""

    def _read_through(self, i: int) -> bool:
        """Whether every reader of op `i` widens it on load."""
        name = self.graph.ops[i].results[0].name
        readers = [self.graph.ops[u] for u in self.users.get(name, ())]
        return name not in self.outputs and all(self._unpacked(self.graph.ops[i], r) for r in readers)

    def _worth_storing(self, op: Op) -> bool:
        """A view joins its producer unless another reader needs the producer's shape."""
        source = op.operands[0]
        return len(self.users.get(source.name, ())) == 1 and source.name not in self.outputs

    def _inserted(self, value: Value) -> bool:
        """Whether `value` results from an insert."""
        source = self.position.get(value.name)
        return source is not None and self.graph.ops[source].name == "insert"

    def _not_stored_inside(self, i: int, inside: set[str]) -> str:
        """Why the group cannot store its result as the inserted part of insert `i`; "" if it can."""
        base, part = self.graph.ops[i].operands
        if i in self.group_of:
            return "'insert' is in another kernel already"
        if base.name in inside or part.name not in inside or self.users[part.name] != [i] or part.name in self.outputs:
            return "'insert' needs a base in memory and a part without other readers"
        return ""

    def _own_producers(self, i: int, growth: Growth) -> list[int]:
        """Side branches that end in op `i`: ungrouped elementwise ops, not reachable from this group, that only `i` or
        each other read and that compute as many elements as `i`; none if they are too many for one group."""
        found: list[int] = []
        stack, elements = [i], self.graph.ops[i].results[0].type.elements
        while stack and len(found) <= MOST_TRIED:
            reader = stack.pop()
            for v in self.graph.ops[reader].operands:
                source = self.position.get(v.name)
                if source is None or source in self.group_of or growth.reached(v) or v.name in self.outputs:
                    continue
                elementwise = OPS[self.graph.ops[source].name].kind is Kind.ELEMENTWISE
                if elementwise and self.users[v.name] == [reader] and v.type.elements == elements:
                    found.append(source)
                    stack.append(source)
        return sorted(found) if len(found) <= MOST_TRIED else []

    def _check(self, members: Sequence[int]) -> str:
        """Why the ops cannot form one kernel with any tiling; "" if they can."""
        body, _ = self._body(members)
        try:
            self._kind(members, body)
        except NotFusable as error:
            return str(error)
        return ""
