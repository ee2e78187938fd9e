"""Tensors that are only moved between layers: they travel in 8 bits, and quantizing them takes no kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from ppuc.compiler.options import Calibration
from ppuc.compiler.quantization.apply import Writer, chosen_layers
from ppuc.compiler.quantization.calibrate import calibrated_plan
from ppuc.compiler.quantization.moves import WIDEST_FLOAT, WIDEST_INTEGER, with_shared_scales
from ppuc.compiler.quantization.plan import LayerPlan, Plan
from ppuc.compiler.quantization.prepare import Prepared
from ppuc.ir.interpret import run_graph
from ppuc.ir.module import Module
from ppuc.ir.rewrite import rewrite
from ppuc.ir.types import DType
from tests.quantization.networks import prepared, samples_of
from tests.support.onnx_text import model_of
from tests.support.whole_pipeline import compiled


def shuffled(batch: int, *, channels_moved_in_front: bool, sum_of_all: bool = False) -> onnx.ModelProto:
    """Two ShuffleNetV2 units after a convolution and a pool, as FastestDet writes them (halves in front) or as
    torchvision does; `sum_of_all`: another output needs the units' results in full precision."""
    rng = np.random.default_rng(14)
    weights: dict[str, np.ndarray] = {
        "apart": np.array([batch * 8, 2, 36]), "halves": np.array([2, -1, 8, 6, 6]), "zero": np.array(0),
        "one": np.array(1), "grouped": np.array([batch, 2, 8, 6, 6]), "whole": np.array([batch, 16, 6, 6]),
        "first": rng.standard_normal((16, 3, 3, 3), np.float32) / 5,
        "last": rng.standard_normal((5, 16, 1, 1), np.float32),
    }  # fmt: skip
    lines = ["c0 = Conv<pads = [1, 1, 1, 1]>(x, first)", "o0 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c0)"]
    for unit in range(2):
        u = f"u{unit}"
        weights[f"{u}p"] = rng.standard_normal((8, 8, 1, 1), np.float32) / 3
        weights[f"{u}d"] = rng.standard_normal((8, 1, 3, 3), np.float32) / 3
        weights[f"{u}q"] = rng.standard_normal((8, 8, 1, 1), np.float32) / 3
        if channels_moved_in_front:
            lines += [f"{u}r = Reshape(o{unit}, apart)", f"{u}t = Transpose<perm = [1, 0, 2]>({u}r)",
                      f"{u}h = Reshape({u}t, halves)", f"{u}a = Gather<axis = 0>({u}h, zero)",
                      f"{u}b = Gather<axis = 0>({u}h, one)"]  # fmt: skip
        else:
            lines += [f"{u}r = Reshape(o{unit}, grouped)", f"{u}t = Transpose<perm = [0, 2, 1, 3, 4]>({u}r)",
                      f"{u}h = Reshape({u}t, whole)", f"{u}a, {u}b = Split<axis = 1>({u}h)"]  # fmt: skip
        lines += [f"{u}1 = Conv({u}b, {u}p)", f"{u}2 = Relu({u}1)",
                  f"{u}3 = Conv<pads = [1, 1, 1, 1], group = 8>({u}2, {u}d)", f"{u}4 = Conv({u}3, {u}q)",
                  f"{u}5 = Relu({u}4)", f"o{unit + 1} = Concat<axis = 1>({u}a, {u}5)"]  # fmt: skip
    lines += ["y = Conv(o2, last)", *(["s = ReduceSum<keepdims = 0>(o2)"] if sum_of_all else [])]
    outputs = f"float[{batch}, 5, 6, 6] y" + (", float s" if sum_of_all else "")
    head = f"net (float[{batch}, 3, 12, 12] x) => ({outputs}) {{\n"
    model = model_of(head + "\n".join(lines) + "\n}", weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def stored_types(module: Module) -> list[DType]:
    return [v.type.dtype for op in module.graph.ops if op.body is not None for v in op.results]


def alike(ready: Prepared, format: str) -> Plan:
    """Every layer in `format`, with one scale."""
    return Plan({n.name: LayerPlan(format, (0.03,) * len(n.inputs), (False,) * len(n.inputs)) for n in ready.layers})


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-m890"])
@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_shuffled_channels_travel_in_8_bits(target: str, in_front: bool, batch: int) -> None:
    """Every pass re-executed, no hazard; only the result is stored in more than 8 bits."""
    ready = prepared(shuffled(batch, channels_moved_in_front=in_front), target)
    samples = samples_of(ready, 2)
    for format, dtype in (("e4m3", DType.F8E4M3), ("int8", DType.I8)):
        module = compiled(ready.quantized(alike(ready, format)), ready.target, samples[0])
        assert {*stored_types(module)[:-1]} == {dtype}


@pytest.mark.parametrize("in_front", [True, False])
def test_quantizing_what_is_also_read_in_full_takes_no_kernel(in_front: bool) -> None:
    """The units' results are needed in bf16: the products read them as before, and round what they read."""
    ready = prepared(shuffled(2, channels_moved_in_front=in_front, sum_of_all=True), "zhenwu-m890")
    samples = samples_of(ready, 2)
    module = compiled(ready.quantized(alike(ready, "e4m3")), ready.target, samples[0])
    plain = compiled(ready.quantized(Plan()), ready.target, samples[0])
    assert len(stored_types(module)) <= len(stored_types(plain)) + 1


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_commutes_with_moving(format: str, seed: int) -> None:
    """Formats and scales drawn by layer: the bits are those of quantizing where a layer reads."""
    rng = np.random.default_rng(seed)
    ready = prepared(shuffled(2, channels_moved_in_front=seed % 2 == 0, sum_of_all=seed > 1), "ppu-edge")
    samples = samples_of(ready, 12, seed)
    plan = calibrated_plan(ready, format, samples, Calibration(headroom=1.0))
    mixed = {n: LayerPlan("bf16") for n in plan.layers if rng.random() < 0.3}
    mixed |= {n: alike(ready, "int8").layers[n] for n in plan.layers if rng.random() < 0.2}
    plan = plan.with_layers(mixed)
    unmoved = rewrite(ready.module.graph, Writer(chosen_layers(plan, ready.all_layers)).rule)
    feed = next(iter(ready.feeds(samples)))
    here, there = run_graph(unmoved, feed), run_graph(ready.quantized(plan).graph, feed)
    for had, got in zip(here.values(), there.values(), strict=True):
        assert np.array_equal(had, got)
    compiled(ready.quantized(plan), ready.target, samples[0])


def test_scales_of_moved_parts_are_equal_where_they_are_similar() -> None:
    ready = prepared(shuffled(1, channels_moved_in_front=True))

    def shared(format: str, ratio: float) -> set[tuple[float, ...]]:
        layers = {n.name: LayerPlan(format, (0.5,), (False,)) for n in ready.layers}
        layers["u01"] = LayerPlan(format, (0.5 / ratio,), (False,))
        made = with_shared_scales(ready.module.graph, ready.layers, Plan(layers))
        return {made.layers[n].scales for n in ("u01", "u11", "y")}

    assert shared("e4m3", WIDEST_FLOAT) == {(0.5,)}
    assert shared("e4m3", WIDEST_FLOAT * 1.01) == {(0.5,), (0.5 / (WIDEST_FLOAT * 1.01),)}
    assert shared("int8", WIDEST_INTEGER) == {(0.5,)}
    assert shared("int8", WIDEST_INTEGER * 1.01) == {(0.5,), (0.5 / (WIDEST_INTEGER * 1.01),)}
