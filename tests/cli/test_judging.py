"""`ppuc quantize`: which outputs count, and along which axis decisions are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.calling import TINY, error_of, json_of, ppuc
from tests.support.onnx_text import model_of


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A segmentation map of two classes, and an auxiliary head; data.npz and a metric: the true share of equal
    decisions."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / 4

    text = """net (float[N, 3, 8, 12] x) => (float[N, 2, 8, 12] seg, float[N, 5] aux) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w0)
        r = Relu(a)
        seg = Conv<pads = [1, 1, 1, 1]>(r, w1)
        g = GlobalAveragePool(r)
        f = Flatten(g)
        aux = MatMul(f, w2)
    }"""
    model = model_of(text, {"w0": normal(16, 3, 3, 3), "w1": normal(2, 16, 3, 3), "w2": normal(16, 5)})
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=normal(16, 3, 8, 12) * 4)
    return tmp_path


def words(folder: Path, *more: object) -> tuple[object, ...]:
    return ("quantize", folder / "net.onnx", *TINY, "-p", "fp8", "--calibrate", folder / "data.npz", *more)


def test_agreement_is_the_share_of_equal_decisions(heads: Path) -> None:
    """Against a metric that compares the classes of all pixels with those of the model in f32."""
    import onnxruntime

    x = np.load(heads / "data.npz")["x"]
    exact = onnxruntime.InferenceSession(heads / "net.onnx").run(["seg"], {"x": x})[0]
    np.savez(heads / "data.npz", x=x, exact=exact)
    (heads / "m.py").write_text(
        "import numpy as np\n"
        "def metric(outputs, inputs):\n"
        "    pairs = zip(outputs, inputs)\n"
        "    return np.mean([(o['seg'].argmax(1) == i['exact'].argmax(1)).mean() for o, i in pairs])\n"
    )
    record = json_of(*words(heads, "--metric", heads / "m.py", "--outputs", "seg", "--goal", "macs"))
    seg = record["accuracy"]["outputs"]["seg"]
    assert 0.9 < seg["agreement"] < 1.0
    assert seg["agreement"] == pytest.approx(record["metric"]["quantized"], abs=1e-9)
    assert seg["class_axis"] == 1
    assert seg["decisions"].startswith("axis 1: output channels")


def test_only_the_named_outputs_count(heads: Path) -> None:
    both = json_of(*words(heads, "--no-repair"))["accuracy"]
    one = json_of(*words(heads, "--no-repair", "--outputs", "aux"))["accuracy"]
    assert set(both["outputs"]) == {"seg", "aux"}
    assert set(one["outputs"]) == {"aux"}
    assert one["sqnr_db"] == both["outputs"]["aux"]["sqnr_db"] != both["sqnr_db"]
    weighted = json_of(*words(heads, "--no-repair", "--outputs", "aux=3,seg"))["accuracy"]
    noise = [10 ** (-both["outputs"][name]["sqnr_db"] / 10) for name in ("aux", "seg")]
    assert weighted["sqnr_db"] == pytest.approx(-10 * np.log10((3 * noise[0] + noise[1]) / 4))


def test_the_report_names_axis_and_weight(heads: Path) -> None:
    shown = ppuc(*words(heads, "--no-repair", "--outputs", "aux=3,seg", "--class-axis", "seg=2", "--force")).stdout
    assert "axis 2: --class-axis" in shown
    assert "weight" in shown


def test_unknown_outputs_are_suggested(heads: Path) -> None:
    assert "did you mean 'seg'?" in error_of(*words(heads, "--outputs", "sag"))
    assert "output 'aux' has no axis 3" in error_of(*words(heads, "--class-axis", "aux=3"))


def test_a_built_in_metric_judges_like_agreement(heads: Path) -> None:
    """The share of pixels whose class is that of f32: `top-k` along the class axis."""
    record = json_of(*words(heads, "--metric", "top-k,output=seg,axis=1", "--no-repair"))
    assert record["metric"]["fp32"] == 1.0
    assert record["metric"]["quantized"] == pytest.approx(record["accuracy"]["outputs"]["seg"]["agreement"])


def test_metrics_and_their_mistakes(heads: Path) -> None:
    (heads / "iou.toml").write_text('metric = "miou"\noutput = "seg"\n')
    record = json_of(*words(heads, "--metric", heads / "iou.toml", "--no-repair"))
    assert record["metric"]["fp32"] == 1.0
    assert 0.8 < record["metric"]["quantized"] < 1.0
    assert "did you mean 'miou'?" in error_of(*words(heads, "--metric", "miuo"))
    assert "the data hold no labels 'mask'" in error_of(*words(heads, "--metric", "miou,output=seg,labels=mask"))
    (heads / "bad.py").write_text("def metric(outputs, inputs):\n    return outputs[0]['sag'].sum()\n")
    text = error_of(*words(heads, "--metric", heads / "bad.py"))
    assert "fails on sample 0\n  got: KeyError: 'sag'" in text
    assert "bad.py, line 2, in metric: return outputs[0]['sag'].sum()" in text
