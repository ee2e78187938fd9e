"""Storage formats of tensors between kernels.

With `--precision bf16` or `fp16`, operands of contractions are stored in that format, and so is every value that
depends on a contraction: activations, residual sums. Values that do not (positions, masks, index arithmetic) keep their
type, because a format with 8 bits of mantissa cannot count to 300. Inside a kernel everything is f32; values are
rounded once, when they are stored.

Invariant: the operands of a contraction have the requested format (for block-quantized weights, their scales), and its
accumulator is f32. The exception is attention of few queries over an f32 cache of the model, which it reads as stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.kinds import anchored_kind, check_group, group_anchor, group_kind
from ppuc.compiler.lowering.tiling.body import Resolver, unpacks
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.memory.live_ranges import storage_roots
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.passes.rules.constants import folded
from ppuc.compiler.precisions import named_precision
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS, Kind
from ppuc.ir.ops.blocks import UnblockAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.structure import ConstAttrs, GroupAttrs
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import DType, TensorType
from ppuc.targets.cost import l2_bytes_per_clk
from ppuc.targets.schema import Target

CONTRACTIONS = ("matmul", "conv", "attention")
FOLLOWING = ("pad", "pool")
"""Ops whose result has the operands' dtype, besides views and ops whose kernels store elements unchanged: they move
elements without arithmetic (except a sum over a window)."""
MOST_ROWS = 16
"""With at most this many query rows sharing keys, attention is memory-bound in any format."""


@dataclass(frozen=True, slots=True)
class StorageTypes(Pass):
    """Store contraction operands and values that depend on contractions in the requested precision.

    %y: f32 @hbm = group(%x: f32) { matmul, add }  ->  %y: bf16 = group(%x: bf16) { matmul {out = f32}, add, cast }
    """

    name: ClassVar[str] = "storage-types"
    required: ClassVar[str] = "it stores tensors in the requested precision"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with narrowed edges; unchanged at precisions that keep the model's types."""
        narrow = named_precision(module.option("precision", "model"), "precision").storage_type
        if narrow is None:
            return module
        return with_graph(module, Narrowing(module.graph, narrow, target).build())


class Narrowing:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, narrow: DType, target: Target) -> None:
        self.graph, self.narrow, self.target = graph, narrow, target
        self.roots = storage_roots(graph)
        self.builder = Builder(all_names(graph))
        self.fixed = {p.name for p in graph.params} | {self.roots[v.name] for v in graph.results}
        self.constants = {op.results[0].name: op for op in graph.ops if op.name == "const"}
        self.fixed |= set(self.constants)
        self.fed = {op.results[0].name: _contraction_params(op.body) for op in graph.ops if op.body is not None}
        for op in graph.ops:
            if self._over_caches(op):
                self.fixed |= {self.roots[op.operands[i].name] for i in self.fed[op.results[0].name]}
                self.fed[op.results[0].name] = frozenset()
        self.narrowed = self._decide()
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {p.name: p for p in graph.params}
        self.casts: dict[tuple[str, DType], Value] = {}

    def _wide(self, dtype: DType) -> bool:
        return dtype.is_float and dtype.bits >= 16 and dtype is not self.narrow

    def _over_caches(self, op: Op) -> bool:
        """Whether `op` is attention of few queries over keys and values that stay wide because they are model inputs or
        outputs: multiplying them unconverted costs less than another pass over memory."""
        attention = group_anchor(op)
        if op.body is None or attention is None or attention.name != "attention":
            return False
        (_, heads, rows, _), (_, groups, *_) = (v.type.dims for v in attention.operands[:2])
        dtype = attention.operands[0].type.dtype
        if heads // groups * rows > MOST_ROWS or not self.target.tensor.supports(str(dtype)) or dtype is self.narrow:
            return False
        outer = dict(zip((p.name for p in op.body.params), op.operands, strict=True))
        resolver = Resolver(op.body)
        keys = [resolver.external(v) for v in attention.operands[1:3]]
        return all(k is not None and self.roots[outer[k.value.name].name] in self.fixed for k in keys)

    def _decide(self) -> set[str]:
        """Storage roots that are stored narrow."""
        needed = {
            self.roots[op.operands[i].name]
            for op in self.graph.ops
            if op.body is not None
            for i in self.fed[op.results[0].name]
        }
        found: set[str] = set()
        while True:
            before = len(found)
            for op in self.graph.ops:
                if op.body is None:
                    continue
                descends = bool(self.fed[op.results[0].name]) or any(self.roots[v.name] in found for v in op.operands)
                for r in op.results:
                    root = self.roots[r.name]
                    if root not in self.fixed and self._wide(r.type.dtype) and (descends or root in needed):
                        found.add(root)
            if len(found) == before:
                return found

    def build(self) -> Graph:
        """The graph with narrowed edges."""
        for op in self.graph.ops:
            if op.body is None:
                self._outside(op)
            else:
                self._group(op)
        results = tuple(self.values.get(v.name, v) for v in self.graph.results)
        graph = without_dead_ops(Graph(self.graph.name, self.graph.params, results, tuple(self.ops)))
        if (remarks := listener()) is not None:
            self._remark(graph, remarks)
        return graph

    def _remark(self, graph: Graph, remarks: Collector) -> None:
        """Remarks on tensors between kernels: stored narrow, kept wide, or narrowed by a separate kernel."""
        made, rate = {r.name for op in graph.ops for r in op.results}, l2_bytes_per_clk(self.target)
        for op in self.graph.ops:
            for r in op.results if op.body is not None else ():
                root, size, narrow = self.roots[r.name], r.type.bytes, r.type.with_dtype(self.narrow).bytes
                if root in self.narrowed:
                    remarks.applied("stored-narrow", r.name, op.loc, bytes=narrow, saved_bytes=size - narrow)
                elif self._wide(r.type.dtype):
                    outside = "it shares memory with a model input or output, which keeps its type"
                    why = outside if root in self.fixed else "it does not depend on a contraction"
                    lost = 2 * (size - narrow) / rate
                    remarks.missed("stored-wide", r.name, op.loc, why, bytes=size, lost_clk=lost)
        for (source, dtype), value in self.casts.items():
            if value.name in made and source not in self.constants:
                readers = [op for op in graph.ops if any(v.name == value.name for v in op.operands)]
                why = f"{source} is stored in another type, and products read {dtype}"
                remarks.applied("cast-kernel", value.name, readers[0].loc, why, bytes=value.type.bytes, kernels=1)

    def _outside(self, op: Op) -> None:
        """Constants are kept; an alias takes the dtype of its operand."""
        operands = tuple(self.values[v.name] for v in op.operands)
        results = op.results
        if operands:
            results = tuple(replace(r, type=r.type.with_dtype(operands[0].type.dtype)) for r in results)
        self.ops.append(replace(op, operands=operands, results=results))
        self.values.update({r.name: r for r in results})

    def _stored(self, value: Value) -> DType:
        """The dtype in which a group's result is stored."""
        return self.narrow if self.roots[value.name] in self.narrowed else value.type.dtype

    def _group(self, op: Op) -> None:
        body, kind = op.body, group_kind(op)
        assert body is not None
        assert kind is not None
        fed = self.fed[op.results[0].name]
        stored = [self._stored(r) for r in op.results]
        operands = []
        for i, v in enumerate(op.operands):
            current = self.values[v.name]
            if i in fed and self._wide(current.type.dtype):
                current = self._cast(current, self.narrow)
            elif not kind.epilogue and v.type.dtype is op.results[0].type.dtype and current.type.dtype is not stored[0]:
                current = self._cast(current, stored[0])
            operands.append(current)
        rewritten = _Body(self, body, operands, stored).build()
        results = tuple(replace(r, type=r.type.with_dtype(d)) for r, d in zip(op.results, stored, strict=True))
        attrs = GroupAttrs(check_group(rewritten, self.target))
        self.ops.append(Op("group", attrs, tuple(operands), results, op.loc, rewritten))
        self.values.update({r.name: r for r in results})

    def _cast(self, value: Value, dtype: DType) -> Value:
        """`value` in another dtype: a converted constant, or a separate cast kernel."""
        key = (value.name, dtype)
        if key not in self.casts:
            type = value.type.with_dtype(dtype)
            result = Value(self.builder.fresh(f"{value.name}.{dtype}"), type)
            if value.name in self.constants:
                source = self.constants[value.name]
                cast = Op("cast", CastAttrs(dtype), (value,), (result,), source.loc)
                resource = folded(cast, [source.attrs.value])  # type: ignore[attr-defined]
                assert resource is not None
                self.ops.append(Op("const", ConstAttrs(resource), (), (result,), source.loc))
            else:
                inner = Value(self.builder.fresh(f"{value.name}.in"), value.type)
                out = Value(self.builder.fresh(f"{value.name}.out"), type)
                body = Graph("body", (inner,), (out,), (Op("cast", CastAttrs(dtype), (inner,), (out,)),))
                attrs = GroupAttrs(check_group(body, self.target))
                self.ops.append(Op("group", attrs, (value,), (result,), (), body))
            self.casts[key] = result
        return self.casts[key]


def _contraction_params(body: Graph | None) -> frozenset[int]:
    """Indices of the parameters that the body's contraction multiplies."""
    if body is None:
        return frozenset()
    position = {p.name: i for i, p in enumerate(body.params)}
    resolver = Resolver(body)
    found = set()
    for op in body.ops:
        multiplied = op.name in CONTRACTIONS and op.operands[0].type.dtype.is_float
        if multiplied or op.name == "unblock":  # the scales of weights in blocks
            for v in op.operands[1:2] if op.name == "unblock" else op.operands[:3]:
                external = resolver.external(v)
                if external is not None:
                    found.add(position[external.value.name])
    return frozenset(found)


def _follows(op: Op) -> bool:
    """Whether the result of `op` always has the dtype of its operands."""
    kind = anchored_kind(op)
    moves = kind is not None and not kind.epilogue
    return moves or op.name in FOLLOWING or OPS[op.name].kind in (Kind.VIEW, Kind.CONSTANT)


class _Body:
    """Rewrites one body for operands of other dtypes."""

    def __init__(self, owner: Narrowing, body: Graph, operands: Sequence[Value], stored: Sequence[DType]) -> None:
        self.owner, self.body, self.stored = owner, body, stored
        self.params = tuple(
            replace(p, type=p.type.with_dtype(v.type.dtype)) for p, v in zip(body.params, operands, strict=True)
        )
        self.values = {p.name: p for p in self.params}
        self.wide: dict[str, Value] = {}
        self.ops: list[Op] = []

    def build(self) -> Graph:
        """The rewritten body."""
        for op in self.body.ops:
            self._op(op)
        results = []
        for value, dtype in zip(self.body.results, self.stored, strict=True):
            current = self.values[value.name]
            results.append(current if current.type.dtype is dtype else self._cast(current, dtype))
        return Graph(self.body.name, self.params, tuple(results), tuple(self.ops))

    def _op(self, op: Op) -> None:
        operands = tuple(self.values[v.name] for v in op.operands)
        attrs = op.attrs
        if unpacks(op) and any(op.results[0] in o.operands for o in self.body.ops if o.name == "matmul"):
            attrs = CastAttrs(self.owner.narrow)
        elif isinstance(attrs, UnblockAttrs):
            attrs = replace(attrs, to=self.owner.narrow)
        elif op.name in ("matmul", "conv") and operands[0].type.dtype.is_float:
            narrow = operands[0].type.dtype
            attrs = replace(attrs, out=None if narrow is op.results[0].type.dtype else op.results[0].type.dtype)  # type: ignore[call-arg]
        elif op.name == "attention":
            operands = (*operands[:3], *(self._as(v, o) for v, o in zip(operands[3:], op.operands[3:], strict=True)))
        elif not _follows(op):
            operands = tuple(self._as(v, o) for v, o in zip(operands, op.operands, strict=True))
        types = OPS[op.name].infer(attrs, [v.type for v in operands])
        results = tuple(replace(r, type=t) for r, t in zip(op.results, types, strict=True))
        self.ops.append(replace(op, attrs=attrs, operands=operands, results=results))
        self.values.update({r.name: r for r in results})

    def _as(self, value: Value, like: Value) -> Value:
        """`value` in the dtype that the original op had."""
        if value.type.dtype is like.type.dtype:
            return value
        if value.name not in self.wide:
            self.wide[value.name] = self._cast(value, like.type.dtype)
        return self.wide[value.name]

    def _cast(self, value: Value, dtype: DType) -> Value:
        result = Value(self.owner.builder.fresh(f"{value.name}.{dtype}"), TensorType(dtype, value.type.shape))
        self.ops.append(Op("cast", CastAttrs(dtype), (value,), (result,)))
        return result
