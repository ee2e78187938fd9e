"""ONNX graphs of small detectors, segmentation networks and classifiers for cameras, as PyTorch's exporters write them.

Shapes: Ma et al. 2018 (ShuffleNetV2), FastestDet and NanoDet-m (their repositories), Ge et al. 2021 (YOLOX-nano),
Paszke et al. 2016 (ENet), Mehta et al. 2018 (ESPNet; TwinLiteNet's first layers), Tan and Le 2019 (EfficientNet-Lite0),
Liu et al. 2021 (LSTR). Batch norms are folded; `batch` is the first axis of every input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.networks import Network, mobilenet_v2, resnet50, vit_b

POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def _scaled(n: Network, x: str, factor: float, mode: str) -> str:
    """Height and width times `factor`."""
    sizes = n.constant(np.array([1, 1, factor, factor], np.float32))
    how = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} if mode == "nearest" else {}
    return n.op("Resize", x, "", sizes, mode=mode, **how)


def _pointed(
    n: Network, x: str, c: int, o: int, k: int = 3, stride: int = 1, act: str = "Relu", inner: str = ""
) -> str:
    """A depthwise convolution (then `inner`) and a 1 x 1 convolution (then `act`)."""
    return n.conv(n.conv(x, c, c, k, stride, groups=c, act=inner), c, o, 1, act=act)


def _shuffled(n: Network, x: str, batch: int, c: int, side: int, *, gathered: bool) -> tuple[str, str]:
    """The halves of the channels of `x`, shuffled; `gathered`: as FastestDet writes it, else as torchvision does."""
    if gathered:
        y = n.op("Transpose", n.reshape(x, batch * c // 2, 2, side * side), perm=[1, 0, 2])
        y = n.reshape(y, 2, -1, c // 2, side, side)
        first, second = (n.op("Gather", y, n.constant(np.array(i, np.int64)), axis=0) for i in range(2))
        return first, second
    y = n.op("Transpose", n.reshape(x, batch, 2, c // 2, side, side), perm=[0, 2, 1, 3, 4])
    return _halves(n, n.reshape(y, batch, c, side, side), c)


def _halves(n: Network, x: str, c: int) -> tuple[str, str]:
    axis, *bounds = (n.constant(np.array([v], np.int64)) for v in (1, 0, c // 2, c))
    return n.op("Slice", x, bounds[0], bounds[1], axis), n.op("Slice", x, bounds[1], bounds[2], axis)


def _shuffle_stages(
    n: Network, x: str, batch: int, side: int, widths: tuple[int, ...], act: str = "Relu", *, gathered: bool = False
) -> list[str]:
    """The results of ShuffleNetV2's stages of 4, 8 and 4 units; `x` has 24 channels of `side` x `side`."""
    made, c = [], 24
    for width, repeats in zip(widths, (4, 8, 4), strict=True):
        half, side = width // 2, side // 2
        left = _pointed(n, x, c, half, 3, 2, act)
        right = _pointed(n, n.conv(x, c, half, 1, act=act), half, half, 3, 2, act)
        x = n.op("Concat", left, right, axis=1)
        for _ in range(repeats - 1):
            left, right = _shuffled(n, x, batch, width, side, gathered=gathered)
            right = _pointed(n, n.conv(right, half, half, 1, act=act), half, half, 3, 1, act)
            x = n.op("Concat", left, right, axis=1)
        made.append(x)
        c = width
    return made


def _shuffle_stem(n: Network, batch: int, side: int, act: str = "Relu") -> str:
    x = n.conv(n.input("image", (batch, 3, side, side)), 3, 24, 3, 2, act=act)
    return n.op("MaxPool", x, **POOL)


def shufflenet_v2(folder: Path, batch: int) -> Path:
    """ShuffleNetV2 1.0x on 224 x 224."""
    n = Network(f"shufflenetv2_b{batch}", folder)
    x = _shuffle_stages(n, _shuffle_stem(n, batch, 224), batch, 56, (116, 232, 464))[-1]
    x = n.op("ReduceMean", n.conv(x, 464, 1024, 1), axes=[2, 3], keepdims=0)
    n.output(n.linear(x, 1024, 1000), (batch, 1000))
    return n.save()


def fastestdet(folder: Path, batch: int) -> Path:
    """FastestDet on 352 x 352."""
    n = Network(f"fastestdet_b{batch}", folder)
    stages = _shuffle_stages(n, _shuffle_stem(n, batch, 352), batch, 88, (48, 96, 192), gathered=True)
    low = n.op("AveragePool", stages[0], count_include_pad=1, **POOL)
    x = n.op("Concat", low, stages[1], _scaled(n, stages[2], 2, "nearest"), axis=1)
    x = n.conv(n.conv(x, 336, 96, 1), 96, 96, 1)
    chains = []
    for length in (1, 2, 3):
        y = x
        for _ in range(length):
            y = n.conv(y, 96, 96, 5, groups=96)
        chains.append(y)
    y = n.conv(n.op("Concat", *chains, axis=1), 288, 96, 1, act="")
    x = n.conv(n.op("Relu", n.op("Add", x, y)), 96, 96, 1)
    objectness, box, label = (_pointed(n, x, 96, o, 5, act="", inner="Relu") for o in (1, 4, 80))
    parts = (n.op("Sigmoid", objectness), box, n.op("Softmax", label, axis=1))
    n.output(n.op("Concat", *parts, axis=1), (batch, 85, 22, 22))
    return n.save()


def nanodet_m(folder: Path, batch: int) -> Path:
    """NanoDet-m on 320 x 320."""
    n = Network(f"nanodet_b{batch}", folder)
    widths, act = (116, 232, 464), "LeakyRelu"
    stages = _shuffle_stages(n, _shuffle_stem(n, batch, 320, act), batch, 80, widths, act)
    levels = [n.conv(x, c, 96, 1, act="") for x, c in zip(stages, widths, strict=True)]
    for i in (1, 0):
        levels[i] = n.op("Add", levels[i], _scaled(n, levels[i + 1], 2, "linear"))
    for i in (1, 2):
        levels[i] = n.op("Add", levels[i], _scaled(n, levels[i - 1], 0.5, "linear"))
    flat = []
    for x, side in zip(levels, (40, 20, 10), strict=True):
        y = _pointed(n, _pointed(n, x, 96, 96, act=act, inner=act), 96, 96, act=act, inner=act)
        flat.append(n.tokens(n.conv(y, 96, 112, 1, act=""), batch, 112, side * side))
    n.output(n.op("Concat", *flat, axis=1), (batch, 2100, 112))
    return n.save()


def _silu_conv(n: Network, x: str, c: int, o: int, k: int = 1, stride: int = 1, groups: int = 1) -> str:
    return n.silu(n.conv(x, c, o, k, stride, groups=groups, act=""))


def _separable(n: Network, x: str, c: int, o: int, stride: int = 1) -> str:
    """YOLOX's depthwise-separable convolution."""
    return _silu_conv(n, _silu_conv(n, x, c, c, 3, stride, groups=c), c, o)


def _csp(n: Network, x: str, c: int, o: int, repeats: int, *, add: bool = True) -> str:
    """YOLOX's cross-stage block."""
    half = o // 2
    left, right = _silu_conv(n, x, c, half), _silu_conv(n, x, c, half)
    for _ in range(repeats):
        y = _separable(n, _silu_conv(n, left, half, half), half, half)
        left = n.op("Add", y, left) if add else y
    return _silu_conv(n, n.op("Concat", left, right, axis=1), o, o)


def _focused(n: Network, x: str, side: int) -> str:
    """Four pictures of every second pixel, as channels."""
    steps, axes = (n.constant(np.array(v, np.int64)) for v in ([2, 2], [2, 3]))
    end = n.constant(np.array([side, side], np.int64))
    starts = (n.constant(np.array(v, np.int64)) for v in ((0, 0), (1, 0), (0, 1), (1, 1)))
    return n.op("Concat", *(n.op("Slice", x, start, end, axes, steps) for start in starts), axis=1)


def yolox_nano(folder: Path, batch: int) -> Path:
    """YOLOX-nano on 416 x 416."""
    n = Network(f"yoloxnano_b{batch}", folder)
    x = _silu_conv(n, _focused(n, n.input("image", (batch, 3, 416, 416)), 416), 12, 16, 3)
    stages, c = [], 16
    for width, repeats in ((32, 1), (64, 3), (128, 3)):
        x, c = _csp(n, _separable(n, x, c, width, 2), width, width, repeats), width
        stages.append(x)
    x = _silu_conv(n, _separable(n, x, 128, 256, 2), 256, 128)
    pools = (n.op("MaxPool", x, kernel_shape=[k, k], pads=[k // 2] * 4) for k in (5, 9, 13))
    x = _csp(n, _silu_conv(n, n.op("Concat", x, *pools, axis=1), 512, 256), 256, 256, 1, add=False)
    inner0 = _silu_conv(n, x, 256, 128)
    y = n.op("Concat", _scaled(n, inner0, 2, "nearest"), stages[2], axis=1)
    inner1 = _silu_conv(n, _csp(n, y, 256, 128, 1, add=False), 128, 64)
    first = _csp(n, n.op("Concat", _scaled(n, inner1, 2, "nearest"), stages[1], axis=1), 128, 64, 1, add=False)
    second = _csp(n, n.op("Concat", _separable(n, first, 64, 64, 2), inner1, axis=1), 128, 128, 1, add=False)
    third = _csp(n, n.op("Concat", _separable(n, second, 128, 128, 2), inner0, axis=1), 256, 256, 1, add=False)
    flat = [
        _yolox_head(n, level, c, batch, side)
        for level, c, side in ((first, 64, 52), (second, 128, 26), (third, 256, 13))
    ]
    n.output(n.op("Transpose", n.op("Concat", *flat, axis=2), perm=[0, 2, 1]), (batch, 3549, 85))
    return n.save()


def _yolox_head(n: Network, x: str, c: int, batch: int, side: int) -> str:
    x = _silu_conv(n, x, c, 64)
    label, box = (_separable(n, _separable(n, x, 64, 64), 64, 64) for _ in range(2))
    parts = (
        n.conv(box, 64, 4, 1, act=""),
        n.conv(box, 64, 1, 1, act="Sigmoid"),
        n.conv(label, 64, 80, 1, act="Sigmoid"),
    )
    return n.reshape(n.op("Concat", *parts, axis=1), batch, 85, side * side)


def _rectified(n: Network, x: str, c: int) -> str:
    return n.op("PRelu", x, n.weight(c, 1, 1))


def _window(n: Network, x: str, c: int, o: int, kernel: tuple[int, int], dilation: int = 1, groups: int = 1) -> str:
    """A convolution of any window, dilated, that keeps the image's size."""
    high, wide = ((k - 1) // 2 * dilation for k in kernel)
    sizes = {"kernel_shape": [*kernel], "pads": [high, wide, high, wide], "dilations": [dilation] * 2}
    return n.op("Conv", x, n.weight(o, c // groups, *kernel), n.weight(o), group=groups, **sizes)


def _bottleneck(n: Network, x: str, c: int, dilation: int = 1, *, asymmetric: bool = False) -> str:
    """ENet's bottleneck."""
    y = _rectified(n, n.conv(x, c, c // 4, 1, act=""), c // 4)
    if asymmetric:
        y = _window(n, _window(n, y, c // 4, c // 4, (5, 1)), c // 4, c // 4, (1, 5))
    else:
        y = _window(n, y, c // 4, c // 4, (3, 3), dilation)
    y = n.conv(_rectified(n, y, c // 4), c // 4, c, 1, act="")
    return _rectified(n, n.op("Add", x, y), c)


def _narrowed(n: Network, x: str, c: int, o: int, batch: int, high: int, wide: int) -> str:
    """ENet's bottleneck that halves height and width (`high`, `wide` afterwards)."""
    y = _rectified(n, n.patch(x, c, o // 4, 2), o // 4)
    y = _rectified(n, _window(n, y, o // 4, o // 4, (3, 3)), o // 4)
    y = n.conv(y, o // 4, o, 1, act="")
    zeros = n.constant(np.zeros((batch, o - c, high, wide), np.float32))
    x = n.op("Concat", n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), zeros, axis=1)
    return _rectified(n, n.op("Add", x, y), o)


def _widened(n: Network, x: str, c: int, o: int) -> str:
    """ENet's bottleneck that doubles height and width."""
    y = n.conv(x, c, c // 4, 1)
    y = n.op("Relu", n.op("ConvTranspose", y, n.weight(c // 4, c // 4, 2, 2), n.weight(c // 4), strides=[2, 2]))
    y = n.conv(y, c // 4, o, 1, act="")
    return n.op("Relu", n.op("Add", _scaled(n, n.conv(x, c, o, 1, act=""), 2, "nearest"), y))


def enet(folder: Path, batch: int) -> Path:
    """ENet on 360 x 640, 2 classes; without indices of maxima, which exporters cannot write."""
    n = Network(f"enet_b{batch}", folder)
    image = n.input("image", (batch, 3, 360, 640))
    x = n.op("Concat", n.conv(image, 3, 13, 3, 2, act=""), n.op("MaxPool", image, **POOL), axis=1)
    x = _narrowed(n, _rectified(n, x, 16), 16, 64, batch, 90, 160)
    for _ in range(4):
        x = _bottleneck(n, x, 64)
    x = _narrowed(n, x, 64, 128, batch, 45, 80)
    for _ in range(2):
        for i, dilation in enumerate((2, 4, 8, 16)):
            x = _bottleneck(n, _bottleneck(n, x, 128, asymmetric=i % 2 == 1), 128, dilation)
    x = _bottleneck(n, _bottleneck(n, _widened(n, x, 128, 64), 64), 64)
    x = _bottleneck(n, _widened(n, x, 64, 16), 16)
    n.output(n.op("ConvTranspose", x, n.weight(16, 2, 2, 2), n.weight(2), strides=[2, 2]), (batch, 2, 360, 640))
    return n.save()


def _pyramid(n: Network, x: str, c: int, o: int, stride: int = 1) -> str:
    """ESPNet's module: dilated convolutions of one narrow tensor, summed one after the other."""
    part = o // 5
    first = o - 4 * part
    y = n.conv(x, c, part, 3, 2, act="") if stride == 2 else n.conv(x, c, part, 1, act="")
    parts, total = [_window(n, y, part, first, (3, 3))], ""
    for dilation in (2, 4, 8, 16):
        y2 = _window(n, y, part, part, (3, 3), dilation)
        total = n.op("Add", total, y2) if total else y2
        parts.append(total)
    z = n.op("Concat", *parts, axis=1)
    return _rectified(n, z if stride == 2 else n.op("Add", x, z), o)


def espnet(folder: Path, batch: int) -> Path:
    """TwinLiteNet's encoder (ESPNet-C) on 360 x 640, with a decoder for 2 classes."""
    n = Network(f"espnet_b{batch}", folder)
    image = n.input("image", (batch, 3, 360, 640))
    half = n.op("AveragePool", image, count_include_pad=1, **POOL)
    quarter = n.op("AveragePool", half, count_include_pad=1, **POOL)
    x = n.op("Concat", _rectified(n, n.conv(image, 3, 16, 3, 2, act=""), 16), half, axis=1)
    down = _pyramid(n, x, 19, 64, 2)
    x = down
    for _ in range(3):
        x = _pyramid(n, x, 64, 64)
    x = _rectified(n, n.op("Concat", x, down, quarter, axis=1), 131)
    down = _pyramid(n, x, 131, 128, 2)
    x = down
    for _ in range(5):
        x = _pyramid(n, x, 128, 128)
    x = _rectified(n, n.conv(n.op("Concat", x, down, axis=1), 256, 32, 1, act=""), 32)
    for c, o in ((32, 16), (16, 8)):
        x = n.op("ConvTranspose", x, n.weight(c, o, 2, 2), n.weight(o), strides=[2, 2])
        x = _rectified(n, n.conv(_rectified(n, x, o), o, o, 3, act=""), o)
    n.output(n.op("ConvTranspose", x, n.weight(8, 2, 2, 2), n.weight(2), strides=[2, 2]), (batch, 2, 360, 640))
    return n.save()


EFFICIENTNET_LITE0 = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
                      (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))  # fmt: skip
"""Expansion, window, stride, channels and blocks of each stage."""


def efficientnet_lite0(folder: Path, batch: int) -> Path:
    """EfficientNet-Lite0 on 224 x 224."""
    n = Network(f"efficientnetlite0_b{batch}", folder)
    x, c = n.conv(n.input("image", (batch, 3, 224, 224)), 3, 32, 3, 2, act="Relu6"), 32
    for expand, k, first, out, repeats in EFFICIENTNET_LITE0:
        for i in range(repeats):
            stride, wide = first if i == 0 else 1, c * expand
            y = n.conv(x, c, wide, 1, act="Relu6") if expand > 1 else x
            y = n.conv(n.conv(y, wide, wide, k, stride, groups=wide, act="Relu6"), wide, out, 1, act="")
            x, c = (n.op("Add", y, x) if stride == 1 and c == out else y), out
    x = n.op("ReduceMean", n.conv(x, c, 1280, 1, act="Relu6"), axes=[2, 3], keepdims=0)
    n.output(n.linear(x, 1280, 1000), (batch, 1000))
    return n.save()


def _attended(n: Network, x: str, memory: str, batch: int, sizes: tuple[int, int], width: int) -> str:
    """Attention of two heads of `x` over `memory` (tokens: `sizes`), added to `x` and normalised."""
    part = width // 2
    q = n.heads(n.linear(x, width, width), batch, sizes[0], 2, part)
    k, v = (n.heads(n.linear(memory, width, width), batch, sizes[1], 2, part) for _ in range(2))
    y = n.op("Transpose", n.attention(q, n.swapped(k), v, part), perm=[0, 2, 1, 3])
    return n.norm(n.op("Add", x, n.linear(n.reshape(y, batch, sizes[0], width), width, width)), width)


def _forward(n: Network, x: str, width: int, inner: int) -> str:
    y = n.linear(n.op("Relu", n.linear(x, width, inner)), inner, width)
    return n.norm(n.op("Add", x, y), width)


def lane_transformer(folder: Path, batch: int) -> Path:
    """LSTR on 360 x 640: a narrow ResNet-18, two encoder and two decoder layers, seven lanes."""
    n = Network(f"lstr_b{batch}", folder)
    x = n.op("MaxPool", n.conv(n.input("image", (batch, 3, 360, 640)), 3, 16, 7, 2), **POOL)
    c = 16
    for stage in range(4):
        out = 16 << stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = n.conv(n.conv(x, c, out, 3, stride), out, out, 3, act="")
            x = n.conv(x, c, out, 1, stride, act="") if stride == 2 else x
            x, c = n.op("Relu", n.op("Add", y, x)), out
    width, tokens, lanes = 32, 12 * 20, 7
    x = n.tokens(n.conv(x, c, width, 1, act=""), batch, width, tokens)
    x = n.op("Add", x, n.weight(1, tokens, width))
    for _ in range(2):
        x = _forward(n, _attended(n, x, x, batch, (tokens, tokens), width), width, 128)
    y = n.op("Expand", n.weight(1, lanes, width), n.constant(np.array([batch, lanes, width], np.int64)))
    for _ in range(2):
        y = _attended(n, y, y, batch, (lanes, lanes), width)
        y = _forward(n, _attended(n, y, x, batch, (lanes, tokens), width), width, 128)
    scores = n.linear(y, width, 2)
    curves = n.linear(n.op("Relu", n.linear(n.op("Relu", n.linear(y, width, width)), width, width)), width, 8)
    n.output(scores, (batch, lanes, 2))
    n.output(curves, (batch, lanes, 8))
    return n.save()


FOR_CAMERAS: dict[str, Callable[[Path, int], Path]] = {
    "FastestDet": fastestdet,
    "ShuffleNetV2": shufflenet_v2,
    "NanoDet-m": nanodet_m,
    "YOLOX-nano": yolox_nano,
    "ENet": enet,
    "ESPNet": espnet,
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-Lite0": efficientnet_lite0,
    "ResNet-50": resnet50,
    "ViT-B": vit_b,
    "lane transformer": lane_transformer,
}
"""Name -> what writes the network's file into a folder, for a batch."""
