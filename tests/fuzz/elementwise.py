"""Arithmetic, comparison, logic, conversion and activations: any rank, broadcasts, extreme values."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.fuzz.registry import strategy
from tests.fuzz.sample import BOOL, U8, Sample, UnsuitedError

PARAMETERS = {
    "Celu": {"alpha": (0.5, 1.0, 2.0)},
    "Elu": {"alpha": (1.0, 0.5, 2.0)},
    "HardSigmoid": {"alpha": (0.2, 1.0, -0.5), "beta": (0.5, 0.0)},
    "LeakyRelu": {"alpha": (0.01, 0.5, 2.0, -0.3, 0.0)},
    "Selu": {"alpha": (1.67, 0.5), "gamma": (1.05, 2.0)},
    "Shrink": {"lambd": (0.5, 1.5), "bias": (0.0, 1.0, -0.25)},
    "Swish": {"alpha": (1.0, 1.702, -1.0)},
    "ThresholdedRelu": {"alpha": (1.0, 0.0, -1.0)},
    "QuickGelu": {"alpha": (1.702, 1.0, 2.0)},
}
SPECIAL = 0.15


def _parameters(s: Sample) -> None:
    for name, values in PARAMETERS.get(s.op, {}).items():
        if s.flip(0.7):
            s.attributes[name] = s.pick(values)


@strategy(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Cos", "Cosh", "Erf", "Exp",
    "Floor", "Log", "Neg", "Not", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
    "Tanh", "Celu", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Selu", "Shrink", "Softplus", "Softsign",
    "Swish", "ThresholdedRelu",
)  # fmt: skip
def unary(s: Sample) -> None:
    s.add(s.array(s.dtype(next(iter(s.types))), s.shape(0, 6), SPECIAL))
    _parameters(s)


@strategy("Gelu", "QuickGelu", domain="com.microsoft")
def contributed_gelu(s: Sample) -> None:
    s.add(s.array(s.dtype(), s.shape(0, 5), SPECIAL))
    _parameters(s)


@strategy("Gelu")
def gelu(s: Sample) -> None:
    s.add(s.array(s.dtype(), s.shape(0, 5), SPECIAL))
    s.attributes["approximate"] = s.pick(("none", "tanh"))


@strategy("BiasGelu", "FastGelu", domain="com.microsoft")
def biased_gelu(s: Sample) -> None:
    shape, dtype = s.shape(1, 4, least=1), s.dtype()
    s.add(s.array(dtype, shape, SPECIAL))
    if s.op == "BiasGelu" or s.flip():
        s.add(s.array(dtype, shape[-1:]))


@strategy("IsNaN", "IsInf")
def classify(s: Sample) -> None:
    s.add(s.array(s.dtype("T1"), s.shape(0, 6), 0.4))
    if s.op == "IsInf":
        s.attributes = {n: int(s.flip()) for n in ("detect_negative", "detect_positive") if s.flip()}


@strategy("Identity")
def identity(s: Sample) -> None:
    s.add(s.array(s.dtype("V" if "V" in s.types else "T"), s.shape(0, 6), SPECIAL))


def _pair(s: Sample, high: int = 5) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that broadcast to each other, possibly both ways."""
    shape = s.shape(0, high)
    a, b = s.broadcast(shape), s.broadcast(shape) if s.flip(0.3) else shape
    return (a, b) if s.flip() else (b, a)


@strategy(
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Mul", "Or", "Sub", "Xor",
)  # fmt: skip
def binary(s: Sample) -> None:
    dtype = s.dtype("T")
    a, b = (s.array(dtype, shape, SPECIAL) for shape in _pair(s))
    if s.op == "Div" and dtype.kind in "iu":
        b = np.where((b == 0) | (b.astype(np.float64) == -1), np.array(3, dtype), b)
    s.add(a)
    s.add(b, s.flip(0.3))


@strategy("PRelu")
def prelu(s: Sample) -> None:
    dtype, shape = s.dtype(), s.shape(0, 5)
    s.add(s.array(dtype, shape, SPECIAL))
    s.add(s.array(dtype, s.broadcast(shape)), s.flip())


@strategy("Mod")
def mod(s: Sample) -> None:
    dtype = s.dtype()
    a, b = (s.array(dtype, shape, 0.05) for shape in _pair(s))
    is_integer = dtype.kind in "iu"
    if is_integer:
        b = np.where((b == 0) | (b.astype(np.float64) == -1), np.array(3, dtype), b)
    s.add(a)
    s.add(b, s.flip(0.3))
    if not is_integer or s.flip():
        s.attributes["fmod"] = 1


@strategy("Pow")
def power(s: Sample) -> None:
    base = s.dtype("T")
    exponent = s.dtype("T1") if "T1" in s.types else base
    a, b = _pair(s)
    x = s.array(base, a, 0.1)
    y = s.array(exponent, b) if exponent.kind not in "iu" else s.numbers.integers(0, 4, b).astype(exponent)
    if s.flip():
        y = np.full_like(y, s.pick((0, 1, 2, 3)))
    s.add(np.clip(x, -9, 9).astype(base) if base.kind in "iu" else x)
    s.add(y, s.flip())


@strategy("BitShift")
def shift(s: Sample) -> None:
    dtype = s.dtype()
    a, b = _pair(s)
    s.add(s.array(dtype, a, SPECIAL))
    s.add(s.numbers.integers(0, dtype.itemsize * 8, b).astype(dtype), s.flip(0.3))
    s.attributes["direction"] = s.pick(("LEFT", "RIGHT"))


@strategy("Max", "Mean", "Min", "Sum")
def variadic(s: Sample) -> None:
    dtype, shape = s.dtype(), s.shape(0, 4)
    for _ in range(s.between(1, 4)):
        s.add(s.array(dtype, s.broadcast(shape), SPECIAL))


@strategy("Where")
def where(s: Sample) -> None:
    shape, dtype = s.shape(0, 5), s.dtype()
    parts = [s.array(t, s.broadcast(shape), 0.2) for t in (BOOL, dtype, dtype)]
    for part in parts:
        s.add(part, s.flip(0.2))


@strategy("Clip")
def clip(s: Sample) -> None:
    dtype = s.dtype()
    x = s.array(dtype, s.shape(0, 5), SPECIAL)
    s.add(x)
    low, high = (1, 4) if dtype.kind == "u" else s.pick(((-1, 2), (0, 6), (3, -3)))
    if s.opset < 11:
        s.attributes = {n: float(v) for n, v in (("min", low), ("max", high)) if s.flip(0.7)}
        return
    fixed = s.flip()
    for bound in (low, high):
        s.add(np.array(bound, dtype) if s.flip(0.7) else None, fixed)


@strategy("Dropout")
def dropout(s: Sample) -> None:
    s.add(s.array(s.dtype(), s.shape(0, 4), SPECIAL))
    if s.opset >= 12:
        if s.flip():
            s.add(np.array(0.3, np.float32), fixed=True)
            if s.flip():
                s.add(np.array(False), fixed=True)
    else:
        s.attributes["ratio"] = 0.3
    if s.opset >= 12:  # what a mask holds before, in inference, is not defined
        s.results(2)


def _convertible(s: Sample, source: np.dtype, to: np.dtype) -> np.ndarray:
    """Numbers whose conversion is defined: in range, and no NaN, where integers are made of floats."""
    shape = s.shape(0, 4)
    x = s.array(source, shape, 0.0 if to.kind in "iu" and source.kind not in "iub" else 0.2)
    if to.kind == "u" and source.kind not in "iub":
        x = np.abs(x)
    return x


@strategy("Cast")
def cast(s: Sample) -> None:
    source, to = s.dtype("T1"), s.dtype("T2")
    s.add(_convertible(s, source, to))
    s.attributes["to"] = helper.np_dtype_to_tensor_dtype(to)
    if s.opset >= 19 and to.itemsize == 1 and to not in (BOOL, U8) and to.kind not in "iu" and s.flip():
        s.attributes["saturate"] = int(s.flip())


@strategy("CastLike")
def cast_like(s: Sample) -> None:
    source, to = s.dtype("T1"), s.dtype("T2")
    s.add(_convertible(s, source, to))
    s.add(s.array(to, s.shape(0, 2)))


@strategy("Softmax", "LogSoftmax", "Hardmax")
def softmax(s: Sample) -> None:
    shape = s.shape(1, 5)
    x = s.array(s.dtype(), shape, 0.02 if s.flip(0.2) else 0.0, s.pick((1.0, 30.0)))
    s.add(s.numbers.integers(-3, 3, shape).astype(x.dtype) if s.op == "Hardmax" else x)
    if s.flip(0.8):
        s.attributes["axis"] = s.axis(len(shape))
    elif len(shape) < 2 and s.opset < 13:
        raise UnsuitedError("the default axis of old versions is 1")
