"""Wheels bring the compiled loops along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

from examples import dense
from tools.build_loops import ENTRIES
from tools.build_wheel import wheels

ROOT = Path(__file__).parents[2]
INSTALLED = """
import sys, ppuc
from ppuc.compiler.cli import main
assert ppuc.__file__.startswith(sys.argv.pop(1)), ppuc.__file__
main()
"""


def test_every_entry_point_is_built() -> None:
    files = [f for floor in ("ir", "targets", "compiler") for f in (ROOT / floor).rglob("*.py")]
    found = [re.findall(r"^@entry\ndef (\w+)", f.read_text(encoding="utf-8"), re.MULTILINE) for f in files]
    assert sorted(name for names in found for name in names) == sorted(entry.__name__ for entry in ENTRIES)


@pytest.mark.slow
def test_a_wheel_compiles_nothing(tmp_path: Path) -> None:
    """In another folder, without a cache directory; pip fetches setuptools to build it."""
    (wheel,) = wheels(tmp_path / "dist")
    assert f"-cp{sys.version_info.major}{sys.version_info.minor}-none-any" in wheel.name
    folder = tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    onnx.save(dense.model(), tmp_path / "dense.onnx")
    command = [sys.executable, "-c", INSTALLED, str(folder), "verify", str(tmp_path / "dense.onnx"), "-t", "ppu-tiny"]
    environment = os.environ | {"PYTHONPATH": str(folder), "PPUC_CACHE_DIR": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "compiling" not in run.stderr
    assert not (folder / "ppuc" / "tests").exists()
