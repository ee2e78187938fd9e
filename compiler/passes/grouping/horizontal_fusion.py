"""Horizontal fusion: merges products of one operand with several constant weights (query, key and value projections).

Invariant: a matmul merges only if its group consists of the product, column-wise steps (a bias, the scales of 8-bit
operands) and views, so no epilogue is lost. Readers take their columns through views of the joint result; a product
with a reader that cannot is not merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import check_group, group_anchor
from ppuc.compiler.lowering.tiling.body import NotFusable, Resolver
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.constants import folded
from ppuc.compiler.passes.rules.products import Product, read_product
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import DType, TensorType
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class HorizontalFusion(Pass):
    """Merge matmuls of one operand with several weights where one wide product is faster.

    %q = group(%x, %wq) { matmul }; %k = group(%x, %wk) { matmul }; %s = group(%q, %k) { ... }
        ->  %y = group(%x, concat(%wq, %wk)) { matmul }; %s = group(%y) { slice; slice; ... }
    """

    name: ClassVar[str] = "horizontal-fusion"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with products merged where that is faster."""
        return with_graph(module, Merging(module.graph, target).build())


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why products are not merged, with the cycles of separate and joint products if they have a price."""

    nodes: tuple[str, ...]
    why: str
    apart_clk: float | None
    merged_clk: float | None


class Merging:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.lowered = KernelCache(target)
        self.refused: dict[tuple[str, ...], Refusal] = {}

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing merges."""
        start = self.graph
        while self._round():
            pass
        if (remarks := listener()) is not None:
            left = {r.name for op in self.graph.ops for r in op.results}
            for names, r in self.refused.items():
                if left.issuperset(names):
                    remarks.missed("not-merged", names[0], r.nodes, r.why, before=r.apart_clk, after=r.merged_clk)
        return start if self.graph is start else without_dead_ops(self.graph)

    def _round(self) -> bool:
        """Merge products of the current graph. Returns whether some must wait for the next round, because they read a
        product merged in this one."""
        self.constants = {op.results[0].name: op for op in self.graph.ops if op.name == "const"}
        self.users = users(self.graph)
        self.outputs = {v.name for v in self.graph.results}
        self.current = [[op] for op in self.graph.ops]
        self.position = {op.results[0].name: i for i, op in enumerate(self.graph.ops) if op.results}
        candidates: dict[object, list[Product]] = {}
        for op in self.graph.ops:
            product = self._product(op)
            if product is not None:
                candidates.setdefault(product.key, []).append(product)
        stale: set[str] = set()
        waiting = False
        for products in candidates.values():
            if any(p.op.results[0].name in stale for p in products):
                waiting = True
            elif len(products) > 1 and (rewritten := self._merged(products)) is not None:
                stale |= rewritten
        if stale:
            self.graph = self.graph.with_ops([op for ops in self.current for op in ops])
        return waiting

    def _product(self, op: Op) -> Product | None:
        """`op` as a product whose readers can read columns of another tensor; None otherwise."""
        anchor = group_anchor(op)
        if anchor is None or anchor.name != "matmul" or len(op.results) != 1:
            return None
        if op.results[0].name in self.outputs or any(u.name != "group" for u in self.users[op.results[0].name]):
            return None
        return read_product(op, self.constants)

    # -- merging -------------------------------------------------------------------------------------------------

    def _merged(self, products: Sequence[Product]) -> set[str] | None:
        """Merge `products` in `current`; returns the results of their readers. None, with the reason in `refused`, if
        that is slower or a reader cannot read columns."""
        constants, joint = self._joint(products)
        names = tuple(p.op.results[0].name for p in products)
        apart, merged = None, None
        try:
            apart = sum(self.lowered.price(p.op) for p in products)
            merged = self.lowered.price(joint)
            if merged >= apart:
                raise NotFusable("one product of all columns is slower")
            replaced = dict(self._readers(products, joint.results[0]))
        except NotFusable as error:
            self.refused[names] = Refusal(joint.loc, str(error), apart, merged)
            return None
        self.refused.pop(names, None)
        if (remarks := listener()) is not None:
            name, fewer = joint.results[0].name, 1 - len(products)
            remarks.applied("merged", name, joint.loc, before=apart, after=merged, kernels=fewer)
        for position, op in replaced.items():
            self.current[position][-1] = op
        first, *others = (self.position[name] for name in names)
        self.current[first] = [*constants, joint]
        for position in others:
            self.current[position] = []
        self.position |= dict.fromkeys(names, first)
        return {op.results[0].name for op in replaced.values()}

    def _joint(self, products: Sequence[Product]) -> tuple[list[Op], Op]:
        """The joint constants and the group of the joint product."""
        first, b = products[0], self.names
        b.ops = []
        constants: list[Op] = []
        operands: list[Value] = []

        def inside(outer: Value) -> Value:
            operands.append(outer)
            params.append(Value(b.fresh(f"{outer.name}.in"), outer.type))
            return params[-1]

        def joined(parts: Sequence[Op], axis: int) -> Value:
            constants.append(self._concat(parts, axis))
            return inside(constants[-1].results[0])

        params: list[Value] = []
        x = inside(first.x)
        stored = [joined([p.weights[i] for p in products], 1) for i in range(len(first.weights))]
        weights = stored[0] if first.widen is None else b(first.widen.name, *stored, attrs=first.widen.attrs)
        value = b("matmul", x, weights, attrs=first.anchor.attrs, hint="product")
        for i, step in enumerate(first.steps):
            same = [p.steps[i] for p in products]
            if step.column is not None:
                other = joined([self._flat(s.column) for s in same if s.column is not None], 0)
                other = other if step.wide is None else b("cast", other, attrs=CastAttrs(step.wide))
            elif step.shared is not None:
                other = inside(step.shared)
            elif step.number is not None:
                other = self._numbers(products, [s.number or 0.0 for s in same], value.type.dtype, inside, constants)
            else:
                value = b(step.name, value, attrs=step.attrs, hint="rounded")
                continue
            value = b(step.name, value, other, attrs=step.attrs, hint="stepped")
        body = Graph("body", tuple(params), (value,), tuple(b.ops))
        result = Value(b.fresh(f"{first.op.results[0].name}.joint"), value.type)
        assert result.type.dims[-1] == sum(p.stored.dims[-1] for p in products)
        loc = tuple(dict.fromkeys(n for p in products for n in p.op.loc))
        return constants, Op("group", GroupAttrs(check_group(body, self.target)), tuple(operands), (result,), loc, body)

    def _numbers(
        self,
        products: Sequence[Product],
        numbers: Sequence[float],
        dtype: DType,
        inside: Callable[[Value], Value],
        constants: list[Op],
    ) -> Value:
        """One number for all columns, or a constant with one number per column."""
        if len(set(numbers)) == 1:
            return self.names.scalar(numbers[0], dtype)
        each = np.repeat(np.array(numbers), [p.stored.dims[-1] for p in products]).astype(dtype.numpy)
        resource = Resource.of(each, "numbers")
        result = Value(self.names.fresh("numbers.joint"), resource.type)
        constants.append(Op("const", ConstAttrs(resource), (), (result,), products[0].op.loc))
        return inside(result)

    def _flat(self, const: Op) -> Op:
        """The constant as a vector."""
        value = const.results[0]
        if value.type.rank == 1:
            return const
        attrs = ReshapeAttrs((value.type.elements,))
        flat = Value(value.name, TensorType(value.type.dtype, attrs.shape))
        resource = folded(Op("reshape", attrs, (value,), (flat,)), [_resource(const)])
        assert resource is not None
        return replace(const, attrs=ConstAttrs(resource), results=(flat,))

    def _concat(self, parts: Sequence[Op], axis: int) -> Op:
        values = tuple(p.results[0] for p in parts)
        attrs = ConcatAttrs(axis)
        (type,) = OPS["concat"].infer(attrs, [v.type for v in values])
        result = Value(self.names.fresh(f"{values[0].name}.joint"), type)
        resource = folded(Op("concat", attrs, values, (result,)), [_resource(p) for p in parts])
        assert resource is not None
        loc = tuple(dict.fromkeys(n for p in parts for n in p.loc))
        return Op("const", ConstAttrs(resource), (), (result,), loc)

    # -- readers -------------------------------------------------------------------------------------------------

    def _readers(self, products: Sequence[Product], joint: Value) -> Iterator[tuple[int, Op]]:
        """(position in `current`, rewritten op) of every group that reads a product. Raises NotFusable."""
        start, columns = 0, {}
        for p in products:
            columns[p.op.results[0].name] = (start, p)
            start += p.stored.dims[-1]
        for position in sorted({self.position[u.results[0].name] for name in columns for u in self.users[name]}):
            yield position, self._reader(self.current[position][-1], columns, joint)

    def _reader(self, op: Op, columns: dict[str, tuple[int, Product]], joint: Value) -> Op:
        body = op.body
        assert body is not None
        b = self.names
        b.ops = []
        inner = Value(b.fresh(f"{joint.name}.in"), joint.type)
        params, operands, known = [inner], [joint], {}
        for p, v in zip(body.params, op.operands, strict=True):
            if v.name not in columns:
                params.append(p)
                operands.append(v)
                continue
            known[p.name] = self._columns(inner, *columns[v.name])
        rest = [replace(o, operands=tuple(known.get(v.name, v) for v in o.operands)) for o in body.ops]
        made = Graph("body", tuple(params), body.results, (*b.ops, *rest))
        resolver = Resolver(made)
        for value in known.values():
            external = resolver.external(value)
            if external is None or not _runs(external.view.shape, external.view.strides):
                raise NotFusable("a reader would read single columns")
        kind = check_group(made, self.target)
        tensors = {v.name: v.name for v in (*made.params, *made.results)}
        self.lowered.kernel(kind, "kernel", made, tensors, ())
        return replace(op, attrs=GroupAttrs(kind), operands=tuple(operands), body=made)

    def _columns(self, joint: Value, start: int, product: Product) -> Value:
        """The product's stored result, as views of the joint result."""
        dims = joint.type.dims
        sizes = (*dims[:-1], product.stored.dims[-1])
        starts = (*(0 for _ in dims[:-1]), start)
        value = self.names("slice", joint, attrs=SliceAttrs(starts, sizes, (1,) * len(dims)), hint="columns")
        for view in product.views:
            value = self.names(view.name, value, attrs=view.attrs, hint=view.results[0].name)
        return value


def _resource(const: Op) -> Resource:
    assert isinstance(const.attrs, ConstAttrs)
    return const.attrs.value


def _runs(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the innermost axis of more than one element is contiguous."""
    return next((s == 1 for n, s in zip(reversed(shape), reversed(strides), strict=True) if n > 1), True)
