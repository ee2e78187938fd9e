"""Chooses row- or column-major storage for weights streamed from device memory, by the longer contiguous rows of their
tiles.

With few rows of operands, every unit multiplies its own columns once, so a tile of weights has few columns. Row-major
storage splits the tile into runs shorter than a burst of device memory, unless fewer units share the columns.
Column-major storage makes runs along the summed dimension. The cost model, which includes burst efficiency, prices
both.

Invariant: only constants with a single reader are transposed, and the product's values do not change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import check_group, group_anchor
from ppuc.compiler.lowering.tiling.body import NotFusable, unpacks
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.constants import folded
from ppuc.ir.analysis import users
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import MatmulAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import Space, TensorType
from ppuc.targets.schema import Target

FEW_ROWS = 16
"""With at most this many result rows (a fragment), weights are read about once."""

LARGE = 1 / 16
"""Weights larger than this share of l2 that few rows read stay in device memory."""

GAIN = 0.995
"""Transposed weights are used if the product's price is at most this share of the original's: smaller gains are below
the cost model's accuracy."""


@dataclass(frozen=True, slots=True)
class WeightLayout(Pass):
    """Store weights that few rows read in column-major order where device memory delivers them faster that way.

    %w: [k, n] = const(); %y = group(%x, %w) { matmul }
        ->  %w: [n, k] = const(); %y = group(%x, %w) { matmul {transpose_b = true} }
    """

    name: ClassVar[str] = "weight-layout"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with weights transposed."""
        return with_graph(module, _WeightTransposes(module.graph, target).build())


class _WeightTransposes:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.constants = {op.results[0].name: op for op in graph.ops if op.name == "const"}
        self.users = users(graph)
        self.names = Builder(all_names(graph))
        self.lowered = KernelCache(target)

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing is transposed."""
        ops: list[Op] = []
        for op in self.graph.ops:
            transposed = self._transposed(op)
            ops += [op] if transposed is None else transposed
        changed = len(ops) > len(self.graph.ops)
        return without_dead_ops(self.graph.with_ops(ops)) if changed else self.graph

    def _transposed(self, op: Op) -> list[Op] | None:
        """The transposed constant and the group that reads it; None where that is not faster."""
        body, anchor = op.body, group_anchor(op)
        if body is None or anchor is None or anchor.name != "matmul":
            return None
        at = self._streamed(op, body, anchor)
        if at is None:
            return None
        param = body.params[at]
        other = _with_transposed(body, param)
        try:
            stored, transposed = self._price(op, body, param), self._price(op, other, param)
        except NotFusable:
            return None
        gains = transposed <= GAIN * stored
        if (remarks := listener()) is not None:
            emit = remarks.applied if gains else remarks.missed
            why = "" if gains else "device memory does not deliver the weights faster in column-major order"
            decision, name = "stored-by-columns" if gains else "stored-by-rows", op.operands[at].name
            emit(decision, name, op.loc, why, before=stored, after=transposed, bytes=param.type.bytes)
        if not gains:
            return None
        value, source = op.operands[at], self.constants[op.operands[at].name]
        assert isinstance(source.attrs, ConstAttrs)
        result = Value(self.names.fresh(f"{value.name}.turned"), _swapped(value.type))
        resource = folded(
            Op("transpose", TransposeAttrs((1, 0)), (value,), (result,), source.loc), [source.attrs.value]
        )
        assert resource is not None
        constant = Op("const", ConstAttrs(resource), (), (result,), source.loc)
        operands = tuple(result if i == at else v for i, v in enumerate(op.operands))
        attrs = GroupAttrs(check_group(other, self.target))
        return [constant, replace(op, attrs=attrs, operands=operands, body=other)]

    def _streamed(self, op: Op, body: Graph, anchor: Op) -> int | None:
        """Operand position of the weights if they are constant, large, read by few rows, and not read elsewhere."""
        if any(r.type.rank and r.type.elements // max(r.type.dims[-1], 1) > FEW_ROWS for r in anchor.results):
            return None
        weights = anchor.operands[1]
        producer = body.producer(weights)
        if producer is not None and unpacks(producer):
            weights = producer.operands[0]
        at = next((i for i, p in enumerate(body.params) if p.name == weights.name), None)
        if at is None or weights.type.rank != 2:
            return None
        outer = op.operands[at]
        alone = outer.name in self.constants and len(self.users[outer.name]) == 1
        return at if alone and outer.type.bytes > LARGE * self.target.l2.bytes else None

    def _price(self, op: Op, body: Graph, param: Value) -> float:
        """Price of the group with this body and the weights in device memory."""

        def put(v: Value) -> Value:
            return replace(v, space=Space.HBM) if v.name == param.name else v

        ops = tuple(replace(o, operands=tuple(map(put, o.operands))) for o in body.ops)
        return self.lowered.price(op, Graph(body.name, tuple(map(put, body.params)), body.results, ops))


def _swapped(type: TensorType) -> TensorType:
    return TensorType(type.dtype, type.dims[::-1])


def _with_transposed(body: Graph, param: Value) -> Graph:
    """The body for transposed weights."""
    known = {param.name: replace(param, type=_swapped(param.type))}
    ops = []
    for op in body.ops:
        if any(v.name in known for v in op.operands):
            operands = tuple(known.get(v.name, v) for v in op.operands)
            if isinstance(op.attrs, MatmulAttrs):
                op = replace(op, operands=operands, attrs=replace(op.attrs, transpose_b=not op.attrs.transpose_b))
            else:
                (result,) = op.results
                known[result.name] = replace(result, type=_swapped(result.type))
                op = replace(op, operands=operands, results=(known[result.name],))
        ops.append(op)
    return Graph(body.name, tuple(known.get(p.name, p) for p in body.params), body.results, tuple(ops))
