"""Fast bulk encoders of narrow floats: f32 bits to codes.

Invariant: for each of the 2**32 inputs, the code equals that of `ml_dtypes`, or is the largest finite one on overflow
with saturation. Only large arrays are encoded here; for a few numbers, importing numba would take longer.
"""

from __future__ import annotations

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
    flat = np.ascontiguousarray(values, np.float32).reshape(-1).view()
    flat.flags.writeable = False  # numba tells the two apart: a loop is compiled for one of them
    codes = np.empty(flat.shape, np.uint16 if dtype is DType.BF16 else np.uint8)
    encoder(dtype)(flat, codes, saturate)
    return codes.reshape(values.shape)


def encoder(dtype: DType) -> Encoder:
    """The loop for `dtype`: f32[n], codes[n], whether to saturate. Raises KeyError for other formats."""
    from ppuc.ir import encode_loops

    loops: dict[DType, Encoder] = {
        DType.F8E4M3: encode_loops.e4m3,
        DType.F8E5M2: encode_loops.e5m2,
        DType.BF16: encode_loops.bf16,
    }
    return loops[dtype]
