"""Narrow float formats, bit for bit: against ml_dtypes, against ONNX Runtime's Cast, and at every boundary."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ppuc.ir.encode import ENCODED, LARGE, encode
from ppuc.ir.numerics import bits_dtype, narrow, widen
from ppuc.ir.ops.elementwise import convert
from ppuc.ir.types import DType

F8 = (DType.F8E4M3, DType.F8E5M2)
PROTO = {DType.F8E4M3: TensorProto.FLOAT8E4M3FN, DType.F8E5M2: TensorProto.FLOAT8E5M2, DType.BF16: TensorProto.BFLOAT16}


def reference(values: np.ndarray, dtype: DType, saturate: bool) -> np.ndarray:
    """What ml_dtypes makes of f32 values, clipped first where saturation is asked for."""
    with np.errstate(all="ignore"):
        if saturate and dtype in F8:
            codes = np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)
            limit = codes[np.isfinite(codes)].max()
            values = np.clip(values, -limit, limit)
        return np.asarray(values.astype(dtype.numpy).view(bits_dtype(dtype)))


def boundaries(dtype: DType) -> np.ndarray:
    """Every number of an 8-bit format, the midpoints between neighbours, and the f32 next to each of those."""
    codes = np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)
    numbers = np.unique(codes[np.isfinite(codes)])
    top = numbers[-1] * 2 - numbers[-2]  # what the next number would be
    numbers = np.concatenate([[-top], numbers, [top]]).astype(np.float32)
    exact = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2]).astype(np.float32)
    near = [np.nextafter(exact, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([exact, *near, special])


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("dtype", F8)
def test_every_boundary(dtype: DType, saturate: bool) -> None:
    values = boundaries(dtype)
    want = reference(values, dtype, saturate)
    assert np.array_equal(encode(values, dtype, saturate), want)
    assert np.array_equal(convert(values, dtype, saturate).view(np.uint8), want)  # the way of small arrays
    many = np.tile(values, -(-LARGE // values.size))
    assert np.array_equal(convert(many, dtype, saturate).view(np.uint8)[: values.size], want)  # of large ones


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("dtype", F8)
def test_onnxruntime_casts_the_same(dtype: DType, saturate: bool) -> None:
    """NaN apart, of which ONNX Runtime drops the sign, and overflow without saturation: there it takes 480 for 448 in
    E4M3, and numbers that round to 65536 for NaN in E5M2, neither of which the formats' definitions allow."""
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=PROTO[dtype], saturate=int(saturate)),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "cast", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = boundaries(dtype)
    values = values[~np.isnan(values)]
    if not saturate:
        values = values[np.isfinite(widen(encode(values, dtype, False), dtype))]
    (got,) = session.run(None, {"x": values})
    want = widen(encode(values, dtype, saturate), dtype)
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", [DType.F8E4M3, DType.F8E5M2])
def test_every_code_survives(dtype: DType) -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = widen(codes, dtype)
    kept = ~np.isnan(values)
    assert np.array_equal(encode(values, dtype, False)[kept], codes[kept])
    assert np.isnan(widen(encode(values, dtype, False), dtype)[~kept]).all()


def compare_all(bits: np.ndarray, dtype: DType) -> None:
    values = bits.view(np.float32)
    for saturate in (True, False):
        assert np.array_equal(encode(values, dtype, saturate), reference(values, dtype, saturate))


@pytest.mark.parametrize("dtype", ENCODED)
def test_a_sample_of_all_inputs(dtype: DType) -> None:
    """Every 4093rd of the 2**32 inputs: all exponents, both signs, mantissas of all kinds."""
    compare_all(np.arange(0, 1 << 32, 4093, dtype=np.uint64).astype(np.uint32), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ENCODED)
def test_all_inputs(dtype: DType) -> None:
    for start in range(0, 1 << 32, 1 << 24):
        compare_all(np.arange(start, start + (1 << 24), dtype=np.uint64).astype(np.uint32), dtype)


@pytest.mark.parametrize("dtype", ENCODED)
def test_interpreters_round_alike_whatever_the_size(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(2 * LARGE) * 10.0 ** rng.integers(-6, 4, 2 * LARGE)).astype(np.float32)
    values[::97] = np.nan
    parts = [narrow(part, dtype) for part in np.split(values, 2 * LARGE // 64)]
    assert np.array_equal(narrow(values, dtype), np.concatenate(parts))


def test_bf16_needs_no_compiled_code() -> None:
    """Importing numba takes longer than encoding the weights of a network."""
    code = (
        "import sys, numpy as np; from ppuc.ir.encode import encode; from ppuc.ir.types import DType; "
        "encode(np.ones(1 << 16, np.float32), DType.BF16, False); print('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_onnx_knows_the_formats() -> None:
    assert all(onnx.helper.tensor_dtype_to_np_dtype(PROTO[d]) == d.numpy for d in ENCODED)
