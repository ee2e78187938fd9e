"""Reports of a real run: waterfall, time split, interval, trace with arrows and counters."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppuc.compiler.entry import compile
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.report import interval as interval_module
from ppuc.compiler.report.interval import (
    GROUPS,
    RELATIVE,
    deviated,
    groups_of,
    interval,
    uncertain_numbers,
    with_number,
)
from ppuc.compiler.report.profile import profile_record
from ppuc.compiler.report.trace import write_trace
from ppuc.compiler.report.trace_counters import counters, spread
from ppuc.compiler.report.waterfall import STEPS, compulsory_bytes, waterfall
from ppuc.ir.types import DType, Space
from ppuc.targets.cost import hbm_bytes_per_clk
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Leaf, Target
from ppuc.targets.simulator.retime import Retimer
from ppuc.targets.simulator.run import RawResult
from ppuc.targets.simulator.time_breakdown import PARTS
from tests.support.small_models import mlp

MACHINES = ("ppu-tiny", "zhenwu-m890")


@functools.cache
def program(target: str = "ppu-tiny", precision: str = "model", rows: int = 40) -> CompiledProgram:
    return compile(mlp(), target=target, precision=precision, dims={"N": rows})


def on(made: CompiledProgram, target: Target) -> CompiledProgram:
    """The same program on another machine."""
    return dataclasses.replace(made, options=dataclasses.replace(made.options, target=target))


def record_of(made: CompiledProgram) -> dict[str, Any]:
    return profile_record(made.time().profile, made.target, made.nodes, made.artifact.program)


def traced(made: CompiledProgram) -> RawResult:
    raw = made.time(trace=True).trace
    assert raw is not None
    return raw


# The waterfall.


@pytest.mark.parametrize(("target", "rows"), list(itertools.product(MACHINES, (1, 40, 333))))
@pytest.mark.parametrize("host_seconds", [0.0, 1.2345e-5])
def test_the_parts_of_the_waterfall_sum_exactly_in_any_order(target: str, rows: int, host_seconds: float) -> None:
    made = program(target, rows=rows)
    profile = dataclasses.replace(made.time().profile, host_seconds=host_seconds)
    found = profile_record(profile, made.target, made.nodes, made.artifact.program)["waterfall"]
    parts = [p["cycles"] for p in found["parts"]]
    total = profile.cycles + host_seconds * profile.clock_ghz * 1e9
    assert found["total_cycles"] == total
    assert min(parts) >= 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert sum(rng.permutation(parts).tolist()) == total
    assert [(p["part"], p["owner"]) for p in found["parts"]] == [(name, owner) for name, owner, _ in STEPS]
    exposed = next(p for p in found["parts"] if p["part"] == "exposed")
    assert sum(exposed["causes"].values()) == pytest.approx(exposed["cycles"])
    assert sum(found["owners"].values()) == pytest.approx(1)


def parts_of(made: CompiledProgram) -> dict[str, float]:
    return {p["part"]: p["cycles"] for p in record_of(made)["waterfall"]["parts"]}


def test_the_ideal_is_work_at_the_sixteen_bit_peak_and_the_format_costs_the_rest() -> None:
    made = program(rows=333)
    target, macs = made.target, 333 * (20 * 33 + 33 * 7)
    f32, bf16 = parts_of(made), parts_of(program(precision="bf16", rows=333))
    assert f32["ideal"] == pytest.approx(macs / target.peak_macs_per_clk("bf16"), rel=1e-6)
    ratio = target.peak_macs_per_clk("bf16") / target.peak_macs_per_clk("f32")
    assert f32["ideal"] + f32["format"] == pytest.approx(ratio * f32["ideal"])
    assert bf16["ideal"] == f32["ideal"]
    assert bf16["format"] == 0


def test_the_shape_costs_padding_to_fragments() -> None:
    """336 rows in fragments of 16; 33 and 7 columns become 48 and 16; 20 and 33 products become 24 and 40."""
    made = program(rows=333)
    parts = parts_of(made)
    assert made.target.tensor.fragment["f32"] == (16, 16, 8)
    padded = 336 * (24 * 48 + 40 * 16)
    bound = padded / made.target.peak_macs_per_clk("f32")
    assert parts["ideal"] + parts["format"] + parts["shape"] == pytest.approx(bound, rel=1e-6)


def test_compulsory_bytes_are_weights_inputs_and_outputs_once() -> None:
    made = program(rows=40)
    profile = made.time().profile
    in_hbm = [t for t in made.artifact.program.tensors if t.space is Space.HBM and t.role != "temp"]
    assert {t.role for t in in_hbm} == {"const", "input", "output"}
    assert compulsory_bytes(profile, made.artifact.program) == sum(t.bytes for t in in_hbm)
    slow = on(made, override(made.target, "hbm.gbs=0.01"))
    parts = parts_of(slow)
    before = sum(parts[p] for p in ("ideal", "format", "shape", "compulsory"))
    assert before == pytest.approx(sum(t.bytes for t in in_hbm) / hbm_bytes_per_clk(slow.target), rel=1e-6)
    assert parts["compulsory"] > parts["exposed"]


def test_latency_is_booked_on_the_exposed_part() -> None:
    made = program("zhenwu-m890")
    slow = on(made, override(made.target, "hbm.latency_ns=5600", "l2.latency_ns=1800"))
    before, after = parts_of(made), parts_of(slow)
    assert {p for p in before if before[p] != pytest.approx(after[p], abs=1e-3)} == {"exposed"}
    assert after["exposed"] > before["exposed"]


# The split of kernels.


@pytest.mark.parametrize("target", MACHINES)
def test_the_split_of_each_kernel_sums_to_its_cycles(target: str) -> None:
    record = record_of(program(target))
    for row in record["kernels"] + record["nodes"]:
        assert set(row["split"]) == set(PARTS)
        assert min(row["split"].values()) >= 0
        assert sum(row["split"].values()) == pytest.approx(row["cycles"])
        assert row["bound_by"] in PARTS


def test_a_slower_engine_takes_a_larger_part_of_the_split() -> None:
    made = program("zhenwu-m890")
    slow = on(made, override(made.target, "tensor.ii_clk.f32=3200"))
    before, after = (record_of(m)["split"] for m in (made, slow))
    assert after["tensor"] / sum(after.values()) > before["tensor"] / sum(before.values())
    assert {row["bound_by"] for row in record_of(slow)["kernels"]} == {"tensor"}


# The interval.


def test_the_interval_contains_the_time_and_names_what_it_depends_on() -> None:
    made = program("zhenwu-m890")
    profile = made.time().profile
    found = interval(made, profile)
    low, high = found["seconds"]
    assert low < profile.seconds < high
    assert found["joules"][0] < sum(profile.energy_joules.values()) < found["joules"][1]
    marks = {leaf.path: leaf.mark for leaf in made.target.leaves()}
    numbers = [n["key"] for group in found["groups"] for n in group["numbers"]]
    assert all(marks[k] in RELATIVE for k in numbers)
    assert len(numbers) == len(set(numbers))
    widths = [g["seconds"][1] - g["seconds"][0] for g in found["groups"]]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] <= high - low
    assert "hbm.latency_ns" in numbers
    assert "tensor.ii_clk.bf16" not in numbers
    target = made.target
    for leaf in groups_of(uncertain_numbers(made.artifact.program, profile, target))["latency"]:
        target = with_number(target, leaf.path, leaf.value * 1.2)
    latency = next(g for g in found["groups"] if g["group"] == "latency")
    longer = on(made, target).time().profile.seconds
    assert latency["seconds"][1] == pytest.approx(longer)


def test_a_machine_that_is_known_exactly_has_no_interval() -> None:
    made = program()
    profile = made.time().profile
    known = tuple(dataclasses.replace(leaf, mark="F") for leaf in made.target.leaves())
    exact = on(made, dataclasses.replace(made.target, provenance=known))
    assert uncertain_numbers(made.artifact.program, profile, exact.target) == []
    assert interval(exact, profile)["seconds"] == [profile.seconds, profile.seconds]


def test_long_programs_get_an_interval_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program("zhenwu-m890", rows=1)
    profile = made.time().profile
    monkeypatch.setattr(interval_module, "INSTRUCTIONS", profile.instructions)
    assert "--interval makes them" in interval(made, profile)["skipped"]
    assert "seconds" in interval(made, profile, always=True)


@pytest.mark.parametrize("machine", ["zhenwu-m890", "zhenwu-810e"])
def test_a_retimed_run_takes_the_time_of_a_new_one(machine: str) -> None:
    made = program(machine)
    timer = Retimer(made.artifact.program, made.artifact.vectors, made.target)
    for leaf in uncertain_numbers(made.artifact.program, made.time().profile, made.target):
        target = with_number(made.target, leaf.path, deviated(leaf, slower=True))
        assert timer.seconds(target, [leaf.path]) == on(made, target).time().profile.seconds, leaf


def test_the_interval_is_not_narrower_than_one_number_at_a_time() -> None:
    made = program("zhenwu-m890")
    profile = made.time().profile
    effects = []
    for leaf in uncertain_numbers(made.artifact.program, profile, made.target):
        target = with_number(made.target, leaf.path, deviated(leaf, slower=True))
        effects.append(on(made, target).time().profile.seconds - profile.seconds)
    high = interval(made, profile)["seconds"][1]
    assert high - profile.seconds >= 0.99 * np.sqrt(sum(max(e, 0.0) ** 2 for e in effects))
    assert high - profile.seconds <= 1.01 * sum(abs(e) for e in effects) + 0.01 * profile.seconds


@pytest.mark.parametrize(
    ("leaf", "slower", "expected"),
    [
        (Leaf("hbm.latency_ns", 500.0, "ns", "E", ""), True, 600.0),
        (Leaf("hbm.gbs", 1000.0, "GB/s", "E-cal", ""), True, 900.0),
        (Leaf("hbm.efficiency", 0.9, "ratio", "E", ""), False, 1.0),
        (Leaf("sync.ring_op_clk", 2, "clk", "E", ""), True, 2.4),
        (Leaf("load.row_clk", 1, "clk", "E", ""), False, 0.8),
        (Leaf("vector.lanes", 128, "lane", "E", ""), True, 102),
        (Leaf("tensor.ii_clk.bf16", 1, "clk", "E", ""), True, 2),
        (Leaf("tensor.ii_clk.bf16", 1, "clk", "E", ""), False, 1),
    ],
)
def test_a_number_that_is_off(leaf: Leaf, slower: bool, expected: float) -> None:
    assert deviated(leaf, slower=slower) == pytest.approx(expected)


def test_every_number_belongs_to_a_group() -> None:
    leaves = program("zhenwu-810e").target.leaves()
    found = groups_of(leaves)
    assert sum(map(len, found.values())) == len(leaves)
    assert list(found) == list(GROUPS)


# The trace.

REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "s": {"name", "cat", "ph", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ph", "ts", "pid", "tid", "id", "bp"},
    "C": {"name", "ph", "ts", "pid", "tid", "args"},
    "M": {"name", "ph", "pid", "tid", "args"},
}
METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name",
            "thread_sort_index": "sort_index"}  # fmt: skip


def check_format(trace: dict[str, Any]) -> None:
    """The rules of the Chrome trace event format that Perfetto's importer relies on."""
    assert trace["displayTimeUnit"] in ("ns", "ms")
    ends: dict[tuple[int, int], float] = {}
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[int, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        assert set(event) == REQUIRED[event["ph"]]
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        track = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert set(event["args"]) == {METADATA[event["name"]]}
            continue
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["ts"] >= ends.get(track, 0.0) - 2e-6
            ends[track] = event["ts"] + event["dur"]
            slices.setdefault(track, []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert all(isinstance(v, float) and v >= 0 for v in event["args"].values())
        else:
            flows.setdefault(event["id"], []).append(event)
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert set(slices) == named
    for begin, end in flows.values():
        assert (begin["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert begin["ts"] <= end["ts"]
        for event in (begin, end):
            enclosing = slices[event["pid"], event["tid"]]
            assert any(low - 1e-6 <= event["ts"] <= high for low, high in enclosing)


def test_the_trace_has_the_format_and_everything_that_happened(tmp_path: Path) -> None:
    made = program()
    raw = traced(made)
    summary = write_trace(tmp_path / "t.json", raw, made.nodes)
    assert str(summary) == "everything"
    trace = json.loads((tmp_path / "t.json").read_text())
    check_format(trace)
    events = trace["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == raw.profile.instructions
    assert {e["args"]["node"] for e in slices if e["args"]["kernel"]} == {"first", "second"}
    assert {"mma first", "mma second"} <= {e["name"] for e in slices}
    assert any(e["name"].startswith("copy w") for e in slices)
    arrows = [e for e in events if e["ph"] == "s"]
    assert {e["cat"] for e in arrows} == {"ring", "counter"}
    assert summary.arrows == len(arrows)
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {"chip", "CU 0", "CU 1"}
    assert {e["name"] for e in events if e["ph"] == "C"} == {
        "hbm bandwidth", "l2 bandwidth", "power", "l1 in use, all units", "transfers in flight",
    }  # fmt: skip


def test_a_bounded_trace_leaves_out_whole_units_and_says_so(tmp_path: Path) -> None:
    made = program("zhenwu-m890", rows=333)
    raw = traced(made)
    limit = raw.profile.instructions // 4
    summary = write_trace(tmp_path / "t.json", raw, made.nodes, limit)
    assert 0 < summary.instructions <= limit
    assert 0 < summary.units < summary.of_units
    assert f"{summary.units} of {summary.of_units} units" in str(summary)
    trace = json.loads((tmp_path / "t.json").read_text())
    check_format(trace)
    assert trace["otherData"]["shown"] == str(summary)
    assert write_trace(tmp_path / "t.json", raw, made.nodes, 3).instructions == 3
    check_format(json.loads((tmp_path / "t.json").read_text()))


def test_counters_integrate_to_the_profile() -> None:
    made = program(rows=333)
    raw = traced(made)
    profile = raw.profile
    found = {name: values.mean() for name, (_, values) in counters(raw).items()}
    for space, name in ((Space.HBM, "hbm bandwidth"), (Space.L2, "l2 bandwidth")):
        moved = profile.read_bytes.get(space, 0) + profile.write_bytes.get(space, 0)
        assert found[name] * 1e9 * profile.seconds == pytest.approx(moved, rel=1e-6)
    assert found["power"] * profile.seconds == pytest.approx(sum(profile.energy_joules.values()), rel=1e-6)
    held = counters(raw)["l1 in use, all units"][1]
    assert held.max() <= made.target.cu * made.target.l1.bytes / 1024
    assert held[-1] >= 0


def test_amounts_are_spread_over_the_bins_they_touch() -> None:
    start, end, amount = np.array([0.5, 2.0]), np.array([2.5, 2.0]), np.array([4.0, 1.0])
    assert spread(start, end, amount, np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx([1.0, 2.0, 2.0])


def test_the_waterfall_needs_no_names_of_kernels_twice() -> None:
    made = program()
    names = [k.name for s in made.artifact.program.segments for k in s.kernels]
    assert len(set(names)) == len(names)
    profile = made.time().profile
    found = waterfall(profile, made.artifact.program, load_target("ppu-tiny"), dict.fromkeys(names, 1.0))
    assert found["total_cycles"] == profile.cycles
    assert DType.F32 in {t.dtype for t in made.artifact.program.tensors}


# Launches.


@pytest.mark.parametrize("granularity", ["segment", "kernel"])
def test_kernels_and_launches_sum_to_the_run(granularity: str) -> None:
    made = program("zhenwu-m890")
    target = override(made.target, f"launch.granularity={granularity}", "launch.kernel_us=2")
    record = record_of(on(made, target))
    charged = sum(row["cycles"] for row in record["kernels"])
    assert charged + record["launch_cycles"] == pytest.approx(record["cycles"])
    us = (1.5 + (2 * (len(record["kernels"]) - 1) if granularity == "kernel" else 0)) * 1e3
    assert record["launch_cycles"] == pytest.approx(us / target.clk_ns)
    assert sum(p["cycles"] for p in record["waterfall"]["parts"]) == record["cycles"]


def test_a_program_that_runs_hot_is_slower_without_pause() -> None:
    made = program("zhenwu-m890", rows=333)
    cold = record_of(made)["power"]
    hot = record_of(on(made, override(made.target, "power.tdp_w=91")))["power"]
    assert cold["throttled_seconds"] == 0
    assert hot["throttled_seconds"] > 0
    assert hot["sustained_seconds"] == pytest.approx(made.time().profile.seconds + hot["throttled_seconds"])
    assert hot["watts"] == cold["watts"]


def test_a_compressed_trace_holds_the_same_and_has_no_time_in_it(tmp_path: Path) -> None:
    raw = traced(program())
    plain, packed, again = (tmp_path / name for name in ("a.json", "a.json.gz", "b.json.gz"))
    for path in (plain, packed, again):
        write_trace(path, raw, {})
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.read_bytes() == again.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size
