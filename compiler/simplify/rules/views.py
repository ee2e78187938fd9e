"""Rules for data movement: reshapes, transposes, expansions, slices, concatenations, pads and casts.

Symbolic shapes are kept unless a constant is equivalent for every size. Invariant: no rule adds nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from ppuc.compiler.simplify.model import ModelGraph, Node, Shape
from ppuc.compiler.simplify.rules.base import rule
from ppuc.compiler.simplify.symbolic_shapes import BROADCASTING
from ppuc.compiler.simplify.symbolic_sizes import Poly, broadcast_shapes, product
from ppuc.compiler.simplify.symbolic_values import axes_of, clamp, ints, slice_parameters

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def constant_target(x: Shape, target: Shape) -> list[int] | None:
    """The constant that reshapes `x` to `target`: numbers, 0 to copy `x`'s axis, -1 at most once; None if there is
    none."""
    found: list[int] = []
    for i, size in enumerate(target):
        if isinstance(size, int):
            found.append(size)
        else:
            found.append(0 if i < len(x) and x[i] == size else -1)
    if any(size == 0 for size in target) or found.count(-1) > 1:
        return None
    return found


# Views


@rule(*VIEWS)
def no_op_view(g: ModelGraph, node: Node) -> bool:
    """A view that keeps its operand's shape -> the operand."""
    x, y = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    return x is not None and x == y and g.replace(node, node.inputs[0])


@rule(*VIEWS)
def view_of_view(g: ModelGraph, node: Node) -> bool:
    """reshape(reshape(x)) -> reshape(x)."""
    inner = g.producer(node.inputs[0], *VIEWS)
    y = g.shape(node.outputs[0])
    if inner is None or y is None:
        return False
    x = g.shape(inner.inputs[0])
    target = constant_target(x, y) if x is not None else None
    if target is None:
        return False
    _reshape(g, node, inner.inputs[0], target)
    return True


@rule("Reshape")
def constant_reshape(g: ModelGraph, node: Node) -> bool:
    """A computed target shape -> an equivalent constant."""
    x, y = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    if node.inputs[1] in g.constants or x is None or y is None:
        return False
    target = constant_target(x, y)
    if target is None:
        return False
    _reshape(g, node, node.inputs[0], target)
    return True


def _reshape(g: ModelGraph, node: Node, x: str, target: Sequence[int]) -> None:
    g.rewrite(node, "Reshape", [x, g.constant(np.array(target, np.int64), f"{node.outputs[0]}.shape")])


@rule(*VIEWS, "Expand")
def view_before_broadcast(g: ModelGraph, node: Node) -> bool:
    """add(expand(x), y) -> add(x, y) where broadcasting does the same; likewise for leading axes of size 1."""
    if node.outputs[0] in g.pinned:
        return False
    x, name = g.shape(node.inputs[0]), node.outputs[0]
    readers = g.consumers(name)
    if x is None or not readers or any(not _broadcasts_alike(g, r, name, x) for r in readers):
        return False
    return g.replace(node, node.inputs[0])


def _broadcasts_alike(g: ModelGraph, reader: Node, name: str, x: Shape) -> bool:
    """Whether `reader` gives the same result if `name` has shape `x`, which differs only in leading axes of size 1 or
    repetitions."""
    viewed, result = g.shape(name), g.shape(reader.outputs[0])
    if reader.op not in BROADCASTING or reader.domain or viewed is None or result is None:
        return False
    short = x
    while short and short[0] == 1:
        short = short[1:]
    tail = viewed[len(viewed) - len(short) :] if short else ()
    if len(short) > len(viewed) or any(a not in (1, b) for a, b in zip(short, tail, strict=True)):
        return False
    shapes = [x if n == name else g.shape(n) for n in reader.inputs]
    if any(s is None for s in shapes):
        return False
    is_expand = g.producers[name].op == "Expand"
    if not is_expand and short != tuple(s for s in viewed[len(viewed) - len(short) :]):
        return False
    if not is_expand and product(x) != product(viewed):
        return False
    return broadcast_shapes(*(s for s in shapes if s is not None)) == result


@rule("Expand")
def no_op_expand(g: ModelGraph, node: Node) -> bool:
    """An expansion to its operand's shape -> the operand."""
    x, y = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    return x is not None and x == y and g.replace(node, node.inputs[0])


@rule("Expand")
def constant_expand(g: ModelGraph, node: Node) -> bool:
    """A computed target shape in which every symbolic axis is the operand's -> a constant with 1 for that axis."""
    x, y = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    if node.inputs[1] in g.constants or x is None or y is None:
        return False
    own = (*(1,) * (len(y) - len(x)), *x)
    target = [s if isinstance(s, int) else 1 for s in y]
    if any(isinstance(s, Poly) and s != o for s, o in zip(y, own, strict=True)):
        return False
    g.rewire(node, 1, g.constant(np.array(target, np.int64), f"{node.outputs[0]}.shape"))
    return True


@rule("Tile")
def no_op_tile(g: ModelGraph, node: Node) -> bool:
    """A tile with one repeat on every axis -> its operand."""
    repeats = ints(g, node.inputs[1])
    return repeats is not None and all(r == 1 for r in repeats) and g.replace(node, node.inputs[0])


# Transposes


def permutation(g: ModelGraph, node: Node) -> list[int] | None:
    """`perm` of a Transpose; None if it is omitted and the rank is unknown."""
    x = g.shape(node.inputs[0])
    perm = node.attr("perm")
    return perm if perm is not None else (None if x is None else list(range(len(x)))[::-1])


@rule("Transpose")
def transpose_of_transpose(g: ModelGraph, node: Node) -> bool:
    """transpose(transpose(x)) -> one transpose, or none."""
    perm, inner = permutation(g, node), g.producer(node.inputs[0], "Transpose")
    if perm is None:
        return False
    if perm == sorted(perm):
        return g.replace(node, node.inputs[0])
    first = permutation(g, inner) if inner is not None else None
    if inner is None or first is None:
        return False
    g.rewrite(node, "Transpose", inner.inputs, perm=[first[p] for p in perm])
    return True


@rule("Transpose")
def transpose_of_ones(g: ModelGraph, node: Node) -> bool:
    """A transpose that moves only axes of size 1 -> a reshape, which can be merged with other reshapes."""
    x, y, perm = g.shape(node.inputs[0]), g.shape(node.outputs[0]), permutation(g, node)
    if x is None or y is None or perm is None:
        return False
    moved = [p for p in perm if x[p] != 1]
    target = constant_target(x, y)
    if moved != sorted(moved) or target is None:
        return False
    neighbours = [g.producer(node.inputs[0], *VIEWS), *(n for n in g.consumers(node.outputs[0]) if n.op in VIEWS)]
    if not any(neighbours):
        return False
    _reshape(g, node, node.inputs[0], target)
    return True


# Slices, splits, concatenations, pads


@rule("Slice")
def no_op_slice(g: ModelGraph, node: Node) -> bool:
    """A slice of every axis from start to end -> its operand."""
    x, parameters = g.shape(node.inputs[0]), slice_parameters(g, node)
    if x is None or parameters is None:
        return False
    for start, end, axis, step in zip(*parameters, strict=True):
        if step != 1 or start is None or end is None:
            return False
        if clamp(start, x[axis]) != 0 or clamp(end, x[axis]) != x[axis]:
            return False
    return g.replace(node, node.inputs[0])


@rule("Slice")
def slice_of_slice(g: ModelGraph, node: Node) -> bool:
    """Two slices of different axes with constant parameters -> one slice."""
    inner = g.producer(node.inputs[0], "Slice")
    if inner is None or g.opset < 10 or g.only_consumer(node.inputs[0]) is None:
        return False
    both = []
    for s in (inner, node):
        parameters = slice_parameters(g, s)
        if parameters is None or not all(isinstance(v, int) for v in (*parameters[0], *parameters[1])):
            return False
        both.append(parameters)
    if set(both[0][2]) & set(both[1][2]):
        return False
    merged = [np.array([*both[0][k], *both[1][k]], np.int64) for k in range(4)]
    names = [g.constant(v, f"{node.outputs[0]}.{hint}") for v, hint in zip(merged, _SLICE_INPUTS, strict=True)]
    g.rewrite(node, "Slice", [inner.inputs[0], *names])
    return True


_SLICE_INPUTS = ("starts", "ends", "axes", "steps")


@rule("Concat")
def concat_of_one(g: ModelGraph, node: Node) -> bool:
    """A concatenation with one tensor that is not empty -> that tensor."""
    axis = node.attr("axis")
    shapes = [g.shape(n) for n in node.inputs]
    filled = [n for n, s in zip(node.inputs, shapes, strict=True) if s is None or s[axis] != 0]
    if len(filled) == 1:
        return g.replace(node, filled[0])
    if len(filled) == len(node.inputs) or not filled:
        return False
    g.rewrite(node, "Concat", filled, axis=axis)
    return True


@rule("Concat")
def concat_of_concat(g: ModelGraph, node: Node) -> bool:
    """concat(concat(a, b), c) -> concat(a, b, c)."""
    axis = node.attr("axis")
    rank = len(g.shape(node.outputs[0]) or ())
    for i, name in enumerate(node.inputs):
        inner = g.producer(name, "Concat")
        if inner is None or g.only_consumer(name) is not node or not rank:
            continue
        if inner.attr("axis") % rank == axis % rank:
            g.rewrite(node, "Concat", [*node.inputs[:i], *inner.inputs, *node.inputs[i + 1 :]], axis=axis)
            return True
    return False


@rule("Split")
def split_and_squeeze(g: ModelGraph, node: Node) -> bool:
    """split into single entries, each squeezed -> one gather for each."""
    shape = g.shape(node.outputs[0])
    axis = node.attr("axis", 0) % len(shape) if shape else 0
    entries: list[Node] = []
    for name in node.outputs:
        found, reader = g.shape(name), g.only_consumer(name)
        if found is None or found[axis] != 1 or reader is None or reader.op != "Squeeze":
            return False
        if axes_of(g, reader, 1, len(found)) != [axis]:
            return False
        entries.append(reader)
    x = node.inputs[0]
    for i, reader in enumerate(entries):
        index = g.constant(np.array(i, np.int64), f"{reader.outputs[0]}.index")
        g.rewrite(reader, "Gather", [x, index], axis=axis)
    return True


@rule("Pad")
def no_op_pad(g: ModelGraph, node: Node) -> bool:
    """A pad with zero widths -> its operand."""
    pads = node.attr("pads") if g.opset < 11 else ints(g, node.input(1))
    return pads is not None and not any(pads) and g.replace(node, node.inputs[0])


@rule("Conv", "MaxPool", "AveragePool")
def pad_into_window(g: ModelGraph, node: Node) -> bool:
    """conv(pad(x)) -> conv with those pads. A convolution pads with zeros, a maximum with the smallest number."""
    pad = g.producer(node.inputs[0], "Pad")
    if pad is None or pad.attr("mode", "constant") != "constant" or pad.input(3):
        return False
    pads = pad.attr("pads") if g.opset < 11 else ints(g, pad.input(1))
    fill = pad.attr("value", 0.0) if g.opset < 11 else (g.scalar(pad.input(2)) if pad.input(2) else 0.0)
    averages = node.op == "AveragePool" and not node.attr("count_include_pad", 0)
    wanted = -math.inf if node.op == "MaxPool" else 0.0
    if pads is None or fill != wanted or averages or node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        return False
    if node.op == "AveragePool" and node.attr("ceil_mode", 0):
        return False
    rank = len(pads) // 2
    if min(pads) < 0 or any(pads[i] or pads[i + rank] for i in range(2)):
        return False
    none = [0] * (2 * rank - 4)
    own = none if node.attr("auto_pad", "NOTSET") == "VALID" else node.attr("pads", none)
    total = [a + b for a, b in zip(own, [*pads[2:rank], *pads[rank + 2 :]], strict=True)]
    kernel = node.attr("kernel_shape") or (g.shape(node.inputs[1]) or ())[2:]
    if node.op != "Conv" and any(p >= k for p, k in zip(total, [*kernel, *kernel], strict=True)):
        return False  # ONNX Runtime rejects pooling windows that lie entirely in the padding
    node.set(auto_pad=None, pads=total)
    g.rewire(node, 0, pad.inputs[0])
    return True


# Casts


@rule("Cast")
def no_op_cast(g: ModelGraph, node: Node) -> bool:
    """A cast to its operand's type -> the operand."""
    return g.dtype(node.inputs[0]) == node.attr("to") and g.replace(node, node.inputs[0])


_WIDENING: dict[int, int] = {
    onnx.TensorProto.BOOL: 0, onnx.TensorProto.INT8: 1, onnx.TensorProto.INT16: 2, onnx.TensorProto.INT32: 3,
    onnx.TensorProto.INT64: 4,
}  # fmt: skip


@rule("Cast")
def cast_of_cast(g: ModelGraph, node: Node) -> bool:
    """cast(cast(x)) -> cast(x) if the inner cast is exact (to a wider type)."""
    inner = g.producer(node.inputs[0], "Cast")
    if inner is None:
        return False
    source, middle = g.dtype(inner.inputs[0]), g.dtype(node.inputs[0])
    widens = source in _WIDENING and middle in _WIDENING and _WIDENING[source] < _WIDENING[middle]
    half = source in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) and middle == onnx.TensorProto.FLOAT
    if not widens and not half and not (source == onnx.TensorProto.BOOL and middle == onnx.TensorProto.FLOAT):
        return False
    g.rewire(node, 0, inner.inputs[0])
    return True


# Identities


@rule("Identity", "Dropout")
def nothing(g: ModelGraph, node: Node) -> bool:
    """Identity, or Dropout in inference mode (training is an input from opset 12) -> its operand."""
    masked = any(n in g.pinned or g.consumers(n) for n in node.outputs[1:])
    if masked or (node.input(2) and (g.array(node.input(2)) is None or bool(g.array(node.input(2))))):
        return False
    return g.replace(node, node.inputs[0])
