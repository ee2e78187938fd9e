"""Deciding that a node is the host's, and giving it over: what it reads, what types its results have.

Invariant: nothing is handed over that breaks the rules of its op, or that no op of the standard, of ONNX Runtime or of
the user stands for; what was imported of a node before it was handed over is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx
import onnx.shape_inference

from ppuc.compiler.engines import objection as engine_objection
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.offload.hosting import (
    HostNode,
    HostOperand,
    HostSide,
    HostTensor,
    host_name,
    inferred_types,
    read_names,
    renamed_node,
    static_type,
    stored_proto,
    subgraphs,
    tensor_proto,
    type_text,
)
from ppuc.compiler.frontend.offload.loop_carried import carried_types
from ppuc.compiler.frontend.place import node_place
from ppuc.compiler.frontend.source import Source, normal_domain
from ppuc.compiler.frontend.tensors import packed_range
from ppuc.ir.errors import ModelError, PpucError
from ppuc.ir.graph import Value

Reader = Callable[[str], tuple[HostOperand, onnx.TensorProto | None]]
"""A name's tensor, and the constant of the file that it names."""
Mark = tuple[int, int]
"""How many ops and host nodes there are."""

RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
"""Domains whose ops are ONNX Runtime's or onnx.reference's to know."""


LARGEST_BYTES = 1 << 36
"""Bytes of a result that a host could hold."""


class RefusedError(Exception):
    """The host cannot take a node either. `unknown`: nobody knows the op. `error`: what the user is told; None when it
    has been reported already."""

    def __init__(self, error: PpucError | None = None, unknown: bool = False) -> None:
        super().__init__(str(error))
        self.error = ModelError(error.diagnostics) if error is not None else None
        self.unknown = unknown


class Handover:
    """Collects the host's nodes of one walk in `side`."""

    def __init__(
        self, side: HostSide, source: Source, builder: FoldingBuilder, functions: Sequence[onnx.FunctionProto]
    ) -> None:
        self.side, self.source, self.builder, self.functions = side, source, builder, functions

    def reason(self, node: onnx.NodeProto, label: str, hosted: Sequence[HostTensor]) -> str:
        """Why a node must run on the host before anything else is known of it; "" when it need not."""
        if label in self.side.forced:
            return self.side.forced[label]
        if (normal_domain(node.domain), node.op_type) in self.side.custom:
            return "a Python function stands for it"
        if hosted:
            return f"it reads {type_text(hosted[0].type)}, which only the host holds"
        return ""

    def chosen(self, node: onnx.NodeProto, label: str) -> bool:
        """Whether somebody decided that a node is the host's."""
        return label in self.side.forced or (normal_domain(node.domain), node.op_type) in self.side.custom

    def mark(self) -> Mark:
        """Where the walk is."""
        return len(self.builder.ops), len(self.side.nodes)

    def rewind(self, mark: Mark) -> None:
        """Take back what was imported since."""
        del self.builder.ops[mark[0] :]
        del self.side.nodes[mark[1] :]

    def objection(self, mark: Mark, label: str) -> str:
        """Why what was imported since `mark` for the standard op `label` cannot run on the PPU; "" when it can. An op
        of which a part is the host's is the host's as a whole, unless it is that part."""
        for op in self.builder.ops[mark[0] :]:
            if why := engine_objection(op):
                return f"it {why}"
        inner = self.side.nodes[mark[1] :]
        split = [n for n in inner if n.label != label]
        return f"its part {split[0].op} cannot run on the PPU: {split[0].reason}" if split else ""

    def constant(self, tensor: onnx.TensorProto) -> HostTensor:
        """A constant of a type that the machine does not have."""
        type = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        return HostTensor(self.builder.fresh(tensor.name), type, stored_proto(tensor, self.source))

    def node(
        self,
        node: onnx.NodeProto,
        label: str,
        opsets: Mapping[str, int],
        read: Reader,
        reason: str,
        declared: Mapping[str, onnx.TypeProto],
        later: bool = False,
        refused: str = "",
    ) -> tuple[HostOperand | None, ...]:
        """Hand a node over; what stands for its outputs. `declared` are types that the file claims for tensors. A node
        that is `refused` is noted as such, and its outputs are what the file says. Raises RefusedError."""
        domain = normal_domain(node.domain)
        key = (domain, node.op_type)
        custom = key in self.side.custom
        if not refused and not custom and not is_hostable(node, opsets):
            raise RefusedError(unknown=True)
        operands = {name: read(name) for name in read_names(node)}
        inputs = {o.name: o for o, _ in operands.values()}
        constants = {o.name: proto for o, stored in operands.values() if (proto := self._proto(o, stored)) is not None}
        names = {name: host_name(o.name) for name, (o, _) in operands.items()}
        outputs = [HostTensor(self.builder.fresh(o)) if o else None for o in node.output]
        proto = renamed_node(node, names, [host_name(o.name) if o else "" for o in outputs])
        proto.name = label
        for constant in constants.items():
            constant[1].name = host_name(constant[0])
        op = f"{domain}.{node.op_type}" if domain else node.op_type
        made = HostNode(
            proto, label, op, reason, opsets, tuple(inputs.values()), constants, tuple(outputs), custom, later, refused
        )
        made = replace(made, outputs=self._typed(made, node, declared))
        self.side.nodes.append(made)
        return tuple(self._without_elements(o) for o in made.outputs)

    def _without_elements(self, output: HostOperand | None) -> HostOperand | None:
        """A result of no elements needs no host: it is known."""
        if isinstance(output, Value) and output.type.elements == 0:
            return self.builder.empty(output.type, output.name)
        return output

    def _proto(self, operand: HostOperand, stored: onnx.TensorProto | None) -> onnx.TensorProto | None:
        """The constant behind an operand as the host takes it."""
        if isinstance(operand, HostTensor):
            return operand.constant
        if stored is not None and packed_range(stored.data_type) is not None:
            return stored_proto(stored, self.source)
        array = self.builder.array(operand)
        return tensor_proto(array, host_name(operand.name)) if array is not None else None

    def _typed(
        self, made: HostNode, node: onnx.NodeProto, declared: Mapping[str, onnx.TypeProto]
    ) -> tuple[HostOperand | None, ...]:
        """The outputs with their types; Values where the machine can hold them."""
        types = {} if made.custom or made.refused else self._inferred(made)
        contradictory = types is None
        if made.later and made.op == "Loop":
            types = {**(types or {}), **carried_types(made, list(self.functions))}
        found: list[HostOperand | None] = []
        for output, original in zip(made.outputs, node.output, strict=True):
            if output is None:
                found.append(None)
                continue
            type = (types or {}).get(host_name(output.name))
            claimed = declared.get(original) if not contradictory else None
            if claimed is not None and (type is None or static_type(type) is None):
                type = claimed if type is None or static_type(claimed) is not None else type
            static = static_type(type)
            if static is not None and static.bytes > LARGEST_BYTES:
                place = node_place(self.source.where, made.label, made.proto.op_type)
                raise RefusedError(place.error("its result does not fit any memory", got=static))
            found.append(Value(output.name, static) if static is not None else HostTensor(output.name, type))
        return tuple(found)

    def _inferred(self, made: HostNode) -> dict[str, onnx.TypeProto] | None:
        """Types of the outputs by their names in the proto; None when what the file says of them contradicts itself."""
        known = all(isinstance(i, Value) or i.type is not None for i in made.inputs)
        has_bodies = any(True for _ in subgraphs(made.proto))
        try:
            return inferred_types(made, self.functions, strict=known)
        except onnx.shape_inference.InferenceError as error:
            if has_bodies and _breaks_rules(str(error)):  # what is declared in there, nobody else looks at
                return None
            if known and _breaks_rules(str(error)):
                place = node_place(self.source.where, made.label, made.proto.op_type)
                raise RefusedError(place.error("breaks the rules of its op", got=_first_line(error))) from error
        try:
            return inferred_types(made, self.functions)
        except (onnx.shape_inference.InferenceError, ValueError):
            return {}


def _breaks_rules(text: str) -> bool:
    """Whether inference found a contradiction, and does not merely lack the means to infer."""
    return "[ShapeInferenceError]" in text and "not currently supported" not in text


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "[ShapeInferenceError]" in line]
    return (lines or [str(error)])[-1].rpartition("[ShapeInferenceError]")[2].strip()[:300]


def is_hostable(node: onnx.NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether the host may know an op: it is of the standard, or of a domain that ONNX Runtime serves."""
    domain = normal_domain(node.domain)
    return domain in RUNTIME_DOMAINS or _has_schema(node, opsets.get(domain, 1))


def _has_schema(node: onnx.NodeProto, opset: int) -> bool:
    try:
        onnx.defs.get_schema(node.op_type, opset, normal_domain(node.domain))
    except onnx.defs.SchemaError:
        return False
    return True


__all__ = ["Handover", "Mark", "Reader", "RefusedError", "is_hostable"]
