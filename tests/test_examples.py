"""The example reads what was drawn: a trained network from a registry package, through every stage of the product."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def installed(*packages: str) -> bool:
    try:
        return all(version(package) for package in packages)
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(
    not installed("pillow", "rapidocr-onnxruntime"),
    reason="needs Pillow and a trained model: `make test` installs both",
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_simulated_ppu_reads_the_line(precision: str, tmp_path: Path) -> None:
    command = [sys.executable, "examples/read_text.py", "--text", "Read 4096 words", "--precision", precision]
    done = subprocess.run([*command, "--keep", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    facts = dict(line.split(":", 1) for line in done.stdout.splitlines() if ": " in line)
    assert facts["the simulated PPU read"].strip() == "Read 4096 words"
    assert facts["hazards"].strip() == "none"
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
    assert (tmp_path / "inputs.npz").exists()
