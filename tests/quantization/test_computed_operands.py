"""Layers whose operands are all computed or given when a program runs: kernels of convolutions, factors of products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.entry import compile as compile_program
from ppuc.compiler.quantization.calibrate import calibrated_plan
from ppuc.compiler.quantization.noise import best_formats
from ppuc.compiler.quantization.observe import observe
from ppuc.compiler.quantization.plan import Plan
from ppuc.compiler.quantization.prepare import dynamic_plan
from ppuc.compiler.quantization.repair import apply_repair
from ppuc.compiler.validation.emulate import Emulator
from ppuc.compiler.verification import Verification
from tests.quantization.networks import MODELS, prepared, samples_of
from tests.support.onnx_text import model_of

# op, attributes, image, kernel: the batch is, and is not, the number of output channels or of groups
CONVOLUTIONS = {
    "square": ("Conv", "", (6, 4, 8, 8), (6, 4, 3, 3)),
    "plain": ("Conv", "pads = [1, 1, 1, 1], strides = [2, 2]", (2, 4, 9, 9), (5, 4, 3, 3)),
    "grouped": ("Conv", "group = 2", (3, 4, 7, 7), (6, 2, 3, 3)),
    "depthwise": ("Conv", "group = 8", (1, 8, 9, 9), (8, 1, 4, 4)),
    "line": ("Conv", "dilations = [2]", (3, 4, 17), (3, 4, 3)),
    "volume": ("Conv", "", (2, 3, 5, 6, 4), (4, 3, 2, 3, 2)),
    "pointwise": ("Conv", "", (4, 8, 5, 5), (4, 8, 1, 1)),
    "transposed": ("ConvTranspose", "strides = [2, 2]", (2, 4, 5, 5), (4, 3, 3, 3)),
    "transposed groups": ("ConvTranspose", "group = 2", (2, 4, 5, 5), (4, 3, 2, 2)),
    "transposed line": ("ConvTranspose", "strides = [2]", (3, 4, 9), (4, 3, 3)),
}
PRODUCTS = {
    "plain": ("MatMul", "", (6, 9), (9, 6)),
    "batched": ("MatMul", "", (6, 5, 9), (6, 9, 5)),
    "broadcast": ("MatMul", "", (3, 5, 9), (9, 3)),
    "turned": ("Gemm", "transA = 1, transB = 1", (9, 5), (5, 9)),
    "vector": ("MatMul", "", (4, 7, 9), (9,)),
}
KINDS = {f"conv {n}": c for n, c in CONVOLUTIONS.items()} | {f"product {n}": c for n, c in PRODUCTS.items()}


def model_with(kind: str, computed: bool) -> onnx.ModelProto:
    """y = op(tanh(x), w); `w` is an input, or computed from an input by a sum."""
    op, attributes, image, kernel = KINDS[kind]
    given = f"<{attributes}>" if attributes else ""
    factor = "v = Add(w, b)" if computed else ""
    text = f"""net (float{list(image)} x, float{list(kernel)} w) => (float[] y) {{
        {factor}
        t = Tanh(x)
        y = {op}{given}(t, {"v" if computed else "w"})
    }}"""
    model = model_of(text, {"b": np.full((1,), 0.1, np.float32)} if computed else {})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def samples(kind: str, count: int = 1) -> list[dict[str, np.ndarray]]:
    """Channels of kernels, rows of images differ in size, so that a scale on a wrong axis shows."""
    _, _, image, kernel = KINDS[kind]
    rng = np.random.default_rng(21)

    def spread(shape: tuple[int, ...]) -> np.ndarray:
        sizes = np.geomspace(1, 4, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        return (rng.standard_normal(shape) * sizes * 0.2).astype(np.float32)

    return [{"x": spread(image), "w": spread(kernel)} for _ in range(count)]


def checked(found: Verification, precision: str) -> None:
    """Agreement, to what two rounded operands leave: of E4M3 up to 1 in 16 each."""
    assert found.ok, [c.reason for c in found.outputs]
    assert not found.hazards
    floor = {"fp8": 24.0, "int8": 30.0}[precision]
    for output in found.outputs:
        assert floor < output.sqnr_db < 60.0
        assert output.tolerance < 10 ** (-19 / 20)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_scales_at_run_time(kind: str, precision: str) -> None:
    target = "ppu-tiny" if len(kind) % 2 else "zhenwu-m890"
    program = compile_program(model_with(kind, computed=True), target, precision)
    checked(ppuc.verify(program, *samples(kind)), precision)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize(
    "kind", ["conv square", "conv grouped", "conv depthwise", "conv transposed", "product batched"]
)
def test_scales_from_samples(kind: str, precision: str) -> None:
    """One a tensor: channels of small kernels lose more to i8."""
    given = samples(kind, 8)
    program = compile_program(model_with(kind, computed=False), "ppu-tiny", precision, calibrate=given)
    checked(ppuc.verify(program, given[0]), precision)


def test_a_kernel_that_is_never_negative_is_stored_unsigned() -> None:
    model = model_with("conv grouped", computed=True)
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Abs", ["w"], ["v"]))
    del model.graph.initializer[:]
    given = samples("conv grouped", 8)
    checked(ppuc.verify(compile_program(model, "ppu-tiny", "int8", calibrate=given), given[0]), "int8")


@pytest.mark.parametrize("kind", ["conv plain", "conv depthwise", "conv transposed groups", "product turned"])
def test_the_better_format_of_each_layer(kind: str, tmp_path: object) -> None:
    """What `-p mixed` starts from, repaired; convolutions and products without weights have nothing to fit."""
    ready = prepared(model_with(kind, computed=True), precision="mixed")
    given = list(ready.feeds(samples(kind, 4)))
    seen = observe(ready.module.graph, ready.layers, given)
    how = ready.options.quantization.calibration.for_samples(4)
    plan = best_formats(ready.layers, seen, ("e4m3", "int8"), how)
    assert {p.format for p in plan.layers.values()} <= {"e4m3", "int8"}
    again = apply_repair(ready, plan, given, "fit")
    assert again == plan
    assert_written_as_meant(ready, plan, given[0])


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("name", [*MODELS, *KINDS])
def test_a_written_graph_computes_what_the_plan_means(name: str, format: str) -> None:
    """Scales that multiply operands and scales that multiply products are the same but for f32 rounding."""
    ready = prepared(MODELS[name]() if name in MODELS else model_with(name, computed=False))
    given = samples_of(ready, 4) if name in MODELS else samples(name, 4)
    (feeds, *_) = ready.feeds(given)
    for plan in (dynamic_plan(ready, format), calibrated_plan(ready, format, given)):
        assert_written_as_meant(ready, plan, feeds)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_repaired_layers_are_written_as_they_are_meant(name: str) -> None:
    """Offsets, fitted weights and biases, too."""
    ready = prepared(MODELS[name]())
    given = samples_of(ready)
    feeds = list(ready.feeds(given))
    plan = apply_repair(ready, calibrated_plan(ready, "e4m3", given), feeds, "offsets, fit")
    assert any(p.bias is not None for p in plan.layers.values())
    assert_written_as_meant(ready, plan, feeds[0])


def assert_written_as_meant(ready: object, plan: Plan, feeds: object) -> None:
    written, meant = ready.quantized(plan).graph, ready.simulated(plan).graph  # type: ignore[attr-defined]
    assert written != meant
    got, want = Emulator(written).run(feeds), Emulator(meant).run(feeds)  # type: ignore[arg-type]
    for one, other in zip(written.results, meant.results, strict=True):
        error = np.abs(got[one.name] - want[other.name])
        assert np.quantile(error, 0.9) <= 1e-4 * np.abs(want[other.name]).max()
