"""Shapes and integer values of tensors, with the model's symbols in them.

Invariant: what a rule derives holds for every input that the model accepts; where a rule does not know, the static sizes
of ONNX's own shape inference count, and an axis that nobody knows is a symbol of its own, named after the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from ppuc.compiler.frontend.model_graph import ModelGraph, Node, Shape
from ppuc.compiler.frontend.sizes import (
    Poly,
    Size,
    add,
    broadcast_shapes,
    divide,
    multiply,
    not_negative,
    positive,
    product,
    subtract,
    symbol,
)

MOST_VALUES = 64
"""Elements of the largest integer tensor whose values are followed."""

UNARY = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh CumSum Dropout Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LRN LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not PRelu "
    "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu Trilu BatchNormalization InstanceNormalization LayerNormalization GroupNormalization "
    "RMSNormalization ScatterND ScatterElements QuantizeLinear DequantizeLinear ReverseSequence Scatter "
    "MeanVarianceNormalization".split()
)
"""Ops whose first output has the shape of their first input."""

BROADCASTING = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor BitShift Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod "
    "Mul Or Pow Sub Sum Where Xor".split()
)

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)

ShapeRule = Callable[[ModelGraph, Node], Sequence[Shape | None] | Shape | None]
_SHAPES: dict[str, ShapeRule] = {}


def shape_rule(*ops: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the rule that derives output shapes: one shape for the first output, or a list for all."""

    def register(rule: ShapeRule) -> ShapeRule:
        _SHAPES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def infer(g: ModelGraph, static: Mapping[str, tuple[int, Sequence[int | None] | None]]) -> None:
    """Fill `g.types` and `g.values` for all nodes. `static` is what ONNX's shape inference found by name."""
    g.values = {}
    for name, constant in g.constants.items():
        g.types[name] = (constant.dtype, constant.shape)
    for node in g.nodes:
        infer_node(g, node, static)


def infer_node(
    g: ModelGraph, node: Node, static: Mapping[str, tuple[int, Sequence[int | None] | None]] | None = None
) -> None:
    """Types and values of one node's outputs."""
    derived = _derived(g, node)
    for i, name in enumerate(node.outputs):
        if not name:
            continue
        elem, known = (static or {}).get(name, (g.dtype(name), None))
        shape = derived[i] if i < len(derived) else None
        if shape is None and known is not None:
            shape = tuple(symbol(f"{name}:{axis}") if size is None else size for axis, size in enumerate(known))
        elif shape is not None and known is not None and len(known) == len(shape):
            shape = tuple(s if k is None else k for s, k in zip(shape, known, strict=True))
        g.types[name] = (elem or g.dtype(name), shape if shape is not None else g.shape(name))
    value = value_of(g, node)
    if value is not None and value.size <= MOST_VALUES:
        g.values[node.outputs[0]] = value


def _derived(g: ModelGraph, node: Node) -> Sequence[Shape | None]:
    if node.domain:
        return ()
    if node.op in UNARY:
        return (g.shape(node.input(0)),)
    if node.op in BROADCASTING:
        shapes = [g.shape(n) for n in node.inputs]
        known = [s for s in shapes if s is not None]
        return (broadcast_shapes(*known) if len(known) == len(shapes) else None,)
    rule = _SHAPES.get(node.op)
    try:
        found = rule(g, node) if rule is not None else None
    except (IndexError, ValueError, TypeError):  # malformed for the rule: nothing is known
        return ()
    if found is None:
        return ()
    return found if isinstance(found, list) else (found,)  # type: ignore[return-value] # a tuple is one shape


def known(g: ModelGraph, name: str) -> np.ndarray | None:
    """The integer values of a tensor: object array of int, Poly or None; None when nothing is known."""
    if name in g.values:
        return g.values[name]
    constant = g.constants.get(name)
    if constant is None or constant.dtype not in _INTEGERS or constant.elements > MOST_VALUES:
        return None
    return np.array([int(v) for v in constant.array.flat] or [], object).reshape(constant.shape)


def known_list(g: ModelGraph, name: str) -> list[Size] | None:
    """All values of a tensor of rank 0 or 1; None unless every one is known."""
    value = known(g, name) if name else None
    if value is None or value.ndim > 1:
        return None
    found = [v for v in value.reshape(-1) if v is not None]
    return found if len(found) == value.size else None


def ints(g: ModelGraph, name: str) -> list[int] | None:
    """As known_list, when all of them are numbers."""
    found = known_list(g, name)
    return [int(v) for v in found] if found is not None and all(isinstance(v, int) for v in found) else None  # type: ignore[arg-type]


def axes_of(g: ModelGraph, node: Node, index: int, rank: int) -> list[int] | None:
    """Attribute `axes`, or the input that took its place; non-negative, and None when unknown."""
    found = node.attr("axes")
    if found is None and node.input(index):
        found = ints(g, node.input(index))
        if found is None:
            return None
    return None if found is None else [a % rank for a in found] if rank else []


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
    for i in range(len(first)):  # an axis that one input knows is known
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


def slice_parameters(g: ModelGraph, node: Node) -> tuple[list[Size | None], list[Size | None], list[int], list[int]] | None:
    """Starts and ends (None where unknown), axes (non-negative) and steps of a Slice; None when its axes or steps are not
    known."""
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    if g.opset < 10:
        starts, ends = node.attr("starts"), node.attr("ends")
        axes, steps = node.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        low, high = known(g, node.input(1)), known(g, node.input(2))
        if low is None or high is None:
            return None
        starts, ends = list(low.reshape(-1)), list(high.reshape(-1))
        axes = ints(g, node.input(3)) if node.input(3) else list(range(len(starts)))
        steps = ints(g, node.input(4)) if node.input(4) else [1] * len(starts)
        if axes is None or steps is None:
            return None
    return starts, ends, [a % len(x) for a in axes], steps


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


def clamp(position: Size, size: Size) -> Size | None:
    """A start or end of a Slice of step 1 as a number between 0 and `size`; None when that depends on the symbols."""
    if isinstance(position, int) and position >= 2**31 - 1:
        return size
    if isinstance(position, int) and position < 0:
        moved = add(size, position)
        return moved if not_negative(moved) else None
    if not not_negative(position):
        return None
    if not_negative(subtract(size, position)):
        return position
    return size if not_negative(subtract(position, size)) else None


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


@shape_rule(*(f"Reduce{k}" for k in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()))
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
    """Only what keeps sizes: stride 1 and pads that make up for the window. Other static sizes come from ONNX."""
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


# Values

_Element = Size | None
_ARITHMETIC: dict[str, Callable[[Size, Size], _Element]] = {
    "Add": add,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Equal": lambda a, b: _equal(a, b),
    "Greater": lambda a, b: _greater(a, b),
    "Less": lambda a, b: _greater(b, a),
    "GreaterOrEqual": lambda a, b: _inverse(_greater(b, a)),
    "LessOrEqual": lambda a, b: _inverse(_greater(a, b)),
    "Max": lambda a, b: _larger(a, b, 1),
    "Min": lambda a, b: _larger(a, b, -1),
    "And": lambda a, b: a and b if isinstance(a, int) and isinstance(b, int) else None,
    "Or": lambda a, b: a or b if isinstance(a, int) and isinstance(b, int) else None,
}


def _equal(a: Size, b: Size) -> _Element:
    if a == b:
        return 1
    distinct = positive(subtract(a, b)) or positive(subtract(b, a))
    return 0 if distinct else None


def _greater(a: Size, b: Size) -> _Element:
    if positive(subtract(a, b)):
        return 1
    return 0 if not_negative(subtract(b, a)) else None


def _inverse(a: _Element) -> _Element:
    return None if a is None else 1 - a if isinstance(a, int) else None


def _larger(a: Size, b: Size, sign: int) -> _Element:
    if not_negative(multiply(subtract(a, b), sign)):
        return a
    return b if not_negative(multiply(subtract(b, a), sign)) else None


def value_of(g: ModelGraph, node: Node) -> np.ndarray | None:
    """The integer values of the node's output, None when nothing is known of them."""
    if node.domain or len(node.outputs) != 1:
        return None
    if node.op == "Shape":
        x = g.shape(node.inputs[0])
        return None if x is None else _objects(x[slice(node.attr("start", 0), node.attr("end"))])
    if node.op == "Size":
        x = g.shape(node.inputs[0])
        return None if x is None else _objects([product(x)]).reshape(())
    if g.dtype(node.outputs[0]) not in _INTEGERS:
        return None
    operands = [known(g, n) if n else None for n in node.inputs]
    try:
        return _computed(g, node, operands)
    except (IndexError, ValueError, TypeError):  # malformed: nothing is known
        return None


def _objects(values: Sequence[Size | None]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _computed(g: ModelGraph, node: Node, operands: Sequence[np.ndarray | None]) -> np.ndarray | None:
    given = [v for v in operands if v is not None]
    if node.op == "Concat":
        parts = [_unknown(g, n) if v is None else v for n, v in zip(node.inputs, operands, strict=True)]
        return None if any(p is None for p in parts) else np.concatenate(parts, node.attr("axis"))  # type: ignore[arg-type]
    if node.op == "ConstantOfShape":
        shape, fill = ints(g, node.inputs[0]), node.attr("value")
        if shape is None or product(tuple(shape)) > MOST_VALUES:  # type: ignore[operator]
            return None
        return np.full(shape, 0 if fill is None else int(onnx.numpy_helper.to_array(fill).reshape(-1)[0]), object)
    if not operands or operands[0] is None:
        return None
    x = operands[0]
    if node.op in ("Identity", "Cast"):
        return x if g.dtype(node.inputs[0]) in _INTEGERS and node.attr("to") != onnx.TensorProto.BOOL else None
    if node.op in ("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand"):
        return _viewed(g, node, x)
    if node.op == "Gather" and len(given) == 2:
        return np.asarray(np.take(x, given[1].astype(np.int64), node.attr("axis", 0)), object)
    if node.op == "Slice":
        return _sliced(g, node, x)
    if node.op == "Where" and len(given) == 3:
        return _elementwise(lambda c, a, b: (a if c else b) if isinstance(c, int) else None, *given)
    if node.op == "Not":
        return _elementwise(_inverse, x)
    if node.op == "Neg":
        return _elementwise(lambda a: multiply(a, -1), x)
    if node.op == "ReduceProd" and x.ndim == 1 and all(v is not None for v in x):
        return _objects([product(tuple(x))]).reshape((1,) if node.attr("keepdims", 1) else ())
    if node.op in _ARITHMETIC and len(given) == 2 == len(node.inputs):
        return _elementwise(_ARITHMETIC[node.op], *given)
    return None


def _unknown(g: ModelGraph, name: str) -> np.ndarray | None:
    """All elements unknown, of the tensor's static shape."""
    shape = g.shape(name)
    if shape is None or not all(isinstance(s, int) for s in shape) or product(shape) > MOST_VALUES:  # type: ignore[operator]
        return None
    return np.full(shape, None, object)  # type: ignore[arg-type]


def _viewed(g: ModelGraph, node: Node, x: np.ndarray) -> np.ndarray | None:
    shape = g.shape(node.outputs[0])
    if shape is None or not all(isinstance(s, int) for s in shape):
        return None
    return np.broadcast_to(x, shape) if node.op == "Expand" else x.reshape(shape)  # type: ignore[arg-type]


def _sliced(g: ModelGraph, node: Node, x: np.ndarray) -> np.ndarray | None:
    parameters = slice_parameters(g, node)
    if parameters is None:
        return None
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(*parameters, strict=True):
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        index[axis] = slice(start, end if step > 0 or end > -(2**31) else None, step)
    return x[tuple(index)]


def _elementwise(function: Callable[..., _Element], *operands: np.ndarray) -> np.ndarray:
    """`function` over broadcast operands; unknown wherever one of them is."""
    spread = np.broadcast_arrays(*operands)
    flat = [
        None if any(v is None for v in items) else function(*items)
        for items in zip(*(a.reshape(-1) for a in spread), strict=True)
    ]
    return _objects(flat).reshape(spread[0].shape)
