"""Brings the graph into the forms that kernels know, just before fusion.

Invariant afterwards: every reduction keeps its axes; a 1x1 convolution without padding is a matmul; constants of one
element that are read elementwise have rank 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.passes.graph_walk import with_graph
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs, ReduceAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs
from ppuc.ir.rewrite import Builder, rewrite, without_dead_ops
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Prepare:
    """Rewrite reductions to keep their axes and pointwise convolutions to matmuls.

    reduce(x) {keepdims = false}         ->  reshape(reduce(x) {keepdims = true})
    conv(x, w[1, 1, c, o]) {strides = s} ->  matmul(slice(x) {steps = s}, w[c, o])
    """

    name: ClassVar[str] = "prepare"

    def run(self, module: Module, target: Target) -> Module:
        """The module with its graph prepared."""
        return with_graph(module, without_dead_ops(rewrite(module.graph, _rule)))


def _rule(b: Builder, op: Op) -> Sequence[Value] | None:
    attrs = op.attrs
    if isinstance(attrs, ReduceAttrs | ArgreduceAttrs) and not attrs.keepdims:
        kept = b(op.name, *op.operands, attrs=replace(attrs, keepdims=True), hint=op.results[0].name)
        return [b("reshape", kept, attrs=ReshapeAttrs(op.results[0].type.dims), hint=op.results[0].name)]
    if op.name == "conv":
        return _pointwise(b, op)
    return None


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
