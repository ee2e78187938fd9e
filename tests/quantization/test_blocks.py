"""Plans that store weights in blocks: what products read, what is refused, and that programs compute it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ppuc.compiler.entry import compile as compile_program
from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.compiler.quantization.measure import Reference
from ppuc.compiler.quantization.plan import BLOCKS, LayerPlan, Plan
from ppuc.compiler.quantization.policy import read_policy, write_policy
from ppuc.compiler.quantization.prepare import dynamic_plan
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.errors import UsageError
from ppuc.ir.interpret import run_graph
from ppuc.ir.microscaling import decode_blocks, encode_blocks
from ppuc.ir.types import DType
from tests.quantization.test_plans import convnet, prepared, samples_of
from tests.support.onnx_text import model_of
from tests.support.whole_pipeline import compiled

FLOOR = {"mxfp8": 24.0, "nvfp4": 15.0, "mxfp4": 12.0}
"""dB of a product of normal numbers: E4M3 has 4 bits of mantissa, E2M1 has 2."""


def two_products() -> onnx.ModelProto:
    """x[3, 96] -> relu(x a) b, b read transposed; depths of 96 and of 80, which is no multiple of 32."""
    rng = np.random.default_rng(2)
    weights = {"a": rng.standard_normal((96, 80), np.float32) / 9, "b": rng.standard_normal((40, 80), np.float32) / 9}
    text = """net (float[3, 96] x) => (float[3, 40] y) {
        h = MatMul(x, a)
        r = Relu(h)
        y = Gemm<transB = 1>(r, b)
    }"""
    model = model_of(text, weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


@pytest.mark.parametrize("target", ["ppu-tiny", "zhenwu-810e", "zhenwu-m890"])
@pytest.mark.parametrize("format", BLOCKS)
def test_weights_are_those_of_the_format(format: str, target: str) -> None:
    """Every pass re-executed, program and kernels equal to the bit, and what the formats say in numpy."""
    ready = prepared(two_products(), target, format)
    plan = dynamic_plan(ready, format)
    assert [p.format for p in plan.layers.values()] == [format, format]
    samples = samples_of(ready, 4)
    quantized = ready.quantized(plan)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in two_products().graph.initializer}

    def stored(rows: np.ndarray) -> np.ndarray:
        return decode_blocks(encode_blocks(np.ascontiguousarray(rows), BLOCKS[format]))

    (sample,) = ready.feeds(samples[:1])
    want = np.maximum(samples[0]["x"] @ stored(weights["a"].T).T, 0) @ stored(weights["b"]).T
    (value,) = quantized.graph.results
    for got in (Emulator(quantized.graph).run(sample), run_graph(quantized.graph, sample)):
        assert np.abs(got[value.name] - want).max() <= 1e-5 * np.abs(want).max()
    assert FLOOR[format] < Reference(ready.module.graph, ready.feeds(samples)).compare(quantized.graph).sqnr < 45
    done = compiled(quantized, ready.target, samples[0])
    held = DType.F8E4M3 if format == "mxfp8" else DType.U8
    assert [b.dtype for k in done.kernels for b in k.buffers if b.name == "bt"] == [held, held]


def test_what_has_no_blocks_stays_as_it_is() -> None:
    """Convolutions, and depths that cannot be cut."""
    ready = prepared(convnet(), precision="mxfp4")
    assert not dynamic_plan(ready, "mxfp4").layers


def test_policies_name_block_formats(tmp_path: Path) -> None:
    ready = prepared(two_products())
    plan = Plan({"h": LayerPlan("nvfp4", weights_only=True), "y": LayerPlan(scales=(0.1,))})
    write_policy(tmp_path / "p.toml", plan, {})
    back = read_policy(tmp_path / "p.toml", ready.layers)
    assert back == plan
    (tmp_path / "short.toml").write_text('[[layer]]\nname = "h"\nformat = "mxfp4"\n')
    assert read_policy(tmp_path / "short.toml", ready.layers).layers["h"].weights_only
    for model, text, message in (
        (two_products(), 'name = "h"\nformat = "mxfp4"\nscales = [1.0]', "mxfp4 is a format for weights alone"),
        (convnet(), 'name = "c"\nformat = "mxfp4"', "the weights of layer 'c' cannot be stored in blocks"),
    ):
        (tmp_path / "bad.toml").write_text(f"[[layer]]\n{text}\n")
        with pytest.raises(UsageError, match=message):
            read_policy(tmp_path / "bad.toml", prepared(model).layers)


def held(program: CompiledProgram) -> int:
    """Bytes of the constants of more than a number for each column."""
    constants = [c if isinstance(c, np.ndarray) else c.array() for c in program.artifact.constants.values()]
    return sum(c.nbytes for c in constants if c.ndim == 2)


@pytest.mark.parametrize("format", BLOCKS)
def test_a_precision_of_their_own(format: str) -> None:
    """The weights take a half, or a quarter, of bf16's bytes; blocks that a depth of 80 cuts repeat scales."""
    wide, narrow = (compile_program(two_products(), "ppu-tiny", p) for p in ("bf16", format))
    bits = 8 * held(narrow) / (96 * 80 + 80 * 40)
    assert BLOCKS[format].bits <= bits <= BLOCKS[format].bits + 0.5
    assert held(wide) == 2 * (96 * 80 + 80 * 40)
    assert narrow.artifact.meta["precision"] == format
    assert wide.artifact.meta["precision"] == "bf16"
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    got, want = (p.run({"x": x}).outputs["y"] for p in (narrow, wide))
    noise = float(np.square(got - want).sum() / np.square(want).sum())
    assert 10 ** (-45 / 10) < noise < 10 ** (-FLOOR[format] / 10)
