"""Softmax and normalisations: composites with their decompositions.

Invariants: f16 and bf16 operands are widened to f32 first and the result is rounded once; parameters (scale, bias,
mean, variance) may have another float dtype than x; the result has the type of x. References compute in f64, so they
agree with the decompositions up to f32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.elementwise import FLOATS, compute_dtype, convert
from ppuc.ir.types import DType, TensorType, broadcast_shapes

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs(Attrs):
    """`axis` is non-negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class LogSoftmaxAttrs(Attrs):
    """`axis` is non-negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class LayerNormAttrs(Attrs):
    """Statistics are taken over all dimensions from `axis` (non-negative) on."""

    axis: int
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class RmsNormAttrs(Attrs):
    """The mean square is taken over all dimensions from `axis` (non-negative) on."""

    axis: int
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class GroupNormAttrs(Attrs):
    """`groups` divides the channels (dimension 1)."""

    groups: int
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class InstanceNormAttrs(Attrs):
    """`epsilon` is added to the variance."""

    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class BatchNormAttrs(Attrs):
    """`epsilon` is added to the variance."""

    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class LpNormalizeAttrs(Attrs):
    """`p` is 1 or 2; `axis` is non-negative."""

    axis: int
    p: int = 2


Decompose = Callable[["Builder", Op], Sequence[Value]]


def _check(name: str, types: Sequence[TensorType], least: int, most: int, rank: int = 0) -> TensorType:
    if not least <= len(types) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise ValueError(f"{name} takes {count} operand{'s' * (most > 1)} (got {len(types)})")
    for t in types:
        if t.dtype not in FLOATS:
            raise ValueError(f"{name} is not defined for {t.dtype} (got {t})")
        if compute_dtype(t.dtype) is not compute_dtype(types[0].dtype):
            raise ValueError(f"operands of {name} must all be f64, or none (got {', '.join(map(str, types))})")
    if types[0].rank < rank:
        raise ValueError(f"{name} needs an operand of rank {rank} or more (got {types[0]})")
    return types[0]


def _along_axis(
    name: str, parameters: tuple[int, int]
) -> Callable[[Any, Sequence[TensorType]], tuple[TensorType, ...]]:
    """Type inference for x and `parameters` (minimum, maximum) further operands that broadcast to it; attrs have an
    `axis`."""

    def infer(attrs: Any, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x = _check(name, types, 1 + parameters[0], 1 + parameters[1])
        if not 0 <= attrs.axis < x.rank:
            raise ValueError(f"axis {attrs.axis} of {name} is not an axis of {x}")
        for t in types[1:]:
            if broadcast_shapes(x.dims, t.dims) != x.dims:
                raise ValueError(f"a parameter of {name} must broadcast to {x} (got {t})")
        return (x,)

    return infer


def _by_channel(name: str, parameters: int, rank: int) -> Callable[[Any, Sequence[TensorType]], tuple[TensorType, ...]]:
    """Type inference for x[N, C, ...] and `parameters` operands of shape [C]."""

    def infer(attrs: Attrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x = _check(name, types, 1 + parameters, 1 + parameters, rank)
        for t in types[1:]:
            if t.dims != (x.dims[1],):
                raise ValueError(f"{name} needs one parameter per channel: [{x.dims[1]}] (got {t})")
        return (x,)

    return infer


def _infer_group_norm(attrs: GroupNormAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    (x,) = _by_channel("group_norm", 2, 2)(attrs, types)
    if attrs.groups < 1 or x.dims[1] % attrs.groups:
        raise ValueError(f"groups must divide the channels (got {x.dims[1]} channels, groups = {attrs.groups})")
    return (x,)


def _infer_lp_normalize(attrs: LpNormalizeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if attrs.p not in (1, 2):
        raise ValueError(f"p of lp_normalize must be 1 or 2 (got {attrs.p})")
    return _along_axis("lp_normalize", (0, 0))(attrs, types)


def _in_f64(function: Callable[..., np.ndarray]) -> Callable[..., tuple[np.ndarray, ...]]:
    """A reference that runs `function` on f64 copies of its operands and rounds to the dtype of the first."""

    def reference(attrs: Attrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            result = function(attrs, *(a.astype(np.float64) for a in arrays))
        return (convert(result, DType.of(arrays[0].dtype)),)

    return reference


def _in_f32(function: Callable[..., Value]) -> Decompose:
    """A decomposition that runs `function(builder, attrs, *operands)` on widened operands and rounds to x's dtype."""

    def decompose(b: Builder, op: Op) -> Sequence[Value]:
        result = function(b, op.attrs, *(c.widen(b, v) for v in op.operands))
        return (c.cast(b, result, op.operands[0].type.dtype),)

    return decompose


def _log_softmax_array(attrs: LogSoftmaxAttrs, x: np.ndarray) -> np.ndarray:
    shifted = x - np.max(x, attrs.axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), attrs.axis, keepdims=True)))


def _log_softmax(b: Builder, attrs: LogSoftmaxAttrs, x: Value) -> Value:
    shifted = b("sub", x, c.reduce(b, "max", x, (attrs.axis,)))
    return b("sub", shifted, b("log", c.reduce(b, "sum", b("exp", shifted), (attrs.axis,))))


def _standardise(x: np.ndarray, axes: Sequence[int], epsilon: float) -> np.ndarray:
    over = tuple(axes)
    return np.asarray((x - np.mean(x, over, keepdims=True)) / np.sqrt(np.var(x, over, keepdims=True) + epsilon))


def _layer_norm_array(attrs: LayerNormAttrs, x: np.ndarray, scale: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    return np.asarray(_standardise(x, range(attrs.axis, x.ndim), attrs.epsilon) * scale + (bias[0] if bias else 0))


def _layer_norm(b: Builder, attrs: LayerNormAttrs, x: Value, scale: Value, *bias: Value) -> Value:
    _, centered, inverse = c.moments(b, x, range(attrs.axis, x.type.rank), attrs.epsilon)
    result = b("mul", b("mul", centered, inverse), scale)
    return b("add", result, bias[0]) if bias else result


def _rms_norm_array(attrs: RmsNormAttrs, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    square = np.mean(x * x, tuple(range(attrs.axis, x.ndim)), keepdims=True)
    return np.asarray(x / np.sqrt(square + attrs.epsilon) * scale)


def _rms_norm(b: Builder, attrs: RmsNormAttrs, x: Value, scale: Value) -> Value:
    square = c.mean(b, b("mul", x, x), range(attrs.axis, x.type.rank))
    inverse = b("rsqrt", b("add", square, b.scalar(attrs.epsilon, x.type.dtype)))
    return b("mul", b("mul", x, inverse), scale)


def _channels(parameter: np.ndarray, rank: int) -> np.ndarray:
    return parameter.reshape(1, -1, *(1,) * (rank - 2))


def _group_norm_array(attrs: GroupNormAttrs, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    grouped = x.reshape(x.shape[0], attrs.groups, x.size // (x.shape[0] * attrs.groups) if x.size else 0)
    normal = _standardise(grouped, (2,), attrs.epsilon).reshape(x.shape)
    return np.asarray(normal * _channels(scale, x.ndim) + _channels(bias, x.ndim))


def _group_norm(b: Builder, attrs: GroupNormAttrs, x: Value, scale: Value, bias: Value) -> Value:
    shape, rank = x.type.dims, x.type.rank
    members = x.type.elements // (shape[0] * attrs.groups) if x.type.elements else 0
    _, centered, inverse = c.moments(b, c.reshape(b, x, (shape[0], attrs.groups, members)), (2,), attrs.epsilon)
    normal = c.reshape(b, b("mul", centered, inverse), shape)
    return b("add", b("mul", normal, c.per_channel(b, scale, rank)), c.per_channel(b, bias, rank))


def _instance_norm_array(attrs: InstanceNormAttrs, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    normal = _standardise(x, range(2, x.ndim), attrs.epsilon)
    return np.asarray(normal * _channels(scale, x.ndim) + _channels(bias, x.ndim))


def _instance_norm(b: Builder, attrs: InstanceNormAttrs, x: Value, scale: Value, bias: Value) -> Value:
    rank = x.type.rank
    _, centered, inverse = c.moments(b, x, range(2, rank), attrs.epsilon)
    normal = b("mul", centered, inverse)
    return b("add", b("mul", normal, c.per_channel(b, scale, rank)), c.per_channel(b, bias, rank))


def _batch_norm_array(attrs: BatchNormAttrs, x: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
    scale, bias, mean, var = (_channels(p, x.ndim) for p in parameters)
    return np.asarray((x - mean) / np.sqrt(var + attrs.epsilon) * scale + bias)


def _batch_norm(
    b: Builder, attrs: BatchNormAttrs, x: Value, scale: Value, bias: Value, mean: Value, var: Value
) -> Value:
    # x * factor + offset: both depend on parameters alone, so they fold to constants.
    factor = b("mul", scale, b("rsqrt", b("add", var, b.scalar(attrs.epsilon, var.type.dtype))))
    offset = b("sub", bias, b("mul", mean, factor))
    scaled = b("mul", x, c.per_channel(b, c.cast(b, factor, x.type.dtype), x.type.rank))
    return b("add", scaled, c.per_channel(b, c.cast(b, offset, x.type.dtype), x.type.rank))


def _lp_normalize_array(attrs: LpNormalizeAttrs, x: np.ndarray) -> np.ndarray:
    powers = np.abs(x) if attrs.p == 1 else x * x
    total = np.sum(powers, attrs.axis, keepdims=True)
    norm = total if attrs.p == 1 else np.sqrt(total)
    return np.asarray(x / np.where(norm == 0, 1, norm))


def _lp_normalize(b: Builder, attrs: LpNormalizeAttrs, x: Value) -> Value:
    powers = b("abs", x) if attrs.p == 1 else b("mul", x, x)
    total = c.reduce(b, "sum", powers, (attrs.axis,))
    norm = total if attrs.p == 1 else b("sqrt", total)
    dtype = x.type.dtype
    # A zero vector stays zero, as in ONNX Runtime.
    return b("div", x, b("select", b("eq", norm, b.scalar(0, dtype)), b.scalar(1, dtype), norm))


def _composite(
    name: str,
    formula: str,
    operands: str,
    attrs: type[Attrs],
    infer: Callable[[Any, Sequence[TensorType]], tuple[TensorType, ...]],
    array: Callable[..., np.ndarray],
    decompose: Callable[..., Value],
) -> None:
    register(
        OpDef(
            name=name,
            formula=formula,
            kind=Kind.COMPOSITE,
            operands=operands,
            attrs=attrs,
            infer=infer,
            reference=_in_f64(array),
            decompose=_in_f32(decompose),
        )
    )


_composite(
    "softmax",
    "result = e**x / sum of e**x along axis",
    "x",
    SoftmaxAttrs,
    _along_axis("softmax", (0, 0)),
    lambda attrs, x: c.softmax_array(x, attrs.axis),
    lambda b, attrs, x: c.softmax(b, x, attrs.axis),
)
_composite(
    "log_softmax",
    "result = x - ln(sum of e**x along axis)",
    "x",
    LogSoftmaxAttrs,
    _along_axis("log_softmax", (0, 0)),
    _log_softmax_array,
    _log_softmax,
)
_composite(
    "layer_norm",
    "result = (x - mean) / sqrt(variance + epsilon) * scale + bias; statistics from axis on",
    "x, scale, bias?",
    LayerNormAttrs,
    _along_axis("layer_norm", (1, 2)),
    _layer_norm_array,
    _layer_norm,
)
_composite(
    "rms_norm",
    "result = x / sqrt(mean of x * x + epsilon) * scale; mean from axis on",
    "x, scale",
    RmsNormAttrs,
    _along_axis("rms_norm", (1, 1)),
    _rms_norm_array,
    _rms_norm,
)
_composite(
    "group_norm",
    "result = (x - mean) / sqrt(variance + epsilon) * scale + bias; statistics per sample and group of channels",
    "x, scale, bias",
    GroupNormAttrs,
    _infer_group_norm,
    _group_norm_array,
    _group_norm,
)
_composite(
    "instance_norm",
    "result = (x - mean) / sqrt(variance + epsilon) * scale + bias; statistics per sample and channel",
    "x, scale, bias",
    InstanceNormAttrs,
    _by_channel("instance_norm", 2, 3),
    _instance_norm_array,
    _instance_norm,
)
_composite(
    "batch_norm",
    "result = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel",
    "x, scale, bias, mean, var",
    BatchNormAttrs,
    _by_channel("batch_norm", 4, 2),
    _batch_norm_array,
    _batch_norm,
)
_composite(
    "lp_normalize",
    "result = x / (sum of |x|**p along axis)**(1/p); 0 where that is 0",
    "x",
    LpNormalizeAttrs,
    _infer_lp_normalize,
    _lp_normalize_array,
    _lp_normalize,
)
