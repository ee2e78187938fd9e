"""Skipping repeated layers does not change results: every profile is compared with that of a full simulation, bit for
bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.ir.program import Program
from ppuc.targets.description import load_target, override
from ppuc.targets.simulator.decode import flatten
from ppuc.targets.simulator.run import simulate
from ppuc.targets.simulator.steady_state.replay import Replay
from ppuc.targets.simulator.steady_state.shift import Shift
from ppuc.targets.simulator.tables import new_state

TINY = load_target("ppu-tiny")


def layers(widths: list[int], rows: int = 48, *, residual: bool = True) -> onnx.ModelProto:
    """x -> relu(x . w) . v (+ x), layer after layer; `widths` are those of the hidden values."""
    rng, nodes, weights, width, x = np.random.default_rng(0), [], [], 64, "x0"
    for i, inner in enumerate(widths):
        for name, shape in ((f"w{i}", (width, inner)), (f"v{i}", (inner, width))):
            weights.append(numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name))
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("MatMul", [f"r{i}", f"v{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Add" if residual else "Mul", [f"y{i}", x], [f"x{i + 1}"]))
        x = f"x{i + 1}"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, width]) for n in ("x0", x)]
    graph = helper.make_graph(nodes, "layers", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def skipped_periods(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many periods runs skip from now on."""
    found: list[int] = []
    apply = Shift.apply

    def counted(self: Shift, state: object) -> None:
        found.append(self.times)
        apply(self, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Shift, "apply", counted)
    return found


def check_same(program: Program, vectors: tuple, target_name: str, *edits: str) -> None:  # type: ignore[type-arg]
    target = override(load_target(target_name), *edits)
    fast, slow = (simulate(program, vectors, target, {}, None, replay=replay).profile for replay in (True, False))
    assert fast == slow


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-810e", "zhenwu-m890"])
@pytest.mark.parametrize("residual", [True, False])
def test_a_stack_of_equal_layers_is_skipped_exactly(
    target: str, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = skipped_periods(monkeypatch)
    artifact = compile_model(layers([96] * 24, residual=residual), CompileOptions(load_target(target))).artifact
    check_same(artifact.program, artifact.vectors, target)
    assert found or target != "ppu-tiny", "nothing was skipped; on the large machines all weights are fetched at once"
    check_same(artifact.program, artifact.vectors, target, "hbm.latency_ns=333.7", "l2.latency_ns=77.123")


@pytest.mark.parametrize("counters", [4, 9, 40, 90])
@pytest.mark.parametrize("residual", [True, False])
def test_layers_that_take_over_counters_are_skipped_exactly(
    counters: int, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that take over the counters of earlier ones are alike, though each has other counters."""
    found = skipped_periods(monkeypatch)
    setting = f"sync.counters_per_chip={counters}"
    options = CompileOptions(override(TINY, setting))
    artifact = compile_model(layers([96] * 24, residual=residual), options).artifact
    (segment,) = artifact.program.segments
    assert sum(len(group.expect) for group in segment.counters) > segment.counters_used
    check_same(artifact.program, artifact.vectors, "ppu-tiny", setting)
    assert found
    check_same(artifact.program, artifact.vectors, "ppu-tiny", setting, "hbm.latency_ns=333.7", "l2.latency_ns=77.123")


@pytest.mark.parametrize("odd", [0, 7, 12, 23])
def test_a_layer_that_differs_is_not_skipped(odd: int) -> None:
    widths = [96] * 24
    widths[odd] = 80
    artifact = compile_model(layers(widths), CompileOptions(TINY)).artifact
    check_same(artifact.program, artifact.vectors, "ppu-tiny")


def test_layers_that_alternate_repeat_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = skipped_periods(monkeypatch)
    artifact = compile_model(layers([96, 64] * 12), CompileOptions(TINY)).artifact
    check_same(artifact.program, artifact.vectors, "ppu-tiny")
    assert found, "nothing was skipped"


def test_runs_that_keep_a_record_of_events_skip_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = skipped_periods(monkeypatch)
    model, target = layers([96] * 12), load_target("ppu-tiny")
    artifact = compile_model(model, CompileOptions(TINY)).artifact
    ppuc.compile(model, target="ppu-tiny").run({"x0": np.ones((48, 64), np.float32)})
    simulate(artifact.program, artifact.vectors, target, {}, None, trace=True)
    assert not found


def test_a_program_without_repetition_has_no_replay() -> None:
    artifact, target = compile_model(layers([96, 80, 64, 48]), CompileOptions(TINY)).artifact, TINY
    (segment,) = artifact.program.segments
    flat = flatten(artifact.program, segment, {v.name: v for v in artifact.vectors}, target)
    assert Replay.of(flat, new_state(flat.code, flat.machine, 0)) is None


def test_a_program_without_vector_steps() -> None:
    """Products without an epilogue only copy their sums out of the accumulator: there are no vector steps to
    compare."""
    weights = [numpy_helper.from_array(np.zeros((64, 64), np.float32), f"w{i}") for i in range(24)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(24)]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [48, 64]) for n in ("x0", "x24")]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    artifact = compile_model(model, CompileOptions(TINY)).artifact
    check_same(artifact.program, artifact.vectors, "ppu-tiny")
