"""The command `ppuc`: what it prints, how it ends, and the text of every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from ppuc.compiler.cli import INTERNAL_ERROR, cli
from ppuc.compiler.commands.common import simulation_bar
from ppuc.compiler.version import VERSION
from tests.small_models import lookup, mlp

COMMANDS = (
    "compile", "run", "verify", "profile", "check", "quantize", "simplify", "opt", "inspect", "disasm", "asm",
    "targets", "ops", "passes",
)  # fmt: skip
TINY = ("--target", "ppu-tiny")


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def json_of(*arguments: object) -> dict[str, Any]:
    result = ppuc(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    assert record["schema"] == 1
    assert record["command"] == arguments[0]
    return record


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


@pytest.fixture
def program(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mlp.ppu"
    result = ppuc("compile", model, "--dim", "N=2", *TINY, "-o", path)
    assert result.exit_code == 0, result.stderr
    return path


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
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert f'version = "{VERSION}"' in pyproject.read_text()
    assert ppuc("--version").stdout == f"ppuc, version {VERSION}\n"


HEAVY = ("numpy", "onnx", "onnxruntime", "numba", "lark", "networkx", "rich", "ml_dtypes")


@pytest.mark.parametrize("code", ["import ppuc", "import ppuc.compiler.cli as c; c.cli.main(['--help'])"])
def test_starting_loads_nothing_heavy(code: str) -> None:
    heavy = f"[m for m in {HEAVY!r} if m in sys.modules]"
    report = f"import atexit, sys\natexit.register(lambda: print({heavy}, file=sys.stderr))\n"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", report + code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert time.perf_counter() - started < 3


# Mistakes. Each is a message on stderr, exit code 2, nothing on stdout.


def error_of(*arguments: object) -> str:
    result = ppuc(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_missing_model_file() -> None:
    assert error_of("compile", "none.onnx") == "error: none.onnx: there is no such file\n"


def test_unbound_dimension_says_what_to_type(model: Path) -> None:
    assert error_of("compile", model) == (
        f"error: {model}: dimensions of the inputs are not fixed\n"
        "  got: x: f32[N, 20]\n  expected: a size for each\n  hint: add --dim N=...\n"
    )


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("N", "error: --dim: is not of the form NAME=VALUE\n  got: N\n"),
        ("N=two", "error: --dim: the size of 'N' is not a whole number\n  got: two\n  hint: e.g. --dim N=1\n"),
        ("M=2", "error: MODEL: the model has no open dimension 'M'\n  expected: one of N\n"),
    ],
)
def test_wrong_dimensions(model: Path, option: str, text: str) -> None:
    assert error_of("compile", model, "--dim", option) == text.replace("MODEL", str(model))


def test_unknown_target_and_key(model: Path) -> None:
    text = error_of("compile", model, "--dim", "N=1", "--target", "zhenwu-m89")
    assert text.startswith("error: target 'zhenwu-m89': no builtin target has this name\n")
    assert "zhenwu-m890" in text
    assert error_of("targets", "ppu-tiny", "--set", "hbm.gb=1").startswith("error: ")
    assert error_of("targets", "ppu-tiny", "--set", "hbm.gbs=fast").startswith("error: ")


def test_unknown_precision_and_command(model: Path) -> None:
    assert "'fp7' is not one of 'model', 'fp32', 'bf16', 'fp16'" in error_of("compile", model, "--precision", "fp7")
    assert "No such command 'compiel'" in error_of("compiel", model)


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x07\x12\x02"])
def test_damaged_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for command in ("compile", "run", "verify", "profile", "check", "inspect"):
        assert error_of(command, path).startswith(f"error: {path}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx"]


def test_errors_as_json() -> None:
    result = ppuc("compile", "none.onnx", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": "ModelError",
        "diagnostics": [
            {
                "where": "none.onnx",
                "what": "there is no such file",
                "got": None,
                "expected": None,
                "hint": None,
                "entities": [],
            }
        ],
    }
    assert result.stderr == "error: none.onnx: there is no such file\n"


def test_internal_errors_show_a_traceback_and_what_to_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    import ppuc.targets.description as description

    def broken() -> list[str]:
        raise RuntimeError("boom")

    monkeypatch.setattr(description, "builtin_targets", broken)
    result = ppuc("targets")
    assert result.exit_code == INTERNAL_ERROR
    assert "RuntimeError: boom" in result.stderr
    assert "This is a fault of ppuc" in result.stderr
    assert result.stdout == ""


def test_files_of_unknown_kind() -> None:
    assert error_of("inspect", "net.pdf") == (
        "error: net.pdf: has a name that says nothing of its kind\n  expected: .onnx, .ppir, .ppu\n"
    )


# Listings and descriptions.


def test_targets_lists_all_and_shows_one() -> None:
    record = json_of("targets")
    assert {t["name"] for t in record["targets"]} >= {"zhenwu-m890", "zhenwu-810e", "ppu-tiny"}
    assert [t["name"] for t in record["targets"] if t["default"]] == ["zhenwu-m890"]
    assert "ppu-tiny" in ppuc("targets").stdout
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
    assert "neither the PPU nor the host knows it: bias" in result.stdout
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
    assert {"fold", "legalise", "place", "emit"} <= set(names)
    assert all(p["help"].endswith(".") for p in record["pipeline"])


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


def test_wrong_inputs(program: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", y=np.ones((2, 20), np.float32))
    assert error_of("run", program, "--inputs", tmp_path / "in.npz") == (
        f"error: {program}: no input is called 'y'\n  expected: x: f32[2, 20]\n"
        f"error: {program}: input 'x' is missing\n  expected: f32[2, 20]\n"
    )
    np.save(tmp_path / "x.npy", np.ones((2, 20)))
    assert error_of("run", program, "--input", f"x={tmp_path / 'x.npy'}") == (
        f"error: {program}: input 'x' has the wrong dtype\n  got: f64[2, 20]\n  expected: f32[2, 20]\n"
        "  hint: convert it with x.astype('float32')\n"
    )
    assert error_of("run", program, "--input", "z=random").startswith(f"error: {program}: no input is called 'z'\n")
    assert error_of("run", program, "--input", "x=none.npy") == "error: none.npy: no such file\n"


@pytest.mark.parametrize("command", ["run", "profile"])
@pytest.mark.parametrize(
    "option",
    [
        ("--alias", "a=b"),
        ("--tune", "2"),
        ("--calibrate", "data.npz"),
        ("--policy", "p.toml"),
        ("--no-repair",),
        ("--no-host",),
    ],
)
def test_options_that_come_too_late_are_refused(program: Path, command: str, option: tuple[str, ...]) -> None:
    assert error_of(command, program, *option) == (
        f"error: {option[0]}: has no effect on a compiled program\n  got: {program}\n  hint: give the .onnx file\n"
    )


def test_options_of_compiling_do_not_fit_a_program(program: Path) -> None:
    assert error_of("run", program, "--dim", "N=1") == (
        f"error: --dim: has no effect on a compiled program\n  got: {program}\n  hint: give the .onnx file\n"
    )
    assert error_of("verify", program).startswith(f"error: {program}: is a compiled program\n")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verify_agrees(model: Path, precision: str) -> None:
    record = json_of("verify", model, "--dim", "N=3", *TINY, "-p", precision)
    assert record["ok"]
    assert record["first_offender"] is None
    (output,) = record["outputs"]
    assert set(output) == {
        "name", "type", "ok", "reason", "max_abs", "max_rel", "rms_rel", "cosine", "sqnr_db", "mismatches", "tolerance",
        "worst", "sensitivity",
    }  # fmt: skip
    assert output["sqnr_db"] > 90 if precision == "fp32" else 30 < output["sqnr_db"] < 90


def test_verify_layers_compares_inner_nodes(model: Path) -> None:
    record = json_of("verify", model, "--dim", "N=3", *TINY, "--layers")
    assert record["ok"]
    assert {layer["name"] for layer in record["layers"]} == {"relu"}
    assert "agrees with ONNX Runtime" in ppuc("verify", model, "--dim", "N=3", *TINY, "--layers").stdout


def test_verify_fails_with_exit_code_1_when_values_are_wrong(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.runtime import CompiledProgram, ProgramResult

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
    from ppuc.compiler.runtime import CompiledProgram, ProgramResult
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
    from ppuc.compiler.runtime import CompiledProgram, ProgramResult

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


def test_opt_mistakes(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "steps"
    assert ppuc("compile", model, "--dim", "N=2", *TINY, "-o", tmp_path / "a.ppu", "--dump", dump).exit_code == 0
    first = dump / "00-import.ppir"
    assert error_of("opt", first, "-p", "fould").startswith("error: -p: there is no pass 'fould'\n")
    assert "hint: did you mean 'fold'?" in error_of("opt", first, "-p", "fould")
    assert error_of("opt", first, "-p", "fold{speed=3}").startswith("error: -p: pass 'fold' has no option 'speed'\n")
    assert error_of("opt", first, "-p", "fold", "--to-end") == "error: --to-end: cannot be combined with -p\n"
    assert error_of("opt", first, "-o", "x.txt").startswith("error: -o: has a name that says neither")
    assert error_of("opt", first, "-o", tmp_path / "x.ppu").startswith("error: module: holds no program yet")
    assert error_of("opt", first, "--set", "hbm.gbs=900", "-p", "fold").startswith(
        f"error: {first}: was made for another target\n"
    )
    first.write_text(first.read_text().replace("matmul(", "matmull(", 1))
    text = error_of("opt", first, "-p", "fold")
    assert "matmull" in text
    assert "^" in text


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


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_simulation_says_what_it_waits_for(
    compiled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ppuc.compiler.commands.common._PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("ppuc.targets.simulator.run.compiled", lambda: compiled)
    with simulation_bar():
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert ("compiling the simulator for this machine" in said) is not compiled


def test_damaged_programs(program: Path, tmp_path: Path) -> None:
    whole = program.read_bytes()
    bad = tmp_path / "bad.ppu"
    for content in (b"", whole[:100], whole[:-1], b"x" + whole[1:]):
        bad.write_bytes(content)
        for command in ("run", "profile", "inspect", "disasm"):
            assert error_of(command, bad).startswith(f"error: {bad}: ")


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


def test_a_precision_that_is_refused_has_no_note(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    result = CliRunner().invoke(cli, ["compile", str(path), "--dim", "N=2", "-p", "mixed"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --precision mixed: needs a policy")
