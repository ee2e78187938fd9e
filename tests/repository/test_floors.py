"""Imports: they are absolute, each third-party library is imported in one place, and none is slow at start-up.
`tools.house` (test_house.py) checks the layering.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from tests.support.small_models import mlp

ROOT = Path(__file__).parents[2]
FLOORS = ("ir", "targets", "compiler")
HOMES = {
    "onnx": ("compiler/frontend/", "compiler/simplify/", "compiler/host/worker.py", "compiler/predict/operators.py"),
    "onnxruntime": ("compiler/validation/oracle.py", "compiler/host/worker.py"),
    "lark": ("ir/text/",),
    "numba": ("ir/jit/",),
    "llvmlite": ("ir/jit/",),
    "google": ("compiler/frontend/",),
    "platformdirs": ("ir/user_cache.py",),
    "threadpoolctl": ("targets/simulator/", "ir/interpret_kernel.py"),
    "rich": ("compiler/report/", "compiler/commands/"),
    "PIL": ("compiler/quantization/images.py",),
    "xxhash": ("ir/checksum.py",),
    "pandas": ("targets/simulator/result.py",),
    "altair": ("compiler/report/charts.py",),
    "vl_convert": ("compiler/report/charts.py",),
    "click": ("compiler/cli.py", "compiler/commands/"),
}
EVERYWHERE = {"numpy", "ml_dtypes"}
PRIVATE = re.compile(r"/work/|\.\./shared|\bshared/|DESIGN\.md|MODELS\.md|file:///|/opt/|/root/|/home/")


def product_files() -> list[Path]:
    """Every module of the product."""
    return sorted(f for floor in FLOORS for f in (ROOT / floor).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether at run time (not under `if TYPE_CHECKING`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for branch in test.body
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in checking
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), id(node) not in checking


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", product_files(), ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    for module, _ in imports(path):
        assert not module.startswith("."), f"relative import of {module}"


def test_importing_knows_no_host() -> None:
    """What becomes of nodes that cannot be imported is a policy's business; only `survey` reports both sides."""
    above = ("ppuc.compiler.frontend.offload", "ppuc.compiler.host")
    folder = ROOT / "compiler" / "frontend"
    importing = [f for f in folder.rglob("*.py") if not f.is_relative_to(folder / "offload") and f.stem != "survey"]
    found = {name_of(f): m for f in importing for m, _ in imports(f) if m.startswith(above)}
    assert importing
    assert not found


@pytest.mark.parametrize("path", product_files(), ids=name_of)
def test_libraries_stay_at_home(path: Path) -> None:
    for module, at_run_time in imports(path):
        library = module.split(".")[0]
        if library in sys.stdlib_module_names or library in EVERYWHERE or library == "ppuc" or not at_run_time:
            continue
        assert library in HOMES, f"{library} has no home"
        assert name_of(path).startswith(HOMES[library]), f"{library} belongs into {', '.join(HOMES[library])}"


def test_homes_are_inhabited() -> None:
    used = {(m.split(".")[0], name_of(p)) for p in product_files() for m, _ in imports(p)}
    for library, homes in HOMES.items():
        for home in homes:
            assert any(lib == library and name.startswith(home) for lib, name in used), f"no {library} in {home}"


def test_help_loads_nothing_slow() -> None:
    """`import ppuc` and `ppuc --help` stay instant."""
    loaded = "import sys, ppuc, ppuc.compiler.cli; print(*{m.split('.')[0] for m in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numba", "onnx", "onnxruntime", "lark", "numpy"} & set(modules)


def test_compiling_loads_only_what_it_needs(tmp_path: Path) -> None:
    """The oracle's and the simulator's libraries take as long to load as a small model to compile."""
    model = tmp_path / "model.onnx"
    onnx.save(mlp(), model)
    code = "import sys, ppuc; ppuc.compile(sys.argv[1], target='ppu-tiny', dims={'N': 3}); print(*sys.modules)"
    words = [sys.executable, "-c", code, str(model)]
    modules = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert not {"onnxruntime", "numba", "lark", "networkx", "rich"} & set(modules)


def test_nothing_names_a_machine() -> None:
    """Tracked files name no folder outside the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or path.is_symlink() or not path.is_file():
            continue
        found = PRIVATE.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{name} says {found and found[0]}"


def test_every_package_is_listed() -> None:
    """A folder that setuptools is not told of would be missing from wheels."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {"ppuc." + name_of(f.parent).replace("/", ".") for f in product_files() if f.name == "__init__.py"}
    assert found - {"ppuc.compiler.api"} | {"ppuc"} == set(tool["packages"])
