"""Ops that change shapes, and ops whose results are known once shapes are."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.fuzz.registry import strategy
from tests.fuzz.sample import BOOL, F32, I32, I64, Sample, UnsuitedError

SPECIAL = 0.1


@strategy("Transpose")
def transpose(s: Sample) -> None:
    shape = s.shape(0, 6)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    if shape and s.flip(0.8):
        s.attributes["perm"] = s.random.sample(range(len(shape)), len(shape))


@strategy("Reshape")
def reshape(s: Sample) -> None:
    shape = s.shape(0, 5)
    elements, target = int(np.prod(shape)), []
    rest = elements
    for _ in range(s.between(0, 4)):
        part = s.pick([d for d in (1, 2, 3, 4, 5, 7, 8) if rest % d == 0] if rest else [0, 1, 2, 3])
        target.append(part)
        rest = rest // part if part else 0
    if int(np.prod(target)) != elements:
        target.append(rest)
    literal = s.opset >= 14 and s.flip(0.3)
    if not literal:
        if 0 in target and any(d == 0 and (i >= len(shape) or shape[i] != 0) for i, d in enumerate(target)):
            raise UnsuitedError("a zero copies the dimension of the input")
        for i in range(min(len(shape), len(target))):
            if shape[i] == target[i] and s.flip(0.3):
                target[i] = 0
    if target and elements and 0 not in target and s.flip(0.4):
        target[s.between(0, len(target) - 1)] = -1
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.ints(target)
    if literal:
        s.attributes["allowzero"] = 1


@strategy("Expand")
def expand(s: Sample) -> None:
    shape = s.shape(0, 5)
    inner = s.broadcast(shape)
    s.add(s.array(s.dtype(), inner, SPECIAL))
    asked = [1 if d == i and s.flip(0.2) else d for d, i in zip(shape[len(shape) - len(inner) :], inner, strict=True)]
    s.ints([*shape[: len(shape) - len(inner)], *asked])


@strategy("Flatten")
def flatten(s: Sample) -> None:
    shape = s.shape(0, 5)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    least = -len(shape) if s.opset >= 11 else 0
    if s.flip(0.8) or not shape:
        s.attributes["axis"] = s.between(least, len(shape))


@strategy("Squeeze")
def squeeze(s: Sample) -> None:
    shape = [1 if s.flip() else d for d in s.shape(0, 5)]
    s.add(s.array(s.dtype(), shape, SPECIAL))
    ones = [i for i, d in enumerate(shape) if d == 1]
    if ones and s.flip(0.8):
        axes = s.random.sample(ones, s.between(1, len(ones)))
        s.listed("axes", [a - len(shape) if s.opset >= 11 and s.flip(0.4) else a for a in axes], 13)


@strategy("Unsqueeze")
def unsqueeze(s: Sample) -> None:
    shape, new = s.shape(0, 4), s.between(1, 3)
    rank = len(shape) + new
    axes = s.random.sample(range(rank), new)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    s.listed("axes", [a - rank if s.opset >= 11 and s.flip(0.4) else a for a in axes], 13)


@strategy("Shape", "Size")
def shape_of(s: Sample) -> None:
    shape = s.shape(0, 6)
    s.add(s.array(s.dtype(), shape))
    if s.op == "Shape" and s.opset >= 15:
        s.attributes = {n: s.between(-7, 7) for n in ("start", "end") if s.flip()}


@strategy("Constant")
def constant(s: Sample) -> None:
    if s.opset >= 12 and s.flip():
        name, value = s.pick((("value_float", 1.5), ("value_int", -3), ("value_ints", [1, 2]), ("value_floats", [0.5])))
        s.attributes[name] = value
    else:
        s.attributes["value"] = numpy_helper.from_array(s.array(s.dtype(), s.shape(0, 4), SPECIAL))


@strategy("ConstantOfShape")
def constant_of_shape(s: Sample) -> None:
    s.ints(s.shape(0, 4))
    if s.flip(0.8):
        s.attributes["value"] = numpy_helper.from_array(s.array(s.dtype("T2"), (1,), SPECIAL))


@strategy("EyeLike")
def eye_like(s: Sample) -> None:
    s.add(s.array(s.dtype("T1"), (s.size(1), s.size(1))))
    if s.flip():
        s.attributes["dtype"] = helper.np_dtype_to_tensor_dtype(s.dtype("T2"))
    if s.flip(0.7):
        s.attributes["k"] = s.between(-4, 4)


@strategy("NonZero")
def non_zero(s: Sample) -> None:
    s.add(s.array(s.dtype(), s.shape(0, 3)) * s.array(BOOL, ()), fixed=True)


@strategy("OneHot")
def one_hot(s: Sample) -> None:
    shape, depth = s.shape(0, 3), s.size(1, 9)
    indices = s.numbers.integers(-depth - 1, depth + 2, shape).astype(s.dtype("T1"))
    if indices.dtype.kind == "u":
        indices = s.numbers.integers(0, depth, shape).astype(indices.dtype)
    s.add(indices)
    s.add(np.array(depth if s.flip() else [depth], s.dtype("T2")), fixed=True)
    s.add(s.array(s.dtype("T3"), (2,)), s.flip())
    if s.flip(0.8):
        s.attributes["axis"] = s.between(-len(shape) - 1, len(shape))


@strategy("Range")
def range_(s: Sample) -> None:
    dtype = s.dtype("T", (F32, I64, I32))
    step = s.pick((1, 2, -1, 3, -2) if dtype.kind == "i" else (1, 0.5, -0.25, 0.1))
    start = s.between(-4, 4)
    for value in (start, start + step * s.between(-2, 12), step):
        s.add(np.array(value, dtype), fixed=True)


@strategy("Trilu")
def trilu(s: Sample) -> None:
    shape = s.shape(2, 4)
    s.add(s.array(s.dtype(), shape, SPECIAL))
    if s.flip(0.7):
        s.add(np.array(s.between(-5, 5), np.int64), fixed=s.flip(0.8))
    if s.flip(0.7):
        s.attributes["upper"] = int(s.flip())
