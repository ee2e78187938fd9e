"""Fast bulk encoders of narrow floats: f32 bits to codes.

To nearest, ties to even, by integer arithmetic on the bits (IEEE 754-2019, 4.3.1; OCP 8-bit Floating Point
Specification, 5.2): adding half of the last kept place, less one when that place is even, carries into it exactly when
the number rounds up. Below the smallest normal number the addition of a power of two whose last place is that of the
subnormals does the same.

Invariant: for each of the 2**32 inputs, the code equals that of `ml_dtypes`, or is the largest finite one on overflow
with saturation. Only large arrays are encoded here; for a few numbers, importing numba would take longer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ppuc.ir.types import DType

LARGE = 1 << 14
"""Minimum number of elements for which these encoders are worth their import."""

ENCODED = (DType.F8E4M3, DType.F8E5M2, DType.BF16)
"""Formats that have an encoder."""

Encoder = Callable[[np.ndarray, np.ndarray, bool], None]


def encode(values: np.ndarray, dtype: DType, saturate: bool) -> np.ndarray:
    """The codes of f32 `values` in `dtype` (f8e4m3, f8e5m2: u8; bf16: u16, never saturated), same shape. NaN keeps its
    sign and becomes the format's quiet NaN; with `saturate`, infinities and overflow become the largest number."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    codes = np.empty(flat.shape, np.uint16 if dtype is DType.BF16 else np.uint8)
    encoder(dtype)(flat, codes, saturate)
    return codes.reshape(values.shape)


@functools.lru_cache(maxsize=3)
def encoder(dtype: DType) -> Encoder:
    """The loop for `dtype`: f32[n], codes[n], whether to saturate. Raises KeyError for other formats."""
    from numba import njit

    loop = {DType.F8E4M3: _e4m3, DType.F8E5M2: _e5m2, DType.BF16: _bf16}[dtype]
    compiled: Encoder = njit(cache=True, nogil=True)(loop)
    return compiled


def _e4m3(values: np.ndarray, codes: np.ndarray, saturate: bool) -> None:
    bits = values.view(np.uint32)
    over = np.uint32(0x7E if saturate else 0x7F)
    for i in range(bits.size):
        sign = (bits[i] >> np.uint32(24)) & np.uint32(0x80)
        a = bits[i] & np.uint32(0x7FFFFFFF)
        normal = ((a + np.uint32(0x7FFFF) + ((a >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - np.uint32(960)
        # 2**14 has the last place 2**-9, the step of the subnormals.
        small = np.uint32(np.rint(np.float32(abs(values[i]) * np.float32(512.0)))) if a < 0x3C800000 else np.uint32(0)
        code = small if a < np.uint32(0x3C800000) else normal
        code = over if a > np.uint32(0x43E80000) else code
        code = np.uint32(0x7F) if a > np.uint32(0x7F800000) else code
        codes[i] = sign | code


def _e5m2(values: np.ndarray, codes: np.ndarray, saturate: bool) -> None:
    bits = values.view(np.uint32)
    over = np.uint32(0x7B if saturate else 0x7C)
    for i in range(bits.size):
        sign = (bits[i] >> np.uint32(24)) & np.uint32(0x80)
        a = bits[i] & np.uint32(0x7FFFFFFF)
        normal = ((a + np.uint32(0xFFFFF) + ((a >> np.uint32(21)) & np.uint32(1))) >> np.uint32(21)) - np.uint32(448)
        small = np.uint32(np.rint(np.float32(abs(values[i]) * np.float32(65536.0)))) if a < 0x38800000 else np.uint32(0)
        code = small if a < np.uint32(0x38800000) else normal
        code = over if a >= np.uint32(0x47700000) else code
        code = np.uint32(0x7E) if a > np.uint32(0x7F800000) else code
        codes[i] = sign | code


def _bf16(values: np.ndarray, codes: np.ndarray, saturate: bool) -> None:
    bits = values.view(np.uint32)
    for i in range(bits.size):
        u = bits[i]
        rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = ((u >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7FC0)
        codes[i] = quiet if (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded
