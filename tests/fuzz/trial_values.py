"""Layers of trial models that compute: elementwise ops, products, reductions, normalizations, windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.trial_model import F32, MICROSOFT, TrialModel

Layer = Callable[[TrialModel], object]
SMOOTH = (
    *("Abs", "Atan", "Asinh", "Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh", "Sinh", "Swish"),
)
JUMPING = ("Ceil", "Floor", "Not", "Round", "Shrink", "Sign", "ThresholdedRelu", "IsNaN", "BitwiseNot")
POSITIVE = ("Log", "Reciprocal", "Sqrt", "Acosh")
PARAMETERS = {
    "Celu": {"alpha": (0.5, 2.0)},
    "Elu": {"alpha": (0.5, 2.0)},
    "Gelu": {"approximate": ("none", "tanh")},
    "HardSigmoid": {"alpha": (0.2, -0.5), "beta": (0.5, 0.0)},
    "LeakyRelu": {"alpha": (0.5, 2.0, -0.3, 0.0)},
    "Selu": {"alpha": (1.67, 0.5), "gamma": (1.05, 2.0)},
    "Shrink": {"lambd": (0.5, 1.5), "bias": (0.0, 1.0, -0.25)},
    "ThresholdedRelu": {"alpha": (1.0, 0.0, -1.0)},
}


def unary(m: TrialModel) -> None:
    x = m.pick("fiu")
    op = m.choose(SMOOTH) if m.flip(0.8) else m.choose(JUMPING)
    chosen = {name: m.choose(values) for name, values in PARAMETERS.get(op, {}).items() if m.flip(0.6)}
    m.attempt(op, [x], **chosen)


def positive(m: TrialModel) -> None:
    """A function of positive numbers."""
    x = m.pick()
    dtype = m.values[x].dtype
    moved = m.then("Add", [m.then("Abs", [x]), m.scalar(m.choose((0.5, 1.0, 2.0)), dtype)])
    op = m.choose((*POSITIVE, "Pow"))
    exponents = (2.0, 3.0, 0.5, 1.0, -1.0, 0.0, 1.7)
    m.attempt(op, [moved, m.scalar(m.choose(exponents), dtype)] if op == "Pow" else [moved])


def beside(m: TrialModel, x: str) -> str:
    """An operand of the type of x: an earlier tensor, perhaps x itself, or a constant that broadcasts with it."""
    like = m.values[x]
    if m.flip(0.45):
        return m.pick("fiub", dtype=like.dtype)
    dims = [d if m.flip(0.6) else 1 for d in like.shape]
    dims = dims[m.between(0, len(dims)) :] if m.flip(0.4) else dims
    dims = [m.between(1, 3) if d == 1 and m.flip(0.15) else d for d in dims]
    if m.flip(0.1):
        dims = [m.between(1, 3), *dims]
    return m.weight(like.dtype, dims)


def binary(m: TrialModel) -> None:
    x = m.pick("fiu")
    other = beside(m, x)
    op = m.choose(("Add", "Add", "Sub", "Mul", "Mul", "Max", "Min", "PRelu", "Mean", "Sum"))
    swapped = op != "PRelu" and m.flip()  # slopes broadcast one way only
    if op == "PRelu" and np.broadcast_shapes(m.values[other].shape, m.values[x].shape) != m.values[x].shape:
        return
    m.attempt(op, [other, x] if swapped else [x, other])


def variadic(m: TrialModel) -> None:
    x = m.pick("fiu")
    m.attempt(m.choose(("Sum", "Max", "Min", "Mean")), [x, *(beside(m, x) for _ in range(m.between(0, 3)))])


def divide(m: TrialModel) -> None:
    """By numbers away from 0; of integers with either sign, and their remainders."""
    x = m.pick("fiu")
    dtype, other = m.values[x].dtype, beside(m, x)
    if dtype.kind == "f":
        away = m.then("Add", [m.then("Abs", [other]), m.scalar(1.0, dtype)])
        m.attempt("Div", [x, away])
        return
    shape = m.values[other].shape
    away = m.constant(m.numbers.choice(np.array([1, 2, 3, 7, *([-2, -5] if dtype.kind == "i" else [])]), shape), dtype)
    op = m.choose(("Div", "Mod"))
    m.attempt(op, [x, away], **({"fmod": 1} if op == "Mod" and m.flip() else {}))


def bits(m: TrialModel) -> None:
    x = m.pick("iu")
    dtype = m.values[x].dtype
    if dtype.kind == "u" and m.flip():
        counts = m.constant(m.numbers.integers(0, dtype.itemsize * 8, m.values[x].shape), dtype)
        m.attempt("BitShift", [x, counts], direction=m.choose(("LEFT", "RIGHT")))
    elif m.flip():
        m.attempt(m.choose(("BitwiseAnd", "BitwiseOr", "BitwiseXor")), [x, beside(m, x)])
    else:
        m.attempt("Pow", [x, m.scalar(m.choose((0, 1, 2, 3)), dtype)])


def compare(m: TrialModel) -> None:
    """A comparison and what is chosen or counted by it."""
    x = m.pick("fiu")
    dtype = m.values[x].dtype
    limit = m.scalar(m.choose((0.123, -0.77, 0.51)) if dtype.kind == "f" else 1, dtype)
    op = m.choose(("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"))
    met = m.then(op, [x, limit if m.flip(0.6) else beside(m, x)])
    if m.flip(0.3):
        met = m.then(m.choose(("And", "Or", "Xor")), [met, beside(m, met)])
    if m.flip(0.2):
        met = m.then("Not", [met])
    if m.flip(0.6):
        operands = [x, beside(m, x)]
        m.attempt("Where", [met, *(operands if m.flip() else operands[::-1])])


def clip(m: TrialModel) -> None:
    x = m.pick("fiu")
    dtype = m.values[x].dtype
    low, high = m.choose(((-1, 2), (0, 6), (1, 4), (-2, 0)))
    bounds = [m.scalar(b, dtype) if m.flip(0.7) and (b >= 0 or dtype.kind != "u") else "" for b in (low, high)]
    m.attempt("Clip", [x, *bounds])


def matmul(m: TrialModel) -> None:
    """With constants or with what another tensor holds, transposed until it fits."""
    x = m.pick("f", 1)
    like = m.values[x]
    k, n = like.shape[-1], m.choose((1, 2, 3, 8, 16, 17, 33))
    scale = 1 / math.sqrt(max(k, 1))
    if m.flip(0.6):
        batch = list(like.shape[:-2]) if m.flip(0.3) else [m.between(1, 3)] if m.flip(0.1) else []
        w = m.weight(like.dtype, [*batch, k, n] if m.flip(0.9) else [k], scale)
        if m.flip(0.15):
            m.attempt("MatMul", [m.then("Transpose", [w]), x])
        else:
            m.attempt("MatMul", [x, w])
        return
    y = m.pick("f", 2, dtype=like.dtype)
    perm = list(range(m.values[y].ndim))
    perm[-2:] = perm[:-3:-1]
    turned = m.then("Transpose", [y], perm=perm)
    for pair in ([x, turned], [x, y], [turned, x], [y, x]):
        found = m.attempt("MatMul", pair)
        if found:
            m.attempt("Mul", [found[0], m.scalar(scale, like.dtype)])
            return


def integer_matmul(m: TrialModel) -> None:
    x = m.pick("iu", 1)
    like = m.values[x]
    k, n = like.shape[-1], m.choose((1, 3, 16))
    if like.dtype.itemsize > 1:
        m.attempt("MatMul", [x, m.weight(like.dtype, [k, n])])
        return
    other = m.choose((np.dtype(np.int8), np.dtype(np.uint8)))
    zeros = [m.scalar(3, like.dtype), m.scalar(1, other)][: m.between(0, 2)]
    m.attempt("MatMulInteger", [x, m.weight(other, [k, n]), *zeros])


def gemm(m: TrialModel) -> None:
    x = m.pick("f", 2, 2)
    like, n = m.values[x], m.between(1, 20)
    turned, other = m.flip(0.3), m.flip()
    rows, k = like.shape[::-1] if turned else like.shape
    w = m.weight(like.dtype, (n, k) if other else (k, n), 1 / math.sqrt(max(k, 1)))
    shapes = ((n,), (1, n), (rows, 1), (rows, n), (), (1, 1), (1,))
    added = [m.weight(like.dtype, m.choose(shapes))] if m.flip(0.6) else []
    factors = {"alpha": m.choose((1.0, 0.5, -2.0)), "beta": m.choose((1.0, 2.0, 0.0))}
    m.attempt("Gemm", [x, w, *added], transA=int(turned), transB=int(other), **factors)


def einsum(m: TrialModel) -> None:
    x = m.pick("f", 1, 4)
    like = m.values[x]
    letters = "abcd"[: like.ndim]
    inner = [c for c in letters if m.flip()]
    sizes = dict(zip(letters, like.shape, strict=True)) | {"x": m.between(1, 5)}
    right = [*inner, "x"]
    m.random.shuffle(right)
    result = [c for c in (*letters, "x") if c not in inner or m.flip(0.2)]
    m.random.shuffle(result)
    w = m.weight(like.dtype, [sizes[c] for c in right], 0.3)
    m.attempt("Einsum", [x, w], equation=f"{letters},{''.join(right)}->{''.join(result)}")


def conv(m: TrialModel) -> None:
    x = m.pick("f", 3, 5)
    like = m.values[x]
    channels, rank = like.shape[1], like.ndim - 2
    groups = m.choose([g for g in (1, 1, 2, 3, channels) if channels and channels % g == 0])
    taps = [m.between(1, 4) for _ in range(rank)]
    chosen: dict[str, Any] = {
        "strides": [m.between(1, 3) for _ in range(rank)],
        "pads": [m.between(0, 2) for _ in range(2 * rank)],
        "dilations": [m.choose((1, 1, 2, 3)) for _ in range(rank)],
        "group": groups,
    }
    if m.flip(0.25):
        del chosen["pads"]
        chosen["auto_pad"] = m.choose(("SAME_UPPER", "SAME_LOWER", "VALID"))
        chosen["strides"] = [min(s, t) for s, t in zip(chosen["strides"], taps, strict=True)]  # docs/disagreements.md
    each = m.between(1, 6)
    scale = 1 / math.sqrt(max(1, channels // groups * math.prod(taps)))
    if m.flip(0.3):
        w = m.weight(like.dtype, (channels, each, *taps), scale)
        if m.flip() and "pads" in chosen:
            chosen["output_padding"] = [m.between(0, s - 1) for s in chosen["strides"]]
        added = [m.weight(like.dtype, (each * groups,))] if m.flip() else []
        m.attempt("ConvTranspose", [x, w, *added], **chosen)
        return
    w = m.weight(like.dtype, (each * groups, channels // groups, *taps), scale)
    added = [m.weight(like.dtype, (each * groups,))] if m.flip() else []
    m.attempt("Conv", [x, w, *added], **chosen)


def pool(m: TrialModel) -> None:
    x = m.pick("fiu", 3, 5)
    rank = m.values[x].ndim - 2
    op = m.choose(("MaxPool", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
    if op.startswith("Global"):
        m.attempt(op, [x])
        return
    shape = m.values[x].shape[2:]
    taps = [m.between(1, min(4, d)) for d in shape]
    chosen: dict[str, Any] = {"kernel_shape": taps, "strides": [m.between(1, 3) for _ in range(rank)]}
    if m.flip(0.7):
        chosen["pads"] = [m.between(0, t - 1) for t in (*taps, *taps)]
    else:
        chosen["auto_pad"] = m.choose(("SAME_UPPER", "SAME_LOWER", "VALID"))
        chosen["strides"] = [min(s, t) for s, t in zip(chosen["strides"], taps, strict=True)]  # docs/disagreements.md
    if m.flip(0.3):
        chosen["ceil_mode"] = 1
    if m.flip(0.3) and "auto_pad" not in chosen:
        chosen["dilations"] = [m.between(1, 2) if 2 * t - 1 <= d else 1 for t, d in zip(taps, shape, strict=True)]
    if op == "AveragePool":
        chosen["count_include_pad"] = m.between(0, 1)
    if op == "LpPool":
        chosen["p"] = m.between(1, 3)
    both = op == "MaxPool" and m.values[x].dtype == F32 and m.flip(0.15)
    m.attempt(op, [x], outputs=2 if both else 1, **chosen)


REDUCTIONS = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def reduce(m: TrialModel) -> None:
    x = m.pick("fi")
    op, axes = f"Reduce{m.choose(REDUCTIONS)}", m.axes(x, least=0)
    as_input = m.opset >= 18 or op == "ReduceSum"
    chosen = {"keepdims": m.between(0, 1)}
    if as_input and not axes and m.flip():
        chosen["noop_with_empty_axes"] = 1
    if axes and not as_input:
        chosen["axes"] = axes
    m.attempt(op, [x, m.ints(*axes)] if as_input and (axes or m.flip()) else [x], **chosen)


def arg(m: TrialModel) -> None:
    x = m.pick("fi", 1)
    last = {"select_last_index": 1} if m.flip(0.3) else {}
    m.attempt(m.choose(("ArgMax", "ArgMin")), [x], axis=m.axis(x), keepdims=m.between(0, 1), **last)


def softmax(m: TrialModel) -> None:
    x = m.pick("f", 1)
    m.attempt(m.choose(("Softmax", "Softmax", "LogSoftmax", "Hardmax")), [x], axis=m.axis(x))


def normalize(m: TrialModel) -> None:
    x = m.pick("f", 2)
    like, dtype = m.values[x], m.values[x].dtype
    kind = m.choose(("layer", "layer", "instance", "batch", "group", "lrn", "mean", "lp", "rms", "simple", "skip"))
    channels = like.shape[1]

    def one(*shape: int) -> str:
        return m.weight(dtype, shape)

    if kind in ("layer", "rms", "simple"):
        axis = m.between(1, like.ndim - 1)
        tail = like.shape[axis:]
        at = axis - like.ndim if m.flip() else axis
        if kind == "layer":
            scales = [one(*tail), one(*tail)][: m.between(1, 2)]
            m.attempt("LayerNormalization", [x, *scales], axis=at, epsilon=m.choose((1e-5, 1e-2)))
        else:
            op = "RMSNormalization" if kind == "rms" else "SimplifiedLayerNormalization"
            m.attempt(op, [x, one(*tail)], axis=at, epsilon=1e-3)
    elif kind == "skip":
        scales = [one(like.shape[-1]) for _ in range(m.between(1, 3))]
        beside = m.weight(dtype, like.shape)
        m.attempt("SkipLayerNormalization", [x, beside, *scales], domain=MICROSOFT, epsilon=1e-3)
    elif kind == "instance" and math.prod(like.shape[2:]) > 1:  # docs/disagreements.md
        m.attempt("InstanceNormalization", [x, one(channels), one(channels)], epsilon=1e-2)
    elif kind == "batch":
        spread = m.constant(np.abs(m.data(dtype, (channels,))) + dtype.type(0.5))
        m.attempt("BatchNormalization", [x, one(channels), one(channels), one(channels), spread])
    elif kind == "group" and m.opset >= 21:  # deprecated before
        groups = m.choose([g for g in range(1, channels + 1) if channels % g == 0])
        m.attempt("GroupNormalization", [x, one(channels), one(channels)], num_groups=groups, epsilon=1e-2)
    elif kind == "lrn":
        m.attempt("LRN", [x], size=m.choose((1, 3, 4, 5)), alpha=m.choose((1e-4, 0.5)), bias=m.choose((1.0, 2.0)))
    elif kind == "mean":
        m.attempt("MeanVarianceNormalization", [x], axes=sorted(a % like.ndim for a in m.axes(x)))
    elif kind == "lp":
        m.attempt("LpNormalization", [x], axis=m.axis(x), p=m.between(1, 2))


def cumulate(m: TrialModel) -> None:
    x = m.pick("fi", 1)
    chosen = {name: 1 for name in ("exclusive", "reverse") if m.flip()}
    m.attempt("CumSum", [x, m.constant(m.axis(x), np.dtype(m.choose((np.int32, np.int64))))], **chosen)


VALUES: dict[Layer, float] = {
    unary: 5,
    positive: 1,
    binary: 5,
    variadic: 1,
    divide: 1,
    bits: 1,
    compare: 1.5,
    clip: 1,
    matmul: 4,
    integer_matmul: 1,
    gemm: 1.5,
    einsum: 1,
    conv: 3.5,
    pool: 2,
    reduce: 3,
    arg: 1,
    softmax: 2,
    normalize: 3,
    cumulate: 0.7,
}
"""Layer -> its share."""
