"""Fixtures of this folder."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.cli.calling import TINY, ppuc
from tests.support.small_models import mlp


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
