"""Symbolic inference of types and integer values for all tensors of a graph.

Invariant: where no rule derives a shape, the static sizes of ONNX's shape inference are used, and an unknown axis gets
a new symbol named after the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppuc.compiler.simplify.model import ModelGraph, Node, Shape
from ppuc.compiler.simplify.symbolic_shapes import BROADCASTING, SHAPES, UNARY
from ppuc.compiler.simplify.symbolic_sizes import broadcast_shapes, symbol
from ppuc.compiler.simplify.symbolic_values import MOST_VALUES, value_of


def infer(g: ModelGraph, static: Mapping[str, tuple[int, Sequence[int | None] | None]]) -> None:
    """Fill `g.types` and `g.values` for all nodes. `static` is the result of ONNX's shape inference by name."""
    g.values = {}
    for name, constant in g.constants.items():
        g.types[name] = (constant.dtype, constant.shape)
    for node in g.nodes:
        infer_node(g, node, static)


def infer_node(
    g: ModelGraph, node: Node, static: Mapping[str, tuple[int, Sequence[int | None] | None]] | None = None
) -> None:
    """Infer types and values of one node's outputs."""
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
    rule = SHAPES.get(node.op)
    try:
        found = rule(g, node) if rule is not None else None
    except (IndexError, ValueError, TypeError):  # malformed: nothing can be derived
        return ()
    if found is None:
        return ()
    return found if isinstance(found, list) else (found,)  # type: ignore[return-value] # a tuple is one shape
