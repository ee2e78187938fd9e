"""Repair: weights and offsets fitted to improve outputs, measured on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

from ppuc.compiler.quantization import fit, repair
from ppuc.compiler.quantization.apply import rounded
from ppuc.compiler.quantization.calibrate import Calibration, calibrated_plan, plan_from
from ppuc.compiler.quantization.fit import compensated
from ppuc.compiler.quantization.measure import Accuracy, Difference, Reference
from ppuc.compiler.quantization.noise import best_formats, clipped_share
from ppuc.compiler.quantization.observe import observe
from ppuc.compiler.quantization.offsets import best_offset, some_numbers, takes_offsets
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.compiler.quantization.reconstruct import Options, reconstructed
from ppuc.compiler.quantization.repair import best_method, significantly_better
from ppuc.ir.types import DType
from tests.quantization.networks import MODELS, SAMPLES, convnet, prepared, samples_of
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp
from tests.support.whole_pipeline import compiled


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format", ["e4m3", "int8"])
def test_reconstruction_brings_results_nearer(name: str, format: str) -> None:
    """On the samples it is fitted to and, as they are many and alike, on others."""
    ready = prepared(MODELS[name]())
    samples = list(ready.feeds(samples_of(ready, 64)))
    others = Reference(ready.module.graph, ready.feeds(samples_of(ready, 16, seed=9)))
    plan = calibrated_plan(ready, format, samples_of(ready, 64))
    fitted = reconstructed(ready.module.graph, ready.layers, plan, samples)
    before, after = (others.compare(ready.quantized(p).graph).sqnr for p in (plan, fitted))
    little = format == "int8" or name == "attention"  # white noise in 8 bits; products without weights
    assert after > before + (-0.5 if little else 0.5)
    compiled(ready.quantized(fitted), ready.target, samples_of(ready, 1)[0])


@pytest.mark.parametrize("name", ["d", "p", "y"])
def test_what_offsets_take_away_comes_back(name: str) -> None:
    """In a convolution that pads, one that does not, and a matmul."""
    ready = prepared(convnet())
    judge = Reference(ready.module.graph, ready.feeds(samples_of(ready)))
    plan = calibrated_plan(ready, "e4m3", samples_of(ready)).only({name})
    size = np.float32(64 * plan.layers[name].scales[0])
    moved = Plan({name: replace(plan.layers[name], offset=size * (1 + np.arange(17, dtype=np.float32) % 3))})
    assert judge.compare(ready.quantized(moved).graph).sqnr > 25
    assert judge.compare(ready.quantized(plan).graph).sqnr > 25


def test_offsets_lie_where_the_numbers_are() -> None:
    """Rectified numbers lose less around the middle of those that are not zero, and no zero is moved."""
    ready = prepared(convnet())
    layer = next(layer for layer in ready.layers if layer.name == "p")
    numbers = np.random.default_rng(5).normal(0.5, 1, (4, 1, 17, 9, 9)).clip(0, None).astype(np.float32)
    scale = float(numbers.max() / 448)
    plan = LayerPlan(scales=(scale,))
    kept = some_numbers(list(numbers), 1)
    offset = best_offset(layer, plan, kept)
    assert offset is not None
    assert (offset > 0.5).all()

    def stored(of: np.ndarray) -> np.ndarray:
        return rounded((numbers - of[:, None, None]) / np.float32(scale), DType.F8E4M3).astype(np.float32) * scale

    moved = stored(offset) + offset[:, None, None]
    plain = stored(np.zeros_like(offset))
    assert np.square(moved - numbers).mean() < 0.6 * np.square(plain - numbers).mean()
    assert np.abs(moved[numbers == 0]).max() < 1e-6
    assert best_offset(layer, plan, np.zeros_like(kept)) is None  # nothing to gain
    assert not takes_offsets(layer, replace(plan, format="int8"))
    assert not takes_offsets(layer, replace(plan, scales=()))


def test_compensated_rounding_beats_the_nearest_on_correlated_operands() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 24)) + rng.standard_normal((500, 24)) / 8
    w, scale = rng.standard_normal((1, 24, 9)), np.full((1, 9), 2.0**-3, np.float32)
    nearest = rounded((w / scale).astype(np.float32), DType.I8).astype(float) * scale
    better = compensated(w, (x.T @ x / 500)[None], scale, DType.I8, 0.01).astype(float) * scale
    assert np.square(x @ (better - w)).sum() < 0.5 * np.square(x @ (nearest - w)).sum()


def test_repairs_are_judged_on_samples_that_they_were_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(mlp())
    samples = samples_of(ready, 5)
    plan = Plan({layer.name: LayerPlan(scales=(0.05,)) for layer in ready.layers})
    seen: dict[str, list[list[int]]] = {}

    def fitted(ready: Prepared, plan: Plan, fit: Sequence[Mapping[str, np.ndarray]], method: str) -> Plan:
        seen.setdefault(method, []).append([next(i for i, s in enumerate(samples) if s is f) for f in fit])
        return plan.only(set()) if method == "offsets, fit" else plan

    monkeypatch.setattr(repair, "apply_repair", fitted)
    choice = best_method(ready, plan, samples, ("fit", "offsets, fit"), folds=2)
    assert seen == {method: [[1, 3], [0, 2, 4]] for method in ("none", "fit", "offsets, fit")}
    assert choice.method == "offsets, fit"  # the stub left it in f32
    assert choice.tried["fit"].levels == choice.tried["none"].levels
    assert best_method(ready, plan, samples, ("fit",), folds=2).method == "none"  # no gain is no reason
    seen.clear()
    best_method(ready, plan, samples[:1], ())
    assert seen == {"none": [[0]]}


def test_gains_within_chance_are_no_gains() -> None:
    def of(*levels: float) -> Accuracy:
        return Accuracy({"y": Difference(levels=list(levels))})

    assert significantly_better(of(11, 12, 13, 12), of(10, 11, 12, 11))
    assert not significantly_better(of(20, 9, 9, 10), of(10, 10, 10, 10))  # one sample's luck
    assert not significantly_better(of(10, 10), of(10, 10))


def test_accuracy_of_parts_is_that_of_the_whole() -> None:
    ready = prepared(mlp())
    judge = Reference(ready.module.graph, samples_of(ready, 5))
    graph = ready.quantized(Plan({layer.name: LayerPlan(scales=(0.05,)) for layer in ready.layers})).graph
    whole, parts = judge.compare(graph), [judge.compare(graph, only=only) for only in ([0, 1], [2, 3, 4])]
    joined = Accuracy.joined(parts)
    assert joined.levels == whole.levels
    assert joined.sqnr == pytest.approx(whole.sqnr)
    assert joined.agreement == whole.agreement


def test_many_operands_are_fitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly as well as all at once, and better than rounding to the nearest."""
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((600, 8)) @ rng.standard_normal((8, 48)) + rng.standard_normal((600, 48)) / 4)[None]
    w = rng.standard_normal((1, 48, 5))
    seen = (x.swapaxes(1, 2) @ x / 600, x.swapaxes(1, 2) @ (x @ w * 1.1) / 600)
    scale = np.full((1, 5), 2.0**-3, np.float32)

    def lost() -> float:
        fitted = fit.regressed(w, *seen, 0.2)
        stored = compensated(fitted, seen[0], scale, DType.I8, 0.01).astype(float) * scale
        return float(np.square(x @ (stored - 1.1 * w)).sum())

    whole = lost()
    monkeypatch.setattr(fit, "LARGEST_SYSTEM", 16)
    parts = lost()
    nearest = rounded((w / scale).astype(np.float32), DType.I8).astype(float) * scale
    assert whole < parts < 0.5 * np.square(x @ (nearest - 1.1 * w)).sum()


def test_repairs_take_the_samples_that_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(convnet())
    samples = list(ready.feeds(samples_of(ready, 40)))
    assert repair.affordable(ready, samples) is samples
    image = 2 * 9 * 9 * 4  # a channel of a batch of two, in bytes
    assert repair.live_bytes(ready.module.graph) == (17 + 17 + 17) * image  # r, p and their sum
    monkeypatch.setattr(repair, "MOST_BYTES", 10 * 2 * 51 * image)
    chosen = repair.affordable(ready, samples)
    assert [next(i for i, s in enumerate(samples) if s is c) for c in chosen] == list(range(0, 40, 4))
    monkeypatch.setattr(repair, "MOST_BYTES", 1)
    assert len(repair.affordable(ready, samples)) == repair.FEWEST


def two_axes() -> onnx.ModelProto:
    """A pointwise convolution over the channels and a product over the columns of one tensor, as many of both."""
    rng = np.random.default_rng(8)
    weights = {"w": rng.standard_normal((6, 8, 1, 1), np.float32), "v": rng.standard_normal((8, 6), np.float32)}
    text = """net (float[1, 8, 5, 8] x, float[1, 8] z) => (float[1, 6, 5, 8] y, float[1, 8, 5, 6] u, float[1, 6] o) {
        r = Relu(x)
        y = Conv(r, w)
        u = MatMul(r, v)
        o = MatMul(z, v)
    }"""
    model = model_of(text, weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def test_offsets_of_one_tensor_along_two_axes() -> None:
    """Each layer's own; and a layer whose operand is zero throughout is quantized all the same."""
    ready = prepared(two_axes())
    rng, bumps = np.random.default_rng(9), 3 * np.arange(8, dtype=np.float32)
    x = [rng.random((1, 8, 5, 8), np.float32) + bumps[:, None, None] + bumps for _ in range(SAMPLES)]
    samples = list(ready.feeds({"x": a, "z": np.zeros((1, 8), np.float32)} for a in x))
    seen = observe(ready.module.graph, ready.layers, samples)
    judge = Reference(ready.module.graph, samples)
    start = best_formats(ready.layers, seen, ("e4m3", "int8"), Calibration())
    assert start.layers["o"].quantized
    assert best_formats(ready.layers, seen, (), Calibration()).layers["o"] == LayerPlan("bf16")
    plan = plan_from(ready.layers, seen, "e4m3", Calibration())
    moved = reconstructed(ready.module.graph, ready.layers, plan, samples, Options(fit=False))
    assert all(moved.layers[name].offset is not None for name in ("y", "u"))
    assert all(d.sqnr > 25 for d in judge.compare(ready.quantized(moved).graph).outputs.values())
    assert all(clipped_share(layer, moved.layers[layer.name], seen) == 0 for layer in ready.layers)
