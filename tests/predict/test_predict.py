"""`ppuc predict`: operators in the order given, the errors of measured ones, and mistakes by line and column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli
from ppuc.compiler.predict.accuracy import accuracy, class_of
from ppuc.compiler.predict.case import Case, attention, conv, gemm
from ppuc.compiler.predict.table import read_table
from ppuc.ir.errors import UsageError

TINY = ("-t", "ppu-tiny")


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *(str(a) for a in arguments)])


def record_of(*arguments: object) -> dict[str, Any]:
    done = ppuc(*arguments, "--json")
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_rows_come_in_the_order_of_the_options(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("m,n,k,dtype\n8,16,32,f32\n# a comment\n\n64,64,64,\n")
    options = (
        "--conv", "1,6,6,4,8,3,1,1:f32", "--gemm", "48,32,16", "--gemm", "48,32,16:i8",
        "--attention", "1,2,1,8,8,16:causal:f16", "--csv", table, "--dtype", "fp16",
    )  # fmt: skip
    record = record_of(*TINY, *options)
    rows = [(row["kind"], row["dims"], row["dtype"]) for row in record["rows"]]
    assert rows == [
        ("gemm", [48, 32, 16], "f16"),
        ("gemm", [48, 32, 16], "i8"),
        ("attention", [1, 2, 1, 8, 8, 16, 1], "f16"),
        ("conv", [1, 6, 6, 4, 8, 3, 1, 1], "f32"),
        ("gemm", [8, 16, 32], "f32"),
        ("gemm", [64, 64, 64], "f16"),
    ]
    for row in record["rows"]:
        low, high = row["interval_us"]
        assert low <= row["us"] <= high
        assert 0 < row["roofline"] < 1
        assert row["hbm_bytes"] > 0
    assert record["accuracy"] is None
    shown = ppuc(*TINY, *options).stdout
    assert "attention 1 x 2 x 1 x 8 x 8 x 16 causal" in shown
    assert "measured" not in shown


def test_work_of_an_operator() -> None:
    assert gemm("2,3,5", "f32").macs == 30
    assert attention("2,4,1,3,3,8", "f32").macs == 2 * 2 * 4 * 9 * 8
    assert attention("2,4,1,3,5,8:causal", "f32").macs == 2 * 2 * 4 * (3 + 4 + 5) * 8
    assert conv("1,5,7,2,3,3,2,1", "f32").macs == 3 * 4 * 3 * 2 * 9


def test_products_of_8_bits_keep_their_rate() -> None:
    """Operands are graph inputs; the machines multiply them at twice the rate of 16 bits."""
    for machine, narrow, wide in (("ppu-tiny", "i8", "f16"), ("h100-class", "fp8", "bf16")):
        sizes = "256,256,256" if machine == "ppu-tiny" else "4096,4096,1024"
        record = record_of("-t", machine, "--gemm", f"{sizes}:{wide}", "--gemm", f"{sizes}:{narrow}", "--no-interval")
        slow, fast = (row["us"] for row in record["rows"])
        assert fast < 0.8 * slow


def test_errors_are_summed_up_by_class(tmp_path: Path) -> None:
    cases = [Case("gemm", (m, 64, 64), "f16") for m in (1, 16, 128, 128)]
    record = accuracy(cases, [1.1, 0.9, 2.0, 5.0], [1.0, 1.0, 1.0, None])
    assert record is not None
    assert record["rows"] == 3
    assert record["mean_abs"] == pytest.approx(0.4)
    assert record["mean"] == pytest.approx(1 / 3)
    assert record["max"] == pytest.approx(1.0)
    assert [(c["class"], c["rows"]) for c in record["classes"]] == [("up to 16 rows", 2), ("97 to 768 rows", 1)]
    assert accuracy(cases, [1.0] * 4, [None] * 4) is None
    assert class_of(Case("softmax", (4, 4), "f32")) == "softmax"

    table, chart = tmp_path / "t.csv", tmp_path / "chart.svg"
    table.write_text("m,n,k,measured_us\n8,16,32,2.5\n64,64,64,\n128,64,64,20\n")
    done = ppuc(*TINY, "--csv", table, "--dtype", "f16", "--no-interval", "--plot", chart)
    assert done.exit_code == 0, done.output
    assert "errors against the measurements" in done.stdout
    drawn = chart.read_text("utf-8")
    assert "measured (us)" in drawn
    assert "up to 16 rows" in drawn


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("m,n\n1,2", "t.csv:1: lacks columns of sizes"),
        ("m,n,k,m\n1,2,3,4", "t.csv:1: names a column twice"),
        ("m,n,k\n1,2", "t.csv:2: has a different number of cells"),
        ("# c\nm,n,k\n1,2,3\n\n4,x,5", "t.csv:5: column n: n is no size\n  got: x"),
        ("m,n,k\n1,0,3", "t.csv:2: column n: n is no size"),
        ("m,n,k\n1,2,99999999999999999999999999", "t.csv:2: column k: k is no size"),
        ("m,n,k,dtype\n1,2,3,f7", "t.csv:2: column dtype: is no element type"),
        ("m,n,k,measured_us\n1,2,3,-4", "t.csv:2: column measured_us: is no time"),
        ("m,n,k,measured_us\n1,2,3,nan", "t.csv:2: column measured_us: is no time"),
        ("batch,heads,kv_heads,query,key,dim,causal\n1,2,3,4,5,6,0", "t.csv:2: heads are not a multiple of kv_heads"),
        ("batch,heads,kv_heads,query,key,dim,causal\n1,2,2,4,5,6,x", "t.csv:2: column causal: is neither 0 nor 1"),
        ("n,h,w,c,k,r,stride,pad\n1,2,2,4,5,6,1,1", "t.csv:2: the window is larger"),
    ],
)
def test_mistakes_of_a_table_have_a_place(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_table(path, "bf16")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "predict: needs an operator"),
        (("--gemm", "1,2"), "--gemm 1,2: has the wrong number of sizes"),
        (("--gemm", "1,2,3:f16:f32"), "has more after its sizes than an element type"),
        (("--gemm", "1,2,3:f8e4m3", "-t", "tpuv3-core"), "--gemm 1,2,3:f8e4m3: tpuv3-core does not multiply f8e4m3"),
        (("--gemm", "1,2,3", "--dtype", "half"), "--dtype half: is no element type of operands"),
        (("--gemm", "16000000,16000000,8:f32"), "does not run on ppu-tiny"),
        (("--gemm", "1,2,3:f32", "--plot", "a.svg"), "--plot: draws measured times"),
        (("--gemm", "1,2,3", "-t", "ppu-tini"), "did you mean 'ppu-tiny'?"),
        (("--csv", "none.csv"), "no such file"),
    ],
)
def test_mistakes_of_the_call(options: Sequence[str], said: str) -> None:
    done = ppuc(*TINY, *options)
    assert done.exit_code == 2
    assert said in done.stderr
