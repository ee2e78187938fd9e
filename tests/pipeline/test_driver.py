"""Running passes: records, dumps, resuming, re-execution after every pass."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

from ppuc.compiler.driver import import_model
from ppuc.compiler.inputs import generate_all, input_specs
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.normalise.canonicalise import Canonicalise
from ppuc.compiler.passes.normalise.decompose import Decompose
from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.passes.normalise.legalise import Legalise
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.compiler.pipeline.dump import DumpFolder, write_ppir
from ppuc.compiler.pipeline.execute import run_module
from ppuc.compiler.pipeline.layers import PREFIX, KeepLayers, kept_layers
from ppuc.compiler.pipeline.manager import Run, op_counts
from ppuc.compiler.pipeline.recheck import DivergenceError, Recheck
from ppuc.compiler.pipeline.resume import check_target, read_module
from ppuc.ir.errors import TextError, UsageError
from ppuc.ir.graph import Op, Value
from ppuc.ir.module import Module
from ppuc.ir.rewrite import Builder, rewrite
from ppuc.ir.text import print_module
from ppuc.targets.description import Target, load_target, override
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

PASSES = (Fold(), Canonicalise(), Decompose(), Fold(), Legalise(), Fold())
TARGET = load_target("ppu-tiny")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A softmax over two layers, in a file."""
    rng = np.random.default_rng(1)
    weights = {"w0": rng.standard_normal((20, 33), np.float32), "w1": rng.standard_normal((33, 7), np.float32) / 6}
    text = """net (float[N, 20] x) => (float[N, 7] y) {
        h = MatMul(x, w0)
        t = Tanh(h)
        i = Identity(t)
        z = MatMul(i, w1)
        y = Softmax(z)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(model_of(text, weights), path)
    return path


def dumped(model: Path, folder: Path, precision: str = "model") -> tuple[Run, Module]:
    """Import and run PASSES, dumping into `folder`."""
    run = Run(TARGET, PASSES, DumpFolder(folder))
    return run, run.run(import_model(run, model, CompileOptions(TARGET, precision, {"N": 2})).module)


def test_records_say_what_every_pass_did(model: Path, tmp_path: Path) -> None:
    run, module = dumped(model, tmp_path / "dump", "bf16")
    assert [r.name for r in run.records] == ["import", *(p.name for p in PASSES)]
    assert module.done == tuple(p.name for p in PASSES)
    assert run.records[-1].ops == op_counts(module.graph)
    assert run.records[0].ops["softmax"] == 1
    assert "softmax" not in run.records[-1].ops
    assert all(r.seconds > 0 for r in run.records)


def test_only_passes_that_changed_something_are_dumped(model: Path, tmp_path: Path) -> None:
    run, _ = dumped(model, tmp_path / "dump")
    files = sorted(p.name for p in (tmp_path / "dump").glob("*.ppir"))
    assert files == [f"{i:02d}-{r.name}.ppir" for i, r in enumerate(run.records) if r.changed]
    manifest = json.loads((tmp_path / "dump" / "manifest.json").read_text())
    assert [p["file"] for p in manifest["passes"] if p["file"]] == files
    assert [p["changed"] for p in manifest["passes"]] == [r.changed for r in run.records]
    assert not all(r.changed for r in run.records)
    assert manifest["failed"] is None
    assert manifest["options"]["precision"] == "model"
    assert manifest["target"] == "ppu-tiny"


def test_every_dump_resumes_to_the_same_text(model: Path, tmp_path: Path) -> None:
    _, module = dumped(model, tmp_path / "dump", "bf16")
    texts = sorted((tmp_path / "dump").glob("*.ppir"))
    assert len(texts) >= 4
    for path in texts:
        again = read_module(path)
        assert again.done == tuple(p.name for p in PASSES)[: len(again.done)]
        resumed = Run(TARGET, PASSES[len(again.done) :]).run(again)
        assert print_module(resumed) == print_module(module)
        assert resumed == module


def test_dumps_are_the_same_bytes_every_time(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        dumped(model, tmp_path / name)
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
    for file in files - {Path("manifest.json")}:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_constants_are_stored_once_and_computed_ones_as_recipes(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((400, 300), np.float32)}
    text = """net (float[N, 400] x) => (float[N, 300] y) {
        t = Transpose(w)
        h = Relu(t)
        z = Cast<to = 10>(h)
        c = Cast<to = 1>(z)
        d = Transpose(c)
        y = MatMul(x, d)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(model_of(text, weights), path)
    run, module = dumped(path, tmp_path / "dump")
    stored = tmp_path / "dump" / "constants"
    assert sorted(p.name for p in stored.iterdir() if p.suffix != ".bin") == ["index.json", "recipes.ppir"]
    (binary,) = stored.glob("*.bin")
    assert binary.read_bytes() == weights["w"].tobytes()
    path.unlink()
    assert "relu" in run.records[0].ops
    assert "relu" not in run.records[-1].ops
    last = read_module(max((tmp_path / "dump").glob("*.ppir")))
    assert last.graph == module.graph
    (constant,) = last.graph.constants().values()
    want = np.maximum(weights["w"], 0).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(constant.array(), want)
    write_ppir(tmp_path / "dump" / "again.ppir", last)
    assert read_module(tmp_path / "dump" / "again.ppir") == last


def test_resuming_notices_changed_and_missing_constants(model: Path, tmp_path: Path) -> None:
    run = Run(TARGET, PASSES, DumpFolder(tmp_path / "dump"))
    module = import_model(run, onnx.load(model), CompileOptions(TARGET, dims={"N": 1})).module
    run.run(module)
    first = tmp_path / "dump" / "00-import.ppir"
    lost = min((tmp_path / "dump" / "constants").glob("*.bin"))
    content = lost.read_bytes()
    lost.write_bytes(content[:-1])
    with pytest.raises(TextError, match="a constant of the dump is missing or cut short"):
        read_module(first)
    lost.write_bytes(content)
    assert read_module(first) == module
    (tmp_path / "dump" / "constants" / "index.json").write_text("{")
    with pytest.raises(TextError, match=r"index\.json: the index of constants is damaged"):
        read_module(first)


def test_a_dump_replaces_an_earlier_one_and_nothing_else(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    dumped(model, folder)
    (folder / "99-stale.ppir").write_text("old")
    dumped(model, folder)
    assert not (folder / "99-stale.ppir").exists()
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        DumpFolder(other)
    assert str(caught.value) == (
        f"{other}: is not empty and holds no earlier dump\n"
        "  got: thesis.txt\n  hint: give a new or empty folder to --dump"
    )
    with pytest.raises(UsageError, match=r"net\.onnx: is not a folder"):
        DumpFolder(model)


@dataclass(frozen=True)
class Failing(Pass):
    """Fails."""

    name: ClassVar[str] = "failing"

    def run(self, module: Module, target: Target) -> Module:
        raise ZeroDivisionError("at the third op")


def test_what_was_dumped_before_a_failure_stays(model: Path, tmp_path: Path) -> None:
    run = Run(TARGET, (Canonicalise(), Failing()), DumpFolder(tmp_path / "dump"))
    module = import_model(run, model, CompileOptions(TARGET, dims={"N": 1})).module
    with pytest.raises(ZeroDivisionError):
        run.run(module)
    manifest = json.loads((tmp_path / "dump" / "manifest.json").read_text())
    assert manifest["failed"] == {"pass": "failing", "error": "ZeroDivisionError: at the third op"}
    assert (tmp_path / "dump" / "00-import.ppir").exists()


@dataclass(frozen=True)
class TanhToSigmoid(Pass):
    """Replaces every tanh by a sigmoid, which is wrong."""

    name: ClassVar[str] = "tanh_to_sigmoid"

    def run(self, module: Module, target: Target) -> Module:
        def rule(b: Builder, op: Op) -> tuple[Value, ...] | None:
            if op.name != "tanh":
                return None
            b.ops.append(replace(op, name="sigmoid"))
            return op.results

        return with_graph(module, rewrite(module.graph, rule))


def checked_run(model: Path, passes: tuple[object, ...], precision: str = "model") -> Run:
    run = Run(TARGET, passes)  # type: ignore[arg-type]
    module = import_model(run, model, CompileOptions(TARGET, precision, {"N": 2})).module
    run.recheck = Recheck(module, generate_all(input_specs(module)), precision)
    run.run(module)
    return run


@pytest.mark.parametrize("precision", ["model", "fp32", "bf16", "fp16"])
def test_right_passes_pass_re_execution(model: Path, precision: str) -> None:
    run = checked_run(model, PASSES, precision)
    checks = [r.check for r in run.records if r.check is not None]
    assert len(checks) == sum(r.changed for r in run.records) - 1
    assert all(c.ok for check in checks for c in check.outputs)
    assert all(check.tensors > 0 for check in checks)
    narrow = precision in ("bf16", "fp16")
    assert checks[-1].outputs[0].sqnr_db < 100 if narrow else checks[-1].outputs[0].sqnr_db > 100


def test_a_wrong_pass_is_named_with_the_first_tensor_it_spoils(model: Path) -> None:
    with pytest.raises(DivergenceError) as caught:
        checked_run(model, (Canonicalise(), TanhToSigmoid(), Decompose()))
    text = str(caught.value)
    assert text.startswith("pass tanh_to_sigmoid: changes the value of %t: f32[2, 33]\n  got: relative error ")
    assert "outputs out of tolerance: 'y'" in text
    assert caught.value.exit_code == 1


def test_module_execution_agrees_at_every_graph_stage(model: Path, tmp_path: Path) -> None:
    _, module = dumped(model, tmp_path / "dump")
    first = read_module(tmp_path / "dump" / "00-import.ppir")
    inputs = generate_all(input_specs(first))
    before, after = (run_module(m, TARGET, inputs)["y"] for m in (first, module))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


def test_texts_that_break_the_rules_are_the_users(model: Path, tmp_path: Path) -> None:
    dumped(model, tmp_path / "dump")
    source = (tmp_path / "dump" / "00-import.ppir").read_text()
    bad = tmp_path / "dump" / "bad.ppir"
    bad.write_text(source.replace("f32[2, 33] = tanh", "f32[2, 34] = tanh"))
    with pytest.raises(TextError, match=r"bad\.ppir: breaks the rules of the IR"):
        read_module(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match=r"bad\.ppir: is not text"):
        read_module(bad)
    with pytest.raises(TextError, match=r"none\.ppir: no such file"):
        read_module(tmp_path / "none.ppir")


def test_a_module_belongs_to_its_target(model: Path, tmp_path: Path) -> None:
    _, module = dumped(model, tmp_path / "dump")
    check_target(module, TARGET, "a.ppir")
    with pytest.raises(UsageError, match=r"a\.ppir: was made for another target"):
        check_target(module, override(TARGET, "hbm.gbs=900"), "a.ppir")


def test_a_single_text_can_be_written_elsewhere(model: Path, tmp_path: Path) -> None:
    _, module = dumped(model, tmp_path / "dump")
    (tmp_path / "other").mkdir()
    write_ppir(tmp_path / "other" / "x.ppir", module)
    assert read_module(tmp_path / "other" / "x.ppir") == module


def test_kept_layers_are_outputs_with_the_same_values(tmp_path: Path) -> None:
    run = Run(TARGET, (KeepLayers(),))
    module = import_model(run, mlp(), CompileOptions(TARGET, dims={"N": 2})).module
    kept = run.run(module)
    inputs = generate_all(input_specs(module))
    outputs = run_module(kept, TARGET, inputs)
    assert set(kept_layers(outputs)) == {"h", "a", "r"}
    np.testing.assert_array_equal(outputs["y"], run_module(module, TARGET, inputs)["y"])
    np.testing.assert_array_equal(np.maximum(outputs[PREFIX + "a"], 0), outputs[PREFIX + "r"])
