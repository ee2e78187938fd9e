"""Decides in which memory every value lives and which constants are staged ahead.

Activations go to l2 while they fit; inputs, outputs and constants live in hbm. Constants that many tiles read are
copied to l2 by the stage queues before their kernel runs, as early as l2 has room.

Invariant afterwards: every top-level value has a space, and all ranges of l2 fit it together (the same assignment that
`allocate` makes succeeds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.body import Resolver
from ppuc.compiler.lowering.capacity import require_hbm
from ppuc.compiler.lowering.l2_plan import overwritten, plan_l2
from ppuc.compiler.lowering.memory import Range, live_ranges, padded, storage_roots
from ppuc.compiler.passes.graph_walk import with_graph
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.rewrite import Builder, all_names
from ppuc.ir.types import Space
from ppuc.targets.schema import Target

SHARES = (0.0, 0.5, 0.75)
"""Parts of what staged tensors may take of l2 that are given to activations instead, tried until none is spilled."""


@dataclass(frozen=True, slots=True)
class Place:
    """Put every value in l2 or hbm by its live range, and stage shared constants into l2.

    %w = const()                ->  %w = const() @hbm; %w.l2 = stage(%w) @l2
    %y = group(%x, %w)              %y = group(%x, %w.l2) @l2
    """

    stage: bool = True
    activation_share: float = 0.6
    name: ClassVar[str] = "place"

    def run(self, module: Module, target: Target) -> Module:
        """The module with spaces on values and stage ops in its graph."""
        best: tuple[float, Graph, dict[str, Space]] | None = None
        staged = self.stage and target.l2.managed == "software"
        for part in SHARES if staged else (0.0,):
            share = self.activation_share + part * (1.0 - self.activation_share)
            graph = _stage(module.graph, target, share) if staged else module.graph
            spaces, spilled = _spaces(graph, target)
            if best is None or spilled < best[0]:
                best = spilled, graph, spaces
            if not spilled:
                break
        assert best is not None
        _, graph, spaces = best
        require_hbm(module, graph, spaces, target)
        return with_graph(module, _with_spaces(graph, spaces))


def _stage(graph: Graph, target: Target, share: float) -> Graph:
    """Insert stage ops for constants (and inputs) that groups read more than once in parallel tiles."""
    budget = int(target.l2.bytes * (1 - share))
    roots = storage_roots(graph)
    changed = {roots[r.name] for op in graph.ops if op.body is not None for r in op.results}
    stageable = {p.name: p for p in graph.params if p.name not in changed}
    stageable |= {op.results[0].name: op.results[0] for op in graph.ops if op.name == "const"}
    uses: dict[str, list[int]] = {}
    for step, op in enumerate(graph.ops):
        if op.name == "group":
            for name in {v.name for v in op.operands if v.name in stageable}:
                uses.setdefault(name, []).append(step)
    chosen = {n for n, at in uses.items() if _worth(stageable[n], [graph.ops[s] for s in at], budget)}
    builder = Builder(all_names(graph))
    first = {n: uses[n][0] for n in chosen}
    window: list[tuple[int, int]] = []  # (step of first use, bytes) of staged constants, in order of use
    before: dict[int, list[str]] = {}
    for name in sorted(chosen, key=lambda n: (first[n], n)):
        size = padded(stageable[name].type)
        window.append((first[name], size))
        total, at = 0, first[name]
        for step, taken in reversed(window):
            total += taken
            if total > budget:
                break
            at = step
        if total <= budget:
            at = 0
        before.setdefault(min(at, first[name]), []).append(name)
    renamed: dict[str, Value] = {}
    ops: list[Op] = []
    constants = [op for op in graph.ops if op.name == "const"]
    ops += constants
    for step, op in enumerate(graph.ops):
        for name in before.get(step, ()):
            value = stageable[name]
            renamed[name] = Value(builder.fresh(f"{name}.l2"), value.type)
            ops.append(Op("stage", Attrs(), (value,), (renamed[name],), _loc_of(graph, first[name])))
        if op.name == "const":
            continue
        operands = op.operands
        if op.name == "group":
            operands = tuple(renamed.get(v.name, v) for v in operands)
        ops.append(replace(op, operands=operands))
    return graph.with_ops(ops)


def _loc_of(graph: Graph, step: int) -> tuple[str, ...]:
    return graph.ops[step].loc


def _worth(value: Value, readers: list[Op], budget: int) -> bool:
    """Whether staging pays: the tensor fits, and kernels re-read it for every tile of another dimension; or it is small
    enough to come ahead of its kernel while the memory is idle."""
    size = padded(value.type)
    if size > budget:
        return False
    rows = 0
    for op in readers:
        kind = op.attrs.kind  # type: ignore[attr-defined]
        if kind in ("matmul", "conv", "window", "attention"):
            result = op.results[0].type
            rows = max(rows, result.elements // max(result.dims[-1] if result.rank else 1, 1))
    return rows > 16 or size <= budget // 8


def _spaces(graph: Graph, target: Target) -> tuple[dict[str, Space], float]:
    """Space of every storage root, and the bytes that found no room in l2."""
    roots = storage_roots(graph)
    ranges = live_ranges(graph, roots)
    types = {r.name: r.type for op in graph.ops for r in op.results} | {p.name: p.type for p in graph.params}
    fixed = {p.name for p in graph.params} | {roots[v.name] for v in graph.results}
    fixed |= {op.results[0].name for op in graph.ops if op.name == "const"}
    spaces = dict.fromkeys(fixed, Space.HBM)
    ranks, shared = priorities(graph), overwritten(graph)
    wanted = {n: Range(n, padded(types[n]), *r, ranks.get(n, UNREAD)) for n, r in ranges.items() if n not in fixed}
    chosen = dict(wanted)
    while True:
        _, failed = plan_l2(chosen, shared, target.l2.bytes)
        if not failed:
            break
        for name in failed[: max(1, len(failed) // 4)]:
            del chosen[name]
    spilled = float(sum(r.bytes for n, r in wanted.items() if n not in chosen))
    return spaces | {n: Space.L2 if n in chosen else Space.HBM for n in wanted}, spilled


UNREAD = 17
"""Rank of a value that no kernel reads."""

TILE = 128
"""Rows or columns of a typical tile: what an operand's other dimension is divided by to tell how often it is read."""


def priorities(graph: Graph) -> dict[str, int]:
    """Storage root -> rank for a place in l2, 0 first: staged values, then others by how often a byte is read (in
    powers of two), since a byte of l2 saves that many bytes of hbm traffic."""
    roots = storage_roots(graph)
    reads: dict[str, float] = {}
    for op in graph.ops:
        if op.body is not None:
            for v, times in zip(op.operands, _reads(op), strict=True):
                reads[roots[v.name]] = reads.get(roots[v.name], 0.0) + times
    staged = {op.results[0].name for op in graph.ops if op.name == "stage"}
    ranks = {name: max(1, 16 - int(math.log2(max(times, 1.0)))) for name, times in reads.items()}
    return ranks | dict.fromkeys(staged, 0)


def _reads(op: Op) -> list[float]:
    """About how often each operand of a group is read: once for every tile of the result along the dimensions that the
    operand lacks."""
    body = op.body
    assert body is not None
    times = dict.fromkeys((p.name for p in body.params), 1.0)
    resolver = Resolver(body)
    for inner in body.ops:
        if inner.name not in ("matmul", "attention", "attention_parts"):
            continue
        result = inner.results[0].type.dims
        rows, columns = math.prod(result[:-1]) / TILE, result[-1] / TILE
        factors = (columns, rows) if inner.name == "matmul" else (1.0, result[-2] / TILE, result[-2] / TILE)
        for value, factor in zip(inner.operands, factors, strict=False):
            external = resolver.external(value)
            if external is not None:
                times[external.value.name] = max(times[external.value.name], factor)
    return [times[p.name] for p in body.params]


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
    """The body with the spaces of what its parameters and results stand for: tiling prices operands by their memory."""
    outer = zip((*body.params, *body.results), (*operands, *results), strict=True)
    spaces = {inner.name: v.space for inner, v in outer}

    def put(v: Value) -> Value:
        return replace(v, space=spaces[v.name]) if v.name in spaces else v

    ops = tuple(
        replace(op, operands=tuple(map(put, op.operands)), results=tuple(map(put, op.results))) for op in body.ops
    )
    return Graph(body.name, tuple(map(put, body.params)), tuple(map(put, body.results)), ops)
