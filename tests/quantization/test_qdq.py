"""Files with QuantizeLinear and DequantizeLinear: their products run on the stored numbers, with their scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.inputs import input_specs
from ppuc.compiler.options import CompileOptions
from ppuc.ir.module import Module
from ppuc.ir.types import DType
from ppuc.targets.description import load_target
from tests.support.whole_pipeline import compiled, simulated

F8 = np.dtype(ml_dtypes.float8_e4m3fn)
PROTO = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8, F8: TensorProto.FLOAT8E4M3FN}


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    if array.dtype in PROTO:
        return helper.make_tensor(name, PROTO[array.dtype], array.shape, array.tobytes(), raw=True)
    return onnx.numpy_helper.from_array(array, name)


def qdq(product: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...], weights: np.ndarray, scale: np.ndarray,
        axis: int, x_zero: np.ndarray, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    """y = product(dequantize(quantize(x)), dequantize(w)), saturating."""
    stored = weights.dtype
    initializers = {
        "s": np.float32(0.02),
        "z": x_zero,
        "w": weights,
        "t": scale.astype(np.float32),
        "v": np.zeros(scale.shape, stored),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "t", "v"], ["e"], axis=axis),
        helper.make_node(product, ["d", "e"], ["y"], name="product", **attributes),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x_shape), ("y", y_shape))]
    graph = helper.make_graph(
        nodes, "qdq", ends[:1], ends[1:], [tensor(n, np.asarray(a)) for n, a in initializers.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def weights(dtype: np.dtype, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    if dtype == F8:
        return (rng.standard_normal(shape) * 100).astype(F8)
    return rng.integers(-127, 128, shape).astype(dtype)


def expected(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def module_of(model: onnx.ModelProto) -> Module:
    return initial_module(load_model(model), CompileOptions(load_target("ppu-tiny")))


def multiplied(module: Module) -> set[DType]:
    """Element types of the right operands of products."""
    bodies = [op.body for op in module.graph.ops if op.body is not None]
    return {op.operands[1].type.dtype for body in bodies for op in body.ops if op.name in ("matmul", "conv")}


CASES = {
    "f8 matmul": (F8, np.zeros((), F8), "MatMul"),
    "f8 conv": (F8, np.zeros((), F8), "Conv"),
    "i8 matmul": (np.dtype(np.int8), np.int8(0), "MatMul"),
    "u8 matmul with a zero point": (np.dtype(np.int8), np.uint8(120), "MatMul"),
    "i8 conv with a zero point": (np.dtype(np.int8), np.int8(-7), "Conv"),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_products_run_on_stored_numbers(name: str, per_channel: bool) -> None:
    """On 8-bit operands, to what ONNX Runtime computes from the file; sums in another order apart."""
    dtype, zero, product = CASES[name]
    scale = np.random.default_rng(6).uniform(0.001, 0.01, 9) if per_channel else np.asarray(0.004)
    if product == "MatMul":
        model = qdq(product, (5, 21), (5, 9), weights(dtype, 21, 9), scale, 1, np.asarray(zero))
    else:
        model = qdq(product, (1, 4, 7, 7), (1, 9, 7, 7), weights(dtype, 9, 4, 3, 3), scale, 0, np.asarray(zero),
                    pads=[1, 1, 1, 1])  # fmt: skip
    module = module_of(model)
    x = np.random.default_rng(7).standard_normal(input_specs(module)[0].type.dims).astype(np.float32)
    done = compiled(module, load_target("ppu-tiny"), {"x": x})
    assert multiplied(done) == {DType.of(dtype)}
    raw = simulated(done, load_target("ppu-tiny"), {"x": x})
    (got,) = raw.outputs.values()
    want = expected(model, {"x": x})
    assert np.abs(got.view(np.float32).reshape(want.shape) - want).max() <= 1e-5 * np.abs(want).max()


def as_inputs(model: onnx.ModelProto, *names: str) -> dict[str, np.ndarray]:
    """Make initializers inputs of the model; returns their values."""
    values = {}
    for name in names:
        (given,) = (t for t in model.graph.initializer if t.name == name)
        model.graph.initializer.remove(given)
        model.graph.input.append(helper.make_tensor_value_info(name, given.data_type, list(given.dims)))
        values[name] = onnx.numpy_helper.to_array(given)
    return values


@pytest.mark.parametrize("scales", [(), ("t",)])
@pytest.mark.parametrize("name", ["f8 matmul", "f8 conv", "i8 matmul"])
def test_products_of_computed_operands_run_on_stored_numbers(name: str, scales: tuple[str, ...]) -> None:
    """Weights that are graph inputs keep the rate of their format."""
    dtype, zero, product = CASES[name]
    shape, wide, attributes = ((21, 9), ((5, 21), (5, 9)), {})
    if product == "Conv":
        shape, wide, attributes = (9, 4, 3, 3), ((1, 4, 7, 7), (1, 9, 7, 7)), {"pads": [1, 1, 1, 1]}
    model = qdq(product, *wide, weights(dtype, *shape), np.full(9, 0.004), 0 if product == "Conv" else 1,
                np.asarray(zero), **attributes)  # fmt: skip
    x = np.random.default_rng(7).standard_normal(wide[0]).astype(np.float32)
    want = expected(model, {"x": x})
    feeds = {"x": x, **as_inputs(model, "w", *scales)}
    done = compiled(module_of(model), load_target("ppu-tiny"), feeds)
    assert multiplied(done) == {DType.of(dtype)}
    (got,) = simulated(done, load_target("ppu-tiny"), feeds).outputs.values()
    assert np.abs(got.view(np.float32).reshape(want.shape) - want).max() <= 1e-5 * np.abs(want).max()


def test_weights_alone_in_f8_are_widened_as_they_are_loaded() -> None:
    model = qdq("MatMul", (5, 21), (5, 9), weights(F8, 21, 9), np.full(9, 0.01), 1, np.zeros((), F8))
    del model.graph.node[0]
    model.graph.node[0].CopyFrom(helper.make_node("Identity", ["x"], ["d"]))
    module = module_of(model)
    x = np.random.default_rng(8).standard_normal((5, 21)).astype(np.float32)
    done = compiled(module, load_target("ppu-tiny"), {"x": x})
    assert any(b.dtype is DType.F8E4M3 for k in done.kernels for b in k.buffers)
    (got,) = simulated(done, load_target("ppu-tiny"), {"x": x}).outputs.values()
    want = expected(model, {"x": x})
    assert np.abs(got.view(np.float32).reshape(want.shape) - want).max() <= 1e-5 * np.abs(want).max()


def test_casts_that_do_not_saturate_give_nan() -> None:
    """Beyond 464 times the scale of 0.02; E4M3 has no infinity. A tie, at 464 itself, is rounded to 448."""
    model = qdq("MatMul", (6, 21), (6, 9), weights(F8, 21, 9), np.full(9, 0.01), 1, np.zeros((), F8))
    model.graph.node[0].attribute.append(helper.make_attribute("saturate", 0))
    x = np.random.default_rng(8).standard_normal((6, 21)).astype(np.float32)
    x[1, 3], x[2, 4], x[3, 5], x[4, 6] = 9.3, -50.0, np.inf, 464 * np.float32(0.02)
    done = compiled(module_of(model), load_target("ppu-tiny"), {"x": x})
    (got,) = simulated(done, load_target("ppu-tiny"), {"x": x}).outputs.values()
    want = expected(model, {"x": x})
    assert np.isnan(want).all(1).tolist() == [False, True, True, True, False, False]
    scale = np.abs(want[np.isfinite(want)]).max()
    np.testing.assert_allclose(got.view(np.float32).reshape(want.shape), want, rtol=0, atol=1e-5 * scale)


def test_scales_within_a_sum_stay_where_they_are() -> None:
    """Scales along the contracted axis: the product is one of floats, and right."""
    scale = np.random.default_rng(6).uniform(0.001, 0.01, 21)
    model = qdq("MatMul", (5, 21), (5, 9), weights(np.dtype(np.int8), 21, 9), scale, 0, np.asarray(np.int8(3)))
    module = module_of(model)
    x = np.random.default_rng(9).standard_normal((5, 21)).astype(np.float32)
    done = compiled(module, load_target("ppu-tiny"), {"x": x})
    (got,) = simulated(done, load_target("ppu-tiny"), {"x": x}).outputs.values()
    want = expected(model, {"x": x})
    assert np.abs(got.view(np.float32).reshape(want.shape) - want).max() <= 1e-5 * np.abs(want).max()


FOUR = {np.dtype(ml_dtypes.int4): TensorProto.INT4, np.dtype(ml_dtypes.uint4): TensorProto.UINT4}


def weights_alone(stored: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, *, turned: bool, **where: int) -> Any:
    """y[5, n] = x[5, k] @ dequantize(stored), opset 21; `turned`: the file has the weights as [n, k]."""
    rows, columns = stored.shape[::-1] if turned else stored.shape
    kind = FOUR.get(stored.dtype) or PROTO[stored.dtype]
    parts = {"w": stored} if zero is None else {"w": stored, "z": zero.astype(stored.dtype)}
    tensors = [helper.make_tensor(n, kind, a.shape, a.reshape(-1).astype(np.int32).tolist()) for n, a in parts.items()]
    tensors.append(onnx.numpy_helper.from_array(scale.astype(np.float32), "s"))
    inputs = ["w", "s"] + (["z"] if zero is not None else [])
    nodes = [helper.make_node("DequantizeLinear", inputs, ["d"], **where)]
    if turned:
        nodes.append(helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "t" if turned else "d"], ["y"], name="product"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (5, rows)), ("y", (5, columns)))]
    graph = helper.make_graph(nodes, "stored", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "columns", "whole"])
@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.uint8], ids=lambda t: np.dtype(t).name)
def test_weights_alone_stay_as_they_are_stored(dtype: Any, kind: str, turned: bool, zeros: bool) -> None:
    """In blocks along the sum, by column, or with one scale: the kernel loads the codes, two a byte where they fit."""
    rng = np.random.default_rng(11)
    k, n, dtype = 64, 24, np.dtype(dtype)
    low, high = (int(ml_dtypes.iinfo(dtype).min), int(ml_dtypes.iinfo(dtype).max)) if dtype in FOUR else (0, 120)
    stored = rng.integers(low, high + 1, (k, n)).astype(np.int32)
    shape = {"blocks": (k // 16, n), "columns": (n,), "whole": ()}[kind]
    scale = rng.uniform(0.01, 0.1, shape)
    zero = rng.integers(max(low, 0), high + 1, shape).astype(np.int32) if zeros else None
    where = {
        "blocks": {"axis": 1 if turned else 0, "block_size": 16},
        "columns": {"axis": 0 if turned else 1},
        "whole": {},
    }
    if turned:
        stored, scale = stored.T, scale.T
        zero = None if zero is None else np.asarray(zero.T)
    model = weights_alone(np.ascontiguousarray(stored).astype(dtype), np.ascontiguousarray(scale), zero, turned=turned,
                          **where[kind])  # fmt: skip
    module = module_of(model)
    x = rng.standard_normal((5, k)).astype(np.float32)
    done = compiled(module, load_target("ppu-tiny"), {"x": x})
    (codes,) = [b for kernel in done.kernels for b in kernel.buffers if b.name == "bt"]
    assert codes.dtype is (DType.U8 if dtype in FOUR else DType.of(dtype))
    held = [v.type.elements for op in done.graph.ops if op.body is not None for v in op.operands]
    assert k * n // (2 if dtype in FOUR else 1) in held
    (got,) = simulated(done, load_target("ppu-tiny"), {"x": x}).outputs.values()
    want = expected(model, {"x": x})
    assert np.abs(got.view(np.float32).reshape(want.shape) - want).max() <= 1e-5 * np.abs(want).max()
