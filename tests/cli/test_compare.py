"""ppuc compare and --record, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.calling import TINY, error_of, json_of, ppuc
from tests.support.small_models import mlp

SIZE = ("--dim", "N=40")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_records_of_every_command_are_comparable(model: Path, tmp_path: Path) -> None:
    for command, more in (("compile", ("-o", tmp_path / "m.ppu")), ("run", ()), ("verify", ()), ("profile", ())):
        result = ppuc(command, model, *SIZE, *TINY, *more, "--record", tmp_path / f"{command}.json")
        assert result.exit_code == 0, result.stderr
    found = json_of("compare", tmp_path / "run.json", tmp_path / "profile.json")
    assert found["totals"]["seconds"]["ratio"] == 1
    assert json_of("compare", tmp_path / "verify.json", tmp_path / "verify.json")["outputs"]
    assert json_of("compare", tmp_path / "compile.json", tmp_path / "profile.json")["passes"] == []


def test_one_model_on_two_machines_and_in_two_precisions(model: Path) -> None:
    slower = json_of("compare", model, *SIZE, *TINY, "--to", "hbm.gbs=1")
    assert slower["totals"]["seconds"]["ratio"] > 1
    other = json_of("compare", model, *SIZE, *TINY, "--to", "target=ppu-edge", "--to", "precision=bf16")
    assert (other["b"]["target"], other["b"]["precision"]) == ("ppu-edge", "bf16")


def test_a_gate_passes_fails_and_moves_its_baseline(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.json.gz"
    gate = ("compare", "--baseline", base, *SIZE, *TINY, "--max-slower", "2%", "--max-drop", "1dB", model)
    assert "no such file" in error_of(*gate)
    assert ppuc(*gate, "--update-baseline").exit_code == 0
    assert ppuc(*gate).exit_code == 0
    before = base.read_bytes()
    failed = ppuc(*gate, "--set", "hbm.gbs=1", "--update-baseline", "--format", "github")
    assert failed.exit_code == 1
    assert failed.stdout.startswith("::error title=max-slower ")
    assert base.read_bytes() == before
    assert json.loads(ppuc(*gate, "--format", "json").stdout)["checks"][0]["ok"]


@pytest.mark.parametrize("form", ["csv", "markdown", "junit", "sarif"])
def test_formats(model: Path, form: str) -> None:
    result = ppuc("compare", model, *SIZE, *TINY, "--to", "hbm.gbs=1", "--max-slower", "500%", "--format", form)
    assert result.exit_code == 0
    assert result.stdout


def test_explain(model: Path, tmp_path: Path) -> None:
    node = onnx.load(model).graph.node[0].output[0]
    shown = ppuc("explain", model, node, *SIZE, *TINY)
    assert shown.exit_code == 0, shown.stderr
    assert "\nimport\n  + %" in shown.stdout
    assert "kernel @" in shown.stdout
    assert ppuc("profile", model, *SIZE, *TINY, "--record", tmp_path / "run.json").exit_code == 0
    assert ppuc("explain", tmp_path / "run.json", node).stdout == shown.stdout
    assert "has no effect on a recorded run" in error_of("explain", tmp_path / "run.json", node, *TINY)
    assert "has no node or tensor 'nothing'" in error_of("explain", model, "nothing", *SIZE)


def test_report(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((320, 20)).astype(np.float32))
    runs = {
        "profile": ("--timing-only", *SIZE),
        "quantize": ("--calibrate", tmp_path / "data.npz", *SIZE),
        "verify": SIZE,
    }
    for command, more in runs.items():
        record, page = tmp_path / f"{command}.json.gz", tmp_path / f"{command}.html"
        assert ppuc(command, model, *TINY, *more, "--record", record).exit_code == 0
        assert ppuc("report", record, "-o", page).exit_code == 0
        assert page.read_text().startswith("<!")
    again = tmp_path / "again.html"
    assert json_of("report", model, *SIZE, *TINY, "-o", again)["bytes"] == again.stat().st_size
    assert "is not the record of a run" in error_of("report", tmp_path / "data.npz")
    assert "has no effect on a recorded run" in error_of("report", tmp_path / "verify.json.gz", *TINY)
    assert "would overwrite the input file" in error_of("report", model, *SIZE, "-o", model)


def test_mistakes(model: Path, tmp_path: Path) -> None:
    assert "takes two runs" in error_of("compare", model)
    assert "takes two runs" in error_of("compare", model, model, "--to", "precision=bf16")
    assert "unknown precision 'fp7'" in error_of("compare", model, *SIZE, "--to", "precision=fp7")
    assert "holds checks" in error_of("compare", model, model, *SIZE, "--format", "junit")
    assert "has no file to write" in error_of("compare", model, model, "--update-baseline")
    (tmp_path / "x.json").write_text("{}")
    assert "is not the record of a run" in error_of("compare", tmp_path / "x.json", tmp_path / "x.json")
    assert "would overwrite the input file" in error_of("profile", model, *SIZE, "--record", model)
