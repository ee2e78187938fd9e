"""`verify --layers`: a value of the program is compared with the tensor that it holds, or with none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.comparing import layers as compared_layers
from ppuc.compiler.pipeline.layers import layer_candidates
from ppuc.ir.text import parse_graph
from tests.support.onnx_text import model_of

MACHINES = ("ppu-tiny", "zhenwu-m890")
MS = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>'


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def contributed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    source = onnx.parser.parse_model(f"{MS}\n{text}")
    source.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in weights.items())
    return source


WEIGHTS = {"W": draws(32, 96) / 5, "B": draws(96, seed=1) / 9, "g": draws(32, seed=2), "b": draws(32, seed=3),
           "P": draws(32, 32, seed=4) / 5}  # fmt: skip
BLOCKS = {
    "residual": "at = com.microsoft.Attention <num_heads = 4> (e, W, B) "
    "y = com.microsoft.SkipLayerNormalization (at, e, g, b)",
    "bias and residual": "at = com.microsoft.Attention <num_heads = 4> (e, W, B) "
    "y = com.microsoft.SkipLayerNormalization (at, e, g, b, b)",
    "activation": "at = com.microsoft.Attention <num_heads = 4> (e, W, B) a = Add(at, b) y = Gelu2(a)",
    "projection": "at = com.microsoft.Attention <num_heads = 4> (e, W, B) m = MatMul(at, P) a = Add(m, e) r = Relu(a) "
    "y = com.microsoft.SkipLayerNormalization (r, e, g, b)",
    "quick": "m = MatMul(e, P) q = com.microsoft.QuickGelu <alpha = 1.7> (m) a = Add(q, e) y = MatMul(a, P)",
    "gated": "m = MatMul(e, P) s = com.microsoft.BiasGelu (m, b) t = Mul(s, e) u = Tanh(t) y = MatMul(u, P)",
}


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize("name", list(BLOCKS))
def test_no_layer_is_compared_with_a_tensor_before_it(name: str, target: str, precision: str) -> None:
    body = BLOCKS[name].replace("Gelu2", "com.microsoft.FastGelu")
    source = contributed(f"g (float[1, 6, 32] e) => (float[1, 6, 32] y) {{ {body} }}", **WEIGHTS)
    found = ppuc.verify(ppuc.compile(source, target, precision), {"e": draws(1, 6, 32)}, layers=True)
    assert [c.reason for c in (*found.outputs, *found.layers) if not c.ok] == []
    assert all(c.sqnr_db > (15 if precision == "bf16" else 90) for c in found.layers)


def test_a_group_stands_for_the_node_that_its_last_op_ends() -> None:
    graph = parse_graph("""graph @g(%x: f32[4]) -> (%z: f32[4]) {
      %y: f32[4] = group(%x) {kind = "map", kernel = ""} loc("first", "second") body @body(%i: f32[4]) -> (%b: f32[4]) {
        %a: f32[4] = neg(%i) loc("first")
        %b: f32[4] = add(%a, %i) loc("second")
      }
      %z: f32[4] = exp(%y) loc("second")
    }""")
    assert layer_candidates(graph) == {"z": ("second",)}


TWO = """g (float[4, 8] x) => (float[4, 8] y) {
    a = MatMul(x, W) r = Relu(a) m = MatMul(r, W) t = Tanh(m) y = MatMul(t, W) }"""


def two() -> ppuc.CompiledProgram:
    return ppuc.compile(model_of(TWO, {"W": draws(8, 8)}), "ppu-tiny")


@pytest.mark.usefixtures("apart")
def test_a_value_named_after_another_node_is_compared_with_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compared_layers.final_node

    def before(candidates: Any, order: tuple[str, ...]) -> str | None:
        node = right(candidates, order)
        return {"Relu_1": "MatMul_0", "Tanh_3": "MatMul_2"}.get(node or "", node)

    monkeypatch.setattr(compared_layers, "final_node", before)
    found = ppuc.verify(two(), {"x": draws(4, 8)}, layers=True)
    assert found.ok
    assert [c.name for c in found.layers] == ["Relu_1", "Tanh_3"]


@pytest.mark.usefixtures("apart")
def test_a_value_that_is_none_of_the_models_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_layers, "held_by", lambda *arguments: None)
    right = compared_layers.final_node
    monkeypatch.setattr(
        compared_layers, "final_node", lambda c, order: {"Relu_1": "MatMul_0"}.get(right(c, order), right(c, order))
    )
    found = ppuc.verify(two(), {"x": draws(4, 8)}, layers=True)
    assert [c.name for c in found.layers] == ["Tanh_3"]


@pytest.mark.usefixtures("apart")
def test_a_layer_that_the_program_computes_wrongly_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compared_layers.kept_layers

    def wrong(outputs: Any) -> dict[str, np.ndarray]:
        return {name: array * np.float32(1.01) for name, array in right(outputs).items()}

    monkeypatch.setattr(compared_layers, "kept_layers", wrong)
    found = ppuc.verify(two(), {"x": draws(4, 8)}, layers=True)
    assert not found.ok
    assert found.first_offender == "Relu_1"
    assert all(not c.ok for c in found.layers)


@pytest.mark.usefixtures("apart")
def test_layers_behind_a_wrong_rewrite_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the compiled graph itself is another model, what its values mean excuses nothing."""
    program = two()
    other = ppuc.compile(model_of(TWO, {"W": draws(8, 8) * np.float32(1.01)}), "ppu-tiny")
    right = compared_layers._with_layers
    monkeypatch.setattr(compared_layers, "_with_layers", lambda _: right(other))
    found = ppuc.verify(program, {"x": draws(4, 8)}, layers=True)
    assert [(c.name, c.ok) for c in found.layers] == [("Relu_1", False), ("Tanh_3", False)]


def test_an_output_in_the_memory_of_an_input_of_another_shape() -> None:
    made = model_of("g (float[8, 8] x, float[4] z) => (float[16, 4] y, float[4] w) { y = Reshape(x, s) w = Relu(z) }",
                    {"s": np.array([16, 4])})  # fmt: skip
    found = ppuc.verify(ppuc.compile(made, target="ppu-tiny"), {"x": draws(8, 8), "z": draws(4)}, layers=True)
    assert found.ok
