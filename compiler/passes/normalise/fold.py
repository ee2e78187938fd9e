"""Constant folding. Afterwards no op has only constant operands, unless its result would be far larger than they are.

Small results are computed here. Large ones (transposed or scaled weights) become Derived resources: recipes evaluated
when an artifact needs their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.rewriter import Rules, Walk, to_fixpoint, with_graph
from ppuc.compiler.passes.rules.constants import folded
from ppuc.compiler.passes.rules.quantized import quantized_product
from ppuc.compiler.passes.rules.stored_weights import stored_weights
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops import OPS
from ppuc.ir.resource import Resource
from ppuc.targets.description import Target


def fold_constants(w: Walk, op: Op) -> Value | Sequence[Value] | None:
    """op(const, ...) -> const. A composite without a reference is folded through its decomposition."""
    if op.name == "const" or op.body is not None or not op.operands:
        return None
    inputs: list[Resource] = []
    for operand in op.operands:
        resource = w.resource(operand)
        if resource is None:
            return None
        inputs.append(resource)
    if _unpacks_weights(op):
        return None
    record = OPS[op.name]
    if record.reference is None and record.decompose is not None:
        return record.decompose(w.builder, op)
    result = folded(op, inputs)
    return None if result is None else w.const(result)


def _unpacks_weights(op: Op) -> bool:
    """Whether `op` unpacks block-quantized or 8-bit float weights: they are not folded, so that they stay packed until
    they are multiplied."""
    if op.name == "unblock":
        return True
    source, result = op.operands[0].type, op.results[0].type
    narrow = source.dtype.is_float and source.dtype.bits <= 8 and result.dtype.bits > source.dtype.bits
    return op.name == "cast" and narrow and source.rank > 1


@dataclass(frozen=True)
class Fold(Pass):
    """Compute ops on constants; merge equal ops and constants; multiply dequantized operands as they are stored.

    %a = const(); %b = reshape(%a); %y = mul(%x, %b)    ->    %b = const(); %y = mul(%x, %b)
    """

    name: ClassVar[str] = "fold"

    def run(self, module: Module, target: Target) -> Module:
        """The module with constant expressions computed."""
        # before the weights that they read are folded
        stored: Rules = {"matmul": (quantized_product, stored_weights), "conv": (quantized_product,)}
        return with_graph(module, to_fixpoint(to_fixpoint(module.graph, stored), {"*": (fold_constants,)}))
