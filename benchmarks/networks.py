"""ONNX graphs of the networks that the efficiency benchmark measures, built from their published shapes.

Weights are ranges of a sparse external file, so that a decoder of 8 billion parameters takes no disk space. They are
zero (values do not affect timing) except for a single one, at a different position in each, so that no two are equal.
Shapes: He et al. 2015 (ResNet-50), Sandler et al. 2018 (MobileNetV2), Dosovitskiy et al. 2020 (ViT-B/16), Devlin et al.
2018 (BERT-base), Touvron et al. 2023 and Qwen 2025 (decoder with grouped-query attention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 17


class Network:
    """Appends nodes to one ONNX graph; weights are ranges of one sparse file."""

    def __init__(self, name: str, folder: Path, block: int = 0) -> None:
        """`block`: weights of products are stored in 4 bits, with one scale per `block` elements of a column."""
        self.name, self.folder, self.block = name, folder, block
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._bytes = 0
        self._count = 0

    def input(self, name: str, shape: Sequence[int], dtype: int = TensorProto.FLOAT) -> str:
        """A graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[int]) -> None:
        """A graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def weight(self, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        """A weight, float32 or bytes, in the external file."""
        tensor = onnx.TensorProto(name=f"w{len(self.weights)}", data_type=dtype, dims=shape)
        size = (4 if dtype == TensorProto.FLOAT else 1) * math.prod(shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{self.name}.bin"), ("offset", self._bytes), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self._bytes += -(-size // 4096) * 4096
        self.weights.append(tensor)
        return tensor.name

    def constant(self, array: np.ndarray) -> str:
        """A small constant with its values in the graph."""
        self.weights.append(onnx.numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """Append a node with one output; returns the output's name."""
        self._count += 1
        name = f"{op_type}_{self._count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def named(self, value: str, part: str, layer: int) -> str:
        """Rename the output `value` of the last node to the name of a layer's cache."""
        assert self.nodes[-1].output[0] == value
        self.nodes[-1].output[0] = f"present.{layer}.{part}"
        return self.nodes[-1].output[0]

    def save(self) -> Path:
        """Write the graph and its sparse weight file; returns the path of the .onnx file."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid("com.microsoft", 1)] if self.block else [])]
        model = helper.make_model(graph, opset_imports=opsets)
        path = self.folder / f"{self.name}.onnx"
        path.write_bytes(model.SerializeToString())
        with open(self.folder / f"{self.name}.bin", "wb") as file:
            file.truncate(self._bytes)
            for i, weight in enumerate(w for w in self.weights if w.data_location == TensorProto.EXTERNAL):
                offset = next(int(e.value) for e in weight.external_data if e.key == "offset")
                floats = weight.data_type == TensorProto.FLOAT
                file.seek(offset + (4 if floats else 1) * (i % math.prod(weight.dims)))
                file.write(np.float32(1).tobytes() if floats else bytes([1]))
        return path

    # layers

    def conv(self, x: str, c: int, o: int, k: int, stride: int = 1, groups: int = 1, act: str = "Relu") -> str:
        """Convolution with bias (BatchNorm folded), then `act` if any."""
        pad = [(k - 1) // 2] * 4
        y = self.op(
            "Conv", x, self.weight(o, c // groups, k, k), self.weight(o), kernel_shape=[k, k],
            strides=[stride, stride], pads=pad, group=groups,
        )  # fmt: skip
        if act == "Relu6":
            low, high = (self.constant(np.array(v, np.float32)) for v in (0, 6))
            return self.op("Clip", y, low, high)
        return self.op(act, y) if act else y

    def conv1d(self, x: str, c: int, o: int, k: int, stride: int) -> str:
        """Convolution over one axis, with bias, padded by half a window."""
        sizes = {"kernel_shape": [k], "strides": [stride], "pads": [(k - 1) // 2] * 2}
        return self.op("Conv", x, self.weight(o, c, k), self.weight(o), **sizes)

    def patch(self, x: str, c: int, o: int, k: int) -> str:
        """Convolution with bias whose windows do not overlap."""
        return self.op("Conv", x, self.weight(o, c, k, k), self.weight(o), kernel_shape=[k, k], strides=[k, k])

    def patches(self, x: str, c: int, o: int, k: int, batch: int, count: int) -> str:
        """[batch, count, o]: an image's patches of k x k, embedded."""
        return self.tokens(self.patch(x, c, o, k), batch, o, count)

    def linear(self, x: str, i: int, o: int, *, bias: bool = True) -> str:
        """x @ w (+ b)."""
        if self.block:
            codes = self.weight(o, i // self.block, self.block // 2, dtype=TensorProto.UINT8)
            sizes = {"K": i, "N": o, "bits": 4, "block_size": self.block}
            y = self.op("MatMulNBits", x, codes, self.weight(o * (i // self.block)), domain="com.microsoft", **sizes)
        else:
            y = self.op("MatMul", x, self.weight(i, o))
        return self.op("Add", y, self.weight(o)) if bias else y

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to a constant shape."""
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def heads(self, x: str, batch: int, tokens: int, heads: int, width: int) -> str:
        """[batch, tokens, heads * width] -> [batch, heads, tokens, width]."""
        return self.op("Transpose", self.reshape(x, batch, tokens, heads, width), perm=[0, 2, 1, 3])

    def swapped(self, x: str) -> str:
        """The last two axes of four exchanged."""
        return self.op("Transpose", x, perm=[0, 1, 3, 2])

    def tokens(self, x: str, batch: int, width: int, count: int) -> str:
        """[batch, width, high, wide] -> [batch, count, width], count = high * wide."""
        return self.op("Transpose", self.reshape(x, batch, width, count), perm=[0, 2, 1])

    def image(self, x: str, batch: int, width: int, high: int, wide: int) -> str:
        """[batch, high * wide, width] -> [batch, width, high, wide]."""
        return self.reshape(self.op("Transpose", x, perm=[0, 2, 1]), batch, width, high, wide)

    def roll(self, x: str, axis: int, first: int, size: int) -> str:
        """Shift cyclically, so that index `first` of `axis` comes first."""
        start, middle, end, where = (self.constant(np.array([v], np.int64)) for v in (0, first, size, axis))
        parts = (self.op("Slice", x, middle, end, where), self.op("Slice", x, start, middle, where))
        return self.op("Concat", *parts, axis=axis)

    def norm(self, x: str, width: int) -> str:
        """LayerNormalization over the last axis."""
        return self.op("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1, epsilon=1e-6)

    def rms_norm(self, x: str, width: int) -> str:
        """RMS normalisation as exporters decompose it."""
        two, eps = (self.constant(np.array(v, np.float32)) for v in (2, 1e-6))
        mean = self.op("ReduceMean", self.op("Pow", x, two), axes=[-1], keepdims=1)
        scaled = self.op("Div", x, self.op("Sqrt", self.op("Add", mean, eps)))
        return self.op("Mul", scaled, self.weight(width))

    def gelu(self, x: str) -> str:
        """Gelu through erf."""
        root, one, half = (self.constant(np.array(v, np.float32)) for v in (math.sqrt(2), 1, 0.5))
        inner = self.op("Add", self.op("Erf", self.op("Div", x, root)), one)
        return self.op("Mul", self.op("Mul", x, inner), half)

    def silu(self, x: str) -> str:
        """x sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def attention(self, q: str, k_transposed: str, v: str, width: int, mask: str | None = None) -> str:
        """softmax(q k / sqrt(width) + mask) v on [batch, heads, tokens, width]."""
        scores = self.op("Mul", self.op("MatMul", q, k_transposed), self.constant(np.array(width**-0.5, np.float32)))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        return self.op("MatMul", self.op("Softmax", scores, axis=-1), v)


def gemm(folder: Path, size: int = 4096) -> Path:
    """One square matrix product."""
    n = Network(f"gemm{size}", folder)
    n.output(n.linear(n.input("x", (size, size)), size, size, bias=False), (size, size))
    return n.save()


def resnet50(folder: Path, batch: int) -> Path:
    """ResNet-50 v1.5 on 224 x 224."""
    n = Network(f"resnet50_b{batch}", folder)
    x = n.conv(n.input("image", (batch, 3, 224, 224)), 3, 64, 7, 2)
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = n.conv(n.conv(x, channels, inner, 1), inner, inner, 3, stride)
            y = n.conv(y, inner, 4 * inner, 1, act="")
            if not block:
                x = n.conv(x, channels, 4 * inner, 1, stride, act="")
            x, channels = n.op("Relu", n.op("Add", y, x)), 4 * inner
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    n.output(n.linear(x, 2048, 1000), (batch, 1000))
    return n.save()


def mobilenet_v2(folder: Path, batch: int) -> Path:
    """MobileNetV2 1.0 on 224 x 224."""
    n = Network(f"mobilenetv2_b{batch}", folder)
    x, channels = n.conv(n.input("image", (batch, 3, 224, 224)), 3, 32, 3, 2, act="Relu6"), 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, out, repeat, first in rows:
        for i in range(repeat):
            stride, wide = first if i == 0 else 1, channels * expand
            y = n.conv(x, channels, wide, 1, act="Relu6") if expand > 1 else x
            y = n.conv(n.conv(y, wide, wide, 3, stride, groups=wide, act="Relu6"), wide, out, 1, act="")
            x, channels = (n.op("Add", y, x) if stride == 1 and channels == out else y), out
    x = n.op("Flatten", n.op("GlobalAveragePool", n.conv(x, channels, 1280, 1, act="Relu6")))
    n.output(n.linear(x, 1280, 1000), (batch, 1000))
    return n.save()


def encoder(n: Network, x: str, batch: int, tokens: int, width: int, heads: int, layers: int, *, first: bool) -> str:
    """Transformer encoder layers; `first`: norm before (ViT) or after (BERT) each part."""
    part = width // heads
    for _ in range(layers):
        y = n.norm(x, width) if first else x
        q, k, v = (n.heads(n.linear(y, width, width), batch, tokens, heads, part) for _ in range(3))
        a = n.attention(q, n.swapped(k), v, part)
        a = n.reshape(n.op("Transpose", a, perm=[0, 2, 1, 3]), batch, tokens, width)
        x = n.op("Add", n.linear(a, width, width), x)
        x = x if first else n.norm(x, width)
        y = n.norm(x, width) if first else x
        x = n.op("Add", n.linear(n.gelu(n.linear(y, width, 4 * width)), 4 * width, width), x)
        x = x if first else n.norm(x, width)
    return x


def vit_b(folder: Path, batch: int) -> Path:
    """ViT-B/16 on 224 x 224 (196 patches and a class token)."""
    n = Network(f"vit_b_b{batch}", folder)
    y = n.patches(n.input("image", (batch, 3, 224, 224)), 3, 768, 16, batch, 196)
    token = n.op("Expand", n.weight(1, 1, 768), n.constant(np.array([batch, 1, 768], np.int64)))
    x = n.op("Add", n.op("Concat", token, y, axis=1), n.weight(1, 197, 768))
    x = n.norm(encoder(n, x, batch, 197, 768, 12, 12, first=True), 768)
    x = n.op("Gather", x, n.constant(np.array(0, np.int64)), axis=1)
    n.output(n.linear(x, 768, 1000), (batch, 1000))
    return n.save()


def bert_base(folder: Path, batch: int, tokens: int) -> Path:
    """BERT-base without pooler, ids in, hidden states out."""
    n = Network(f"bert_b{batch}x{tokens}", folder)
    x = n.op("Gather", n.weight(30522, 768), n.input("ids", (batch, tokens), TensorProto.INT64))
    x = n.norm(n.op("Add", x, n.weight(1, tokens, 768)), 768)
    n.output(encoder(n, x, batch, tokens, 768, 12, 12, first=False), (batch, tokens, 768))
    return n.save()


def decoder(
    folder: Path, tokens: int, past: int, *, layers: int = 4, hidden: int = 4096, heads: int = 32, groups: int = 8,
    inner: int = 12288, block: int = 0,
) -> Path:  # fmt: skip
    """Decoder layers with grouped-query attention, RoPE and gated MLPs, batch 1; `past` > 0 is a decode step with that
    much context (new keys and values are outputs), else a causal prefill. `block`: weights in 4 bits, in blocks."""
    n = Network(f"decoder{layers}_t{tokens}_p{past}_b{block}", folder, block)
    width = 128
    x = n.input("x", (1, tokens, hidden))
    cos, sin = (n.input(name, (1, 1, tokens, width)) for name in ("cos", "sin"))
    mask = None
    if not past:
        upper = np.triu(np.full((tokens, tokens), np.float32(-1e30)), 1)
        mask = n.constant(upper[None, None])
    for layer in range(layers):
        y = n.rms_norm(x, hidden)
        q = n.heads(n.linear(y, hidden, heads * width, bias=False), 1, tokens, heads, width)
        k, v = (n.heads(n.linear(y, hidden, groups * width, bias=False), 1, tokens, groups, width) for _ in range(2))
        q, k = (_rope(n, n.rms_norm(z, width), cos, sin, width) for z in (q, k))
        if past:
            k, v = (
                n.named(n.op("Concat", n.input(f"past.{layer}.{z}", (1, groups, past, width)), new, axis=2), z, layer)
                for z, new in (("k", k), ("v", v))
            )
            for z in (k, v):
                n.output(z, (1, groups, past + tokens, width))
        total = past + tokens
        k, v = (_repeat(n, z, groups, heads // groups, total, width) for z in (k, v))
        a = n.attention(q, n.swapped(k), v, width, mask)
        a = n.reshape(n.op("Transpose", a, perm=[0, 2, 1, 3]), 1, tokens, heads * width)
        x = n.op("Add", n.linear(a, heads * width, hidden, bias=False), x)
        y = n.rms_norm(x, hidden)
        gate, up = (n.linear(y, hidden, inner, bias=False) for _ in range(2))
        gate = n.silu(gate)
        x = n.op("Add", n.linear(n.op("Mul", gate, up), inner, hidden, bias=False), x)
    n.output(n.rms_norm(x, hidden), (1, tokens, hidden))
    return n.save()


def decoder_caches(layers: int = 4) -> dict[str, str]:
    """The caches of a decode step of `decoder`: input -> the output that extends it by the new token."""
    return {f"past.{layer}.{z}": f"present.{layer}.{z}" for layer in range(layers) for z in "kv"}


def _rope(n: Network, x: str, cos: str, sin: str, width: int) -> str:
    half = width // 2
    bounds = [n.constant(np.array([v], np.int64)) for v in (0, half, width)]
    axis = n.constant(np.array([-1], np.int64))
    low = n.op("Slice", x, bounds[0], bounds[1], axis)
    high = n.op("Slice", x, bounds[1], bounds[2], axis)
    rotated = n.op("Concat", n.op("Neg", high), low, axis=-1)
    return n.op("Add", n.op("Mul", x, cos), n.op("Mul", rotated, sin))


def _repeat(n: Network, x: str, groups: int, times: int, tokens: int, width: int) -> str:
    """Repeat the keys or values of a group for each of its query heads."""
    y = n.op("Unsqueeze", x, n.constant(np.array([2], np.int64)))
    y = n.op("Expand", y, n.constant(np.array([1, groups, times, tokens, width], np.int64)))
    return n.reshape(y, 1, groups * times, tokens, width)
