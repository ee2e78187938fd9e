"""Nodes that the PPU cannot run, as ONNX for the host, with unique tensor names and result types.

A tensor of a hosted model is a Value (dense, with a static shape and an element type of the PPU) or a HostTensor, which
only the host can hold: strings, sequences, f64, shapes known only at run time. Nodes that read a HostTensor also run on
the host.

Invariant: names of Values and HostTensors are unique in a hosted model; host models use `host_name` instead of the
file's names, so names from different functions and subgraphs never collide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.frontend.expose import NEWEST_IR
from ppuc.compiler.frontend.inlining import Elsewhere
from ppuc.compiler.frontend.offload.reason import Reason
from ppuc.compiler.frontend.order import captured, subgraphs
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.source import OLDEST_OPSET, Source
from ppuc.compiler.frontend.tensors import ONNX_DTYPES, foreign, onnx_dtype, packed_range, proto_type, type_text
from ppuc.ir.graph import Value
from ppuc.ir.types import DType, TensorType

PREFIX = "ppuc:"
INFERENCE_ELEMENTS = 1 << 12
"""Larger constants do not determine shapes, so inference gets only their types."""
ALWAYS = f"{PREFIX}always"
"""The condition of a Loop that has none."""


@dataclass(frozen=True, slots=True)
class HostTensor(Elsewhere):
    """A tensor (or sequence, optional, map) that only the host holds. `type` is None if unknown; `constant` is set if
    the file gives its value."""

    name: str
    type: onnx.TypeProto | None = None
    constant: onnx.TensorProto | None = None

    def __str__(self) -> str:
        return type_text(self.type)


HostOperand = Value | HostTensor


@dataclass(frozen=True, slots=True)
class HostNode:
    """A node for the host. `proto` names tensors by `host_name`; `inputs` are the tensors it reads (including in
    subgraphs), `constants` the known ones. `opsets` are its opset versions. `deferred`: the PPU supports the op, and
    can compile it at run time, when its sizes are known. `refused` is why neither side can run it (None unless the
    model is only examined)."""

    proto: onnx.NodeProto
    label: str
    op: str
    reason: Reason
    opsets: Mapping[str, int]
    inputs: tuple[HostOperand, ...]
    constants: Mapping[str, onnx.TensorProto]
    outputs: tuple[HostOperand | None, ...]
    custom: bool = False
    deferred: bool = False
    refused: Reason | None = None


def host_name(name: str) -> str:
    """The name of a Value or HostTensor in host models."""
    return PREFIX + name


def renamed_node(node: onnx.NodeProto, names: Mapping[str, str], outputs: Sequence[str]) -> onnx.NodeProto:
    """A copy of `node` with tensors renamed, also in its subgraphs, and with new output names."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename_inputs(copy, names)
    del copy.output[:]
    copy.output.extend(outputs)
    if copy.op_type == "Loop" and (len(copy.input) < 2 or not copy.input[1]):
        _ignore_condition(next(subgraphs(copy)))
    return copy


def _ignore_condition(body: onnx.GraphProto) -> None:
    """Make the body of a Loop without a condition always continue, as specified: ONNX Runtime evaluates the body's
    condition regardless."""
    body.node.append(helper.make_node("Constant", [], [ALWAYS], value=numpy_helper.from_array(np.array(True))))
    body.output[0].name = ALWAYS


def _rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for at, name in enumerate(node.input):
        node.input[at] = names.get(name, name)
    for graph in subgraphs(node):
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        own |= {o for inner in graph.node for o in inner.output}
        visible = {old: new for old, new in names.items() if old not in own}
        for inner in graph.node:
            _rename_inputs(inner, visible)
        for output in graph.output:
            if output.name in visible:  # a subgraph may return an outer tensor directly
                fresh = f"{visible[output.name]}:returned"
                graph.node.append(helper.make_node("Identity", [visible[output.name]], [fresh]))
                output.name = fresh


def read_names(node: onnx.NodeProto) -> list[str]:
    """Outer tensors that a node reads, in order, including in subgraphs."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names += sorted(captured(graph))
    return list(dict.fromkeys(names))


def type_of(operand: HostOperand) -> onnx.TypeProto | None:
    """The ONNX type of a tensor."""
    return operand.type if isinstance(operand, HostTensor) else proto_type(operand.type)


def is_dense(info: onnx.ValueInfoProto) -> bool:
    """Whether the PPU can hold an input (or its declaration is empty, which is a separate error)."""
    kind = info.type.WhichOneof("value")
    element = info.type.tensor_type.elem_type
    known = element in TensorProto.DataType.values()
    return kind is None or (kind == "tensor_type" and not (known and foreign(element)) and not packed_range(element))


def innermost_element(type: onnx.TypeProto | None) -> int:
    """The ONNX element type of a tensor, or of the tensors in a sequence or optional; 0 if unknown."""
    kind = type.WhichOneof("value") if type is not None else None
    if type is None or kind not in ("tensor_type", "sequence_type", "optional_type"):
        return TensorProto.UNDEFINED
    return type.tensor_type.elem_type if kind == "tensor_type" else innermost_element(getattr(type, kind).elem_type)


def static_type(type: onnx.TypeProto | None) -> TensorType | None:
    """The dense type with a static shape that the PPU can hold; None if there is none."""
    if type is None or type.WhichOneof("value") != "tensor_type":
        return None
    tensor = type.tensor_type
    dtype = ONNX_DTYPES.get(tensor.elem_type)
    if dtype is None or dtype is DType.F64 or not tensor.HasField("shape"):
        return None
    if not all(d.HasField("dim_value") and d.dim_value >= 0 for d in tensor.shape.dim):
        return None
    return TensorType(dtype, tuple(int(d.dim_value) for d in tensor.shape.dim))


def may_be_dense(type: onnx.TypeProto | None) -> bool:
    """Whether a tensor of this type may, at run time, be one that the PPU can hold."""
    if type is None or type.WhichOneof("value") is None:
        return True
    dtype = ONNX_DTYPES.get(type.tensor_type.elem_type) if type.HasField("tensor_type") else None
    return dtype is not None and dtype is not DType.F64


def bound_type(type: onnx.TypeProto, symbols: Mapping[str, int]) -> onnx.TypeProto:
    """`type` with its symbols bound."""
    copy = onnx.TypeProto()
    copy.CopyFrom(type)
    for dim in copy.tensor_type.shape.dim if copy.HasField("tensor_type") else ():
        if dim.dim_param in symbols:
            dim.dim_value = symbols[dim.dim_param]
    return copy


def tensor_proto(array: np.ndarray, name: str) -> onnx.TensorProto:
    """An array of a PPU type as an ONNX constant."""
    proto = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
    assert proto.data_type == onnx_dtype(DType.of(array.dtype))
    return proto


def stored_proto(tensor: onnx.TensorProto, source: Source) -> onnx.TensorProto:
    """A constant of the file with its bytes loaded."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    if tensor.name in source.ranges and not tensor.HasField("raw_data") and source.path is not None:
        offset, length = source.ranges[tensor.name]
        copy.raw_data = np.memmap(source.path, np.uint8, "r", offset, (length,)).tobytes() if length else b""
    return copy


def node_model(
    nodes: Sequence[HostNode], outputs: Sequence[HostOperand], functions: Sequence[onnx.FunctionProto]
) -> onnx.ModelProto:
    """A model of `nodes` (with equal opsets) that computes `outputs`; its inputs are the tensors that they read but do
    not define."""
    defined = {o.name for node in nodes for o in node.outputs if o is not None}
    constants = {name: proto for node in nodes for name, proto in node.constants.items()}
    reads = {i.name: i for node in nodes for i in node.inputs}
    inputs = [i for name, i in reads.items() if name not in defined and name not in constants]
    graph = helper.make_graph(
        [node.proto for node in nodes],
        "host",
        [_info(i) for i in inputs],
        [_info(o) for o in outputs],
        [constants[name] for name in reads if name in constants],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(nodes[0].opsets.items())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version(nodes[0].opsets))
    model.functions.extend(functions)
    return model


def ir_version(opsets: Mapping[str, int]) -> int:
    """The IR version for models of an opset; ONNX Runtime refuses newer ones than it supports."""
    table: dict[tuple[str, int], int] = helper.OP_SET_ID_VERSION_MAP
    return min(max(table.get(("ai.onnx", max(opsets.get("", OLDEST_OPSET), OLDEST_OPSET)), 0), 8), NEWEST_IR)


def _info(operand: HostOperand) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=host_name(operand.name))
    type = type_of(operand)
    if type is not None:
        info.type.CopyFrom(type)
    return info


def inferred_types(
    node: HostNode, functions: Sequence[onnx.FunctionProto], strict: bool = False
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs of `node` by their names in its proto, as far as ONNX's inference finds them. With `strict`
    raises onnx.shape_inference.InferenceError for a node that breaks its op's rules."""
    outputs = [HostTensor(name.removeprefix(PREFIX)) for name in node.proto.output if name]
    small = {n: t for n, t in node.constants.items() if np.prod(t.dims, dtype=np.int64) <= INFERENCE_ELEMENTS}
    model = node_model([_with_constants(node, small)], outputs, functions)
    found = infer_shapes(model, strict=strict, data_prop=True)
    return {o.name: o.type for o in found.graph.output if o.type.WhichOneof("value")}


def _with_constants(node: HostNode, constants: Mapping[str, onnx.TensorProto]) -> HostNode:
    """`node` with the other constants as plain inputs of the same type."""
    large = {n: HostTensor(n, _constant_type(t)) for n, t in node.constants.items() if n not in constants}
    inputs = tuple(large.get(i.name, i) for i in node.inputs)
    return replace(node, inputs=inputs, constants=constants)


def _constant_type(tensor: onnx.TensorProto) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
