"""TensorScatter: rows of a cache written at each sample's own place, on the PPU."""

from __future__ import annotations

import numpy as np
import onnx.reference
import pytest
from onnx import TensorProto, helper

import ppuc
from ppuc.ir.errors import ModelError


def model(shape: list[int], rows: int, axis: int, mode: str, placed: bool) -> onnx.ModelProto:
    update = [rows if i == axis % len(shape) else n for i, n in enumerate(shape)]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("past", shape), ("new", update))]
    names = ["past", "new"]
    if placed:
        inputs.append(helper.make_tensor_value_info("at", TensorProto.INT64, [shape[0]]))
        names.append("at")
    node = helper.make_node("TensorScatter", names, ["present"], axis=axis, mode=mode)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("present", TensorProto.FLOAT, shape)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, 2, -1])
def test_agrees_with_the_reference(mode: str, axis: int) -> None:
    shape, rows = [3, 5, 7, 4], 3
    source = model(shape, rows, axis, mode, placed=True)
    rng = np.random.default_rng(1)
    length = shape[axis]
    feeds = {
        "past": rng.standard_normal(shape).astype(np.float32),
        "new": rng.standard_normal([rows if i == axis % 4 else n for i, n in enumerate(shape)]).astype(np.float32),
        "at": rng.integers(0, length - rows + 1 if mode == "linear" else length, 3),
    }
    program = ppuc.compile(source, "ppu-tiny")
    assert program.plan is None
    (want,) = onnx.reference.ReferenceEvaluator(source).run(None, feeds)
    np.testing.assert_array_equal(program.run(feeds).outputs["present"], want)


def test_without_places_it_writes_at_the_beginning() -> None:
    program = ppuc.compile(model([2, 6, 4], 2, 1, "linear", placed=False), "ppu-tiny")
    past, new = np.zeros((2, 6, 4), np.float32), np.ones((2, 2, 4), np.float32)
    got = program.run({"past": past, "new": new}).outputs["present"]
    np.testing.assert_array_equal(got, np.concatenate([new, past[:, 2:]], 1))


def test_more_rows_than_the_cache_has() -> None:
    with pytest.raises(ModelError, match="the update does not fit the cache"):
        ppuc.compile(model([2, 6, 4], 7, 1, "circular", placed=False), "ppu-tiny", host=False)
