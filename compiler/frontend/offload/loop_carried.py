"""Types of loop-carried tensors that do not change between trips.

ONNX's inference does not determine them, because a trip may change their shape. Most loops do not: if the body
preserves a tensor's type, given that all others keep theirs, the type holds in every trip (a fixpoint).

Invariant: a returned type holds after any number of trips, including none.
"""

from __future__ import annotations

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.offload.deferred import control_node
from ppuc.compiler.frontend.offload.hosting import HostNode, host_name, node_model, static_type, type_of
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.tensors import proto_type
from ppuc.ir.types import DType, TensorType


def carried_types(node: HostNode, functions: list[onnx.FunctionProto]) -> dict[str, onnx.TypeProto]:
    """Types of results of a Loop by their names in its proto, where known."""
    model = node_model([node], [], functions)
    loop = control_node(model.SerializeToString())
    body = loop.bodies["body"]
    given = {host_name(i.name): type_of(i) for i in node.inputs}
    carried = len(loop.inputs) - 2
    fixed = dict.fromkeys(body.inputs[:1], TensorType(DType.I64, ()))
    fixed |= dict.fromkeys(body.inputs[1:2], TensorType(DType.BOOL, ()))
    fixed |= {name: t for name in body.outer if (t := static_type(given[name])) is not None}
    names = zip(body.inputs[2:], loop.inputs[2:], strict=False)
    kept = {own: t for own, name in names if (t := static_type(given.get(name))) is not None}
    for _ in range(carried + 1):
        found = _inferred(body.model, {**fixed, **kept})
        ends = dict(zip(body.inputs[2:], body.outputs[1:], strict=False))
        stays = {own: t for own, t in kept.items() if found.get(ends[own]) == t}
        if stays == kept:
            break
        kept = stays
    results = dict(zip(body.inputs[2:], loop.outputs, strict=False))
    return {results[own]: proto_type(t) for own, t in kept.items() if results[own]}


def _inferred(data: bytes, types: dict[str, TensorType]) -> dict[str, TensorType]:
    """Static types of the outputs of a body whose inputs have these types."""
    model = onnx.ModelProto.FromString(data)
    for info in model.graph.input:
        if info.name in types:
            info.type.CopyFrom(proto_type(types[info.name]))
    try:
        found = infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    known = [*found.graph.output, *found.graph.value_info, *found.graph.input]
    return {i.name: t for i in known if (t := static_type(i.type)) is not None}


__all__ = ["carried_types"]
