"""ONNX models for run-time compilation: models with input types from a run, and bodies of control flow as separate
models.

Invariant: a separate body computes the same as inside its node; outer tensors become inputs, known ones constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.frontend.order import captured
from ppuc.compiler.frontend.source import normal_domain
from ppuc.compiler.frontend.tensors import proto_type
from ppuc.compiler.frontend.unrolling import CONTROL
from ppuc.ir.types import DType, TensorType

STRING = onnx.TensorProto.STRING


@dataclass(frozen=True, slots=True)
class Body:
    """A subgraph: `inputs` and `outputs` are its own, in order; `outer` are the outer tensors that it reads."""

    model: bytes
    inputs: tuple[str, ...]
    outer: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ControlNode:
    """An If, Loop or Scan. `inputs` are names, "" for an omitted one; `constants` are the known ones; `bodies` by
    attribute; `attributes` are the lists of ints of a Scan."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    bodies: Mapping[str, Body]
    attributes: Mapping[str, Sequence[int]]


def is_control(node: onnx.NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether a node is control flow that can be split into bodies; the Scan of opset 8, which scans batches,
    cannot."""
    old = node.op_type == "Scan" and opsets.get("", 1) < 9
    return normal_domain(node.domain) == "" and node.op_type in CONTROL and not old


def machine_type(value: object) -> TensorType | None:
    """The type of an array that the PPU can hold; None for other values."""
    if not isinstance(value, np.ndarray):
        return None
    try:
        dtype = DType.of(value.dtype)
    except KeyError:
        return None
    return TensorType(dtype, value.shape) if dtype is not DType.F64 else None


def typed(data: bytes, types: Mapping[str, TensorType]) -> onnx.ModelProto:
    """The model with these input types."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    for info in model.graph.input:
        info.type.CopyFrom(proto_type(types[info.name]))
    return model


def of_elements(data: bytes, arrays: Mapping[str, object]) -> bytes:
    """The model with the element types of `arrays` on its inputs, for evaluators that need them."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    for info in model.graph.input:
        array = arrays[info.name]
        if not info.type.WhichOneof("value") and isinstance(array, np.ndarray):
            text = array.dtype.kind in "OUS"
            info.type.tensor_type.elem_type = STRING if text else helper.np_dtype_to_tensor_dtype(array.dtype)
    return bytes(model.SerializeToString(deterministic=True))


def control_node(data: bytes) -> ControlNode:
    """The one node of a model."""
    model = onnx.ModelProto.FromString(data)
    (node,) = model.graph.node
    known = {t.name: t for t in model.graph.initializer}
    attributes = {a.name: list(a.ints) or [a.i] for a in node.attribute if not a.HasField("g")}
    return ControlNode(
        kind=node.op_type,
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        constants={n: numpy_helper.to_array(known[n]) for n in node.input if n in known},
        bodies={a.name: _body(a.g, known, model) for a in node.attribute if a.HasField("g")},
        attributes=attributes,
    )


def _body(graph: onnx.GraphProto, known: Mapping[str, onnx.TensorProto], model: onnx.ModelProto) -> Body:
    reads = sorted(captured(graph))
    outer = tuple(n for n in reads if n not in known)
    inputs = tuple(i.name for i in graph.input)
    outputs = tuple(o.name for o in graph.output)
    inner = helper.make_graph(
        list(graph.node),
        graph.name or "body",
        [onnx.ValueInfoProto(name=name) for name in (*inputs, *outer)],
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs)],
        [*graph.initializer, *(known[n] for n in reads if n in known)],
    )
    made = helper.make_model(inner, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.functions.extend(model.functions)
    return Body(made.SerializeToString(deterministic=True), inputs, outer, outputs)


__all__ = ["Body", "ControlNode", "control_node", "is_control", "machine_type", "of_elements", "typed"]
