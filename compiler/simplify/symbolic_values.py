"""Integer values of small tensors, with the model's symbols in them.

Invariant: what is derived holds for every input that the model accepts; an element that is not known is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from ppuc.compiler.simplify.model import ModelGraph, Node
from ppuc.compiler.simplify.symbolic_sizes import Size, add, divide, multiply, not_negative, positive, product, subtract

MOST_VALUES = 64
"""Maximum elements of an integer tensor whose values are tracked."""

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)


def known(g: ModelGraph, name: str) -> np.ndarray | None:
    """The integer values of a tensor: an object array of int, Poly or None; None if nothing is known."""
    if name in g.values:
        return g.values[name]
    constant = g.constants.get(name)
    if constant is None or constant.dtype not in _INTEGERS or constant.elements > MOST_VALUES:
        return None
    return np.array([int(v) for v in constant.array.flat] or [], object).reshape(constant.shape)


def known_list(g: ModelGraph, name: str) -> list[Size] | None:
    """All values of a tensor of rank 0 or 1; None unless all are known."""
    value = known(g, name) if name else None
    if value is None or value.ndim > 1:
        return None
    found = [v for v in value.reshape(-1) if v is not None]
    return found if len(found) == value.size else None


def ints(g: ModelGraph, name: str) -> list[int] | None:
    """All values of a tensor of rank 0 or 1; None unless all are known numbers."""
    found = known_list(g, name)
    return [int(v) for v in found] if found is not None and all(isinstance(v, int) for v in found) else None  # type: ignore[arg-type]


def axes_of(g: ModelGraph, node: Node, index: int, rank: int) -> list[int] | None:
    """The axes from attribute `axes` or input `index`, non-negative; None if unknown."""
    found = node.attr("axes")
    if found is None and node.input(index):
        found = ints(g, node.input(index))
        if found is None:
            return None
    return None if found is None else [a % rank for a in found] if rank else []


SliceParameters = tuple[list[Size | None], list[Size | None], list[int], list[int]]


def slice_parameters(g: ModelGraph, node: Node) -> SliceParameters | None:
    """Starts and ends (None where unknown), axes (non-negative) and steps of a Slice; None when its axes or steps are
    not known."""
    x = g.shape(node.inputs[0])
    if x is None:
        return None
    if g.opset < 10:
        starts, ends = node.attr("starts"), node.attr("ends")
        return starts, ends, [a % len(x) for a in node.attr("axes", range(len(starts)))], [1] * len(starts)
    low, high = known(g, node.input(1)), known(g, node.input(2))
    if low is None or high is None:
        return None
    axes = ints(g, node.input(3)) if node.input(3) else list(range(low.size))
    steps = ints(g, node.input(4)) if node.input(4) else [1] * low.size
    if axes is None or steps is None:
        return None
    return list(low.reshape(-1)), list(high.reshape(-1)), [a % len(x) for a in axes], steps


def clamp(position: Size, size: Size) -> Size | None:
    """A start or end of a Slice with step 1, clamped to 0..`size`; None if the result depends on the symbols."""
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
    """The integer values of the node's output; None if nothing is known."""
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
    except (IndexError, ValueError, TypeError):  # malformed: nothing can be derived
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
    """An array of unknown elements in the tensor's static shape."""
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
    """`function` applied to broadcast operands; an element is unknown if any of its operands is."""
    spread = np.broadcast_arrays(*operands)
    flat = [
        None if any(v is None for v in items) else function(*items)
        for items in zip(*(a.reshape(-1) for a in spread), strict=True)
    ]
    return _objects(flat).reshape(spread[0].shape)
