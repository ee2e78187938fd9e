"""TopK and Unique: reference against decomposition, both against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS
from ppuc.ir.ops.sorting import TopkAttrs
from ppuc.ir.types import parse_type
from tests.support.against_onnxruntime import assert_agrees, both, onnx_node
from tests.support.single_node import without_composites


def topk_case(x: np.ndarray, k: int, **attributes: int) -> None:
    """Record, decomposition and ONNX Runtime agree exactly."""
    model, feeds = onnx_node("TopK", x, np.array([k], np.int64), constant=(1,), outputs=2, **attributes)
    imported = load_model(model)
    computed = [op.name for op in imported.graph.ops if op.name != "const"]
    assert computed == (["topk"] if k else [])  # empty results are known without the input
    named = {value.name: feeds[name] for name, value in imported.inputs}
    whole = run_graph(imported.graph, named)
    parts = run_graph(without_composites(imported.graph), named)
    _, theirs = both(model, feeds)
    for got, split, expected in zip(whole.values(), parts.values(), theirs, strict=True):
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(split, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("shape", "axis", "k"), [((7,), -1, 3), ((2, 5, 3), 1, 5), ((4, 1), 1, 1), ((3, 9), 0, 2)])
def test_topk_with_many_ties(shape: tuple[int, ...], axis: int, k: int, largest: int, dtype: type) -> None:
    x = np.random.default_rng([*shape, k]).integers(-3, 3, shape).astype(dtype)
    topk_case(x, k, axis=axis, largest=largest)


@pytest.mark.parametrize("k", [0, 1, 8])
def test_topk_of_infinities(k: int) -> None:
    x = np.array([[-np.inf, 1, np.inf, -np.inf, np.inf, 0, -0.0, -np.inf]], np.float32)
    for largest in (0, 1):
        topk_case(x, k, largest=largest)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("n", "k"), [(4097, 3), (4097, 40), (9000, 700), (5000, 4999)])
def test_topk_of_long_rows(n: int, k: int, largest: int) -> None:
    """Few results are searched for one by one, more compete in blocks, very many are ranked at once."""
    x = np.random.default_rng(n).integers(-n // 4, n // 4, (1, n)).astype(np.float32)
    x[0, ::97] = -np.inf
    topk_case(x, k, largest=largest)


def test_topk_fillers_of_the_last_block_never_win() -> None:
    """All elements are equal to what fills the last block."""
    topk_case(np.full((2, 4100), -np.inf, np.float32), 30)
    topk_case(np.full((1, 4100), np.iinfo(np.int64).min, np.int64), 30)


def test_nan_ranks_with_infinity() -> None:
    x = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    reference = OPS["topk"].reference
    assert reference is not None
    np.testing.assert_array_equal(reference(TopkAttrs(0, 4), x)[1], [1, 2, 0, 3])
    np.testing.assert_array_equal(reference(TopkAttrs(0, 4, largest=False), x)[1], [3, 0, 1, 2])


@pytest.mark.parametrize(
    ("attrs", "type", "message"),
    [
        (TopkAttrs(1, 1), "f32[4]", r"axis 1 of topk is not an axis of f32\[4\]"),
        (TopkAttrs(0, 5), "f32[4]", r"k of topk must be between 0 and 4 \(got 5\)"),
        (TopkAttrs(0, 1), "bool[4]", r"topk is not defined for bool"),
    ],
)
def test_wrong_topk_is_explained(attrs: TopkAttrs, type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS["topk"].infer(attrs, [parse_type(type)])


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_unique_of_a_constant(axis: int | None, in_order: int) -> None:
    x = np.array([[2, 1, 1], [0, 1, 1], [2, 1, 1]], np.float32)
    attributes = {"sorted": in_order, **({} if axis is None else {"axis": axis})}
    assert_agrees(*onnx_node("Unique", x, constant=(0,), outputs=4, **attributes))


def test_unique_of_an_input_is_refused() -> None:
    model, _ = onnx_node("Unique", np.zeros(3, np.float32))
    with pytest.raises(ModelError, match="the number of distinct elements depends on the model's inputs"):
        load_model(model)
