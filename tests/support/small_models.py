"""Small models with seeded weights that every output depends on."""

from __future__ import annotations

import numpy as np
import onnx

from tests.support.onnx_text import model_of


def mlp() -> onnx.ModelProto:
    """Two layers, batch N: x[N, 20] -> y[N, 7]; nodes are named."""
    rng = np.random.default_rng(7)
    weights = {
        "w0": rng.standard_normal((20, 33), np.float32) / 4,
        "b0": rng.standard_normal(33, np.float32),
        "w1": rng.standard_normal((33, 7), np.float32) / 5,
    }
    model = model_of(
        "mlp (float[N, 20] x) => (float[N, 7] y) { h = MatMul(x, w0) a = Add(h, b0) r = Relu(a) y = MatMul(r, w1) }",
        weights,
    )
    for node, name in zip(model.graph.node, ("first", "bias", "relu", "second"), strict=True):
        node.name = name
    return model


def lookup() -> onnx.ModelProto:
    """A table of 11 rows looked up by ids, weighted by a mask: ids[3], mask[3] -> y[3, 4]."""
    table = np.random.default_rng(3).standard_normal((11, 4), np.float32)
    text = """lookup (int64[3] ids, int64[3] attention_mask) => (float[3, 4] y) {
        g = Gather(table, ids)
        f = Cast<to = 1>(attention_mask)
        m = Unsqueeze(f, one)
        y = Mul(g, m)
    }"""
    return model_of(text, {"table": table, "one": np.array([1], np.int64)})


def chain_of_permutations(count: int) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """`count` products one after another whose weights permute and negate columns, an input `x0` f32[64, 64], and the
    exact output."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), (4, 64))
    weights = {f"w{i}": (np.eye(64, dtype=np.float32)[rng.permutation(64)] * signs[i]) for i in range(4)}
    steps = " ".join(f"x{i + 1} = MatMul(x{i}, w{i % 4})" for i in range(count))
    model = model_of(f"chain (float[64, 64] x0) => (float[64, 64] x{count}) {{ {steps} }}", weights)
    x = rng.standard_normal((64, 64), np.float32)
    y = x
    for i in range(count):
        y = y @ weights[f"w{i % 4}"]
    return model, x, y


def normal(*shape: int) -> np.ndarray:
    """The same standard normal f32 numbers every time."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
