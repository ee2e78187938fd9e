"""Reductions, scans along an axis, and orderings."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import I32, I64, Sample

AXES_ARE_INPUTS_SINCE = {"ReduceSum": 13}


@strategy(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduction(s: Sample) -> None:
    dtype = s.dtype()
    # ONNX Runtime gets the shape of empty results wrong, and onnx.reference knows no logarithm of integers.
    shape = s.shape(0, 5, least=0 if dtype.kind not in "iu" and s.flip(0.2) else 1)
    sums = s.op not in ("ReduceMax", "ReduceMin")
    x = s.array(dtype, shape, 0.0 if sums and (dtype.kind in "iu" or s.flip(0.8)) else 0.1)
    if s.op == "ReduceLogSum" or (s.op == "ReduceProd" and dtype.kind not in "iu"):
        x = s.positive(dtype, shape) if dtype.kind not in "iu" else np.abs(x) + np.array(1, dtype)
    if s.op == "ReduceProd" and dtype.kind in "iu":  # small ones, whose product no integer type loses
        x = s.numbers.integers(1, 3, shape).astype(dtype)
    s.add(x)
    axes = s.axes(len(shape))
    since = AXES_ARE_INPUTS_SINCE.get(s.op, 18)
    if axes or (s.opset >= since and s.flip()):
        s.listed("axes", axes, since)
    if s.flip(0.8):
        s.attributes["keepdims"] = int(s.flip())
    if s.opset >= since and s.flip(0.4):
        s.attributes["noop_with_empty_axes"] = int(s.flip())


@strategy("ArgMax", "ArgMin")
def arg(s: Sample) -> None:
    shape, dtype = s.shape(1, 5, least=1), s.dtype()
    low = 0 if dtype.kind == "u" else -3
    s.add(s.numbers.integers(low, 4, shape).astype(dtype) if s.flip(0.7) else s.array(dtype, shape, 0.1))
    s.attributes = {"axis": s.axis(len(shape)), "keepdims": int(s.flip())} if s.flip(0.9) else {}
    if s.opset >= 12 and s.flip():
        s.attributes["select_last_index"] = int(s.flip())


@strategy("CumSum", "CumProd")
def cumulative(s: Sample) -> None:
    shape, dtype = s.shape(1, 4), s.dtype()
    s.add(s.array(dtype, shape) if s.op == "CumSum" or dtype.kind in "iu" else s.positive(dtype, shape))
    s.add(np.array(s.axis(len(shape)), s.dtype("T2", (I32, I64))), fixed=True)
    s.attributes = {n: int(s.flip()) for n in ("exclusive", "reverse") if s.flip(0.7)}


@strategy("TopK")
def top_k(s: Sample) -> None:
    shape, dtype = s.shape(1, 4, least=1), s.dtype()
    axis = s.axis(len(shape))
    k = s.between(0 if s.flip(0.2) else 1, shape[axis])
    s.add(s.distinct(dtype, shape) if s.flip(0.6) else s.numbers.integers(0, 4, shape).astype(dtype))
    s.attributes["axis"] = axis
    if s.opset < 10:
        s.attributes["k"] = k
    else:
        s.ints([k])
        if s.opset >= 11:
            s.attributes["largest"] = int(s.flip())
    s.outputs = ["y0", "y1"]


@strategy("Unique")
def unique(s: Sample) -> None:
    shape = s.shape(1, 3, least=1)
    s.add(s.numbers.integers(0, 4, shape).astype(s.dtype()), fixed=True)
    if s.flip():
        s.attributes["axis"] = s.axis(len(shape))
    if s.flip(0.7):
        s.attributes["sorted"] = int(s.flip())
    s.results(4)
