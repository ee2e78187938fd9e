"""Prepares models for the oracle: the same nodes, with chosen inner tensors as additional outputs.

Invariant: only the list of graph outputs changes, and external data stay in the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs on PyPI's protobuf

from ppuc.compiler.frontend.order import captured, subgraphs
from ppuc.ir.errors import ModelError

SIZES = ("Shape", "Size")
"""Ops whose results say nothing of elements."""
RESIZING = ("Resize", "Upsample")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
NEWEST_IR = 13
"""The newest IR version that all supported ONNX Runtime versions read."""


def symbols_of(source: str | Path | onnx.ModelProto) -> dict[str, tuple[str | None, ...]]:
    """Input or output -> the symbol of each axis as the model declares it; None for axes without one."""
    graph = model_copy(source).graph
    found = {}
    for info in (*graph.input, *graph.output):
        dims = info.type.tensor_type.shape.dim
        if any(d.dim_param for d in dims):
            found[info.name] = tuple(d.dim_param or None for d in dims)
    return found


def moved_by_inputs(source: str | Path | onnx.ModelProto, fixed: Collection[str]) -> set[str]:
    """Outputs of the model that depend on the elements of its inputs, and not on their sizes alone, nor on those that
    are `fixed`."""
    graph = model_copy(source).graph
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    reached = {i.name for i in graph.input} - weights - set(fixed)
    makers = {name: node for node in graph.node for name in node.output if name}
    for name in _in_order(makers, [o.name for o in graph.output]):
        node = makers[name]
        read = {*node.input, *(n for body in subgraphs(node) for n in captured(body))}
        if node.op_type not in SIZES and not read.isdisjoint(reached):
            reached.add(name)
    return {o.name for o in graph.output} & reached


def _in_order(makers: Mapping[str, onnx.NodeProto], wanted: Iterable[str]) -> Iterator[str]:
    """The tensors that nodes make for those that are wanted, each after what it is made of."""
    done, stack = set[str](), [(name, False) for name in wanted]
    while stack:
        name, ready = stack.pop()
        if ready:
            yield name
        elif name in makers and name not in done:
            done.add(name)
            inner = [n for body in subgraphs(makers[name]) for n in captured(body)]
            stack += [(name, True), *((n, False) for n in (*makers[name].input, *inner))]


def node_outputs(source: str | Path | onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Node name (`OpType_<index>` for an unnamed one) -> names of the tensors it defines, in the model's order."""
    nodes = model_copy(source).graph.node
    return {n.name or f"{n.op_type}_{i}": tuple(o for o in n.output if o) for i, n in enumerate(nodes)}


def nodes_with_inner(source: str | Path | onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes of the main graph that consist of others: with bodies, or calls of functions."""
    model = model_copy(source)
    functions = {(f.domain, f.name) for f in model.functions}
    nodes = [(n.name or f"{n.op_type}_{i}", n) for i, n in enumerate(model.graph.node)]
    return tuple(name for name, n in nodes if any(subgraphs(n)) or (n.domain, n.op_type) in functions)


def with_outputs(source: str | Path | onnx.ModelProto, names: tuple[str, ...]) -> bytes:
    """The serialised model with tensors `names` appended to its outputs. Raises ModelError for a model too large for
    one protobuf message (2 GB of embedded weights)."""
    model = model_copy(source)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:
        raise ModelError.of(
            str(source) if isinstance(source, str | Path) else model.graph.name,
            "is too large to compare layer by layer",
            got=str(error),
            expected="less than 2 GB of weights inside the file",
            hint="save the model with external data",
        ) from error


def model_copy(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """A mutable copy; external data stay in place."""
    if isinstance(source, str | Path):
        return onnx.load(source, load_external_data=False)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    return copy


def whole_bytes(source: str | Path | onnx.ModelProto) -> bytes:
    """The serialised model with all its weights embedded."""
    if isinstance(source, str | Path):
        return bytes(onnx.load(source).SerializeToString())
    return serialised(source)


def serialised(model: onnx.ModelProto) -> bytes:
    """Serialise a model in memory."""
    return bytes(model.SerializeToString())


def of_known_version(source: str | Path | onnx.ModelProto) -> bytes | None:
    """The model relabelled with the newest IR version that ONNX Runtime reads; None if it is not newer, or not a model.
    IR versions differ in what a file may hold besides the graph; opsets define the semantics of nodes."""
    try:
        model = model_copy(source)
    except DecodeError:
        return None
    if model.ir_version <= NEWEST_IR:
        return None
    model.ir_version = NEWEST_IR
    return serialised(model)


def moved_model(source: str | Path | onnx.ModelProto, move: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy of the model with embedded weights, with `move` applied to floats of more than one element, except scales
    that sizes depend on."""
    model = onnx.load(source) if isinstance(source, str | Path) else model_copy(source)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    _move(model.graph.node, model.graph.initializer, move)
    for function in model.functions:
        _move(function.node, (), move)
    return model


def _move(
    nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[onnx.TensorProto],
    move: Callable[[np.ndarray], np.ndarray],
) -> None:
    sizes = {name for node in nodes if node.op_type in RESIZING for name in node.input[1:]}
    tensors = [t for t in initializers if t.name not in sizes]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and sizes.isdisjoint(node.output):
                tensors.append(attribute.t)
            for inner in (attribute.g,) if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                _move(inner.node, inner.initializer, move)
    for tensor in tensors:
        if tensor.data_type in FLOATS and math.prod(tensor.dims) > 1:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(move(array.astype(np.float32)).astype(array.dtype), tensor.name)
            )
