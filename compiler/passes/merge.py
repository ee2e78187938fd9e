"""Products of one operand with several constant weights (query, key and value projections) as one product.

Invariant: only matmuls merge whose groups are the product, a bias and views, so no epilogue is lost; the readers take
their columns through views of the joint result, and a group that cannot read it so keeps its operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.body import NotFusable, Resolver
from ppuc.compiler.lowering.kinds import anchor_in, check_group
from ppuc.compiler.lowering.reuse import Lowered
from ppuc.compiler.passes.graph_constants import folded
from ppuc.compiler.passes.graph_walk import with_graph
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.movement import ConcatAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import TensorType
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge matmuls of one operand with several weights where one wide product is faster.

    %q = group(%x, %wq) { matmul }; %k = group(%x, %wk) { matmul }; %s = group(%q, %k) { ... }
        ->  %y = group(%x, concat(%wq, %wk)) { matmul }; %s = group(%y) { slice; slice; ... }
    """

    name: ClassVar[str] = "merge"

    def run(self, module: Module, target: Target) -> Module:
        """The module with products merged where that pays."""
        return with_graph(module, Merging(module.graph, target).build())


@dataclass(frozen=True, slots=True)
class Product:
    """A group that can merge: its op, its matmul, the outer constants of weights and bias, the views from the product
    to the result, and the type of the product as it is stored."""

    op: Op
    anchor: Op
    weights: Op
    bias: Op | None
    views: tuple[Op, ...]
    stored: TensorType

    @property
    def key(self) -> object:
        """What products that merge have in common: the operand and the formats of everything that is joined."""
        constants = (None if c is None else c.results[0].type.dtype for c in (self.weights, self.bias))
        return self.op.operands[0].name, self.anchor.attrs, self.stored.dtype, *constants


class Merging:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.names = Builder(all_names(graph))
        self.lowered = Lowered(target)

    def build(self) -> Graph:
        """The rewritten graph; the graph itself when nothing merges."""
        start = self.graph
        while self._round():
            pass
        return start if self.graph is start else without_dead_ops(self.graph)

    def _round(self) -> bool:
        """Merge what the graph as it is now offers; whether some of it has to wait for the next round, because it reads
        what was merged in this one."""
        self.constants = {op.results[0].name: op for op in self.graph.ops if op.name == "const"}
        self.users = users(self.graph)
        self.outputs = {v.name for v in self.graph.results}
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
            elif len(products) > 1 and (merged := self._merged(self.graph, products)) is not None:
                self.graph, rewritten = merged
                stale |= rewritten
        return waiting

    # -- what can merge ------------------------------------------------------------------------------------------

    def _product(self, op: Op) -> Product | None:
        """`op` as a product with constant weights, perhaps a bias, and views; None when it is anything else."""
        body = op.body
        if body is None or getattr(op.attrs, "kind", "") != "matmul" or len(op.results) != 1:
            return None
        if op.results[0].name in self.outputs or any(u.name != "group" for u in self.users[op.results[0].name]):
            return None
        anchor = anchor_in(body)
        assert anchor is not None
        attrs = anchor.attrs
        assert isinstance(attrs, MatmulAttrs)
        outer = dict(zip((p.name for p in body.params), op.operands, strict=True))
        a, b = anchor.operands
        if attrs.transpose_a or attrs.transpose_b or a.name not in outer or b.name not in outer or b.type.rank != 2:
            return None
        weights = self.constants.get(outer[b.name].name)
        if weights is None or outer[a.name] != op.operands[0] or outer[a.name].name in self.constants:
            return None
        return self._chain(op, anchor, weights, outer)

    def _chain(self, op: Op, anchor: Op, weights: Op, outer: dict[str, Value]) -> Product | None:
        """The product when nothing follows it but a bias per column, a rounding and views."""
        assert op.body is not None
        value, bias, views = anchor.results[0], None, list[Op]()
        columns = value.type.dims[-1]
        rest = [o for o in op.body.ops if o is not anchor]
        known = {"": value}
        for o in rest:
            if o.name == "cast" and o.operands[0].name in outer:  # the bias, widened
                known[o.results[0].name] = o.operands[0]
            elif o.name == "cast" and o.operands[0] == value:
                value = o.results[0]
            elif o.name == "add" and bias is None and not views and o.operands[0] == value:
                term = known.get(o.operands[1].name, o.operands[1])
                bias = self.constants.get(outer[term.name].name) if term.name in outer else None
                if bias is None or bias.results[0].type.dims not in ((columns,), (1, columns), (1, 1, columns)):
                    return None
                value = o.results[0]
            elif OPS[o.name].kind is Kind.VIEW and o.operands[0] == value:
                views.append(o)
                value = o.results[0]
            else:
                return None
        if value.name != op.body.results[0].name:
            return None
        stored = TensorType(value.type.dtype, anchor.results[0].type.shape)
        return Product(op, anchor, weights, bias, tuple(views), stored)

    # -- merging -------------------------------------------------------------------------------------------------

    def _merged(self, graph: Graph, products: Sequence[Product]) -> tuple[Graph, set[str]] | None:
        """`graph` with `products` merged, and the results of their readers; None when that is slower or a reader cannot
        follow."""
        constants, joint = self._joint(products)
        try:
            apart = sum(self.lowered.price("matmul", p.op.body) for p in products if p.op.body is not None)
            assert joint.body is not None
            if self.lowered.price("matmul", joint.body) >= apart:
                return None
            replaced = dict(self._readers(graph, products, joint.results[0]))
        except NotFusable:
            return None
        gone = {p.op.results[0].name for p in products}
        ops: list[Op] = []
        for op in graph.ops:
            name = op.results[0].name
            if name == products[0].op.results[0].name:
                ops += [*constants, joint]
            if name not in gone:
                ops.append(replaced.get(name, op))
        return graph.with_ops(ops), set(replaced)

    def _joint(self, products: Sequence[Product]) -> tuple[list[Op], Op]:
        """The joint constants and the group of the joint product."""
        first = products[0]
        constants = [self._concat([p.weights for p in products], 1)]
        biases = [p.bias for p in products if p.bias is not None]
        if biases:
            flat = [self._flat(b) for b in biases]
            constants.append(self._concat(flat, 0))
        columns = sum(p.stored.dims[-1] for p in products)
        b = self.names
        b.ops = []
        x = first.op.operands[0]
        inner = [Value(b.fresh(f"{v.name}.in"), v.type) for v in (x, *(c.results[0] for c in constants))]
        value = b("matmul", inner[0], inner[1], attrs=first.anchor.attrs, hint="product")
        if biases:
            value = b("add", value, inner[2], hint="biased")
        if value.type.dtype is not first.stored.dtype:
            value = b("cast", value, attrs=CastAttrs(first.stored.dtype), hint="rounded")
        body = Graph("body", tuple(inner), (value,), tuple(b.ops))
        result = Value(b.fresh(f"{first.op.results[0].name}.joint"), value.type)
        assert result.type.dims[-1] == columns
        loc = tuple(dict.fromkeys(n for p in products for n in p.op.loc))
        operands = (x, *(c.results[0] for c in constants))
        return constants, Op("group", GroupAttrs(check_group(body, self.target)), operands, (result,), loc, body)

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

    def _readers(self, graph: Graph, products: Sequence[Product], joint: Value) -> Iterator[tuple[str, Op]]:
        """(name of its first result, rewritten op) of every group that reads a product. Raises NotFusable."""
        start, columns = 0, {}
        for p in products:
            columns[p.op.results[0].name] = (start, p)
            start += p.stored.dims[-1]
        for op in graph.ops:
            if op.name == "group" and any(v.name in columns for v in op.operands):
                yield op.results[0].name, self._reader(op, columns, joint)

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
        """What the product's group stored, as views of the joint result."""
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
