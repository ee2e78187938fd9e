"""Rules about functions, declared types, stored tensors and whole models: each broken, and the nearest legal form."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend.conformance.check import conforming
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.frontend.source import Source
from ppuc.ir.errors import PpucError
from tests.support.onnx_text import model_of

CALL = "g (float[2, 4] x) => (y) { y = local.F(x) }"
AXIS = "g (float[2, 4] x) => (y) { y = local.F<axis = %s>(x) }"
HEAD = '<domain: "local", opset_import: ["" : 17, "local" : 1]>'
FUNCTIONS = [
    ("", CALL, "F (a) => (b) { b = Relu(a) }"),
    ("", CALL, "F (a, low) => (b) { b = Clip(a, low) }"),
    ("", AXIS % "0", "F<axis>(a) => (b) { b = Softmax<axis: int = @axis>(a) }"),
    ("", CALL, "F<axis>(a) => (b) { b = Softmax<axis: int = @axis>(a) }"),
    ("cycle", CALL, "F (a) => (b) { b = Relu(c) c = Relu(b) }"),
    ("levels deep", CALL, "F (a) => (b) { b = local.F(a) }"),
    ("never defined", CALL, "F (a) => (b) { b = Relu(q) }"),
    ("no node defines it", CALL, "F (a) => (b) { q = Relu(a) }"),
    ("never defined", "g (float[2] x) => (y) { y = Relu(x) }", "Unused (a) => (b) { b = Relu(q) }"),
    ("'b' is defined twice", CALL, "F (a) => (b) { b = Relu(a) b = Abs(a) }"),
    ("'a' is defined twice", CALL, "F (a) => (b) { a = Relu(a) b = Abs(a) }"),
    ("two inputs called 'a'", CALL, "F (a, a) => (b) { b = Relu(a) }"),
    ("two outputs called 'b'", CALL, "F (a) => (b, b) { b = Relu(a) }"),
    ("not supported", CALL, "F (a) => (b) { b = NoSuchOp(a) }"),
    ("attribute 'axis' is of the wrong kind", CALL, "F (a) => (b) { b = Softmax<axis = 1.5>(a) }"),
    ("breaks the rules", CALL, "F (a) => (b) { b = Softmax<axis = 9>(a) }"),
    ("breaks the rules", CALL, "F (a) => (b) { b = MatMul(a, a) }"),
    ("unsupported type", CALL, "F (a) => (b) { b = And(a, a) }"),
    ("attribute 'axis' is unknown", AXIS % "0", "F (a) => (b) { b = Relu(a) }"),
    ("attribute 'axis' is of the wrong kind", AXIS % "0.5", "F<axis>(a) => (b) { b = Softmax<axis: int = @axis>(a) }"),
    ("breaks the rules", AXIS % "7", "F<axis>(a) => (b) { b = Softmax<axis: int = @axis>(a) }"),
    ("does not have", CALL, "F (a) => (b) { b = Softmax<axis: int = @axis>(a) }"),
    ("more inputs", "g (float[2] x) => (y) { y = local.F(x, x) }", "F (a) => (b) { b = Relu(a) }"),
    ("more outputs", "g (float[2] x) => (y) { y, z = local.F(x) }", "F (a) => (b) { b = Relu(a) }"),
]


def error_of(model: onnx.ModelProto, read: Callable[[Source], object] = lambda source: source) -> str:
    """Why a model is refused, by `read` at the latest; "" if it is not."""
    try:
        read(conforming(model))
    except PpucError as error:
        return str(error)
    return ""


def agrees(text: str, message: str) -> bool:
    return message in text and bool(text) == bool(message)


@pytest.mark.parametrize(("message", "graph", "function"), FUNCTIONS, ids=[f"{f} {g}" for _, g, f in FUNCTIONS])
def test_functions(message: str, graph: str, function: str) -> None:
    text = error_of(model_of(f"{graph}\n{HEAD}\n{function}"), load_model)
    assert agrees(text, message), text


def test_functions_have_names() -> None:
    model = model_of(f"{CALL}\n{HEAD}\nF (a) => (b) {{ b = Relu(a) }}")
    model.functions.append(model.functions[0])
    model.functions[1].name = ""
    assert "a function of the model: it has no name" in error_of(model)


def typed(kind: str, elements: int) -> onnx.TypeProto:
    """A sequence or optional of tensors."""
    type = onnx.TypeProto()
    getattr(type, kind).elem_type.tensor_type.elem_type = elements
    return type


Change = Callable[[onnx.ModelProto], object]
MODELS: list[tuple[str, Change]] = [
    ("", lambda m: m.metadata_props.add(key="a", value="b")),
    ("", lambda m: m.opset_import.append(m.opset_import[0])),  # as skl2onnx writes
    ("imported twice", lambda m: m.opset_import.append(helper.make_opsetid("", 9))),
    ("two entries 'a'", lambda m: [m.metadata_props.add(key="a", value=v) for v in "bc"]),
    ("", lambda m: m.graph.value_info.append(helper.make_empty_tensor_value_info("t"))),
    ("", lambda m: m.graph.value_info.append(helper.make_tensor_value_info("nobody", 1, [9]))),
    ("element type is unknown", lambda m: m.graph.value_info.append(onnx.ValueInfoProto(name="t", type=tensor_of(99)))),
    ("element type is unknown", lambda m: m.graph.output[0].type.CopyFrom(tensor_of(99))),
    ("element type is unknown", lambda m: m.graph.input[0].type.CopyFrom(tensor_of(99))),
    ("", lambda m: m.graph.input.append(onnx.ValueInfoProto(name="s", type=typed("sequence_type", 1)))),
    ("is unknown", lambda m: m.graph.input.append(onnx.ValueInfoProto(name="s", type=typed("sequence_type", 99)))),
    ("is unknown", lambda m: m.graph.input.append(onnx.ValueInfoProto(name="s", type=typed("optional_type", 0)))),
    ("", lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(ONES, "u"))),
    ("'w': it is stored twice", lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(ONES, "w"))),
    ("'u'", lambda m: m.graph.initializer.append(TensorProto(name="u", data_type=1, dims=[2], raw_data=bytes(7)))),
]  # fmt: skip
ONES = onnx.numpy_helper.to_array(helper.make_tensor("w", 1, [4], [1.0] * 4))


def tensor_of(elements: int) -> onnx.TypeProto:
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=elements))


@pytest.mark.parametrize(("message", "change"), MODELS)
def test_models(message: str, change: Change) -> None:
    model = model_of("g (float[2, 4] x) => (y) { t = Add(x, w) y = Relu(t) }", {"w": ONES})
    change(model)
    text = error_of(model)
    assert agrees(text, message), text


T = TensorProto
TENSORS = [
    ("", T(data_type=T.UINT32, uint64_data=[0, (1 << 32) - 1])),
    ("does not fit element type u32", T(data_type=T.UINT32, uint64_data=[0, 1 << 32])),
    ("", T(data_type=T.BOOL, raw_data=b"\x01\x00")),
    ("does not fit element type bool", T(data_type=T.BOOL, raw_data=b"\x02\x00")),
    ("split into segments", T(data_type=T.FLOAT, raw_data=bytes(8), segment=T.Segment(begin=0, end=2))),
    ("", T(data_type=T.FLOAT16, int32_data=[0, 65535])),
    ("does not fit element type f16", T(data_type=T.FLOAT16, int32_data=[0, 65536])),
    ("do not fit the shape", T(data_type=T.FLOAT16, float_data=[0, 1])),
    ("do not fit the shape", T(data_type=T.UINT64, int64_data=[0, 1])),
    ("do not fit the shape", T(data_type=T.DOUBLE, float_data=[0, 1])),
    ("", T(data_type=T.STRING, string_data=[b"-1.5e3", b"inf"])),
    ("a text is not a number", T(data_type=T.STRING, string_data=[b"1", b"one"])),
]


@pytest.mark.parametrize(("message", "tensor"), TENSORS)
def test_stored_tensors(message: str, tensor: TensorProto) -> None:
    model = model_of("g (float[2] x) => (y) { t = Cast<to = 1>(w) y = Add(x, t) }")
    tensor.name, tensor.dims[:] = "w", [2]
    model.graph.initializer.append(tensor)
    text = error_of(model)
    assert agrees(text, message), text
