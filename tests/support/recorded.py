"""Records of runs of small models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.entry import compile_program
from ppuc.compiler.options import CompileOptions, Instrumentation
from ppuc.compiler.recording.passes import PassWatch
from ppuc.compiler.recording.record import run_record
from ppuc.compiler.report.profile import profile_record
from ppuc.targets.description import load_target
from tests.support.small_models import mlp

HOSTILE = (
    "</script><script>document.body.dataset.stolen = 1</script>",
    '"><img src=x onerror="document.body.dataset.stolen = 1">',
    "'; document.body.dataset.stolen = 1; '",
    "${document.body.dataset.stolen = 1} {{script}} `x`",
    "层/Ärger <b>&amp;\u202e \U0001f600",
)
"""Names that do harm where text is taken for HTML, script or a template."""


def recorded(model: onnx.ModelProto, dims: dict[str, int] | None = None) -> dict[str, Any]:
    """The record of a profile of `model` on ppu-tiny, as it is read from a file."""
    target = load_target("ppu-tiny")
    watch = PassWatch(target)
    program = compile_program(model, CompileOptions(target, dims=dims or {}), Instrumentation(seen=watch))
    run = program.time()
    times = profile_record(run.profile, target, run.nodes, run.program, run.launches)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        onnx.save(model, file)
        record = run_record("profile", file, program, {"profile": times}, watch)
    record["model"]["file"] = "m.onnx"
    found = json.loads(json.dumps(record))
    assert isinstance(found, dict)
    return found


def mlp_record() -> dict[str, Any]:
    """Of the small model `mlp`."""
    return recorded(mlp(), {"N": 40})


def hostile_record() -> dict[str, Any]:
    """Of a chain of Relu and Add whose graph, nodes and tensors have the HOSTILE names."""
    rng = np.random.default_rng(3)
    weights = [numpy_helper.from_array(rng.normal(size=(1, 24)).astype(np.float32), f"w{i}") for i in range(3)]
    tensors = [f"t {name}" for name in HOSTILE]
    nodes = [
        helper.make_node("Relu", tensors[:1], [tensors[1]], name=HOSTILE[0]),
        *(helper.make_node("Add", [tensors[i], f"w{i - 1}"], [tensors[i + 1]], name=HOSTILE[i]) for i in range(1, 4)),
    ]
    values = [helper.make_tensor_value_info(t, TensorProto.FLOAT, [8, 24]) for t in (tensors[0], tensors[-1])]
    graph = helper.make_graph(nodes, HOSTILE[0], values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return recorded(model)
