"""Legalises numeric formats: every op computes in a format that the target has.

`precision` sets the operand format of all float contractions (`model` keeps the model's); sums are f32 and are rounded
to the model's result type. All other ops keep their types, except f64, which no engine supports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from ppuc.compiler.engines import DOUBLE, UNSIGNED, objection
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import CONTRACTIONS, MACHINE_FORMATS, Contract, multiplies
from ppuc.compiler.passes.rewriter import Rules, Walk, to_fixpoint, with_graph
from ppuc.compiler.precisions import named_precision
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, ModelError, UsageError
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.elementwise import CastAttrs
from ppuc.ir.ops.reduction import ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs, TransposeAttrs
from ppuc.ir.types import DType
from ppuc.targets.description import Target

_LISTED = 10
_WHERE = "precision"


def _cast(w: Walk, value: Value, to: DType) -> Value:
    return value if value.type.dtype is to else w.emit("cast", value, attrs=CastAttrs(to))


def _refuse_unknown(graph: Graph) -> None:
    """Raises ModelError naming the nodes that no engine supports."""
    objections = [(op, objection(op)) for op in graph.ops]
    for each in (DOUBLE, UNSIGNED):
        ops = [op for op, why in objections if why == each]
        hint = f"convert these nodes to {each.widest.numpy} before exporting the model"
        _refuse(graph, ops, f"the model {each.what}", f"{each.widest} or narrower", hint, each.dtype)


LAST_E4M3 = 464.0
"""Half a step beyond the largest E4M3 number: values up to here round to it (a tie goes to the even code)."""


def _refuse_overflow(graph: Graph) -> None:
    """Raises ModelError naming the nodes whose casts overflow to 8-bit infinities."""
    casts = [op for op in graph.ops if isinstance(op.attrs, CastAttrs) and not op.attrs.saturate]
    loose = [op for op in casts if op.result.type.dtype is DType.F8E5M2]
    what, expected = "the engines saturate casts to f8e5m2", "saturate = 1"
    _refuse(graph, loose, what, expected, "export with saturate = 1", DType.F8E5M2)


def _overflow_to_nan(w: Walk, op: Op) -> Value | None:
    """cast(x) {to = f8e4m3, saturate = false} -> cast(select(|x| > LAST_E4M3, NaN, x)): the format has no infinity."""
    attrs = op.attrs
    assert isinstance(attrs, CastAttrs)
    if attrs.saturate or attrs.to is not DType.F8E4M3 or not op.operands[0].type.dtype.is_float:
        return None
    x = _cast(w, op.operands[0], DType.F32)
    beyond = w.emit("gt", w.emit("abs", x), w.scalar(LAST_E4M3, DType.F32))
    return w.emit("cast", w.emit("select", beyond, w.scalar(math.nan, DType.F32), x), attrs=CastAttrs(attrs.to))


def _refuse(graph: Graph, ops: Sequence[Op], what: str, expected: str, hint: str, dtype: DType) -> None:
    """Raise ModelError about `ops` unless empty; its text lists the first ones."""
    named = [op.loc or (str(op.results[0]),) for op in ops]
    nodes = list(dict.fromkeys(name for names in named for name in names))
    if not nodes:
        return
    more = f" and {len(nodes) - _LISTED} more" if len(nodes) > _LISTED else ""
    entities = [entity for op in ops for entity in op.entities]
    entities.append(Entity(EntityKind.TYPE, str(dtype)))
    got = ", ".join(nodes[:_LISTED]) + more
    raise ModelError(Diagnostic(f"graph @{graph.name}", what, got, expected, hint, tuple(dict.fromkeys(entities))))


@dataclass(frozen=True)
class Legalise(Pass):
    """Give every contraction operands in a tensor-engine format and f32 sums.

    Products of integers wider than 8 bits become elementwise products and a sum on the vector engine. Without `narrow`,
    precisions below f32 stay in f32 here; the storage-types pass narrows them after fusion.

    %y: f32[m, n] = matmul(%a, %b)      ->      %p = cast(%a) {to = bf16}; %q = cast(%b) {to = bf16}
                                                %y: f32[m, n] = matmul(%p, %q) {out = f32}
    """

    narrow: bool = True
    name: ClassVar[str] = "legalise"
    required: ClassVar[str] = "the tensor engine supports certain formats only"
    ensures: ClassVar[tuple[Contract, ...]] = (MACHINE_FORMATS,)

    def run(self, module: Module, target: Target) -> Module:
        """The module in formats that `target` has. Raises UsageError for a precision that it lacks, ModelError for f64
        and for overflowing casts."""
        _refuse_unknown(module.graph)
        _refuse_overflow(module.graph)
        wanted = self._format(module, target)

        def product_in_format(w: Walk, op: Op) -> Value | None:
            if _is_wide(op):
                return _by_elements(w, op)
            return _in_format(w, op, wanted or op.operands[0].type.dtype)

        rules: Rules = {"cast": (_overflow_to_nan,), **dict.fromkeys(CONTRACTIONS, (product_in_format,))}
        graph = to_fixpoint(module.graph, rules)
        _check_supported(graph, module, target)
        return with_graph(module, graph)

    def _format(self, module: Module, target: Target) -> DType | None:
        wanted = named_precision(module.option("precision", "model"), _WHERE).contraction_type
        if wanted is not None and not target.tensor.supports(wanted):
            _refuse_format(wanted, module, target)
        return wanted if wanted is None or self.narrow else DType.F32


def _is_wide(op: Op) -> bool:
    """Whether `op` multiplies matrices of integers wider than 8 bits, which no tensor engine supports."""
    given = op.operands[0].type.dtype
    return op.name == "matmul" and given.is_integer and given.bits > 8


def _by_elements(w: Walk, op: Op) -> Value:
    """matmul(a, b) -> sum over k of a[.., m, k, 1] * b[.., 1, k, n], with the same wrap-around on overflow."""
    assert isinstance(op.attrs, MatmulAttrs)
    a, b = op.operands
    a = _rows(w, a, swapped=op.attrs.transpose_a)
    b = _rows(w, b, swapped=op.attrs.transpose_b)
    a = w.emit("reshape", a, attrs=ReshapeAttrs((*a.type.dims, 1)))
    b = w.emit("reshape", b, attrs=ReshapeAttrs((*b.type.dims[:-2], 1, *b.type.dims[-2:])))
    products = w.emit("mul", a, b)
    total = w.emit("reduce", products, attrs=ReduceAttrs("sum", (products.type.rank - 2,), keepdims=False))
    return _cast(w, total, op.result.type.dtype)


def _rows(w: Walk, x: Value, swapped: bool) -> Value:
    """`x` with its last two axes swapped if `swapped`."""
    rank = x.type.rank
    return w.emit("transpose", x, attrs=TransposeAttrs((*range(rank - 2), rank - 1, rank - 2))) if swapped else x


def _in_format(w: Walk, op: Op, wanted: DType) -> Value | None:
    """Skips integers, 8-bit floats (their scales were chosen by the model) and contractions that are in the format
    already."""
    given = op.operands[0].type.dtype
    if not given.is_float or given.bits == 8:
        return None
    if op.name == "attention":
        if given is wanted:
            return None
        q, k, v = (_cast(w, x, wanted) for x in op.operands[:3])
        return _cast(w, w.emit("attention", q, k, v, *op.operands[3:], attrs=op.attrs), op.result.type.dtype)
    assert isinstance(op.attrs, MatmulAttrs | ConvAttrs)
    out = None if wanted is DType.F32 else DType.F32
    if given is wanted and op.attrs.out is out:
        return None
    operands = (_cast(w, x, wanted) for x in op.operands)
    return _cast(w, w.emit(op.name, *operands, attrs=replace(op.attrs, out=out)), op.result.type.dtype)


def _check_supported(graph: Graph, module: Module, target: Target) -> None:
    """Raises UsageError if a contraction multiplies a format that the tensor engine does not support."""
    for op in graph.ops:
        if op.name not in CONTRACTIONS or multiplies(target, op.operands[0].type.dtype):
            continue
        where = f"node '{op.loc[0]}' ({op.name})" if op.loc else str(op.results[0])
        _refuse_format(op.operands[0].type.dtype, module, target, where, op.entities)


def _refuse_format(
    dtype: DType, module: Module, target: Target, where: str = _WHERE, about: tuple[Entity, ...] = ()
) -> NoReturn:
    raise UsageError(
        Diagnostic(
            where,
            f"the tensor engine of {target.name} does not multiply {dtype}",
            got=f"precision {module.option('precision', 'model')}",
            expected=f"one of the formats it has: {', '.join(sorted(target.tensor.ii_clk))}",
            hint="choose another format with --precision",
            entities=(*about, Entity(EntityKind.TYPE, str(dtype))),
        )
    )
