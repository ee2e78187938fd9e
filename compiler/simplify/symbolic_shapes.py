"""Symbolic shape inference: one rule per op.

Invariant: a derived shape holds for every input that the model accepts; an axis that a rule cannot derive is a new
symbol named after the tensor; a rule that cannot derive the rank returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ppuc.compiler.simplify.model import ModelGraph, Node, Shape
from ppuc.compiler.simplify.symbolic_sizes import (
    Poly,
    Size,
    add,
    broadcast_shapes,
    divide,
    multiply,
    not_negative,
    product,
    subtract,
    symbol,
)
from ppuc.compiler.simplify.symbolic_values import axes_of, clamp, ints, known, known_list, slice_parameters

UNARY = frozenset(
    {
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitwiseNot", "Cast", "Ceil",
        "Celu", "Clip", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "IsInf",
        "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization",
        "MeanVarianceNormalization", "Mish", "Neg", "Not", "PRelu", "QuantizeLinear", "RMSNormalization",
        "Reciprocal", "Relu", "ReverseSequence", "Round", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shrink",
        "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
        "ThresholdedRelu", "Trilu",
    }
)  # fmt: skip
"""Ops whose first output has the shape of their first input."""

BROADCASTING = frozenset(
    {
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
        "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum",
        "Where", "Xor",
    }
)  # fmt: skip
"""Elementwise ops of several operands."""

ShapeRule = Callable[[ModelGraph, Node], Sequence[Shape | None] | Shape | None]
SHAPES: dict[str, ShapeRule] = {}


def shape_rule(*ops: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the rule that derives the output shapes of `ops`: one shape for the first output, or a list for all
    outputs."""

    def register(rule: ShapeRule) -> ShapeRule:
        SHAPES.update(dict.fromkeys(ops, rule))
        return rule

    return register


# Shapes


@shape_rule("MatMul")
def _matmul(g: ModelGraph, node: Node) -> Shape | None:
    a, b = g.shape(node.inputs[0]), g.shape(node.inputs[1])
    if a is None or b is None or not a or not b:
        return None
    batch = broadcast_shapes(a[:-2], b[:-2])
    if batch is None:
        return None
    return (*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))


@shape_rule("Gemm")
def _gemm(g: ModelGraph, node: Node) -> Shape | None:
    a, b = g.shape(node.inputs[0]), g.shape(node.inputs[1])
    if a is None or b is None:
        return None
    return (a[1] if node.attr("transA", 0) else a[0], b[0] if node.attr("transB", 0) else b[1])


@shape_rule("Transpose")
def _transpose(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    return None if x is None else tuple(x[p] for p in node.attr("perm", list(range(len(x)))[::-1]))


@shape_rule("Reshape")
def _reshape(g: ModelGraph, node: Node) -> Shape | None:
    x, target = g.shape(node.inputs[0]), known(g, node.inputs[1])
    if target is None or target.ndim != 1:
        length = g.shape(node.inputs[1])
        if length is None or len(length) != 1 or not isinstance(length[0], int):
            return None
        return tuple(symbol(f"{node.outputs[0]}:{i}") for i in range(length[0]))
    copies = not node.attr("allowzero", 0)
    sizes: list[Size | None] = []
    for i, v in enumerate(target):
        is_copy = v == 0 and isinstance(v, int) and copies
        sizes.append((x[i] if x is not None and i < len(x) else None) if is_copy else v)
    wild = [i for i, s in enumerate(sizes) if s == -1]
    if len(wild) == 1 and x is not None and all(s is not None for s in sizes):
        rest = product(tuple(s for i, s in enumerate(sizes) if i != wild[0] and s is not None))
        sizes[wild[0]] = divide(product(x), rest)
    return tuple(
        symbol(f"{node.outputs[0]}:{i}") if s is None or s == -1 or not not_negative(s) else s
        for i, s in enumerate(sizes)
    )


@shape_rule("Flatten")
def _flatten(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    axis = node.attr("axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return (product(x[:axis]), product(x[axis:]))


@shape_rule("Squeeze")
def _squeeze(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    axes = axes_of(g, node, 1, len(x))
    if axes is None:
        if node.input(1) or not all(isinstance(s, int) for s in x):
            return None
        axes = [i for i, s in enumerate(x) if s == 1]
    return tuple(s for i, s in enumerate(x) if i not in axes)


@shape_rule("Unsqueeze")
def _unsqueeze(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    axes = node.attr("axes")
    axes = ints(g, node.input(1)) if axes is None else axes
    if x is None or axes is None:
        return None
    rank = len(x) + len(axes)
    new, rest = {a % rank for a in axes}, iter(x)
    return tuple(1 if i in new else next(rest) for i in range(rank))


@shape_rule("Concat")
def _concat(g: ModelGraph, node: Node) -> Shape | None:
    shapes = [g.shape(n) for n in node.inputs]
    known_shapes = [s for s in shapes if s is not None]
    if len(known_shapes) < len(shapes):
        return None
    first = list(known_shapes[0])
    axis = node.attr("axis") % len(first)
    for i in range(len(first)):  # an axis known for one input is known for all
        if i != axis:
            first[i] = next((s[i] for s in known_shapes if isinstance(s[i], int)), first[i])
    first[axis] = 0
    for s in known_shapes:
        first[axis] = add(first[axis], s[axis])
    return tuple(first)


@shape_rule("Split")
def _split(g: ModelGraph, node: Node) -> Sequence[Shape | None] | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    axis = node.attr("axis", 0) % len(x)
    sizes = node.attr("split")
    sizes = known_list(g, node.input(1)) if sizes is None and node.input(1) else sizes
    if sizes is None:
        each = divide(x[axis], len(node.outputs)) if not node.input(1) else None
        if each is None:
            return None
        sizes = [each] * len(node.outputs)
    return [(*x[:axis], s, *x[axis + 1 :]) for s in sizes]


@shape_rule("Slice")
def _slice(g: ModelGraph, node: Node) -> Shape | None:
    x, parameters = g.shape(node.inputs[0]), slice_parameters(g, node)
    if x is None:
        return None
    sizes: list[Size] = list(x)
    if parameters is None:
        return tuple(symbol(f"{node.outputs[0]}:{i}") for i in range(len(x)))
    for start, end, axis, step in zip(*parameters, strict=True):
        length = _slice_length(x[axis], start, end, step)
        sizes[axis] = symbol(f"{node.outputs[0]}:{axis}") if length is None else length
    return tuple(sizes)


def _slice_length(size: Size, start: Size | None, end: Size | None, step: int) -> Size | None:
    if start is None or end is None:
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step != 1:
        return None
    begin, stop = clamp(start, size), clamp(end, size)
    length = None if begin is None or stop is None else subtract(stop, begin)
    return length if length is not None and not_negative(length) else None


@shape_rule("Gather")
def _gather(g: ModelGraph, node: Node) -> Shape | None:
    x, i = g.shape(node.inputs[0]), g.shape(node.inputs[1])
    if x is None or i is None:
        return None
    axis = node.attr("axis", 0) % len(x)
    return (*x[:axis], *i, *x[axis + 1 :])


@shape_rule("GatherElements")
def _gather_elements(g: ModelGraph, node: Node) -> Shape | None:
    return g.shape(node.inputs[1])


@shape_rule("Expand")
def _expand(g: ModelGraph, node: Node) -> Shape | None:
    x, target = g.shape(node.inputs[0]), known_list(g, node.inputs[1])
    return None if x is None or target is None else broadcast_shapes(x, tuple(target))


@shape_rule("Tile")
def _tile(g: ModelGraph, node: Node) -> Shape | None:
    x, repeats = g.shape(node.inputs[0]), known_list(g, node.inputs[1])
    if x is None or repeats is None:
        return None
    return tuple(multiply(s, r) for s, r in zip(x, repeats, strict=True))


@shape_rule("Shape")
def _shape(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    return None if x is None else (len(x[slice(node.attr("start", 0), node.attr("end"))]),)


@shape_rule("Size")
def _size(g: ModelGraph, node: Node) -> Shape | None:
    return ()


@shape_rule("ConstantOfShape")
def _constant_of_shape(g: ModelGraph, node: Node) -> Shape | None:
    found = known_list(g, node.inputs[0])
    return None if found is None else tuple(found)


@shape_rule("Range")
def _range(g: ModelGraph, node: Node) -> Shape | None:
    numbers = [known_list(g, n) for n in node.inputs]
    if any(n is None for n in numbers):
        return None
    (start,), (limit,), (delta,) = (n for n in numbers if n is not None)
    length = subtract(limit, start)
    return (length,) if delta == 1 and not_negative(length) else None


@shape_rule("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum")
@shape_rule("ReduceLogSumExp", "ReduceSumSquare")
def _reduce(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    axes = axes_of(g, node, 1, len(x))
    if axes is None:
        if node.input(1) or node.attr("noop_with_empty_axes", 0):
            return None
        axes = list(range(len(x)))
    keep = node.attr("keepdims", 1)
    return tuple(1 if i in axes else s for i, s in enumerate(x) if keep or i not in axes)


@shape_rule("ArgMax", "ArgMin")
def _arg(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    axis, keep = node.attr("axis", 0) % len(x), node.attr("keepdims", 1)
    return tuple(1 if i == axis else s for i, s in enumerate(x) if keep or i != axis)


@shape_rule("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
def _window(g: ModelGraph, node: Node) -> Sequence[Shape | None] | Shape | None:
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    channels = x[1]
    kernel: Sequence[Size] | None = node.attr("kernel_shape")
    if node.op == "Conv":
        w = g.shape(node.inputs[1])
        if w is None:
            return None
        channels, kernel = w[0], w[2:]
    spatial = x[2:]
    if node.op.startswith("Global"):
        return (x[0], channels, *(1 for _ in spatial))
    fresh = [symbol(f"{node.outputs[0]}:{i + 2}") for i in range(len(spatial))]
    sizes = [_window_size(node, i, s, kernel, fresh[i]) for i, s in enumerate(spatial)]
    shape = (x[0], channels, *sizes)
    return [shape] * len(node.outputs)


def _window_size(node: Node, i: int, size: Size, kernel: Sequence[Size] | None, fresh: Poly) -> Size:
    """The output size of a window that preserves sizes (stride 1, padding that compensates for the window), else
    `fresh`. Other static sizes come from ONNX's shape inference."""
    if kernel is None or node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        return fresh
    rank = len(kernel)
    stride, dilation = node.attr("strides", [1] * rank)[i], node.attr("dilations", [1] * rank)[i]
    pads, extent = node.attr("pads", [0] * 2 * rank), kernel[i]
    if stride != 1 or not isinstance(extent, int):
        return fresh
    return add(size, pads[i] + pads[i + rank] - dilation * (extent - 1))


@shape_rule("Pad")
def _pad(g: ModelGraph, node: Node) -> Shape | None:
    x = g.shape(node.inputs[0])
    pads = node.attr("pads") if g.opset < 11 else ints(g, node.input(1))
    if x is None or pads is None or node.input(3) or len(pads) != 2 * len(x):
        return None
    return tuple(add(s, pads[i] + pads[i + len(x)]) for i, s in enumerate(x))
