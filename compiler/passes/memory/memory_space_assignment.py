"""Decides which memory holds every value and which constants are prefetched into l2.

Activations live in l2 while they fit; inputs, outputs and constants live in hbm. Stage queues prefetch constants that
many tiles read into l2 before their kernel runs, as early as l2 has room.

Invariant: the ranges in l2 fit, because the address assignment that `allocate` makes later is tried here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.kinds import group_kind
from ppuc.compiler.lowering.tiling.body import Resolver
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, SPACES_ASSIGNED, Contract
from ppuc.compiler.passes.memory.assignment_remarks import Placed, remark_memories
from ppuc.compiler.passes.memory.capacity import require_hbm
from ppuc.compiler.passes.memory.l2_choice import Candidate, advanced, kept
from ppuc.compiler.passes.memory.l2_plan import overwritten, plan_l2
from ppuc.compiler.passes.memory.live_ranges import live_ranges, storage_roots
from ppuc.compiler.passes.memory.ranges import Range, padded
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import Space
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.schema import Target

LEAD_SHARES = (1.0, 0.75, 0.5, 0.0)
"""Shares of free l2 that prefetches may take, tried in order until everything fits."""

RETRY = 0.95
"""Factor that the assumed capacity is reduced by afterwards, to allow for fragmentation."""

AHEAD = 0.25
"""Benefit of staging per byte, beyond saved reads: the transfer overlaps with earlier kernels."""

SMALL = 1 / 20
"""Constants of up to this share of l2 are staged for prefetching alone."""


@dataclass(frozen=True, slots=True)
class MemorySpaceAssignment(Pass):
    """Assign values to l2 or hbm by the traffic saved, and stage shared constants into l2.

    %w = const()                ->  %w = const() @hbm; %w.l2 = stage(%w) @l2
    %y = group(%x, %w)              %y = group(%x, %w.l2) @l2
    """

    stage: bool = True
    name: ClassVar[str] = "memory-space-assignment"
    required: ClassVar[str] = "kernels need to know the memories of their operands"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED, SPACES_ASSIGNED)

    def run(self, module: Module, target: Target) -> Module:
        """The module with memory spaces on values and stage ops in its graph."""
        staged = self.stage and target.l2.managed == "software"
        graph, spaces = Placing(module.graph, target, staged).build()
        require_hbm(module, graph, spaces, target)
        return with_graph(module, _with_spaces(graph, spaces))


class Placing:
    """One placement of a grouped graph."""

    def __init__(self, graph: Graph, target: Target, stage: bool) -> None:
        ordered = sorted(graph.ops, key=lambda op: op.name != "const")  # then every later op is a kernel
        self.graph, self.target, self.steps = graph.with_ops(ordered), target, len(graph.ops)
        self.roots = storage_roots(graph)
        self.types = {v.name: v.type for v in graph.params}
        self.types |= {r.name: r.type for op in graph.ops for r in op.results}
        constants = {op.results[0].name for op in graph.ops if op.name == "const"}
        self.fixed = {p.name for p in graph.params} | {self.roots[v.name] for v in graph.results} | constants
        self.readers: dict[str, list[int]] = {}  # staging candidate -> positions of the groups that read it
        changed = {self.roots[r.name] for op in graph.ops if op.body is not None for r in op.results}
        stageable = constants | {p.name for p in graph.params if p.name not in changed}
        for step, op in enumerate(ordered):
            if op.name == "group" and stage:
                for name in dict.fromkeys(v.name for v in op.operands):
                    if name in stageable:
                        self.readers.setdefault(name, []).append(step)
        self.reads = reads_of(graph, self.roots)

    def build(self) -> tuple[Graph, dict[str, Space]]:
        """The graph with stage ops, and the memory space of every storage root."""
        values, staged = self.values(), self._staged()
        capacity = self.target.l2.bytes
        while True:
            chosen = kept([*values, *staged], self.steps, capacity)
            names = {c.name for c in chosen}
            ahead = [c for c in staged if c.name in names]
            rest = [c for c in values if c.name in names]
            for share in LEAD_SHARES:
                free = capacity - int((1.0 - share) * capacity)
                starts = advanced(ahead, rest, self.steps, free)
                graph = self._with_copies(starts)
                spaces = self._spaces(graph, {c.name for c in rest})
                if self._finds_addresses(graph, spaces, last=share == LEAD_SHARES[-1]):
                    if (remarks := listener()) is not None:
                        placed = Placed(self.graph, values, staged, chosen, starts, self.readers, capacity)
                        remark_memories(placed, self.target, remarks)
                    return graph, spaces
            capacity = int(capacity * RETRY)

    def values(self) -> list[Candidate]:
        """Activations as candidates: in l2 they save writes to and reads from device memory."""
        ranges = live_ranges(self.graph, self.roots)
        shared = overwritten(self.graph)
        last = {old: ranges[new][0] for new, old in shared.items()}
        found = []
        for name, (start, end) in ranges.items():
            if name not in self.fixed:
                size = padded(self.types[name])
                until = max(start, end - 1) if last.get(name) == end else end
                found.append(
                    Candidate(name, size, start, min(until, self.steps - 1), size * (1 + self.reads.get(name, 0)))
                )
        return found

    def _staged(self) -> list[Candidate]:
        """Constants and inputs as candidates: in l2 they are read from device memory only once. The first kernel waits
        for the copies of its operands, which therefore save the bytes that device memory delivers meanwhile less."""
        found = []
        first = min((steps[0] for steps in self.readers.values()), default=0)
        at_first = self._reads_at(first) if self.readers else {}
        waited = self.target.stage.start_ns / self.target.clk_ns * hbm_bytes_per_clk(self.target)
        for name, steps in self.readers.items():
            size, rows = padded(self.types[name]), max(_rows(self.graph.ops[s]) for s in steps)
            if size > self.target.l2.bytes or (rows <= 16 and size > SMALL * self.target.l2.bytes):
                continue
            saved = size * (max(self.reads[name], at_first.get(name, 0.0)) - 1)
            saved = saved - waited if steps[0] == first else max(saved, 0.0) + AHEAD * size
            if saved > 0:
                found.append(Candidate(name, size, max(steps[0] - 1, 0), steps[-1], saved))
        return found

    def _reads_at(self, step: int) -> dict[str, float]:
        """Reads of each operand of a group whose tiles occupy all units."""
        op = self.graph.ops[step]
        return {v.name: times for v, times in zip(op.operands, _reads(op, self.target.cu), strict=True)}

    def _with_copies(self, starts: Mapping[str, int]) -> Graph:
        """The graph with a stage op for each of `starts`, at that position."""
        builder = Builder(all_names(self.graph))
        constants = sum(op.name == "const" for op in self.graph.ops)
        before: dict[int, list[str]] = {}
        for name in sorted(starts, key=lambda n: (self.readers[n][0], n)):
            before.setdefault(max(starts[name], constants), []).append(name)
        renamed: dict[str, Value] = {}
        ops: list[Op] = []
        for step, op in enumerate(self.graph.ops):
            for name in before.get(step, ()):
                renamed[name] = Value(builder.fresh(f"{name}.l2"), self.types[name])
                source, loc = Value(name, self.types[name]), self.graph.ops[self.readers[name][0]].loc
                ops.append(Op("stage", Attrs(), (source,), (renamed[name],), loc))
            operands = tuple(renamed.get(v.name, v) for v in op.operands)
            ops.append(replace(op, operands=operands) if op.name == "group" else op)
        return self.graph.with_ops(ops)

    def _spaces(self, graph: Graph, chosen: set[str]) -> dict[str, Space]:
        """Memory space of every storage root of `graph`."""
        here = chosen | {op.results[0].name for op in graph.ops if op.name == "stage"}
        return {root: Space.L2 if root in here else Space.HBM for root in set(storage_roots(graph).values())}

    def _finds_addresses(self, graph: Graph, spaces: Mapping[str, Space], last: bool) -> bool:
        """Whether all values in l2 get addresses; only the `last` attempt searches exhaustively."""
        ranges = l2_ranges(graph, spaces)
        _, failed = plan_l2(ranges, overwritten(graph), self.target.l2.bytes, search=last)
        return not failed


def l2_values(graph: Graph, target: Target) -> tuple[frozenset[str], frozenset[str]]:
    """The activations of a grouped graph, by storage root, and which of them l2 has room for at the same time."""
    placing = Placing(graph, target, stage=False)
    values = placing.values()
    chosen = kept(values, placing.steps, target.l2.bytes)
    return frozenset(c.name for c in values), frozenset(c.name for c in chosen)


def _rows(op: Op) -> int:
    """Rows of a group's result, in tiles of which it reads its constants."""
    kind = group_kind(op)
    if kind is None or not kind.rereads:
        return 0
    result = op.results[0].type
    return result.elements // max(result.dims[-1] if result.rank else 1, 1)


def l2_ranges(graph: Graph, spaces: Mapping[str, Space]) -> dict[str, Range]:
    """Live range of every storage root in l2, ranked by how often its bytes are read."""
    types = {r.name: r.type for op in graph.ops for r in op.results} | {p.name: p.type for p in graph.params}
    ranks, live = priorities(graph), live_ranges(graph, storage_roots(graph))
    return {
        n: Range(n, padded(types[n]), *r, ranks.get(n, UNREAD)) for n, r in live.items() if spaces.get(n) is Space.L2
    }


UNREAD = 17
"""Rank of a value without readers."""

TILE = 128
"""Rows or columns of a typical tile: an operand is read once per tile along its missing dimension."""

FRAGMENT = 16
"""Rows or columns of the smallest tile that occupies a tensor engine's fragment."""


def priorities(graph: Graph) -> dict[str, int]:
    """Storage root -> rank for an address in l2, 0 first: staged values, then others by how often a byte is read (in
    powers of two)."""
    staged = {op.results[0].name for op in graph.ops if op.name == "stage"}
    reads = reads_of(graph, storage_roots(graph))
    ranks = {name: max(1, 16 - int(math.log2(max(times, 1.0)))) for name, times in reads.items()}
    return ranks | dict.fromkeys(staged, 0)


def reads_of(graph: Graph, roots: Mapping[str, str]) -> dict[str, float]:
    """Storage root -> number of times that each byte is read."""
    reads: dict[str, float] = {}
    for op in graph.ops:
        if op.body is not None:
            for v, times in zip(op.operands, _reads(op), strict=True):
                reads[roots[v.name]] = reads.get(roots[v.name], 0.0) + times
    return reads


def _reads(op: Op, units: int = 1) -> list[float]:
    """Estimated reads of each operand of a group: once per tile of the result along the dimensions that the operand
    lacks, in proportion to the share of its elements that the group reads. Tiles are small enough to occupy `units`."""
    body = op.body
    assert body is not None
    times = dict.fromkeys((p.name for p in body.params), 1.0)
    resolver = Resolver(body)
    for inner in body.ops:
        if inner.name not in ("matmul", "conv", "attention", "attention_parts"):
            continue
        result = inner.results[0].type.dims
        if inner.name in ("attention", "attention_parts"):
            tile = _side(math.prod(inner.operands[0].type.dims[:-1]) / units)
            factors = (1.0, *[_attention_rows(inner) / tile] * 2, _mask_reads(inner))
        else:
            tile = _side(math.sqrt(math.prod(result) / units))
            factors = (result[-1] / tile, math.prod(result[:-1]) / tile)
        for value, factor in zip(inner.operands, factors, strict=False):
            external = resolver.external(value)
            if external is not None:
                times[external.value.name] = max(times[external.value.name], factor)
    shares = _shares_read(body)
    return [times[p.name] * share for p, share in zip(body.params, shares, strict=True)]


def _side(wanted: float) -> float:
    """The side of a tile: `wanted`, but at most that of a typical tile, and no less than a fragment's."""
    return min(max(wanted, FRAGMENT), TILE)


def _attention_rows(op: Op) -> int:
    """Rows that read each key: the queries of all heads that share it."""
    query, key = op.operands[0].type.dims, op.operands[1].type.dims
    return query[1] // key[1] * query[2]


def _mask_reads(op: Op) -> float:
    """Reads of each element of an attention's mask: once for each batch and head that it is broadcast to."""
    if len(op.operands) < 4:
        return 0.0
    query, key, mask = (op.operands[i].type for i in (0, 1, 3))
    return math.prod(query.dims[:3]) * key.dims[2] / max(mask.elements, 1)


def _shares_read(body: Graph) -> list[float]:
    """Share of each parameter's elements that the body reads: less than 1 if slices alone read it."""
    sliced: dict[str, float] = {}
    for op in body.ops:
        elements = op.results[0].type.elements if op.name == "slice" else math.inf
        for name in {v.name for v in op.operands}:
            sliced[name] = sliced.get(name, 0) + elements
    return [min(1.0, sliced.get(p.name, math.inf) / max(p.type.elements, 1)) for p in body.params]


def _with_spaces(graph: Graph, spaces: Mapping[str, Space]) -> Graph:
    roots = storage_roots(graph)

    def put(v: Value) -> Value:
        return replace(v, space=spaces[roots[v.name]])

    ops = []
    for op in graph.ops:
        operands, results = tuple(put(v) for v in op.operands), tuple(put(v) for v in op.results)
        body = op.body and _body_in_spaces(op.body, operands, results)
        ops.append(replace(op, operands=operands, results=results, body=body))
    return replace(graph, params=tuple(map(put, graph.params)), results=tuple(map(put, graph.results)), ops=tuple(ops))


def _body_in_spaces(body: Graph, operands: tuple[Value, ...], results: tuple[Value, ...]) -> Graph:
    """The body with memory spaces on its parameters and results: tiling prices operands by their memory."""
    outer = zip((*body.params, *body.results), (*operands, *results), strict=True)
    spaces = {inner.name: v.space for inner, v in outer}

    def put(v: Value) -> Value:
        return replace(v, space=spaces[v.name]) if v.name in spaces else v

    ops = tuple(
        replace(op, operands=tuple(map(put, op.operands)), results=tuple(map(put, op.results))) for op in body.ops
    )
    return Graph(body.name, tuple(map(put, body.params)), tuple(map(put, body.results)), ops)
