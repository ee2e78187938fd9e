"""Machines whose compilers keep weights in a large scratchpad: the order of loads, and their cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ppuc
from ppuc.compiler.driver import compile_model
from ppuc.compiler.options import CompileOptions
from ppuc.ir.kernel import Kernel
from ppuc.ir.types import DType, Space
from ppuc.targets import cost
from ppuc.targets.description import Target, load_target, override
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import simulate

V6E = load_target("tpuv6e-core")
WHOLE = override(load_target("ppu-tiny"), "launch.tile_sides=whole columns")


def product(m: int, n: int, k: int, dtype: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    shapes = {"x": [m, k], "w": [k, n], "y": [m, n]}
    x, w, y = (helper.make_tensor_value_info(name, dtype, dims) for name, dims in shapes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x, w], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def run(m: int, n: int, k: int, target: Target) -> tuple[Kernel, Profile]:
    compiled = compile_model(product(m, n, k), CompileOptions(target))
    assert compiled.module is not None
    profile = simulate(compiled.artifact.program, compiled.artifact.vectors, target, {}, None).profile
    return compiled.module.kernels[0], profile


def depths(kernel: Kernel) -> dict[str, int]:
    return {b.name: b.depth for b in kernel.buffers if b.space is Space.L1}


def engine_clk(m: int, n: int, k: int) -> float:
    return float(cost.mma_cycles(m, n, k, DType.F16, V6E))


def test_a_product_within_a_quarter_of_l1_is_loaded_whole_before_it_is_multiplied() -> None:
    m, n, k = 1024, 1024, 1024
    kernel, profile = run(m, n, k, V6E)
    assert depths(kernel)["at"] == depths(kernel)["bt"] == 1
    moved = 2 * (m * k + n * k + m * n) / cost.hbm_bytes_per_clk(V6E)
    assert profile.cycles - profile.launch_cycles > moved + engine_clk(m, n, k), "loads, products and stores add up"


def test_rows_stream_past_weights_that_stay() -> None:
    m, n, k = 32768, 1024, 1024
    assert 2 * m * k > V6E.l1.bytes // 4
    kernel, profile = run(m, n, k, V6E)
    assert depths(kernel)["bt"] == 1
    assert depths(kernel)["at"] >= 2
    assert profile.read_bytes[Space.HBM] == 2 * (m * k + n * k), "weights are read once"
    moved = 2 * (m * k + n * k + m * n) / cost.hbm_bytes_per_clk(V6E)
    longest = max(moved, engine_clk(m, n, k))
    assert profile.cycles - profile.launch_cycles < 1.25 * longest, "rows are loaded beside the products"


def test_rows_are_as_many_as_hide_how_long_an_array_takes_to_drain() -> None:
    """Few summands: the products of a few hundred rows are through before the first result is out."""
    m, n, k = 131072, 256, 64
    _, profile = run(m, n, k, V6E)
    moved = 2 * (m * k + n * k + m * n) / cost.hbm_bytes_per_clk(V6E)
    assert profile.cycles - profile.launch_cycles < 1.15 * moved


def test_weights_that_l1_does_not_hold_stream_too() -> None:
    n, k = 16384, 4096
    assert 2 * n * k > 3 * V6E.l1.bytes // 4
    kernel, _ = run(64, n, k, V6E)
    assert depths(kernel)["bt"] >= 2


@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 7), (16, 16, 16), (130, 20, 33), (200, 33, 17), (64, 300, 200)])
def test_values_are_right(m: int, n: int, k: int) -> None:
    program = ppuc.compile(product(m, n, k, TensorProto.FLOAT), target=WHOLE)
    rng = np.random.default_rng(m)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    result = program.run({"x": x, "w": w})
    np.testing.assert_allclose(result.outputs["y"], x @ w, rtol=2e-5, atol=1e-5 * k)
    assert not result.profile.hazards


def attention(heads: int, shared: int, queries: int, keys: int, size: int) -> onnx.ModelProto:
    shapes = {"q": [1, heads, queries, size], "k": [1, shared, keys, size], "v": [1, shared, keys, size]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, dims) for name, dims in shapes.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT16, shapes["q"])
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["y"])], "g", inputs, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def scores_of(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Shapes of the tiles of scores that an iteration interleaves."""
    compiled = compile_model(model, CompileOptions(V6E))
    assert compiled.module is not None
    (kernel,) = compiled.module.kernels
    return [b.shape for b in kernel.buffers if b.space is Space.ACC and b.name.startswith("scores")]


def test_attention_takes_long_tiles_of_keys_in_turn_with_their_softmax() -> None:
    ((heads, queries, keys),) = scores_of(attention(8, 2, 32, 8192, 128))
    assert (heads, queries) == (4, 32), "the heads that share keys multiply them together"
    assert keys > 1024


def test_heads_that_fill_neither_side_of_an_array_are_taken_together() -> None:
    assert scores_of(attention(64, 64, 32, 32, 32)) == 8 * [(1, 32, 32)]
    assert scores_of(attention(8, 4, 32, 32, 32)) == 4 * [(2, 32, 32)]
    assert scores_of(attention(64, 64, 32, 512, 32)) == [(1, 32, 512)]
    assert scores_of(attention(63, 63, 32, 32, 32)) == [(1, 32, 32)], "the last ones would be fewer"


@pytest.mark.parametrize(("heads", "shared"), [(8, 8), (12, 4), (6, 3)])
def test_heads_taken_together_compute_the_same_values(heads: int, shared: int) -> None:
    program = ppuc.compile(attention(heads, shared, 20, 24, 16), V6E)
    assert ppuc.verify(program).ok


@pytest.mark.parametrize("op", ["Softmax", "LayerNormalization"])
def test_rows_to_reduce_are_loaded_a_register_at_a_time(op: str) -> None:
    rows, columns = 100, 300
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, columns]) for name in "xy")
    scale = numpy_helper.from_array(np.linspace(0.5, 1.5, columns, dtype=np.float32), "s")
    given = ["x"] if op == "Softmax" else ["x", "s"]
    graph = helper.make_graph([helper.make_node(op, given, ["y"])], "g", [x], [y], [scale][: len(given) - 1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    target = load_target("tpuv3-core")
    compiled = compile_model(model, CompileOptions(target))
    assert compiled.module is not None
    (kernel,) = compiled.module.kernels
    tiles = [(b.shape, b.depth) for b in kernel.buffers if b.shape[-1] == columns and len(b.shape) == 2]
    assert ((8, columns), 1) in tiles
    rng = np.random.default_rng(0)
    values = {"x": rng.standard_normal((rows, columns)).astype(np.float32)}
    assert ppuc.verify(ppuc.compile(model, target), values).ok


def test_columns_to_reduce_are_loaded_as_on_other_machines() -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n, dims in (("x", [64, 512]), ("y", [512])))
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [axes]), opset_imports=[helper.make_opsetid("", 18)]
    )
    compiled = compile_model(model, CompileOptions(load_target("tpuv3-core")))
    assert compiled.module is not None
    (kernel,) = compiled.module.kernels
    assert all(b.depth > 1 for b in kernel.buffers)
    assert max(b.shape[-1] for b in kernel.buffers) > 8, "columns lie along the lanes"
