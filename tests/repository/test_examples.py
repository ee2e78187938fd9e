"""The example reads what was drawn: a trained network from a registry package, through every stage of the product."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]


def installed(*packages: str) -> bool:
    try:
        return all(version(package) for package in packages)
    except PackageNotFoundError:
        return False


needs_the_recogniser = pytest.mark.skipif(
    not installed("pillow", "rapidocr-onnxruntime"),
    reason="needs Pillow and a trained model: `make test` installs both",
)


@needs_the_recogniser
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_simulated_ppu_reads_the_line(precision: str, tmp_path: Path) -> None:
    command = [sys.executable, "examples/read_text.py", "--text", "Read 4096 words", "--precision", precision]
    done = subprocess.run([*command, "--keep", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    facts = dict(line.split(":", 1) for line in done.stdout.splitlines() if ": " in line)
    assert facts["the simulated PPU read"].strip() == "Read 4096 words"
    assert facts["hazards"].strip() == "none"
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
    assert (tmp_path / "inputs.npz").exists()


@needs_the_recogniser
def test_the_metric_counts_lines_that_are_read(tmp_path: Path) -> None:
    """By ONNX Runtime most lines, not all; a line that is not there is not counted."""
    data = tmp_path / "lines.npz"
    subprocess.run([sys.executable, "examples/lines.py", str(data), "--count", "20"], cwd=ROOT, check=True)
    sys.path.insert(0, str(ROOT / "examples"))
    import lines

    drawn = np.load(data)
    session = onnxruntime.InferenceSession(str(lines.model_file()))
    samples = [{"x": drawn["x"][i : i + 1], "text": drawn["text"][i : i + 1]} for i in range(20)]
    outputs = [{"scores": session.run(None, {"x": s["x"]})[0]} for s in samples]
    assert 0.6 <= lines.metric(outputs, samples) < 1.0
    assert lines.metric(outputs[:1], [{**samples[0], "text": np.array(["something else"])}]) == 0.0
