"""Compiling, running, verifying and profiling with the command `ppuc`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.calling import TINY, error_of, json_of, ppuc
from tests.support.small_models import lookup


def test_compile_reports_and_is_deterministic(model: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a.ppu", "b.ppu")]
    records = [json_of("compile", model, "--dim", "N=2", *TINY, "-o", o) for o in outputs]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert records[0]["bytes"] == outputs[0].stat().st_size
    assert records[0]["inputs"] == {"x": "f32[2, 20]"}
    assert records[0]["outputs"] == {"y": "f32[2, 7]"}
    assert records[0]["kernels"] > 0


def test_run_gives_the_values_of_onnx_runtime(model: Path, program: Path, tmp_path: Path) -> None:
    import onnxruntime

    x = np.random.default_rng(2).standard_normal((2, 20)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for option in (("--inputs", tmp_path / "in.npz"), ("--input", f"x={tmp_path / 'x.npy'}")):
        result = ppuc("run", program, *option, "--output", tmp_path / "out.npz")
        assert result.exit_code == 0, result.stderr
        assert "f32[2, 7]" in result.stdout
    (want,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], want, rtol=1e-4, atol=1e-5)


def test_shapes_of_inputs_bind_dimensions(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((5, 20), np.float32))
    record = json_of("run", model, *TINY, "--inputs", tmp_path / "in.npz")
    assert record["outputs"]["y"]["type"] == "f32[5, 7]"
    assert record["cycles"] > 0
    assert record["hazards"] == []


def test_random_inputs_are_announced_and_seeded(program: Path) -> None:
    first, again = ppuc("run", program), ppuc("run", program)
    assert first.stderr == "note: no inputs given; using random ones (seed 0)\n"
    assert first.stdout == again.stdout
    assert ppuc("run", program, "--seed", 1).stdout != first.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verify_agrees(model: Path, precision: str) -> None:
    record = json_of("verify", model, "--dim", "N=3", *TINY, "-p", precision)
    assert record["ok"]
    assert record["first_offender"] is None
    (output,) = record["outputs"]
    assert set(output) == {
        "name", "type", "ok", "reason", "max_abs", "max_rel", "rms_rel", "cosine", "sqnr_db", "mismatches", "tolerance",
        "worst", "sensitivity", "verdict", "unproven", "note",
    }  # fmt: skip
    assert output["sqnr_db"] > 90 if precision == "fp32" else 30 < output["sqnr_db"] < 90


def test_verify_layers_compares_inner_nodes(model: Path) -> None:
    record = json_of("verify", model, "--dim", "N=3", *TINY, "--layers")
    assert record["ok"]
    assert {layer["name"] for layer in record["layers"]} == {"relu"}
    assert "agrees with ONNX Runtime" in ppuc("verify", model, "--dim", "N=3", *TINY, "--layers").stdout


def test_verify_fails_with_exit_code_1_when_values_are_wrong(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult

    honest = CompiledProgram.run

    def wrong(self: CompiledProgram, *arguments: Any, **options: Any) -> ProgramResult:
        result = honest(self, *arguments, **options)
        return ProgramResult({"y": result.outputs["y"] * np.float32(1.01)}, result.profile)

    monkeypatch.setattr(CompiledProgram, "run", wrong)
    result = ppuc("verify", model, "--dim", "N=3", *TINY)
    assert result.exit_code == 1
    assert "DISAGREES with ONNX Runtime" in result.stdout
    assert "first offender: y" in result.stdout


def test_a_hazard_fails_verify_and_run_although_values_agree(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult
    from ppuc.targets.simulator.result import Hazard

    honest = CompiledProgram.run

    def racing(self: CompiledProgram, *arguments: Any, **options: Any) -> ProgramResult:
        result = honest(self, *arguments, **options)
        hazard = Hazard("read-after-write", "l2", "%h", "load.box", "store.box")
        return ProgramResult(result.outputs, replace(result.profile, hazards=(hazard,)))

    monkeypatch.setattr(CompiledProgram, "run", racing)
    result = ppuc("verify", model, "--dim", "N=3", *TINY)
    assert result.exit_code == 1
    assert "agrees with ONNX Runtime, and its program has 1 HAZARDS" in result.stdout
    assert "read-after-write hazard in l2 on %h" in result.stdout
    assert ppuc("run", model, "--dim", "N=3", *TINY).exit_code == 1


def test_json_has_no_nan_or_infinity(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.program.compiled import CompiledProgram, ProgramResult

    honest = CompiledProgram.run

    def wrong(self: CompiledProgram, *arguments: Any, **options: Any) -> ProgramResult:
        result = honest(self, *arguments, **options)
        return ProgramResult({"y": result.outputs["y"] * np.float32(np.inf)}, result.profile)

    monkeypatch.setattr(CompiledProgram, "run", wrong)
    result = ppuc("verify", model, "--dim", "N=3", *TINY, "--json")
    assert result.exit_code == 1
    assert "Infinity" not in result.stdout
    assert json.loads(result.stdout)["outputs"][0]["max_abs"] is None


def test_integer_inputs_are_drawn_within_their_table(tmp_path: Path) -> None:
    path = tmp_path / "lookup.onnx"
    onnx.save(lookup(), path)
    assert json_of("verify", path, *TINY)["ok"]


def test_profile_books_time_on_kernels_and_nodes(program: Path, tmp_path: Path) -> None:
    record = json_of("profile", program, "--timing-only", "--trace", tmp_path / "trace.json")
    assert not record["values"]
    shares = sum(k["share"] for k in record["kernels"]) + record["launch_cycles"] / record["cycles"]
    assert shares == pytest.approx(1, abs=0.05)
    assert sum(n["cycles"] for n in record["nodes"]) == pytest.approx(sum(k["cycles"] for k in record["kernels"]))
    assert {n["node"] for n in record["nodes"]} == {"first", "second"}
    table = ppuc("profile", program, "--timing-only", "--top", 1).stdout
    assert "the costliest 1 of 2" in table
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert {e["args"]["node"] for e in complete if e["args"]["kernel"]} == {"first", "second"}
    assert max(e["ts"] + e["dur"] for e in complete) == pytest.approx(record["seconds"] * 1e6, rel=1e-3)
    tracks: dict[tuple[int, int], float] = {}
    for event in complete:
        assert event["ts"] >= tracks.get((event["pid"], event["tid"]), 0) - 1e-5
        tracks[event["pid"], event["tid"]] = event["ts"] + event["dur"]


def test_timing_and_values_take_the_same_time(program: Path) -> None:
    timed, valued = json_of("profile", program, "--timing-only"), json_of("profile", program, "--input", "x=random")
    assert timed["cycles"] == valued["cycles"]
    assert valued["values"]


def test_set_changes_time_and_no_value(model: Path, program: Path) -> None:
    slow = ("--target", "ppu-tiny", "--set", "hbm.latency_ns=90000")
    before, after = json_of("run", program), json_of("run", program, *slow)
    assert after["cycles"] > before["cycles"]
    assert after["outputs"] == before["outputs"]


def test_dump_resumes_to_the_same_program(model: Path, program: Path, tmp_path: Path) -> None:
    dump = tmp_path / "steps"
    result = ppuc("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "again.ppu", "--dump", dump)
    assert result.exit_code == 0, result.stderr
    texts = sorted(dump.glob("*.ppir"))
    assert len(texts) > 5
    for text in texts:
        result = ppuc("opt", text, "--to-end", "-o", tmp_path / "resumed.ppu")
        assert result.exit_code == 0, (text, result.stderr)
        assert (tmp_path / "resumed.ppu").read_bytes() == program.read_bytes(), text
    same = ppuc("opt", texts[0])
    assert same.stdout == texts[0].read_text()
    assert ppuc("opt", texts[0], "-p", "canonicalise,fold").exit_code == 0
    assert json_of("inspect", texts[-1])["kind"] == "module"


def test_other_pipelines_from_the_command_line(model: Path, tmp_path: Path) -> None:
    given = (model, "--dim", "N=2", *TINY)
    compiled = json_of(
        "compile", *given, "-o", tmp_path / "none.ppu", "--pipeline", "none", "--dump", tmp_path / "dump"
    )
    assert [p["pass"] for p in compiled["passes"]][:3] == ["import", "decompose", "lower-data-movement"]
    fewer = json_of("compile", *given, "-o", tmp_path / "a.ppu", "--disable-pass", "fold", "--disable-pass", "cascade")
    assert not {"fold", "cascade"} & {p["pass"] for p in fewer["passes"]}
    for command in ("run", "verify", "profile"):
        record = json_of(command, *given, "--pipeline", "none", "--seed", "1")
        plain = json_of(command, *given, "--seed", "1")
        assert record["cycles"] > plain["cycles"]
    assert ppuc("compile", *given, "-o", tmp_path / "plain.ppu", "--dump", tmp_path / "plain").exit_code == 0
    first = tmp_path / "plain" / "00-import.ppir"
    assert ppuc("opt", first, "--to-end", "--pipeline", "none", "-o", tmp_path / "b.ppu").exit_code == 0
    assert (tmp_path / "b.ppu").read_bytes() == (tmp_path / "none.ppu").read_bytes()
    less = ("--to-end", "--disable-pass", "fold", "--disable-pass", "cascade", "-o", tmp_path / "b.ppu")
    assert ppuc("opt", first, *less).exit_code == 0
    assert (tmp_path / "b.ppu").read_bytes() == (tmp_path / "a.ppu").read_bytes()
    back = ("--to-end", "--pipeline", "default", "-o", tmp_path / "b.ppu")
    assert ppuc("opt", tmp_path / "dump" / "00-import.ppir", *back).exit_code == 0
    assert (tmp_path / "b.ppu").read_bytes() == (tmp_path / "plain.ppu").read_bytes()


def test_check_passes_succeeds_on_a_right_compiler(model: Path, tmp_path: Path) -> None:
    record = json_of("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--check-passes")
    checked = [p for p in record["passes"] if p["error"]]
    assert len(checked) == sum(p["changed"] for p in record["passes"]) - 1
    assert all(p["error"]["outputs"]["y"]["sqnr_db"] > 90 for p in checked)


def test_disassembly_assembles_to_the_same_program(program: Path, tmp_path: Path) -> None:
    result = ppuc("disasm", program)
    assert result.exit_code == 0
    assert "mma" in result.stdout
    (tmp_path / "p.s").write_text(result.stdout)
    assert ppuc("asm", tmp_path / "p.s", "--like", program, "-o", tmp_path / "q.ppu").exit_code == 0
    assert (tmp_path / "q.ppu").read_bytes() == program.read_bytes()
    (tmp_path / "p.s").write_text("kernel what")
    assert error_of("asm", tmp_path / "p.s", "--like", program, "-o", tmp_path / "r.ppu").startswith("error: ")
    assert not (tmp_path / "r.ppu").exists()


def test_an_unknown_mnemonic_in_a_text_is_refused(model: Path, program: Path, tmp_path: Path) -> None:
    text, output, dump = tmp_path / "m.s", tmp_path / "again.ppu", tmp_path / "d"
    assert ppuc("disasm", program, "-o", text).exit_code == 0
    assert ppuc("compile", model, "--dim", "N=3", *TINY, "-o", tmp_path / "m.ppu", "--dump", dump).exit_code == 0
    (last,) = dump.glob("*-emit.ppir")
    for file in (text, last):
        file.write_text(file.read_text("utf-8").replace("store.box", "store.b"), "utf-8")
    for command in (("asm", text, "--like", program), ("opt", last, "--to-end")):
        done = ppuc(*command, "-o", output)
        assert done.exit_code == 2
        expected = "store.box or store.scatter"
        assert done.stderr == f"error: instruction 'store.b': does not encode a store\n  expected: {expected}\n"
        assert not output.exists()


def test_inspect_a_program(program: Path) -> None:
    record = json_of("inspect", program)
    assert record["target"] == "ppu-tiny"
    assert sum(m["bytes"] for m in record["memory"] if m["role"] == "const") >= 4 * (20 * 33 + 33 + 33 * 7)
    assert len(record["programs"]) == 2
    assert "ppu-tiny" in ppuc("inspect", program).stdout


def test_a_program_runs_without_the_compiler(program: Path) -> None:
    heavy = "[m for m in ('onnx', 'onnxruntime', 'ppuc.compiler.pipeline.manager') if m in sys.modules]"
    code = f"import sys, ppuc; ppuc.load({str(program)!r}).time(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_progress_of_a_simulation(program: Path) -> None:
    import ppuc as package

    seen: list[float] = []
    loaded = package.load(program)
    result = loaded.run(loaded.random_inputs(), progress=lambda segment, cycles: seen.append(cycles))
    assert seen == sorted(seen)
    assert seen[-1] == result.profile.cycles


def test_the_python_interface_does_the_same(model: Path, program: Path, tmp_path: Path) -> None:
    import ppuc as package

    made = package.compile(model, target="ppu-tiny", dims={"N": 2})
    made.save(tmp_path / "api.ppu")
    assert (tmp_path / "api.ppu").read_bytes() == program.read_bytes()
    x = made.random_inputs()
    loaded = package.load(program)
    result = loaded.run(x)
    np.testing.assert_array_equal(result.outputs["y"], made.run(x).outputs["y"])
    assert result.profile.cycles > 0
    assert package.verify(made, x).ok
    with pytest.raises(package.PpucError, match="cannot be verified without the ONNX model"):
        package.verify(loaded, x)
    with pytest.raises(AttributeError):
        _ = package.nothing
    assert "compile" in dir(package)
