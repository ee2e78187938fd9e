"""The check against the rules of ONNX: what it refuses, how it says so, and that correct models pass."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import AttributeProto, TensorProto, helper
from onnx.backend.test.case.node import collect_testcases

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.driver import examine
from ppuc.compiler.frontend.conformance.check import findings
from ppuc.compiler.options import CompileOptions
from ppuc.ir.errors import ModelError
from ppuc.targets.description import load_target
from tests.fuzz.malformed import MUTATIONS

LEFT_OPEN = ("graph without name", "output without type", "outputs without names", "initializer with values twice")
"""What ONNX's checker refuses and this check leaves open: the first two change no meaning and ONNX Runtime takes them;
the last two are found when nodes are ordered, and when tensors are read."""


def model_with(*nodes: onnx.NodeProto, **more: object) -> onnx.ModelProto:
    """Nodes from x f32[2, 3] to y."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_empty_tensor_value_info("y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **more)


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs or ("x",), ["y"], name="n", **attributes)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = model_with(node("Relu"))
    change(model)
    return model


def function(name: str, domain: str = "own") -> onnx.FunctionProto:
    return helper.make_function(domain, name, ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip


def outside_reference() -> onnx.NodeProto:
    found = node("Softmax")
    found.attribute.append(AttributeProto(name="axis", type=AttributeProto.INT, ref_attr_name="outer"))
    return found


def twice() -> onnx.NodeProto:
    found = node("Softmax", axis=1)
    found.attribute.append(found.attribute[0])
    return found


def without_type() -> onnx.NodeProto:
    found = node("Softmax", axis=1)
    found.attribute[0].ClearField("type")
    return found


def with_constant(array: np.ndarray, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Nodes that may read the initializer c."""
    model = model_with(*nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "c"))
    return model


def declared(model: onnx.ModelProto, field: str, *types: onnx.ValueInfoProto) -> onnx.ModelProto:
    getattr(model.graph, field).extend(types)
    return model


def held_twice() -> onnx.ModelProto:
    model = with_constant(np.ones(3, np.float32), node("Add", "x", "c"))
    model.graph.initializer[0].float_data.extend([1.0, 1.0, 1.0])
    return model


def calling(inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    model = model_with(helper.make_node("F", inputs, outputs, domain="own", name="n"), functions=[function("F")])
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


F32, F64 = TensorProto.FLOAT, TensorProto.DOUBLE
TO_LATER = helper.make_node("Relu", ["x"], ["t"], name="n"), helper.make_node("Add", ["t", "x"], ["y"], name="later")

BROKEN: dict[str, tuple[onnx.ModelProto, str]] = {
    "missing attribute": (model_with(node("Concat", "x", "x")), "node 'n' (Concat): attribute 'axis' is missing"),
    "unknown attribute": (model_with(node("Relu", alpha=0.1)), "node 'n' (Relu): attribute 'alpha' is unknown"),
    "attribute twice": (model_with(twice()), "node 'n' (Softmax): attribute 'axis' is given 2 times"),
    "kind of attribute": (model_with(node("Softmax", axis=1.5)), "attribute 'axis' is of the wrong kind"),
    "attribute without a type": (model_with(without_type()), "attribute 'axis' has no type"),
    "inner type, and what follows": (
        declared(model_with(*TO_LATER), "value_info", helper.make_tensor_value_info("t", F32, [2, 4])),
        "node 'n' (Relu): breaks the rules of its op",
    ),
    "initializer of another type": (
        declared(with_constant(np.ones(3, np.float32), node("Add", "x", "c")), "input",
                 helper.make_tensor_value_info("c", F64, [3])),
        "input 'c': its initializer has another type",
    ),
    "initializer of another shape": (
        declared(with_constant(np.ones(3, np.float32), node("Add", "x", "c")), "input",
                 helper.make_tensor_value_info("c", F32, ["N", 3])),
        "its initializer has another type\n  got: float[3]\n  expected: float[N, 3]",
    ),
    "shape of i32": (with_constant(np.array([3, 2], np.int32), node("Reshape", "x", "c")), "of the wrong type"),
    "shape of rank 2": (with_constant(np.array([[3, 2]]), node("Reshape", "x", "c")), "the shape is not a list"),
    "index": (with_constant(np.array([0, 2]), node("Gather", "x", "c")), "an index is out of range"),
    "inputs of a function": (calling(["x", "x"], ["y"]), "it has more inputs than its function"),
    "outputs of a function": (calling(["x"], ["y", "z"]), "it has more outputs than its function"),
    "value of attribute": (model_with(node("MaxPool", kernel_shape=[1], auto_pad="SAME")), "has an unknown value"),
    "reference": (model_with(outside_reference()), "refers to an attribute of a function, outside of functions"),
    "too many inputs": (model_with(node("Relu", "x", "x")), "it has too many inputs"),
    "too few inputs": (model_with(node("Add", "x")), "it has too few inputs"),
    "empty input": (model_with(node("Add", "x", "")), "input 'B' is missing"),
    "too many outputs": (model_with(helper.make_node("Relu", ["x"], ["y", "z"], name="n")), "too many outputs"),
    "withdrawn op": (model_with(node("Upsample", "x", "x")), "the op does not exist in opset 17"),
    "domain": (model_with(helper.make_node("F", ["x"], ["y"], domain="own", name="n")), "domain 'own' is not imported"),
    "no IR version": (changed(lambda m: m.ClearField("ir_version")), "the IR version is missing"),
    "IR version": (changed(lambda m: setattr(m, "ir_version", 99)), "the IR version is newer"),
    "opset twice": (changed(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 9))), "imported twice"),
    "output type": (
        changed(lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [2, 3]))),
        "breaks the rules of its op",
    ),
    "output shape": (
        changed(lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]))),
        "breaks the rules of its op",
    ),
    "function twice": (model_with(node("Relu"), functions=[function("F"), function("F")]), "it is defined twice"),
    "function of the standard": (
        model_with(node("Relu"), functions=[function("Relu", "")]), "the name of a standard operator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_named(name: str) -> None:
    model, message = BROKEN[name]
    with pytest.raises(ModelError) as caught:
        ppuc.compile(model, target="ppu-tiny")
    assert message in str(caught.value)
    assert "--lenient" in str(caught.value)


def test_values_in_two_fields_are_refused() -> None:
    with pytest.raises(ModelError, match="'c': it holds its values twice\n  got: float_data and raw_data"):
        ppuc.compile(held_twice(), target="ppu-tiny")


def test_an_attribute_without_a_type_is_mended() -> None:
    model = model_with(without_type())
    (found,) = findings(model)
    assert found.mend is not None
    found.mend()
    assert findings(model) == []


def test_findings_say_what_they_are_about() -> None:
    with pytest.raises(ModelError) as caught:
        ppuc.compile(BROKEN["kind of attribute"][0], target="ppu-tiny")
    (diagnostic,) = caught.value.diagnostics
    assert [str(e.kind) + " " + e.name for e in diagnostic.entities] == ["node n", "attribute axis"]


@pytest.mark.parametrize("command", ["check", "compile", "run", "verify"])
def test_every_command_refuses(command: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(BROKEN["unknown attribute"][0], path)
    more = ["-o", str(tmp_path / "m.ppu")] if command == "compile" else []
    result = CliRunner().invoke(cli, [command, str(path), "-t", "ppu-tiny", *more])
    assert result.exit_code == 2
    assert "attribute 'alpha' is unknown" in result.output
    assert not (tmp_path / "m.ppu").exists()


def test_check_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    """Tensors and names are read before anything else, so `check` says that the file is wrong, not the machine."""
    model = with_constant(np.ones(3, np.float32), node("Add", "x", "c"))
    model.graph.initializer[0].raw_data = bytes(11)
    for path, made in (("a.onnx", model), ("b.onnx", model_with(node("Add", "x", "nobody")))):
        onnx.save(made, tmp_path / path)
        assert CliRunner().invoke(cli, ["check", str(tmp_path / path), "-t", "ppu-tiny"]).exit_code == 2


def test_axes_may_be_of_either_integer_type() -> None:
    """ONNX's inference reads the axes of a Pad as i64 only; its schema allows i32."""
    model = model_with(node("Pad", "x", "pads", "", "axes"))
    model.opset_import[0].version = 18
    for name, array in (("pads", np.array([1, 2])), ("axes", np.array([1], np.int32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = ppuc.compile(model, target="ppu-tiny").run({"x": x}).outputs
    np.testing.assert_array_equal(outputs["y"], np.pad(x, ((0, 0), (1, 2))))


def test_lenient_takes_what_is_meant() -> None:
    model = BROKEN["unknown attribute"][0]
    with pytest.warns(UserWarning, match="attribute 'alpha' is unknown"):
        program = ppuc.compile(model, target="ppu-tiny", lenient=True)
    x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
    np.testing.assert_array_equal(program.run({"x": x}).outputs["y"], np.maximum(x, 0))


@cache
def cases() -> tuple[onnx.ModelProto, ...]:
    """Models of the standard's own tests."""
    return tuple(case.model for case in collect_testcases(None))


def test_correct_models_have_no_findings() -> None:
    for model in cases()[::4]:
        assert not findings(model), model.graph.name


def test_whatever_the_checker_refuses_is_found() -> None:
    """Every twelfth model of the standard's own tests, changed in one place at random."""
    draw = random.Random(5)
    refused = 0
    for model in cases()[::12]:
        for kind, mutate in MUTATIONS.items():
            mutants = list(mutate(model))
            for what, mutant in draw.sample(mutants, min(2, len(mutants))):
                if what in LEFT_OPEN or onnx_accepts(mutant):
                    continue
                refused += 1
                assert findings(mutant) or import_refuses(mutant), f"{model.graph.name}: {kind}: {what}"
    assert refused > 200


def import_refuses(model: onnx.ModelProto) -> bool:
    """Whether reading constants or ordering nodes finds an error."""
    return bool(examine(model, CompileOptions(load_target("ppu-tiny"))).problems)


def onnx_accepts(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except Exception:  # ValidationError, and what its binding raises of its own
        return False
    return True


def test_the_benchmark_of_malformed_models() -> None:
    """A few of what `benchmarks.malformed` tries: every command refuses within its limits."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.malformed", "--count", "8", "--seed", "3", "--only", "pool"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "8 models, 0 commands of 32 that did not refuse" in done.stdout


@pytest.mark.parametrize(("last", "refused"), [(4, False), (5, True), (-1, True)])
def test_positions_of_rotary_embeddings_are_rows_of_the_caches(last: int, refused: bool) -> None:
    shapes = {"x": [1, 2, 3, 4], "cos": [5, 2], "sin": [5, 2]}
    ids = helper.make_tensor("ids", TensorProto.INT64, [1, 3], [0, 1, last])
    graph = helper.make_graph(
        [helper.make_node("RotaryEmbedding", ["x", "cos", "sin", "ids"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 4])],
        [ids],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    assert [f.what for f in findings(made)] == (["a position is out of range"] if refused else [])
