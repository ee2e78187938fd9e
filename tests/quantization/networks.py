"""Small networks that the tests of quantization quantize, and samples for them."""

from __future__ import annotations

import numpy as np
import onnx

from ppuc.compiler.driver import initial_module
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.options import CompileOptions
from ppuc.compiler.quantization.prepare import Prepared, prepare
from ppuc.targets.description import load_target
from tests.support.onnx_text import model_of
from tests.support.small_models import mlp

SAMPLES = 12


def convnet() -> onnx.ModelProto:
    """A convolution, a depthwise one, a pointwise one, a residual sum and a classifier: x[N, 3, 9, 9] -> y[N, 5]."""
    rng = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:], dtype=np.float32))

    weights = {"w0": normal(17, 3, 3, 3), "b0": normal(17) / 4, "wd": normal(17, 1, 3, 3), "wp": normal(17, 17, 1, 1)}
    text = """net (float[N, 3, 9, 9] x) => (float[N, 5] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)
        r = Relu(c)
        d = Conv<pads = [1, 1, 1, 1], group = 17>(r, wd)
        s = Relu(d)
        p = Conv(s, wp)
        a = Add(p, r)
        g = GlobalAveragePool(a)
        f = Flatten(g)
        y = MatMul(f, wy)
    }"""
    model = model_of(text, {**weights, "wy": normal(5, 17).T.copy()})
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def attention() -> onnx.ModelProto:
    """Products of two activations on both sides of a softmax that no pattern recognises: x[7, 16] -> y[7, 16]."""
    rng = np.random.default_rng(12)
    weights = {f"w{i}": rng.standard_normal((16, 16), np.float32) / 4 for i in range(3)}
    text = """net (float[7, 16] x) => (float[7, 16] y) {
        q = MatMul(x, w0)
        k = MatMul(x, w1)
        v = MatMul(x, w2)
        t = Transpose<perm = [1, 0]>(k)
        s = MatMul(q, t)
        e = Sigmoid(s)
        y = MatMul(e, v)
    }"""
    model = model_of(text, weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def transformer() -> onnx.ModelProto:
    """Two heads of attention as exporters write it, with a mask: x[2, 9, 16] -> y[2, 9, 16]."""
    rng = np.random.default_rng(13)
    weights: dict[str, np.ndarray] = {f"w{i}": rng.standard_normal((16, 16), np.float32) / 4 for i in range(4)}
    weights |= {"split": np.array([2, 9, 2, 8]), "whole": np.array([2, 9, 16]), "root": np.float32(8**-0.5)}
    weights["mask"] = np.where(rng.random((9, 9)) < 0.2, -9.0, 0.0).astype(np.float32)
    heads = "".join(
        f"""{n} = MatMul(x, w{i})
        {n}r = Reshape({n}, split)
        {n}h = Transpose<perm = [0, 2, {"3, 1" if n == "k" else "1, 3"}]>({n}r)
        """
        for i, n in enumerate("qkv")
    )
    text = f"""net (float[2, 9, 16] x) => (float[2, 9, 16] y) {{
        {heads}s = MatMul(qh, kh)
        t = Mul(s, root)
        m = Add(t, mask)
        p = Softmax(m)
        a = MatMul(p, vh)
        b = Transpose<perm = [0, 2, 1, 3]>(a)
        c = Reshape(b, whole)
        y = MatMul(c, w3)
    }}"""
    model = model_of(text, weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def prepared(model: onnx.ModelProto, target: str = "ppu-tiny", precision: str = "fp8") -> Prepared:
    options = CompileOptions(load_target(target), precision)
    imported = load_model(model, dims={"N": 2} if model.graph.input[0].type.tensor_type.shape.dim[0].dim_param else {})
    return prepare(initial_module(imported, options), options)


def samples_of(ready: Prepared, count: int = SAMPLES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{s.name: rng.standard_normal(s.type.dims).astype(np.float32) for s in ready.specs} for _ in range(count)]


MODELS = {"mlp": mlp, "convnet": convnet, "attention": attention, "transformer": transformer}
