"""Rules for the shape arithmetic that remains when sizes are symbolic: merge several Shape nodes into one.

Invariant: no rule adds nodes; a tensor whose shape is read is defined before the reader.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from ppuc.compiler.simplify.model import ModelGraph, Node
from ppuc.compiler.simplify.rules.base import rule
from ppuc.compiler.simplify.symbolic import infer_node
from ppuc.compiler.simplify.symbolic_sizes import Poly, Size
from ppuc.compiler.simplify.symbolic_values import known_list


@rule("Add", "Cast", "Concat", "Div", "Expand", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze")
@rule("Where")
def part_of_a_shape(g: ModelGraph, node: Node) -> bool:
    """A vector of sizes of adjacent axes of some tensor -> Shape(tensor)[start:end]."""
    sizes = known_list(g, node.outputs[0]) if node.outputs[0] in g.values else None
    shape = g.shape(node.outputs[0])
    symbolic = sizes is not None and any(isinstance(s, Poly) for s in sizes)
    if g.opset < 15 or sizes is None or not symbolic or shape is None or len(shape) != 1:
        return False
    if g.dtype(node.outputs[0]) != onnx.TensorProto.INT64:
        return False
    found = _axes_with(g, node, sizes)
    if found is None:
        return False
    name, start, end = found
    g.rewrite(node, "Shape", [name], start=start, end=end)
    return True


@rule("Concat")
def shorter_shape(g: ModelGraph, node: Node) -> bool:
    """concat(shape(x)[0:1], shape(x)[1:2], c) -> concat(shape(x)[0:2], c)."""
    sizes = known_list(g, node.outputs[0]) if node.outputs[0] in g.values else None
    if g.opset < 15 or sizes is None or g.dtype(node.outputs[0]) != onnx.TensorProto.INT64:
        return False
    for i in range(len(node.inputs) - 1):
        pair = node.inputs[i : i + 2]
        parts = [known_list(g, n) for n in pair]
        shared = any(g.only_consumer(n) is None and n not in g.constants for n in pair)
        if parts[0] is None or parts[1] is None or shared:
            continue
        both = [*parts[0], *parts[1]]
        if all(isinstance(s, int) for s in both):
            merged = g.constant(np.array(both, np.int64), f"{node.outputs[0]}.part")
        else:
            found = _axes_with(g, node, both)
            if found is None:
                continue
            part = g.emit(node, "Shape", [found[0]], f"{node.outputs[0]}.part", start=found[1], end=found[2])
            infer_node(g, part)
            merged = part.outputs[0]
            g.types[merged] = (onnx.TensorProto.INT64, (len(both),))
        g.rewrite(node, "Concat", [*node.inputs[:i], merged, *node.inputs[i + 2 :]], axis=0)
        return True
    return False


def _axes_with(g: ModelGraph, node: Node, sizes: Sequence[Size]) -> tuple[str, int, int] | None:
    """A tensor defined before `node` (inputs are preferred) and adjacent axes of it with these sizes."""
    names = [i.name for i in g.inputs]
    for earlier in g.nodes:
        if earlier is node:
            break
        if not earlier.dead and not earlier.has_graph:
            names += [n for n in earlier.outputs if n]
    for name in names:
        shape = g.shape(name) or ()
        for start in range(len(shape) - len(sizes) + 1):
            if list(shape[start : start + len(sizes)]) == list(sizes):
                return name, start, start + len(sizes)
    return None
