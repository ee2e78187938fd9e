"""Layers of stranger models: operands that are computed where a file mostly has constants, graphs in graphs, tensors
without elements or axes, and integer arithmetic of every width."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.trial_model import F32, I32, I64, TrialModel
from tests.fuzz.trial_moves import ANY
from tests.fuzz.trial_values import Layer, beside

SMALL = tuple(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64))
SMOOTH = ("Tanh", "Relu", "Neg", "Sigmoid", "Abs", "Sin", "Erf", "Softsign")


def extent(m: TrialModel, x: str, axis: int) -> str:
    """A size of x, as a list of one integer, that the graph computes."""
    if m.opset >= 15 and m.flip():
        return m.then("Shape", [x], start=axis, end=axis + 1)
    return m.then("Gather", [m.then("Shape", [x]), m.ints(axis)], axis=0)


def computed(m: TrialModel, value: int) -> str:
    """An integer as a list of one that the graph computes from sizes, and from data that have no part in it."""
    x = m.pick(ANY, 1)
    if m.flip(0.3):
        none = m.then("Mul", [m.then("Cast", [m.then("Size", [x])], to=onnx.TensorProto.INT64), m.scalar(0, I64)])
        return m.then("Add", [none, m.ints(value)])
    axis = m.between(0, m.values[x].ndim - 1)
    rest = value - m.values[x].shape[axis]
    return m.then("Add", [extent(m, x, axis), m.ints(rest)])


def steered(m: TrialModel) -> None:
    """An op whose sizes, bounds, axes or counts are computed."""
    x = m.pick(ANY, 1)
    shape, axis = m.values[x].shape, m.axis(x)
    at = axis % len(shape)
    kind = m.choose(
        ("pads", "slice", "topk", "split", "tile", "squeeze", "axes", "resize", "gather", "cumsum", "onehot")
    )
    if kind == "pads":
        pads = [m.between(0, 2) for _ in range(2 * len(shape))]
        parts = [computed(m, p) if m.flip(0.3) else m.ints(p) for p in pads]
        m.attempt("Pad", [x, m.then("Concat", parts, axis=0)], mode=m.choose(("constant", "edge", "reflect")))
    elif kind == "slice":
        low, high = sorted((m.between(0, shape[at]), m.between(0, shape[at])))
        m.attempt("Slice", [x, computed(m, low), computed(m, high), m.ints(axis)])
    elif kind == "topk":
        m.attempt("TopK", [x, computed(m, m.between(0, shape[at]))], outputs=2, axis=axis, largest=m.between(0, 1))
    elif kind == "split":
        low = m.between(0, shape[at])
        parts = [computed(m, low), m.then("Sub", [extent(m, x, at), computed(m, low)])]
        m.attempt("Split", [x, m.then("Concat", parts, axis=0)], outputs=2, axis=axis)
    elif kind == "tile":
        times = [computed(m, m.between(0 if m.flip(0.1) else 1, 3)) for _ in shape]
        m.attempt("Tile", [x, m.then("Concat", times, axis=0)])
    elif kind == "squeeze":
        longer = m.then("Unsqueeze", [x, computed(m, at)])
        m.attempt("Squeeze", [longer, computed(m, at)])
    elif kind == "axes":
        op = m.choose(("ReduceSum", "ReduceMax", "ReduceMean", "ReduceL2", "ReduceMin", "ReduceProd"))
        m.attempt(op, [x, computed(m, at)], keepdims=m.between(0, 1))
    elif kind == "resize":
        sizes = [computed(m, m.choose((n, n, 2 * n, max(n - 1, 1)))) for n in shape]
        mode = m.choose(("nearest", "linear"))
        m.attempt("Resize", [x, "", "", m.then("Concat", sizes, axis=0)], mode=mode)
    elif kind == "gather":
        m.attempt("Gather", [x, m.then("Sub", [extent(m, x, at), m.ints(m.between(1, shape[at]))])], axis=axis)
    elif kind == "cumsum":
        chosen = {"exclusive": m.between(0, 1), "reverse": m.between(0, 1)}
        m.attempt("CumSum", [x, m.then("Squeeze", [computed(m, at)])], **chosen)
    else:
        whole = m.then("Cast", [x], to=onnx.TensorProto.INT64)
        m.attempt("OneHot", [whole, computed(m, m.between(2, 6)), m.constant([0, 1], F32)], axis=m.between(-1, 1))


def sized_by_data(m: TrialModel) -> None:
    """Shapes that whole numbers among the data decide, which no rounding changes."""
    x = m.pick("iu", 0)
    count = m.then("Mod", [m.then("ReduceMax", [m.then("Abs", [x])], keepdims=0), m.scalar(5, m.values[x].dtype)])
    count = m.then("Cast", [count], to=onnx.TensorProto.INT64)
    kind = m.choose(("range", "fill", "slice", "expand", "nonzero"))
    if kind == "range":
        m.attempt("Range", [m.scalar(0, I64), count, m.scalar(1, I64)])
    elif kind == "fill":
        m.attempt("ConstantOfShape", [m.then("Concat", [m.then("Reshape", [count, m.ints(1)]), m.ints(2)], axis=0)])
    elif kind == "slice":
        y = m.pick(ANY, 1)
        m.attempt("Slice", [y, m.ints(0), m.then("Reshape", [count, m.ints(1)]), m.ints(m.axis(y))])
    elif kind == "expand":
        m.attempt("Expand", [m.weight(F32, (1,)), m.then("Reshape", [count, m.ints(1)])])
    else:
        found = m.then("NonZero", [m.then("Reshape", [x, m.ints(-1)])])
        flat = m.then("Reshape", [m.pick("f"), m.ints(-1)])
        if m.values[flat].size >= m.values[x].size:
            m.attempt("Gather", [flat, m.then("Squeeze", [found, m.ints(0)])], axis=0)


def emptied(m: TrialModel) -> None:
    """A tensor without elements, and what becomes of it."""
    x = m.pick(ANY, 1)
    axis = m.axis(x)
    none = m.then("Slice", [x, m.ints(0), m.ints(0), m.ints(axis)])
    kind = m.choose(("sum", "concat", "matmul", "pad", "reshape", "keep", "softmax", "cumsum"))
    if kind == "sum":
        m.attempt(m.choose(("ReduceSum", "ReduceProd", "ReduceL1", "ReduceSumSquare")), [none, m.ints(axis)])
    elif kind == "concat":
        m.attempt("Concat", [none, x] if m.flip() else [x, none, x], axis=axis)
    elif kind == "matmul":
        width = m.values[none].shape[-1]
        m.attempt("MatMul", [none, m.weight(m.values[none].dtype, (width, m.between(0, 3)))])
    elif kind == "pad":
        m.attempt("Pad", [none, m.ints(*[1] * (2 * m.values[none].ndim))])
    elif kind == "reshape":
        m.attempt("Reshape", [none, m.ints(0, -1) if m.values[none].shape[0] else m.ints(3, 0)], allowzero=1)
    elif kind == "softmax":
        m.attempt("Softmax", [none], axis=axis)
    elif kind == "cumsum":
        m.attempt("CumSum", [none, m.scalar(axis, I64)])


def scalar(m: TrialModel) -> None:
    """Tensors without axes among others."""
    x = m.pick(ANY)
    kind = m.choose(("reduce", "take", "reshape"))
    if kind == "reduce":
        y = m.then(m.choose(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")), [x], keepdims=0)
    elif kind == "take":
        flat = m.then("Reshape", [x, m.ints(-1)])
        y = m.then("Gather", [flat, m.scalar(m.between(-1, 0), I64)])
    else:
        flat = m.then("Reshape", [x, m.ints(-1)])
        y = m.then("Reshape", [m.then("Slice", [flat, m.ints(0), m.ints(1)]), m.ints()])
    then = m.choose(("Unsqueeze", "Expand", "Identity", "Max", "Concat"))
    if then == "Unsqueeze":
        m.attempt("Unsqueeze", [y, m.ints(0, -1)])
    elif then == "Expand":
        m.attempt("Expand", [y, m.ints(m.between(1, 3), m.between(1, 3))])
    elif then == "Max":
        m.attempt(m.choose(("Max", "Min", "Sum")), [y, x] if m.flip() else [x, y, x])
    elif then == "Concat":
        row = m.then("Reshape", [y, m.ints(1)])
        m.attempt("Concat", [row, row], axis=0)
    else:
        m.attempt("Identity", [y])


def whole_numbers(m: TrialModel) -> None:
    """Arithmetic of integers of any width, also such that wraps."""
    x = m.pick("iu")
    to = m.choose(SMALL)
    kept = m.then("Mod", [x, m.scalar(m.choose((3, 7, 50)), m.values[x].dtype)])
    y = m.then("Cast", [kept], to=helper.np_dtype_to_tensor_dtype(to))
    op = m.choose(
        ("Add", "Sub", "Mul", "Max", "Min", "Clip", "Sign", "Neg", "Where", "Reduce", "Pow", "Equal", "Sum", "Abs")
    )
    if op in ("Sign", "Neg", "Abs"):
        m.attempt(op, [y])
    elif op == "Clip":
        m.attempt("Clip", [y, m.scalar(1, to), m.scalar(5, to)])
    elif op == "Where":
        least = m.then("Greater", [y, m.scalar(1, to)])
        m.attempt("Where", [least, y, m.scalar(2, to)])
    elif op == "Reduce":
        kind = m.choose(("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceMean"))
        m.attempt(kind, [y], keepdims=m.between(0, 1))
    elif op == "Pow":
        m.attempt("Pow", [y, m.scalar(2, to)])
    else:
        m.attempt(op, [y, beside(m, y)])


def selected(m: TrialModel) -> None:
    """GatherND, ScatterND, GatherElements and ScatterElements at places that are computed."""
    x = m.pick(ANY, 1)
    shape = m.values[x].shape
    depth, count = m.between(1, len(shape)), m.between(0 if m.flip(0.1) else 1, 3)
    places = [m.numbers.integers(-n if n else 0, max(n, 1), count) for n in shape[:depth]]
    index = m.then("Add", [m.constant(np.stack(places, -1), I64), m.then("Mul", [computed(m, 1), m.scalar(0, I64)])])
    if m.flip():
        m.attempt("GatherND", [x, index])
        return
    updates = m.weight(m.values[x].dtype, (count, *shape[depth:]))
    chosen = {"reduction": m.choose(("none", "add", "mul"))} if m.opset >= 16 and m.flip() else {}
    m.attempt("ScatterND", [x, index, updates], **chosen)


def quantized_block(m: TrialModel) -> None:
    """A product or a convolution between quantizations, as exporters write it: weights by channel, a bias of i32."""
    x = m.pick("f", 2, 5, dtype=F32)
    like = m.values[x]
    signed = m.flip()
    kind, zero = (np.dtype(np.int8), m.between(-5, 5)) if signed else (np.dtype(np.uint8), m.between(100, 140))
    step = np.float32(np.abs(like).max(initial=0.5) / 120)
    scale, point = m.scalar(float(step), F32), m.scalar(zero, kind)
    a = m.then("DequantizeLinear", [m.then("QuantizeLinear", [x, scale, point]), scale, point])
    inner = like.ndim - 2
    as_conv = inner >= 1 and m.flip(0.7)
    width, n = (like.shape[1] if as_conv else like.shape[-1]), m.between(1, 9)
    group = width if as_conv and m.flip(0.3) else 1
    n = group * m.between(1, 2) if group > 1 else n
    taps = [m.choose((1, 2, 3)) for _ in range(inner)]
    codes = m.numbers.integers(-127, 128, (n, width // group, *taps) if as_conv else (width, n))
    by_channel = m.flip(0.7)
    steps = m.numbers.uniform(0.5, 1, n if by_channel else ()) / (64 * math.sqrt(max(codes[0].size, 1)))
    axis = {"axis": 0 if as_conv else 1} if by_channel else {}
    ws = m.constant(steps, F32)
    w = m.then("DequantizeLinear", [m.constant(codes, np.dtype(np.int8)), ws], **axis)
    if as_conv:
        bias = m.constant(m.numbers.integers(-300, 300, n), I32)
        bs = m.constant(np.broadcast_to(np.float32(steps * step), (n,)), F32)
        extra = [m.then("DequantizeLinear", [bias, bs], axis=0)] if m.flip() else []
        y = m.then("Conv", [a, w, *extra], group=group, pads=[m.between(0, 1) for _ in range(2 * inner)])
    else:
        y = m.then("MatMul", [a, w])
    y = m.then("Relu", [y]) if m.flip(0.4) else y
    out = m.scalar(float(np.abs(m.values[y]).max(initial=0.5)) / 120 + 1e-6, F32)
    q = m.then("QuantizeLinear", [y, out, point])
    if m.flip(0.3):
        q = m.then("Reshape", [q, m.ints(0, -1)])
    m.attempt("DequantizeLinear", [q, out, point])


def transposed_conv(m: TrialModel) -> None:
    """With all that says how large the result is, pads that no symmetry has, groups and dilations."""
    x = m.pick("f", 3, 5)
    like, inner = m.values[x], m.values[x].ndim - 2
    group = m.choose([g for g in (1, 1, 2, like.shape[1]) if g and like.shape[1] % g == 0])
    taps = [m.between(1, 3) for _ in range(inner)]
    w = m.weight(like.dtype, (like.shape[1], m.between(1, 3), *taps), 0.3)
    strides = [m.between(1, 3) for _ in range(inner)]
    chosen = {"strides": strides, "group": group, "dilations": [m.choose((1, 1, 2)) for _ in range(inner)]}
    way = m.choose(("pads", "shape", "same", "none"))
    if way == "pads":
        chosen |= {"pads": [m.between(0, 2) for _ in range(2 * inner)]}
        chosen |= {"output_padding": [m.between(0, s - 1) for s in strides]} if m.flip() else {}
    elif way == "shape":
        chosen |= {"output_shape": [n * s for n, s in zip(like.shape[2:], strides, strict=True)]}
    elif way == "same":
        chosen |= {"auto_pad": m.choose(("SAME_UPPER", "SAME_LOWER", "VALID"))}
        chosen |= {"strides": [min(s, t) for s, t in zip(strides, taps, strict=True)]}  # docs/disagreements.md
    m.attempt(
        "ConvTranspose", [x, w, *([m.weight(like.dtype, (w_channels(m, w, group),))] if m.flip() else [])], **chosen
    )


def w_channels(m: TrialModel, w: str, group: int) -> int:
    """Channels of the result of a transposed convolution."""
    return int(m.values[w].shape[1]) * group


def recurrence(m: TrialModel) -> None:
    """A recurrent op with lengths, states, a peephole, a clip, other activations, or the batch first."""
    x = m.pick("f", 3, 3, dtype=F32)
    first, second, width = m.values[x].shape
    layout = int(m.flip(0.2))
    steps, batch = (second, first) if layout else (first, second)
    op, hidden = m.choose(("LSTM", "GRU", "RNN")), m.between(1, 6)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    direction = m.choose(("forward", "reverse", "bidirectional"))
    sides, scale = (2 if direction == "bidirectional" else 1), 1 / math.sqrt(max(hidden, width, 1))
    state = (batch, sides, hidden) if layout else (sides, batch, hidden)
    lengths = m.constant(m.numbers.integers(1, steps + 1, batch), I32) if m.flip(0.4) else ""
    operands = [
        x,
        m.weight(F32, (sides, gates * hidden, width), scale),
        m.weight(F32, (sides, gates * hidden, hidden), scale),
        m.weight(F32, (sides, 2 * gates * hidden), 0.3) if m.flip() else "",
        lengths,
        m.weight(F32, state) if m.flip() else "",
    ]
    if op == "LSTM":
        operands += [
            m.weight(F32, state) if m.flip() else "",
            m.weight(F32, (sides, 3 * hidden)) if m.flip(0.3) else "",
        ]
    chosen = {"layout": layout} if layout else {}
    chosen |= {"clip": 0.7} if m.flip(0.2) else {}
    chosen |= {"linear_before_reset": m.between(0, 1)} if op == "GRU" else {}
    if m.flip(0.3):
        each = {"LSTM": ["Sigmoid", "Tanh", "Softsign"], "GRU": ["HardSigmoid", "Tanh"], "RNN": ["Relu"]}[op]
        chosen |= {"activations": each * sides}
    m.attempt(
        op, operands, outputs=m.between(1, 3 if op == "LSTM" else 2), hidden_size=hidden, direction=direction, **chosen
    )


STEERED: dict[Layer, float] = {
    steered: 5,
    sized_by_data: 1,
    emptied: 1.2,
    scalar: 2,
    whole_numbers: 3,
    selected: 1.5,
    quantized_block: 2,
    transposed_conv: 1.5,
    recurrence: 1,
}
"""Layer -> its share."""
