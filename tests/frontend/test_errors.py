"""What the frontend says about models and options that are wrong: the whole text, as the user reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.frontend.offload.load_hosted import load_hosted
from ppuc.compiler.frontend.source import NEWEST_OPSET
from ppuc.ir.errors import ModelError, PpucError
from tests.frontend.error_texts import RELU, lines, text_of
from tests.support.against_onnxruntime import floats, onnx_node
from tests.support.onnx_text import model_of


def test_all_unsupported_ops_at_once() -> None:
    """Those behind other unsupported ops, inside functions, and with sizes still open included."""
    text = """
    g (float[N] x) => (y) {
      a = acme.Foo(x) b = acme.Foo(a) c = NoSuch(b) flag = ReduceMax <keepdims = 0> (c) many = Cast <to = 9> (flag)
      d = local.helper(c)
      y = If (many) <then_branch = t () => (e) { e = Relu(d) }, else_branch = f () => (h) { h = Abs(d) }>
    }
    <opset_import: ["" : 17], domain: "local"> helper (a) => (b) { b = Loopy(a) }"""
    model = model_of(text)
    model.graph.node[0].name = "first"
    expected = [
        "g: op acme.Foo is not supported",
        "  got: 2 nodes: 'first', 'Foo_1'",
        "g: op NoSuch is not supported",
        "  got: 1 node: 'NoSuch_2'",
        "g: op Loopy is not supported",
        "  got: 1 node: 'helper_5/Loopy_0'",
    ]
    assert text_of(ModelError, model).split("\n") == expected
    assert text_of(ModelError, model, dims={"N": 2}).split("\n") == expected


def test_control_flow_is_listed_as_unsupported() -> None:
    text = """
    g (float[2] x, bool c) => (a, y) {
      a = If (c) <then_branch = t () => (e) { e = Relu(x) }, else_branch = f () => (h) { h = Abs(x) }>
      y = Loop (, c, x) <body = l (int64 i, bool k, float[2] v) => (k, w) { w = Relu(v) }>
    }"""
    assert text_of(ModelError, model_of(text)).split("\n") == [
        "g: op If with a condition computed at run time is not supported",
        "  got: 1 node: 'If_0'",
        "g: op Loop (its condition is computed at run time) is not supported",
        "  got: 1 node: 'Loop_1'",
    ]


def test_a_missing_branch() -> None:
    model = model_of(
        "g (float[2] x) => (y) { y = If (c) <then_branch = t () => (e) { e = Relu(x) }> }", {"c": np.array(False)}
    )
    assert text_of(ModelError, model) == "g: node 'If_0' (If): 'else_branch' is missing"


def test_many_nodes_of_an_unsupported_op_are_counted() -> None:
    calls = "".join(f"y{i + 1} = Foo(y{i}) " for i in range(10))
    model = model_of(f"g (float[2] y0) => (y10) {{ {calls} }}")
    assert text_of(ModelError, model) == lines(
        "g: op Foo is not supported",
        "got: 10 nodes: 'Foo_0', 'Foo_1', 'Foo_2', 'Foo_3', 'Foo_4', 'Foo_5', 'Foo_6', 'Foo_7' and 2 more",
    )


def test_undefined_input() -> None:
    assert text_of(ModelError, model_of("g (float[2] image) => (y) { y = Relu(imag) }")) == lines(
        "g: node 'Relu_0' (Relu): input 'imag' is never defined", "hint: did the exporter mean 'image'?"
    )


def test_undefined_output() -> None:
    assert text_of(ModelError, model_of("g (float[2] x) => (z) { y = Relu(x) }")) == "g: output 'z': no node defines it"


def test_duplicate_definitions() -> None:
    assert text_of(ModelError, model_of("g (float[2] x) => (y) { y = Relu(x) y = Neg(x) }")) == lines(
        "g: node 'Neg_1' (Neg): 'y' is defined twice", "got: also by node 'Relu_0'"
    )
    assert text_of(ModelError, model_of("g (float[2] x) => (x) { x = Relu(x) }")) == lines(
        "g: node 'Relu_0' (Relu): 'x' is defined twice", "got: also by an input or initializer"
    )
    model = model_of("g (float[2] x) => (y) { y = Add(x, w) }", {"w": floats(2)})
    model.graph.initializer.append(model.graph.initializer[0])
    assert text_of(ModelError, model) == "g: tensor 'w': the name is taken by an input or another initializer"


def test_cycle() -> None:
    model = model_of("g (float[2] x) => (d) { d = Neg(c) b = Add(x, c) a = Relu(b) c = Abs(a) }")
    assert text_of(ModelError, model) == lines("g: the graph has a cycle", "got: Add_1 -> Relu_2 -> Abs_3 -> Add_1")


def test_recursive_functions() -> None:
    model = model_of(
        "g (float[2] x) => (y) { y = local.f(x) } "
        '<opset_import: ["" : 17, "local" : 1], domain: "local"> f (a) => (b) { b = local.f(a) }'
    )
    text = text_of(ModelError, model)
    assert text.startswith("g: node 'f_0/f_0/")
    assert text.endswith("(f): functions call each other more than 64 levels deep")


def add_sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2]))


def make_sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(model.graph.input[0].type))


def make_optional(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.CopyFrom(helper.make_optional_type_proto(model.graph.input[0].type))


def make_string(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def make_complex(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1j], np.complex64), "w"))
    model.graph.node[0].input[0] = "w"


def make_strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(["a"], object), "w"))
    model.graph.node[0].input[0] = "w"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (add_sparse, ["g: tensor 's': sparse tensors are not supported"]),
        (make_sequence, ["g: input 'x': its type is sequence", "expected: a dense tensor"]),
        (make_optional, ["g: input 'x': its type is optional", "expected: a dense tensor"]),
        (make_string, ["g: input 'x': element type string is not supported"]),
        (make_complex, ["g: tensor 'w': element type complex64 is not supported"]),
        (make_strings, ["g: tensor 'w': element type string is not supported"]),
    ],
)
def test_types_that_are_not_dense_numbers(change: Callable[[onnx.ModelProto], None], expected: Sequence[str]) -> None:
    model = model_of(RELU)
    change(model)
    assert text_of(ModelError, model) == lines(*expected)


def test_opsets() -> None:
    model = model_of(RELU)
    model.opset_import[0].version = NEWEST_OPSET + 1
    assert text_of(ModelError, model) == lines(
        "g: the opset is newer than this version knows",
        f"got: {NEWEST_OPSET + 1}",
        f"expected: at most {NEWEST_OPSET}",
        "hint: update the onnx package, or export the model with an older opset",
    )
    del model.opset_import[:]
    assert text_of(ModelError, model) == "g: the model does not say which opset it uses"


def test_operands_that_do_not_fit() -> None:
    model = model_of("g (float[2, 3] x, float[4] b) => (y) { y = Add(x, b) }")
    model.graph.node[0].name = "bias"
    assert text_of(ModelError, model) == "g: node 'bias' (Add): shapes [2, 3] and [4] do not broadcast"


def test_an_output_that_no_importer_gives_matters_only_when_it_is_read() -> None:
    text = "g (float[2, 3] x) => ({}) {{ a, extra = Relu(x) b = Neg(extra) }}"
    load_model(model_of(text.format("a")))
    assert text_of(ModelError, model_of(text.format("b"))) == (
        "g: node 'Relu_0' (Relu): output 1 ('extra') is not supported"
    )


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "expected"),
    [
        ("Reshape", (floats(2, 3), np.array([4, -1])), {}, ["cannot reshape f32[2, 3] to [4, -1]"]),
        (
            "Reshape",
            (floats(2), np.array([2, 0])),
            {},
            ["a 0 in the new shape copies a dimension that the input lacks", "got: [2, 0]", "expected: f32[2]"],
        ),
        (
            "Squeeze",
            (floats(2, 3), np.array([0])),
            {},
            ["cannot squeeze dimension 0", "got: f32[2, 3]", "expected: size 1"],
        ),
        (
            "Unsqueeze",
            (floats(2), np.array([3])),
            {},
            ["an axis is out of range", "got: 3", "expected: between -2 and 1"],
        ),
        ("Unsqueeze", (floats(2), np.array([0, 0])), {}, ["an axis is named twice", "got: [0, 0]"]),
        (
            "DepthToSpace",
            (floats(1, 6, 2, 2),),
            {"blocksize": 2},
            ["channels do not divide by blocksize * blocksize", "got: f32[1, 6, 2, 2]", "expected: 4"],
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_nodes_that_make_no_sense(
    op_type: str, inputs: tuple[np.ndarray, ...], attributes: dict[str, Any], expected: list[str]
) -> None:
    model, _ = onnx_node(op_type, *inputs, constant=tuple(range(1, len(inputs))), **attributes)
    expected = [f"one: node 'node' ({op_type}): {expected[0]}", *expected[1:]]
    assert text_of(ModelError, model) == lines(*expected)


def test_a_shape_that_depends_on_data() -> None:
    assert text_of(ModelError, onnx_node("Reshape", floats(2, 3), np.array([3, 2]))[0]) == lines(
        "one: node 'node' (Reshape): the new shape depends on the model's inputs",
        "got: %x1 computed at run time",
        "expected: a value known at compile time",
        "hint: bind dynamic dimensions with --dim, or export the model with fixed shapes",
    )


# What an error is about, apart from its text.


def entities_of(source: object, **options: object) -> list[str]:
    with pytest.raises(PpucError) as raised:
        load_model(source, **options)  # type: ignore[arg-type]
    return [f"{e.kind} {e.name}" for d in raised.value.diagnostics for e in d.entities]


def test_errors_name_all_nodes_that_they_are_about() -> None:
    """The text stops after eight."""
    nodes = "".join(f"y{i} = com.example.Twist(x) " for i in range(12))
    model = model_of(f"g (float[2] x) => (float[2] y) {{ {nodes} y = Sum({', '.join(f'y{i}' for i in range(12))}) }}")
    assert "and 4 more" in text_of(ModelError, model)
    assert entities_of(model) == ["op com.example.Twist", *(f"node Twist_{i}" for i in range(12))]


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("g (float[2] x) => (float[2] y) { y = Neg(z) }", ["node Neg_0", "tensor z"]),
        ("g (float[2] x) => (float[2] y) { z = Neg(x) }", ["output y"]),
        ("g (float[2] x) => (float[2] y) { a = Neg(y) y = Neg(a) }", ["node Neg_0", "node Neg_1"]),
        ("g (float[2] x) => (float[2] y) { y = Relu<slope = 1.5>(x) }", ["node Relu_0", "attribute slope"]),
        ("g (float[2] x) => (float[2] y) { y = Softmax<axis = 5>(x) }", ["node Softmax_0"]),
        ("g (float[2] x, int64[1] n) => (float[1, 2] y) { y = Unsqueeze(x, n) }", ["node Unsqueeze_0", "tensor n"]),
        ("g (float[2, N] x) => (float[2, N] y) { y = Neg(x) }", ["input x", "dimension N"]),
        ("g (string[2] x) => (string[2] y) { y = Identity(x) }", ["input x", "type string"]),
    ],
)
def test_errors_say_what_they_are_about(text: str, entities: list[str]) -> None:
    assert entities_of(model_of(text)) == entities


def test_wrong_sizes_name_dimension_and_input() -> None:
    model = model_of("g (float[2, N] x) => (float[2, N] y) { y = Neg(x) }")
    assert entities_of(model, dims={"M": 3}) == ["dimension M"]
    assert entities_of(model, shapes={"z": (2, 3)}) == ["input z"]
    assert entities_of(model, shapes={"x": (3, 3)}) == ["input x"]


def test_functions_that_expand_without_end() -> None:
    functions = "".join(
        f'<opset_import: ["" : 17, "local" : 1], domain: "local"> '
        f"f{i} (a) => (c) {{ b = local.f{i + 1}(a) c = local.f{i + 1}(b) }}\n"
        for i in range(40)
    )
    last = '<opset_import: ["" : 17], domain: "local"> f40 (a) => (c) { c = Neg(a) }'
    model = model_of(f"g (float[2] x) => (float[2] y) {{ y = local.f0(x) }}\n{functions}{last}")
    assert text_of(ModelError, model) == "g: its functions expand to more than 50000 nodes"


def test_inputs_declared_twice_and_of_no_type() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.input.append(model.graph.input[0])
    assert text_of(ModelError, model) == "g: input 'x': it is declared twice"
    del model.graph.input[1]
    model.graph.input[0].type.tensor_type.elem_type = 99
    for importing in (load_model, load_hosted):
        with pytest.raises(ModelError, match="element type number 99 is not supported"):
            importing(model)


def test_ranges_and_loops_without_end_are_not_computed() -> None:
    ends = {"zero": np.array(0, np.int64), "far": np.array(10**11, np.int64), "one": np.array(1, np.int64)}
    with pytest.raises(ModelError, match="the range is too long to be a constant"):
        load_model(model_of("g (float[2] x) => (y) { y = Range(zero, far, one) }", ends))
