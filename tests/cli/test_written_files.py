"""Output files are written atomically, whatever their name and folder; if one cannot be written, the exit code is 2."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.inputs import read_npz, write_npz
from ppuc.compiler.pipeline.dump import DumpFolder
from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.files import whole_file, write_file
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

SIZES = ("--dim", "N=3", "-t", "ppu-tiny")
WRITERS = {
    "compile": ("compile", "m.onnx", *SIZES, "-o"),
    "dump": ("compile", "m.onnx", *SIZES, "-o", "other.ppu", "--dump"),
    "run": ("run", "m.ppu", "--output"),
    "trace": ("profile", "m.ppu", "--no-interval", "--trace"),
    "policy": ("quantize", "m.onnx", "--calibrate", "s.npz", *SIZES, "-o"),
    "plot": ("quantize", "m.onnx", "--calibrate", "s.npz", *SIZES, "--plot"),
    "state": ("quantize", "m.onnx", "--calibrate", "s.npz", *SIZES, "--min-sqnr", "10", "--state"),
    "sweep": ("targets", "ppu-tiny", "--sweep", "hbm.gbs=20,40", "--csv"),
    "chart": ("targets", "ppu-tiny", "--sweep", "hbm.gbs=20,40", "--model", "m.onnx", "--dim", "N=3", "--plot"),
    "predicted": ("predict", "-t", "ppu-tiny", "--csv", "cases.csv", "--plot"),
    "simplify": ("simplify", "m.onnx", "-o"),
    "rebatch": ("rebatch", "m.onnx", "--batch", "3", "--dim", "N=1", "-o"),
    "disasm": ("disasm", "m.ppu", "-o"),
    "asm": ("asm", "m.s", "--like", "m.ppu", "-o"),
    "memory": ("inspect", "m.ppu", "--memory"),
    "opt": ("opt", "steps/00-import.ppir", "-o"),
    "opt to the end": ("opt", "steps/00-import.ppir", "--to-end", "-o"),
}
ENDING = {"opt": ".ppir", "opt to the end": ".ppu", "chart": ".svg", "predicted": ".svg"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its program, its dump and data."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "m.onnx").write_bytes(mlp().SerializeToString())
    ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 3}, dump=folder / "steps").save(folder / "m.ppu")
    np.savez(folder / "s.npz", x=np.random.default_rng(0).standard_normal((12, 20), np.float32))
    (folder / "cases.csv").write_text("m,n,k,measured_us\n64,64,64,5\n128,64,64,9\n")
    assert CliRunner().invoke(cli, ["disasm", str(folder / "m.ppu"), "-o", str(folder / "m.s")]).exit_code == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder of one test."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def invoke(writer: str, output: str) -> Result:
    return CliRunner().invoke(cli, [*WRITERS[writer], output])


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def assert_refused(result: Result, *, what: str = "cannot be written") -> None:
    assert result.exit_code == 2, result.output
    assert what in result.stderr
    assert "Traceback" not in result.output


@contextmanager
def little_disk(size: int) -> Iterator[None]:
    """No file can be longer than `size`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("writer", WRITERS)
def test_places_that_cannot_be_written(here: Path, writer: str) -> None:
    before, ending = listing(here), ENDING.get(writer, "")
    what = "folder" if writer == "dump" else "cannot be written"
    for output in (f"nowhere/x{ending}", f"m.onnx/x{ending}", "n" * 300 + ending, "/proc/x" + ending):
        if writer == "dump" and output.startswith("nowhere"):
            continue  # is made
        result = invoke(writer, output)
        assert_refused(result, what="cannot hold a dump" if writer == "dump" else what)
        assert listing(here) == before, output
    if not ending and writer != "dump":
        assert_refused(invoke(writer, "/dev/full"))
        assert Path("/dev/full").is_char_device()
        assert_refused(invoke(writer, "steps"))
        assert listing(here) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_up(here: Path, writer: str) -> None:
    output = "steps-again" if writer == "dump" else "x" + ENDING.get(writer, "")
    before = listing(here)
    with little_disk(100):
        result = invoke(writer, output)
    assert_refused(result)
    left = [name for name in listing(here) if name not in before]
    assert not [name for name in left if "tmp" in name or "partial" in name]
    assert left == [] or writer == "dump"
    (here / output).exists() or invoke(writer, output)
    kept = (here / output).read_bytes() if writer != "dump" else b""
    with little_disk(100):
        invoke(writer, output)
    assert writer == "dump" or (here / output).read_bytes() == kept


def test_a_folder_without_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for writer in WRITERS:
        if writer != "dump":
            result = invoke(writer, "x" + ENDING.get(writer, ""))
            assert_refused(result)
            assert "permission denied" in result.stderr


def test_new_targets_in_places_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, before = ["targets", "--like", "ppu-tiny", "--new"], listing(here)
    for name in ("nowhere/x", "../x", "n" * 300, "a\0b", "", "/dev/full"):
        assert_refused(CliRunner().invoke(cli, [*new, name]), what="is not a valid target name")
    with little_disk(100):
        assert_refused(CliRunner().invoke(cli, [*new, "npu"]))
    assert listing(here) == before
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert_refused(CliRunner().invoke(cli, [*new, "npu"]))
    monkeypatch.chdir(here)
    assert listing(here) == before


def test_names_as_long_as_a_file_system_has_them(here: Path) -> None:
    name = "n" * 251 + ".ppu"
    assert invoke("compile", name).exit_code == 0
    assert invoke("run", "o" * 255).exit_code == 0
    assert CliRunner().invoke(cli, ["run", name, "--inputs", "o" * 255]).exit_code == 2  # outputs are no inputs


def test_devices_are_written_as_they_are(here: Path) -> None:
    for writer in ("compile", "run", "disasm", "simplify"):
        assert invoke(writer, "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()
    os.mkfifo(here / "pipe")
    reader = subprocess.Popen(["cat", str(here / "pipe")], stdout=subprocess.PIPE)
    assert invoke("disasm", "pipe").exit_code == 0
    assert reader.communicate()[0] == (here / "m.s").read_bytes()


# Files.


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError):
        _write(path, lambda: 1 // 0)
    assert (path.read_bytes(), listing(tmp_path)) == (b"new", ["f"])


def _write(path: Path, meanwhile: Callable[[], object]) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        meanwhile()


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(UsageError, match="x: cannot be written\n  got: No such file or directory"):
        _write(folder / "x", lambda: shutil.rmtree(folder))
    assert listing(tmp_path) == []


def test_a_dump_whose_folder_vanishes(made: Path, tmp_path: Path) -> None:
    from ppuc.compiler.pipeline.resume import read_module

    module = read_module(made / "steps" / "00-import.ppir")
    dump = DumpFolder(tmp_path / "d")
    dump.write_module(0, "import", module)
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(UsageError, match="cannot be written\n  got: No such file or directory"):
        dump.write_module(1, "fold", module)


def test_names_with_nul() -> None:
    for write in (
        lambda name: write_file(name, b"x"),
        lambda name: DumpFolder(Path(name)),
        lambda name: ppuc.compile(mlp(), target="ppu-tiny", dims={"N": 3}).save(name),
    ):
        with pytest.raises(ppuc.PpucError, match="a NUL character in its name"):
            write("a\0b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "a\0b"),
        ("compile", "m.onnx", *SIZES, "-o", "x.ppu", "--dump", "a\0b"),
        ("run", "m.ppu", "--inputs", "a\0b"),
        ("quantize", "m.onnx", "--calibrate", "a\0b", *SIZES),
        ("asm", "m.s", "--like", "a\0b", "-o", "x.ppu"),
        ("opt", "steps/00-import.ppir", "-o", "a\0b.ppir"),
    ],
)
def test_nul_in_arguments(here: Path, arguments: tuple[str, ...]) -> None:
    before = listing(here)
    assert_refused(CliRunner().invoke(cli, arguments), what="a NUL character in its name")
    assert listing(here) == before


def test_arrays_under_any_name(tmp_path: Path) -> None:
    names = ("file", "allow_pickle", "../x", "a/b", " ", "\n", "é", "n" * 300)
    arrays = {name: np.array([i]) for i, name in enumerate(names)}
    write_npz(tmp_path / "o.npz", arrays)
    assert read_npz(tmp_path / "o.npz") == arrays
    for name in ("a\0b", "n" * 70_000):
        with pytest.raises(InputError, match="cannot hold an array of this name"):
            write_npz(tmp_path / "o.npz", {name: np.zeros(1)})
    assert read_npz(tmp_path / "o.npz") == arrays


def test_outputs_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_of("g (float[2] file) => (float[2] allow_pickle) { allow_pickle = Neg(file) }")
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert CliRunner().invoke(cli, ["run", "m.onnx", "-t", "ppu-tiny", "--output", "o.npz"]).exit_code == 0
    assert set(read_npz("o.npz")) == {"allow_pickle"}


# Streams.


def outcome(*arguments: str, shell: str = "") -> tuple[int, str]:
    """Exit code and standard error of the command, with a redirection."""
    command = f'"{sys.executable}" -c "from ppuc.compiler.cli import main; main()" {" ".join(arguments)} {shell}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


FULL = "error: standard output: cannot be written\n  got: No space left on device\n"


@pytest.mark.parametrize(
    "arguments", [("targets",), ("targets", "--json"), ("--help",), ("check", "none.onnx", "--json")]
)
def test_standard_output_that_is_full(arguments: tuple[str, ...]) -> None:
    code, error = outcome(*arguments, shell=">/dev/full")
    assert code == 2
    assert error.endswith(FULL)
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "shell", "code"),
    [
        (("targets",), ">&-", 0),
        (("check", "none.onnx"), "2>&-", 2),
        (("check", "none.onnx"), "2>/dev/full", 2),
        (("check", "none.onnx"), ">&- 2>&-", 2),
    ],
)
def test_streams_that_are_closed(arguments: tuple[str, ...], shell: str, code: int) -> None:
    assert outcome(*arguments, shell=shell)[0] == code
