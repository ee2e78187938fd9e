"""Splits causal attention into bands of rows, each over the keys that its rows can see.

Invariant: a band is causal attention of its rows over the keys up to its last row's, so only fully masked tiles are
skipped; all bands store into one result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache, canonical_body
from ppuc.compiler.lowering.kernels.contraction import anchor_of
from ppuc.compiler.lowering.kinds import check_group, group_anchor
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.grouping.parts import Parts
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.bodies import ancestors, fresh_body
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.movement import InsertAttrs
from ppuc.ir.ops.structure import EmptyAttrs, GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.targets.schema import Target

BANDS = (2, 4, 8, 16, 32)
"""Candidate numbers of bands."""

ROWS = 32
"""Bands begin at multiples of this many rows."""

LEAST_ROWS = 64
"""Minimum rows of a band per unit and head: one tile in two parts."""


@dataclass(frozen=True, slots=True)
class CausalSplit(Pass):
    """Split causal attention into bands of rows, so that keys masked for a whole band are not read.

    %y = group(%q, %k, %v) { attention {causal = true} }
        ->  %0 = empty(); %1 = group(%q, %k, %v, %0) { attention(q[:64], k[:64], v[:64]) {causal = true}; insert }; ...
    """

    name: ClassVar[str] = "causal-split"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with causal attention split into bands."""
        return with_graph(module, Banding(module.graph, target).build())


class Banding:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.lowered = KernelCache(target)
        self.decided: dict[object, Parts] = {}

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is split."""
        ops: list[Op] = []
        for op in self.graph.ops:
            ops += self._op(op)
        return self.graph if len(ops) == len(self.graph.ops) else self.graph.with_ops(ops)

    def _op(self, op: Op) -> list[Op]:
        attention = group_anchor(op)
        if op.body is None or attention is None or attention.name != "attention" or len(op.results) != 1:
            return [op]
        if not attention.attrs.causal:  # type: ignore[attr-defined]
            return [op]
        _, key = canonical_body(op.body)
        if key not in self.decided:
            self.decided[key] = self._best(op, attention)
        bands = self.decided[key]
        cut = [op] if bands.count == 1 else self._cut(op, bands.count)
        bands.remark("split-causal", op, kernels=sum(o.name == "group" for o in cut) - 1)
        return cut

    def _best(self, op: Op, attention: Op) -> Parts:
        """The number of bands. Of p bands, the i-th reads i / p of the keys; together they compute (p + 1) / 2p of all
        scores. Each pays its own start-up and drain."""
        assert op.body is not None
        batch, heads, m, _ = attention.operands[0].type.dims
        hidden = m * (m - 1) / 2 / (m * attention.operands[1].type.dims[2])  # share of all scores
        try:
            whole = self.lowered.price(op)
            self._cut(op, 2)
        except NotFusable as error:
            return Parts(1, why_whole=str(error))
        ends = 2 * cost.latency_clk(self.target) + cost.memory_latency_clk(self.target)
        prices: dict[int, float] = {}
        for bands in BANDS:
            rows = m // bands
            if rows < LEAST_ROWS or batch * heads * (rows // LEAST_ROWS) < self.target.cu:
                break
            prices[bands] = whole * (1 - hidden * (bands - 1) / bands) + bands * ends
        if not prices:
            return Parts(1, whole, why_whole="bands would have too few rows to occupy all units")
        chosen = min(prices, key=prices.__getitem__)
        if prices[chosen] < whole:
            return Parts(chosen, whole, prices[chosen])
        return Parts(1, whole, prices[chosen], "start-up and drain of each band cost more than the skipped keys save")

    def _cut(self, op: Op, bands: int) -> list[Op]:
        """The `empty` op and the groups that fill its memory. Raises NotFusable if the group does not compute row by
        row."""
        body = op.body
        assert body is not None
        attention = anchor_of(body, "attention")
        m = attention.operands[0].type.dims[2]
        rows = -(-m // (bands * ROWS)) * ROWS
        whole = op.results[0]
        base = Value(self.names.fresh(f"{whole.name}.whole"), whole.type)
        ops = [Op("empty", EmptyAttrs(whole.type.dtype, whole.type.dims), (), (base,), op.loc)]
        for start in range(0, m, rows):
            end = min(start + rows, m)
            result = whole if end == m else Value(self.names.fresh(f"{whole.name}.band"), whole.type)
            ops.append(self._band(op, attention, (start, end), ops[-1].results[0], result))
        return ops

    def _band(self, op: Op, attention: Op, rows: tuple[int, int], base: Value, result: Value) -> Op:
        """The group of one band, which stores into the memory of `base`."""
        body = op.body
        assert body is not None
        b = self.names
        b.ops = [o for o in body.ops if o.results[0].name in ancestors(body, attention)]
        part, axis = Rows(b, body, attention, rows).value(body.results[0])
        inner = Value(b.fresh(f"{base.name}.in"), base.type)
        starts = tuple(rows[0] if i == axis else 0 for i in range(part.type.rank))
        stored = b("insert", inner, part, attrs=InsertAttrs(starts), hint="stored")
        grown = fresh_body(b, Graph("body", (*body.params, inner), (stored,), tuple(b.ops)))
        return replace(
            op,
            attrs=GroupAttrs(check_group(grown, self.target)),
            operands=(*op.operands, base),
            results=(result,),
            body=grown,
        )


class Rows:
    """The values of a body restricted to rows `start .. end` of its attention."""

    def __init__(self, b: Builder, body: Graph, attention: Op, rows: tuple[int, int]) -> None:
        self.b, self.body, self.rows = b, body, rows
        self.m = attention.operands[0].type.dims[2]
        q, k, v, *mask = attention.operands
        keys = rows[1] + k.type.dims[2] - self.m
        operands = [self._slice(q, 2, *rows), self._slice(k, 2, 0, keys), self._slice(v, 2, 0, keys)]
        for value in mask:
            for axis, span in ((-2, rows), (-1, (0, keys))):
                if value.type.rank >= -axis and value.type.dims[axis] != 1:
                    value = self._slice(value, value.type.rank + axis, *span)
            operands.append(value)
        attrs = attention.attrs
        assert isinstance(attrs, AttentionAttrs)
        self.known = {attention.results[0].name: (b("attention", *operands, attrs=attrs, hint="rows"), 2)}

    def value(self, value: Value) -> tuple[Value, int]:
        """The rows of `value` and their axis. Raises NotFusable if the value does not consist of attention rows."""
        if value.name not in self.known:
            op = self.body.producer(value)
            if op is None:
                raise NotFusable(f"{value} does not come from attention")
            self.known[value.name] = self._of(op)
        return self.known[value.name]

    def _of(self, op: Op) -> tuple[Value, int]:
        hint = op.results[0].name
        if OPS[op.name].kind is Kind.ELEMENTWISE:
            return self._elementwise(op)
        x, axis = self.value(op.operands[0])
        if isinstance(op.attrs, TransposeAttrs):
            return self.b("transpose", x, attrs=op.attrs, hint=hint), op.attrs.perm.index(axis)
        if isinstance(op.attrs, ReshapeAttrs):
            shape, before = op.attrs.shape, math.prod(op.operands[0].type.dims[:axis])
            for i, size in enumerate(shape):
                if size == self.m and math.prod(shape[:i]) == before:
                    cut = (*shape[:i], x.type.dims[axis], *shape[i + 1 :])
                    return self.b("reshape", x, attrs=ReshapeAttrs(cut), hint=hint), i
        raise NotFusable(f"'{op.name}' mixes the rows of attention with something else")

    def _elementwise(self, op: Op) -> tuple[Value, int]:
        rank = op.results[0].type.rank
        operands: list[Value] = []
        axis: int | None = None
        for v in op.operands:
            if self._depends(v):
                x, at = self.value(v)
                operands.append(x)
                axis = at + rank - v.type.rank
        assert axis is not None
        found = iter(operands)
        values = [next(found) if self._depends(v) else self._aligned(v, axis - rank) for v in op.operands]
        return self.b(op.name, *values, attrs=op.attrs, hint=op.results[0].name), axis

    def _aligned(self, value: Value, axis: int) -> Value:
        """The rows of an operand from outside, along `axis` (counted from the end) unless it is broadcast there."""
        self._bring(value)
        if value.type.rank < -axis or value.type.dims[axis] == 1:
            return value
        return self._slice(value, value.type.rank + axis, *self.rows)

    def _bring(self, value: Value) -> None:
        """Emit the ops that compute `value`, which does not depend on attention."""
        op = self.body.producer(value)
        if op is not None and op not in self.b.ops:
            for v in op.operands:
                self._bring(v)
            self.b.ops.append(op)

    def _depends(self, value: Value) -> bool:
        if value.name in self.known:
            return True
        op = self.body.producer(value)
        return op is not None and any(self._depends(v) for v in op.operands)

    def _slice(self, x: Value, axis: int, start: int, end: int) -> Value:
        if (start, end) == (0, x.type.dims[axis]):
            return x
        starts = tuple(start if i == axis else 0 for i in range(x.type.rank))
        sizes = tuple(end - start if i == axis else n for i, n in enumerate(x.type.dims))
        return self.b("slice", x, attrs=SliceAttrs(starts, sizes, (1,) * x.type.rank), hint=x.name)
