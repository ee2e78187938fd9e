"""Normalisations and attention: reference against decomposition and against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.attention import AttentionAttrs
from ppuc.ir.ops.normalization import (
    BatchNormAttrs,
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LogSoftmaxAttrs,
    LpNormalizeAttrs,
    RmsNormAttrs,
    SoftmaxAttrs,
)
from ppuc.ir.rewrite import Builder, rewrite
from ppuc.ir.types import DType, parse_type
from tests.support.against_onnxruntime import assert_agrees, computed, floats, onnx_node, type_of

STEPS = 64
"""Units in the last place allowed between two ways of normalising up to 60 elements: one rounding an element and a
few."""

CASES: list[tuple[str, Attrs, tuple[tuple[int, ...], ...]]] = [
    ("softmax", SoftmaxAttrs(2), ((2, 3, 8),)),
    ("softmax", SoftmaxAttrs(0), ((5, 3),)),
    ("log_softmax", LogSoftmaxAttrs(1), ((2, 9, 3),)),
    ("layer_norm", LayerNormAttrs(2, 1e-6), ((2, 3, 8), (8,), (8,))),
    ("layer_norm", LayerNormAttrs(1), ((2, 3, 4), (3, 4))),
    ("rms_norm", RmsNormAttrs(2), ((2, 3, 8), (8,))),
    ("group_norm", GroupNormAttrs(3), ((2, 6, 4, 2), (6,), (6,))),
    ("instance_norm", InstanceNormAttrs(), ((2, 3, 4, 5), (3,), (3,))),
    ("batch_norm", BatchNormAttrs(1e-3), ((2, 3, 4), (3,), (3,), (3,), (3,))),
    ("lp_normalize", LpNormalizeAttrs(1, 1), ((2, 7),)),
    ("lp_normalize", LpNormalizeAttrs(0, 2), ((7, 2),)),
    ("attention", AttentionAttrs(0.35), ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6))),
    ("attention", AttentionAttrs(0.35, causal=True), ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6))),
    ("attention", AttentionAttrs(0.35), ((1, 6, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8), (1, 1, 5, 5))),
]


def operands(name: str, shapes: tuple[tuple[int, ...], ...], dtype: DType) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    arrays: list[np.ndarray] = [rng.uniform(-2, 2, s).astype(np.float32) for s in shapes]
    if name == "batch_norm":
        arrays[4] = np.abs(arrays[4]) + 0.5
    narrow = [a.astype(dtype.numpy) for a in arrays]
    return [*narrow[:3], *arrays[3:]] if name == "attention" else narrow


def decomposed(name: str, attrs: Attrs, arrays: list[np.ndarray]) -> np.ndarray:
    """The result of the op's decomposition, checked to consist of primitives."""
    params = tuple(Value(f"p{i}", type_of(a)) for i, a in enumerate(arrays))
    builder = Builder([p.name for p in params])
    (result,) = builder.emit(name, params, attrs)
    whole = Graph("whole", params, (result,), tuple(builder.ops))
    parts = rewrite(whole, lambda b, op: expand(b, op) if (expand := OPS[op.name].decompose) else None)
    assert all(OPS[op.name].decompose is None for op in parts.ops)
    assert parts.results[0].type == result.type
    (array,) = run_graph(parts, {p.name: a for p, a in zip(params, arrays, strict=True)}).values()
    return array


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize(("name", "attrs", "shapes"), CASES, ids=lambda c: str(c) if isinstance(c, str) else "")
def test_reference_agrees_with_decomposition(
    name: str, attrs: Attrs, shapes: tuple[tuple[int, ...], ...], dtype: DType
) -> None:
    if name == "attention" and dtype is DType.F64:
        shapes = shapes[:3]
    arrays = operands(name, shapes, dtype)
    result = computed(name, attrs, *arrays)
    step = float(ml_dtypes.finfo(dtype.numpy).eps)  # type: ignore[no-untyped-call]
    # Narrow results come from f32 on both ways: they may fall on neighbouring numbers, and attention's weights too.
    tolerance = (2 if dtype.bits == 16 else STEPS) * step
    parts = decomposed(name, attrs, arrays)
    np.testing.assert_allclose(parts.astype(np.float64), result.astype(np.float64), rtol=tolerance, atol=tolerance)


def test_causal_attention_hides_later_keys() -> None:
    q, k, v = (np.random.default_rng(i).normal(size=(1, 1, 4, 2)).astype(np.float32) for i in range(3))
    result = computed("attention", AttentionAttrs(1.0, causal=True), q, k, v)
    np.testing.assert_allclose(result[0, 0, 0], v[0, 0, 0], rtol=1e-6)
    last = computed("attention", AttentionAttrs(1.0), q, k, v)
    np.testing.assert_allclose(result[0, 0, 3], last[0, 0, 3], rtol=1e-6)


def test_grouped_heads_read_their_own_keys() -> None:
    q = np.zeros((1, 4, 1, 2), np.float32)
    k = np.zeros((1, 2, 1, 2), np.float32)
    v = np.array([10, 20], np.float32).reshape(1, 2, 1, 1)
    result = computed("attention", AttentionAttrs(1.0), q, k, v)
    np.testing.assert_array_equal(result.reshape(-1), [10, 10, 20, 20])


@pytest.mark.parametrize(
    ("name", "attrs", "types", "message"),
    [
        ("softmax", SoftmaxAttrs(2), ["f32[2, 3]"], r"axis 2 of softmax is not an axis of f32\[2, 3\]"),
        ("softmax", SoftmaxAttrs(0), ["i32[2, 3]"], r"softmax is not defined for i32"),
        ("layer_norm", LayerNormAttrs(1), ["f32[2, 3]", "f32[2]"], r"a parameter of layer_norm must broadcast|do not"),
        ("group_norm", GroupNormAttrs(4), ["f32[2, 6]", "f32[6]", "f32[6]"], r"groups must divide the channels"),
        ("batch_norm", BatchNormAttrs(), ["f32[2, 3]", *["f32[2]"] * 4], r"needs one parameter per channel: \[3\]"),
        ("lp_normalize", LpNormalizeAttrs(0, 3), ["f32[2]"], r"p of lp_normalize must be 1 or 2 \(got 3\)"),
        ("attention", AttentionAttrs(1.0), ["f32[1, 3, 2, 4]", *["f32[1, 2, 2, 4]"] * 2], r"key heads must divide"),
        ("attention", AttentionAttrs(1.0), ["f32[1, 2, 2, 4]", *["f32[1, 2, 2, 5]"] * 2], r"do not fit"),
    ],
)
def test_wrong_operands_are_explained(name: str, attrs: Attrs, types: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS[name].infer(attrs, [parse_type(t) for t in types])


CHANNELS = floats(6)
VARIANCES = np.abs(CHANNELS) + 0.5


@pytest.mark.parametrize("opset", [7, 9, 15])
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4)])
def test_batch_norm(shape: tuple[int, ...], opset: int) -> None:
    parameters = (CHANNELS, CHANNELS[::-1].copy(), CHANNELS * 0.5, VARIANCES)
    assert_agrees(*onnx_node("BatchNormalization", floats(*shape), *parameters, opset=opset, epsilon=1e-3), steps=STEPS)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(axis: int, with_bias: bool) -> None:
    x = floats(3, 4, 5)
    scale, bias = floats(*x.shape[axis:]), floats(*x.shape[axis:]) * 2
    inputs = (x, scale, bias) if with_bias else (x, scale)
    assert_agrees(*onnx_node("LayerNormalization", *inputs, axis=axis, epsilon=1e-6), steps=STEPS)


def test_layer_norm_with_statistics() -> None:
    assert_agrees(*onnx_node("LayerNormalization", floats(3, 4, 5), floats(5), floats(5), outputs=3), steps=STEPS)


def test_rms_norm() -> None:
    assert_agrees(*onnx_node("RMSNormalization", floats(3, 4, 8), floats(8), opset=23, ir_version=10), steps=STEPS)


def test_simplified_layer_norm() -> None:
    assert_agrees(*onnx_node("SimplifiedLayerNormalization", floats(3, 8), floats(8), axis=-1), steps=STEPS)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_skip_layer_norm(count: int) -> None:
    inputs = [floats(2, 3, 8), floats(2, 3, 8) + 1, floats(8), floats(8) * 2, floats(8) * 0.5][:count]
    assert_agrees(*onnx_node("SkipLayerNormalization", *inputs, domain="com.microsoft"), steps=STEPS)


@pytest.mark.parametrize("count", [3, 4])
def test_skip_simplified_layer_norm(count: int) -> None:
    inputs = [floats(2, 3, 8), floats(2, 3, 8) + 1, floats(8), floats(8) * 2][:count]
    model, feeds = onnx_node("SkipSimplifiedLayerNormalization", *inputs, domain="com.microsoft", outputs=4)
    for output in model.graph.node[0].output[1:3]:
        for info in [o for o in model.graph.output if o.name == output]:
            model.graph.output.remove(info)
    model.graph.node[0].output[1:3] = ["", ""]
    assert_agrees(model, feeds, steps=STEPS)


@pytest.mark.parametrize(("opset", "parameters"), [(18, 3), (21, 6)])
def test_group_norm(opset: int, parameters: int) -> None:
    inputs = (floats(2, 6, 4, 2), floats(parameters), floats(parameters) * 2)
    assert_agrees(*onnx_node("GroupNormalization", *inputs, opset=opset, num_groups=3, ir_version=10), steps=STEPS)


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4)])
def test_instance_norm(shape: tuple[int, ...]) -> None:
    assert_agrees(*onnx_node("InstanceNormalization", floats(*shape), CHANNELS, CHANNELS * 2), steps=STEPS)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    x = floats(3, 4, 5)
    x[0, :, 0] = 0
    assert_agrees(*onnx_node("LpNormalization", x, axis=1, p=p), steps=STEPS)


@pytest.mark.parametrize("attributes", [{}, {"axes": [1, -1]}], ids=str)
def test_mean_variance_normalization(attributes: dict[str, Any]) -> None:
    # ONNX Runtime takes the variance as E[x*x] - E[x]**2, which loses a few more places than centring first.
    assert_agrees(*onnx_node("MeanVarianceNormalization", floats(2, 3, 4, 5), opset=13, **attributes), steps=4 * STEPS)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(size: int) -> None:
    assert_agrees(*onnx_node("LRN", floats(2, 7, 3, 4), size=size, alpha=0.1, beta=0.6, bias=1.5), steps=STEPS)


def test_lrn_of_an_even_size_puts_the_odd_channel_after() -> None:
    """ONNX Runtime only knows odd sizes; the ONNX standard's formula is the yardstick."""
    x = floats(1, 5, 2, 2)
    model, feeds = onnx_node("LRN", x, size=2, alpha=0.5, beta=0.75, bias=1.0)
    imported = load_model(model)
    (result,) = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs}).values()
    square = x.astype(np.float64) ** 2
    total = square + np.concatenate([square[:, 1:], np.zeros_like(square[:, :1])], axis=1)
    np.testing.assert_allclose(result, x / (1 + 0.25 * total) ** 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            onnx_node("BatchNormalization", floats(2, 6, 3), *[VARIANCES] * 4, opset=15, training_mode=1, outputs=3),
            r"node 'node' \(BatchNormalization\): training mode is not supported",
        ),
        (onnx_node("GroupNormalization", floats(2, 6, 3), floats(4), floats(4), num_groups=4), r"must divide the chan"),
        (onnx_node("InstanceNormalization", floats(2, 6, 3), floats(5), floats(5)), r"one parameter per channel"),
        (onnx_node("LayerNormalization", floats(2, 6), floats(6), axis=2), r"axis is out of range"),
    ],
)
def test_a_wrong_node_is_explained(case: tuple[onnx.ModelProto, dict[str, np.ndarray]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(case[0])
