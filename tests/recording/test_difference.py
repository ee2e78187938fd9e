"""Two runs side by side, and the checks on them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ppuc.compiler.entry import compile
from ppuc.compiler.recording.difference import difference, read_run
from ppuc.compiler.recording.gate import Check, checks, decibels, github, junit, percentage, sarif
from ppuc.compiler.report.difference import csv_text, markdown
from ppuc.compiler.report.profile import profile_record
from ppuc.ir.errors import UsageError
from ppuc.targets.description import load_target, override
from tests.support.small_models import mlp


def run(target: str = "ppu-tiny", *changes: str, outputs: Any = None) -> dict[str, Any]:
    """The record of a timing of the small model, as far as comparisons read it."""
    machine = override(load_target(target), *changes)
    made = compile(mlp(), target=machine, dims={"N": 40})
    times = profile_record(made.time().profile, machine, made.nodes, made.artifact.program)
    about = {"name": machine.name, "hash": machine.hash}
    record = {
        "command": "profile",
        "model": {"file": "m.onnx"},
        "target": about,
        "precision": "model",
        "profile": times,
    }
    return record | ({"verify": {"outputs": outputs}} if outputs is not None else {})


def output(decibels: float, verdict: str = "ok") -> dict[str, Any]:
    return {"name": "y", "verdict": verdict, "sqnr_db": decibels, "max_abs": 0.1}


class TestDifference:
    def test_changes_of_nodes_kernels_and_parts_sum_to_that_of_the_run(self) -> None:
        a, b = run(), run("ppu-tiny", "hbm.gbs=1")
        found = difference(a, b)
        whole = found["totals"]["seconds"]["b"] - found["totals"]["seconds"]["a"]
        assert whole > 0
        launch = (b["profile"]["launch_cycles"] - a["profile"]["launch_cycles"]) * 1e-9
        for rows in (found["nodes"], found["kernels"]):
            assert sum(row["change"] for row in rows) == pytest.approx(whole - launch)
            assert [abs(row["change"]) for row in rows] == sorted((abs(row["change"]) for row in rows), reverse=True)
        parts = found["waterfall"]
        assert sum(row["b"] - row["a"] for row in parts) == pytest.approx(whole)

    def test_clocks_differ(self) -> None:
        a, b = run(), run("ppu-tiny", "clock.base_mhz=500", "clock.max_mhz=500")
        seconds, cycles = (difference(a, b)["totals"][key]["ratio"] for key in ("seconds", "cycles"))
        assert seconds > 1.2 * cycles

    def test_a_run_equals_itself(self) -> None:
        a = run(outputs=[output(40.0)])
        found = difference(a, a)
        assert all(row["ratio"] in (1, None) for row in found["totals"].values())
        assert not any(row["change"] for row in found["nodes"])
        assert found["passes"] == []

    def test_only_steps_that_differ_are_listed(self) -> None:
        def steps(*kernels: int) -> list[dict[str, Any]]:
            return [{"pass": "fuse", "change": {"kernels": n, "expected_clk": 10.0 * n}} for n in kernels]

        a, b = run() | {"passes": steps(5, 4)}, run() | {"passes": steps(5, 3, 2)}
        assert [
            (r["pass"], r["time"], r["a"] and r["a"]["kernels"], r["b"]["kernels"]) for r in difference(a, b)["passes"]
        ] == [
            ("fuse", 2, 4, 3),
            ("fuse", 3, None, 2),
        ]

    def test_markdown_escapes_names(self) -> None:
        found = difference(run(), run("ppu-tiny", "hbm.gbs=1")) | {"checks": []}
        found["nodes"][0]["node"] = "a|b<c"
        assert "a\\|b&lt;c" in markdown(found, None)

    def test_csv_has_every_row(self) -> None:
        found = difference(run(), run("ppu-tiny", "hbm.gbs=1"))
        rows = list(csv.DictReader(io.StringIO(csv_text(found))))
        number = sum(len(found[key]) for key in ("totals", "waterfall", "nodes", "kernels"))
        assert len(rows) == number
        assert {r["what"] for r in rows} == {"total", "part", "node", "kernel"}


class TestReadRun:
    def test_takes_what_a_command_printed(self, tmp_path: Path) -> None:
        a = run()
        printed = {"command": "profile", "schema": 1, "model": "m.onnx", **a["profile"]}
        (tmp_path / "a.json").write_text(json.dumps(printed))
        read = read_run(tmp_path / "a.json")
        assert difference(a, read)["totals"]["seconds"]["ratio"] == 1

    def test_refuses_other_commands(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"command": "passes", "schema": 1}')
        with pytest.raises(UsageError, match="cannot be compared"):
            read_run(tmp_path / "a.json")


class TestChecks:
    def compared(
        self, ratio: float = 1.0, before: float = 40, after: float = 40, verdict: str = "ok"
    ) -> dict[str, Any]:
        found = difference(run(outputs=[output(before)]), run(outputs=[output(after, verdict)]))
        seconds = found["totals"]["seconds"]
        seconds["b"], seconds["ratio"] = seconds["a"] * ratio, ratio
        return found

    @pytest.mark.parametrize(("ratio", "ok"), [(1.02, True), (1.03, False), (0.5, True)])
    def test_time(self, ratio: float, ok: bool) -> None:
        (check,) = checks(self.compared(ratio), 0.025, None)
        assert check.ok == ok
        assert f"{ratio - 1:+.2%}" in check.text

    @pytest.mark.parametrize(("after", "verdict", "ok"), [(39.5, "ok", True), (38, "ok", False), (40, "wrong", False)])
    def test_accuracy(self, after: float, verdict: str, ok: bool) -> None:
        (check,) = checks(self.compared(after=after, verdict=verdict), None, 1.0)
        assert (check.ok, check.subject) == (ok, "y")

    def test_without_numbers_a_limit_is_refused(self) -> None:
        found = difference(run(), run())
        with pytest.raises(UsageError, match="no accuracy to compare"):
            checks(found, None, 1.0)
        with pytest.raises(UsageError, match="no times to compare"):
            checks({**found, "totals": {}}, 0.1, None)

    @pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.5", 0.5), (" 10 % ", 0.1)])
    def test_percentages(self, text: str, share: float) -> None:
        assert percentage(text, "--max-slower") == share

    @pytest.mark.parametrize("text", ["", "x", "-2%", "2 percent", "nan"])
    def test_mistaken_limits(self, text: str) -> None:
        with pytest.raises(UsageError, match="is not"):
            percentage(text, "--max-slower")
        with pytest.raises(UsageError, match="is not"):
            decibels(text, "--max-drop")

    def test_formats(self) -> None:
        found = [Check("max-slower", 'net <"&>', True, "fine"), Check("max-drop", "y", False, "5 % off\n: really")]
        suite = ElementTree.fromstring(junit(found, "ppuc compare"))
        assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
        assert [case.get("name") for case in suite] == ['net <"&>', "y"]
        assert suite[1][0].text == "5 % off\n: really"
        assert github(found).splitlines()[1] == "::error title=max-drop y::5 %25 off%0A: really"
        log = json.loads(sarif(found, "1.0"))
        assert [r["message"]["text"] for r in log["runs"][0]["results"]] == ["y: 5 % off\n: really"]
