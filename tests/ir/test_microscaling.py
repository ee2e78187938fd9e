"""Block formats against ml_dtypes, the definition of their scales, and each other."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ppuc.ir.microscaling import (
    LARGEST,
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    BlockFormat,
    decode_blocks,
    e4m3_up,
    e8m0_up,
    encode_blocks,
)
from ppuc.ir.numerics import widen
from ppuc.ir.types import DType

MXFP8_E5M2 = BlockFormat(DType.F8E5M2, DType.F8E8M0, 32)
MX = (MXFP8_E4M3, MXFP8_E5M2, MXFP4)
FORMATS = {"mxfp8 e4m3": MXFP8_E4M3, "mxfp8 e5m2": MXFP8_E5M2, "mxfp4": MXFP4, "nvfp4": NVFP4}
formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)


def spread(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """f32 of many magnitudes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-5, 5, shape)).astype(np.float32)


def test_every_scale_of_e8m0() -> None:
    codes = np.arange(256, dtype=np.uint8)
    want = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(widen(codes, DType.F8E8M0), want, equal_nan=True)
    assert np.array_equal(widen(codes, DType.F8E8M0)[:255].astype(np.float64), np.exp2(np.arange(-127.0, 128.0)))


def test_every_number_of_e2m1() -> None:
    want = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    numbers = widen(np.arange(16, dtype=np.uint8), DType.F4E2M1)
    assert numbers[:8].tolist() == want
    assert numbers[8:].tolist() == [-n for n in want]
    assert np.signbit(numbers[8])


@pytest.mark.parametrize("limit", [448.0, 57344.0, 6.0])
def test_scales_of_mx_are_the_least_that_do_not_overflow(limit: float) -> None:
    """At every boundary limit x 2**e and the f32 on both sides of it, and at the ends of f32's range."""
    exact = (limit * np.exp2(np.arange(-120.0, 110.0))).astype(np.float32)
    near = [np.nextafter(exact, np.float32(side), dtype=np.float32) for side in (0.0, np.inf)]
    largest = np.concatenate([exact, *near, np.array([0.0, 1e-45, 3.4028235e38], np.float32)])
    scale = np.exp2(e8m0_up(largest, limit).astype(np.float64) - 127)
    assert (largest <= limit * scale).all()
    assert ((largest > limit * scale / 2) | (scale == 2.0**-127)).all()


def test_scales_of_nvfp4_are_the_least_that_do_not_overflow() -> None:
    table = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    between = np.nextafter(table, np.float32(np.inf), dtype=np.float32)[:-1]
    assert e4m3_up(table).tolist() == list(range(127))
    assert e4m3_up(between).tolist() == list(range(1, 127))
    assert e4m3_up(np.array([449.0, 3e38], np.float32)).tolist() == [126, 126]


@formats
def test_elements_are_those_of_ml_dtypes(format: BlockFormat) -> None:
    values = spread((7, 4 * format.size))
    blocks = encode_blocks(values, format)
    step = np.repeat(blocks.scales, format.size, -1).view(format.scale.numpy).astype(np.float32) * blocks.tensor_scale
    want = (values / np.where(step > 0, step, 1)).astype(format.element.numpy)
    assert np.array_equal(blocks.codes, want.view(np.uint8))
    assert np.array_equal(decode_blocks(blocks), want.astype(np.float32) * step)


@formats
def test_nothing_overflows(format: BlockFormat) -> None:
    """The largest number of a block is at most half a step of the format away, relative to itself."""
    values = spread((64, 2 * format.size), 1)
    grouped = np.abs(values).reshape(64, 2, format.size)
    back = np.abs(decode_blocks(encode_blocks(values, format))).reshape(grouped.shape)
    at = grouped.argmax(-1)[..., None]
    top, kept = (np.take_along_axis(a, at, -1) for a in (grouped, back))
    half_step = {DType.F8E4M3: 2.0**-4, DType.F8E5M2: 2.0**-3, DType.F4E2M1: 2.0**-2}[format.element]
    large = top > 1e-3 * top.max()  # NVFP4's block scales reach 2**-9 below the tensor's
    assert (np.abs(top - kept) <= half_step * top * (1 + 1e-6))[large].all()


@pytest.mark.parametrize("format", MX)
def test_what_is_decoded_encodes_to_itself(format: BlockFormat) -> None:
    """Not so NVFP4: its scales depend on the largest number of the tensor, which rounding moves."""
    once = decode_blocks(encode_blocks(spread((16, 3 * format.size), 2), format))
    assert np.array_equal(decode_blocks(encode_blocks(once, format)), once)


def test_rounding_scales_up_beats_rounding_them_down() -> None:
    """The specification's example takes the scale 2**(floor(log2 largest) - exponent of the largest number)."""
    values = np.random.default_rng(3).standard_normal((256, 32)).astype(np.float32)
    largest = np.abs(values).max(-1, keepdims=True)
    down = np.exp2(np.floor(np.log2(largest)) - 8)
    limit = LARGEST[DType.F8E4M3]
    cut = np.clip(values / down, -limit, limit).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * down
    up = decode_blocks(encode_blocks(values, MXFP8_E4M3))
    assert np.square(up - values).sum() < np.square(cut - values).sum()


@formats
def test_blocks_that_are_not_finite_or_zero(format: BlockFormat) -> None:
    values = np.ones((4, 2 * format.size), np.float32)
    values[0, 3], values[1, 0], values[2] = np.nan, -np.inf, 0.0
    back = decode_blocks(encode_blocks(values, format))
    assert np.isnan(back[:2, : format.size]).all()
    assert np.array_equal(back[2:], values[2:])
    assert np.array_equal(back[:2, format.size :], values[:2, format.size :])
    assert not decode_blocks(encode_blocks(np.zeros((2, 5), np.float32), format)).any()


@formats
def test_a_last_block_may_be_shorter(format: BlockFormat) -> None:
    values = spread((3, format.size + 5), 4)
    blocks = encode_blocks(values, format)
    assert blocks.codes.shape == values.shape
    assert blocks.scales.shape == (3, 2)
    if format in MX:
        tail = decode_blocks(encode_blocks(values[:, format.size :], format))
        assert np.array_equal(decode_blocks(blocks)[:, format.size :], tail)


def test_storage() -> None:
    assert [f.bits for f in FORMATS.values()] == [8.25, 8.25, 4.25, 4.5]
