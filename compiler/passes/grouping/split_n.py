"""Split-N: splits products whose weights exceed l2 into panels of columns.

Every tile of rows reads all weights. Weights that fit l2 are staged there once; larger ones would be read from device
memory again for every tile of rows. A product of a panel of columns needs only those columns of the weights: each panel
is staged while the previous one is multiplied, so every weight is read from device memory once.

All panels but the last have one width. It need not divide the columns: a width whose tiles fill every unit equally
often is worth a narrower last panel.

Invariant: panels are disjoint, cover all columns, and are inserted into the product's own memory; each computes what
the whole group computes for its columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.kernel_cache import KernelCache, canonical_body
from ppuc.compiler.lowering.kinds import anchor_in, check_group, group_anchor
from ppuc.compiler.lowering.tiling.body import CHAIN_KINDS, NotFusable, op_axes
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.grouping.parts import Parts
from ppuc.compiler.passes.memory.live_ranges import inserted_operands
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.constants import folded
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.movement import InsertAttrs
from ppuc.ir.ops.structure import ConstAttrs, EmptyAttrs, GroupAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import Space, TensorType
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.schema import Target

MOST = 32
"""Maximum panels of one product."""

TILE = 128
"""Rows and columns of a typical tile: weights are read about once per tile of rows."""

STEP = 64
"""Widths of panels that do not divide the columns are multiples of this."""

TOLERANCE = 1.03
"""How much slower panels may look to the cost model, which ignores other traffic of device memory."""


@dataclass(frozen=True, slots=True)
class SplitN(Pass):
    """Split products with weights too large for l2 into panels of columns, whose weights are staged in turn.

    `share` of l2 may hold two panels: the one in use and the next.

    %y = group(%x, %w) { matmul }
        ->  %0 = empty(); %1 = group(%x, %w[:, 0:n], %0) { matmul; insert }; %y = group(%x, %w[:, n:], %1) { ... }
    """

    share: float = 0.4
    name: ClassVar[str] = "split-n"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with large products split."""
        if target.l2.managed != "software":
            return module
        return with_graph(module, Paneling(module.graph, target, int(target.l2.bytes * self.share)).build())


class Paneling:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target, budget: int) -> None:
        self.graph, self.target, self.budget = graph, target, budget
        self.builder = Builder(all_names(graph))
        self.constants = {op.results[0].name: op for op in graph.ops if op.name == "const"}
        self.lowered = KernelCache(target)
        self.decided: dict[object, tuple[Parts, int]] = {}

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is split."""
        ops: list[Op] = []
        for op in self.graph.ops:
            decided = self._panels(op)
            if decided is None:
                ops.append(op)
                continue
            panels, width = decided
            ops += [op] if panels.count == 1 else self._cut(op, width)
            panels.remark("split-n", op, kernels=panels.count - 1)
        return self.graph if len(ops) == len(self.graph.ops) else without_dead_ops(self.graph.with_ops(ops))

    # -- deciding ------------------------------------------------------------------------------------------------

    def _panels(self, op: Op) -> tuple[Parts, int] | None:
        """The decision on a group's panels, and their width; None if its weights are no candidate."""
        weights = self._weights(op)
        if weights is None or op.body is None:
            return None
        size, anchor = op.operands[weights].type.bytes, anchor_in(op.body)
        assert anchor is not None
        dims = anchor.results[0].type.dims
        rereads = math.prod(dims[:-1]) // TILE
        if size <= self.budget or rereads < 2:
            return None
        _, key = canonical_body(op.body)
        if key not in self.decided:
            self.decided[key] = self._best(op, anchor, size)
        return self.decided[key]

    def _weights(self, op: Op) -> int | None:
        """Position of the constant right operand, if the group can be split."""
        anchor = group_anchor(op)
        if anchor is None or anchor.name != "matmul" or len(op.results) != 1 or inserted_operands(op):
            return None
        body = op.body
        assert body is not None
        names = [p.name for p in body.params]
        if anchor.operands[1].name not in names or anchor.operands[1].type.rank != 2:
            return None
        at = names.index(anchor.operands[1].name)
        return at if op.operands[at].name in self.constants else None

    def _best(self, op: Op, anchor: Op, size: int) -> tuple[Parts, int]:
        """The cheapest panels among those of which two fit the budget, and their width."""
        columns = anchor.results[0].type.dims[-1]
        prices: dict[int, float] = {}
        try:
            for width in self._widths(anchor, self.budget * columns // (2 * size)):
                prices[width] = sum(self._price(op, panel) * n for panel, n in _counted(columns, width))
        except NotFusable as error:
            return Parts(1, why_whole=str(error)), columns
        whole = self._whole(op, size)
        if not prices:
            why = f"{columns} columns do not divide into panels of whole fragments"
            return Parts(1, whole, why_whole=why), columns
        best = min(prices, key=prices.__getitem__)
        if prices[best] < TOLERANCE * whole:
            return Parts(-(-columns // best), whole, prices[best]), best
        why = "panels are slower than rereading the weights for every tile of rows"
        return Parts(1, whole, prices[best], why), columns

    def _widths(self, anchor: Op, most: int) -> list[int]:
        """Candidate widths of panels, of whole fragments, up to `most`: those that divide the columns, and others."""
        columns = anchor.results[0].type.dims[-1]
        granule = max(self.target.tensor.fragment[str(cost.tensor_dtype(anchor.operands[0].type.dtype, self.target))])
        least = max(TILE, -(-columns // MOST))
        even = {columns // n for n in range(2, MOST + 1) if columns % (n * granule) == 0}
        others = (
            set(range(-(-least // STEP) * STEP, most + 1, STEP)) if STEP % granule == 0 == columns % granule else set()
        )
        return sorted(w for w in even | others if least <= w <= most)

    def _whole(self, op: Op, size: int) -> float:
        """Cycles of the unsplit group: the larger of its price and the time device memory takes to deliver the weights
        once per tile of rows. Infinite if the whole group has no kernel."""
        rows = math.prod(op.results[0].type.dims[:-1])
        try:
            price = self._priced(op)
        except NotFusable:
            return math.inf
        return max(price, size * -(-rows // TILE) / hbm_bytes_per_clk(self.target))

    def _price(self, op: Op, width: int) -> float:
        """Cycles of a panel of this width."""
        return self._priced(self._panel(op, (0, width)))

    def _priced(self, op: Op) -> float:
        """Cycles of a group that reads from device memory what l2 cannot hold."""
        assert op.body is not None
        large = {p.name for p in op.body.params if p.type.bytes > self.target.l2.bytes}
        return self.lowered.price(op, _in_device_memory(op.body, large))

    # -- cutting -------------------------------------------------------------------------------------------------

    def _cut(self, op: Op, width: int) -> list[Op]:
        """The result's `empty` op and the groups of all panels, with their weights."""
        weights = self._weights(op)
        assert weights is not None
        whole = op.results[0]
        current = Value(self.builder.fresh(f"{whole.name}.whole"), whole.type)
        made = [Op("empty", EmptyAttrs(whole.type.dtype, whole.type.dims), (), (current,), op.loc)]
        columns = whole.type.dims[-1]
        for first in range(0, columns, width):
            span = (first, min(first + width, columns))
            panel = self._panel(op, span)
            result = whole if span[1] == columns else Value(self.builder.fresh(f"{whole.name}.part"), whole.type)
            constant = self._columns(op, weights, span)
            operands = tuple(constant.results[0] if k == weights else v for k, v in enumerate(op.operands))
            made += [constant, self._inserted(panel, operands, current, result, first)]
            current = result
        return made

    def _columns(self, op: Op, weights: int, span: tuple[int, int]) -> Op:
        """A panel's columns of the weights, as a constant."""
        body = op.body
        assert body is not None
        anchor = anchor_in(body)
        assert anchor is not None
        value = op.operands[weights]
        source = self.constants[value.name]
        axis = _column_axis(anchor)
        builder = Builder({value.name})
        result = _sliced(builder, value, axis, span)
        resource = folded(builder.ops[-1], [source.attrs.value])  # type: ignore[attr-defined]
        assert resource is not None
        named = Value(self.builder.fresh(f"{value.name}.panel"), result.type)
        return Op("const", ConstAttrs(resource), (), (named,), source.loc)

    def _inserted(self, panel: Op, operands: tuple[Value, ...], base: Value, whole: Value, first: int) -> Op:
        """The group of a panel, storing into the memory of `base` from column `first` on."""
        body = panel.body
        assert body is not None
        inner = Value(self.builder.fresh(f"{base.name}.in"), base.type)
        out = Value(self.builder.fresh(f"{whole.name}.out"), whole.type)
        starts = (*(0 for _ in whole.type.dims[:-1]), first)
        insert = Op("insert", InsertAttrs(starts), (inner, body.results[0]), (out,))
        grown = Graph(body.name, (*body.params, inner), (out,), (*body.ops, insert))
        return replace(panel, operands=(*operands, base), results=(whole,), body=grown)

    def _panel(self, op: Op, span: tuple[int, int]) -> Op:
        """The group restricted to the columns `span[0] .. span[1]`, with its weights as a parameter of that size.
        Raises NotFusable if an op of the group cannot be restricted to columns."""
        body = op.body
        assert body is not None
        anchor = anchor_in(body)
        assert anchor is not None
        self.builder.ops = []
        columns = anchor.results[0].type.dims[-1]
        names: dict[str, Value] = {}
        chain: set[str] = set()
        for p in body.params:
            type = p.type
            if p.name == anchor.operands[1].name:
                axis = _column_axis(anchor)
                type = TensorType(
                    type.dtype, tuple(span[1] - span[0] if a == axis else n for a, n in enumerate(type.dims))
                )
            names[p.name] = Value(self.builder.fresh(p.name), type)
        for inner in body.ops:
            operands = [names[v.name] for v in inner.operands]
            if inner is anchor:
                chain.add(inner.results[0].name)
            elif any(v.name in chain for v in inner.operands):
                self._check(inner, anchor)
                operands = [
                    v if old.name in chain else self._part(v, columns, span)
                    for v, old in zip(operands, inner.operands, strict=True)
                ]
                chain.add(inner.results[0].name)
            results = self.builder.emit(inner.name, operands, inner.attrs, hint=inner.results[0].name)
            names |= {old.name: new for old, new in zip(inner.results, results, strict=True)}
        if body.results[0].name not in chain:
            raise NotFusable("the group's result does not depend on the product")
        made = Graph("body", tuple(names[p.name] for p in body.params), (names[body.results[0].name],), ())
        made = made.with_ops(self.builder.ops)
        return replace(op, attrs=GroupAttrs(check_group(made, self.target)), results=made.results, body=made)

    def _check(self, op: Op, anchor: Op) -> None:
        """Raise NotFusable if `op`, which follows the product, mixes or moves columns."""
        rank = anchor.results[0].type.rank
        if OPS[op.name].kind not in CHAIN_KINDS:
            raise NotFusable(f"'{op.name}' moves columns")
        if rank - 1 in op_axes(op) or op.results[0].type.dims[-1:] != anchor.results[0].type.dims[-1:]:
            raise NotFusable(f"'{op.name}' mixes columns")

    def _part(self, value: Value, columns: int, span: tuple[int, int]) -> Value:
        """A panel's columns of another operand."""
        if value.type.rank == 0 or value.type.dims[-1] != columns:
            return value
        return _sliced(self.builder, value, value.type.rank - 1, span)


def _in_device_memory(body: Graph, names: Collection[str]) -> Graph:
    """`body` with these parameters in device memory."""
    moved = {p.name: Value(p.name, p.type, Space.HBM) for p in body.params if p.name in names}
    ops = [replace(op, operands=tuple(moved.get(v.name, v) for v in op.operands)) for op in body.ops]
    params = tuple(moved.get(p.name, p) for p in body.params)
    return Graph(body.name, params, body.results, ()).with_ops(ops)


def _counted(columns: int, width: int) -> list[tuple[int, int]]:
    """(width, number) of the panels: equal ones, and a narrower last one."""
    last = columns % width
    return [(width, columns // width), *([(last, 1)] if last else [])]


def _column_axis(anchor: Op) -> int:
    """The axis of the second operand that runs along the product's columns."""
    attrs = anchor.attrs
    assert isinstance(attrs, MatmulAttrs)
    return anchor.operands[1].type.rank - (2 if attrs.transpose_b else 1)


def _sliced(builder: Builder, value: Value, axis: int, span: tuple[int, int]) -> Value:
    """The elements `span[0] .. span[1]` along `axis`."""
    dims = value.type.dims
    starts = tuple(span[0] if a == axis else 0 for a in range(len(dims)))
    sizes = tuple(span[1] - span[0] if a == axis else n for a, n in enumerate(dims))
    return builder("slice", value, attrs=SliceAttrs(starts, sizes, (1,) * len(dims)), hint=value.name)
