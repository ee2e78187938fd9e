"""Split-K: splits contractions that have too few result tiles for all units along the summed dimension.

Invariant: partial sums are stored in the accumulator's type and added in a fixed order, part 0 first, whatever order
the units finish in; a contraction is split only if the cost model expects the two kernels to be faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache, canonical_body
from ppuc.compiler.lowering.kernel_kind import KernelKind
from ppuc.compiler.lowering.kinds import anchor_in, check_group, group_kind
from ppuc.compiler.lowering.tiling.body import NotFusable, Resolver
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.grouping.parts import Parts
from ppuc.compiler.passes.grouping.split_keys import cut_keys, keys_of
from ppuc.compiler.passes.memory.live_ranges import storage_roots
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.bodies import ancestors
from ppuc.compiler.passes.rules.constants import folded
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import points
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import Space
from ppuc.targets.cost import hbm_bytes_per_clk, in_order, l2_bytes_per_clk
from ppuc.targets.schema import Target

PARTS = (2, 3, 4, 6, 8)
"""Candidate numbers of parts: each part costs a load in the kernel that adds them."""

LIBRARY_PARTS = (*PARTS, 16, 32)
"""Candidates of kernel libraries, which split a tile or two with a long k over all units."""

KEY_PARTS = (2, 4, 8, 16, 32)
"""Candidate numbers of parts for an attention's keys."""

WORSE = 1.1
"""The search stops at a price this many times the best one so far."""

FEW_ROWS = 16
"""With at most this many rows, a product reads its weights about once."""


@dataclass(frozen=True, slots=True)
class SplitK(Pass):
    """Split contractions with too few result tiles for all units along k, and add the parts in a separate kernel.

    %y = group(%a, %b) { %c = matmul(%a, %b); relu(%c) }
        ->  %p: f32[2, m, n] = group(%a, %b) { matmul of both halves of k }
            %y = group(%p) { relu(%p[0] + %p[1]) }
    """

    name: ClassVar[str] = "split-k"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with contractions split where that is faster."""
        return with_graph(module, Splitting(module.graph, target).build())


class Splitting:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.constants = {op.results[0].name: op for op in graph.ops if op.name == "const"}
        self.lowered = KernelCache(target)
        self.roots = storage_roots(graph)
        self.inputs = {p.name for p in graph.params}
        self.decided: dict[object, Parts] = {}

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is split."""
        ops: list[Op] = []
        for op in self.graph.ops:
            ops += self._op(op)
        return self.graph if len(ops) == len(self.graph.ops) else without_dead_ops(self.graph.with_ops(ops))

    def _op(self, op: Op) -> list[Op]:
        kind = group_kind(op)
        if op.body is None or kind is None or not (kind.shortest_k or kind.shortest_keys) or self.target.cu == 1:
            return [op]
        _, key = canonical_body(self._in_memory(op))
        if key not in self.decided:
            self.decided[key] = self._best_keys(kind, op) if kind.shortest_keys else self._best(kind, op)
        parts = self.decided[key]
        parts.remark("split-keys" if kind.shortest_keys else "split-k", op, kernels=1)
        if parts.count == 1:
            return [op]
        if kind.shortest_keys:
            return cut_keys(op, parts.count, self.names, self.target)
        return self._cut(op, parts.count)

    def _in_memory(self, op: Op) -> Graph:
        """The body of a group with its operands in their likely memories: hbm for model inputs and for large constants
        that few rows read."""
        body = op.body
        assert body is not None
        rows = max((r.type.elements // max(r.type.dims[-1], 1) for r in op.results if r.type.rank), default=1)
        there = set()
        for p, v in zip(body.params, op.operands, strict=True):
            streamed = v.name in self.constants and rows <= FEW_ROWS and v.type.bytes > self.target.l2.bytes // 16
            if streamed or self.roots.get(v.name) in self.inputs:
                there.add(p.name)

        def put(v: Value) -> Value:
            return replace(v, space=Space.HBM) if v.name in there else v

        ops = tuple(replace(o, operands=tuple(map(put, o.operands))) for o in body.ops)
        return Graph(body.name, tuple(map(put, body.params)), body.results, ops)

    def _best_keys(self, kind: KernelKind, op: Op) -> Parts:
        """The number of parts for an attention's keys; 1 leaves it whole."""
        why_not = "parts would have too few keys"
        try:
            whole = self._price(op)
        except NotFusable as error:
            return Parts(1, why_whole=str(error))
        prices: dict[int, float] = {}
        for parts in KEY_PARTS:
            if keys_of(op) // parts < kind.shortest_keys:
                break
            try:
                first, second, _ = cut_keys(op, parts, self.names, self.target)
                prices[parts] = self._price(first) + self._price(second) + self._handover_clk()
            except NotFusable as error:
                why_not = str(error)
        return _cheapest(whole, prices, why_not)

    def _best(self, kind: KernelKind, op: Op) -> Parts:
        """The number of parts, 1 to leave the group whole."""
        body = op.body
        assert body is not None
        anchor = anchor_in(body)
        if anchor is None or not self._divisible(anchor, op):
            return Parts(1, why_whole="only ungrouped convolutions with constant weights are split")
        try:
            whole = least = self._price(op)
        except NotFusable as error:  # no tile fits the target: tiling reports the error
            return Parts(1, why_whole=str(error))
        bound, read = self._bound(anchor), self._read_clk(body, anchor)
        latency, handover = cost.latency_clk(self.target), self._handover_clk()
        if whole < max(bound + 2 * handover, read + latency + handover):
            return Parts(1, whole, why_whole="two handovers cost as much as more units would save")
        length, prices = _length(anchor), dict[int, float]()
        why_not = f"{length} does not divide into long enough parts of whole fragments"
        for parts in LIBRARY_PARTS if in_order(self.target) else PARTS:
            if length % (parts * 16) or length // parts < kind.shortest_k:
                continue
            if max(bound, read - latency) + self._adding_clk(anchor, parts) > least:
                why_not = "adding the parts costs as much as more units would save"
                break
            try:
                *_, first, second = self._cut(op, parts)
                prices[parts] = self._price(first) + max(self._price(second), self._streamed_clk(second))
                prices[parts] += self._handover_clk()
            except NotFusable as error:
                why_not = str(error)
                continue
            if prices[parts] > WORSE * least:  # more parts cost more to add
                break
            least = min(least, prices[parts])
        return _cheapest(whole, prices, why_not)

    def _adding_clk(self, anchor: Op, parts: int) -> float:
        """Lower bound on the cycles for writing and adding the parts."""
        rate = min(self.target.cu * self.target.load.bytes_per_clk, l2_bytes_per_clk(self.target))
        moved = parts * anchor.results[0].type.elements * 4
        return 2 * cost.latency_clk(self.target) + moved / rate + self._handover_clk()

    def _price(self, group: Op) -> float:
        return self.lowered.price(group, self._in_memory(group))

    def _streamed_clk(self, group: Op) -> float:
        """Cycles of device memory for the operands of a group that reads each once, where a cached l2 no longer holds
        them."""
        read = sum(v.type.bytes for v in group.operands)
        if self.target.l2.managed != "cache" or read <= self.target.l2.bytes:
            return 0.0
        return (read + sum(r.type.bytes for r in group.results)) / hbm_bytes_per_clk(self.target)

    def _bound(self, anchor: Op) -> float:
        """Lower bound on the contraction's cycles: every unit at its peak."""
        dtype = cost.tensor_dtype(anchor.operands[0].type.dtype, self.target)
        return points(anchor) / self.target.peak_macs_per_clk(dtype)

    def _read_clk(self, body: Graph, anchor: Op) -> float:
        """Lower bound on the price of a product where l2 is a cache: both operands are read from device memory, some
        of it before the first tile's latency has passed."""
        if anchor.name != "matmul" or self.target.l2.managed != "cache":
            return 0.0
        outside = map(Resolver(body).external, anchor.operands[:2])
        read = sum(
            min(there.value.type.bytes, operand.type.bytes)
            for there, operand in zip(outside, anchor.operands, strict=False)
            if there is not None
        )
        return read / hbm_bytes_per_clk(self.target)

    def _handover_clk(self) -> float:
        """Cycles from a tile's last store to the next kernel's first load that neither kernel's start-up and latency
        include, plus the launch on targets that launch kernels one by one."""
        latency = self.target.l2.latency_ns + self.target.sync.counter_bump_ns
        if self.target.launch.granularity == "kernel":
            latency += self.target.launch.kernel_us * 1e3
        return self.target.store.start_clk + latency / self.target.clk_ns

    def _divisible(self, anchor: Op, op: Op) -> bool:
        """Whether the contraction can be split: a matmul, or an ungrouped convolution with constant weights."""
        if anchor.name == "matmul":
            return True
        attrs = anchor.attrs
        if not isinstance(attrs, ConvAttrs) or attrs.groups != 1 or attrs.layout != "nhwc":
            return False
        return self._weights(anchor, op) is not None

    def _weights(self, conv: Op, op: Op) -> Op | None:
        """The constant weights of a convolution in the body of `op`."""
        assert op.body is not None
        outer = dict(zip((p.name for p in op.body.params), op.operands, strict=True))
        value = outer.get(conv.operands[1].name)
        return None if value is None else self.constants.get(value.name)

    # -- the two groups ------------------------------------------------------------------------------------------

    def _cut(self, op: Op, parts: int) -> list[Op]:
        """A new constant if needed, the group of partial sums, and the group that adds them. Raises NotFusable if one
        of them has no kernel."""
        body = op.body
        assert body is not None
        anchor = anchor_in(body)
        assert anchor is not None
        before = ancestors(body, anchor)
        outer = dict(zip((p.name for p in body.params), op.operands, strict=True))
        made: list[Op] = []
        self.names.ops = [o for o in body.ops if o.results[0].name in before]
        if anchor.name == "matmul":
            partial = self._matmul(anchor, parts)
        else:
            weights = self._weights(anchor, op)
            assert weights is not None
            const, inner = self._grouped_weights(weights, anchor, parts)
            made.append(const)
            outer[inner.name] = const.results[0]
            attrs = anchor.attrs
            assert isinstance(attrs, ConvAttrs)
            partial = self.names("conv", anchor.operands[0], inner, attrs=replace(attrs, groups=parts), hint="part")
        kept = without_dead_ops(Graph("body", (), (partial,), tuple(self.names.ops))).ops
        first = self._joined(kept, (partial,), outer, None, anchor.loc)
        stored = Value(self.names.fresh(f"{op.results[0].name}.parts"), partial.type)
        made.append(replace(first, results=(stored,)))
        inner = Value(self.names.fresh(f"{stored.name}.in"), stored.type)
        self.names.ops = []
        views = _views_after(body, anchor)
        total = self._sum(inner, anchor, parts, views)
        rest = [o for o in body.ops if o is not anchor and o not in views]
        viewed = views[-1].results[0] if views else anchor.results[0]
        results = tuple(total if r == viewed else r for r in body.results)
        chain = (*self.names.ops, *_renamed(rest, viewed, total))
        ops = without_dead_ops(Graph("body", (), results, chain))
        outer[inner.name] = stored
        locs = tuple(dict.fromkeys(n for o in rest if o.results[0].name not in before for n in o.loc))
        made.append(self._joined(ops.ops, results, outer, op, locs or op.loc))
        return made

    def _joined(
        self,
        ops: Sequence[Op],
        results: tuple[Value, ...],
        outer: dict[str, Value],
        whole: Op | None,
        loc: tuple[str, ...],
    ) -> Op:
        """A group of `ops` with fresh names in its body; its results are those of `whole`, or stand for `results`."""
        rename: dict[str, Value] = {}

        def fresh(v: Value) -> Value:
            return rename.setdefault(v.name, replace(v, name=self.names.fresh(v.name)))

        used = dict.fromkeys(v.name for o in ops for v in o.operands)
        defined = {r.name for o in ops for r in o.results}
        params = {v.name: v for o in ops for v in o.operands if v.name not in defined}
        inner = tuple(fresh(params[n]) for n in used if n in params)
        operands = tuple(outer[n] for n in used if n in params)
        made = tuple(
            replace(o, operands=tuple(map(fresh, o.operands)), results=tuple(map(fresh, o.results))) for o in ops
        )
        body = Graph("body", inner, tuple(map(fresh, results)), made)
        kind = check_group(body, self.target)
        return Op("group", GroupAttrs(kind), operands, whole.results if whole else results, loc, body)

    def _matmul(self, anchor: Op, parts: int) -> Value:
        """The partial products, [parts, ..., m, n]."""
        attrs = anchor.attrs
        assert isinstance(attrs, MatmulAttrs)
        rank = anchor.results[0].type.rank
        a, b = anchor.operands
        left = self._parts(a, a.type.rank - (2 if attrs.transpose_a else 1), parts, rank)
        right = self._parts(b, b.type.rank - (1 if attrs.transpose_b else 2), parts, rank)
        return self.names("matmul", left, right, attrs=attrs, hint="part")

    def _parts(self, x: Value, axis: int, parts: int, rank: int) -> Value:
        """`x` with `axis` split and the parts as the first of `rank` + 1 dimensions."""
        dims = x.type.dims
        cut = (*dims[:axis], parts, dims[axis] // parts, *dims[axis + 1 :])
        split = self.names("reshape", x, attrs=ReshapeAttrs(cut), hint=x.name)
        order = (axis, *(i for i in range(len(cut)) if i != axis))
        moved = self.names("transpose", split, attrs=TransposeAttrs(order), hint=x.name)
        if len(cut) == rank + 1:
            return moved
        shape = (parts, *(1 for _ in range(rank + 1 - len(cut))), *moved.type.dims[1:])
        return self.names("reshape", moved, attrs=ReshapeAttrs(shape), hint=x.name)

    def _grouped_weights(self, weights: Op, conv: Op, parts: int) -> tuple[Op, Value]:
        """Weights [*k, c, o] rearranged for a convolution of `parts` groups, [*k, c / parts, parts * o]: the constant
        and its parameter in the body."""
        *window, channels, outputs = conv.operands[1].type.dims
        n = len(window)
        steps = (
            ("reshape", ReshapeAttrs((*window, parts, channels // parts, outputs))),
            ("transpose", TransposeAttrs((*range(n), n + 1, n, n + 2))),
            ("reshape", ReshapeAttrs((*window, channels // parts, parts * outputs))),
        )
        resource: Resource = weights.attrs.value  # type: ignore[attr-defined]
        value = weights.results[0]
        for name, attrs in steps:
            builder = Builder({value.name})
            result = builder(name, value, attrs=attrs, hint=value.name)
            found = folded(builder.ops[-1], [resource])
            assert found is not None
            resource, value = found, result
        outer = Value(self.names.fresh(f"{weights.results[0].name}.parts"), value.type)
        inner = Value(self.names.fresh(f"{conv.operands[1].name}.parts"), value.type)
        return Op("const", ConstAttrs(resource), (), (outer,), weights.loc), inner

    def _sum(self, partial: Value, anchor: Op, parts: int, views: Sequence[Op]) -> Value:
        """The sum of the parts, in the anchor's type and the shape that `views` give its result."""
        result = (views[-1] if views else anchor).results[0].type
        total: Value | None = None
        for i in range(parts):
            part = self._part(partial, i, anchor, parts)
            for view in views:
                part = self.names(view.name, part, attrs=view.attrs, hint="part")
            total = part if total is None else self.names("add", total, part, hint="sum")
        assert total is not None
        assert total.type == result
        return total

    def _part(self, partial: Value, i: int, anchor: Op, parts: int) -> Value:
        dims, rank = partial.type.dims, partial.type.rank
        axis, size = (0, 1) if anchor.name == "matmul" else (rank - 1, dims[-1] // parts)
        starts = tuple(i * size if a == axis else 0 for a in range(rank))
        sizes = tuple(size if a == axis else n for a, n in enumerate(dims))
        part = self.names("slice", partial, attrs=SliceAttrs(starts, sizes, (1,) * rank), hint="part")
        if part.type.dims == anchor.results[0].type.dims:
            return part
        return self.names("reshape", part, attrs=ReshapeAttrs(anchor.results[0].type.dims), hint="part")


def _cheapest(whole: float, prices: Mapping[int, float], why_not: str) -> Parts:
    """The number of parts with the lowest price below the whole's; `why_not` is the reason if there are no prices."""
    if not prices:
        return Parts(1, whole, why_whole=why_not)
    best = min(prices, key=prices.__getitem__)
    if prices[best] < whole:
        return Parts(best, whole, prices[best])
    return Parts(1, whole, prices[best], "two kernels and the handover between them are slower")


def _length(anchor: Op) -> int:
    """Length of the split dimension: k of a matmul, input channels of a convolution."""
    if anchor.name == "matmul":
        return anchor.operands[0].type.dims[-2 if anchor.attrs.transpose_a else -1]  # type: ignore[attr-defined]
    return anchor.operands[0].type.dims[-1]


def _views_after(body: Graph, anchor: Op) -> list[Op]:
    """The chain of views after the anchor without other readers, in order: parts are read through them."""
    found: list[Op] = []
    value = anchor.results[0]
    while value not in body.results:
        readers = [o for o in body.ops if value in o.operands]
        if len(readers) != 1 or readers[0].name not in ("reshape", "transpose"):
            break
        found.append(readers[0])
        value = readers[0].results[0]
    return found


def _renamed(ops: Sequence[Op], old: Value, new: Value) -> list[Op]:
    return [replace(o, operands=tuple(new if v == old else v for v in o.operands)) for o in ops]
