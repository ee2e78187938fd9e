"""ppuc explain: a node at every level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.options import CompileOptions
from ppuc.compiler.recording.explain import explained
from ppuc.compiler.recording.record import run_record
from ppuc.compiler.report.profile import profile_record
from ppuc.ir.errors import UsageError
from tests.recording.test_record import TARGET, watched
from tests.support.small_models import mlp


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("explain") / "m.onnx"
    onnx.save(mlp(), file)
    program, watch = watched(mlp())
    times = profile_record(program.time().profile, program.target, program.nodes, program.artifact.program)
    return run_record("profile", file, program, {"profile": times}, watch)


def test_a_node_is_followed_from_the_import_to_its_kernel(record: dict[str, Any]) -> None:
    name = next(n["node"] for n in record["graph"]["nodes"] if n["op"] in ("MatMul", "Gemm"))
    found = explained(record, name)
    steps = {step["pass"]: step for step in found["steps"]}
    assert any("matmul(" in line for line in steps["import"]["added"])
    assert any("group(" in line for line in steps["fuse"]["added"])
    assert not any("loc(" in line for step in found["steps"] for line in (*step["added"], *step["removed"]))
    (kernel,) = [k for k in found["kernels"] if "mma" in k["loops"]]
    assert name in kernel["nodes"]
    assert kernel["time"]["cycles"] == next(
        k["cycles"] for k in record["profile"]["kernels"] if k["kernel"] == kernel["kernel"]
    )


def test_every_kernel_is_found_from_its_nodes(record: dict[str, Any]) -> None:
    names = {n["node"] for n in record["graph"]["nodes"]}
    for kernel in record["kernels"].values():
        for name in names & set(kernel["loc"]):
            assert kernel["loops"] in [k["loops"] for k in explained(record, name)["kernels"]]


def test_a_tensor_stands_for_its_node(record: dict[str, Any]) -> None:
    node = record["graph"]["nodes"][0]
    assert explained(record, node["writes"][0]) == explained(record, node["node"])


def test_unchanged_lines_are_left_out(record: dict[str, Any]) -> None:
    for node in record["graph"]["nodes"]:
        for step in explained(record, node["node"])["steps"]:
            assert sorted(step["added"]) != sorted(step["removed"]) or not step["added"]


def test_names_that_contain_others_are_not_mixed_up(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xy")
    nodes = [helper.make_node("Exp", ["x"], ["m"], name="a"), helper.make_node("Sin", ["m"], ["y"], name='"a" b')]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    program, watch = watched(model, CompileOptions(TARGET))
    record = run_record("compile", tmp_path / "m.onnx", program, {}, watch)
    for name, op, other in (("a", "exp(", "sin("), ('"a" b', "sin(", "exp(")):
        added = [
            line for step in explained(record, name)["steps"] if step["pass"] == "import" for line in step["added"]
        ]
        assert any(op in line for line in added)
        assert not any(other in line for line in added)


def test_mistakes(record: dict[str, Any]) -> None:
    name = record["graph"]["nodes"][0]["node"]
    with pytest.raises(UsageError, match=f"did you mean.*{name}"):
        explained(record, name[:-1])
    with pytest.raises(UsageError, match="holds no texts of the passes"):
        explained({**record, "graph": None}, name)
    with pytest.raises(UsageError, match="holds no texts of the passes"):  # as of a quantization study
        explained({**record, "passes": [], "kernels": {}}, name)
