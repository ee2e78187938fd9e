"""Prices of tile search against simulated times.

The machines differ from the real ones in what a kernel's price does not contain: device memory, and copies from it into
l2, take no time. Band: a price is between 0.45 and 1.3 of the simulated time; the median is between 0.8 and 1.1. A
kernel of two products is between 0.7 and 1.05: alone, it waits for weights that otherwise arrive while another kernel
runs. What prices do not contain is the first wait for another kernel, and copies of operands into l2, which take as
much of its rate as the loads of a kernel that only moves elements.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ppuc.compiler.entry import compile_program
from ppuc.compiler.options import CompileOptions
from ppuc.targets.description import load_target, override
from ppuc.targets.schema import Target

FREE_MEMORY = (
    "hbm.gbs=10000000", "hbm.latency_ns=0", "hbm.activate_bytes=1", "hbm.burst_bytes=1", "hbm.sector_bytes=1",
    "hbm.turnaround=0", "hbm.efficiency=1", "l2.bytes=1073741824", "noc.link_bytes_per_clk=1000000",
    "noc.ce_port_bytes_per_clk=1000000", "stage.start_ns=0",
)  # fmt: skip
UNARY = ("Erf", "Tanh", "Sigmoid", "Exp", "Gelu", "Mish", "Sqrt", "Sin")
LOW, HIGH = 0.45, 1.3
JOINED_LOW, JOINED_HIGH = 0.7, 1.05


@functools.cache
def machine(name: str) -> Target:
    return override(load_target(name), *FREE_MEMORY)


def model_of(nodes: list[onnx.NodeProto], shapes: dict[str, Sequence[int]], out: Sequence[int]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, out)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def ratios(model: onnx.ModelProto, target: str) -> list[float]:
    """Price / simulated time of every kernel whose tiles a search chose."""
    program = compile_program(model, CompileOptions(machine(target)))
    prices = {r.entity: r.after_clk for r in program.remarks if r.decision == "tiled" and r.after_clk}
    kernels = program.time().profile.kernels
    return [prices[k.name] / (k.end - k.start) for k in kernels if k.name in prices]


@pytest.mark.parametrize("target", ["zhenwu-m890", "zhenwu-810e"])
@given(data=st.data())
@settings(max_examples=8, derandomize=True, deadline=None)
def test_prices_follow_simulated_times(target: str, data: st.DataObject) -> None:
    """Elementwise chains, rows, products with epilogues and attention of random sizes, large enough for every unit."""
    rows, size = data.draw(st.integers(512, 4096)), 16 * data.draw(st.integers(16, 96))
    ops = data.draw(st.lists(st.sampled_from(UNARY), min_size=1, max_size=3))
    chain = [helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]) for i, op in enumerate(ops)]
    elementwise = [*chain, helper.make_node("Abs", [f"t{len(ops)}"], ["y"])]
    softmax = [helper.make_node("Softmax", ["x"], ["y"], axis=-1)]
    depth = 16 * data.draw(st.integers(4, 64))
    product = [helper.make_node("MatMul", ["x", "w"], ["t0"]), *elementwise]
    heads = data.draw(st.integers(8, 32))
    wide = heads * 64
    attention = [helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=heads, kv_num_heads=heads)]
    found = [
        *ratios(model_of(elementwise, {"t0": (rows, size)}, (rows, size)), target),
        *ratios(model_of(softmax, {"x": (rows, size)}, (rows, size)), target),
        *ratios(model_of(product, {"x": (rows, depth), "w": (depth, size)}, (rows, size)), target),
        *ratios(model_of(attention, dict.fromkeys("qkv", (1, rows, wide)), (1, rows, wide)), target),
    ]
    assert len(found) >= 4
    case = (found, rows, size, ops, depth, heads)
    assert min(found) > LOW, case
    assert max(found) < HIGH, case
    assert 0.8 < float(np.median(found)) < 1.1, case


@pytest.mark.parametrize(
    ("rows", "width", "inner"), [(1403, 64, 256), (359, 64, 256), (1906, 48, 192), (454, 128, 256)]
)
def test_prices_of_joined_products_follow_simulated_times(rows: int, width: int, inner: int) -> None:
    """Two products with an activation between, in one kernel. `cascade` compares such prices with those of kernels
    apart, so that their band is narrower."""
    shapes = {"x": (rows, width), "v": (width, inner), "w": (inner, width)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["y"]),
    ]
    (found,) = ratios(model_of(nodes, shapes, (rows, width)), "zhenwu-m890")
    assert JOINED_LOW < found < JOINED_HIGH
