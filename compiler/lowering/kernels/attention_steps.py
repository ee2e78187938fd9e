"""The steps of a softmax over scores in the accumulator, shared by all kernels that compute attention; their cost."""

from __future__ import annotations

import math

from ppuc.compiler.lowering import cost
from ppuc.compiler.lowering.tiling.vectorise import ProgramBuilder
from ppuc.ir.ops.attention import PEAK
from ppuc.ir.types import DType
from ppuc.targets.schema import Target
from ppuc.targets.vector_cost import SPECIAL


def scaled_scores(builder: ProgramBuilder, scores: str, scale: float, *, apart: bool) -> tuple[str, float]:
    """The scores, and a positive factor still to be applied, so that the engine fuses that product with the subtraction
    of the maximum; no factor is left (1) if it is `apart`, as where a mask follows, or not positive."""
    if apart or scale <= 0:
        return builder.step("mul", scores, builder.const(scale, DType.F32)), 1.0
    return scores, scale


def visible_scores(builder: ProgramBuilder, scores: str, key: str, row: str) -> str:
    """The scores of keys at positions up to that of the row, -inf for others."""
    return builder.step("select", builder.step("le", key, row), scores, builder.const(-math.inf, DType.F32))


def maximum(builder: ProgramBuilder, scores: str, factor: float, axis: int) -> tuple[str, str]:
    """The scores times `factor`, and their maxima along the tile axis `axis`."""
    high = builder.step("reduce_max", scores, ints=(axis,))
    if factor == 1:
        return scores, high
    by = builder.const(factor, DType.F32)
    return builder.step("mul", scores, by), builder.step("mul", high, by)


def relative_weights(builder: ProgramBuilder, scores: str, high: str, dtype: DType, axis: int) -> tuple[str, str]:
    """Weights of `dtype` relative to the maxima `high`, and their sums along the tile axis `axis`."""
    shift = builder.step("sub", builder.const(math.log(PEAK.get(dtype, 1.0)), DType.F32), high)
    weights = builder.step("exp", builder.step("add", scores, shift))
    return weights, builder.step("reduce_sum", weights, ints=(axis,))


def softmax_clk(elements: int, target: Target, *, mask: bool, causal: bool) -> float:
    """Cycles of a softmax: maximum, scale, shift, exponential and sum of each score, an addition for a mask, a
    comparison and a selection for causality."""
    vector, (lane, special) = target.vector, SPECIAL["exp"]
    lane += 4 + mask + 2 * causal
    special *= vector.lanes // vector.sfu_per_clk
    steps = max(lane, special) if vector.sfu_beside_lanes else lane + special
    return cost.vec_clk(elements, steps, target)
