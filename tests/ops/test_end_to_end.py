"""Models of one node through the whole compiler and the simulator, against ONNX Runtime, on the smallest machine.

One case for each way in which an op reaches kernels; what the op means is tested beside its record."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from ppuc.compiler.entry import compile, verify
from ppuc.compiler.frontend.load import load_model
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.text import parse_graph, print_graph
from tests.ops.test_attention import ai_onnx, grouped, tensors
from tests.ops.test_quantized import integers
from tests.ops.test_recurrent import case as recurrent
from tests.ops.test_recurrent import inputs as recurrent_inputs
from tests.ops.test_sampling import IMAGES, ROIS
from tests.support.against_onnxruntime import floats, onnx_node

Case = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def with_lengths(op: str, directions: int) -> list[Any]:
    given = recurrent_inputs(op, directions)
    given[4] = np.array([5, 2, 1], np.int32)
    return given


def microsoft(op: str, *inputs: Any, **attributes: Any) -> Case:
    return onnx_node(op, *inputs, domain="com.microsoft", **attributes)


def qlinear_conv() -> Case:
    given = [integers(np.uint8, 1, 4, 9, 7), np.float32(0.021), np.uint8(119), integers(np.int8, 8, 4, 3, 3)]
    given += [np.float32(0.0043), np.int8(0), np.float32(0.31), np.uint8(133), integers(np.int16, 8).astype(np.int32)]
    return onnx_node("QLinearConv", *given, constant=tuple(range(1, 9)), opset=10, pads=[1, 1, 1, 1])


def top_k(x: np.ndarray, k: int, **attributes: int) -> Case:
    return onnx_node("TopK", x, np.array([k]), constant=(1,), outputs=2, **attributes)


def grid_sample(mode: str, padding: str) -> Case:
    given = (floats(2, 3, 5, 7), floats(2, 4, 6, 2, low=-2.6, high=2.6))
    return onnx_node("GridSample", *given, opset=20, ir_version=10, mode=mode, padding_mode=padding)


def deform_conv() -> Case:
    given = [floats(2, 4, 6, 5), floats(6, 2, 3, 2), floats(2, 24, 4, 3), floats(6), floats(2, 12, 4, 3, low=0, high=1)]
    window = {"pads": [1, 0, 1, 1], "strides": [1, 2], "dilations": [2, 1], "group": 2, "offset_group": 2}
    return onnx_node("DeformConv", *given, opset=19, ir_version=9, **window)


WINDOW = {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 1]}
CASES: dict[str, Case] = {
    "topk by ranks": top_k(floats(3, 50), 5),
    "topk of integers": top_k(integers(np.int64, 20, 4) % 9, 7, axis=0, largest=0),
    "topk of blocks": top_k(floats(1, 5000), 40),
    "topk by search": top_k(floats(1, 5000), 3),
    "lstm": recurrent("LSTM", with_lengths("LSTM", 2), direction="bidirectional"),
    "gru": recurrent("GRU", recurrent_inputs("GRU", 1), direction="reverse", linear_before_reset=1, clip=0.5),
    "rnn": recurrent("RNN", recurrent_inputs("RNN", 1), activations=["Softplus"]),
    "grid_sample linear": grid_sample("linear", "zeros"),
    "grid_sample nearest": grid_sample("nearest", "border"),
    "grid_sample cubic": grid_sample("cubic", "reflection"),
    "roi_align": onnx_node("RoiAlign", floats(2, 3, 8, 11), ROIS, IMAGES, opset=16, sampling_ratio=2, output_width=2),
    "max_roi_pool": onnx_node("MaxRoiPool", floats(1, 3, 8, 11), np.insert(ROIS, 0, 0, 1), pooled_shape=[3, 2]),
    "deform_conv": deform_conv(),
    "max pool indices": onnx_node("MaxPool", floats(2, 3, 7, 8), opset=12, outputs=2, **WINDOW),
    "max unpool": onnx_node("MaxUnpool", floats(1, 1, 3, 4), np.arange(12).reshape(1, 1, 3, 4) * 2, opset=11,
                            kernel_shape=[2, 2], strides=[2, 2]),
    "col2im": onnx_node("Col2Im", floats(2, 12, 20), np.array([5, 6]), np.array([2, 2]), constant=(1, 2), opset=18),
    "quantize": onnx_node("QuantizeLinear", floats(30, 40), np.float32(0.03), np.int8(3), opset=13),
    "dequantize blocks": onnx_node("DequantizeLinear", integers(np.uint16, 8, 3), floats(4, 3), opset=21, ir_version=10,
                                   axis=0, block_size=2),
    "dynamic quantize": onnx_node("DynamicQuantizeLinear", floats(40, 7), opset=11, outputs=3),
    "matmul integer": onnx_node("MatMulInteger", integers(np.uint8, 4, 40), integers(np.int8, 40, 6), np.uint8(117),
                                integers(np.int8, 6), opset=10),
    "conv integer": onnx_node("ConvInteger", integers(np.uint8, 2, 4, 6, 5), integers(np.uint8, 6, 2, 3, 2),
                              np.uint8(113), np.uint8(7), opset=10, pads=[1, 2, 0, 1], strides=[2, 1], group=2),
    "qlinear conv": qlinear_conv(),
    "matmul of 4 bits": microsoft("MatMulNBits", floats(2, 3, 64), integers(np.uint8, 6, 2, 16), floats(12) / 100,
                                  constant=(1, 2), N=6, K=64, bits=4, block_size=32),
    "causal attention": ai_onnx(*tensors(), is_causal=1),
    "attention with softcap": ai_onnx(*tensors(keys=7), floats(5, 7), softcap=3.0),
    "grouped attention": grouped(1, 6, 7, [6, 6], do_rotary=1),
    "dft": onnx_node("DFT", floats(2, 64, 1), opset=17, axis=1),
    "stft": onnx_node("STFT", floats(2, 50, 1), np.array(5), np.hanning(16).astype(np.float32), np.array(16),
                      constant=(1, 2, 3), opset=17),
    "det": onnx_node("Det", floats(4, 3, 3), opset=11),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reads_back_what_it_prints(name: str) -> None:
    graph = load_model(CASES[name][0]).graph
    constants = {op.attrs.value.key: op.attrs.value for op in graph.ops if isinstance(op.attrs, ConstAttrs)}
    assert parse_graph(print_graph(graph), constants) == graph


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name: str) -> None:
    model, feeds = CASES[name]
    verification = verify(compile(model, target="ppu-tiny"), feeds)
    assert verification.ok, verification.record()


@pytest.mark.parametrize("count", [70, 30_000])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_finds_nan_and_ties_in_tiles_and_in_chunks(op_type: str, last: int, count: int) -> None:
    """As numpy does; ONNX Runtime overlooks some NaN."""
    x = np.random.default_rng(0).standard_normal((3, count)).astype(np.float32)
    x[0, [count // 3, count - 5]] = np.nan
    x[1, [7, count - 20]] = 9 if op_type == "ArgMax" else -9
    model, feeds = onnx_node(op_type, x, axis=1, keepdims=0, select_last_index=last)
    (got,) = compile(model, target="ppu-tiny").run(feeds).outputs.values()
    find = np.argmax if op_type == "ArgMax" else np.argmin
    want = count - 1 - find(x[:, ::-1], 1) if last else find(x, 1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("op_type", ["ArgMax", "CumSum"])
def test_positions_along_an_axis_of_one_element_may_be_turned(op_type: str) -> None:
    """Nothing but zeros is left to transpose."""
    x = floats(7, 3, 1)
    first = helper.make_node(op_type, ["x", *(["axis"] if op_type == "CumSum" else [])], ["p"])
    first.attribute.append(helper.make_attribute(*(("exclusive", 1) if op_type == "CumSum" else ("axis", 2))))
    rest = [
        helper.make_node("Transpose", ["p"], ["t"], perm=[1, 2, 0]),
        helper.make_node("Cast", ["t"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    infos = [helper.make_tensor_value_info("x", 1, x.shape), helper.make_empty_tensor_value_info("y")]
    axis = onnx.numpy_helper.from_array(np.array(2), "axis")
    graph = helper.make_graph([first, *rest], "g", infos[:1], infos[1:], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = compile(model, target="ppu-tiny").run({"x": x}).outputs.values()
    np.testing.assert_array_equal(y, np.zeros((3, 1, 7), np.float32))


def test_groups_that_would_wait_for_each_other_are_taken_apart() -> None:
    """Single samples of both axes: what both coordinates become is used in both kernels of indices."""
    rois = np.array([[2.2, 0.1, 4.8, 3.0], [1.3, 6.5, 5.4, 8.1]], np.float32)
    size = {"output_height": 1, "output_width": 1, "sampling_ratio": 1, "spatial_scale": 0.5}
    model, feeds = onnx_node(
        "RoiAlign", floats(2, 1, 3, 9), rois, np.array([0, 1]), constant=(2,), opset=16, mode="max", **size
    )
    assert verify(compile(model, target="ppu-tiny"), feeds).ok
