"""Normalisations, with and without what is added before them."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import F32, Sample


def _epsilon(s: Sample) -> None:
    if s.flip():
        s.attributes["epsilon"] = s.pick((1e-5, 1e-3, 1e-12))


@strategy("LayerNormalization", "RMSNormalization")
def layer_norm(s: Sample) -> None:
    shape, dtype = s.shape(1, 4, least=1), s.dtype()
    axis = s.axis(len(shape))
    part = shape[axis % len(shape) :]
    scale = dtype if s.op == "LayerNormalization" or s.flip() else s.dtype("V")
    s.add(s.array(dtype, shape))
    s.add(s.array(scale, part), s.flip(0.7))
    if s.op == "LayerNormalization":
        if s.flip():
            s.add(s.array(dtype, part), s.flip(0.7))
        s.results(3, 0.2)
    s.attributes["axis"] = axis
    _epsilon(s)


@strategy("SimplifiedLayerNormalization")
@strategy("SimplifiedLayerNormalization", domain="com.microsoft")
def simplified(s: Sample) -> None:
    shape = s.shape(2, 4, least=1)
    s.add(s.array(F32, shape))
    s.add(s.array(F32, shape[-1:]), s.flip(0.7))
    s.attributes["axis"] = -1
    _epsilon(s)


@strategy("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_norm(s: Sample) -> None:
    dtype = s.dtype()
    shape = (s.between(1, 3), s.size(1, 9), s.size(1))
    hidden = shape[-1:]
    s.add(s.array(dtype, shape))
    s.add(s.array(dtype, s.pick((shape, shape, (1, *shape[1:]), shape[1:]))))
    s.add(s.array(dtype, hidden), True)
    if s.op == "SkipLayerNormalization":
        s.add(s.array(dtype, hidden) if s.flip() else None, True)
    if s.flip(0.4):
        s.add(s.array(dtype, hidden), True)
    _epsilon(s)
    if s.flip(0.3):
        s.outputs = ["y0", "", "", "y3"]


@strategy("GroupNormalization")
def group_norm(s: Sample) -> None:
    groups, members, dtype = s.between(1, 4), s.between(1, 4), s.dtype()
    per = groups if s.opset < 21 else groups * members
    s.add(s.array(dtype, (s.between(1, 3), groups * members, *s.shape(1, 3, least=1, most=300))))
    s.add(s.array(dtype, (per,)), s.flip(0.7))
    s.add(s.array(dtype, (per,)), s.flip(0.7))
    s.attributes["num_groups"] = groups
    _epsilon(s)


@strategy("InstanceNormalization")
def instance_norm(s: Sample) -> None:
    dtype, channels = s.dtype(), s.size(1, 9)
    s.add(s.array(dtype, (s.between(1, 3), channels, *s.shape(1, 3, least=2, most=300))))
    s.add(s.array(dtype, (channels,)), s.flip(0.7))
    s.add(s.array(dtype, (channels,)), s.flip(0.7))
    _epsilon(s)


@strategy("BatchNormalization")
def batch_norm(s: Sample) -> None:
    shape, dtype = s.shape(1, 5, least=1), s.dtype("T")
    channels = (shape[1],) if len(shape) > 1 else (1,)
    s.add(s.array(dtype, shape))
    types = [s.dtype(t) if t in s.types and s.flip(0.3) else dtype for t in ("T1", "T1", "T2", "T2")]
    types[1], types[3] = types[0], types[2]
    for i, t in enumerate(types):
        s.add(s.positive(t, channels) if i == 3 else s.array(t, channels), s.flip(0.8))
    _epsilon(s)
    if s.opset < 9 and s.flip(0.3):
        s.attributes["spatial"] = 1


@strategy("LpNormalization")
def lp_normalization(s: Sample) -> None:
    shape = s.shape(1, 4, least=1)
    s.add(s.array(s.dtype(), shape))
    s.attributes = {"axis": s.axis(len(shape)), "p": s.pick((1, 2))} if s.flip(0.9) else {}


@strategy("MeanVarianceNormalization")
def mean_variance(s: Sample) -> None:
    shape = s.shape(4, 4, least=1)
    s.add(s.array(s.dtype(), shape))
    if s.opset >= 9 and s.flip(0.7):
        s.attributes["axes"] = s.axes(4, least=1)


@strategy("LRN")
def lrn(s: Sample) -> None:
    s.add(s.array(s.dtype(), (s.between(1, 2), s.size(1, 9), *(s.size(1, 9), s.size(1, 9)))))
    s.attributes["size"] = s.pick((1, 3, 5, 7))
    if s.flip():
        s.attributes |= {"alpha": s.pick((1e-4, 0.5)), "beta": s.pick((0.75, 0.5, 1.0)), "bias": s.pick((1.0, 2.0))}


@strategy("EmbedLayerNormalization", domain="com.microsoft")
def embed(s: Sample) -> None:
    batch, length, hidden, words, dtype = s.between(1, 3), s.between(1, 7), s.size(1, 17), s.between(2, 9), s.dtype()
    i32 = np.dtype(np.int32)
    segments = s.flip()
    s.add(s.numbers.integers(0, words, (batch, length)).astype(i32))
    s.add(s.numbers.integers(0, 2, (batch, length)).astype(i32) if segments else None)
    s.add(s.array(dtype, (words, hidden)), True)
    s.add(s.array(dtype, (length + 2, hidden)), True)
    s.add(s.array(dtype, (2, hidden)) if segments else None, True)
    for _ in range(2):
        s.add(s.array(dtype, (hidden,)), True)
    masked = s.flip(0.3)
    s.add(np.ones((batch, length), i32) if masked else None)
    if s.flip(0.3):
        s.add(s.numbers.integers(0, length, (batch, length)).astype(i32))
    if masked:
        s.attributes["mask_index_type"] = 1
    s.outputs = ["y0", "y1"]
    _epsilon(s)
