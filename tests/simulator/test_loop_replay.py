"""Skipping repeated iterations does not change results: every profile is compared with that of a full simulation, bit
for bit. The last two tests watch short loops too, so that many states are compared and bounds are met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.ir.errors import PpucError
from ppuc.targets.artifact import Artifact
from ppuc.targets.description import load_target, override
from ppuc.targets.simulator.prepare import prepare
from ppuc.targets.simulator.run import simulate
from ppuc.targets.simulator.steady_state import loop_replay
from ppuc.targets.simulator.steady_state.loop_shift import LoopShift
from tests.fuzz.models import model_of_seed
from tests.support.onnx_text import model_of


@pytest.fixture
def skipped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many iterations every skip of the test leaves out, where loops of a few units are watched too."""
    found: list[int] = []
    apply = LoopShift.apply

    def counted(self: LoopShift, state: Any) -> None:
        found.append(self.times)
        apply(self, state)

    monkeypatch.setattr(LoopShift, "apply", counted)
    monkeypatch.setattr(loop_replay, "LEAST_ITERATIONS", 32)
    return found


@pytest.fixture
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch loops of a few iterations, up to their last ones."""
    for name, value in (("LEAST_ITERATIONS", 4), ("LEAST_SKIPPED", 1), ("MOST_PASSED", 1)):
        monkeypatch.setattr(loop_replay, name, value)


def check_same(artifact: Artifact, target: str, *edits: str) -> None:
    machine = override(load_target(target), *edits)
    fast, slow = (
        simulate(artifact.program, artifact.vectors, machine, {}, None, replay=replay).profile
        for replay in (True, False)
    )
    assert fast == slow


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape, np.float32) / 8


def product(m: int, k: int, n: int) -> onnx.ModelProto:
    text = f"p (float[{m}, {k}] x) => (float[{m}, {n}] y) {{ h = MatMul(x, w) y = Relu(h) }}"
    return model_of(text, {"w": weights(k, n)})


def products(m: int, k: int, layers: int) -> onnx.ModelProto:
    """Products one after another, so that units begin the next one while others still run the last one."""
    body = " ".join(f"x{i + 1} = MatMul(x{i}, w)" for i in range(layers - 1))
    text = f"p (float[{m}, {k}] x0) => (float[{m}, {k}] y) {{ {body} y = MatMul(x{layers - 1}, w) }}"
    return model_of(text, {"w": weights(k, k)})


def convolution(channels: int, side: int) -> onnx.ModelProto:
    """A padded window: boxes at the border of the image are clipped."""
    image = f"{side}, {side}]"
    text = f"c (float[1, {channels}, {image} x) => (float[1, 32, {image} y) {{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }}"
    return model_of(text, {"w": weights(32, channels, 3, 3)})


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "whole tiles": lambda: product(1024, 4096, 1024),
    "cut tiles": lambda: product(1000, 4091, 1013),
    "products": lambda: products(192, 1536, 4),
    "convolution": lambda: convolution(512, 14),
}


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-810e", "zhenwu-m890"])
@pytest.mark.parametrize("model", MODELS)
def test_iterations_are_skipped_exactly(model: str, target: str, skipped: list[int]) -> None:
    artifact = ppuc.compile(MODELS[model](), target=target, precision="bf16").artifact
    check_same(artifact, target)
    check_same(artifact, target, "hbm.latency_ns=333.7", "l2.latency_ns=77.123")
    check_same(artifact, target, "hbm.gbs=91")
    assert skipped or target != "ppu-tiny" or model == "convolution", "nothing was skipped"


def test_most_of_a_long_sum_is_skipped(skipped: list[int]) -> None:
    artifact = ppuc.compile(product(128, 16384, 128), target="ppu-tiny").artifact
    check_same(artifact, "ppu-tiny")
    (launch,) = prepare(artifact.program, artifact.vectors, load_target("ppu-tiny"))
    loop = launch.flat.code.loop
    assert max(skipped) > 0.8 * ((loop["stop"] - loop["start"]) // loop["step"]).max()


def test_runs_that_keep_a_record_of_events_skip_nothing(skipped: list[int]) -> None:
    model = product(64, 2048, 64)
    artifact = ppuc.compile(model, target="ppu-tiny").artifact
    ppuc.compile(model, target="ppu-tiny").run({"x": np.ones((64, 2048), np.float32)})
    simulate(artifact.program, artifact.vectors, load_target("ppu-tiny"), {}, None, trace=True)
    assert not skipped


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-810e", "zhenwu-m890"])
def test_short_loops_are_skipped_exactly(target: str, skipped: list[int], short_loops: None) -> None:
    for model in (product(80, 300, 96), products(64, 192, 6), convolution(64, 20), convolution(40, 9)):
        artifact = ppuc.compile(model, target=target).artifact
        check_same(artifact, target)
        check_same(artifact, target, "hbm.latency_ns=333.7", "l2.latency_ns=77.123")
    assert skipped or target != "ppu-tiny", "nothing was skipped"


@pytest.mark.parametrize("seed", range(24))
def test_random_models_take_the_same_time(seed: int, short_loops: None) -> None:
    sample, target = model_of_seed(seed, 6), ("ppu-tiny", "zhenwu-810e", "zhenwu-m890")[seed % 3]
    try:
        artifact = ppuc.compile(sample.model, target=target, values=sample.feeds).artifact
    except PpucError as error:
        pytest.skip(str(error))
    check_same(artifact, target)
    check_same(artifact, target, "hbm.gbs=40", "hbm.latency_ns=333.7")
