"""Importers of attention and rotary embeddings, against ONNX Runtime and onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from tests.support.against_onnxruntime import both, floats, onnx_node
from tests.support.single_node import without_composites

STEP = float(np.finfo(np.float32).eps)
TOLERANCE = 64 * STEP
"""Scores are sums of 8 products of numbers up to 4, weights sum to 1 over 9 keys."""

Case = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def computed(case: Case) -> list[list[np.ndarray]]:
    """What the imported graph and its decomposition compute."""
    imported = load_model(case[0])
    named = {value.name: case[1][name] for name, value in imported.inputs}
    results = []
    for graph in (imported.graph, without_composites(imported.graph)):
        arrays = run_graph(graph, named)
        names = [v.name for v in graph.results]
        results.append([arrays[n] for n in names])
    return results


def check(case: Case, *, by_reference: bool = False, tolerance: float = TOLERANCE) -> None:
    expected = ReferenceEvaluator(case[0]).run(None, case[1]) if by_reference else both(*case)[1]
    for results in computed(case):
        for got, want in zip(results, expected, strict=True):
            assert got.dtype == np.asarray(want).dtype
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def tensors(heads: int = 4, groups: int = 4, queries: int = 5, keys: int = 5) -> list[np.ndarray]:
    q, k, v = floats(2, heads, queries, 8), floats(2, groups, keys, 8)[..., ::-1], floats(2, groups, keys, 6)
    return [q / 2, np.ascontiguousarray(k) / 2, v]


def ai_onnx(*inputs: Any, opset: int = 23, outputs: int = 1, **attributes: Any) -> Case:
    return onnx_node("Attention", *inputs, opset=opset, ir_version=11, outputs=outputs, **attributes)


BOOLS = np.random.default_rng(1).random((5, 7)) < 0.7


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (tensors(), {}),
        (tensors(), {"is_causal": 1}),
        (tensors(4, 2, 5, 7), {"scale": 0.3}),
        ([*tensors(keys=7), floats(5, 7)], {}),
        ([*tensors(keys=7), floats(2, 1, 5, 7)], {"softcap": 3.0}),
        ([*tensors(keys=7), BOOLS | (np.arange(7) == 0)], {}),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_attention(inputs: list[np.ndarray], attributes: dict[str, Any]) -> None:
    check(ai_onnx(*inputs, **attributes), by_reference=True)


def test_attention_of_three_dimensions() -> None:
    q, k, v = floats(2, 5, 32) / 2, floats(2, 7, 16) / 2, floats(2, 7, 12)
    check(ai_onnx(q, k, v, q_num_heads=4, kv_num_heads=2), by_reference=True)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_a_past(causal: int) -> None:
    past = [floats(2, 4, 3, 8) / 2, floats(2, 4, 3, 6)]
    case = ai_onnx(*tensors(), None, *past, outputs=3, is_causal=causal)
    check(case, by_reference=True)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_attention_exposes_scores(mode: int) -> None:
    mask = floats(5, 7)
    case = ai_onnx(*tensors(keys=7), mask, outputs=4, qk_matmul_output_mode=mode, softcap=2.0)
    # In mode 0 onnx.reference shows what softcap made; the standard's function body and ONNX Runtime, the products.
    check(case, by_reference=mode > 0)


@pytest.mark.parametrize("known", [False, True])
def test_a_query_that_sees_nothing_yields_zeros(known: bool) -> None:
    mask = BOOLS.copy()
    mask[2] = False
    model, feeds = onnx_node("Attention", *tensors(keys=7), mask, opset=23, ir_version=11, constant=(3,) * known)
    check((model, feeds), by_reference=True)
    assert not computed((model, feeds))[0][0][:, :, 2].any()


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_valid_lengths(causal: int) -> None:
    lengths = np.array([7, 5], np.int64)
    case = ai_onnx(*tensors(keys=7), None, None, None, lengths, opset=24, is_causal=causal)
    check(case, by_reference=True)


@pytest.mark.parametrize("window", [(2, 1), (-1, 2), (3, -1)])
def test_attention_within_a_window(window: tuple[int, int]) -> None:
    left, right = window
    case = ai_onnx(*tensors(), opset=25, left_window_size=left, right_window_size=right)
    check(case, by_reference=True)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("placed", [False, True])
def test_rotary_embedding(placed: bool, size: int, interleaved: int) -> None:
    half = (size or 8) // 2
    caches = [floats(11, half), floats(11, half)[::-1].copy()] if placed else [floats(2, 5, half)] * 2
    positions = [np.random.default_rng(2).integers(0, 11, (2, 5))] if placed else []
    inputs = (floats(2, 4, 5, 8), *caches, *positions)
    case = onnx_node("RotaryEmbedding", *inputs, opset=23, ir_version=11, interleaved=interleaved,
                     rotary_embedding_dim=size)  # fmt: skip
    check(case, by_reference=True)


@pytest.mark.parametrize("offset", [False, True])
def test_rotary_embedding_of_onnxruntime(offset: bool) -> None:
    positions = np.array([3]) if offset else np.random.default_rng(2).integers(0, 11, (2, 5))
    caches = (floats(11, 4), floats(11, 4)[::-1].copy())
    check(onnx_node("RotaryEmbedding", floats(2, 5, 32), positions, *caches, domain="com.microsoft"))


def microsoft(op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Case:
    return onnx_node(op, *inputs, domain="com.microsoft", outputs=outputs, **attributes)


PADDING = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("mask", [None, PADDING, np.array([5, 3], np.int32)], ids=["none", "keys", "lengths"])
@pytest.mark.parametrize("biased", [False, True])
def test_multi_head_attention(biased: bool, mask: np.ndarray | None) -> None:
    q, k, v = floats(2, 5, 32) / 2, floats(2, 6, 32)[..., ::-1].copy() / 2, floats(2, 6, 32)
    case = microsoft("MultiHeadAttention", q, k, v, floats(96) / 4 if biased else None, mask, num_heads=4)
    check(case)


def test_multi_head_attention_of_packed_tensors() -> None:
    """ONNX Runtime has no packed form on CPU; the same tensors apart are the yardstick."""
    packed = floats(2, 5, 4, 3, 8) / 2
    apart = [np.ascontiguousarray(packed[:, :, :, i]).reshape(2, 5, 32) for i in range(3)]
    expected = computed(microsoft("MultiHeadAttention", *apart, num_heads=4))[0][0]
    pair = np.ascontiguousarray(packed[:, :, :, 1:])
    for inputs in ((packed,), (apart[0], pair)):
        got = computed(microsoft("MultiHeadAttention", *inputs, num_heads=4))[0][0]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention_with_a_past(causal: int) -> None:
    new = [floats(2, 3, 32) / 2, floats(2, 3, 32)[::-1].copy() / 2, floats(2, 3, 32)]
    past = [floats(2, 4, 2, 8) / 2, floats(2, 4, 2, 8)]
    case = microsoft("MultiHeadAttention", *new, None, None, floats(1, 4, 3, 5), *past, outputs=3, num_heads=4,
                     unidirectional=causal)  # fmt: skip
    check(case)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_of_onnxruntime(padded: bool, causal: int) -> None:
    x, w, b = floats(2, 6, 16) / 4, floats(16, 96) / 4, floats(96) / 4
    case = microsoft("Attention", x, w, b, PADDING if padded else None, num_heads=4, unidirectional=causal)
    check(case)


def test_attention_of_onnxruntime_with_a_past() -> None:
    x, w, b = floats(2, 3, 16) / 4, floats(16, 96) / 4, floats(96) / 4
    past = floats(2, 2, 4, 2, 8) / 2
    check(microsoft("Attention", x, w, b, None, past, num_heads=4, unidirectional=1, outputs=2))


def grouped(queries: int, past: int, total: int, lengths: list[int], **attributes: Any) -> Case:
    new = [floats(2, queries, 64) / 2, floats(2, queries, 32)[..., ::-1].copy() / 2, floats(2, queries, 32)]
    cache = [floats(2, 2, past, 16) / 2, floats(2, 2, past, 16)]
    inputs = [*new, *cache, np.array(lengths, np.int32), np.array([total], np.int32)]
    if attributes.get("do_rotary"):
        inputs += [floats(16, 8), floats(16, 8)[::-1].copy()]
    return onnx_node("GroupQueryAttention", *inputs, domain="com.microsoft", constant=(6,), outputs=3, num_heads=4,
                     kv_num_heads=2, **attributes)  # fmt: skip


@pytest.mark.parametrize(
    "attributes", [{}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1}, {"softcap": 2.0}]
)
def test_group_query_attention_of_a_prompt(attributes: dict[str, Any]) -> None:
    check(grouped(5, 0, 5, [4, 4], **attributes))


@pytest.mark.parametrize("attributes", [{}, {"do_rotary": 1}, {"local_window_size": 3}])
def test_group_query_attention_of_a_step(attributes: dict[str, Any]) -> None:
    check(grouped(1, 6, 7, [6, 6], **attributes))


def test_what_group_query_attention_lacks_is_refused() -> None:
    model, _ = grouped(5, 0, 5, [4, 4], smooth_softmax=1)
    with pytest.raises(ModelError, match="smooth softmax is not supported"):
        load_model(model)
