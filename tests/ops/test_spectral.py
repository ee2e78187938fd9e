"""Fourier transforms, mel weights and determinants against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from tests.support.against_onnxruntime import both, floats, onnx_node

STEP = float(np.finfo(np.float32).eps)


def check(*inputs: Any, tolerance: float, constant: tuple[int, ...] = (), **attributes: Any) -> None:
    op, *rest = inputs
    ours, theirs = both(*onnx_node(op, *rest, constant=constant, **attributes))
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def dft_tolerance(points: int) -> float:
    """A bin is a sum of `points` numbers up to 4, twice for complex ones. ONNX Runtime does not reduce angles, which
    are off by a step of up to 2 pi * points each."""
    return 4 * 2 * points**0.5 * max(8, 2 * np.pi * points) * STEP


@pytest.mark.parametrize("points", [1, 8, 15, 64])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_dft(inverse: int, parts: int, points: int) -> None:
    x = floats(2, points, parts)
    check("DFT", x, opset=17, inverse=inverse, axis=1, tolerance=dft_tolerance(points))
    model, feeds = onnx_node("DFT", x, opset=17, inverse=inverse, axis=1)
    imported = load_model(model)
    (got,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    signal = x[..., 0] + 1j * (x[..., 1] if parts == 2 else 0)
    exact = (np.fft.ifft if inverse else np.fft.fft)(signal.astype(np.complex128), axis=1)
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], exact, rtol=0, atol=max(2 * points, 8) * 4 * STEP)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_dft_along_an_axis(axis: int) -> None:
    given = (floats(5, 6, 7, 1), None, np.array(axis))
    check("DFT", *given, constant=(2,), opset=20, ir_version=9, tolerance=dft_tolerance(7))


@pytest.mark.parametrize("points", [8, 9])
def test_dft_of_half_the_spectrum(points: int) -> None:
    check("DFT", floats(3, points, 1), opset=17, onesided=1, axis=1, tolerance=dft_tolerance(points))


@pytest.mark.parametrize("length", [5, 12])
def test_dft_cuts_and_fills(length: int) -> None:
    given = (floats(2, 8, 1), np.array(length))
    check("DFT", *given, constant=(1,), opset=17, axis=1, tolerance=dft_tolerance(length))


@pytest.mark.parametrize("points", [8, 9])
def test_the_inverse_of_half_a_spectrum_is_the_signal(points: int) -> None:
    """ONNX Runtime gives this inverse complex; numpy is the yardstick."""
    x = floats(3, points)
    half = np.fft.rfft(x, axis=1)
    pairs = np.stack([half.real, half.imag], axis=-1).astype(np.float32)
    model, feeds = onnx_node("DFT", pairs, np.array(points), np.array(1), constant=(1, 2), opset=20, ir_version=9,
                             inverse=1, onesided=1)  # fmt: skip
    imported = load_model(model)
    (got,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    np.testing.assert_allclose(got[..., 0], x, rtol=0, atol=dft_tolerance(points))


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int, windowed: bool) -> None:
    window = np.hanning(16).astype(np.float32) if windowed else None
    given = (floats(2, 50, 1), np.array(5), window, np.array(16))
    check("STFT", *given, constant=(1, 3), opset=17, onesided=onesided, tolerance=dft_tolerance(16))


@pytest.mark.parametrize("edges", [(0.0, 8192.0), (300.0, 4000.0)])
def test_mel_weights(edges: tuple[float, float]) -> None:
    sizes = [np.array(n) for n in (8, 64, 16384)]
    given = (*sizes, *(np.array(e, np.float32) for e in edges))
    check("MelWeightMatrix", *given, constant=tuple(range(5)), opset=17, tolerance=4 * STEP)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op: str, periodic: int) -> None:
    check(op, np.array(10), constant=(0,), opset=17, periodic=periodic, tolerance=8 * STEP)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_det(size: int) -> None:
    x = floats(4, size, size)
    x[1, 0] = 0
    x[2, :, 0] = x[2, :, -1]
    # Up to size! products of `size` numbers up to 4 that cancel.
    check("Det", x, opset=11, tolerance=64 * 4.0**size * size * STEP)


def test_det_of_one_matrix_that_needs_pivots() -> None:
    check("Det", np.array([[0, 2], [3, 0]], np.float32), opset=11, tolerance=0)


def test_a_wrong_signal_is_explained() -> None:
    model, _ = onnx_node("DFT", floats(2, 8, 3), opset=17, axis=1)
    with pytest.raises(ModelError, match="the last dimension holds a real or a complex number"):
        load_model(model)
