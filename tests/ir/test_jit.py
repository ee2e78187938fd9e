"""Compiled loops: what the key of their machine code covers, and where that is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import numba
import numpy as np
import onnx
import pytest

from examples import dense
from ppuc.ir import encode_loops
from ppuc.ir.errors import InternalError
from ppuc.ir.jit import build, decorators, store
from ppuc.ir.jit.decorators import entry, helper, key_of
from ppuc.targets.simulator import event_loop, hazard_check, value_loop

SIGNATURE = (numba.int64,)
LOOP = """
from ppuc.ir.jit.decorators import array_helper, entry, helper

SCALE = 3

@helper
def scaled(x):
    return x * SCALE

@entry
def run(x):
    return scaled(x) if x in (1, 2) else 0
"""


def function_of(text: str) -> Callable[..., Any]:
    """`run` of a module with this text."""
    scope: dict[str, Any] = {"__name__": "loops"}
    exec(compile(text, "loops.py", "exec"), scope)
    function: Callable[..., Any] = scope["run"].py_func
    return function


def key(text: str, signature: tuple[Any, ...] = SIGNATURE) -> str:
    return key_of(function_of(text), signature)


# Keys.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * SCALE", "x + SCALE"),
        ("SCALE = 3", "SCALE = 4"),
        ("SCALE = 3", "SCALE = 3.0"),
        ("@helper", "@array_helper"),
        ("(1, 2)", "(1, 3)"),
        ("else 0", "else x"),
    ],
)
def test_a_change_of_anything_reached_changes_the_key(old: str, new: str) -> None:
    assert key(LOOP) != key(LOOP.replace(old, new))


INTRINSIC = """
from numba.core import types
from numba.extending import intrinsic
from ppuc.ir.jit.decorators import entry

def reader(size):
    @intrinsic
    def read(typing, address):
        def code(context, builder, signature, args):
            return builder.add(args[0], args[0])
        return getattr(types, f"uint{size}")(types.int64), code
    return read

read = reader(8)

@entry
def run(x):
    return read(x)
"""


@pytest.mark.parametrize(("old", "new"), [("builder.add", "builder.mul"), ("reader(8)", "reader(16)")])
def test_a_change_of_an_intrinsic_changes_the_key(old: str, new: str) -> None:
    assert key(INTRINSIC) != key(INTRINSIC.replace(old, new))
    assert key(INTRINSIC) == key(INTRINSIC)


def test_comments_and_places_do_not_change_the_key() -> None:
    moved = LOOP.replace("@helper", "# a comment\n\n@helper").replace("SCALE = 3", "OTHER = 1\nSCALE = 3")
    assert key(LOOP) == key(moved)


def test_types_of_arguments_change_the_key() -> None:
    assert key(LOOP) != key(LOOP, (numba.float64,))


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (numba, "__version__", "0.1"),
        (decorators.llvmlite, "__version__", "0.1"),
        (decorators, "get_process_triple", lambda: "riscv64-unknown-linux-gnu"),
        (decorators, "_ENTRY", {"nogil": False}),
        (build, "SETTINGS", {**build.SETTINGS, "NUMBA_CPU_NAME": "znver4"}),
    ],
)
def test_versions_and_processors_change_the_key(
    owner: object, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(LOOP)
    monkeypatch.setattr(owner, name, value)
    assert key(LOOP) != before


@pytest.mark.parametrize("loop", [event_loop.run, hazard_check.run, value_loop.run])
def test_the_key_reaches_every_module_of_a_loop(loop: Any) -> None:
    """Files that a loop is compiled from, found by following calls."""
    found, pending = set(), [loop.py_func]
    while pending:
        function = pending.pop()
        values = [v for _, v in decorators._globals(function) if isinstance(v, decorators.Dispatcher)]
        pending += [v.py_func for v in values if v.py_func not in found]
        found.add(function)
    files = {Path(f.__code__.co_filename).stem for f in found}
    if loop is hazard_check.run:
        assert files == {"hazard_boxes", "hazard_check", "vector_clocks"}
    elif loop is value_loop.run:
        assert files == {"value_boxes", "value_loop"}
    else:
        assert files >= {"bandwidth", "cache", "cost", "cursor", "engines", "events", "issue", "transfers", "work"}
        assert files >= {"event_loop", "vector_cost", "water_filling"}
    assert all(isinstance(f, FunctionType) and f.__closure__ is None for f in found)


def test_keys_are_the_same_in_every_process() -> None:
    program = (
        "from ppuc.ir.jit.decorators import key_of\n"
        "from ppuc.targets.simulator import event_loop, hazard_check, value_loop\n"
        "print([key_of(m.run.py_func, ()) for m in (event_loop, hazard_check, value_loop)])"
    )
    command = [sys.executable, "-c", program]
    found = {
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_helper_is_compiled_once_for_all_constants() -> None:
    @helper
    def scaled(x: int, by: int) -> int:
        return x * by

    @numba.njit
    def both(x: int) -> int:
        return scaled(x, 2) + scaled(x, 3) + scaled(x, by=4)

    assert both(5) == 45
    assert len(cast(Any, scaled).signatures) == 1


# The store.


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The package's folder and the user's, both of which do not exist yet."""
    monkeypatch.setattr(store, "PACKAGED", tmp_path / "package" / "compiled")
    monkeypatch.setenv("PPUC_CACHE_DIR", str(tmp_path / "user"))
    return store.PACKAGED, tmp_path / "user" / "compiled"


def unwritable(tmp_path: Path) -> Path:
    """A folder that cannot be made, by nobody: below a file."""
    file = tmp_path / "file"
    file.touch()
    return file / "compiled"


def test_what_is_saved_is_loaded(folders: tuple[Path, Path]) -> None:
    assert store.load("a.run", "k" * 64) is None
    assert store.save("a.run", "k" * 64, b"code")
    assert store.load("a.run", "k" * 64) == b"code"
    assert store.load("a.run", "j" * 64) is None
    assert [f.parent for f in folders[0].iterdir()] == [folders[0]]
    assert not folders[1].exists()


def test_the_users_folder_is_next(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PACKAGED", unwritable(tmp_path))
    assert store.save("a.run", "k" * 64, b"code")
    assert store.load("a.run", "k" * 64) == b"code"
    assert len(list(folders[1].iterdir())) == 1


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PACKAGED", unwritable(tmp_path))
    monkeypatch.setenv("PPUC_CACHE_DIR", "")
    assert not store.save("a.run", "k" * 64, b"code")
    assert store.load("a.run", "k" * 64) is None


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:40] + b"X" + d[41:], lambda d: b""])
def test_a_damaged_file_is_none(folders: tuple[Path, Path], damage: Callable[[bytes], bytes]) -> None:
    store.save("a.run", "k" * 64, b"some code of a loop")
    (file,) = folders[0].iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert store.load("a.run", "k" * 64) is None


def test_old_files_are_removed(folders: tuple[Path, Path]) -> None:
    for i in range(store.KEPT + 3):
        store.save("a.run", f"{i:064}"[::-1], b"code")
        os.utime(folders[0] / store.file_name("a.run", f"{i:064}"[::-1]), (i, i))
    assert len(list(folders[0].iterdir())) == store.KEPT
    assert store.load("a.run", f"{0:064}"[::-1]) is None
    assert store.load("a.run", f"{store.KEPT + 2:064}"[::-1]) == b"code"


# Entry points.


def encoded(loop: Callable[..., None]) -> list[int]:
    """e4m3 codes of 1 and 2."""
    codes, values = np.zeros(2, np.uint8), np.array([1, 2], np.float32)
    values.flags.writeable = False
    loop(values, codes, False)
    return [int(code) for code in codes]


@pytest.fixture
def builds(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entry points that are compiled, for which code that was compiled before is taken."""
    made: dict[str, bytes] = {}
    real, names = build.compiled, list[str]()

    def compiled(module: str, name: str, signature: Any) -> bytes:
        names.append(name)
        if name not in made:
            made[name] = real(module, name, signature)
        return made[name]

    monkeypatch.setattr(build, "compiled", compiled)
    return names


def test_an_entry_point_is_compiled_once(folders: tuple[Path, Path], builds: list[str]) -> None:
    """Then it is loaded, unless its file is damaged."""
    said: list[str] = []
    with store.announced(said.append):
        for _ in range(2):
            assert encoded(entry(encode_loops.e4m3.py_func)) == [0x38, 0x40]
            assert builds == ["e4m3"]
        (file,) = folders[0].iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        for _ in range(2):
            assert encoded(entry(encode_loops.e4m3.py_func)) == [0x38, 0x40]
            assert builds == ["e4m3", "e4m3"]
    assert len(said) == 1


def test_another_version_of_numba_compiles_again(
    folders: tuple[Path, Path], builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(entry(encode_loops.e4m3.py_func))
    monkeypatch.setattr(numba, "__version__", "0.1")
    assert encoded(entry(encode_loops.e4m3.py_func)) == [0x38, 0x40]
    assert builds == ["e4m3", "e4m3"]
    assert len(list(folders[0].iterdir())) == 2


def test_the_compiling_process_takes_no_settings_from_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def run(command: list[str], *, env: dict[str, str], **rest: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(env)
        return subprocess.CompletedProcess(command, 1, b"", b"no such processor")

    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    monkeypatch.setenv("NUMBA_CPU_NAME", "znver4")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InternalError, match=r"cannot compile loops\.run:\nno such processor"):
        build.compiled("loops", "run", SIGNATURE)
    assert {k: v for k, v in seen.items() if k.startswith("NUMBA_")} == build.SETTINGS


# The command line.

VERIFY = """
import sys
from pathlib import Path
from ppuc.compiler.cli import main
from ppuc.ir.jit import build, store
from ppuc.ir.jit.decorators import key_of

home, real = store.PACKAGED, build.compiled

def compiled(module, name, signature):
    key = key_of(getattr(sys.modules[module], name).py_func, signature)
    here, store.PACKAGED = store.PACKAGED, home
    code = store.load(f"{module}.{name}", key) or real(module, name, signature)
    store.PACKAGED = here
    return code

build.compiled = compiled
store.PACKAGED = Path(sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize(
    ("packaged", "cache", "note"),
    [
        (str(store.PACKAGED), "", None),
        ("{tmp}/compiled", "", "; they are kept"),
        (
            "/dev/null/compiled",
            "/dev/null/cache",
            "not kept: /dev/null/compiled and /dev/null/cache/compiled cannot",
        ),
    ],
)
def test_compiling_is_said_only_when_it_is(packaged: str, cache: str, note: str | None, tmp_path: Path) -> None:
    """Also where neither the package nor the home directory can be written. For speed, the code that would be compiled
    is that of the real store, if it is there."""
    onnx.save(dense.model(), tmp_path / "dense.onnx")
    words = [packaged.format(tmp=tmp_path), "verify", str(tmp_path / "dense.onnx"), "-t", "ppu-tiny"]
    environment = os.environ | {"PPUC_CACHE_DIR": cache}
    run = subprocess.run([sys.executable, "-c", VERIFY, *words], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "agrees with ONNX Runtime" in run.stdout
    notes = [line for line in run.stderr.splitlines() if "compiling" in line]
    assert len(notes) == (note is not None)
    assert all(str(note) in line for line in notes)
