"""Constant folding, common subexpression elimination and dead code elimination.

Invariant: a folded constant is what the ONNX reference implementation computes for the node.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from ppuc.compiler.simplify.model import Constant, ModelGraph, Node

MOST_FOLDED = 1 << 30
"""Maximum bytes of a constant that folding creates."""

LARGEST_COMPARED = 1 << 22
"""Maximum elements of constants that are compared by content."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def fold_constants(g: ModelGraph) -> bool:
    """Evaluate nodes with constant inputs, and replace integer tensors with known values by constants."""
    changed = False
    for node in g.live_nodes():
        if node.domain or node.has_graph or node.op in RANDOM or node.op in _KEPT:
            continue
        results = _known_values(g, node)
        if results is None and all(not n or n in g.constants for n in node.inputs):
            results = _evaluated(g, node)
        if results is not None:
            changed |= _put(g, node, results)
    return changed


def _known_values(g: ModelGraph, node: Node) -> list[np.ndarray] | None:
    value = g.values.get(node.outputs[0])
    dtype = g.dtype(node.outputs[0])
    if value is None or not dtype or any(not isinstance(v, int) for v in value.reshape(-1)):
        return None
    return [value.astype(np.int64).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))]


def _evaluated(g: ModelGraph, node: Node) -> list[np.ndarray] | None:
    """The results of the reference implementation; None if it fails, or if the results would be too large."""
    if node.op == "Constant":
        return None
    shape = g.shape(node.outputs[0])
    if shape is not None and all(isinstance(s, int) for s in shape):
        elements = int(np.prod([s for s in shape if isinstance(s, int)], dtype=np.float64))
        if elements * 4 > MOST_FOLDED:
            return None
    feeds = {n: g.constants[n].array for n in node.inputs if n}
    inputs = [onnx.helper.make_tensor_value_info(n, g.constants[n].dtype, None) for n in feeds]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.outputs if n]
    graph = onnx.helper.make_graph([node.to_proto()], "fold", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", g.opset)])
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # the reference raises any of numpy's errors; the node is then left unchanged
        return None
    if not all(isinstance(f, np.ndarray | np.generic) for f in found):  # a sequence, or an optional one
        return None
    arrays = [np.asarray(f) for f in found]
    expected = [g.dtype(n) for n in node.outputs if n]
    same = all(e in (0, onnx.helper.np_dtype_to_tensor_dtype(a.dtype)) for e, a in zip(expected, arrays, strict=True))
    return arrays if same else None


def _put(g: ModelGraph, node: Node, results: list[np.ndarray]) -> bool:
    """Replace a node by constants. A graph output must be defined by a node, so its node stays."""
    names = [n for n in node.outputs if n]
    if any(o.name in names for o in g.outputs):
        return False
    g.drop(node)
    for name, array in zip(names, results, strict=True):
        g.constants[name] = Constant(array)
        g.types[name] = (g.constants[name].dtype, g.constants[name].shape)
        g.values.pop(name, None)
    return True


def merge_equal_nodes(g: ModelGraph) -> bool:
    """Common subexpression elimination: replace a node by an earlier equal one (constants compare by value), or by one
    with equal, possibly symbolic, integer values."""
    changed = False
    seen: dict[object, Node] = {}
    for node in g.live_nodes():
        if node.has_graph or node.op in RANDOM:
            continue
        for key in filter(None, (_key(g, node), _value_key(g, node))):
            first = seen.get(key)
            if first is None or first.dead:
                seen[key] = node
            elif first is not node and _merge(g, node, first):
                changed = True
                break
    return changed


def _key(g: ModelGraph, node: Node) -> object:
    operands = tuple(_operand_key(g, n) for n in node.inputs)
    attributes = tuple(node.attributes[k].SerializeToString(deterministic=True) for k in sorted(node.attributes))
    return (node.op, node.domain, operands, attributes, len(node.outputs))


def _operand_key(g: ModelGraph, name: str) -> object:
    constant = g.constants.get(name)
    return name if constant is None or constant.elements > LARGEST_COMPARED else constant.key


def _value_key(g: ModelGraph, node: Node) -> object:
    value = g.values.get(node.outputs[0])
    if value is None or any(v is None for v in value.reshape(-1)):
        return None
    return ("value", g.dtype(node.outputs[0]), value.shape, tuple(value.reshape(-1)))


def _merge(g: ModelGraph, node: Node, first: Node) -> bool:
    if len(node.outputs) == 1:
        return g.replace(node, first.outputs[0])
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if any(n in g.pinned for n in node.outputs) or any(bool(a) != bool(b) for a, b in pairs):
        return False
    for old, new in pairs:
        for reader in g.consumers(old) if old else ():
            for i, name in enumerate(list(reader.inputs)):
                if name == old:
                    g.rewire(reader, i, new)
    g.drop(node)
    return True


def drop_unread(g: ModelGraph) -> bool:
    """Remove dead nodes and constants, and unread optional outputs at the end of a node's list."""
    changed = False
    for node in reversed(list(g.nodes)):
        if node.dead:
            continue
        unread = [not n or (n not in g.pinned and not g.consumers(n)) for n in node.outputs]
        if all(unread):
            g.drop(node)
            changed = True
    g.index()
    read = {n for node in g.nodes for n in node.inputs} | g.pinned
    g.constants = {n: c for n, c in g.constants.items() if n in read}
    return changed
