"""The benchmarks of compile time: chains that can be compiled, and peers that may be missing or refuse a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import growth, peers
from benchmarks.compile_time import COMPILE
from tests.support.small_models import mlp


@pytest.mark.parametrize("name", sorted(growth.CHAINS))
def test_chains_are_valid_models(name: str) -> None:
    model = growth.CHAINS[name](20)
    assert len(model.graph.node) in range(18, 21)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    shape = session.get_inputs()[0].shape
    (y,) = session.run(None, {"x": np.ones(shape, np.float32)})
    assert np.isfinite(y).all()


def test_passes_are_timed(tmp_path: Path) -> None:
    onnx.save(growth.convolutions(4), path := tmp_path / "chain.onnx")
    found = growth.seconds_of_passes(path)
    assert {"import", "fuse", "emit"} <= set(found)
    assert found[growth.TOTAL] == pytest.approx(sum(s for name, s in found.items() if name != growth.TOTAL))


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "PEERS", (peers.Compiler("Other", "", "no-such-distribution"),))
    monkeypatch.setattr(peers, "measured", lambda network, compilers, rounds: [peers.Row(network, peers.WARM, 2.0)])
    monkeypatch.setattr(sys, "argv", ["peers", "--network", "swin"])
    peers.main()
    out, err = capsys.readouterr()
    assert err == "Other: skipped, no-such-distribution is not installed (pip install -e '.[bench]')\n"
    assert out.splitlines()[-1].split() == ["swin", "ppuc,", "warm", "2.00", "1.00", "-"]


def test_a_peer_that_refuses_a_file_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def saved(folder: Path) -> Path:
        model = mlp()
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value or 3
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"

    monkeypatch.setitem(peers.NETWORKS, "swin", saved)
    monkeypatch.setenv("PPUC_CACHE_DIR", str(tmp_path))
    compilers = (peers.Compiler(peers.WARM, COMPILE), peers.Compiler("Other", "raise ValueError('opset 9')"))
    own, other = peers.measured("swin", compilers, 1)
    assert own.cpu_seconds is not None
    assert own.cpu_seconds > 0
    assert (other.cpu_seconds, other.refused) == (None, "ValueError: opset 9")


def test_the_first_error_is_the_reason() -> None:
    error = subprocess.CalledProcessError(
        1, "x", stderr="note\nmodel.mlir:1: error: no such op\nNeed more information?\n"
    )
    assert peers.reason(error) == "model.mlir:1: error: no such op"
    assert peers.reason(subprocess.CalledProcessError(-9, "x")) == "exit code -9"
