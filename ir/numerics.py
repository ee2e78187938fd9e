"""Conversion between storage and compute dtypes: one definition for all interpreters.

Storage bits are kept as unsigned integers of the element's width (`bits_dtype`), because numpy moves them fastest and
this covers every element type. Rounding is to nearest, ties to even (IEEE 754-2019, 4.3.1); f8e4m3 and f8e5m2 saturate
(OCP 8-bit Floating Point Specification, section 5.2).
"""

from __future__ import annotations

import functools

import numpy as np

from ppuc.ir.encode import ENCODED, LARGE, encode
from ppuc.ir.types import DType
from ppuc.ir.vector import compute_dtype

_BITS: dict[int, np.dtype] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def bits_dtype(dtype: DType) -> np.dtype:
    """The unsigned integer dtype of the width of `dtype`."""
    return _BITS[dtype.bytes]


@functools.lru_cache(maxsize=256)
def encode_scalar(number: float, dtype: DType) -> int:
    """The bits of `number` stored as `dtype`."""
    value = np.asarray(number)
    if not dtype.is_float:
        value = np.asarray(int(number) if np.isfinite(number) else 0)
    with np.errstate(all="ignore"):
        return int(np.atleast_1d(value.astype(dtype.numpy)).view(bits_dtype(dtype))[0])


@functools.lru_cache(maxsize=8)
def _table(dtype: DType) -> np.ndarray:
    """f32 value of each of the 256 codes of an 8-bit float."""
    codes = np.arange(256, dtype=np.uint8)
    if dtype is DType.F4E2M1:
        codes &= 15
    return codes.view(dtype.numpy).astype(np.float32)


def widen(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Stored `bits` as an array of `dtype`'s compute dtype, same shape. Exact."""
    if dtype is DType.F32:
        return bits.view(np.float32)
    if dtype is DType.BF16:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype is DType.F16:
        return bits.view(np.float16).astype(np.float32)
    if dtype.is_float and dtype.bytes == 1:
        table: np.ndarray = _table(dtype)
        return np.take(table, bits)
    return bits.view(dtype.numpy).astype(compute_dtype(dtype).numpy, copy=False)


def halves(codes: np.ndarray, dtype: DType, axis: int) -> np.ndarray:
    """f32: the 4-bit numbers in bytes `codes`; along `axis`, of size 1, low halves precede high ones. `dtype` is
    f4e2m1, or i8 for integers from -8 to 7."""
    nibbles = np.concatenate([codes & 15, (codes >> 4) & 15], axis)
    if dtype is DType.F4E2M1:
        return widen(nibbles.astype(np.uint8), dtype)
    return ((nibbles.astype(np.int32) ^ 8) - 8).astype(np.float32)


def narrow(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Compute-dtype `values` rounded once to `dtype`, as bits of the same shape."""
    if dtype is DType.F32:
        return np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
    if dtype in ENCODED and values.size >= LARGE and values.dtype == np.float32:
        return encode(values, dtype, True)
    if dtype is DType.BF16:
        u = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
        out = ((u + (((u >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        nan = (u & 0x7FFFFFFF) > 0x7F800000
        if nan.any():
            out[nan] = ((u[nan] >> 16) & 0x8000) | 0x7FC0
        return out
    if dtype.is_float and dtype.bytes == 1:
        limit = float(_table(dtype)[np.isfinite(_table(dtype))].max())
        values = np.clip(values, -limit, limit)
    with np.errstate(all="ignore"):
        return (
            np.ascontiguousarray(values.astype(dtype.numpy, copy=False)).view(bits_dtype(dtype)).reshape(values.shape)
        )
