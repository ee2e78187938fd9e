"""Ops that run as what ONNX's own definition expands them to, and that no other family holds."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, Sample


@strategy("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def loss(s: Sample) -> None:
    batch, classes, rest = s.between(1, 4), s.between(1, 7), s.shape(0, 2, least=1, most=20)
    dtype, labels = s.dtype(), s.dtype("Tind")
    s.add(s.array(dtype, (batch, classes, *rest)))
    target = s.numbers.integers(0, classes, (batch, *rest))
    ignored = s.flip(0.3)
    if ignored:
        s.attributes["ignore_index"] = s.pick((0, -1))
        target = np.where(s.numbers.random(target.shape) < 0.3, s.attributes["ignore_index"], target)
        target.reshape(-1)[0] = classes - 1
    s.add(target.astype(labels))
    if s.flip():
        s.add(s.positive(dtype, (classes,)))
    s.attributes["reduction"] = s.pick(("none", "mean", "sum"))
    if s.op == "SoftmaxCrossEntropyLoss":
        s.results(2)


@strategy("SwiGLU")
def swiglu(s: Sample) -> None:
    shape, dtype = s.shape(0, 4), s.dtype()
    s.add(s.array(dtype, shape))
    s.add(s.array(dtype, shape))
    if s.flip():
        s.attributes["alpha"] = s.pick((1.0, 1.702))


@strategy("CausalConvWithState")
def causal_conv(s: Sample) -> None:
    batch, channels, length, kernel, dtype = (
        s.between(1, 2),
        s.between(1, 5),
        s.between(1, 9),
        s.between(2, 4),
        s.dtype(),
    )
    s.add(s.array(dtype, (batch, channels, length)))
    s.add(s.array(dtype, (channels, 1, kernel)), s.flip())
    s.add(s.array(dtype, (channels,)) if s.flip() else None)
    s.add(s.array(dtype, (batch, channels, kernel - 1)) if s.flip() else None)
    if s.flip():
        s.attributes["activation"] = s.pick(("none", "silu", "swish"))
    s.outputs = ["y0", "y1"]


@strategy("LinearAttention")
def linear_attention(s: Sample) -> None:
    batch, groups, each, steps = s.between(1, 2), s.between(1, 2), s.pick((1, 2)), s.between(1, 5)
    key, value = s.between(1, 5), s.between(1, 5)
    rule = s.pick(("linear", "gated", "delta", "gated_delta"))
    dtype = s.dtype("T", (F32,))
    s.add(s.array(dtype, (batch, steps, groups * each * key), scale=0.5))
    s.add(s.array(dtype, (batch, steps, groups * key), scale=0.5))
    s.add(s.array(dtype, (batch, steps, groups * value), scale=0.5))
    s.add(s.array(dtype, (batch, groups, key, value)) if s.flip() else None)
    s.add(-s.positive(dtype, (batch, steps, groups)) if "gated" in rule else None)
    s.add(s.positive(dtype, (batch, steps, groups)) if "delta" in rule else None)
    s.attributes = {"q_num_heads": groups * each, "kv_num_heads": groups, "update_rule": rule}
    s.outputs = ["y0", "y1"]
