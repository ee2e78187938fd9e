"""DFT, STFT, MelWeightMatrix and Det.

A discrete Fourier transform is a matmul with a constant matrix of cosines and sines, with real and imaginary parts of a
signal in adjacent columns; a short-time transform is a convolution with such a matrix.

Invariant: matrices are computed in f64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppuc.compiler.frontend.context import NodeContext
from ppuc.compiler.frontend.ops.shape import cast_to, reshaped, sliced, transposed
from ppuc.compiler.frontend.registry import importer
from ppuc.compiler.frontend.tensors import dtype_of
from ppuc.ir.graph import Value
from ppuc.ir.ops import composite as c
from ppuc.ir.ops.contraction import ConvAttrs, MatmulAttrs
from ppuc.ir.ops.movement import PadAttrs
from ppuc.ir.ops.reduction import ArgreduceAttrs
from ppuc.ir.types import DType

LONGEST_TRANSFORM = 8192
"""Maximum points of a transform: its matrix takes up to half a gigabyte."""


def _matrix(points: int, bins: int, parts: int, inverse: bool, dtype: DType, parts_out: int = 2) -> np.ndarray:
    """[points * parts, bins * parts_out]: the matrix from interleaved (real, imaginary) samples to bins."""
    # Angles are reduced exactly, as integers, so that long transforms are as precise as short ones.
    turn = np.outer(np.arange(points), np.arange(bins)) % points * (2 * np.pi / points)
    cos, sin = np.cos(turn), np.sin(turn) * (1 if inverse else -1)
    rows = [[cos, sin], [-sin, cos]][:parts]
    whole = np.array([row[:parts_out] for row in rows]).transpose(2, 0, 3, 1)
    if inverse:
        whole = whole / points
    return whole.reshape(points * parts, bins * parts_out).astype(dtype.numpy)


def _one_sided_inverse(points: int, dtype: DType) -> np.ndarray:
    """[(points // 2 + 1) * 2, points]: half a spectrum to a real signal; the other half is its conjugate."""
    bins = points // 2 + 1
    turn = np.outer(np.arange(bins), np.arange(points)) % points * (2 * np.pi / points)
    twice = np.where((np.arange(bins) == 0) | (2 * np.arange(bins) == points), 1, 2)[:, None] / points
    whole = np.stack([np.cos(turn) * twice, -np.sin(turn) * twice], axis=1)
    return whole.reshape(bins * 2, points).astype(dtype.numpy)


def _resized(ctx: NodeContext, x: Value, axis: int, size: int) -> Value:
    """`x` cropped or zero-padded along `axis`."""
    given = x.type.dims[axis]
    if size <= given:
        return sliced(ctx, x, axis, 0, size)
    high = tuple(size - given if i == axis else 0 for i in range(x.type.rank))
    none = (0,) * x.type.rank
    return ctx.op("pad", x, attrs=PadAttrs(none, high, none))


@importer("DFT")
def dft(ctx: NodeContext) -> Sequence[Value]:
    """Moves the transformed axis next to the parts, so that both form one dimension of a matmul."""
    x = ctx.operand(0)
    rank, parts = x.type.rank, x.type.dims[-1] if x.type.rank else 0
    if rank < 2 or parts not in (1, 2):
        ctx.fail("the last dimension holds a real or a complex number", got=x.type, expected="[..., 1] or [..., 2]")
    axis = _dft_axis(ctx, rank)
    inverse, onesided = bool(ctx.attr("inverse", 0)), bool(ctx.attr("onesided", 0))
    bins_in = x.type.dims[axis]
    half = inverse and onesided
    points = 2 * (bins_in - 1) if half else bins_in
    if ctx.has(1):
        points = int(ctx.need_constant(1, "dft_length").reshape(-1)[0])
    if not 1 <= points <= LONGEST_TRANSFORM:
        ctx.fail("the length of the transform is out of range", got=points, expected=f"1 to {LONGEST_TRANSFORM}")
    if half and parts == 1:
        ctx.fail("the inverse of half a spectrum needs complex numbers", got=x.type)
    work = c.widen(ctx.b, x)
    perm = (*(i for i in range(rank - 1) if i != axis), axis, rank - 1)
    moved = transposed(ctx, _resized(ctx, work, axis, points // 2 + 1 if half else points), perm)
    if half:
        matrix, out = _one_sided_inverse(points, work.type.dtype), (points, 1)
    else:
        bins = points // 2 + 1 if onesided else points
        matrix, out = _matrix(points, bins, parts, inverse, work.type.dtype), (bins, 2)
    lead = moved.type.dims[:-2]
    rows = reshaped(ctx, moved, (math.prod(lead), matrix.shape[0]))
    y = ctx.op("matmul", rows, ctx.b.const(matrix, "transform"), attrs=MatmulAttrs())
    y = transposed(ctx, reshaped(ctx, y, (*lead, *out)), tuple(perm.index(i) for i in range(rank)))
    return (cast_to(ctx, y, x.type.dtype),)


def _dft_axis(ctx: NodeContext, rank: int) -> int:
    """Attribute before opset 20, input from then on."""
    axis = int(ctx.attr("axis", 1 if ctx.opset < 20 else -2))
    if ctx.has(2):
        axis = int(ctx.need_constant(2, "axis").reshape(-1)[0])
    if not -rank <= axis < rank or axis % rank == rank - 1:
        ctx.breaks("axis is out of range", got=axis, expected=f"between {-rank} and {rank - 2}")
    return axis % rank


@importer("STFT")
def stft(ctx: NodeContext) -> Sequence[Value]:
    """[B, frames, bins, 2]: one convolution whose weights are the windowed matrix."""
    x = ctx.operand(0)
    if x.type.rank == 2:
        x = reshaped(ctx, x, (*x.type.dims, 1))
    if x.type.rank != 3 or x.type.dims[2] not in (1, 2):
        ctx.fail("the signal should be [batch, samples, 1 or 2]", got=x.type)
    batch, samples, parts = x.type.dims
    step = int(ctx.need_constant(1, "frame_step").reshape(-1)[0])
    if ctx.has(3):
        length = int(ctx.need_constant(3, "frame_length").reshape(-1)[0])
    elif ctx.has(2):
        length = ctx.type(2).elements
    else:
        ctx.fail("window or frame_length is missing")
    if not 1 <= length <= min(samples, LONGEST_TRANSFORM) or step < 1:
        ctx.fail("frames do not fit the signal", got=f"{length} samples, step {step}", expected=f"up to {samples}")
    onesided = bool(ctx.attr("onesided", 1)) and parts == 1
    bins = length // 2 + 1 if onesided else length
    work = c.widen(ctx.b, x)
    matrix = _matrix(length, bins, parts, False, work.type.dtype).reshape(length, parts, bins * 2).transpose(2, 1, 0)
    weights = ctx.b.const(np.ascontiguousarray(matrix), "transform")
    if ctx.has(2):
        window = cast_to(ctx, ctx.operand(2), work.type.dtype)
        if window.type.elements != length:
            ctx.fail("the window is not as long as a frame", got=window.type, expected=f"{length} samples")
        weights = ctx.op("mul", weights, reshaped(ctx, window, (length,)))
    frames = ctx.op("conv", transposed(ctx, work, (0, 2, 1)), weights, attrs=ConvAttrs((step,), (0,), (0,), (1,)))
    y = reshaped(ctx, transposed(ctx, frames, (0, 2, 1)), (batch, frames.type.dims[2], bins, 2))
    return (cast_to(ctx, y, x.type.dtype),)


@importer("MelWeightMatrix")
def mel_weight_matrix(ctx: NodeContext) -> Sequence[Value]:
    """[dft_length / 2 + 1, mel bins], as the operator's definition computes it: triangles between whole bins."""
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    mels, points, rate, low, high = (ctx.need_constant(i, n).reshape(-1)[0].item() for i, n in enumerate(names))
    bins = points // 2 + 1
    edges = 2595 * np.log10(1 + np.array([low, high]) / 700)
    centres = edges[0] + np.arange(mels + 2) * ((edges[1] - edges[0]) / (mels + 2))
    places = ((points + 1) * (700 * (10 ** (centres / 2595) - 1)) // rate).astype(np.int64)
    weights = np.zeros((bins, mels))
    for i in range(mels):
        first, middle, last = places[i : i + 3]
        if middle == first:
            weights[middle, i] = 1
        else:
            weights[first : middle + 1, i] = (np.arange(first, middle + 1) - first) / (middle - first)
        if last > middle:
            weights[middle:last, i] = (last - np.arange(middle, last)) / (last - middle)
    dtype = dtype_of(int(ctx.attr("output_datatype", 1)), ctx.place)
    return (ctx.b.const(weights.astype(dtype.numpy), ctx.hint),)


@importer("Det")
def det(ctx: NodeContext) -> Sequence[Value]:
    """Elimination with row pivots, column by column: the product of the pivots, negated for each exchange."""
    x = ctx.operand(0)
    if x.type.rank < 2 or x.type.dims[-1] != x.type.dims[-2] or not x.type.dtype.is_float:
        ctx.fail("determinants need square float matrices", got=x.type)
    lead, size = x.type.dims[:-2], x.type.dims[-1]
    if size > 64:
        ctx.fail("the matrix is too large for unrolled elimination", got=x.type, expected="up to 64 rows")
    count = math.prod(lead)
    rest = reshaped(ctx, c.widen(ctx.b, x), (count, size, size))
    one = ctx.scalar_like(1, rest)
    result = ctx.b.const(np.ones((count, 1, 1), rest.type.dtype.numpy), "one")
    for left in range(size, 0, -1):
        first, pivot_row, exchanged = _pivoted(ctx, rest, left)
        pivot = sliced(ctx, pivot_row, 2, 0, 1)
        signed = ctx.op("select", exchanged, ctx.op("neg", pivot), pivot)
        result = ctx.op("mul", result, signed)
        if left == 1:
            break
        # A column of zeros makes the determinant 0 for any divisor.
        safe = ctx.op("select", ctx.op("eq", pivot, ctx.scalar_like(0, pivot)), one, pivot)
        below = sliced(ctx, first, 1, 1, left - 1)
        factor = ctx.op("div", sliced(ctx, below, 2, 0, 1), safe)
        row = sliced(ctx, pivot_row, 2, 1, left - 1)
        rest = ctx.op("sub", sliced(ctx, below, 2, 1, left - 1), ctx.op("mul", factor, row))
    return (cast_to(ctx, reshaped(ctx, result, lead), x.type.dtype),)


def _pivoted(ctx: NodeContext, x: Value, size: int) -> tuple[Value, Value, Value]:
    """(x[B, n, n] with the pivot row replaced by row 0, the pivot row [B, 1, n], whether it differs from row 0)."""
    size_of = ctx.op("abs", sliced(ctx, x, 2, 0, 1))
    index = ctx.op("argreduce", size_of, attrs=ArgreduceAttrs("max", 1, True))
    chosen = ctx.op("eq", ctx.b.const(np.arange(size).reshape(1, size, 1), "rows"), index)
    row = c.reduce(ctx.b, "sum", ctx.op("select", chosen, x, ctx.scalar_like(0, x)), (1,))
    swapped = ctx.op("select", chosen, sliced(ctx, x, 1, 0, 1), x)
    return swapped, row, ctx.op("ne", index, ctx.b.scalar(0, DType.I64))
