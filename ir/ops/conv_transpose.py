"""Transposed convolution, and its expansion into plain convolutions over sub-pixel phases.

With stride s, result positions u = s * q + p of one phase p (counted before `low` is cropped) use only taps p, p + s, p
+ 2s, ...: each phase is a convolution of stride 1 over the input itself, without multiplying the zeros of an upsampled
input. Phases with the same number of taps along every axis share one convolution, as further output channels; a pixel
shuffle then interleaves the phases. See Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
arXiv:1609.07009.

Invariant: the expansion sums the same products as the reference; only their order differs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.ir.graph import Attrs, Op, Value
from ppuc.ir.ops.base import Kind, OpDef, register
from ppuc.ir.ops.contraction import ConvAttrs
from ppuc.ir.ops.movement import ConcatAttrs, PadAttrs
from ppuc.ir.ops.view import ReshapeAttrs, SliceAttrs, TransposeAttrs
from ppuc.ir.ops.window import tap_window
from ppuc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from ppuc.ir.rewrite import Builder


@dataclass(frozen=True, slots=True)
class ConvTransposeAttrs(Attrs):
    """One entry per spatial axis. x[n, c, *s], w[c, o/g, *k]. `low`/`high` crop the full result (negative: extend it by
    zeros); `output_padding` extends it at the end."""

    strides: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1


def _infer(attrs: ConvTransposeAttrs, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, w = types
    if x.rank < 3 or x.rank != w.rank:
        raise ValueError(
            f"conv_transpose needs a batch, a channel and the same spatial axes in both operands, got {x} and {w}"
        )
    if x.dtype is not w.dtype or not x.dtype.is_float:
        raise ValueError(f"conv_transpose needs two float operands of one dtype, got {x} and {w}")
    rank = x.rank - 2
    fields = (attrs.strides, attrs.low, attrs.high, attrs.output_padding, attrs.dilations)
    if any(len(field) != rank for field in fields):
        raise ValueError(f"conv_transpose attributes need one entry for each of {rank} spatial axes, got {attrs}")
    if min(*attrs.strides, *attrs.dilations, *w.dims[2:]) < 1:
        raise ValueError(
            f"strides {list(attrs.strides)}, dilations {list(attrs.dilations)} and kernel must be positive"
        )
    if attrs.groups < 1 or x.dims[1] % attrs.groups:
        raise ValueError(f"input channels {x.dims[1]} do not divide into {attrs.groups} groups")
    if x.dims[1] != w.dims[0]:
        raise ValueError(f"input has {x.dims[1]} channels, the kernel expects {w.dims[0]}")
    result = tuple(
        (size - 1) * s + (k - 1) * d + 1 + extra - low - high
        for size, k, s, d, extra, low, high in zip(
            x.dims[2:],
            w.dims[2:],
            attrs.strides,
            attrs.dilations,
            attrs.output_padding,
            attrs.low,
            attrs.high,
            strict=True,
        )
    )
    if any(size < 1 for size in result):
        raise ValueError(f"padding {list(attrs.low)}, {list(attrs.high)} leaves the result {list(result)}")
    return (TensorType(x.dtype, (x.dims[0], w.dims[1] * attrs.groups, *result)),)


def _reference(attrs: ConvTransposeAttrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every input position adds its kernel to the result: one matmul over channels and one strided add per tap."""
    dtype = DType.of(x.dtype)
    (out,) = _infer(attrs, (TensorType(dtype, x.shape), TensorType(dtype, w.shape)))
    compute = np.dtype(np.float64) if dtype is DType.F64 else np.dtype(np.float32)
    batch, channels, *space = x.shape
    groups, per_group = attrs.groups, w.shape[1]
    reach = [
        (i - 1) * s + (k - 1) * d + 1
        for i, k, s, d in zip(space, w.shape[2:], attrs.strides, attrs.dilations, strict=True)
    ]
    before = [max(0, -low) for low in attrs.low]
    full = [a + max(r, low + o) for a, r, low, o in zip(before, reach, attrs.low, out.dims[2:], strict=True)]
    total = np.zeros((batch, groups, per_group, *full), compute)
    # A view of `total` from its position 0 on: what precedes it is the extension that a negative `low` asks for.
    written = total[_trailing(*(slice(a, None) for a in before))]
    pixels = x.astype(compute, copy=False).reshape(batch, groups, channels // groups, -1)
    weights = w.astype(compute, copy=False).reshape(groups, channels // groups, per_group, *w.shape[2:])
    for tap in itertools.product(*map(range, w.shape[2:])):
        kernel = weights[_trailing(*tap)].swapaxes(-1, -2)
        product = np.matmul(kernel, pixels).reshape(batch, groups, per_group, *space)
        written[_trailing(*tap_window(tap, attrs.strides, attrs.dilations, space))] += product
    kept = (slice(a + low, a + low + o) for a, low, o in zip(before, attrs.low, out.dims[2:], strict=True))
    result = total[_trailing(*kept)].reshape(out.dims)
    return (np.ascontiguousarray(result.astype(dtype.numpy, copy=False)),)


def _trailing(*index: slice | int) -> tuple[Any, ...]:
    """An index of the trailing axes."""
    return (..., *index)


def reshape(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """`x` reshaped; `x` itself if it has that shape."""
    return x if x.type.dims == tuple(shape) else b("reshape", x, attrs=ReshapeAttrs(tuple(shape)))


def transpose(b: Builder, x: Value, perm: Sequence[int]) -> Value:
    """`x` with its axes permuted; `x` itself if `perm` is the identity."""
    return x if list(perm) == list(range(len(perm))) else b("transpose", x, attrs=TransposeAttrs(tuple(perm)))


def crop(
    b: Builder, x: Value, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int] | None = None
) -> Value:
    """A slice of `x`; `x` itself if the slice covers it."""
    steps = tuple(steps) if steps is not None else (1,) * len(starts)
    if x.type.dims == tuple(sizes) and set(steps) <= {1}:
        return x
    return b("slice", x, attrs=SliceAttrs(tuple(starts), tuple(sizes), steps))


@dataclass(frozen=True, slots=True)
class _Axis:
    """One spatial axis of the expansion: phases are computed for q in [first, first + count), which is chosen so that
    every phase reads the whole input (no negative padding). The stride or the dilation is 1."""

    size: int
    kernel: int
    stride: int
    dilation: int
    first: int
    count: int

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """(first phase, end, taps of each): the phases in at most two ranges of equal tap counts."""
        split, taps = self.kernel % self.stride, self.kernel // self.stride
        return [r for r in ((0, split, taps + 1), (split, self.stride, taps)) if r[0] < r[1]]

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, dilation: int, low: int, result: int) -> _Axis:
        """The axis whose phases cover [low, low + result) of the full result as far as the input reaches."""
        fewest = max(kernel // stride, 1)
        most = -(-kernel // stride)
        first = min(max(low // stride, 0), (fewest - 1) * dilation)
        end = min(-(-(low + result) // stride), size + (most - 1) * dilation)
        return cls(size, kernel, stride, dilation, first, max(end, size) - first)


@dataclass(frozen=True, slots=True)
class _Phases:
    """Emits the convolutions. `w` is [g, c/g, o/g, T0, s0, T1, s1, ...]: tap t of phase p is kernel index p + s * t."""

    b: Builder
    x: Value
    w: Value
    groups: int
    axes: tuple[_Axis, ...]

    def assemble(self, chosen: tuple[tuple[int, int, int], ...] = ()) -> Value:
        """[n, o, P0, P1, ..., Q0, Q1, ...]: the phases `chosen` along the leading axes, all phases along the rest."""
        if len(chosen) == len(self.axes):
            return self._convolve(chosen)
        parts = [self.assemble((*chosen, r)) for r in self.axes[len(chosen)].ranges]
        return parts[0] if len(parts) == 1 else self.b("concat", *parts, attrs=ConcatAttrs(2 + len(chosen)))

    def _convolve(self, chosen: tuple[tuple[int, int, int], ...]) -> Value:
        outputs = self.groups * self.w.type.dims[2]
        phases = [end - first for first, end, _ in chosen]
        shape = (self.x.type.dims[0], outputs, *phases, *(a.count for a in self.axes))
        if any(taps == 0 for _, _, taps in chosen):
            return self.b.const(np.zeros(shape, self.x.type.dtype.numpy), "untouched")
        attrs = ConvAttrs(
            strides=(1,) * len(self.axes),
            low=tuple((taps - 1) * a.dilation - a.first for a, (_, _, taps) in zip(self.axes, chosen, strict=True)),
            high=tuple(a.first + a.count - a.size for a in self.axes),
            dilations=tuple(a.dilation for a in self.axes),
            groups=self.groups,
        )
        return reshape(self.b, self.b("conv", self.x, self._weights(chosen), attrs=attrs), shape)

    def _weights(self, chosen: tuple[tuple[int, int, int], ...]) -> Value:
        """The taps of these phases, reversed, as the kernel [o * phases, c/g, *taps] of a convolution."""
        lead, rank = self.w.type.dims[:3], len(self.axes)
        starts = [n for first, _, taps in chosen for n in (taps - 1, first)]
        sizes = [n for first, end, taps in chosen for n in (taps, end - first)]
        taps = crop(self.b, self.w, (0, 0, 0, *starts), (*lead, *sizes), (1, 1, 1, *(-1, 1) * rank))
        perm = (0, 2, *(4 + 2 * i for i in range(rank)), 1, *(3 + 2 * i for i in range(rank)))
        outputs = lead[0] * lead[2] * math.prod(sizes[1::2])
        return reshape(self.b, transpose(self.b, taps, perm), (outputs, lead[1], *sizes[0::2]))


def _decompose(b: Builder, op: Op) -> Sequence[Value]:
    attrs: ConvTransposeAttrs = op.attrs  # type: ignore[assignment]
    x, w = op.operands
    result = op.result.type.dims[2:]
    rank = len(result)
    # Dilated taps of one phase are not evenly spaced in the input: such an axis is upsampled with zeros instead.
    both = [s > 1 and d > 1 for s, d in zip(attrs.strides, attrs.dilations, strict=True)]
    if any(both):
        interior = tuple(s - 1 if slow else 0 for s, slow in zip(attrs.strides, both, strict=True))
        none = (0,) * (rank + 2)
        x = b("pad", x, attrs=PadAttrs(low=none, high=none, interior=(0, 0, *interior), value=0.0, mode="constant"))
    strides = tuple(1 if slow else s for s, slow in zip(attrs.strides, both, strict=True))
    axes = tuple(
        _Axis.of(*fields)
        for fields in zip(x.type.dims[2:], w.type.dims[2:], strides, attrs.dilations, attrs.low, result, strict=True)
    )
    phases = _Phases(b, x, _split_taps(b, w, attrs.groups, strides), attrs.groups, axes).assemble()
    perm = (0, 1, *(i for axis in range(rank) for i in (2 + rank + axis, 2 + axis)))
    shuffled = (*phases.type.dims[:2], *(a.count * a.stride for a in axes))
    full = reshape(b, transpose(b, phases, perm) if max(strides) > 1 else phases, shuffled)
    low = [a.first * a.stride - start for a, start in zip(axes, attrs.low, strict=True)]
    high = [
        size + start - (a.first + a.count) * a.stride for a, start, size in zip(axes, attrs.low, result, strict=True)
    ]
    if max(*low, *high) <= 0:
        return (crop(b, full, (0, 0, *(-n for n in low)), op.result.type.dims),)
    edges = (0, 0, *low), (0, 0, *high)
    return (b("pad", full, attrs=PadAttrs(*edges, interior=(0,) * (rank + 2), value=0.0, mode="constant")),)


def _split_taps(b: Builder, w: Value, groups: int, strides: Sequence[int]) -> Value:
    """w[c, o/g, *k] as [g, c/g, o/g, T0, s0, T1, s1, ...], kernels filled up with zeros that no phase reads."""
    channels, outputs, *kernel = w.type.dims
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    missing = tuple(t * s - k for t, s, k in zip(taps, strides, kernel, strict=True))
    if any(missing):
        none = (0,) * w.type.rank
        w = b("pad", w, attrs=PadAttrs(low=none, high=(0, 0, *missing), interior=none, value=0.0, mode="constant"))
    split = [n for pair in zip(taps, strides, strict=True) for n in pair]
    return reshape(b, w, (groups, channels // groups, outputs, *split))


register(
    OpDef(
        name="conv_transpose",
        formula="result[n, o, x * stride + k * dilation - low] += x[n, c, x] * w[c, o, k], in each group",
        kind=Kind.COMPOSITE,
        operands="x, w",
        attrs=ConvTransposeAttrs,
        infer=_infer,
        reference=_reference,
        decompose=_decompose,
    )
)
