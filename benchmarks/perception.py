"""ONNX graphs of small vision, speech and image-generation networks, with many kernels that depend on each other.

Shapes: Liu et al. 2021 (Swin), Wang et al. 2023 (RepViT), Radford et al. 2022 (Whisper), Xie et al. 2021 (SegFormer),
Peebles and Xie 2022 (DiT). Written as PyTorch's exporters write them: windows by Reshape and Transpose, the cyclic
shift as Slice and Concat, LayerNormalization, Gelu through Erf.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.networks import Network, encoder


def swin(folder: Path, batch: int) -> Path:
    """Swin on 224 x 224, 48 channels, depths 2-2-2-2, windows of 7 x 7, heads of 24 channels."""
    n = Network(f"swin_b{batch}", folder)
    side, width = 56, 48
    x = n.patches(n.input("image", (batch, 3, 224, 224)), 3, width, 4, batch, side * side)
    x = n.norm(x, width)
    for stage in range(4):
        for block in range(2):
            shift = 3 if block and side > 7 else 0
            x = n.op("Add", x, _window_attention(n, n.norm(x, width), batch, side, width, shift))
            x = n.op("Add", x, n.linear(n.gelu(n.linear(n.norm(x, width), width, 4 * width)), 4 * width, width))
        if stage < 3:
            side, width = side // 2, 2 * width
            y = n.reshape(x, batch, side, 2, side, 2, width // 2)
            y = n.reshape(n.op("Transpose", y, perm=[0, 1, 3, 4, 2, 5]), batch, side * side, 2 * width)
            x = n.linear(n.norm(y, 2 * width), 2 * width, width, bias=False)
    x = n.op("ReduceMean", n.norm(x, width), axes=[1], keepdims=0)
    n.output(n.linear(x, width, 1000), (batch, 1000))
    return n.save()


def _window_attention(n: Network, x: str, batch: int, side: int, width: int, shift: int) -> str:
    """Attention within windows of 7 x 7 tokens of `x` [batch, side^2, width], shifted cyclically by `shift`."""
    count, tokens, part = side // 7, 49, 24
    heads, windows = width // part, batch * count * count
    x = n.reshape(x, batch, side, side, width)
    if shift:
        x = n.roll(n.roll(x, 1, shift, side), 2, shift, side)
    x = n.op("Transpose", n.reshape(x, batch, count, 7, count, 7, width), perm=[0, 1, 3, 2, 4, 5])
    qkv = n.reshape(n.linear(n.reshape(x, windows, tokens, width), width, 3 * width), windows, tokens, 3, heads, part)
    qkv = n.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (n.op("Gather", qkv, n.constant(np.array(i, np.int64)), axis=0) for i in range(3))
    scores = n.op("MatMul", n.op("Mul", q, n.constant(np.array(part**-0.5, np.float32))), n.swapped(k))
    scores = n.op("Add", scores, n.weight(1, heads, tokens, tokens))
    if shift:
        hidden = np.zeros((1, count * count, 1, tokens, tokens), np.float32)
        hidden[:, -count:, :, :28, 28:] = -100
        scores = n.op("Add", n.reshape(scores, batch, count * count, heads, tokens, tokens), n.constant(hidden))
        scores = n.reshape(scores, windows, heads, tokens, tokens)
    y = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    y = n.reshape(n.op("Transpose", y, perm=[0, 2, 1, 3]), windows, tokens, width)
    y = n.reshape(n.linear(y, width, width), batch, count, count, 7, 7, width)
    y = n.reshape(n.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), batch, side, side, width)
    if shift:
        y = n.roll(n.roll(y, 1, side - shift, side), 2, side - shift, side)
    return n.reshape(y, batch, side * side, width)


REPVIT_M0_9 = ((48, 2), (96, 3), (192, 15), (384, 2))
"""Channels and blocks after the first of each stage (table 9 of the paper's repository)."""


def repvit(folder: Path, batch: int) -> Path:
    """RepViT-M0.9 on 224 x 224, branches merged."""
    n = Network(f"repvit_b{batch}", folder)
    x = n.gelu(n.conv(n.input("image", (batch, 3, 224, 224)), 3, 24, 3, 2, act=""))
    x, channels = n.conv(x, 24, 48, 3, 2, act=""), 48
    for stage, (width, blocks) in enumerate(REPVIT_M0_9):
        if stage:
            x = n.conv(x, channels, channels, 3, 2, groups=channels, act="")
            x, channels = _mixed(n, n.conv(x, channels, width, 1, act=""), width), width
        for block in range(blocks):
            x = n.conv(x, width, width, 3, groups=width, act="")
            x = _mixed(n, _excited(n, x, width) if block % 2 == 0 else x, width)
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    n.output(n.linear(x, channels, 1000), (batch, 1000))
    return n.save()


def _mixed(n: Network, x: str, width: int) -> str:
    """RepViT's channel mixer: two 1 x 1 convolutions around Gelu, with residual."""
    y = n.conv(n.gelu(n.conv(x, width, 2 * width, 1, act="")), 2 * width, width, 1, act="")
    return n.op("Add", x, y)


def _excited(n: Network, x: str, width: int) -> str:
    """Squeeze and excite."""
    y = n.conv(n.op("ReduceMean", x, axes=[2, 3], keepdims=1), width, width // 4, 1)
    return n.op("Mul", x, n.conv(y, width // 4, width, 1, act="Sigmoid"))


def whisper_encoder(folder: Path, batch: int) -> Path:
    """Whisper's encoder with 2 layers of 128 channels and 4 heads on a mel spectrogram of 80 x 1,000."""
    n = Network(f"whisper_b{batch}", folder)
    x = n.gelu(n.conv1d(n.input("mel", (batch, 80, 1000)), 80, 128, 3, 1))
    x = n.op("Transpose", n.gelu(n.conv1d(x, 128, 128, 3, 2)), perm=[0, 2, 1])
    x = n.op("Add", x, n.weight(500, 128))
    n.output(n.norm(encoder(n, x, batch, 500, 128, 4, 2, first=True), 128), (batch, 500, 128))
    return n.save()


def segformer_b0(folder: Path, batch: int) -> Path:
    """SegFormer-B0 on 256 x 512 with 19 classes."""
    n = Network(f"segformer_b{batch}", folder)
    x, channels, (high, wide) = n.input("image", (batch, 3, 256, 512)), 3, (256, 512)
    levels = []
    for width, heads, ratio, kernel, stride in (
        (32, 1, 8, 7, 4),
        (64, 2, 4, 3, 2),
        (160, 5, 2, 3, 2),
        (256, 8, 1, 3, 2),
    ):
        x, high, wide = n.conv(x, channels, width, kernel, stride, act=""), high // stride, wide // stride
        x, channels = n.norm(n.tokens(x, batch, width, high * wide), width), width
        for _ in range(2):
            x = n.op("Add", x, _reduced_attention(n, n.norm(x, width), batch, (high, wide), width, heads, ratio))
            y = n.linear(n.norm(x, width), width, 4 * width)
            y = n.conv(n.image(y, batch, 4 * width, high, wide), 4 * width, 4 * width, 3, groups=4 * width, act="")
            y = n.gelu(n.tokens(y, batch, 4 * width, high * wide))
            x = n.op("Add", x, n.linear(y, 4 * width, width))
        x = n.image(n.norm(x, width), batch, width, high, wide)
        levels.append((x, width, high, wide))
    fused = []
    for y, width, high, wide in levels:
        y = n.linear(n.tokens(y, batch, width, high * wide), width, 256)
        y = n.image(y, batch, 256, high, wide)
        if (high, wide) != (64, 128):
            sizes = n.constant(np.array([batch, 256, 64, 128], np.int64))
            y = n.op("Resize", y, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        fused.append(y)
    y = n.conv(n.op("Concat", *reversed(fused), axis=1), 1024, 256, 1)
    n.output(n.conv(y, 256, 19, 1, act=""), (batch, 19, 64, 128))
    return n.save()


def _reduced_attention(
    n: Network, x: str, batch: int, shape: tuple[int, int], width: int, heads: int, ratio: int
) -> str:
    """SegFormer's attention: keys and values of an image reduced by a convolution of `ratio` in each direction."""
    (high, wide), part = shape, width // heads
    keys, count = x, high * wide
    if ratio > 1:
        y = n.patch(n.image(x, batch, width, high, wide), width, width, ratio)
        count //= ratio * ratio
        keys = n.norm(n.tokens(y, batch, width, count), width)
    q = n.heads(n.linear(x, width, width), batch, high * wide, heads, part)
    k, v = (n.heads(n.linear(keys, width, width), batch, count, heads, part) for _ in range(2))
    y = n.op("Transpose", n.attention(q, n.swapped(k), v, part), perm=[0, 2, 1, 3])
    return n.linear(n.reshape(y, batch, high * wide, width), width, width)


def dit(folder: Path, batch: int) -> Path:
    """DiT with 3 layers of 128 channels and 4 heads on a latent of 4 x 16 x 16, patches of 2 x 2; the embedding of the
    time step and label are inputs."""
    n = Network(f"dit_b{batch}", folder)
    width, tokens = 128, 64
    x = n.patches(n.input("latent", (batch, 4, 16, 16)), 4, width, 2, batch, tokens)
    x = n.op("Add", x, n.weight(1, tokens, width))
    c = n.silu(n.linear(n.input("time", (batch, 256)), 256, width))
    c = n.silu(n.op("Add", n.linear(c, width, width), n.input("label", (batch, width))))
    for _ in range(3):
        shift, scale, gate, shift2, scale2, gate2 = _modulations(n, c, batch, width, 6)
        y = _modulated(n, x, width, shift, scale)
        qkv = n.op("Transpose", n.reshape(n.linear(y, width, 3 * width), batch, tokens, 3, 4, 32), perm=[2, 0, 3, 1, 4])
        q, k, v = (n.op("Gather", qkv, n.constant(np.array(i, np.int64)), axis=0) for i in range(3))
        y = n.op("Transpose", n.attention(q, n.swapped(k), v, 32), perm=[0, 2, 1, 3])
        y = n.linear(n.reshape(y, batch, tokens, width), width, width)
        x = n.op("Add", x, n.op("Mul", gate, y))
        y = n.linear(_modulated(n, x, width, shift2, scale2), width, 4 * width)
        x = n.op("Add", x, n.op("Mul", gate2, n.linear(n.gelu(y), 4 * width, width)))
    shift, scale = _modulations(n, c, batch, width, 2)
    y = n.reshape(n.linear(_modulated(n, x, width, shift, scale), width, 32), batch, 8, 8, 2, 2, 8)
    n.output(n.reshape(n.op("Transpose", y, perm=[0, 5, 1, 3, 2, 4]), batch, 8, 16, 16), (batch, 8, 16, 16))
    return n.save()


def _modulations(n: Network, c: str, batch: int, width: int, count: int) -> tuple[str, ...]:
    """Shifts, scales and gates of a layer, [batch, 1, width] each."""
    y = n.reshape(n.linear(c, width, count * width), batch, count, 1, width)
    return tuple(n.op("Gather", y, n.constant(np.array(i, np.int64)), axis=1) for i in range(count))


def _modulated(n: Network, x: str, width: int, shift: str, scale: str) -> str:
    """norm(x) (1 + scale) + shift."""
    one = n.constant(np.array(1, np.float32))
    return n.op("Add", n.op("Mul", n.norm(x, width), n.op("Add", scale, one)), shift)
