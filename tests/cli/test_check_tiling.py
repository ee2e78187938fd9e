"""`ppuc check` reports the kernels that no tiling fits, as `ppuc compile` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.calling import json_of, ppuc
from tests.support.onnx_text import model_of

BESIDE_A_HOST_STEP = """g (float[1, 64, 39] x) => (float[1, 64, 39] y, double[1, 64, 39] z) {
    [first] a = Relu(x) [far] y = Conv <pads = [8, 8], group = 4> (a, w)
    [doubled] d = Cast <to = 11> (x) [host] z = Erf(d)
}"""
PLAIN = """g (float[1, 64, 39] x) => (float[1, 64, 39] y) {
    [first] a = Relu(x) [far] y = Conv <pads = [8, 8], group = 4> (a, w)
}"""


def saved(text: str, folder: Path) -> Path:
    weights = {"w": np.random.default_rng(5).standard_normal((64, 16, 17), np.float32)}
    onnx.save(model_of(text, weights), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("text", [PLAIN, BESIDE_A_HOST_STEP], ids=["plain", "beside a host step"])
@pytest.mark.parametrize(("l1", "fits"), [(512, False), (16384, True)])
def test_check_says_what_compile_says(text: str, l1: int, fits: bool, tmp_path: Path) -> None:
    model = saved(text, tmp_path)
    machine = ("-t", "ppu-tiny", "--set", f"l1.bytes={l1}")
    checked = ppuc("check", model, *machine)
    compiled = ppuc("compile", model, *machine, "-o", tmp_path / "m.ppu")
    assert (checked.exit_code == 0) == fits
    assert (compiled.exit_code == 0) == fits
    if not fits:
        assert "node far: no tiling fits ppu-tiny" in checked.stdout
        assert "no tiling fits ppu-tiny" in compiled.stderr
        record = json_of("check", model, *machine)
        assert not record["ok"]
        assert any("node far: no tiling fits" in problem for problem in record["problems"])
