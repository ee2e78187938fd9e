"""Shapes and small constants of a model, by the names of its tensors.

Invariant: a shape or value is known only if all tensors of that name have it: branches may reuse a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain

import numpy as np
import onnx

from ppuc.compiler.frontend.conformance.findings import NodeSite
from ppuc.compiler.frontend.conformance.shape_rules import RULES
from ppuc.compiler.frontend.conformance.shaped_node import Shape, ShapedNode
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.source import normal_domain

STANDARD = ("", "ai.onnx.ml")
LARGEST_CONSTANT = 1024
"""Maximum elements of a constant control operand (a shape, an axis, a count, a scale, indices)."""
TYPES = onnx.TensorProto
CHANGE_OF_LENGTH = {"Identity": 0, "SequenceErase": -1, "SequenceInsert": 1}
"""Op -> how many more tensors its sequence has than the one it reads."""
STEERING = frozenset({TYPES.INT64, TYPES.INT32, TYPES.FLOAT, TYPES.DOUBLE, TYPES.STRING})


def shaped_nodes(inferred: onnx.ModelProto, sites: Iterable[NodeSite]) -> Iterator[ShapedNode]:
    """The `sites` outside functions that have shape rules, with operand shapes from `inferred`, the model after shape
    inference."""
    ruled = [
        s
        for s in sites
        if s.parameters is None and s.node.op_type in RULES and normal_domain(s.node.domain) in STANDARD
    ]
    if not ruled:
        return
    shapes, constants = _known(inferred.graph)
    infos = chain(inferred.graph.input, inferred.graph.value_info)
    types = {t.name: t.data_type for t in inferred.graph.initializer}
    types |= {i.name: i.type.tensor_type.elem_type for i in infos}
    lengths = _lengths(inferred.graph)
    for site in ruled:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in site.node.attribute}
        held = {i: constants[name] for i, name in enumerate(site.node.input) if name in constants}
        operands, results = ([shapes.get(name) for name in names] for names in (site.node.input, site.node.output))
        elements = [types.get(name, 0) for name in site.node.input]
        length = lengths.get(site.node.input[0]) if site.node.input else None
        yield ShapedNode(site, attributes, operands, held, results, elements, length)


def _lengths(graph: onnx.GraphProto) -> dict[str, int]:
    """Numbers of tensors in the sequences that the main graph builds."""
    lengths: dict[str, int] = {}
    for node in graph.node:
        if normal_domain(node.domain) != "" or not node.output:
            continue
        before = lengths.get(node.input[0]) if node.input else None
        if node.op_type in ("SequenceConstruct", "SequenceEmpty"):
            lengths[node.output[0]] = len(node.input)
        elif before is not None and node.op_type in CHANGE_OF_LENGTH:
            lengths[node.output[0]] = before + CHANGE_OF_LENGTH[node.op_type]
    return lengths


def _known(graph: onnx.GraphProto) -> tuple[dict[str, Shape], dict[str, np.ndarray]]:
    shapes: dict[str, Shape | None] = {}
    constants: dict[str, np.ndarray] = {}
    open_names: set[str] = set()  # defined twice, or overridable at run time
    todo = [graph]
    while todo:
        at = todo.pop()
        inputs = {i.name for i in at.input}
        for name, shape in _shapes(at):
            shapes[name] = shape if shapes.get(name, shape) == shape else None
        for name, tensor in _constants(at):
            if name in constants or name in inputs:
                open_names.add(name)
            elif _steers(tensor):
                with suppress(ValueError, TypeError):  # reading the tensor says more about it
                    constants[name] = onnx.numpy_helper.to_array(tensor)
        todo += chain.from_iterable(map(subgraphs, at.node))
    known = {name: value for name, value in constants.items() if name not in open_names}
    return {name: shape for name, shape in shapes.items() if shape is not None}, known


def _steers(tensor: onnx.TensorProto) -> bool:
    """Whether a constant is in the file and may be a control operand: a shape, an axis or a count."""
    small = tensor.data_type in STEERING and math.prod(tensor.dims) <= LARGEST_CONSTANT
    return small and tensor.data_location != onnx.TensorProto.EXTERNAL


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    for info in chain(graph.input, graph.value_info, graph.output):
        tensor = info.type.tensor_type
        if info.type.WhichOneof("value") == "tensor_type" and tensor.HasField("shape"):
            yield info.name, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    inputs = {i.name for i in graph.input}
    for name, dims in _constant_shapes(graph):
        if name not in inputs:
            yield name, dims


def _constant_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    for name, tensor in _constants(graph):
        yield name, tuple(tensor.dims)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.output:
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value" and a.HasField("t"))
