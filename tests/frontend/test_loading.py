"""Loading models: files and weights, binding of dimensions, order of nodes, functions, branches, names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.frontend import registry
from ppuc.compiler.frontend.enter import Sizes, enter
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.inlining import Site, Tensor
from ppuc.compiler.frontend.load import ImportedModel, load_model
from ppuc.compiler.frontend.offload.host_ops import WHY_HOST
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.policy import Refusal, Strict
from ppuc.compiler.frontend.registry import IMPORTERS, register_importers
from ppuc.compiler.frontend.source import read_source
from ppuc.compiler.frontend.wire import LARGE_BYTES, WireError, split
from ppuc.ir.interpret import run_graph
from ppuc.ir.types import parse_type
from tests.support.against_onnxruntime import F32_STEP, floats
from tests.support.onnx_text import model_of

MLP = "mlp (float[N, 64] x) => (float[N, 32] y) { h = MatMul(x, w) z = Add(h, b) y = Relu(z) }"
WEIGHTS = {"w": floats(64, 32), "b": floats(32)}


def op_names(model: ImportedModel) -> list[str]:
    return [op.name for op in model.graph.ops if op.name != "const"]


def run(model: ImportedModel, **feeds: np.ndarray) -> list[np.ndarray]:
    results = run_graph(model.graph, {value.name: feeds[name] for name, value in model.inputs})
    return [results[value.name] for _, value in model.outputs]


def by_onnxruntime(model: onnx.ModelProto | Path, **feeds: np.ndarray) -> list[np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    results: list[np.ndarray] = onnxruntime.InferenceSession(source).run(None, feeds)
    return results


def weight(model: ImportedModel, name: str) -> np.ndarray:
    return model.graph.constants()[name].array()


def test_a_file_keeps_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(model_of(MLP, WEIGHTS), path)
    model = load_model(path, {"N": 2})
    assert model.path == path
    assert (model.name, model.opset, model.dims) == ("mlp", 17, {"N": 2})
    np.testing.assert_array_equal(weight(model, "w"), WEIGHTS["w"])
    assert not weight(model, "w").flags.writeable
    assert model.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    x = floats(2, 64)
    (got,), (expected,) = run(model, x=x), by_onnxruntime(path, x=x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=64 * 16 * F32_STEP)


def test_large_weights_are_not_read_while_loading(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(model_of(MLP, WEIGHTS), path)
    model = load_model(path, {"N": 2})
    data = bytearray(path.read_bytes())
    at = data.index(WEIGHTS["w"].tobytes())
    data[at : at + 4] = np.float32(123).tobytes()
    path.write_bytes(data)
    assert weight(model, "w")[0, 0] == 123


def test_the_skeleton_lacks_only_large_bytes() -> None:
    weights = WEIGHTS | {"unused": floats(1000), "ints": np.arange(3)}
    model = model_of(MLP, weights)
    data = model.SerializeToString()
    skeleton, ranges = split(memoryview(data))
    assert set(ranges) == {name for name, w in weights.items() if w.nbytes >= LARGE_BYTES}
    restored = onnx.ModelProto.FromString(skeleton)
    for tensor in restored.graph.initializer:
        if tensor.name in ranges:
            offset, length = ranges[tensor.name]
            assert not tensor.HasField("raw_data")
            tensor.raw_data = data[offset : offset + length]
    assert restored == model


def test_every_truncation_is_noticed_or_still_a_model() -> None:
    """A cut on the border of two fields leaves valid protobuf; anywhere else it must not pass."""
    data = model_of(MLP, {"w": floats(64, 32), "b": floats(32)}).SerializeToString()
    accepted, truncated = [], 0
    for length in range(len(data)):
        try:
            split(memoryview(data[:length]))
            accepted.append(length)
        except WireError as error:
            truncated += error.truncated
    assert len(accepted) < 10
    assert len(accepted) + truncated == len(data)
    assert all(onnx.ModelProto.FromString(data[:length]) is not None for length in accepted)


def test_external_data_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(model_of(MLP, WEIGHTS), path, save_as_external_data=True, location="mlp.data", size_threshold=0)
    model = load_model(path, {"N": 3})
    constants = model.graph.constants()
    assert all(r.file is not None and r.file.path == (tmp_path / "mlp.data").resolve() for r in constants.values())
    np.testing.assert_array_equal(weight(model, "w"), WEIGHTS["w"])
    np.testing.assert_array_equal(weight(model, "b"), WEIGHTS["b"])
    with pytest.raises(ValueError, match="read-only"):
        weight(model, "w")[0, 0] = 1


@pytest.mark.parametrize(
    "dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.BOOL]
)
@pytest.mark.parametrize("raw", [False, True])
def test_dtypes_of_weights(dtype: int, raw: bool) -> None:
    model = model_of("g () => (float[2] y) { y = Identity(w) }")
    tensor = helper.make_tensor("w", dtype, [2], [1.0, 0.0])
    if raw:
        tensor = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), "w")
    model.graph.initializer.append(tensor)
    (result,) = run(load_model(model))
    np.testing.assert_array_equal(result.astype(np.float32), [1, 0])
    assert result.dtype == onnx.numpy_helper.to_array(tensor).dtype


def test_names_are_made_printable_and_kept() -> None:
    model = model_of('g (float[1] "in:0/a") => (float[1] "out:0") { "out:0" = Relu("in:0/a") }')
    model.graph.name = "a b"
    imported = load_model(model)
    assert [(name, value.name) for name, value in imported.inputs] == [("in:0/a", "in_0_a")]
    assert [(name, value.name) for name, value in imported.outputs] == [("out:0", "out_0")]
    assert imported.graph.name == "a_b"


def test_loc_is_the_node_name_or_type_and_index() -> None:
    model = model_of("g (float[1] x) => (float[1] y) { a = Relu(x) y = Gelu(a) }", opset=20)
    model.graph.node[1].name = "my/gelu"
    imported = load_model(model)
    assert {op.loc for op in imported.graph.ops if op.name == "relu"} == {("Relu_0",)}
    assert {op.loc for op in imported.graph.ops if op.name != "relu"} == {("my/gelu",)}


def test_dead_and_unsorted_nodes() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Neg(b) b = Abs(a) dead = NoSuchOp(x) a = Relu(x) }"
    model = load_model(model_of(text))
    assert op_names(model) == ["relu", "abs", "neg"]
    np.testing.assert_array_equal(run(model, x=np.array([-1, 2], np.float32))[0], [0, -2])


def test_a_sorted_order_is_kept() -> None:
    nodes = model_of("g (float[2] x) => (y) { b = Neg(x) a = Abs(x) y = Add(a, b) }").graph.node
    assert [label for label, _ in ordered(nodes, {"x"}, ["y"], "g")] == ["Neg_0", "Abs_1", "Add_2"]


def test_initializers_that_are_also_inputs_are_constants() -> None:
    model = load_model(model_of("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", {"w": floats(2)}))
    assert [name for name, _ in model.inputs] == ["x"]


def test_outputs_may_be_inputs_constants_and_the_same_twice() -> None:
    model = load_model(model_of("g (float[2] x) => (x, w, y, z) { y = Relu(x) z = Identity(y) }", {"w": floats(2)}))
    x, w, y, z = run(model, x=np.array([-1, 1], np.float32))
    assert (x.tolist(), y.tolist(), z.tolist()) == ([-1, 1], [0, 1], [0, 1])
    np.testing.assert_array_equal(w, floats(2))


@pytest.mark.parametrize(
    ("dims", "shapes"),
    [
        ({"N": 2, "M": 3, "z:1": 4}, {}),
        ({"x:0": 2, "x:1": 3, "z": 4}, {}),
        ({}, {"x": (2, 3), "z": (2, 4)}),
        ({"M": 3}, {"z": (2, 4)}),
    ],
)
def test_ways_to_bind_dimensions(dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    model = model_of("g (float[N, M] x, float[N, K] z) => (a, b) { a = Relu(x) b = Neg(z) }")
    model.graph.input[1].type.tensor_type.shape.dim[1].Clear()
    imported = load_model(model, dims, shapes)
    assert [str(value.type) for _, value in imported.inputs] == ["f32[2, 3]", "f32[2, 4]"]
    assert imported.dims == {"N": 2, "M": 3}


def test_expressions_of_bound_symbols_are_computed() -> None:
    model = model_of("g (float[past] x, float[n] z) => (a, b) { a = Relu(x) b = Neg(z) }")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "2*past + 1"
    assert load_model(model, {"past": 4}).inputs[1][1].type == parse_type("f32[9]")
    assert load_model(model, {"past": 4, "2*past + 1": 5}).inputs[1][1].type == parse_type("f32[5]")


def test_an_input_without_rank_takes_what_it_is_given() -> None:
    model = model_of("g (float[1] x) => (y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert load_model(model, shapes={"x": [2, 3]}).inputs[0][1].type == parse_type("f32[2, 3]")
    assert load_model(model, {"x:0": 2, "x:1": 3}).inputs[0][1].type == parse_type("f32[2, 3]")


def test_wrong_declarations_of_outputs_are_ignored() -> None:
    model = load_model(model_of("g (float[2, 3] x) => (float[7] y) { y = Relu(x) }"))
    assert model.outputs[0][1].type == parse_type("f32[2, 3]")


FUNCTION = """
g (float[2] x) => (float[2] y) {{ y = local.outer <alpha = 0.5> (x) }}
<opset_import: ["" : 17, "local" : 1], domain: "local"> outer <alpha> (a, absent) => (b) {{ b = {body} }}
<opset_import: ["" : 17], domain: "local"> leaky <slope: float = 0.25> (a) => (b) {{
  b = LeakyRelu <alpha: float = @slope> (a)
}}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("LeakyRelu <alpha: float = @alpha> (a)", -0.5),
        ("local.leaky <slope: float = @alpha> (a)", -0.5),
        ("local.leaky (a)", -0.25),
        ("Clip(a, absent)", -1),
    ],
)
def test_local_functions_are_inlined(body: str, expected: float) -> None:
    model = load_model(model_of(FUNCTION.format(body=body)))
    assert run(model, x=np.array([-1, 3], np.float32))[0].tolist() == [expected, 3]
    assert all(op.loc[0].startswith("outer_0/") for op in model.graph.ops)


def test_ops_without_importer_use_the_function_of_their_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body of HardSwish is fixed, that of Softmax is built for the node."""
    model = model_of("g (float[2, 5] x) => (y) { a = HardSwish(x) y = Softmax <axis = 0> (a) }")
    load_model(model)
    monkeypatch.delitem(IMPORTERS, ("", "HardSwish"))
    monkeypatch.delitem(IMPORTERS, ("", "Softmax"))
    imported = load_model(model)
    assert "softmax" not in op_names(imported)
    x = floats(2, 5)
    np.testing.assert_allclose(run(imported, x=x)[0], by_onnxruntime(model, x=x)[0], rtol=8 * F32_STEP, atol=0)


IF = """g (float[N, 2] x) => (float[N, 2] y) {
  s = Shape(x)
  first = Gather(s, zero)
  many = Greater(first, one)
  kept = Neg(x)
  y = If (many) <then_branch = t () => (a) { a = Relu(kept) }, else_branch = e () => (b) { b = Abs(kept) c = Bad(b) }>
}"""


@pytest.mark.parametrize(("n", "expected"), [(2, ["neg", "relu"]), (1, ["neg", "abs"])])
def test_a_branch_on_a_constant_is_inlined(n: int, expected: list[str]) -> None:
    model = load_model(model_of(IF, {"zero": np.array(0), "one": np.array(1)}), {"N": n})
    assert op_names(model) == expected


def test_old_opsets_are_converted() -> None:
    """Opset 4 still gives Reshape its shape as an attribute, and Add broadcasts only when told to."""
    text = "g (float[2, 4] x, float[4] w) => (y) { s = Add <broadcast = 1> (x, w) y = Reshape <shape = [4, 2]> (s) }"
    model = model_of(text, {"w": floats(4)}, opset=4)
    del model.opset_import[1]
    imported = load_model(model)
    assert imported.opset == 7
    x = floats(2, 4)
    np.testing.assert_array_equal(run(imported, x=x)[0], (x + floats(4)).reshape(4, 2))


def test_every_module_with_importers_is_a_family() -> None:
    folder = Path(registry.__file__).parent / "ops"
    assert {path.stem for path in folder.glob("*.py") if "\n@importer(" in path.read_text()} == set(registry.FAMILIES)


class TakesFirstOperand(Strict):
    """Lets the first operand stand for every output of a node that is not imported."""

    def __init__(self) -> None:
        super().__init__("m")
        self.refusals: list[tuple[str, str, bool, bool]] = []

    def refused(self, site: Site, refusal: Refusal) -> list[Tensor]:
        what = refusal.what or (refusal.error.diagnostics[0].what if refusal.error is not None else site.op)
        self.refusals.append((site.label, what, refusal.wanted is not None, refusal.invalid))
        return [site.operands[0]] * len(site.node.output)


def test_a_policy_decides_what_stands_for_nodes_that_are_not_imported() -> None:
    text = """g (float[4] x, bool c) => (float[4] y) {
        a = com.example.Twist(x)
        b = Reshape(a, n)
        d = If (c) <then_branch = t () => (p) { p = Neg(b) }, else_branch = e () => (q) { q = Abs(b) }>
        s = Softmax<axis = 7>(b)
        w = Where(d, s, b)
        y = Neg(w)
    }"""
    builder, policy = FoldingBuilder(), TakesFirstOperand()
    entered = enter(read_source(model_of(text, {"n": np.array([3, 3])})), builder, policy, Sizes())
    policy.finish()
    assert policy.refusals == [
        ("Twist_0", "com.example.Twist", False, False),
        ("Reshape_1", "cannot reshape f32[4] (4 elements) to [3, 3]", False, False),
        ("If_2", "If with a condition computed at run time", True, False),
        ("Softmax_3", "axis is out of range", False, True),
    ]
    (select,) = (op for op in builder.ops if op.name == "select")
    assert select.operands == (entered.inputs["c"], entered.inputs["x"], entered.inputs["x"])
    assert entered.wanted == ("c",)


def test_double_constants_are_kept_as_they_are() -> None:
    model = load_model(model_of("g (double[2] x) => (double[2] y) { y = Add(x, w) }", {"w": np.array([0.1, 1e-300])}))
    assert run(model, x=np.zeros(2))[0].tolist() == [0.1, 1e-300]


def test_slopes_of_prelu_before_opset_7_are_one_for_each_channel() -> None:
    text = """g (float[2, 3, 4] x, float[3] slope) => (float[2, 3, 4] y) { y = PRelu(x, slope) }"""
    model = onnx.parser.parse_model(f'<ir_version: 3, opset_import: ["" : 6]>{text}')
    slope = np.array([0.25, 0.5, 2], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(slope, "slope"))
    imported = load_model(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    (_, param), (_, result) = imported.inputs[0], imported.outputs[0]
    got = run_graph(imported.graph, {param.name: x})[result.name]
    np.testing.assert_array_equal(got, np.where(x < 0, x * slope[:, None], x))


def test_ops_that_are_always_the_hosts_say_why() -> None:
    """Every op of the standard is imported, expanded, or the host's for a reason."""
    register_importers()
    schemas = [s for s in onnx.defs.get_all_schemas() if not s.domain and not s.deprecated]
    expanded = {s.name for s in schemas if s.has_function or s.has_context_dependent_function}
    imported = {op for domain, op in IMPORTERS if not domain}
    assert not imported & WHY_HOST.keys()
    assert {s.name for s in schemas} - imported - expanded - WHY_HOST.keys() == {"If", "Loop", "Scan"}
