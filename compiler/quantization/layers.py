"""The quantizable layers of a graph: its float matmuls, convolutions and attentions.

A layer is named after its ONNX node (with `#2`, `#3`, .. if several layers come from that node). Either one of its
operands is constant weights, or all operands are activations.

Invariant: layers are in the graph's order, and their names are unique within the graph.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.ops.base import OPS
from ppuc.ir.resource import Resource

CONTRACTIONS = ("matmul", "conv", "attention")


@dataclass(frozen=True, slots=True)
class Layer:
    """One contraction. `inputs` are its activation operands and `weights` its constant operand (None for a product of
    two activations, or three in attention); `macs` counts multiply-accumulates, `depth` the terms of each sum."""

    name: str
    op: Op
    inputs: tuple[Value, ...]
    weights: Resource | None
    macs: int
    depth: int

    @property
    def kind(self) -> str:
        """conv, depthwise, matmul, product (of two activations) or attention."""
        if self.op.name == "conv":
            return "depthwise" if self.groups > 1 and self.groups == self.inputs[0].type.dims[1] else "conv"
        if self.op.name == "attention":
            return "attention"
        return "matmul" if self.weights is not None else "product"

    @property
    def groups(self) -> int:
        return int(self.op.attrs.groups) if self.op.name == "conv" else 1  # type: ignore[attr-defined]

    @property
    def channel_axis(self) -> int:
        """The weights' axis of output channels."""
        attrs: Any = self.op.attrs
        if self.op.name == "conv":
            return 0
        assert self.weights is not None
        return self.weights.type.rank - (2 if attrs.transpose_b else 1)

    @property
    def input_axis(self) -> int:
        """The input's channel axis, which the sum reduces."""
        if self.op.name == "conv":
            return 1
        rank = self.inputs[0].type.rank
        if self.op.name == "attention":
            return rank - 1
        return rank - (2 if self.op.attrs.transpose_a else 1)  # type: ignore[attr-defined]


def product_nodes(graph: Graph) -> frozenset[str]:
    """Names of the nodes of an imported graph that are contractions. After later rewrites, an op also carries the names
    of the transposes and batch norms folded into it."""
    return frozenset(name for op in graph.ops if op.name in CONTRACTIONS for name in op.loc)


def find_layers(graph: Graph, nodes: frozenset[str] = frozenset()) -> tuple[Layer, ...]:
    """The layers of `graph`, named after one of `nodes` where possible."""
    constants = graph.constants()
    stored = {op.results[0].name for op in graph.ops if op.name == "unblock"}
    seen: Counter[str] = Counter()
    found = []
    for op in graph.ops:
        if op.name not in CONTRACTIONS or not op.operands[0].type.dtype.is_float or op.operands[0].type.dtype.bits < 16:
            continue
        multiplied = op.operands[:3]
        if all(v.name in constants for v in multiplied):
            continue
        if any(v.name in stored for v in multiplied):
            continue
        weights = constants.get(multiplied[1].name) if op.name != "attention" else None
        first = next((n for n in op.loc if n in nodes), op.loc[0] if op.loc else op.results[0].name)
        seen[first] += 1
        name = first if seen[first] == 1 else f"{first}#{seen[first]}"
        inputs = multiplied if weights is None else multiplied[:1]
        found.append(Layer(name, op, inputs, weights, *_work(op)))
    return tuple(found)


def _work(op: Op) -> tuple[int, int]:
    """(multiply-accumulates, terms of the longest sum)"""
    if op.name == "attention":
        (batch, heads, m, d), s, e = op.operands[0].type.dims, op.operands[1].type.dims[2], op.results[0].type.dims[3]
        return batch * heads * m * s * (d + e), max(s, d)
    pattern = OPS[op.name].pattern(op)
    assert pattern is not None
    dims = pattern.dims
    return math.prod(d.size for d in dims), math.prod(d.size for d in dims if d.reduced)
