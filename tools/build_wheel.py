"""Builds a wheel that brings the compiled loops along: `python -m tools.build_wheel [FOLDER]` (default: dist).

The loops serve the Python version and the numba version of the environment that runs this, on the same processor family
and operating system; elsewhere they are compiled on first use. The wheel carries the tag of the Python version: one is
built for each.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a file rather than with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppuc.ir.jit import store
from tools.build_loops import build

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ir", "targets", "compiler", "pyproject.toml", "README.md", "LICENSE")


def main() -> None:
    """Build into the folder named on the command line."""
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    for wheel in wheels(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        print(wheel)


def wheels(folder: Path) -> list[Path]:
    """Build the wheel into `folder`. Raises CalledProcessError if pip fails."""
    names = build()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "ppuc"
        for source in SOURCES:
            _copy(ROOT / source, tree / source)
        for name in names:
            _copy(store.find(name), tree / "ir" / "jit" / "compiled" / name)
        tag = f"--build-option=--python-tag=cp{sys.version_info.major}{sys.version_info.minor}"
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        subprocess.run([*command, f"--config-settings={tag}", str(tree)], check=True)
    return sorted(folder.glob("ppuc-*.whl"))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
