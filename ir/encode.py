"""Fast bulk encoders of narrow floats: f32 bits to codes.

Invariant: for each of the 2**32 inputs, the code equals that of `ml_dtypes`, or is the largest finite one on overflow
with saturation. Only large arrays are encoded here; for a few numbers, importing numba would take longer. bf16 is a few
steps of numpy: as fast as a compiled loop, without that import.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppuc.ir.types import DType

CHUNK = 1 << 15
"""Elements that numpy encodes at a time: what it computes in between stays in a core's cache."""

LARGE = 1 << 14
"""Minimum number of elements for which these encoders are worth their import."""

ENCODED = (DType.F8E4M3, DType.F8E5M2, DType.BF16)
"""Formats that have an encoder."""

Encoder = Callable[[np.ndarray, np.ndarray, bool], None]


def encode(values: np.ndarray, dtype: DType, saturate: bool) -> np.ndarray:
    """The codes of f32 `values` in `dtype` (f8e4m3, f8e5m2: u8; bf16: u16, never saturated), same shape. NaN keeps its
    sign and becomes the format's quiet NaN; with `saturate`, infinities and overflow become the largest number."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1).view()
    if dtype is DType.BF16:
        return _bf16(flat).reshape(values.shape)
    flat.flags.writeable = False  # numba tells the two apart: a loop is compiled for one of them
    codes = np.empty(flat.shape, np.uint8)
    encoder(dtype)(flat, codes, saturate)
    return codes.reshape(values.shape)


def _bf16(values: np.ndarray) -> np.ndarray:
    """u16[n]: the codes of f32[n], to nearest, ties to even: half of the last kept place, less one when that is even,
    carries into it exactly when the number rounds up."""
    bits, codes = values.view(np.uint32), np.empty(values.shape, np.uint16)
    for start in range(0, values.size, CHUNK):
        part = slice(start, start + CHUNK)
        rounded = bits[part] >> 16
        rounded &= 1
        rounded += bits[part]
        rounded += 0x7FFF
        rounded >>= 16
        codes[part] = rounded
        nan = np.isnan(values[part])
        if nan.any():
            codes[part][nan] = ((bits[part][nan] >> 16) & 0x8000) | 0x7FC0
    return codes


def encoder(dtype: DType) -> Encoder:
    """The compiled loop for `dtype`: f32[n], codes[n], whether to saturate. Raises KeyError for other formats."""
    from ppuc.ir import encode_loops

    loops: dict[DType, Encoder] = {DType.F8E4M3: encode_loops.e4m3, DType.F8E5M2: encode_loops.e5m2}
    return loops[dtype]
