"""One record of options: checked when it is made, recorded in what is compiled, and the same for every command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.commands.options import MODEL, TARGET, CompileArguments, compile_arguments
from ppuc.compiler.commands.program import AT_RUN
from ppuc.compiler.driver import compile_model, examine
from ppuc.compiler.host.deferred import deferred_options
from ppuc.compiler.options import Calibration, CompileOptions, HostPolicy, Quantization
from ppuc.compiler.quantization.data import Data
from ppuc.ir.errors import PpucError, UsageError
from ppuc.targets.description import load_target
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

TINY = load_target("ppu-tiny")
SAMPLES = [{"x": np.random.default_rng(3).standard_normal((2, 20), np.float32)}] * 2


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompileOptions(TINY, "fp7"), "--precision: unknown precision 'fp7'\n  expected: model, fp32, "),
        (lambda: CompileOptions(TINY, tune=0), "--tune: is no number of tilings\n  got: 0\n  expected: 1 or more"),
        (
            lambda: CompileOptions(TINY, "bf16", quantization=Quantization(Data(SAMPLES))),
            "--calibrate: has no effect at this precision\n  got: bf16\n  expected: fp8, int8, 8bit, mixed, mxfp8, ",
        ),
        (
            lambda: CompileOptions(TINY, quantization=Quantization(policy=Path("p.toml"))),
            "--policy: has no effect at this precision\n  got: model\n",
        ),
        (
            lambda: CompileOptions(TINY, "fp8", quantization=Quantization(Data(SAMPLES), Path("p.toml"))),
            "--policy: decides the scales, so there is nothing to calibrate\n  hint: leave out one",
        ),
        (
            lambda: CompileOptions(TINY, "int8", quantization=Quantization(repair=False)),
            "--no-repair: has no effect where nothing is repaired\n  got: precision int8 without --calibrate\n",
        ),
        (
            lambda: CompileOptions(TINY, "mxfp8", quantization=Quantization(Data(SAMPLES), repair=False)),
            "--no-repair: has no effect where nothing is repaired\n  got: precision mxfp8\n",
        ),
        (lambda: HostPolicy(ops=(Path("/none.py"),)), "--host-ops: there is no such file\n  got: /none.py\n"),
    ],
)
def test_what_nobody_can_follow_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert str(refused.value).startswith(message)


def test_the_api_checks_them_too() -> None:
    """Samples that no layer is quantized with were passed over."""
    with pytest.raises(UsageError, match="--calibrate: has no effect at this precision"):
        ppuc.compile(mlp(), TINY, "bf16", {"N": 1}, calibrate=SAMPLES)


RECORDED = {"precision": "fp8", "aliases": {"past": "present"}, "tune": 3}
OF_ONE_MODEL = {
    "dims": {"N": 2},
    "shapes": {"x": (2, 3)},
    "values": {"n": np.array(2)},
    "aliases": {"past": "present"},
    "quantization": Quantization(Data(SAMPLES), calibration=Calibration("mse")),
    "keep_layers": True,
    "lenient": True,
}


def test_what_runs_is_compiled_alike_after_loading(tmp_path: Path) -> None:
    """What a program compiles while it runs depends on nothing that its file does not record."""
    (tmp_path / "ops.py").write_text("")
    options = CompileOptions(
        TINY,
        **{**OF_ONE_MODEL, **RECORDED},
        host=HostPolicy(ops=(tmp_path / "ops.py",)),  # type: ignore[arg-type]
    )
    aliases = {f"alias.{past}": present for past, present in options.aliases.items()}
    again = CompileOptions.of_record({**options.recorded(), **aliases}, TINY, options.host)
    assert again.aliases == options.aliases
    first, second = deferred_options(options), deferred_options(again)
    assert {f.name for f in fields(options)} == {"target", "host", *RECORDED, *OF_ONE_MODEL, "pipeline", "disabled"}
    for f in fields(options):
        assert getattr(first, f.name) == getattr(second, f.name), f.name
    assert (first.precision, first.tune, first.host) == ("fp8", 3, options.host)
    assert (first.dims, first.shapes, first.values, first.aliases, first.keep_layers) == ({}, {}, {}, {}, False)


@pytest.mark.parametrize("tries", ["0", "two", ""])
def test_a_record_that_makes_no_sense_is_refused(tries: str) -> None:
    with pytest.raises(UsageError, match="--tune: is no number of tilings"):
        CompileOptions.of_record({"precision": "model", "tune": tries}, TINY)


def test_a_policy_does_not_reach_what_is_compiled_later() -> None:
    options = CompileOptions(TINY, "mixed", quantization=Quantization(policy=Path("p.toml")))
    assert deferred_options(options).precision == "model"
    assert deferred_options(options).quantization == Quantization()


def test_programs_record_how_they_were_tuned(tmp_path: Path) -> None:
    program = ppuc.compile(mlp(), TINY, "bf16", {"N": 2}, tune=2)
    program.save(tmp_path / "m.ppu")
    loaded = ppuc.load(tmp_path / "m.ppu")
    assert (loaded.options.precision, loaded.options.tune) == ("bf16", 2)
    assert "tune" not in ppuc.compile(mlp(), TINY, "bf16", {"N": 2}).artifact.meta


def test_layers_are_compared_with_those_of_the_tuned_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppuc.compiler.comparing import layers

    seen: list[CompileOptions] = []

    def compiling(source: Any, options: CompileOptions) -> Any:
        seen.append(options)
        return compile_model(source, options)

    monkeypatch.setattr(layers, "compile_model", compiling)
    program = ppuc.compile(mlp(), TINY, dims={"N": 2}, tune=2)
    assert ppuc.verify(program, layers=True).layers
    assert [(o.tune, o.keep_layers, o.shapes) for o in seen] == [(2, True, {"x": (2, 20)})]


def test_several_sizes_are_dumped_apart(tmp_path: Path) -> None:
    ppuc.compile(mlp(), TINY, dims={"N": (1, 4)}, dump=tmp_path / "steps")
    for folder in ("N=1", "N=4"):
        assert (tmp_path / "steps" / folder / "manifest.json").is_file()


# The command line.


def options_of(command: str) -> set[str]:
    return {o for p in cli.commands[command].params for o in p.opts}


def declared(*options: Any) -> set[str]:
    made = click.command()(compile_arguments(*options)(lambda arguments: None))
    return {o for p in made.params for o in p.opts}


@pytest.mark.parametrize("command", ["compile", "run", "verify", "profile", "check", "targets"])
def test_every_command_that_compiles_takes_all_options(command: str) -> None:
    wanted = declared(*MODEL) if command == "targets" else declared(*TARGET, *MODEL)
    assert wanted <= options_of(command)


def test_every_option_has_its_field() -> None:
    made = click.command()(compile_arguments(*TARGET, *MODEL)(lambda arguments: None))
    judging = {p.name for name in ("quantize", "evaluate") for p in cli.commands[name].params}
    fields_of_options = {f.name for f in fields(CompileArguments)} - {"explicit"}
    assert {p.name for p in made.params} <= fields_of_options
    assert fields_of_options <= {p.name for p in made.params} | judging


VALUES = {
    "--calibrate": ["data.npz"],
    "--headroom": ["2"],
    "--host-ops": ["ops.py"],
    "--method": ["mse"],
    "--no-host": [],
    "--no-repair": [],
    "--policy": ["p.toml"],
    "--power-of-two": [],
    "--force": [],
    "--precision": ["bf16"],
    "--preprocess": ["how.toml"],
    "--alias": ["a=b"],
    "--tune": ["1"],
    "--pipeline": ["none"],
    "--disable-pass": ["fold"],
    "--lenient": [],
}


@pytest.mark.parametrize("option", VALUES)
def test_what_comes_too_late_for_a_program_is_refused(option: str, model: Path) -> None:
    taken = {f.name for f in fields(CompileArguments)} & {p.name for p in cli.commands["profile"].params}
    assert {p.removeprefix("--").replace("-", "_") for p in VALUES} | set(AT_RUN) >= taken
    program = model.with_suffix(".ppu")
    ppuc.compile(mlp(), TINY, dims={"N": 1}).save(program)
    done = run("profile", program, "--timing-only", "--no-interval", option, *VALUES[option])
    assert done.exit_code == 2
    if option == "--host-ops":  # a program runs them; only this file is missing
        assert "--host-ops: there is no such file" in done.stderr
    else:
        assert f"error: {option}: has no effect on a compiled program\n  got: {program}\n" in done.stderr


@pytest.mark.parametrize("option", ["--method", "--headroom", "--power-of-two", "--force", "--preprocess"])
@pytest.mark.parametrize("command", ["compile", "check"])
def test_calibration_without_samples_is_refused(command: str, option: str, model: Path) -> None:
    done = run(command, model, "--dim", "N=1", "-p", "fp8", option, *VALUES[option])
    assert done.exit_code == 2
    assert done.stderr == f"error: {option}: has no effect without --calibrate\n"


def test_a_sweep_without_a_model_has_no_use_for_compile_options() -> None:
    done = run("targets", "ppu-tiny", "--sweep", "hbm.gbs=10:20:10", "--tune", "2")
    assert done.exit_code == 2
    assert done.stderr == "error: --tune: has no effect without --model\n"


def test_check_takes_sizes_from_samples_and_formats_from_a_policy(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((3, 20), np.float32))
    sized = run("check", model, "-t", "ppu-tiny", "-p", "int8", "--calibrate", tmp_path / "data.npz")
    assert sized.exit_code == 0, sized.output
    assert "give sizes with" not in sized.stdout
    (tmp_path / "p.toml").write_text('[[layer]]\nname = "*"\nformat = "e4m3"\n')
    mixed = ("check", model, "-t", "ppu-tiny", "-p", "mixed", "--dim", "N=1")
    assert "needs a policy" in run(*mixed).stderr
    assert run(*mixed, "--policy", tmp_path / "p.toml").exit_code == 0


def test_check_refuses_what_cannot_share_memory(model: Path) -> None:
    done = run("check", model, "--dim", "N=1", "--alias", "x=z")
    assert done.exit_code == 2
    assert "--alias: no output is called 'z'" in done.stderr


def test_examining_does_not_calibrate() -> None:
    """Scales do not decide what runs where; samples that nobody could calibrate with give shapes all the same."""
    zeros = Data([{"x": np.zeros((2, 20), np.float32)}])
    found = examine(mlp(), CompileOptions(TINY, "int8", quantization=Quantization(zeros)))
    assert not found.problems
    with pytest.raises(PpucError, match="zero in every sample"):
        compile_model(mlp(), CompileOptions(TINY, "int8", quantization=Quantization(zeros)))


def test_quantize_times_the_program_that_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With --tune and --alias, as compiling does."""
    from ppuc.compiler.quantization import timing

    seen: list[Any] = []

    class Recording(timing.Run):
        def to_end(self, module: Any) -> Any:
            seen.append((dict(module.options).get("alias.past"), [getattr(p, "tries", None) for p in self.passes]))
            return super().to_end(module)

    monkeypatch.setattr(timing, "Run", Recording)
    weights = {"w": np.random.default_rng(0).standard_normal((16, 16), np.float32)}
    text = """net (float[2, 5, 16] past, float[2, 1, 16] x) => (float[2, 6, 16] present, float[2, 6, 16] y) {
        new = MatMul(x, w)
        present = Concat<axis = 1>(past, new)
        y = Tanh(present)
    }"""
    onnx.save(model_of(text, weights), tmp_path / "step.onnx")
    rng = np.random.default_rng(1)
    arrays = {"past": rng.standard_normal((4, 5, 16), np.float32), "x": rng.standard_normal((4, 1, 16), np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    data = ("--calibrate", tmp_path / "data.npz")
    done = run("quantize", tmp_path / "step.onnx", *data, "-t", "ppu-tiny", "--tune", 2, "--alias", "past=present")
    assert done.exit_code == 0, done.output
    assert seen
    assert all(alias == "present" and 2 in tries for alias, tries in seen)
    done = run("quantize", tmp_path / "step.onnx", *data, "-t", "ppu-tiny", "--alias", "past=y")
    assert done.exit_code == 2
    assert "--alias: 'y' does not extend 'past'" in done.stderr


def test_replaced_options_are_checked_again() -> None:
    options = CompileOptions(TINY, "fp8", quantization=Quantization(Data(SAMPLES)))
    with pytest.raises(UsageError, match="--calibrate: has no effect at this precision"):
        replace(options, precision="model")
