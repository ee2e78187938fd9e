"""The op `snake`: x + sin^2(alpha x) / alpha (Ziyin et al., 2020), which vocoders use for its periodic bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Op, Value
from ppuc.ir.ops import Kind, OpDef
from ppuc.ir.types import DType, TensorType, broadcast_shapes

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


def infer(attrs: Any, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """x: f32[...] and alpha: f32 that broadcasts to it -> f32[...]."""
    x, alpha = types
    if x.dtype is not DType.F32 or alpha.dtype is not DType.F32:
        raise ValueError(f"snake is defined for f32 (got {x} and {alpha})")
    if broadcast_shapes(x.dims, alpha.dims) != x.dims:
        raise ValueError(f"alpha does not broadcast to x (got {x} and {alpha})")
    return (x,)


def reference(attrs: Any, x: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray]:
    """In f64, rounded once."""
    wide, factor = x.astype(np.float64), alpha.astype(np.float64)
    return ((wide + np.sin(factor * wide) ** 2 / factor).astype(np.float32),)


def decompose(b: Builder, op: Op) -> Sequence[Value]:
    """snake(x, alpha) -> x + s s / alpha, with s = sin(alpha x)."""
    x, alpha = op.operands
    s = b("sin", b("mul", x, alpha))
    return (b("add", x, b("div", b("mul", s, s), alpha)),)


SNAKE = OpDef(
    name="snake",
    formula="x + sin^2(alpha x) / alpha",
    kind=Kind.COMPOSITE,
    operands="x, alpha",
    infer=infer,
    reference=reference,
    decompose=decompose,
)
