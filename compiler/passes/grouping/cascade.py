"""Depth-first fusion: consecutive kernels become one where the tensor between them can stay in l1.

Dynamic programming cuts each chain of groups, in which every group reads the previous one, into kernels. The cost model
prices every possible kernel, of the cheapest kind; a cut costs the handover of a tile through l2.

Invariant: groups are joined only if the cost model expects the joint kernel to be faster than separate ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kernel_kind import KernelKind
from ppuc.compiler.lowering.kinds import joined_kinds, may_follow
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.analysis import users
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import DType
from ppuc.targets.schema import Target

_SLOWER = "one kernel that keeps the tensor in l1 would be slower than two"

MOST = 8
"""Maximum groups of one kernel."""


@dataclass(frozen=True, slots=True)
class Cascade(Pass):
    """Merge consecutive groups into one kernel where the tensors between them can stay in l1 and that is faster.

    Groups that only move elements become one copy, or the kernel before them stores its result where it belongs.

    %d = group(%x) {kind = "window"}; %y = group(%d, %w) {kind = "matmul"}
        ->  %y = group(%x, %w) {kind = "cascade"}
    %n = group(%x) {kind = "map"}; %h = group(%n, %v) {kind = "matmul"}; %y = group(%h, %w, %x) {kind = "matmul"}
        ->  %y = group(%x, %v, %w) {kind = "back-to-back"}
    %m = group(%x, %v) {kind = "matmul"}; %y = group(%m) {kind = "concat"}
        ->  %y = group(%x, %v) {kind = "matmul"}
    """

    name: ClassVar[str] = "cascade"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with cascades."""
        return with_graph(module, Cascading(module.graph, target).build())


@dataclass(frozen=True, slots=True)
class Cut:
    """The cheapest way to run a prefix of a chain: its cycles, and the first group of its last kernel."""

    price: float
    start: int


class Cascading:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.users = users(graph)
        self.outputs = {v.name for v in graph.results}
        self.position = {op.results[0].name: i for i, op in enumerate(graph.ops) if op.results}
        self.producer = {r.name: op for op in graph.ops for r in op.results}
        self.kernel_of: dict[str, tuple[Op, ...]] = {}  # result of a group -> the groups that it is joined with
        self.lowered = KernelCache(target)
        self._prices: dict[tuple[str, ...], float | None] = {}  # results of consecutive groups -> cycles of one kernel
        self._groups: dict[tuple[str, ...], Op] = {}  # the same -> their cheapest joint group
        self._why_not: dict[tuple[str, ...], str] = {}  # the same -> why no such kernel exists

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is joined."""
        joined: dict[str, Op] = {}  # first result of the last member -> the cascade
        gone: set[str] = set()  # first results of the other members
        for chain in self._chains():
            kernels = self._kernels(chain)
            if (remarks := listener()) is not None:
                self._remark(chain, kernels, remarks)
            for members in kernels:
                if len(members) > 1 and not self._depends_on_itself(members):
                    joined[members[-1].results[0].name] = self._groups[_key(members)]
                    gone |= {op.results[0].name for op in members[:-1]}
                    self.kernel_of |= dict.fromkeys((op.results[0].name for op in members), tuple(members))
        if not joined:
            return self.graph
        ops = [joined.get(op.results[0].name, op) if op.results else op for op in self.graph.ops]
        return self.graph.with_ops(in_order([op for op in ops if not op.results or op.results[0].name not in gone]))

    def _remark(self, chain: Sequence[Op], kernels: Sequence[Sequence[Op]], remarks: Collector) -> None:
        """A remark on every two consecutive groups, with the price of two kernels and of one. The first `writers` nodes
        belong to the first group."""
        kernel_of = {op.results[0].name: i for i, members in enumerate(kernels) for op in members}
        for first, second in itertools.pairwise(chain):
            value, nodes = first.results[0], (*first.loc, *second.loc)
            key = (value.name, second.results[0].name)
            apart = sum(self._price([op]) or 0.0 for op in (first, second)) + cost.handover_clk(self.target)
            joined, writers = self._price([first, second]), len(first.loc)
            if kernel_of[key[0]] == kernel_of[key[1]]:
                remarks.applied("cascaded", value.name, nodes, before=apart, after=joined, kernels=-1, writers=writers)
            else:
                why = self._why_not.get(key, _SLOWER)
                remarks.missed("not-cascaded", value.name, nodes, why, before=apart, after=joined, writers=writers)

    def _chains(self) -> list[list[Op]]:
        """Maximal chains of groups in which each reads the previous one and some kernel kind computes both."""
        chains: dict[str, list[Op]] = {}  # result of the last group -> chain
        found: list[list[Op]] = []
        for op in self.graph.ops:
            if op.body is None:
                continue
            before = (chains[v.name] for v in op.operands if v.name in chains)
            chain = next((chain for chain in before if self._continues(chain[-1], op)), None)
            if chain is None:
                chain = []
                found.append(chain)
            else:
                for result in chain[-1].results:
                    chains.pop(result.name)
            chain.append(op)
            chains |= dict.fromkeys((r.name for r in op.results), chain)
        return [chain for chain in found if _some_join(chain)]

    def _continues(self, first: Op, second: Op) -> bool:
        """Whether some kernel kind computes both groups. Indices and masks are written: what they choose depends on
        rounding, and they explain a result."""
        wide = (r for r in first.results if not r.type.dtype.is_float and r.type.dtype not in (DType.I8, DType.U8))
        return may_follow(first, second) and not any(wide)

    def _depends_on_itself(self, members: Sequence[Op]) -> bool:
        """Whether one kernel of these groups would read, through kernels that are joined already, what it computes.
        Only a kernel that ends after the first member begins can lead back to it."""
        inside = {op.results[0].name for op in members}
        first = self.position[members[0].results[0].name]
        read = (self.producer[v.name] for op in members for v in op.operands if v.name in self.producer)
        late = (op for op in read if op.results[0].name not in inside)
        if all(self.position[self._kernel(op)[-1].results[0].name] < first for op in late):
            return False
        seen: set[str] = set()
        stack = [*members]
        while stack:
            for user in (u for r in stack.pop().results for u in self.users[r.name]):
                name = user.results[0].name
                if name in inside or name in seen:
                    continue
                kernel = self._kernel(user)
                seen |= {op.results[0].name for op in kernel}
                if any(v.name in self.producer and self.producer[v.name].results[0].name in seen
                       for op in members for v in op.operands):  # fmt: skip
                    return True
                stack += kernel
        return False

    def _kernel(self, op: Op) -> Sequence[Op]:
        """The groups that are joined with `op`."""
        return self.kernel_of.get(op.results[0].name, (op,))

    def _left(self, members: Sequence[Op]) -> list[Value]:
        """The results of consecutive groups that others read. Raises NotFusable if some of these feed the groups."""
        inside = {op.results[0].name for op in members}
        found = [
            r
            for op in members
            for r in op.results
            if r.name in self.outputs or any(u.results[0].name not in inside for u in self.users[r.name])
        ]
        last = self.position[members[-1].results[0].name]
        seen: set[str] = set()
        stack = [u for r in found for u in self.users[r.name] if u.results[0].name not in inside]
        while stack:
            op = stack.pop()
            name = op.results[0].name
            if name in seen or self.position[name] > last:
                continue
            seen.add(name)
            for user in (u for r in op.results for u in self.users[r.name]):
                if user.results[0].name in inside:
                    raise NotFusable("another kernel reads one of the groups and feeds a later one")
                stack.append(user)
        return found

    def _kernels(self, chain: Sequence[Op]) -> list[list[Op]]:
        """The cut of the chain into kernels with the fewest cycles in total."""
        best = [Cut(0.0, 0)]
        for end in range(1, len(chain) + 1):
            cuts = []
            for start in range(max(0, end - MOST), end):
                price = self._price(chain[start:end])
                if price is not None:
                    cuts.append(Cut(best[start].price + price + cost.handover_clk(self.target), start))
            best.append(min(cuts, key=lambda c: c.price))
        kernels: list[list[Op]] = []
        end = len(chain)
        while end:
            kernels.append(list(chain[best[end].start : end]))
            end = best[end].start
        return kernels[::-1]

    def _price(self, members: Sequence[Op]) -> float | None:
        """Cycles of one kernel of these groups, of the cheapest kind; None if no such kernel exists or it has no
        price."""
        key = _key(members)
        if key not in self._prices:
            self._prices[key] = self._alone(members[0]) if len(members) == 1 else self._together(members)
        return self._prices[key]

    def _alone(self, group: Op) -> float:
        """Cycles of the group's own kernel; of kinds without a cost model, the time to move its tensors through l2."""
        try:
            return self.lowered.price(group)
        except NotFusable:
            moved = sum(v.type.bytes for v in (*group.operands, *group.results))
            return cost.latency_clk(self.target) + moved / cost.shared_rate(None, self.target, 1)

    def _together(self, members: Sequence[Op]) -> float | None:
        key, best = _key(members), None
        apart = sum(self._price([op]) or 0.0 for op in members)
        apart += (len(members) - 1) * cost.handover_clk(self.target)
        for kind in joined_kinds(members):
            if kind.least is not None and kind.least(members, self.target) >= apart:
                self._why_not[key] = "every unit would load the weights of all products"
                continue
            try:
                group = self._joined(members, kind)
                price = self.lowered.price(group)
            except NotFusable as error:
                self._why_not[key] = str(error)
                continue
            if best is None or price < best:
                self._groups[key], best = group, price
        if best is not None:
            self._why_not.pop(key, None)
        return best

    def _joined(self, members: Sequence[Op], kind: KernelKind) -> Op:
        """One group of that kind that computes `members`. Raises NotFusable if others read what the kind does not
        store."""
        left = self._left(members)
        if not kind.shares and any(r.name not in {v.name for v in members[-1].results} for r in left):
            raise NotFusable("a tensor between the groups has other readers")
        rename: dict[str, Value] = {}  # outer value -> inner
        ops: list[Op] = []
        operands: list[Value] = []
        for op in members:
            body = op.body
            assert body is not None
            inner: dict[str, Value] = {}
            for param, operand in zip(body.params, op.operands, strict=True):
                if operand.name not in rename:
                    rename[operand.name] = Value(self.names.fresh(param.name), param.type, param.space)
                    operands.append(operand)
                inner[param.name] = rename[operand.name]
            for o in body.ops:
                for r in o.results:
                    inner[r.name] = Value(self.names.fresh(r.name), r.type, r.space)
                ins, outs = (tuple(inner[v.name] for v in vs) for vs in (o.operands, o.results))
                ops.append(Op(o.name, o.attrs, ins, outs, o.loc, o.body))
            for result, outer in zip(body.results, op.results, strict=True):
                rename[outer.name] = inner[result.name]
        made = {r.name for o in ops for r in o.results}
        if any(o.name == "insert" and o.operands[0].name in made for o in ops):
            raise NotFusable("the groups write parts of one tensor, one after the other")
        # the last group's first result comes first: it names the kernel
        results = tuple(sorted(left, key=lambda r: r.name != members[-1].results[0].name))
        params = tuple(rename[v.name] for v in operands)
        body = Graph("body", params, tuple(rename[r.name] for r in results), tuple(ops))
        loc = tuple(dict.fromkeys(name for op in members for name in op.loc))
        return Op("group", GroupAttrs(kind.name), tuple(operands), results, loc, body)


def _some_join(chain: Sequence[Op]) -> bool:
    """Whether some kernel kind computes consecutive groups of a chain, which are then worth a price."""
    ends = ((start, end) for start in range(len(chain)) for end in range(start + 2, min(start + MOST, len(chain)) + 1))
    return any(joined_kinds(chain[start:end]) for start, end in ends)


def _key(members: Sequence[Op]) -> tuple[str, ...]:
    return tuple(op.results[0].name for op in members)


def in_order(ops: Sequence[Op]) -> list[Op]:
    """`ops` in an order in which every operand is defined before its use, otherwise as they are. Raises InternalError
    if an op depends on itself."""
    producer = {r.name: op for op in ops for r in op.results}
    found: list[Op] = []
    done: set[int] = set()
    begun: set[int] = set()
    for op in ops:
        stack = [op]
        while stack:
            top = stack[-1]
            waiting = [
                producer[v.name] for v in top.operands if v.name in producer and id(producer[v.name]) not in done
            ]
            if waiting:
                if id(top) in begun:
                    raise InternalError(f"{top.results[0]} depends on itself")
                begun.add(id(top))
                stack += waiting
                continue
            stack.pop()
            if id(top) not in done:
                done.add(id(top))
                found.append(top)
    return found
