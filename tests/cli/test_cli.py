"""The command `ppuc`: what it prints, how it ends, and the text of every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from ppuc.compiler.version import VERSION
from tests.cli.calling import json_of, ppuc
from tests.support.small_models import mlp

COMMANDS = (
    "compile", "run", "verify", "profile", "report", "compare", "explain", "predict", "check", "quantize", "evaluate",
    "simplify", "rebatch", "opt", "inspect", "disasm", "asm", "targets", "ops", "passes",
)  # fmt: skip


# Help and start.


def test_help_names_every_command_in_order() -> None:
    result = ppuc("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.split("Commands:\n")[1].splitlines() if line.startswith("  ")]
    assert tuple(listed[: len(COMMANDS)]) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    result = ppuc(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'version = "{VERSION}"' in pyproject.read_text()
    assert ppuc("--version").stdout == f"ppuc, version {VERSION}\n"


HEAVY = ("numpy", "onnx", "onnxruntime", "numba", "lark", "rich", "ml_dtypes")


@pytest.mark.parametrize("code", ["import ppuc", "import ppuc.compiler.cli as c; c.cli.main(['--help'])"])
def test_starting_loads_nothing_heavy(code: str) -> None:
    heavy = f"[m for m in {HEAVY!r} if m in sys.modules]"
    report = f"import atexit, sys\natexit.register(lambda: print({heavy}, file=sys.stderr))\n"
    done = subprocess.run([sys.executable, "-c", report + code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


# Listings and descriptions.


def test_targets_lists_all_and_shows_one() -> None:
    record = json_of("targets")
    assert {t["name"] for t in record["targets"]} >= {"zhenwu-m890", "zhenwu-810e", "ppu-tiny"}
    assert [t["name"] for t in record["targets"] if t["default"]] == ["zhenwu-m890"]
    apart = {t["name"] for t in record["targets"] if t["validation"]}
    assert {"a100-class", "tpuv3-core", "systolic-128"} <= apart
    assert not apart & {"zhenwu-m890", "ppu-tiny"}
    text = ppuc("targets").stdout
    assert text.index("ppu-tiny") < text.index("validate the timing") < text.index("a100-class")
    plain, changed = json_of("targets", "ppu-tiny"), json_of("targets", "ppu-tiny", "--set", "hbm.gbs=900")
    value = {n["key"]: n["value"] for n in changed["numbers"]}["hbm.gbs"]
    assert value == 900
    assert changed["hash"] != plain["hash"]
    assert all(n["mark"] and n["source"] for n in plain["numbers"])
    assert "hbm.gbs" in ppuc("targets", "ppu-tiny").stdout


def test_ops_lists_records_and_importers() -> None:
    names = {o["op"] for o in json_of("ops")["ops"]}
    assert names >= {"matmul", "conv", "softmax", "reshape", "const"}
    assert {"MatMul", "Conv", "Gelu", "com.microsoft:Gelu"} <= set(json_of("ops", "--onnx")["onnx"])
    assert "matmul" in ppuc("ops").stdout


def test_check_names_dimensions_and_unsupported_nodes(model: Path, tmp_path: Path) -> None:
    record = json_of("check", model)
    assert (record["ok"], record["unbound"], record["refused"]) == (True, ["N"], 0)
    assert "give sizes with: --dim N=..." in ppuc("check", model).stdout
    made = mlp()
    made.graph.node[1].op_type = "Swirl"
    path = tmp_path / "odd.onnx"
    onnx.save(made, path)
    result = ppuc("check", path)
    assert result.exit_code == 1
    assert "neither the PPU nor the host supports it: bias" in result.stdout
    assert "supply it with --host-ops FILE.py: a Python function marked @ppuc.host_op('::Swirl')" in result.stdout
    assert "1 node cannot be compiled" in result.stdout
    assert [n["node"] for n in json_of("check", path)["nodes"] if n["where"] != "ppu"] == ["bias"]


def test_inspect_a_model(model: Path) -> None:
    record = json_of("inspect", model)
    assert record["kind"] == "model"
    assert record["parameters"] == 20 * 33 + 33 + 33 * 7
    assert record["inputs"] == ["x: f32[N, 20]"]
    assert record["ops"] == {"MatMul": 2, "Add": 1, "Relu": 1}
    assert "MatMul" in ppuc("inspect", model).stdout


# The whole way.


def test_passes_lists_the_pipeline() -> None:
    record = json_of("passes")
    names = [p["pass"] for p in record["pipeline"]]
    assert names[0] in record["options"]
    assert "fuse{epilogues=false}" in record["pipelines"]["none"]
    known = {p["pass"]: p for p in record["passes"]}
    assert known["tile"]["required"] == "it builds the kernels"
    assert known["fold"]["required"] is known["fold"]["package"] is None
    text = ppuc("passes").stdout
    assert "keep-layers" in text
    assert "tile{tries=...}" in text
    assert {"fold", "legalise", "memory-space-assignment", "emit"} <= set(names)
    assert all(p["help"].endswith(".") for p in record["pipeline"])
