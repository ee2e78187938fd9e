"""Plans, calibration and policies: their decisions, what is refused, and that programs implement the plan."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.quantization.calibrate import Calibration, calibrated_plan
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.policy import read_policy, write_policy
from ppuc.compiler.quantization.prepare import dynamic_plan
from ppuc.compiler.quantization.search import isolated_noise, quantized_share
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.errors import UsageError
from ppuc.ir.interpret import run_graph
from ppuc.ir.types import DType
from tests.quantization.networks import MODELS, convnet, prepared, samples_of, transformer
from tests.support.small_models import mlp
from tests.support.whole_pipeline import compiled


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_the_products_of_the_model(name: str) -> None:
    found = {
        "mlp": [("first", "matmul"), ("second", "matmul")],
        "convnet": [("c", "conv"), ("d", "depthwise"), ("p", "conv"), ("y", "matmul")],
        "attention": [("q", "matmul"), ("k", "matmul"), ("v", "matmul"), ("s", "product"), ("y", "product")],
        "transformer": [("q", "matmul"), ("k", "matmul"), ("v", "matmul"), ("y", "matmul")],
    }
    assert [(layer.name, layer.kind) for layer in prepared(MODELS[name]()).layers] == found[name]


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_programs_compute_what_the_plan_says(name: str, format: str) -> None:
    """Every pass re-executed, program and kernels equal to the bit, no hazard, and near the model."""
    ready = prepared(MODELS[name]())
    samples = samples_of(ready)
    plan = calibrated_plan(ready, format, samples)
    reference = Reference(ready.module.graph, ready.feeds(samples))
    assert reference.in_onnxruntime
    quantized = ready.quantized(plan)
    floor = {"e4m3": 20.0, "e5m2": 14.0, "int8": 26.0}[format]
    assert floor < reference.compare(quantized.graph).sqnr < 60.0
    compiled(quantized, ready.target, samples[0])


@pytest.mark.parametrize("format", ["e4m3", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_dynamic_scales_need_no_data(name: str, format: str) -> None:
    ready = prepared(MODELS[name]())
    samples = samples_of(ready)
    quantized = ready.quantized(dynamic_plan(ready, format))
    assert Reference(ready.module.graph, ready.feeds(samples)).compare(quantized.graph).sqnr > 20.0
    compiled(quantized, ready.target, samples[0])


@pytest.mark.parametrize("name", MODELS)
def test_emulation_in_onnxruntime_is_what_the_graph_means(name: str) -> None:
    """Sums in another order move a number that lies at a rounding boundary, now and then, by one step of the format."""
    ready = prepared(MODELS[name]())
    (sample,) = ready.feeds(samples_of(ready, 1))
    for plan in (Plan(), calibrated_plan(ready, "e4m3", samples_of(ready)), dynamic_plan(ready, "int8")):
        graph = ready.quantized(plan).graph
        emulator = Emulator(graph)
        assert emulator.in_onnxruntime
        got, want = emulator.run(sample), run_graph(graph, sample)
        for value in graph.results:
            error = np.abs(got[value.name] - want[value.name])
            assert np.quantile(error, 0.9) <= 1e-5 * np.abs(want[value.name]).max()


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
def test_attention_on_8_bit_operands(target: str, format: str) -> None:
    """On request: q, k and v are stored in the format and meet in one kernel, equal to the interpreter's to the bit;
    ONNX Runtime's emulation is what the graph means."""
    ready = prepared(transformer(), target)
    assert [layer.name for layer in ready.attentions] == ["s"]
    assert "s" not in calibrated_plan(ready, format, samples_of(ready)).layers
    ready = ready.with_attention()
    assert [layer.name for layer in ready.layers] == ["q", "k", "v", "s", "y"]
    samples = samples_of(ready)
    plan = calibrated_plan(ready, format, samples)
    assert len(plan.layers["s"].scales) == 3
    judge = Reference(ready.module.graph, ready.feeds(samples))
    alone = ready.quantized(plan.only({"s"}))
    assert {"e4m3": 24.0, "e5m2": 18.0}[format] < judge.compare(alone.graph).sqnr < 50.0
    (sample,) = list(ready.feeds(samples[:1]))
    got, want = Emulator(alone.graph).run(sample), run_graph(alone.graph, sample)
    for value in alone.graph.results:
        error = np.abs(got[value.name] - want[value.name])
        assert np.quantile(error, 0.9) <= 1e-5 * np.abs(want[value.name]).max()
    module = compiled(ready.quantized(plan), ready.target, samples[0])
    (kernel,) = [k for k in module.kernels if any(b.name == "scores" for b in k.buffers)]
    assert {b.dtype for b in kernel.buffers if b.name in ("q", "k", "v", "weights")} == {ready_dtype(format)}


def ready_dtype(format: str) -> DType:
    return {"e4m3": DType.F8E4M3, "e5m2": DType.F8E5M2}[format]


def test_attention_is_lifted_like_other_layers(tmp_path: Path) -> None:
    """It has a name, noise of its own, and an entry in the policy; patterns leave it alone."""
    ready = prepared(transformer()).with_attention()
    samples = samples_of(ready)
    plan = calibrated_plan(ready, "e4m3", samples)
    noise = isolated_noise(ready, plan, Reference(ready.module.graph, ready.feeds(samples)))
    assert 1e-6 < noise["s"] < 1e-2
    assert quantized_share(ready, plan) == 1.0
    assert quantized_share(ready, plan.with_layers({"s": LayerPlan("bf16")})) < 1.0
    write_policy(tmp_path / "p.toml", plan, {})
    plain = prepared(transformer())
    back = read_policy(tmp_path / "p.toml", plain.all_layers)
    assert plain.quantized(back).graph == ready.quantized(plan).graph
    (tmp_path / "all.toml").write_text('[[layer]]\nname = "*"\nformat = "int8"\n')
    assert set(read_policy(tmp_path / "all.toml", plain.all_layers)) == {"q", "k", "v", "y"}
    for entry, message in (('format = "e4m3"', "needs scales of q, k and v"), ('format = "int8"', "has no int8 form")):
        (tmp_path / "bad.toml").write_text(f'[[layer]]\nname = "s"\n{entry}\n')
        with pytest.raises(UsageError, match=message):
            read_policy(tmp_path / "bad.toml", plain.all_layers)


@pytest.mark.usefixtures("apart")
def test_operands_travel_in_the_format() -> None:
    """The cast to f8 lies in the epilogue of the producer: f8 is what is stored between the two products."""
    ready = prepared(mlp())
    samples = samples_of(ready)
    module = compiled(ready.quantized(calibrated_plan(ready, "e4m3", samples)), ready.target, samples[0])
    stored = [v.type.dtype for op in module.graph.ops if op.body is not None for v in op.results]
    assert len(stored) == 3
    assert stored[:2] == [DType.F8E4M3, DType.F8E4M3]
    inner = [op.name for op in module.graph.ops[-1].body.ops] if module.graph.ops[-1].body else []
    assert "matmul" in inner


def test_scales_are_those_of_the_largest_number_seen() -> None:
    ready = prepared(mlp())
    samples = samples_of(ready)
    largest = max(float(np.abs(s["x"]).max()) for s in samples)
    plan = calibrated_plan(ready, "e4m3", samples)
    assert plan.layers["first"].scales == (float(np.float32(largest / 448)),)
    wide = calibrated_plan(ready, "e4m3", samples, Calibration(headroom=4.0))
    assert wide.layers["first"].scales[0] == pytest.approx(4 * largest / 448)
    even = calibrated_plan(ready, "e4m3", samples, Calibration(power_of_two=True))
    assert np.log2(even.layers["first"].scales[0]) % 1 == 0
    assert even.layers["first"].scales[0] >= plan.layers["first"].scales[0]


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_methods_clip_outliers(method: str) -> None:
    """One number of a thousand is a hundred times too large: int8 loses all the others unless it is clipped."""
    ready = prepared(mlp(), precision="int8")
    samples = samples_of(ready, 300)
    samples[3]["x"][0, 0] = 400.0
    reference = Reference(ready.module.graph, ready.feeds(samples_of(ready, seed=5)))
    largest = calibrated_plan(ready, "int8", samples)
    clipped = calibrated_plan(ready, "int8", samples, Calibration(method))
    assert clipped.layers["first"].scales[0] < largest.layers["first"].scales[0] / 4
    first = reference.compare(ready.quantized(clipped.only({"first"})).graph).sqnr
    assert first > reference.compare(ready.quantized(largest.only({"first"})).graph).sqnr + 6


def test_mse_trades_clipping_for_steps() -> None:
    """Of numbers with long tails, the scale of the smallest error clips; rounding to it errs less than without."""
    ready = prepared(mlp(), precision="int8")
    rng = np.random.default_rng(1)
    samples = [{"x": (rng.standard_t(4, (2, 20))).astype(np.float32)} for _ in range(200)]
    seen = np.concatenate([s["x"] for s in samples])

    def error(method: str) -> tuple[float, float]:
        scale = calibrated_plan(ready, "int8", samples, Calibration(method)).layers["first"].scales[0]
        return float(np.square(np.clip(np.rint(seen / scale), -127, 127) * scale - seen).mean()), scale

    assert error("mse")[1] < error("max")[1]
    assert error("mse")[0] < error("max")[0]


def test_activations_that_are_never_negative_use_the_sign() -> None:
    plan = calibrated_plan(prepared(convnet()), "int8", samples_of(prepared(convnet())))
    assert plan.layers["c"].unsigned == (False,)
    assert plan.layers["d"].unsigned == (True,)


def test_weights_only_keeps_activations() -> None:
    """A machine without f8 products stores weights in f8: the widened weights are what multiplies."""
    ready = prepared(mlp(), target="zhenwu-810e")
    plan = dynamic_plan(ready, "e4m3")
    assert all(layer.weights_only for layer in plan.layers.values())
    graph = ready.quantized(plan).graph
    weights = load_model(mlp(), dims={"N": 2}).graph.constants()
    (sample,) = ready.feeds(samples_of(ready, 1))
    x = next(iter(sample.values()))

    def stored(w: np.ndarray) -> np.ndarray:
        scale = np.abs(w).max(0) / np.float32(448)
        return np.asarray((w / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale)

    first, bias, second = (r.array() for r in weights.values())
    want = np.maximum(x @ stored(first) + bias, 0) @ stored(second)
    got = Emulator(graph).run(sample)[graph.results[0].name]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("target", ["zhenwu-810e", "ppu-tiny"])
def test_stored_weights_are_widened_inside_the_kernel(target: str) -> None:
    ready = prepared(mlp(), target=target)
    plan = Plan({layer.name: LayerPlan(weights_only=True) for layer in ready.layers})
    module = compiled(ready.quantized(plan), ready.target, samples_of(ready, 1)[0])
    for kernel in [k for k in module.kernels if k.name in ("first", "second")]:
        weights = [b.dtype for b in kernel.buffers if b.name in ("bt", "bw")]
        assert weights == [DType.F8E4M3, DType.BF16]
    assert sum(k.name in ("first", "second") for k in module.kernels) == 2
