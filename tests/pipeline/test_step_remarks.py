"""Remarks of the steps before the passes, and of passes that fail: the manifest of a dump has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions, Instrumentation, Quantization
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.passes.remarks import collecting, listener, unheard
from ppuc.compiler.pipeline.dump import DumpFolder
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.quantization.data import Data
from ppuc.ir.errors import InputError
from ppuc.ir.module import Module
from ppuc.targets.description import load_target
from ppuc.targets.schema import Target
from tests.support.onnx_text import model_of
from tests.support.pass_graphs import mobilenet_block, module_of

TINY = load_target("ppu-tiny")
X = np.random.default_rng(0).standard_normal((12, 6, 24)).astype(np.float32)
WEIGHTS = {
    "A": np.random.default_rng(1).standard_normal((24, 40)).astype(np.float32),
    "B": np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32),
}


def model(middle: str) -> onnx.ModelProto:
    return model_of(
        f"""g (float[6, 24] x, int64[2] s) => (float[p, q] y) {{
            a = MatMul(x, A)
            {middle}
            m = MatMul(b, B)
            y = Reshape(m, s)
        }}""",
        WEIGHTS,
    )


def steps(folder: Path) -> dict[str, list[dict[str, Any]]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {p["pass"]: p["remarks"] for p in manifest["passes"][:2]}


def test_import_and_quantize(tmp_path: Path) -> None:
    """Inputs that became constants, the format of each layer, and what became of its repair."""
    data = Data([{"x": x} for x in X])
    values = {"s": np.array([12, 12])}
    options = CompileOptions(TINY, "fp8", values=values, quantization=Quantization(data))
    made = compile_model(model("b = Tanh(a)"), options, Instrumentation(dump=tmp_path))
    said = steps(tmp_path)
    assert [(r["decision"], r["entity"]) for r in said["import"]] == [("fixed", "s")]
    formats = [(r["nodes"], r["reason"]) for r in said["quantize"] if r["decision"] == "format"]
    assert formats == [(["MatMul_0"], "e4m3, scales from samples"), (["MatMul_2"], "e4m3, scales from samples")]
    assert [r["decision"] for r in said["quantize"]].count("repair") <= 1
    assert {r["decision"] for r in said["quantize"]} <= {"format", "repair"}, "passes that were only tried say nothing"
    assert [r.record() for r in made.remarks[: len(said["import"])]] == said["import"]


def test_host_policy(tmp_path: Path) -> None:
    """Each node that the host computes, and why."""
    options = CompileOptions(TINY, values={"s": np.array([12, 12])})
    middle = "d = Cast<to = 11>(a) e = Exp(d) b = Cast<to = 1>(e)"
    compile_model(model(middle), options, Instrumentation(dump=tmp_path))
    said = steps(tmp_path)["import"]
    assert [(r["decision"], r["entity"], r["details"]["op"]) for r in said] == [
        ("host", "Cast_1", "Cast"),
        ("host", "Exp_2", "Exp"),
        ("host", "Cast_3", "Cast"),
    ]
    assert all(r["reason"] for r in said)


@dataclass(frozen=True)
class Stumbling(Pass):
    """Say something, then fail."""

    name: ClassVar[str] = "stumbling"

    def run(self, module: Module, target: Target) -> Module:
        if (remarks := listener()) is not None:
            remarks.note("seen", "x", reason="before the failure")
        raise ZeroDivisionError("by design")


def test_a_pass_that_fails_keeps_its_remarks(tmp_path: Path) -> None:
    run = Run(TINY, (Fold(), Stumbling()), DumpFolder(tmp_path), listening=True)
    module = run.before("import", lambda: module_of(mobilenet_block()))
    with pytest.raises(ZeroDivisionError):
        run.run(module)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["failed"] == {"pass": "stumbling", "error": "ZeroDivisionError: by design"}
    last = manifest["passes"][-1]
    assert (last["pass"], last["changed"], last["file"]) == ("stumbling", False, None)
    assert [r["reason"] for r in last["remarks"]] == ["before the failure"]


def test_quantization_that_fails_is_named(tmp_path: Path) -> None:
    options = CompileOptions(TINY, "fp8", quantization=Quantization(Data([{"x": X[0] * np.nan}])))
    text = "g (float[6, 24] x) => (float[6, 40] y) { y = MatMul(x, A) }"
    with pytest.raises(InputError):
        compile_model(model_of(text, {"A": WEIGHTS["A"]}), options, Instrumentation(dump=tmp_path))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["failed"]["pass"] == "quantize"
    assert [p["pass"] for p in manifest["passes"]] == ["import", "quantize"]


def test_nobody_hears_what_is_only_tried() -> None:
    with collecting("quantize") as outer:
        with unheard():
            assert listener() is None
        assert listener() is outer
