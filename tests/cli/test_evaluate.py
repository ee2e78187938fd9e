"""`ppuc evaluate`: a task measured on data, beside ONNX Runtime in f32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli.calling import TINY, error_of, json_of, ppuc
from tests.support.onnx_text import model_of

COUNT = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier x[N, 20] -> y[N, 6], and samples with labels, of which every fourth is wrong."""
    rng = np.random.default_rng(6)
    weights = {"w": rng.standard_normal((20, 32), np.float32), "v": rng.standard_normal((32, 6), np.float32)}
    text = """net (float[N, 20] x) => (float[N, 6] y) {
        a = MatMul(x, w)
        r = Relu(a)
        y = MatMul(r, v)
    }"""
    onnx.save(model_of(text, weights), tmp_path / "net.onnx")
    x = rng.standard_normal((COUNT, 20), np.float32)
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x})[0].argmax(1)
    label = np.where(np.arange(COUNT) % 4 == 0, (found + 1) % 6, found)
    np.savez(tmp_path / "data.npz", x=x, label=label)
    return tmp_path


def words(folder: Path, *more: object, model: str = "net.onnx") -> tuple[object, ...]:
    return ("evaluate", folder / model, "--data", folder / "data.npz", *more)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_metric_of_the_program_beside_f32(folder: Path, batch: int) -> None:
    """The third batch of four holds three samples, and the one that fills it up does not count."""
    record = json_of(*words(folder, *TINY, "--metric", "top-k,labels=label", "--dim", f"N={batch}"))
    assert record["samples"] == COUNT
    assert record["fp32"] == record["score"] == pytest.approx(8 / 11)
    assert record["drop"] == 0.0
    assert record["outputs"]["y"]["sqnr_db"] > 100
    coarse = json_of(*words(folder, *TINY, "--metric", "top-k", "-p", "fp8", "--dim", f"N={batch}"))
    assert coarse["fp32"] == 1.0
    assert 10 < coarse["outputs"]["y"]["sqnr_db"] < 40


def test_samples_may_be_files(folder: Path) -> None:
    """Files of one sample each fill a batch together, and give the same figure."""
    (folder / "files").mkdir()
    data = np.load(folder / "data.npz")
    for i in range(COUNT):
        np.savez(folder / "files" / f"{i:02}.npz", x=data["x"][i : i + 1], label=data["label"][i : i + 1])
    made = ("--metric", "top-k,labels=label", "--dim", "N=4")
    whole = json_of(*words(folder, *TINY, *made))
    files = json_of("evaluate", folder / "net.onnx", "--data", folder / "files", *TINY, *made)
    assert {k: whole[k] for k in ("samples", "fp32", "score", "outputs")} == {
        k: files[k] for k in ("samples", "fp32", "score", "outputs")
    }


def test_a_policy_and_a_python_metric(folder: Path) -> None:
    (folder / "m.py").write_text(
        "import numpy as np\n"
        "def metric(outputs, inputs):\n"
        "    assert all(i['x'].shape == (1, 20) and i['label'].shape == (1,) for i in inputs)\n"
        "    return np.mean([o['y'].argmax() == i['label'][0] for o, i in zip(outputs, inputs)])\n"
    )
    np.savez(folder / "calibration.npz", x=np.load(folder / "data.npz")["x"])
    ppuc("quantize", folder / "net.onnx", *TINY, "--calibrate", folder / "calibration.npz", "-o", folder / "p.toml")
    given = ("-p", "fp8", "--policy", folder / "p.toml", "--samples", 4)
    record = json_of(*words(folder, *TINY, *given, "--metric", folder / "m.py"))
    assert record["samples"] == 4
    assert record["fp32"] == 0.75


def test_a_compiled_program(folder: Path) -> None:
    ppuc("compile", folder / "net.onnx", *TINY, "-p", "bf16", "--dim", "N=2", "-o", folder / "net.ppu")
    alone = json_of(*words(folder, "--metric", "top-k,labels=label", model="net.ppu"))
    assert alone["fp32"] is None
    assert alone["score"] == pytest.approx(8 / 11, abs=0.2)
    beside = json_of(*words(folder, "--metric", "top-k", "--reference", folder / "net.onnx", model="net.ppu"))
    assert beside["fp32"] == 1.0
    assert beside["precision"] == "bf16"
    needed = error_of(*words(folder, "--metric", "top-k", model="net.ppu"))
    assert needed.startswith("error: --metric: without labels, the metric compares with the model in f32")
    assert "give --reference MODEL.onnx" in needed
    top = ("--metric", "top-k,labels=label")
    assert "has no effect on a compiled program" in error_of(*words(folder, *top, "-p", "bf16", model="net.ppu"))
    assert "there is no model in f32" in error_of(*words(folder, model="net.ppu"))
    absent = error_of(*words(folder, *top, "--reference", folder / "none.onnx", model="net.ppu"))
    assert absent.endswith("none.onnx: there is no such file\n")


def test_a_drop_is_an_exit_code(folder: Path) -> None:
    (folder / "m.py").write_text("def metric(outputs, inputs):\n    return float(outputs[0]['y'].max())\n")
    given = (*words(folder, *TINY, "-p", "fp8", "--metric", folder / "m.py"), "--max-drop")
    lost = json_of(*given, "100%")["drop"]
    assert lost != 0.0
    codes = [ppuc(*given, str(share)).exit_code for share in ("0", "1")]
    assert codes == [1 if lost > 0 else 0, 0]
    assert "needs a metric" in error_of(*words(folder, *TINY, "--max-drop", "1%"))


def test_the_table(folder: Path) -> None:
    shown = ppuc(*words(folder, *TINY, "--metric", "top-k,labels=label")).stdout
    assert "fp32, ONNX Runtime  0.727273" in shown
    assert "+0.00%" in shown
    assert "11 samples" in shown
    without = ppuc(*words(folder, *TINY)).stdout
    assert "outputs, against fp32" in without
    assert "ONNX Runtime" not in without


def test_data_that_do_not_fit(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.zeros((3, 21), np.float32))
    assert "the size does not fit input 'x'" in error_of(*words(folder, *TINY))
    np.savez(folder / "data.npz", z=np.zeros((3, 20), np.float32))
    assert "input 'x' is missing" in error_of(*words(folder, *TINY, "--dim", "N=1"))
    np.savez(folder / "data.npz", x=np.zeros((0, 20), np.float32))
    assert error_of(*words(folder, *TINY)).endswith("data.npz: holds no samples\n")
