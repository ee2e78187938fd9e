"""`ppuc targets --sweep`: ranges, machines, models."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli
from ppuc.compiler.report.sweep import sweep_values
from ppuc.ir.errors import UsageError
from tests.support.small_models import mlp


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def sweep_of(*arguments: object) -> dict[str, Any]:
    result = ppuc("targets", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)["sweep"]
    return record


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


def test_a_range_includes_its_end_and_has_exact_steps() -> None:
    assert sweep_values("hbm.gbs=2000:4000:500") == ("hbm.gbs", ["2000", "2500", "3000", "3500", "4000"])
    assert sweep_values("hbm.efficiency=0.7:0.9:0.1") == ("hbm.efficiency", ["0.7", "0.8", "0.9"])
    assert sweep_values("a=10:1:-4") == ("a", ["10", "6", "2"])
    assert sweep_values("a=1:2:5") == ("a", ["1"])


def test_values_may_be_listed() -> None:
    assert sweep_values("noc.kind=mesh, point") == ("noc.kind", ["mesh", "point"])
    assert sweep_values("cu=4") == ("cu", ["4"])


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=", "a=1,,2", "a=1,1", "a=1:2", "a=1:2:0", "a=2:1:1", "a=x:y:z", "a=1:1000:1", "=1:2:1", "a=1:nan:1"],
)
def test_wrong_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="does not give 1 to 200 distinct values of a key"):
        sweep_values(text)


def test_a_machine_alone_shows_peaks_and_rates() -> None:
    record = sweep_of("ppu-tiny", "--sweep", "tensor.ii.bf16=8:16:8")
    assert [(k["key"], k["unit"]) for k in record["keys"]] == [("tensor.ii_clk.bf16", "clk")]
    fast, slow = record["rows"]
    assert (fast["values"], slow["values"]) == ([8], [16])
    assert fast["peak_tops"]["bf16"] == pytest.approx(2 * slow["peak_tops"]["bf16"])
    assert fast["peak_tops"]["f32"] == slow["peak_tops"]["f32"]
    assert fast["ridge_ops_per_byte"]["bf16"] == pytest.approx(1e3 * fast["peak_tops"]["bf16"] / fast["hbm_gbs"])


def test_a_model_takes_longer_on_slower_memory(model: Path) -> None:
    options = ("ppu-tiny", "--sweep", "hbm.gbs=1:4:1", "--model", model, "--dim", "N=40")
    record = sweep_of(*options)
    times = [row["seconds"] for row in record["rows"]]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]
    assert record["base"]["values"] == [4.0]
    assert record["base"]["seconds"] == times[-1]
    table = ppuc("targets", *options).stdout
    assert "4.0 *" in table
    assert "largest part" in table


def test_a_compiled_program_is_the_same_at_every_value(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlp.ppu"
    assert ppuc("compile", model, "--dim", "N=40", "-t", "ppu-tiny", "-o", path).exit_code == 0
    record = sweep_of("ppu-tiny", "--sweep", "hbm.latency_ns=100:900:400", "--model", path)
    times = [row["seconds"] for row in record["rows"]]
    assert times[0] < times[1] < times[2]
    wrong = ppuc("targets", "ppu-tiny", "--sweep", "hbm.gbs=1:2:1", "--model", path, "--dim", "N=1")
    assert wrong.exit_code == 2
    assert "has no effect on a compiled program" in wrong.stderr


def test_mistakes_name_the_option() -> None:
    for arguments, text in (
        (("ppu-tiny", "--sweep", "hbm.gbx=1:2:1"), "the target has no such key"),
        (("ppu-tiny", "--sweep", "hbm.gbs=0:2:1"), "must be above 0"),
        (("ppu-tiny", "--model", "m.onnx"), "--model: has an effect with --sweep only"),
    ):
        result = ppuc("targets", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert text in result.stderr


def test_several_keys_give_every_combination(model: Path, tmp_path: Path) -> None:
    options = (
        "ppu-tiny",
        "--sweep",
        "hbm.gbs=1:4:3",
        "--sweep",
        "l2.latency_ns=90,900",
        "--model",
        model,
        "--dim",
        "N=40",
    )
    table, chart = tmp_path / "rows.csv", tmp_path / "chart.svg"
    record = sweep_of(*options, "--csv", table, "--plot", chart)
    assert [row["values"] for row in record["rows"]] == [[1.0, 90.0], [1.0, 900.0], [4.0, 90.0], [4.0, 900.0]]
    assert record["rows"][2]["seconds"] < record["rows"][3]["seconds"] < record["rows"][1]["seconds"]
    rows = list(csv.DictReader(table.open()))
    assert [(row["hbm.gbs"], row["l2.latency_ns"]) for row in rows] == [
        ("1.0", "90.0"),
        ("1.0", "900.0"),
        ("4.0", "90.0"),
        ("4.0", "900.0"),
    ]
    assert [float(row["seconds"]) for row in rows] == [row["seconds"] for row in record["rows"]]
    assert float(rows[0]["peak_tops.bf16"]) == record["rows"][0]["peak_tops"]["bf16"]
    drawn = chart.read_text("utf-8")
    assert drawn.startswith("<svg")
    for text in ("hbm.gbs (GB/s)", "time (us)", ">l2.latency_ns<"):
        assert text in drawn
    shown = ppuc("targets", *options).stdout
    assert "hbm.gbs  l2.latency_ns" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sweep", "cu=1,2", "--sweep", "cu=1,2"), "--sweep: names a number twice"),
        (("--sweep", "cu=1:150:1", "--sweep", "hbm.gbs=1:150:1"), "--sweep: has too many combinations"),
        (("--sweep", "cu=1,2", "--plot", "a.svg"), "--plot: draws the time of a model"),
        (("--sweep", "cu=1,2", "--plot", "a.pdf"), "is not a chart format"),
        (("--csv", "a.csv"), "--csv: has an effect with --sweep only"),
    ],
)
def test_what_no_sweep_can_do(
    options: Sequence[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ppuc("targets", "ppu-tiny", *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())
