"""Batch-split: runs consecutive groups on a part of the batch at a time, so that the tensors between them fit l2.

Activations of a large batch exceed l2, and every kernel reads and writes device memory. In a part of the batch, the
tensors between the groups of a stage are small enough to stay in l2: all groups of the stage run on the first part,
then on the next. Stages, and the number of parts of each, are chosen together: by dynamic programming over the cuts
between groups, under the cost model.

Invariant: the parts of a stage are disjoint, cover the batch, and store what others read into one tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import may_follow
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.grouping.batch_axis import batched_operands, restricted, restricted_group
from ppuc.compiler.passes.memory.l2_plan import overwritten
from ppuc.compiler.passes.memory.live_ranges import live_ranges, storage_roots
from ppuc.compiler.passes.memory.memory_space_assignment import l2_values
from ppuc.compiler.passes.memory.minimalloc import max_live
from ppuc.compiler.passes.memory.ranges import Range, padded
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import EmptyAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import TensorType
from ppuc.targets.cost import hbm_bytes_per_clk, l2_bytes_per_clk, mixed_rate
from ppuc.targets.schema import Target

SHARE = 0.8
"""Share of l2 that the tensors of a part and the constants of its stage may take; the rest allows for fragmentation and
for tensors that outlive their readers."""

SMALL = 0.2
"""Share of l2 up to which a tensor of the whole batch, at the border of a stage, is expected to stay in l2."""

COUNTS = 3
"""Numbers of parts that are considered for a stage: the smallest that fit."""

TOLERANCE = 0.97
"""How much faster parts must look: the cost model knows neither fragmentation of l2 nor what else moves meanwhile."""

MOST = 64
"""Maximum parts of a stage: programs grow by the kernels of each."""

LONGEST = 24
"""Maximum cuts that a stage spans."""


@dataclass(frozen=True, slots=True)
class BatchSplit(Pass):
    """Run stages of groups on parts of the batch, where tensors of the whole batch do not fit l2.

    %a = group(%x) { conv }; %y = group(%a) { pool }
        ->  %0 = empty()
            %1 = group(%x) { slice [0:8]; conv }; %2 = group(%1, %0) { pool; insert }
            %3 = group(%x) { slice [8:16]; conv }; %y = group(%3, %2) { pool; insert }
    """

    name: ClassVar[str] = "batch-split"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with stages split."""
        if target.l2.managed != "software" or _all_fit_l2(module.graph, target):
            return module
        return with_graph(module, Staging(module.graph, target).build())


def _all_fit_l2(graph: Graph, target: Target) -> bool:
    """Whether l2 has room for all activations that live at the same time."""
    live = live_ranges(graph, storage_roots(graph))
    made = [r for op in graph.ops if op.name != "const" for r in op.results]
    return max_live([Range(r.name, padded(r.type), *live[r.name]) for r in made if r.name in live]) <= target.l2.bytes


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive groups that compute the same batch independently. `batched` are the positions of their batched
    operands; `last` is the position of the last reader of each value that they make (`len(groups)` if anything else
    reads it)."""

    groups: tuple[Op, ...]
    batched: tuple[frozenset[int], ...]
    last: dict[str, int]
    made: dict[str, int]

    @property
    def batch(self) -> int:
        """Size of the batch."""
        return self.groups[0].results[0].type.dims[0]

    @property
    def counts(self) -> list[int]:
        """Numbers of equal parts of the batch, at most MOST."""
        return [n for n in range(2, min(self.batch, MOST) + 1) if self.batch % n == 0]

    @property
    def reference(self) -> int:
        """The number of parts that prices of parts are derived from: about the square root of the batch."""
        return min(self.counts, key=lambda n: abs(math.log(n * n / self.batch)))

    def cuts(self) -> list[int]:
        """Positions between groups at which a stage may end: those crossed by at most one value, except between groups
        that one kernel could compute, and both ends."""
        crossing = [0] * (len(self.groups) + 1)
        for name, at in self.made.items():
            for cut in range(at + 1, self.last[name] + 1):
                crossing[cut] += 1
        pairs = itertools.pairwise(self.groups)
        joined = {cut for cut, (one, other) in enumerate(pairs, 1) if may_follow(one, other, sharing=False)}
        inner = [cut for cut in range(1, len(self.groups)) if crossing[cut] <= 1 and cut not in joined]
        return [0, *inner, len(self.groups)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Groups `first` to `end` (excluded) of a run, in `count` parts, and the expected cycles."""

    first: int
    end: int
    count: int
    price: float


@dataclass(slots=True)
class Best:
    """The cheapest stages up to a cut."""

    price: float = math.inf
    stages: tuple[Stage, ...] = ()


class Staging:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.lowered = KernelCache(target)
        self.handover = target.store.start_clk + cost.handover_latency_clk(target)
        self.constants = {op.results[0].name for op in graph.ops if op.name == "const"}
        self.fixed = {p.name for p in graph.params} | {v.name for v in graph.results}
        self.over = overwritten(graph)
        self.in_l2: frozenset[str] = frozenset()
        self._prices: dict[int, tuple[float, float]] = {}

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is split."""
        values, self.in_l2 = l2_values(self.graph, self.target)
        spilled = {name for name in values if name not in self.in_l2}
        runs = [run for run in self._runs() if not spilled.isdisjoint(run.made)] if spilled else []
        replaced: dict[int, list[Op]] = {}  # identity of a group -> what takes its place
        for run in runs:
            for stage in self._stages(run):
                parts, why_whole = self._split(run, stage)
                self._remark(run, stage, why_whole)
                if parts:
                    replaced |= {id(op): [] for op in run.groups[stage.first : stage.end]}
                    replaced[id(run.groups[stage.end - 1])] = parts
        if not replaced:
            return self.graph
        return self.graph.with_ops([new for op in self.graph.ops for new in replaced.get(id(op), [op])])

    # -- runs ----------------------------------------------------------------------------------------------------

    def _runs(self) -> Iterator[Run]:
        """The runs of the graph that have at least two groups."""
        groups: list[Op] = []
        batched: list[frozenset[int]] = []
        for op in self.graph.ops:
            if op.name == "const":
                continue
            found = batched_operands(op) if op.name == "group" else None
            joins = found is not None and self._joins(groups, op, found)
            if groups and not joins:
                yield from self._run(groups, batched)
                groups, batched = [], []
            if found is not None:
                groups.append(op)
                batched.append(found)
        yield from self._run(groups, batched)

    def _joins(self, groups: Sequence[Op], op: Op, batched: frozenset[int]) -> bool:
        """Whether `op` continues a run: it has the same batch and reads nothing of the run whole."""
        if not groups:
            return True
        if op.results[0].type.dims[0] != groups[0].results[0].type.dims[0]:
            return False
        whole = {v.name for i, v in enumerate(op.operands) if i not in batched}
        return all(r.name not in whole for other in groups for r in other.results)

    def _run(self, groups: Sequence[Op], batched: Sequence[frozenset[int]]) -> Iterator[Run]:
        if len(groups) < 2 or groups[0].results[0].type.dims[0] < 2:
            return
        made = {r.name: i for i, op in enumerate(groups) for r in op.results}
        position = {id(op): i for i, op in enumerate(groups)}
        last = {name: len(groups) if name in self.fixed else at for name, at in made.items()}
        for op in self.graph.ops:
            for v in op.operands:
                if v.name in made:
                    last[v.name] = max(last[v.name], position.get(id(op), len(groups)))
        run = Run(tuple(groups), tuple(batched), last, made)
        if run.counts:
            yield run

    # -- deciding ------------------------------------------------------------------------------------------------

    def _stages(self, run: Run) -> tuple[Stage, ...]:
        """The cheapest stages of a run."""
        cuts = run.cuts()
        best = {0: Best(0.0)}
        for k, end in enumerate(cuts[1:], 1):
            best[end] = Best()
            for first in cuts[max(0, k - LONGEST) : k]:
                for stage in self._candidates(run, first, end):
                    price = best[first].price + stage.price
                    if price < best[end].price:
                        best[end] = Best(price, (*best[first].stages, stage))
        return best[cuts[-1]].stages

    def _candidates(self, run: Run, first: int, end: int) -> Iterator[Stage]:
        """Groups `first` to `end` as they are, and in the smallest numbers of parts whose tensors fit l2."""
        yield Stage(first, end, 1, self._cycles(run, first, end, 1))
        fits = (n for n in run.counts if self._bytes(run, first, end, n) <= SHARE * self.target.l2.bytes)
        for count in itertools.islice(fits, COUNTS):
            yield Stage(first, end, count, self._cycles(run, first, end, count) / TOLERANCE)

    def _cycles(self, run: Run, first: int, end: int, count: int) -> float:
        """Expected cycles of a stage in `count` parts."""
        return count * sum(self._price(run, i, count, first, end) + self.handover for i in range(first, end))

    def _bytes(self, run: Run, first: int, end: int, count: int) -> int:
        """Peak bytes of l2 that a part of a stage takes, with its constants."""
        groups = run.groups[first:end]
        fixed = {v.name: padded(v.type) for op in groups for v in op.operands if v.name in self.constants}
        change = [0] * (end - first + 1)
        for i, op in enumerate(groups, first):
            for r in op.results:
                if run.last[r.name] >= end:
                    continue
                change[i - first] += padded(r.type) // count
                change[run.last[r.name] - first + 1] -= padded(r.type) // count
                old = self.over.get(r.name, "")
                if run.made.get(old, -1) >= first:  # its memory holds the result from here on
                    change[i - first] -= padded(r.type) // count
                    change[i - first + 1] += padded(r.type) // count
        live, peak = 0, 0
        for step in change:
            live += step
            peak = max(peak, live)
        return sum(fixed.values()) + peak

    def _price(self, run: Run, i: int, count: int, first: int, end: int) -> float:
        """Expected cycles of group `i` for one part of stage `first` to `end`: the larger of its price with everything
        in l2, and the time that device memory takes for what is expected there."""
        op = run.groups[i]
        operands = [v for k, v in enumerate(op.operands) if k in run.batched[i]]
        reads, writes = (
            sum(v.type.bytes / count for v in values if not self._in_l2(run, v, count, first, end))
            for values in (operands, op.results)
        )
        rate = mixed_rate(hbm_bytes_per_clk(self.target), reads, writes, self.target.hbm.turnaround)
        return max(self._price_in_l2(run, i, count), (reads + writes) / rate)

    def _in_l2(self, run: Run, value: Value, count: int, first: int, end: int) -> bool:
        """Whether a value that holds the batch is expected in l2."""
        if count == 1:
            return value.name in self.in_l2
        inside = first <= run.made.get(value.name, -1) and run.last.get(value.name, end) < end
        return inside or (value.name not in self.fixed and padded(value.type) <= SMALL * self.target.l2.bytes)

    def _price_in_l2(self, run: Run, i: int, count: int) -> float:
        """Expected cycles of group `i` for one of `count` parts with all operands in l2. The whole and one number of
        parts are priced, others lie on the line through them: start-up and drain are constant, the rest is in
        proportion to the batch."""
        op = run.groups[i]
        if id(op) not in self._prices:
            self._prices[id(op)] = (self._priced(op, run.batch), self._priced(op, run.batch // run.reference))
        whole, part = self._prices[id(op)]
        slope = (whole - part) / (1 - 1 / run.reference)
        return max(part - slope * (1 / run.reference - 1 / count), 0.0)

    def _priced(self, op: Op, batch: int) -> float:
        """Expected cycles of a group for `batch` elements with all operands in l2; of kinds without a cost model, those
        that l2 takes for its operands and results."""
        assert op.body is not None
        body = restricted(op.body, batch, {}, Builder())
        try:
            return self.lowered.price(op, body)
        except NotFusable:
            return sum(v.type.bytes for v in (*body.params, *body.results)) / l2_bytes_per_clk(self.target)

    # -- cutting -------------------------------------------------------------------------------------------------

    def _split(self, run: Run, stage: Stage) -> tuple[list[Op], str]:
        """The ops that replace a stage; none, and the reason, if it runs on the whole batch."""
        if stage.count == 1:
            return [], "parts of the batch are not faster: more kernels, or tensors that do not fit l2 either"
        try:
            return list(self._parts(run, stage)), ""
        except NotFusable as error:
            return [], str(error)

    def _parts(self, run: Run, stage: Stage) -> Iterator[Op]:
        """The groups of all parts of a stage, and the memory of the results that others read."""
        batch = run.batch // stage.count
        groups = range(stage.first, stage.end)
        whole = {r.name: r for i in groups for r in run.groups[i].results if run.last[r.name] >= stage.end}
        current: dict[str, Value] = {}
        for name, value in whole.items():
            current[name] = Value(self.names.fresh(f"{name}.whole"), value.type)
            loc = run.groups[run.made[name]].loc
            yield Op("empty", EmptyAttrs(value.type.dtype, value.type.dims), (), (current[name],), loc)
        for number in range(stage.count):
            for i in groups:
                op = run.groups[i]
                final = number == stage.count - 1
                results, bases = [], {}
                for k, r in enumerate(op.results):
                    if r.name in whole:
                        bases[k] = current[r.name]
                        results.append(r if final else Value(self.names.fresh(f"{r.name}.part"), r.type))
                    else:
                        type = TensorType(r.type.dtype, (batch, *r.type.dims[1:]))
                        results.append(Value(self.names.fresh(f"{r.name}.part"), type))
                operands = tuple(current.get(v.name, v) for v in op.operands)
                yield restricted_group(
                    op, batch, number * batch, operands, bases, tuple(results), self.names, self.target
                )
                current |= {r.name: made for r, made in zip(op.results, results, strict=True)}

    def _remark(self, run: Run, stage: Stage, why_whole: str) -> None:
        """Remark on a stage that was split, and on those that were not although their tensors do not fit l2."""
        if (remarks := listener()) is None:
            return
        groups = run.groups[stage.first : stage.end]
        name, loc = groups[-1].results[0].name, tuple(dict.fromkeys(n for op in groups for n in op.loc))
        before = self._cycles(run, stage.first, stage.end, 1)
        if not why_whole:
            after, extra = self._cycles(run, stage.first, stage.end, stage.count), (stage.count - 1) * len(groups)
            remarks.applied("batch-split", name, loc, before=before, after=after, parts=stage.count, kernels=extra)
        elif any(r.name not in self.in_l2 for op in groups for r in op.results):
            remarks.missed("not-batch-split", name, loc, why_whole, before=before)
