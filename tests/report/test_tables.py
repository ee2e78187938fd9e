"""Profiles, traces and tables from hand-made runs; conditioning and judgement."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.report.profile import profile_record
from ppuc.compiler.report.profile_tables import profile_tables
from ppuc.compiler.report.tables import capacity, comparison_table, duration, quantity, shortened, table
from ppuc.compiler.report.trace import write_trace
from ppuc.compiler.validation.conditioning import sensitivities
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.tolerance import UNIT_ROUNDOFF, tolerances, typical_step
from ppuc.ir.errors import UsageError
from ppuc.ir.interpret import run_graph
from ppuc.ir.program import Queue
from ppuc.ir.types import DType, Space
from ppuc.targets.description import load_target
from ppuc.targets.simulator.result import KernelStats, Profile
from ppuc.targets.simulator.run import RawResult
from ppuc.targets.simulator.trace import EVENT
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

TARGET = load_target("ppu-tiny")


def stats(name: str, node: str, start: float, end: float, *, hbm: int = 0, tensor: float = 0.0) -> KernelStats:
    """A kernel on both units; its tensor queues are busy for `tensor` cycles each."""
    return KernelStats(
        name=name,
        loc=(node, f"{node}_relu"),
        units=2,
        start=start,
        end=end,
        busy={Queue.TENSOR: 2 * tensor, Queue.LOAD: 4.0},
        stall={},
        instructions={Queue.TENSOR: 3},
        read_bytes={Space.HBM: hbm},
        write_bytes={},
        macs=1000,
        ideal_tensor=tensor / 2,
        engine={Queue.TENSOR: 2 * tensor},
        transfer={Space.HBM: float(hbm)},
    )


PROFILE = Profile(
    target="ppu-tiny",
    target_hash=TARGET.hash,
    clock_ghz=1.0,
    cycles=1000.0,
    kernels=(
        stats("first", "a", 100, 400, hbm=600),
        stats("second", "b", 300, 900, tensor=500.0),
        stats("third", "a", 350, 1000),
    ),
    copies=(),
    read_bytes={Space.HBM: 600},
    write_bytes={},
    instructions=9,
    launch_cycles=100.0,
    energy_joules={"hbm": 1e-6, "mac": 2e-6},
)
NODES = {"first": "a", "second": "b", "third": "a"}


def test_kernels_are_charged_what_they_add_to_the_run() -> None:
    record = profile_record(PROFILE, TARGET, NODES)
    assert [k["cycles"] for k in record["kernels"]] == [300, 500, 100]
    assert sum(k["cycles"] for k in record["kernels"]) + record["launch_cycles"] == record["cycles"]
    assert [(n["node"], n["cycles"], n["kernels"]) for n in record["nodes"]] == [
        ("a", 400, ["first", "third"]),
        ("b", 500, ["second"]),
    ]
    assert record["nodes"][0]["fused"] == ["a_relu"]


def test_utilisation_is_of_the_whole_chip_over_the_kernels_span() -> None:
    first, second, _ = profile_record(PROFILE, TARGET, NODES)["kernels"]
    assert second["utilisation"]["tensor"] == pytest.approx(250 / 600)
    assert second["bound_by"] == "tensor"
    bytes_per_clk = TARGET.hbm.gbs * 1e9 / (TARGET.clock.max_mhz * 1e6)
    assert first["utilisation"]["hbm"] == pytest.approx(600 / (300 * bytes_per_clk))


def test_the_profile_is_json() -> None:
    record = profile_record(PROFILE, TARGET, NODES)
    assert json.loads(json.dumps(record)) == record
    assert record["energy_joules"]["total"] == pytest.approx(3e-6)


def drawn(show: object, *arguments: object) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=160, highlight=False, markup=False), *arguments)  # type: ignore[operator]
    return stream.getvalue()


def test_profile_tables_name_kernels_nodes_and_bounds() -> None:
    record = profile_record(PROFILE, TARGET, NODES)
    text = drawn(profile_tables, record, None)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["b"][1:5] == ["b_relu", "tensor", "500", "50.0%"]
    assert lines["a"][1] == "a_relu"
    assert "ONNX nodes (the costliest 1 of 2)" in drawn(profile_tables, record, 1)


def test_tables_print_names_as_they_are() -> None:
    text = drawn(table, "", ("name", "n"), [("[bold]x[/bold] :smile:", 1)])
    assert text == "name                    n\n[bold]x[/bold] :smile:  1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (quantity(1536, "B"), "1.54 kB"),
        (quantity(12, "B"), "12 B"),
        (quantity(2.5e9), "2.5 G"),
        (quantity(0.00608, "J"), "6.08 mJ"),
        (quantity(0, "J"), "0 J"),
        (shortened("/m/encoder/layer.10/output/dense/MatMul", 32), "/m/enc/lay.10/out/dense/MatMul"),
        (shortened("/m/encoder/layer.10/output/dense/MatMul", 28), "/m/enc/lay.10/out/den/MatMul"),
        (shortened("/m/encoder/layer.10/output/dense/MatMul", 24), "/m/e/l.10/out/den/MatMul"),
        (shortened("/m/encoder/layer.10/output/dense/MatMul", 12), "/m/e/…MatMul"),
        (capacity(262144), "256 KiB"),
        (capacity(100), "100 B"),
        (shortened("short", 20), "short"),
        (duration(1.5e-5), "15 us"),
        (duration(2), "2 s"),
        (duration(5e-10), "0.5 ns"),
    ],
)
def test_quantities(text: str, expected: str) -> None:
    assert text.strip() == expected


def trace_of(*events: tuple[float, float, int, int, int, int, int]) -> RawResult:
    return RawResult({}, PROFILE, np.array(list(events), EVENT), ("load %a", "mma %c"))


def test_trace_has_a_track_for_each_transfer_in_flight(tmp_path: Path) -> None:
    raw = trace_of((0, 10, 0, 0, 0, 0, 0), (5, 12, 0, 0, 0, 0, 0), (10, 20, 0, 0, 0, 0, 0), (3, 4, 1, 2, 1, 1, 0))
    summary = write_trace(tmp_path / "t.json", raw, NODES)
    assert (summary.instructions, str(summary)) == (4, "everything")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert [(e["pid"], e["tid"]) for e in complete] == [(1, 0), (1, 1), (1, 0), (2, 128)]
    assert complete[0]["name"] == "load a"
    assert complete[0]["args"] == {"node": "a", "kernel": "first", "instruction": "load %a", "cycles": 10}
    assert (complete[1]["ts"], complete[1]["dur"]) == (0.005, 0.007)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {(1, 0): "load", (1, 1): "load +1", (2, 128): "tensor"}


def test_trace_of_nothing_and_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert write_trace(tmp_path / "t.json", trace_of(), NODES).instructions == 0
    json.loads((tmp_path / "t.json").read_text())
    with pytest.raises(UsageError, match="cannot be written"):
        write_trace(tmp_path / "none" / "t.json", trace_of(), NODES)
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def shifted(op: str) -> onnx.ModelProto:
    """y = (x + 1000) op 1000."""
    text = f"m (float[50] x) => (float[50] y) {{ a = Add(x, up) y = {op}(a, down) }}"
    return model_of(text, {name: np.full(50, 1000, np.float32) for name in ("up", "down")})


def test_a_model_that_cancels_is_sensitive_and_one_that_adds_is_not() -> None:
    """y = (x + 1000) - 1000 multiplies a relative change of either constant by about 1000."""
    cancelling, adding = (load_model(shifted(op)).graph for op in ("Sub", "Add"))
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    strong, weak = (sensitivities(g, {"x": x}, 1e-6)[g.results[0].name].relative for g in (cancelling, adding))
    assert 300 < strong < 3000
    assert weak < 2


@pytest.mark.parametrize("function", ["Identity", "Round"])
def test_a_model_that_rounds_is_sensitive_to_the_root_of_a_change(function: str) -> None:
    """What is predicted for errors of a size that was not measured is what they do, whether the model is smooth or
    jumps: a whole step for the few numbers that lie at an edge."""
    text = f"m (float[200000] x) => (float[200000] y) {{ a = Mul(x, up) b = {function}(a) y = Mul(b, down) }}"
    graph = load_model(model_of(text, {n: np.float32(v).reshape(1) for n, v in (("up", 16), ("down", 1 / 16))})).graph
    rng, step = np.random.default_rng(0), 1e-6
    x = rng.standard_normal(200000).astype(np.float32)
    moved = (x * (1 + step * rng.standard_normal(x.shape))).astype(np.float32)
    results = [run_graph(graph, {"x": a}) for a in (x, moved)]
    before, after = (r[graph.results[0].name].astype(np.float64) for r in results)
    found = sensitivities(graph, {"x": x}, step)[graph.results[0].name].relative * step
    assert found == pytest.approx(np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2)), rel=0.5)


def test_the_rule_alone_judges_what_keeps_it() -> None:
    graph = load_model(mlp(), dims={"N": 2}).graph
    output = graph.results[0].name
    x = np.random.default_rng(1).standard_normal((2, 20)).astype(np.float32)
    want = np.random.default_rng(2).standard_normal((2, 7)).astype(np.float32)
    judge = Judge(graph, "fp32", {"x": x})
    good = judge.compare("y", output, want, want)
    assert (good.ok, good.sensitivity) == (True, None)
    bad = judge.compare("y", output, want * np.float32(1.01), want)
    assert not bad.ok


def test_the_model_carries_the_blame_for_its_own_conditioning_and_no_more() -> None:
    graph = load_model(shifted("Sub")).graph
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    judge = Judge(graph, "model", {"x": x})
    rounded = (x + np.float32(1000)) - np.float32(1000)
    excused = judge.compare("y", graph.results[0].name, rounded, x)
    assert excused.rms_rel > tolerances(graph, "model")[graph.results[0].name].relative
    assert excused.ok
    assert excused.sensitivity is not None
    assert "grows" in drawn(comparison_table, "outputs", [excused.record()])
    assert not judge.compare("y", graph.results[0].name, x * np.float32(1.1), x).ok


def test_the_typical_step_is_the_mean_error_of_the_format() -> None:
    graph = load_model(mlp(), dims={"N": 2}).graph
    operands = 2 * UNIT_ROUNDOFF[DType.BF16] ** 2 / 6
    assert typical_step(graph, "bf16") == pytest.approx(operands**0.5, rel=1e-2)
