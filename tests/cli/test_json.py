"""docs/json.md agrees with the JSON that commands print."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ppuc.compiler.cli import cli
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

DOCUMENT = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
SHAPE = ("--dim", "N=40", "--target", "ppu-tiny")


def documented(command: str) -> list[str]:
    """Paths of a command's section, `[]` and `*` included."""
    section = DOCUMENT.split(f"\n## {command}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return re.findall(r"`([^`]+)`", " ".join(cells))


def paths(value: Any, above: str = "") -> Iterator[str]:
    """Every path of a record."""
    if above:
        yield above
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{above}.{key}" if above else key)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from paths(inner, above + "[]")


def covers(rule: str, path: str) -> bool:
    """Whether a documented path is `path`, one above it (the way to it), or a wildcard above it."""
    pattern = rule.replace("[]", "<>").replace("*", "?*")
    found = path.replace("[]", "<>")
    return fnmatch.fnmatchcase(found, pattern) or pattern.startswith((found + ".", found + "<>"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The output of every command for a small model, in each of its formats."""
    folder = tmp_path_factory.mktemp("json")
    model, program, dump, text = (folder / name for name in ("m.onnx", "m.ppu", "dump", "m.s"))
    onnx.save(mlp(), model)
    data, metric = folder / "data.npz", folder / "metric.py"
    np.savez(data, x=np.random.default_rng(0).standard_normal((320, 20)).astype(np.float32))
    metric.write_text("def metric(outputs, inputs):\n    return float(sum(abs(o['y']).sum() for o in outputs))\n")

    def run(*arguments: object) -> dict[str, Any]:
        result = CliRunner().invoke(cli, [*(str(a) for a in arguments), "--json"])
        assert result.exit_code == 0, result.stderr
        record: dict[str, Any] = json.loads(result.stdout)
        return record

    found = {
        "compile": [
            run("compile", model, *SHAPE, "-o", folder / "narrow.ppu", "-p", "fp8", "--calibrate", data),
            run("compile", model, *SHAPE, "-o", program, "--dump", dump, "--check-passes"),
        ]
    }
    text.write_text(CliRunner().invoke(cli, ["disasm", str(program)]).stdout)
    node = onnx.load(model).graph.node[0].output[0]
    steps = sorted(dump.glob("*.ppir"))
    measured = folder / "measured.csv"
    measured.write_text("m,n,k,measured_us\n32,32,32,9\n")
    fixed = folder / "fixed.onnx"
    onnx.save(model_of("g (float[1, 6] x) => (float[2, 3] y) { y = Reshape(x, s) }", {"s": np.array([2, 3])}), fixed)
    with chdir(folder):
        new_machine = run("targets", "--new", "mine", "--like", "ppu-tiny")
    return found | {
        "run": [run("run", program)],
        "verify": [run("verify", model, *SHAPE, "--layers")],
        "profile": [run("profile", program, "--timing-only")],
        "compare": [
            run("compare", model, *SHAPE, "--to", "precision=bf16", "--max-slower", "500%", "--max-drop", "500dB")
        ],
        "report": [run("report", program, "-o", folder / "page.html")],
        "explain": [run("explain", model, node, *SHAPE)],
        "check": [run("check", model, *SHAPE)],
        "quantize": [
            run("quantize", model, *SHAPE, "--calibrate", data, *mixed)
            for mixed in ((), ("-p", "mixed", "--min-sqnr", "10", "--metric", metric, "--max-drop", "50%"))
        ],
        "evaluate": [run("evaluate", model, *SHAPE, "--data", data, "--metric", metric)],
        "simplify": [run("simplify", model, "-o", folder / "clean.onnx")],
        "rebatch": [run("rebatch", fixed, "--batch", 3, "-o", folder / "three.onnx")],
        "inspect": [
            *(run("inspect", path) for path in (model, steps[-1], program)),
            run("inspect", model, "--fusion", *SHAPE),
            run("inspect", program, "--remarks", "missed"),
            run("inspect", model, "--memory", folder / "plan.svg", *SHAPE, "--set", "l2.bytes=8192"),
        ],
        "targets": [
            run("targets"),
            run("targets", "ppu-tiny"),
            run("targets", "ppu-tiny", "--sweep", "hbm.gbs=1:2:1", "--model", program),
            new_machine,
        ],
        "predict": [run("predict", "-t", "ppu-tiny", "--csv", measured)],
        "opt": [run("opt", steps[0], "-p", "fold")],
        "disasm": [run("disasm", program)],
        "asm": [run("asm", text, "--like", program, "-o", folder / "again.ppu")],
        "ops": [run("ops"), run("ops", "--onnx")],
        "passes": [run("passes")],
    }


SECTIONS = re.findall(r"^## (\w+)$", DOCUMENT, re.M)


def test_every_command_has_a_section() -> None:
    assert set(SECTIONS) == set(cli.commands)


@pytest.mark.parametrize("command", SECTIONS)
def test_the_document_lists_what_is_printed(records: dict[str, list[dict[str, Any]]], command: str) -> None:
    rules = documented(command)
    printed = {p for record in records[command] for p in paths(record)} - {"command", "schema"}
    assert not sorted(p for p in printed if not any(covers(rule, p) for rule in rules))
    assert not [rule for rule in rules if not any(covers(rule, p) for p in printed)]
    assert {record["command"] for record in records[command]} == {command}
    assert {record["schema"] for record in records[command]} == {1}
