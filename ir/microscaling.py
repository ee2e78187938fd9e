"""Block formats: narrow floats in blocks along the last axis, with one scale per block.

MXFP8 and MXFP4 (OCP Microscaling Formats specification 1.0, section 5.2): 32 elements, a power of two (E8M0) as scale.
NVFP4 (NVIDIA, "Introducing NVFP4", 2025): 16 elements of E2M1, the scale in E4M3, and one f32 scale for the tensor.

Scales are rounded up, not down as in the specification's example: rounding up costs at most one bit of range at the
small end, while rounding down would clip the largest numbers of the block.

Invariants: no element of a finite block overflows. An element is the number divided by its scale, rounded to nearest,
ties to even. A block with a NaN or an infinity has a NaN scale, so that all of it decodes to NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppuc.ir.numerics import narrow, widen
from ppuc.ir.types import DType

E8M0_BIAS = 127
E8M0_NAN = 0xFF
E4M3_LARGEST, E4M3_NAN = 0x7E, 0x7F
LARGEST = {DType.F8E4M3: 448.0, DType.F8E5M2: 57344.0, DType.F4E2M1: 6.0}
"""The largest number of each element type."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`size` elements of `element` share one scale of the type `scale`."""

    element: DType
    scale: DType
    size: int

    @property
    def bits(self) -> float:
        """Bits per element, including its share of the scale."""
        return self.element.bits + self.scale.bits / self.size


MXFP8_E4M3 = BlockFormat(DType.F8E4M3, DType.F8E8M0, 32)
MXFP4 = BlockFormat(DType.F4E2M1, DType.F8E8M0, 32)
NVFP4 = BlockFormat(DType.F4E2M1, DType.F8E4M3, 16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """`codes` u8[..., k] of the elements, `scales` u8[..., ceil(k / size)] of the blocks, of which the last may be
    shorter. A number is element x scale x `tensor_scale`; the latter is 1 for E8M0 scales."""

    format: BlockFormat
    codes: np.ndarray
    scales: np.ndarray
    tensor_scale: np.float32


def encode_blocks(values: np.ndarray, format: BlockFormat) -> Blocks:
    """f32 `values`[..., k], k > 0, in `format`."""
    k, size = values.shape[-1], format.size
    padded = np.zeros((*values.shape[:-1], -(-k // size) * size), np.float32)
    padded[..., :k] = values
    blocks = padded.reshape(*values.shape[:-1], -1, size)
    finite = np.asarray(np.isfinite(blocks).all(-1))
    blocks = np.where(finite[..., None], blocks, np.float32(0.0))
    largest = np.abs(blocks).max(-1)
    tensor_scale = np.float32(1.0)
    if format.scale is DType.F8E8M0:
        scales = np.where(finite, e8m0_up(largest, LARGEST[format.element]), E8M0_NAN).astype(np.uint8)
    else:
        whole = np.float32(largest.max(initial=0.0)) / np.float32(LARGEST[format.element] * LARGEST[DType.F8E4M3])
        tensor_scale = max(whole, np.finfo(np.float32).tiny)
        ratio = largest / (np.float32(LARGEST[format.element]) * tensor_scale)
        scales = np.where(finite, e4m3_up(ratio), E4M3_NAN).astype(np.uint8)
    step = (widen(scales, format.scale) * tensor_scale)[..., None]
    with np.errstate(invalid="ignore"):
        units = np.where(np.isfinite(step) & (step > 0), blocks / np.where(step > 0, step, np.float32(1.0)), 0.0)
    codes = narrow(units.astype(np.float32), format.element).reshape(padded.shape)[..., :k]
    return Blocks(format, np.ascontiguousarray(codes), scales, tensor_scale)


def decode_blocks(blocks: Blocks) -> np.ndarray:
    """Decode `blocks` to f32[..., k]."""
    step = widen(blocks.scales, blocks.format.scale) * blocks.tensor_scale
    each = np.repeat(step, blocks.format.size, -1)[..., : blocks.codes.shape[-1]]
    numbers: np.ndarray = widen(blocks.codes, blocks.format.element) * each
    return numbers


def e8m0_up(largest: np.ndarray, limit: float) -> np.ndarray:
    """Codes of the smallest powers of two, at least 2**-127, such that f32 `largest` >= 0 divided by them is at most
    `limit`.

    largest = m 2**a and limit = n 2**b with m, n in [1/2, 1): the exponent is a - b, or one more where m > n. Exact.
    """
    m, a = np.frexp(largest)
    n, b = np.frexp(np.float32(limit))
    exponent = np.where(largest > 0, a - b + (m > n), -E8M0_BIAS)
    codes: np.ndarray = np.clip(exponent + E8M0_BIAS, 0, E8M0_NAN - 1).astype(np.uint8)
    return codes


def e4m3_up(numbers: np.ndarray) -> np.ndarray:
    """Codes of the smallest E4M3 numbers not below f32 `numbers` >= 0; of the largest one for numbers beyond it."""
    codes = narrow(np.ascontiguousarray(numbers, np.float32), DType.F8E4M3)
    below = widen(codes, DType.F8E4M3) < numbers
    up: np.ndarray = np.minimum(codes + below, E4M3_LARGEST).astype(np.uint8)
    return up
