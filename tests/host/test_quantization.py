"""Models with host steps in 8-bit formats: scales computed at run time, from samples, and by a policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.validation.oracle import Oracle
from ppuc.ir.errors import UsageError
from tests.support.onnx_text import model_of

EDGE = "zhenwu-m890"
RNG = np.random.default_rng(11)
WEIGHTS = {
    "A": (RNG.standard_normal((24, 40)) / 5).astype(np.float32),
    "B": (RNG.standard_normal((40, 32)) / 6).astype(np.float32),
    "C": (RNG.standard_normal((32, 8)) / 6).astype(np.float32),
}
TEXT = """g (float[6, 24] x) => (float[6, 8] y) {
    a = MatMul(x, A)
    b = Relu(a)
    c = MatMul(b, B)
    d = Cast<to = 11>(c)
    e = Exp(d)
    f = Cast<to = 1>(e)
    y = MatMul(f, C)
}"""


def model() -> onnx.ModelProto:
    return model_of(TEXT, WEIGHTS)


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(count)
    return [{"x": rng.standard_normal((6, 24)).astype(np.float32)} for _ in range(count)]


def noise_db(program: CompiledProgram, x: np.ndarray) -> float:
    want = Oracle(model()).run({"x": x})["y"]
    error = program.run({"x": x}).outputs["y"] - want
    return float(-10 * np.log10(np.mean(error**2) / np.mean(want**2)))


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_parts_on_both_sides_of_the_host_are_quantized(precision: str, calibrated: bool) -> None:
    program = ppuc.compile(model(), EDGE, precision, calibrate=samples(4) if calibrated else None)
    assert program.plan is not None
    assert [n.op for n in program.plan.nodes] == ["Cast", "Exp", "Cast"]
    stored = sum(c.type.bytes for n, c in program.artifact.constants.items() if c.type.elements in (960, 1280, 256))
    assert stored == 960 + 1280 + 256, "every weight takes a byte"
    x = samples(1)[0]["x"]
    assert 15 < noise_db(program, x) < 60
    assert ppuc.verify(program, {"x": x}).ok


def test_static_scales_come_from_what_arrives_at_each_part() -> None:
    """Exp multiplies the range by far more than any f8 can hold: a scale from the model's input would saturate."""
    wide = {**WEIGHTS, "B": 6 * WEIGHTS["B"]}
    source = model_of(TEXT, wide)
    program = ppuc.compile(source, EDGE, "int8", calibrate=(data := samples(4)))
    want, widest = max(((Oracle(source).run(x)["y"], x) for x in data), key=lambda found: np.abs(found[0]).max())
    got = program.run(widest).outputs["y"]
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.9
    assert np.abs(got).max() > 0.5 * np.abs(want).max()


def test_a_policy_decides_over_all_parts(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text(
        '[[layer]]\nname = "MatMul_0"\nformat = "e4m3"\n\n[[layer]]\nname = "MatMul_6"\nformat = "e4m3"\n'
    )
    program = ppuc.compile(tmp_path / "m.onnx", EDGE, "mixed", policy=tmp_path / "p.toml")
    sizes = {c.type.elements: c.type.dtype.bytes for c in program.artifact.constants.values()}
    assert (sizes[960], sizes[256]) == (1, 1)
    assert sizes[1280] > 1
    (tmp_path / "p.toml").write_text('[[layer]]\nname = "MatMul_9"\n')
    with pytest.raises(UsageError, match="MatMul_9"):
        ppuc.compile(tmp_path / "m.onnx", EDGE, "mixed", policy=tmp_path / "p.toml")


def test_samples_for_inputs_that_only_the_host_holds(tmp_path: Path) -> None:
    text = """g (double[6, 24] x) => (float[6, 40] y) { c = Cast<to = 1>(x) y = MatMul(c, A) }"""
    onnx.save(model_of(text, {"A": WEIGHTS["A"]}), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 24)))
    arguments = ["compile", tmp_path / "m.onnx", "-p", "fp8", "--calibrate", tmp_path / "x.npz", "-o", tmp_path / "m"]
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert not (tmp_path / "m").exists()
