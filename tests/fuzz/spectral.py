"""Transforms, windows and filter banks."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, I64, Sample, UnsuitedError


@strategy("DFT")
def dft(s: Sample) -> None:
    dtype, shape = s.dtype("T1"), [s.between(1, 3), s.size(2, 17), *([s.size(1, 4)] if s.flip() else [])]
    inverse, onesided = s.flip(0.3), s.flip(0.3)
    if inverse and onesided:
        raise UnsuitedError("not before opset 20, and ONNX Runtime has none")
    parts = 1 if onesided or (s.flip() and not inverse) else 2
    rank = len(shape) + 1
    axis = s.pick([a for a in range(-rank, rank) if a % rank != rank - 1 and (a % rank or s.flip(0.2))])
    s.add(s.array(dtype, (*shape, parts)))
    length = s.between(1, 20) if s.flip(0.4) else None
    s.add(np.array(length, np.int64) if length is not None else None, True)
    if s.opset >= 20:
        s.add(np.array(axis, np.int64), True)
    else:
        s.attributes["axis"] = axis
    s.attributes |= {"inverse": int(inverse), "onesided": int(onesided)}


@strategy("STFT")
def stft(s: Sample) -> None:
    dtype, samples = s.dtype("T1"), s.between(8, 33)
    length, step = s.between(2, 8), s.between(1, 5)
    s.add(s.array(dtype, (s.between(1, 2), samples, 1)))
    s.add(np.array(step, np.int64), True)
    windowed = s.flip()
    s.add(s.positive(dtype, (length,)) if windowed else None, True)
    s.add(np.array(length, np.int64) if not windowed or s.flip() else None, True)
    s.attributes["onesided"] = int(s.flip(0.7))


@strategy("HannWindow", "HammingWindow", "BlackmanWindow")
def window(s: Sample) -> None:
    s.add(np.array(s.between(3, 20), s.dtype("T1", (I64, np.dtype(np.int32)))), True)
    if s.flip():
        s.attributes["periodic"] = int(s.flip())


@strategy("MelWeightMatrix")
def mel(s: Sample) -> None:
    rate = s.pick((8000, 16000))
    for value in (s.between(2, 10), s.pick((64, 128, 63)), rate):
        s.add(np.array(value, np.int64), True)
    s.add(np.array(s.pick((0.0, 20.0)), F32), True)
    s.add(np.array(rate / 2, F32), True)
    if s.flip(0.3):
        s.attributes["output_datatype"] = TensorProto.FLOAT


@strategy("Det")
def det(s: Sample) -> None:
    size = s.between(1, 5)
    s.add(s.array(s.dtype(), (*s.shape(0, 2, least=1, most=10), size, size)))
