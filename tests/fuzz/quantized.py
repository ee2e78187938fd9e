"""Quantize and dequantize, integer products, and the quantized ops of com.microsoft."""

from __future__ import annotations

import numpy as np

from tests.fuzz.registry import strategy
from tests.fuzz.sample import BOOL, F16, F32, I8, I32, U8, Sample
from tests.fuzz.windows import _conv, window

EIGHT = (I8, U8)


def stored(s: Sample, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers over the whole range of the type."""
    if dtype.kind not in "iu":
        return s.array(dtype, shape)
    info = np.iinfo(dtype)
    if dtype.itemsize > 2:
        return s.numbers.integers(-(1 << 20), 1 << 20, shape).astype(dtype)
    return s.numbers.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def scale(s: Sample, shape: tuple[int, ...] = (), dtype: np.dtype = F32) -> np.ndarray:
    return s.numbers.uniform(0.01, 0.1, shape).astype(dtype)


def zero(s: Sample, dtype: np.dtype, shape: tuple[int, ...] = ()) -> np.ndarray:
    low, high = (0, 20) if dtype.kind == "u" else (-10, 10)
    if dtype.kind not in "iu" or dtype.itemsize > 2 or s.flip(0.2):
        return np.zeros(shape, dtype)
    return s.numbers.integers(low, high, shape).astype(dtype)


def parameters(s: Sample, dtype: np.dtype, shape: tuple[int, ...] = (), fixed: bool = True) -> None:
    """A scale and a zero point as the next inputs."""
    s.add(scale(s, shape), fixed)
    s.add(zero(s, dtype, shape), fixed)


def _scaled_shape(s: Sample, shape: tuple[int, ...], blocked: bool) -> tuple[int, ...]:
    """The shape of the scales; the axis and block are filled in."""
    if not shape or s.flip(0.4):
        return s.pick(((), ())) if s.flip(0.8) else (1,)
    axis = s.axis(len(shape))
    s.attributes["axis"] = axis
    if not blocked or s.flip(0.7):
        return shape[axis : axis + 1] if axis >= 0 else (shape[axis],)
    block = s.between(1, shape[axis])
    s.attributes["block_size"] = block
    found = list(shape)
    found[axis] = -(-shape[axis] // block)
    return tuple(found)


@strategy("QuantizeLinear")
@strategy("QuantizeLinear", domain="com.microsoft")
def quantize(s: Sample) -> None:
    shape = s.shape(0, 4, least=1)
    source = s.dtype("T1", (F32, F16, I32))  # quotients of bf16: docs/disagreements.md
    if "T3" in s.types or s.domain:
        to, scales = (s.dtype("T2") if s.domain else s.dtype("T3")), source
        scales = source if s.domain or source == I32 or s.flip() else s.dtype("T2")
    else:
        to, scales = s.dtype("T2"), source if s.opset >= 19 else F32
    if scales == I32 or scales.kind in "iu":
        scales = F32
    s.add(s.array(source, shape, 0.0, 3.0) if source.kind not in "iu" else s.array(source, shape))
    per = _scaled_shape(s, shape, s.opset >= 21 and not s.domain) if s.domain or s.opset >= 13 else ()
    s.add(scale(s, per, scales), s.flip(0.8))
    if to != U8 or s.flip():
        s.add(zero(s, to, per), s.flip(0.8))


@strategy("DequantizeLinear")
@strategy("DequantizeLinear", domain="com.microsoft")
def dequantize(s: Sample) -> None:
    shape = s.shape(0, 4, least=1)
    source = s.dtype("T1" if "T1" in s.types else "T")
    scales = s.dtype("T2") if "T2" in s.types else F32
    s.add(stored(s, source, shape))
    per = _scaled_shape(s, shape, s.opset >= 21 and not s.domain) if s.domain or s.opset >= 13 else ()
    s.add(scale(s, per, scales), s.flip(0.8))
    if s.flip():
        s.add(zero(s, source, per), s.flip(0.8))


@strategy("DynamicQuantizeLinear")
def dynamic_quantize(s: Sample) -> None:
    s.add(s.array(F32, s.shape(0, 4, least=1), scale=s.pick((1e-3, 2.0, 100.0))) + F32.type(s.pick((0, 0, 5))))
    s.outputs = ["y0", "y1", "y2"]


@strategy("MatMulInteger")
def matmul_integer(s: Sample) -> None:
    m, k, n, batch = s.size(1), s.size(1), s.size(1), s.shape(0, 2, least=1, most=6)
    a, b = s.dtype("T1"), s.dtype("T2")
    s.add(stored(s, a, (*batch, m, k)))
    s.add(stored(s, b, (*s.broadcast(batch), k, n)), s.flip(0.7))
    if s.flip(0.7):
        s.add(zero(s, a), True)
        if s.flip(0.7):
            s.add(zero(s, b, (n,) if s.flip(0.3) and not batch else ()), True)


@strategy("ConvInteger")
def conv_integer(s: Sample) -> None:
    x, w = _conv(s)
    a, b = s.dtype("T1"), s.dtype("T2")
    s.add(stored(s, a, x))
    s.add(stored(s, b, w), s.flip(0.8))
    if s.flip(0.7):
        s.add(zero(s, a), True)
        if s.flip(0.7):
            s.add(zero(s, b), True)


@strategy("QLinearMatMul")
def qlinear_matmul(s: Sample) -> None:
    m, k, n, batch = s.size(1), s.size(1), s.size(1), s.shape(0, 2, least=1, most=6)
    a, b, y = (s.dtype(t, EIGHT) for t in ("T1", "T2", "T3"))
    s.add(stored(s, a, (*batch, m, k)))
    parameters(s, a)
    s.add(stored(s, b, (*batch, k, n)), s.flip(0.7))
    parameters(s, b, (n,) if s.flip(0.2) and not batch else ())
    s.add(np.array(s.pick((0.5, 2.0, 0.1)), F32), True)
    s.add(zero(s, y), True)


@strategy("QLinearConv")
def qlinear_conv(s: Sample) -> None:
    x, w = _conv(s)
    a, b, y = (s.dtype(t, EIGHT) for t in ("T1", "T2", "T3"))
    s.add(stored(s, a, x))
    parameters(s, a)
    s.add(stored(s, b, w), True)
    per = (w[0],) if len(x) == 4 and s.flip() else ()  # onnx.reference broadcasts scales over images only
    s.add(scale(s, per), True)
    s.add(np.zeros(per, b) if per else zero(s, b), True)
    s.add(np.array(s.pick((0.5, 2.0, 0.1)), F32), True)
    s.add(zero(s, y), True)
    if s.flip():
        s.add(s.numbers.integers(-500, 500, w[:1]).astype(I32), True)


@strategy("QLinearAdd", "QLinearMul", domain="com.microsoft")
def qlinear_binary(s: Sample) -> None:
    dtype, shape = s.pick(EIGHT), s.shape(0, 4)
    a, b = s.broadcast(shape), shape
    for part in (a, b) if s.flip() else (b, a):
        s.add(stored(s, dtype, part))
        parameters(s, dtype)
    parameters(s, dtype)


@strategy("QLinearSigmoid", "QLinearLeakyRelu", domain="com.microsoft")
def qlinear_unary(s: Sample) -> None:
    dtype = s.pick(EIGHT)
    s.add(stored(s, dtype, s.shape(0, 4)))
    parameters(s, dtype)
    parameters(s, dtype)
    if s.op == "QLinearLeakyRelu":
        s.attributes["alpha"] = 0.2


@strategy("QLinearSoftmax", domain="com.microsoft")
def qlinear_softmax(s: Sample) -> None:
    dtype, shape = s.pick(EIGHT), s.shape(2, 4, least=1)
    s.add(stored(s, dtype, shape))
    parameters(s, dtype)
    s.add(np.array(1 / 200, F32), True)  # at 1 / 256 ONNX Runtime wraps 1 around to 0
    s.add(np.array(0 if dtype == U8 else -128, dtype), True)
    s.attributes = {"axis": s.axis(len(shape)), "opset": s.pick((11, 13))}


@strategy("QLinearReduceMean", domain="com.microsoft")
def qlinear_reduce_mean(s: Sample) -> None:
    dtype, shape = s.pick(EIGHT), s.shape(1, 4, least=1)
    s.add(stored(s, dtype, shape))
    parameters(s, dtype)
    parameters(s, dtype)
    s.attributes = {"axes": s.axes(len(shape), least=1), "keepdims": int(s.flip())}


@strategy("QLinearAveragePool", domain="com.microsoft")
def qlinear_average_pool(s: Sample) -> None:
    dtype, sizes = s.pick(EIGHT), [s.size(1, 17), s.size(1, 17)]
    s.attributes["kernel_shape"] = window(s, sizes, dilated=False)
    s.attributes.pop("dilations", None)
    last = s.flip(0.3)
    s.attributes |= {"channels_last": int(last), "count_include_pad": int(s.flip())}
    n, c = s.between(1, 2), s.between(1, 5)
    s.add(stored(s, dtype, (n, *sizes, c) if last else (n, c, *sizes)))
    parameters(s, dtype)
    parameters(s, dtype)


@strategy("QLinearGlobalAveragePool", domain="com.microsoft")
def qlinear_global_average_pool(s: Sample) -> None:
    dtype, sizes, last = s.pick(EIGHT), (s.size(1, 9), s.size(1, 9)), s.flip()
    n, c = s.between(1, 2), s.between(1, 5)
    s.attributes["channels_last"] = int(last)
    s.add(stored(s, dtype, (n, *sizes, c) if last else (n, c, *sizes)))
    parameters(s, dtype)
    parameters(s, dtype)


@strategy("QLinearConcat", domain="com.microsoft")
def qlinear_concat(s: Sample) -> None:
    dtype, shape = s.pick(EIGHT), list(s.shape(1, 4, least=1))
    axis = s.axis(len(shape))
    parameters(s, dtype)
    for _ in range(s.between(1, 3)):
        shape[axis] = s.size(1)
        s.add(stored(s, dtype, tuple(shape)))
        parameters(s, dtype)
    s.attributes["axis"] = axis


@strategy("QLinearWhere", domain="com.microsoft")
def qlinear_where(s: Sample) -> None:
    dtype, shape = s.pick(EIGHT), s.shape(1, 4, least=1)
    s.add(s.array(BOOL, s.broadcast(shape)))
    for part in (shape, s.broadcast(shape)):
        s.add(stored(s, dtype, part))
        parameters(s, dtype)
    parameters(s, dtype)


@strategy("QGemm", domain="com.microsoft")
def qgemm(s: Sample) -> None:
    m, k, n, ta, tb = s.size(1), s.size(1), s.size(1), s.flip(), s.flip()
    a, b = s.pick(((U8, U8), (U8, I8), (I8, I8)))
    s.add(stored(s, a, (k, m) if ta else (m, k)))
    parameters(s, a)
    s.add(stored(s, b, (n, k) if tb else (k, n)), True)
    parameters(s, b)
    s.add(s.numbers.integers(-500, 500, s.pick(((n,), (1, n), (m, n)))).astype(I32) if s.flip() else None, True)
    if s.flip():
        s.add(np.array(2.0, F32), True)
        s.add(zero(s, a), True)
    s.attributes = {"transA": int(ta), "transB": int(tb), "alpha": s.pick((1.0, 0.5))}


@strategy("DynamicQuantizeMatMul", domain="com.microsoft")
def dynamic_quantize_matmul(s: Sample) -> None:
    m, k, n, b = s.size(1), s.size(1), s.size(1), s.pick(EIGHT)
    s.add(s.array(F32, (*s.shape(0, 1, least=1, most=4), m, k)))
    s.add(stored(s, b, (k, n)), True)
    per = (n,) if s.flip(0.3) else ()
    s.add(scale(s, per), True)
    s.add(zero(s, b, per) if s.flip() else None, True)
    if s.flip():
        s.add(s.array(F32, (n,)), True)


@strategy("MatMulIntegerToFloat", domain="com.microsoft")
def matmul_integer_to_float(s: Sample) -> None:
    m, k, n, (a, b) = s.size(1), s.size(1), s.size(1), s.pick(((U8, U8), (U8, I8), (I8, I8), (I8, U8)))
    s.add(stored(s, a, (m, k)))
    s.add(stored(s, b, (k, n)), True)
    s.add(scale(s), True)
    per = (n,) if s.flip(0.3) else ()
    s.add(scale(s, per), True)
    s.add(zero(s, a) if s.flip(0.7) else None, True)
    s.add(zero(s, b, per) if s.flip(0.7) else None, True)
    if s.flip():
        s.add(s.array(F32, (n,)), True)


@strategy("MatMulNBits", domain="com.microsoft")
def matmul_n_bits(s: Sample) -> None:
    bits, block = s.pick((4, 4, 8, 2)), s.pick((16, 32))
    rows, columns, m = s.size(1, 17), s.pick((16, 32, 40, 64)), s.size(1, 9)
    blocks = -(-columns // block)
    dtype = s.dtype("T1", (F32, F16))
    s.add(s.array(dtype, (*s.shape(0, 2, least=1, most=4), m, columns)))
    s.add(s.numbers.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8), True)
    s.add(scale(s, (rows * blocks,) if s.flip() else (rows, blocks), dtype), True)
    if s.flip(0.4):
        s.add(s.numbers.integers(0, 256, (rows, -(-blocks * bits // 8))).astype(np.uint8), True)
    elif s.flip(0.3):
        s.add(None)
    if len(s.inputs) == 4 and s.flip(0.4):
        s.add(None)
        s.add(s.array(dtype, (rows,)), True)
    s.attributes = {"N": rows, "K": columns, "bits": bits, "block_size": block}
