"""Rewrites a bf16 model for ONNX Runtime on a CPU, which has no bf16 kernels: in f32 with rounding to bf16.

Invariant: every bf16 tensor of the model holds bf16 numbers in the widened one; each node computes in f32, and its
results are rounded once, like a kernel that accumulates in f32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.frontend.expose import NEWEST_IR, model_copy
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.shape_inference import infer_shapes

NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT
_TYPE_ATTRIBUTES = ("to", "dtype")
Types = Mapping[str, int]
"""Element type by tensor."""


def widened(source: str | Path | onnx.ModelProto, tensors: Iterable[str] = ()) -> tuple[bytes, frozenset[str]] | None:
    """The serialised model, with inner `tensors` as additional outputs, and the names of bf16 inputs and outputs; None
    for a model without bf16, or if ONNX's inference fails."""
    try:
        model = onnx.load(source) if isinstance(source, str | Path) else model_copy(source)
        model.ir_version = min(model.ir_version, NEWEST_IR)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = infer_shapes(model)
    except Exception:  # a damaged file, or a C++ error of onnx
        return None
    types = element_types(model.graph)
    if NARROW not in types.values():
        return None
    names = {o.name for o in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(n, types.get(n, TensorProto.UNDEFINED), None) for n in tensors if n not in names
    )
    narrow = frozenset(i.name for i in (*model.graph.input, *model.graph.output) if _is_narrow(i.type))
    _widen(model.graph, {})
    return bytes(model.SerializeToString()), narrow


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """ONNX element type by tensor, of those that the graph declares, infers or initializes."""
    infos = (*graph.input, *graph.output, *graph.value_info)
    found = {i.name: int(i.type.tensor_type.elem_type) for i in infos if i.type.HasField("tensor_type")}
    return found | {t.name: int(t.data_type) for t in graph.initializer}


def _is_narrow(type: onnx.TypeProto) -> bool:
    return type.HasField("tensor_type") and type.tensor_type.elem_type == NARROW


def _widen(graph: onnx.GraphProto, outer: Types) -> None:
    """Widen a graph and its subgraphs in place; `outer` are types of captured tensors."""
    types = {**outer, **element_types(graph)}
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for output in node.output:
            if not types.get(output) and node.input and types.get(node.input[0]) == NARROW:
                types[output] = NARROW  # of an op that inference does not know: ONNX Runtime's own keep the type
        for inner in subgraphs(node):
            _widen(inner, types)
        _widen_attributes(node)
        nodes.append(node)
        for at, output in enumerate(node.output):
            if output and types.get(output) == NARROW:
                exact, rounded = f"{output}:exact", f"{output}:bf16"
                node.output[at] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=NARROW))
                nodes.append(helper.make_node("Cast", [rounded], [output], to=WIDE))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]  # the field is emptied next
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for info in (*graph.input, *graph.output):
        _widen_type(info.type)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == NARROW:
            attribute.i = WIDE


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == NARROW:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widen_type(type: onnx.TypeProto) -> None:
    kind = type.WhichOneof("value")
    if kind == "tensor_type" and type.tensor_type.elem_type == NARROW:
        type.tensor_type.elem_type = WIDE
    elif kind in ("sequence_type", "optional_type"):
        _widen_type(getattr(type, kind).elem_type)
