"""Movement records against plain numpy, and their importers against ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Attrs
from ppuc.ir.ops import OPS
from ppuc.ir.ops.movement import (
    ConcatAttrs,
    GatherAttrs,
    GatherElementsAttrs,
    GatherNdAttrs,
    PadAttrs,
    ScatterElementsAttrs,
    ScatterNdAttrs,
)
from ppuc.ir.types import DType, TensorType, parse_type
from tests.support.against_onnxruntime import assert_agrees, computed, floats, indexing_of, onnx_node, pattern_of


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def indices(low: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(low, high, shape)


RECORDS: list[tuple[str, Attrs, tuple[np.ndarray, ...]]] = [
    ("concat", ConcatAttrs(1), (floats(2, 3), floats(2, 1), floats(2, 4))),
    ("pad", PadAttrs((1, 0), (2, 3), (0, 2), 1.5), (floats(3, 4),)),
    ("pad", PadAttrs((2,), (1,), (0,), mode="reflect"), (floats(4),)),
    ("pad", PadAttrs((-1, 1), (-2, 0), (0, 0)), (floats(5, 2),)),
    ("gather", GatherAttrs(1), (floats(2, 5, 3), indices(-5, 5, 2, 2))),
    ("gather_elements", GatherElementsAttrs(1), (floats(3, 5), indices(-5, 5, 2, 7))),
    ("gather_nd", GatherNdAttrs(1), (floats(2, 4, 3), indices(-3, 3, 2, 5, 1))),
    ("scatter_nd", ScatterNdAttrs(), (floats(6, 2), indices(-6, 6, 4, 1), floats(4, 2))),
    ("scatter_elements", ScatterElementsAttrs(0, "add"), (floats(3, 4), indices(-3, 3, 2, 4), floats(2, 4))),
]


@pytest.mark.parametrize(("name", "attrs", "arrays"), RECORDS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(RECORDS)])
def test_infer_agrees_with_reference(name: str, attrs: Attrs, arrays: tuple[np.ndarray, ...]) -> None:
    """`computed` compares the two."""
    for dtype in (DType.F32, DType.BF16, DType.I32, DType.F8E4M3):
        computed(name, attrs, *(a.astype(dtype.numpy) if a.dtype == np.float32 else a for a in arrays))


@pytest.mark.parametrize("size", [0, 1, 2, 5])
@pytest.mark.parametrize("interior", [0, 1, 2])
@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 1), (-1, 3), (3, -2), (-1, -1), (-3, 0), (0, -4)])
def test_pad_is_dilate_then_pad_or_crop(size: int, interior: int, low: int, high: int) -> None:
    x = np.arange(1, size + 1)
    spread = np.full(max(0, size + (size - 1) * interior), 9)
    spread[:: interior + 1] = x
    widened = np.pad(spread, (max(low, 0), max(high, 0)), constant_values=9)
    crop = slice(max(-low, 0), widened.size - max(-high, 0))
    attrs = PadAttrs((low,), (high,), (interior,), 9.0)
    if low + spread.size + high < 0:
        with pytest.raises(ValueError, match="crops more than"):
            OPS["pad"].infer(attrs, [TensorType(DType.I64, (size,))])
    elif crop.start <= crop.stop:
        np.testing.assert_array_equal(computed("pad", attrs, x), widened[crop])


def test_pad_indexing_reads_outside_where_it_pads() -> None:
    attrs = PadAttrs((2, -1), (1, 0), (0, 0), 7.0)
    x = np.arange(12).reshape(3, 4)
    result = computed("pad", attrs, x)
    indexing = indexing_of("pad", attrs, TensorType(DType.I64, x.shape))
    for point in itertools.product(*(range(d.size) for d in indexing.dims)):
        env = dict(zip((d.name for d in indexing.dims), point, strict=True))
        read = tuple(a.value(env) for a in indexing.operands[0])
        inside = all(0 <= i < n for i, n in zip(read, x.shape, strict=True))
        assert result[point] == (x[read] if inside else 7)
    assert pattern_of("pad", PadAttrs((1,), (1,), (0,), mode="edge"), parse_type("f32[4]")) is None


@pytest.mark.parametrize(
    ("name", "attrs", "types", "message"),
    [
        (
            "concat",
            ConcatAttrs(0),
            ["f32[2, 3]", "f32[2, 4]"],
            "cannot concatenate f32[2, 3] and f32[2, 4] along axis 0",
        ),
        ("concat", ConcatAttrs(0), ["f32[2]", "i32[2]"], "cannot concatenate f32[2] and i32[2] along axis 0"),
        ("concat", ConcatAttrs(2), ["f32[2]"], "axis 2 is out of range for f32[2]"),
        ("pad", PadAttrs((1,), (0,), (0,), mode="edge"), ["f32[0]"], "mode 'edge' has nothing to pad f32[0] with"),
        ("pad", PadAttrs((1,), (0,), (0,), mode="odd"), ["f32[1]"], "unknown pad mode 'odd'"),
        ("gather", GatherAttrs(0), ["f32[2]", "f32[1]"], "indices must be integers, got f32[1]"),
        (
            "gather_elements",
            GatherElementsAttrs(0),
            ["f32[2, 3]", "i64[2, 4]"],
            "indices i64[2, 4] do not lie inside f32[2, 3] beside axis 0",
        ),
        (
            "gather_nd",
            GatherNdAttrs(0),
            ["f32[2, 3]", "i64[1, 3]"],
            "indices i64[1, 3] name 3 dimensions after 0 batch dimensions, f32[2, 3] has 2",
        ),
        (
            "scatter_nd",
            ScatterNdAttrs(),
            ["f32[4, 2]", "i64[3, 1]", "f32[3, 1]"],
            "updates f32[3, 1] should have shape [3, 2] for f32[4, 2] and indices i64[3, 1]",
        ),
        (
            "scatter_elements",
            ScatterElementsAttrs(0),
            ["f32[4]", "i64[2]", "f16[2]"],
            "updates f16[2] and data f32[4] differ in element type",
        ),
    ],
)
def test_infer_refuses(name: str, attrs: Attrs, types: list[str], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole text is compared
        OPS[name].infer(attrs, [parse_type(t) for t in types])
    assert str(raised.value) == message


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 4] for _ in range(3)]
    shapes[1][axis], shapes[2][axis] = 0, 5
    assert_agrees(*onnx_node("Concat", *(floats(*s) for s in shapes), axis=axis))


def test_split() -> None:
    x = floats(7, 6)
    assert_agrees(*onnx_node("Split", x, opset=11, outputs=3, axis=1))
    assert_agrees(*onnx_node("Split", x, opset=11, outputs=3, axis=0, split=[1, 4, 2]))
    assert_agrees(*onnx_node("Split", x, ints(5, 0, 2), opset=13, constant=(1,), outputs=3))
    assert_agrees(*onnx_node("Split", x, outputs=3, num_outputs=3))
    assert_agrees(*onnx_node("Split", x, outputs=2, num_outputs=2, axis=-1))
    with pytest.raises(ModelError, match="the parts do not make up dimension 0"):
        load_model(onnx_node("Split", x, ints(5, 5), constant=(1,), outputs=2)[0])


PADS = [(1, 0, 2, 3), (0, 0, 0, 0), (0, -1, 2, -2), (-1, 2, 0, 1)]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", PADS)
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    x = floats(4, 5)
    opset = 19 if mode == "wrap" else 18
    assert_agrees(*onnx_node("Pad", x, ints(*pads), opset=opset, constant=(1,), mode=mode))
    if mode != "wrap":
        assert_agrees(*onnx_node("Pad", x, opset=10, pads=pads, mode=mode))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32, np.float64])
def test_pad_with_a_value_and_axes(dtype: type) -> None:
    x: np.ndarray = floats(4, 5, 3).astype(dtype)
    value: np.ndarray = np.array(-3, dtype)
    assert_agrees(*onnx_node("Pad", x, ints(1, 0, 2, 1, 1, 1), value, constant=(1, 2), opset=13))
    assert_agrees(*onnx_node("Pad", x, ints(1, 2, 3, 0), value, ints(-1, 0), constant=(1, 2, 3)))
    assert_agrees(*onnx_node("Pad", floats(3), opset=10, pads=[1, 2], value=0.5))


def test_an_inexact_pad_value_is_refused() -> None:
    with pytest.raises(ModelError, match="the pad value is too large to be exact"):
        load_model(onnx_node("Pad", ints(1), ints(1, 1), np.array(2**53 + 1), constant=(1, 2))[0])


@pytest.mark.parametrize("repeats", [(1, 1), (2, 1), (1, 3), (2, 3), (0, 2)])
def test_tile(repeats: tuple[int, ...]) -> None:
    assert_agrees(*onnx_node("Tile", floats(3, 4), ints(*repeats), constant=(1,)))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", [(), (1,)])
@pytest.mark.parametrize(
    "picks", [np.array(2), np.array(-1), ints(0, 2), ints(2, 1, 0), ints(1, 1), ints(), np.array([[0, 1], [2, -1]])]
)
def test_gather(axis: int, constant: tuple[int, ...], picks: np.ndarray) -> None:
    assert_agrees(*onnx_node("Gather", floats(3, 4, 5), picks.astype(np.int64), constant=constant, axis=axis))


def test_gather_of_regular_constant_indices_is_a_view() -> None:
    for picks in (np.array(2), ints(0, 2), ints(2, 1, 0)):
        graph = load_model(onnx_node("Gather", floats(3, 4), picks, constant=(1,))[0]).graph
        assert {op.name for op in graph.ops} <= {"slice", "reshape"}
    with pytest.raises(ModelError, match="an index is out of range"):
        load_model(onnx_node("Gather", floats(3, 4), ints(3), constant=(1,))[0])


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_gather_elements(axis: int) -> None:
    extent = (3, 4)[axis]
    assert_agrees(*onnx_node("GatherElements", floats(3, 4), indices(-extent, extent, 3, 4), axis=axis))
    shape = (7, 2) if axis != 1 else (2, 7)
    assert_agrees(*onnx_node("GatherElements", floats(3, 4), indices(-extent, extent, *shape), axis=axis))


@pytest.mark.parametrize(
    ("batch", "shape"), [(0, (5, 2)), (0, (2, 5, 3)), (0, (1,)), (1, (2, 1)), (1, (2, 4, 2)), (2, (2, 2, 3, 1))]
)
def test_gather_nd(batch: int, shape: tuple[int, ...]) -> None:
    assert_agrees(*onnx_node("GatherND", floats(2, 2, 4, 3), indices(-2, 2, *shape), batch_dims=batch))


REDUCTIONS = ["none", "add", "mul", "min", "max"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_scatter_nd(reduction: str, dtype: type) -> None:
    x: np.ndarray = floats(6, 3).astype(dtype)
    updates: np.ndarray = floats(4, 3, low=1).astype(dtype)
    picks = ints(0, -2, 3, 5)[:, None] if reduction == "none" else ints(0, -2, 0, 4)[:, None]
    steps = 4 if dtype is np.float32 else 0
    assert_agrees(*onnx_node("ScatterND", x, picks, updates, reduction=reduction), steps)
    assert_agrees(*onnx_node("ScatterND", x, ints(1, 2)[None], updates[:1, 0], reduction=reduction), steps)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter_elements(reduction: str, axis: int) -> None:
    x, updates = floats(5, 5), floats(3, 4, low=1)
    picks = np.argsort(indices(0, 100, 3, 4), axis=axis) - 2
    if reduction != "none":
        picks[0] = picks[1]
    assert_agrees(*onnx_node("ScatterElements", x, picks, updates, axis=axis, reduction=reduction), steps=4)


def test_scatter_is_the_old_name() -> None:
    assert_agrees(*onnx_node("Scatter", floats(3, 3), ints(1, 0, 2)[None], floats(1, 3), opset=10))


def test_scatter_add_of_narrow_floats_rounds_once() -> None:
    """bf16 has 8 bits of significand: 1 + 2**-9 rounds to 1, but 1 + 4 * 2**-9 is exact."""
    x, picks = np.ones(1, DType.BF16.numpy), np.zeros((4, 1), np.int64)
    updates = np.full(4, 2.0**-9, DType.BF16.numpy)
    result = computed("scatter_nd", ScatterNdAttrs("add"), x, picks, updates)
    assert float(result[0]) == 1 + 2.0**-7


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress_by_a_constant(axis: int | None) -> None:
    condition = np.array([True, False, True])
    attributes: dict[str, Any] = {"axis": axis} if axis is not None else {}
    assert_agrees(*onnx_node("Compress", floats(3, 4), condition, constant=(1,), **attributes))


@pytest.mark.parametrize(("batch_axis", "time_axis"), [(1, 0), (0, 1)])
def test_reverse_sequence(batch_axis: int, time_axis: int) -> None:
    x = floats(4, 4, 2)
    lengths = ints(1, 4, 2, 3)
    assert_agrees(*onnx_node("ReverseSequence", x, lengths, constant=(1,), batch_axis=batch_axis, time_axis=time_axis))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    assert_agrees(*onnx_node("DepthToSpace", floats(2, 12, 3, 2), blocksize=2, mode=mode))


def test_space_to_depth() -> None:
    assert_agrees(*onnx_node("SpaceToDepth", floats(2, 3, 6, 4), blocksize=2))
