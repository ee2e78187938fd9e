"""Names in graphs inside nodes, elements of constants, and nodes that neither the PPU nor the host can compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.driver import compile_model, examine
from ppuc.compiler.frontend.conformance.check import conforming, findings
from ppuc.compiler.frontend.source import read_source
from ppuc.compiler.frontend.tensors import read_tensor
from ppuc.compiler.options import CompileOptions
from ppuc.ir.errors import ModelError
from ppuc.targets.description import load_target

TINY = load_target("ppu-tiny")
NODE = helper.make_node


def model(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[TensorProto] = (), opset: int = 18
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_empty_tensor_value_info("y")],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def branch(*nodes: onnx.NodeProto, initializers: Sequence[TensorProto] = ()) -> onnx.GraphProto:
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    return helper.make_graph(list(nodes), "branch", [], [output], list(initializers))


def with_if(inside: onnx.GraphProto) -> onnx.ModelProto:
    other = branch(NODE("Abs", ["x"], ["e"]))
    nodes = [NODE("Neg", ["x"], ["before"]), NODE("If", ["c"], ["y"], then_branch=inside, else_branch=other)]
    return model(nodes, [numpy_helper.from_array(np.array(True), "c")])


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        (branch(NODE("Relu", ["x"], ["before"]), NODE("Abs", ["before"], ["t"])), "an outer graph defines it too"),
        (branch(NODE("Relu", ["before"], ["x"])), "an outer graph defines it too"),
        (branch(NODE("Relu", ["x"], ["c"]), NODE("Abs", ["c"], ["t"])), "an outer graph defines it too"),
        (branch(NODE("Relu", ["x"], ["t"]), NODE("Abs", ["x"], ["t"])), "it is defined twice in the graph"),
    ],
    ids=["outer node", "outer input", "outer initializer", "branch"],
)
def test_names_are_defined_once(inside: onnx.GraphProto, what: str) -> None:
    made = with_if(inside)
    assert [f.what for f in findings(made)][:1] == [what]
    with pytest.raises(Exception, match="invalid model"):
        onnxruntime.InferenceSession(made.SerializeToString())


def test_branches_may_share_names() -> None:
    made = with_if(branch(NODE("Relu", ["x"], ["e"])))
    assert not findings(made)
    onnxruntime.InferenceSession(made.SerializeToString())


@pytest.mark.parametrize(
    ("type", "numbers", "text"),
    [
        (TensorProto.INT8, [1, 128], "a number does not fit element type i8"),
        (TensorProto.UINT8, [1, -1], "a number does not fit element type u8"),
        (TensorProto.BOOL, [0, 2], "a number does not fit element type bool"),
        (TensorProto.BFLOAT16, [0, 65536], "a number does not fit element type bf16"),
        (TensorProto.UINT4, [1, 1], "the data do not fit the shape"),
        (TensorProto.INT4, [1, 1], "the data do not fit the shape"),
    ],
)
def test_numbers_in_lists_are_of_their_type(type: int, numbers: list[int], text: str) -> None:
    tensor = TensorProto(name="w", data_type=type, dims=[2], int32_data=numbers)
    with pytest.raises(ModelError, match=text):
        read_tensor(tensor, read_source(model([NODE("Relu", ["x"], ["y"])])))


def test_packed_elements_fill_their_bytes() -> None:
    source = read_source(model([NODE("Relu", ["x"], ["y"])]))
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x0f")
    assert read_tensor(tensor, source).array().tolist() == [1, 2, -1]
    with pytest.raises(ModelError, match=r"got: 3 bytes[\s\S]*expected: 2 bytes"):
        read_tensor(TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x0f\x00"), source)


WRONG = [
    (NODE("Gemm", ["x", "w", "c"], ["y"]), {"w": (4, 5), "c": (3,)}),
    (NODE("Conv", ["i", "k", "c"], ["y"]), {"i": (1, 4, 6, 6), "k": (4, 4, 3, 3), "c": (3,)}),
    (NODE("Einsum", ["x"], ["y"], equation="ii->i"), {}),
]


@pytest.mark.parametrize(("node", "shapes"), WRONG, ids=[node.op_type for node, _ in WRONG])
def test_nodes_that_neither_side_can_compute_are_refused(
    node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]
) -> None:
    """ONNX's inference knows nothing of these; the importers do, and the host agrees on samples of the inputs."""
    made = model([node], [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items()])
    assert not findings(made)
    with pytest.raises(ModelError):
        compile_model(made, CompileOptions(TINY))
    examined = examine(made, CompileOptions(TINY))
    assert examined.refused or examined.problems


def test_a_node_that_only_some_data_suit_is_left_to_the_host() -> None:
    """Reshape by sizes that are computed: the samples of the host do not decide about it."""
    made = model([NODE("Cast", ["x"], ["n"], to=TensorProto.INT64), NODE("Trilu", ["x", "k"], ["y"])])
    made.graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, []))
    compile_model(made, CompileOptions(TINY))


@pytest.mark.parametrize(("opset", "count"), [(18, 2), (20, 2), (21, 4)])
def test_group_normalization_of_every_opset(opset: int, count: int) -> None:
    """Scale and bias are per group before opset 21, which schemas call withdrawn."""
    numbers = np.arange(1, count + 1, dtype=np.float32)
    graph = helper.make_graph(
        [NODE("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 3, 3])],
        [numpy_helper.from_array(numbers, "s"), numpy_helper.from_array(numbers * 3, "b")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 3)).astype(np.float32)
    import ppuc

    got = ppuc.compile(made, target="ppu-tiny").run({"x": x}).outputs["y"]
    (want,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_calls_give_attributes_of_their_function_only() -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    body = [NODE("Relu", ["a"], ["b"])]
    made = model([NODE("F", ["x"], ["y"], domain="f", known=1, other=2)])
    made.opset_import.append(opsets[1])
    made.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, opsets, ["known"]))
    assert [(f.what, f.expected) for f in findings(made)] == [("attribute 'other' is unknown", "known")]


@pytest.mark.parametrize("number", [0, 99])
@pytest.mark.parametrize("held", [False, True], ids=["initializer", "attribute"])
def test_element_types_are_known(number: int, held: bool) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.data_type = number
    constant = NODE("Constant", [], ["w"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    made = model([*([constant] if held else []), NODE("Add", ["x", "w"], ["y"])], [] if held else [tensor])
    assert ("tensor 'w'", "its element type is unknown", f"type number {number}") in [
        (f.place, f.what, f.got) for f in findings(made)
    ]


@pytest.mark.parametrize(
    ("op_type", "opset", "refused"), [("Softmax", 11, True), ("Softmax", 13, False), ("Sin", 7, False)]
)
def test_ops_of_functions_are_those_of_the_models_opset(op_type: str, opset: int, refused: bool) -> None:
    """Softmax has been another op since opset 13, Sin the same since 7."""
    made = model([NODE("F", ["x"], ["y"], domain="f")])
    made.opset_import.append(helper.make_opsetid("f", 1))
    body = [NODE(op_type, ["a"], ["b"])]
    made.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, [helper.make_opsetid("", opset)]))
    expected = [("function 'F'", f"{op_type} is another op in the model's opset")] if refused else []
    assert [(f.place, f.what) for f in findings(made)] == expected


def test_declared_shapes_of_constants_yield_to_their_tensors() -> None:
    """onnxruntime-genai declares the result of every Constant node as a scalar."""
    shape = helper.make_tensor("t", TensorProto.INT64, [2], [4, 2])
    made = model([NODE("Constant", [], ["s"], value=shape), NODE("Reshape", ["x", "s"], ["y"])])
    made.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.INT64, []))
    assert not findings(made)
    made.graph.value_info[0].CopyFrom(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    assert [f.what for f in findings(made)] == ["breaks the rules of its op"]


X_TO_Y = (NODE("Neg", ["b"], ["y"], name="last"), NODE("Abs", ["a"], ["b"]), NODE("Relu", ["x"], ["a"]))


def test_nodes_stand_in_topological_order() -> None:
    made = model(X_TO_Y)
    (found,) = findings(made)
    assert (found.place, found.what) == ("node 'last' (Neg)", "it reads 'b', which a later node defines")
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]))
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(made)
    assert found.mend is not None
    found.mend()
    assert not findings(made)
    assert [n.op_type for n in made.graph.node] == ["Relu", "Abs", "Neg"]


def test_so_do_those_of_branches_and_functions() -> None:
    inside = branch(NODE("Abs", ["a"], ["t"]), NODE("Relu", ["x"], ["a"]))
    inside.output[0].name = "t"
    assert [f.place for f in findings(with_if(inside))][:1] == ["node 'If_1/Abs_0' (Abs)"]
    made = model([NODE("F", ["x"], ["y"], domain="f")])
    opset = helper.make_opsetid("f", 1)
    made.opset_import.append(opset)
    made.functions.append(helper.make_function("f", "F", ["x"], ["y"], list(X_TO_Y), [helper.make_opsetid("", 18)]))
    assert [f.place for f in findings(made)] == ["node 'F/last' (Neg)"]


def test_cycles_are_named_as_such() -> None:
    made = model([NODE("Add", ["x", "b"], ["a"]), NODE("Relu", ["a"], ["b"]), NODE("Neg", ["b"], ["y"])])
    assert not findings(made)
    with pytest.raises(ModelError, match="the graph has a cycle"):
        conforming(made)


def test_lenient_fixes_more_than_it_reports() -> None:
    nodes = [NODE("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"], odd=1) for i in range(30)]
    made = model([*nodes, NODE("Neg", ["t30"], ["y"])])
    said: list[str] = []
    conforming(made, lenient=True, warn=said.append)
    assert len(said) == 20
    assert not findings(made)
