"""Rewrites the graph into the forms that kernels support, just before fusion.

A 1x1 convolution without padding becomes a matmul. A concat has at most half as many operands as a unit has rings,
because each operand needs a ring for its load and possibly another for a transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import FULL_RANK, NOT_EMPTY, Contract
from ppuc.compiler.passes.remarks import listener
from ppuc.compiler.passes.rewriter import to_fixpoint, with_graph
from ppuc.compiler.passes.rules.ranks import in_steps
from ppuc.compiler.passes.rules.rotary import ROTARY_RULES
from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.base import OPS
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs
from ppuc.ir.rewrite import Builder, rewrite, without_dead_ops
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class LegaliseForKernels(Pass):
    """Rewrite reductions to keep their axes and pointwise convolutions to matmuls; remove empty tensors.

    reduce(x) {keepdims = false}         ->  reshape(reduce(x) {keepdims = true})
    transpose(x) of 9 axes               ->  transpose(transpose(x))
    conv(x, w[1, 1, c, o]) {strides = s} ->  matmul(slice(x) {steps = s}, w[c, o])
    matmul(a[m, 0], b[0, n])             ->  const of zeros
    concat(x, y[0, n], z)                ->  concat(x, z)
    reduce(x) {axes = (1, 2)}            ->  reduce(reduce(x) {axes = (2,)}) {axes = (1,)} of a large image
    x cos + concat(-x[h:], x[:h]) sin    ->  x' cos' + reversed(x') sign sin', all as [..., 2, h]
    """

    name: ClassVar[str] = "legalise-for-kernels"
    required: ClassVar[str] = "kernels need reductions that keep their axes and no empty tensors"
    ensures: ClassVar[tuple[Contract, ...]] = (FULL_RANK, NOT_EMPTY)

    def run(self, module: Module, target: Target) -> Module:
        """The module with its graph legalised."""
        graph = to_fixpoint(module.graph, ROTARY_RULES)
        graph = rewrite(rewrite(graph, partial(_rule, most_joined(target))), _in_steps)
        graph = rewrite(graph, partial(_row_by_row, target))
        return with_graph(module, without_dead_ops(graph))


LEAST_POINTS = 512
"""Points of an image from which on it is worth a second kernel to reduce its rows in parallel."""

FEW_CHANNELS = 16
"""Channels of a tile: fewer make short rows."""


def _row_by_row(target: Target, b: Builder, op: Op) -> Sequence[Value] | None:
    """Reduce an image, channels last, along its rows first: all of a channel's points in one tile leave most units idle
    where there are few channels."""
    attrs = op.attrs
    if not isinstance(attrs, ReduceAttrs) or not attrs.keepdims or len(attrs.axes) < 2:
        return None
    if attrs.kind not in ("sum", "max", "min") or not op.operands[0].type.dtype.is_float:
        return None
    (x,) = op.operands
    dims, axes = x.type.dims, attrs.axes
    points = math.prod(dims[a] for a in axes)
    channels = -(-dims[-1] // FEW_CHANNELS)
    if axes != tuple(range(axes[0], len(dims) - 1)) or points < LEAST_POINTS or dims[axes[0]] == points:
        return None
    if math.prod(dims[: axes[0]]) * channels * 2 > target.cu:
        return None
    rows = b("reduce", x, attrs=replace(attrs, axes=axes[1:]))
    if attrs.kind == "sum":  # a tensor between kernels, perhaps in f16: means do not overflow where elements do not
        count = points // dims[axes[0]]
        rows = b("mul", rows, b.scalar(1 / count, x.type.dtype))
        total = b("reduce", rows, attrs=replace(attrs, axes=axes[:1]))
        result = b("mul", total, b.scalar(count, x.type.dtype), hint=op.results[0].name)
    else:
        result = b("reduce", rows, attrs=replace(attrs, axes=axes[:1]), hint=op.results[0].name)
    return _counted("row-by-row", op, [result])


def most_joined(target: Target) -> int:
    """Maximum operands of one concat."""
    return max(2, target.sync.rings_per_cu // 2)


def _rule(most: int, b: Builder, op: Op) -> Sequence[Value] | None:
    """The replacement of `op` by the first rule that applies."""
    if op.operands and any(0 in v.type.dims for v in (*op.operands, *op.results)):
        return _counted("drop-empty", op, _without_empty(b, op, most))
    if op.name == "concat" and len(op.operands) > most:
        return _counted("concat-in-parts", op, [_joined(b, op.operands, op.attrs, most)])
    if isinstance(op.attrs, ReduceAttrs | ArgreduceAttrs) and not op.attrs.keepdims:
        return _counted("reduce-keeping-axes", op, _keeping_axes(b, op, op.attrs))
    return _counted("pointwise-as-matmul", op, _pointwise(b, op)) if op.name == "conv" else None


def _in_steps(b: Builder, op: Op) -> Sequence[Value] | None:
    return _counted("in-steps", op, in_steps(b, op))


def _counted(rule: str, op: Op, outcome: Sequence[Value] | None) -> Sequence[Value] | None:
    """Returns the outcome of a rule, counting it for the remarks."""
    if outcome is not None and (remarks := listener()) is not None:
        remarks.count(rule, op)
    return outcome


def _keeping_axes(b: Builder, op: Op, attrs: ReduceAttrs | ArgreduceAttrs) -> Sequence[Value]:
    kept = b(op.name, *op.operands, attrs=replace(attrs, keepdims=True), hint=op.results[0].name)
    return [b("reshape", kept, attrs=ReshapeAttrs(op.results[0].type.dims), hint=op.results[0].name)]


def _without_empty(b: Builder, op: Op, most: int) -> Sequence[Value] | None:
    """The result of `op` if its result or an operand is empty: a constant if no elements are read, else `op` on the
    other operands."""
    left = [v for v in op.operands if 0 not in v.type.dims]
    if all(0 in r.type.dims for r in op.results):
        return [b.const(np.zeros(r.type.dims, r.type.dtype.numpy), hint=r.name) for r in op.results]
    if not left:
        reference = OPS[op.name].reference
        assert reference is not None
        arrays = reference(op.attrs, *(np.zeros(v.type.dims, v.type.dtype.numpy) for v in op.operands))
        return [b.const(np.ascontiguousarray(a), hint=r.name) for a, r in zip(arrays, op.results, strict=True)]
    if op.name == "concat":
        return [_joined(b, left, op.attrs, most)]
    return left[:1] if op.name == "scatter_nd" else None


def _joined(b: Builder, parts: Sequence[Value], attrs: Attrs, most: int) -> Value:
    """The concatenation of `parts` by ops of at most `most` operands."""
    while len(parts) > 1:
        cuts = range(0, len(parts), most)
        chunks = [parts[i : i + most] for i in cuts]
        parts = [b("concat", *chunk, attrs=attrs) if len(chunk) > 1 else chunk[0] for chunk in chunks]
    return parts[0]


def _pointwise(b: Builder, op: Op) -> Sequence[Value] | None:
    attrs = op.attrs
    assert isinstance(attrs, ConvAttrs)
    x, w = op.operands
    spatial = len(attrs.strides)
    if attrs.layout != "nhwc" or attrs.groups != 1 or math.prod(w.type.dims[:spatial]) != 1:
        return None
    if any(attrs.low) or any(attrs.high):
        return None
    if any(s != 1 for s in attrs.strides):
        sizes = op.results[0].type.dims[1:-1]
        rank = spatial + 2
        x = b(
            "slice",
            x,
            attrs=SliceAttrs((0,) * rank, (x.type.dims[0], *sizes, x.type.dims[-1]), (1, *attrs.strides, 1)),
        )
    flat = b("reshape", w, attrs=ReshapeAttrs(w.type.dims[spatial:]))
    return [b("matmul", x, flat, attrs=MatmulAttrs(out=attrs.out), hint=op.results[0].name)]
