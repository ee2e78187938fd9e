"""Verification at 8 bits: the allowed error is that of the quantized model itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.entry import compile as compile_program
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.expected import allowed_errors
from ppuc.compiler.validation.judge import Judge
from ppuc.compiler.validation.oracle import Oracle
from ppuc.compiler.validation.tolerance import tolerances
from tests.quantization.test_plans import convnet, transformer
from tests.support.onnx_text import model_of

INPUTS = {"convnet": (1, 3, 9, 9), "transformer": (2, 9, 16)}


@pytest.mark.parametrize("format", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["convnet", "transformer"])
def test_right_programs_agree_and_wrong_ones_do_not(name: str, format: str) -> None:
    model = {"convnet": convnet, "transformer": transformer}[name]()
    shape = INPUTS[name]
    rng = np.random.default_rng(3)
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    dims = {"N": 1} if name == "convnet" else None
    program = compile_program(model, "ppu-tiny", format, dims, calibrate=samples)
    for sample in samples:
        assert ppuc.verify(program, sample, layers=True).ok
    assert program.quantized is not None
    imported = load_model(model, dims=dims)
    ((label, value),) = imported.outputs
    feeds = {v.name: samples[0][n] for n, v in imported.inputs}
    allowed = allowed_errors(imported.graph, {label: value.name}, program.quantized.simulated, feeds)[label]
    judge = Judge(imported.graph, format, feeds)
    want = Oracle(model).run(samples[0])[label]
    off = want.copy()
    off.reshape(-1)[0] += np.sqrt(np.mean(want**2))
    assert judge.compare(label, value.name, want, want, allowed).ok
    for wrong in (want / 2, off, np.zeros_like(want)):
        assert not judge.compare(label, value.name, wrong, want, allowed).ok
    assert allowed.relative < tolerances(imported.graph, format)[value.name].relative


def test_a_state_that_begins_with_zeros_gets_scales_at_run_time() -> None:
    """The samples do not determine its range; with a scale for zeros it would always be zero."""
    text = """net (float[8, 16] x, float[8, 16] h) => (float[8, 12] y, float[8, 16] n) {
        y = MatMul(h, wh)
        n = MatMul(x, wn)
    }"""
    rng = np.random.default_rng(5)
    shapes = {"wh": (16, 12), "wn": (16, 16)}
    model = model_of(text, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    sample = {n: rng.standard_normal((8, 16)).astype(np.float32) for n in ("x", "h")}
    program = compile_program(model, "ppu-tiny", "fp8", calibrate=[{**sample, "h": np.zeros((8, 16), np.float32)}] * 2)
    found = ppuc.verify(program, sample)
    assert found.ok
    assert all(20 < c.sqnr_db < 60 for c in found.outputs)


def test_layers_are_those_of_the_program_that_is_verified() -> None:
    """Scales that were found on small numbers clip all others, inside too; those that a run computes do not."""
    rng = np.random.default_rng(4)
    sample = {"x": rng.standard_normal((2, 3, 9, 9)).astype(np.float32)}
    program = compile_program(convnet(), "ppu-tiny", "fp8", {"N": 2}, calibrate=[{"x": sample["x"] / 64}] * 2)
    clipped = ppuc.verify(program, sample, layers=True)
    dynamic = ppuc.verify(compile_program(convnet(), "ppu-tiny", "fp8", {"N": 2}), sample, layers=True)
    assert max(c.rms_rel for c in clipped.layers) > 3 * max(c.rms_rel for c in dynamic.layers)


def test_every_variant_is_verified_with_its_own_layers() -> None:
    rng = np.random.default_rng(6)
    samples = [{"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)} for _ in range(8)]
    program = compile_program(convnet(), "ppu-tiny", "int8", {"N": (1, 4)}, calibrate=samples)
    for size in (1, 4):
        inputs = {"x": rng.standard_normal((size, 3, 9, 9)).astype(np.float32)}
        assert ppuc.verify(program, inputs, layers=True).ok
        assert ppuc.verify(program.variant({"N": size}), inputs).ok


def cancelling(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A product of two elements, whose terms take 98 % of each other away."""
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((24, 2)), rng.standard_normal((1, 24))
    x -= 0.98 * (x @ w) @ np.linalg.pinv(w)
    model = model_of("g (float[1, 24] x) => (float[1, 2] y) { y = MatMul(x, w) }", {"w": w.astype(np.float32)})
    return model, {"x": x.astype(np.float32)}


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_few_elements_that_cancel_prove_nothing_but_are_not_wrong(format: str) -> None:
    """The rule knows how large operands are, not how small a sum of theirs is by chance."""
    verdicts, beyond = set(), 0
    for seed in (0, 1, 2, 9, 24):
        model, inputs = cancelling(seed)
        found = ppuc.verify(compile_program(model, "ppu-tiny", format), inputs)
        verdicts.add(found.verdict)
        beyond += found.outputs[0].sensitivity is not None
    assert verdicts <= {"ok", "unproven"}
    assert beyond >= 3


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_an_error_as_large_as_the_terms_that_cancel_is_wrong(format: str) -> None:
    model, inputs = cancelling(0)
    imported, program = load_model(model), compile_program(model, "ppu-tiny", format)
    assert program.quantized is not None
    feeds = {v.name: inputs[n] for n, v in imported.inputs}
    ((label, value),) = imported.outputs
    allowed = allowed_errors(imported.graph, {label: value.name}, program.quantized.simulated, feeds)[label]
    want = Oracle(model).run(inputs)[label]
    terms = np.abs(inputs["x"]) @ np.abs(weights_of(model))
    assert not Judge(imported.graph, format, feeds).compare(label, value.name, want + terms, want, allowed).ok


def test_16_bit_floats_of_a_model_are_rounded_or_kept_in_f32() -> None:
    """The logarithm of a sum of ones hardly moves with its inputs, but does with its rounding to f16."""
    text = "g (float16[61] x) => (float[] y) { s = ReduceLogSumExp<keepdims = 0>(x) c = Cast<to = 1>(s) y = Sqrt(c) }"
    model, x = model_of(text), np.full(61, 1e-4, np.float16)
    program = compile_program(model, "ppu-tiny", "int8")
    assert ppuc.verify(program, {"x": x}).ok
    assert program.quantized is not None
    imported = load_model(model)
    ((label, value),) = imported.outputs
    feeds, exact = {imported.inputs[0][1].name: x}, np.log(np.exp(x.astype(np.float32)).sum())
    allowed = allowed_errors(imported.graph, {label: value.name}, program.quantized.simulated, feeds)[label]
    want, judge = Oracle(model).run({"x": x})[label], Judge(imported.graph, "int8", feeds)
    for number in (exact, np.float32(np.float16(exact))):
        assert judge.compare(label, value.name, np.sqrt(number), want, allowed).ok
    assert not judge.compare(label, value.name, np.sqrt(exact * np.float32(1.01)), want, allowed).ok


def weights_of(model: onnx.ModelProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(model.graph.initializer[0])
