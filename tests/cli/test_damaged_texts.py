"""Texts and data that commands read, with random changes: either refused or accepted with their new meaning, without a
traceback or a hang. Data under a checksum gives the original result or an error."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.pipeline.resume import read_module
from ppuc.ir.errors import PpucError
from ppuc.ir.text import print_module
from tests.support.damage import bit_flips, cuts, text_mutations
from tests.support.onnx_text import model_of
from tests.support.small_models import lookup, mlp

SECONDS = 10.0
SIZES = ("--dim", "N=3", "-t", "ppu-tiny")
FOLDER = Path(__file__).parents[2] / "targets"


def each(path: Path, changed: Iterable[bytes], attempt: Callable[[], object]) -> None:
    """Write each of `changed` to a file, attempt something, and put back what was there."""
    before = path.read_bytes()
    try:
        for data in changed:
            path.write_bytes(data)
            started = time.process_time()
            attempt()
            assert time.process_time() - started < SECONDS, data
    finally:
        path.write_bytes(before)


def command(*arguments: object) -> Callable[[], object]:
    """Runs a command, which may succeed or refuse."""

    def attempt() -> None:
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exit_code in (0, 2), result.output

    return attempt


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The steps of two compilations."""
    folder = tmp_path_factory.mktemp("dumps")
    ppuc.compile(mlp(), target="ppu-tiny", precision="bf16", dims={"N": 3}, dump=folder / "mlp")
    ppuc.compile(lookup(), target="ppu-tiny", dump=folder / "lookup")
    return sorted(folder.glob("*/*.ppir"))


def test_every_step_of_a_dump(dumps: list[Path]) -> None:
    """A text that is accepted says the same when it is printed and read again."""
    rng = random.Random(3)

    def attempt() -> None:
        try:
            module = read_module(step)
        except PpucError:
            return
        text = print_module(module)
        step.write_text(text, encoding="utf-8")
        assert print_module(read_module(step)) == text

    for step in dumps:
        each(step, text_mutations(step.read_text(encoding="utf-8"), 12, rng), attempt)


def test_going_on_from_a_step(dumps: list[Path], tmp_path: Path) -> None:
    rng = random.Random(4)
    for step in dumps:
        attempt = command("opt", step, "--to-end", "-o", tmp_path / "x.ppu")
        each(step, text_mutations(step.read_text(encoding="utf-8"), 4, rng), attempt)


@pytest.mark.parametrize("name", ["index.json", "recipes.ppir", "bin"])
def test_constants_of_a_dump_are_those_that_were_dumped(tmp_path: Path, name: str) -> None:
    """Some of them are computed from others."""
    model, program, again = (tmp_path / n for n in ("m.onnx", "m.ppu", "again.ppu"))
    weights = {"w": np.random.default_rng(1).standard_normal((128, 256), np.float32), "b": np.ones(128, np.float32)}
    text = "g (float[3, 256] x) => (float[3, 128] y) { y = Gemm<transB = 1>(x, w, b) }"
    model.write_bytes(model_of(text, weights).SerializeToString())
    command("compile", model, "-t", "ppu-tiny", "-p", "bf16", "--dump", tmp_path / "d", "-o", program)()
    steps, places = sorted((tmp_path / "d").glob("*.ppir")), sorted((tmp_path / "d" / "constants").glob(f"*{name}"))
    assert places
    want, rng = program.read_bytes(), random.Random(5)

    def attempt() -> None:
        again.unlink(missing_ok=True)
        command("opt", steps[-1], "--to-end", "-o", again)()
        assert not again.exists() or again.read_bytes() == want

    for path in places:
        if name == "bin":
            each(path, [*bit_flips(path.read_bytes(), 8, rng), *cuts(path.read_bytes(), 8, rng)], attempt)
        else:
            each(path, text_mutations(path.read_text(encoding="utf-8"), 60, rng), attempt)
    attempt()
    assert again.exists()


def test_manifests(tmp_path: Path) -> None:
    """What is read from one is what was written."""
    model, folder = tmp_path / "m.onnx", tmp_path / "d"
    model.write_bytes(mlp().SerializeToString())
    command("compile", model, *SIZES, "--dump", folder, "-o", tmp_path / "m.ppu")()
    reports = [[*("inspect", str(folder), "--json"), *report] for report in (["--remarks", "all"], ["--fusion"])]
    said = [CliRunner().invoke(cli, report).output for report in reports]
    assert all(said)

    def attempt() -> None:
        for report, want in zip(reports, said, strict=True):
            result = CliRunner().invoke(cli, report)
            assert result.exit_code == 2 or result.output == want, result.output

    manifest = folder / "manifest.json"
    each(manifest, text_mutations(manifest.read_text(encoding="utf-8"), 60, random.Random(10)), attempt)


def test_targets(tmp_path: Path) -> None:
    path, rng = tmp_path / "ppu-tiny.toml", random.Random(6)
    text = (FOLDER / "ppu-tiny.toml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    each(path, text_mutations(text, 120, rng), command("targets", path))


def test_policies(tmp_path: Path) -> None:
    model, policy, data = (tmp_path / n for n in ("m.onnx", "p.toml", "x.npz"))
    model.write_bytes(mlp().SerializeToString())
    np.savez(data, x=np.random.default_rng(0).standard_normal((24, 20), np.float32))
    command("quantize", model, "--calibrate", data, *SIZES, "-o", policy)()
    rng, arrays = random.Random(7), tmp_path / "p.npz"
    attempt = command("compile", model, *SIZES, "-p", "fp8", "--policy", policy, "-o", tmp_path / "o.ppu")
    each(policy, text_mutations(policy.read_text(encoding="utf-8"), 40, rng), attempt)
    each(arrays, [*bit_flips(arrays.read_bytes(), 15, rng), *cuts(arrays.read_bytes(), 15, rng)], attempt)


def test_arrays(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    model.write_bytes(mlp().SerializeToString())
    np.savez(data, x=np.ones((3, 20), np.float32))
    rng = random.Random(8)
    changed = [*bit_flips(data.read_bytes(), 40, rng), *cuts(data.read_bytes(), 40, rng)]
    each(data, changed, command("run", model, "-t", "ppu-tiny", "--inputs", data))
    each(
        data,
        changed[::4],
        command("compile", model, *SIZES, "-p", "fp8", "--calibrate", data, "-o", tmp_path / "o.ppu"),
    )


def test_assembly(tmp_path: Path) -> None:
    """What is assembled is a program within the rules; whether it ends is its author's business."""
    program, text = tmp_path / "p.ppu", tmp_path / "p.s"
    ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 3}).save(program)
    command("disasm", program, "-o", text)()
    rng = random.Random(9)
    attempt = command("asm", text, "--like", program, "-o", tmp_path / "q.ppu")
    each(text, text_mutations(text.read_text(encoding="utf-8"), 80, rng), attempt)
    attempt()
    assert (tmp_path / "q.ppu").read_bytes() == program.read_bytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a = " + "[" * 100_000, "it is nested too deeply"),
        ("a = " + "{b = " * 50_000, "it is nested too deeply"),
        (".".join("a" * 100_000) + " = 1", "a key has 64 parts or more"),
        ("a = " + "9" * 5000, "Exceeds the limit"),
        ('a = "\0"', "Illegal character"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
    ],
)
def test_toml_that_would_take_the_reader_down(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    started = time.process_time()
    for arguments in (["targets"], ["check", "m.onnx", "-t"]):
        result = CliRunner().invoke(cli, [*arguments, str(path)])
        assert result.exit_code == 2
        assert f"{path}: is not TOML\n  got: " in result.output
        assert why in result.output
    assert time.process_time() - started < 2


def test_devices_are_no_texts(tmp_path: Path) -> None:
    """They may not terminate."""
    model = tmp_path / "m.onnx"
    model.write_bytes(mlp().SerializeToString())
    for arguments in (
        ("compile", model, *SIZES, "-p", "fp8", "-o", tmp_path / "o.ppu", "--policy", "/dev/zero"),
        ("opt", "/dev/zero"),
        ("asm", "/dev/zero", "--like", model, "-o", tmp_path / "o.ppu"),
        ("run", model, *SIZES, "--inputs", "/dev/zero"),
        ("run", model, *SIZES, "--input", "x=/dev/zero"),
        ("check", "/dev/zero"),
        ("inspect", "/dev/zero"),
    ):
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == 2, result.output
