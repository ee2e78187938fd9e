"""Depth-first fusion: consecutive kernels become one where the tensor between them can stay in l1.

Dynamic programming cuts each chain of groups, in which every group is the only reader of the previous one, into
kernels. The cost model prices every possible kernel; a cut costs the handover of a tile through l2.

Invariant: groups are joined only if the cost model expects the joint kernel to be faster than separate ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import joined_kind, may_follow
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Cascade(Pass):
    """Merge consecutive groups into one kernel where the tensors between them can stay in l1 and that is faster.

    %d = group(%x) {kind = "window"}; %y = group(%d, %w) {kind = "matmul"}
        ->  %y = group(%x, %w) {kind = "cascade"}
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
        self.lowered = KernelCache(target)
        self._prices: dict[tuple[str, ...], float | None] = {}  # results of consecutive groups -> cycles of one kernel
        self._why_not: dict[tuple[str, ...], str] = {}  # the same -> why no such kernel exists

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is joined."""
        joined: dict[str, Op] = {}  # name of the last group's first result -> the cascade
        gone: set[str] = set()
        for chain in self._chains():
            kernels = self._kernels(chain)
            if (remarks := listener()) is not None:
                self._remark(chain, kernels, remarks)
            for members in kernels:
                if len(members) > 1:
                    joined[members[-1].results[0].name] = self._joined(members)
                    gone |= {op.results[0].name for op in members[:-1]}
        if not joined:
            return self.graph
        ops = [joined.get(op.results[0].name, op) if op.results else op for op in self.graph.ops]
        return self.graph.with_ops(op for op in ops if not op.results or op.results[0].name not in gone)

    def _remark(self, chain: Sequence[Op], kernels: Sequence[Sequence[Op]], remarks: Collector) -> None:
        """A remark on every two consecutive groups, with the price of two kernels and of one. The first `writers` nodes
        belong to the first group."""
        kernel_of = {op.results[0].name: i for i, members in enumerate(kernels) for op in members}
        for first, second in itertools.pairwise(chain):
            value, nodes = first.results[0], (*first.loc, *second.loc)
            key = (value.name, second.results[0].name)
            apart = sum(self._price([op]) or 0.0 for op in (first, second)) + self._handover_clk()
            joined, writers = self._price([first, second]), len(first.loc)
            if kernel_of[key[0]] == kernel_of[key[1]]:
                remarks.applied("cascaded", value.name, nodes, before=apart, after=joined, kernels=-1, writers=writers)
            else:
                why = self._why_not.get(key, "one kernel that keeps the tensor in l1 would be slower than two")
                remarks.missed("not-cascaded", value.name, nodes, why, before=apart, after=joined, writers=writers)

    def _chains(self) -> list[list[Op]]:
        """Maximal chains of groups in which each is the only reader of the previous one."""
        chains: dict[str, list[Op]] = {}  # result of the last group -> chain
        for op in self.graph.ops:
            if op.body is None:
                continue
            chain = next(
                (chains.pop(v.name) for v in op.operands if v.name in chains and self._follows(chains, v, op)), []
            )
            chain.append(op)
            chains[op.results[0].name] = chain
        return [chain for chain in chains.values() if len(chain) > 1]

    def _follows(self, chains: dict[str, list[Op]], value: Value, op: Op) -> bool:
        """Whether `op` is the only reader of `value` and a cascade supports the two groups' kinds."""
        before = chains[value.name][-1]
        alone = len(self.users[value.name]) == 1 and sum(v.name == value.name for v in op.operands) == 1
        return may_follow(before, op) and alone and len(before.results) == 1 and value.name not in self.outputs

    def _kernels(self, chain: Sequence[Op]) -> list[list[Op]]:
        """The cut of the chain into kernels with the fewest cycles in total."""
        best = [Cut(0.0, 0)]
        for end in range(1, len(chain) + 1):
            cuts = []
            for start in range(end):
                price = self._price(chain[start:end])
                if price is not None:
                    cuts.append(Cut(best[start].price + price + self._handover_clk(), start))
            best.append(min(cuts, key=lambda c: c.price))
        kernels: list[list[Op]] = []
        end = len(chain)
        while end:
            kernels.append(list(chain[best[end].start : end]))
            end = best[end].start
        return kernels[::-1]

    def _price(self, members: Sequence[Op]) -> float | None:
        """Cycles of one kernel of these groups; None if no such kernel exists or it has no price."""
        key = tuple(op.results[0].name for op in members)
        if key not in self._prices:
            try:
                self._prices[key] = self.lowered.price(members[0] if len(members) == 1 else self._joined(members))
            except NotFusable as error:
                self._why_not[key] = str(error)
                self._prices[key] = 0.0 if len(members) == 1 else None
        return self._prices[key]

    def _handover_clk(self) -> float:
        """Cycles from a kernel's last store to its reader's first load that the two kernels' prices do not include."""
        return self.target.store.start_clk + cost.handover_latency_clk(self.target)

    def _joined(self, members: Sequence[Op]) -> Op:
        """One group that computes `members`. Raises NotFusable if no kernel kind supports it."""
        kind = joined_kind(members)
        if kind is None:
            raise NotFusable("no kernel kind cascades groups of these kinds")
        rename: dict[str, Value] = {}  # outer value -> inner
        ops: list[Op] = []
        operands: list[Value] = []
        for op in members:
            body = op.body
            assert body is not None
            inner: dict[str, Value] = {}
            for param, operand in zip(body.params, op.operands, strict=True):
                if operand.name not in rename:
                    rename[operand.name] = replace(param, name=self.names.fresh(param.name))
                    operands.append(operand)
                inner[param.name] = rename[operand.name]
            for o in body.ops:
                for r in o.results:
                    inner[r.name] = replace(r, name=self.names.fresh(r.name))
                ins, outs = (tuple(inner[v.name] for v in vs) for vs in (o.operands, o.results))
                ops.append(replace(o, operands=ins, results=outs))
            for result, outer in zip(body.results, op.results, strict=True):
                rename[outer.name] = inner[result.name]
        last = members[-1]
        params = tuple(rename[v.name] for v in operands)
        body = Graph("body", params, tuple(rename[r.name] for r in last.results), tuple(ops))
        loc = tuple(dict.fromkeys(name for op in members for name in op.loc))
        return Op("group", GroupAttrs(kind.name), tuple(operands), last.results, loc, body)
