"""Hands nodes over to the host as ONNX, with their inputs and result types.

Invariant: a node is handed over only if it follows the rules of its op, and the op is standard, of ONNX Runtime or
custom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.inlining import Scope, Site, Tensor, Unknown
from ppuc.compiler.frontend.offload.hosting import (
    HostNode,
    HostOperand,
    HostTensor,
    host_name,
    inferred_types,
    read_names,
    renamed_node,
    static_type,
    stored_proto,
    tensor_proto,
)
from ppuc.compiler.frontend.offload.loop_carried import carried_types
from ppuc.compiler.frontend.offload.probe import NoProbe, Probe, Types, has_sizes
from ppuc.compiler.frontend.offload.reason import Reason
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.place import node_place
from ppuc.compiler.frontend.registry import IMPORTERS
from ppuc.compiler.frontend.source import Source, normal_domain
from ppuc.compiler.frontend.tensors import packed_range
from ppuc.ir.errors import ModelError, PpucError
from ppuc.ir.graph import Value

RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
"""Domains with ops of ONNX Runtime or onnx.reference."""


LARGEST_BYTES = 1 << 36
"""Maximum bytes of a result on the host."""


class RefusedError(Exception):
    """The host cannot run a node either. `unknown`: the op is unknown. `error`: the error for the user; None if already
    reported."""

    def __init__(self, error: PpucError | None = None, unknown: bool = False) -> None:
        super().__init__(str(error))
        self.error = ModelError(error.diagnostics) if error is not None else None
        self.unknown = unknown


class Handover:
    """Collects host nodes of one model in `nodes`. `custom` are ops with Python functions; `probe` determines types
    whose sizes neither inference nor the file gives; `declared` are types that the file declares for tensors of the
    main graph."""

    def __init__(
        self, source: Source, builder: FoldingBuilder, custom: frozenset[tuple[str, str]], probe: Probe | None = None
    ) -> None:
        self.source, self.builder, self.custom, self.probe = source, builder, custom, probe or NoProbe()
        self.functions = tuple(source.model.functions)
        self.declared: Mapping[str, onnx.TypeProto] = {}
        self.nodes: list[HostNode] = []

    def constant(self, tensor: onnx.TensorProto) -> HostTensor:
        """A constant of a type that the PPU lacks."""
        type = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        return HostTensor(self.builder.fresh(tensor.name), type, stored_proto(tensor, self.source))

    def node(
        self,
        site: Site,
        reason: Reason,
        *,
        deferred: bool = False,
        refused: Reason | None = None,
        doubted: bool = False,
    ) -> list[Tensor]:
        """Hand a node over; returns its outputs. A `refused` node is marked as such and has the declared output types.
        A `doubted` one, which has no valid import, is tried on the host first. Raises RefusedError."""
        node, custom = site.node, is_custom(site, self.custom)
        if refused is None and not custom and not is_hostable(node, site.scope.opsets):
            raise RefusedError(unknown=True)
        operands = {name: _read(site.scope, name) for name in read_names(node)}
        inputs = {o.name: o for o, _ in operands.values()}
        constants = {o.name: proto for o, stored in operands.values() if (proto := self._proto(o, stored)) is not None}
        names = {name: host_name(o.name) for name, (o, _) in operands.items()}
        outputs = [HostTensor(self.builder.fresh(o)) if o else None for o in node.output]
        proto = renamed_node(node, names, [host_name(o.name) if o else "" for o in outputs])
        proto.name = site.label
        for name, constant in constants.items():
            constant.name = host_name(name)
        made = HostNode(
            proto,
            site.label,
            site.op,
            reason,
            site.scope.opsets,
            tuple(inputs.values()),
            constants,
            tuple(outputs),
            custom,
            deferred,
            refused,
        )
        made = replace(made, outputs=self._typed(made, node, self.declared if site.of_main_graph else {}))
        if doubted and not (deferred or custom) and (why_not := self.probe.refusal_of(made, self.functions)):
            place = node_place(self.source.where, made.label, made.proto.op_type)
            raise RefusedError(place.error(f"neither the PPU nor the host can compute it: {why_not}"))
        self.nodes.append(made)
        return [self._without_elements(o) for o in made.outputs]

    def _without_elements(self, output: HostOperand | None) -> HostOperand | None:
        """An empty result is a known constant that needs no host."""
        if isinstance(output, Value) and output.type.elements == 0:
            return self.builder.empty(output.type, output.name)
        return output

    def _proto(self, operand: HostOperand, stored: onnx.TensorProto | None) -> onnx.TensorProto | None:
        """The constant of an operand for the host."""
        if isinstance(operand, HostTensor):
            return operand.constant
        if stored is not None and packed_range(stored.data_type) is not None:
            return stored_proto(stored, self.source)
        array = self.builder.array(operand)
        return tensor_proto(array, host_name(operand.name)) if array is not None else None

    def _typed(
        self, made: HostNode, node: onnx.NodeProto, declared: Mapping[str, onnx.TypeProto]
    ) -> tuple[HostOperand | None, ...]:
        """The outputs with their types; Values where the PPU can hold them."""
        types = {} if made.custom or made.refused else self._inferred(made)
        contradictory = types is None
        if made.deferred and made.op == "Loop":
            types = {**(types or {}), **carried_types(made, list(self.functions))}
        found: list[HostOperand | None] = []
        probed: Types | None = None
        for output, original in zip(made.outputs, node.output, strict=True):
            if output is None:
                found.append(None)
                continue
            type = (types or {}).get(host_name(output.name))
            claimed = declared.get(original) if not contradictory else None
            if claimed is not None and (type is None or static_type(type) is None):
                type = claimed if type is None or static_type(claimed) is not None else type
            if not has_sizes(type) and not made.deferred and not made.refused:
                probed = self.probe.types_of(made, self.functions) if probed is None else probed
                type = probed.get(host_name(output.name), type)
            static = static_type(type)
            if static is not None and static.bytes > LARGEST_BYTES:
                place = node_place(self.source.where, made.label, made.proto.op_type)
                raise RefusedError(place.error("its result does not fit any memory", got=static))
            found.append(Value(output.name, static) if static is not None else HostTensor(output.name, type))
        return tuple(found)

    def _inferred(self, made: HostNode) -> dict[str, onnx.TypeProto] | None:
        """Types of the outputs by their names in the proto; None if the file's declarations contradict each other."""
        known = all(isinstance(i, Value) or i.type is not None for i in made.inputs)
        has_bodies = any(True for _ in subgraphs(made.proto))
        try:
            return inferred_types(made, self.functions, strict=known)
        except onnx.shape_inference.InferenceError as error:
            if has_bodies and _breaks_rules(str(error)):  # declarations inside bodies are not checked elsewhere
                return None
            if known and _breaks_rules(str(error)):
                place = node_place(self.source.where, made.label, made.proto.op_type)
                raise RefusedError(place.error("breaks the rules of its op", got=_first_line(error))) from error
        try:
            return inferred_types(made, self.functions)
        except (onnx.shape_inference.InferenceError, ValueError):
            return {}


def _read(scope: Scope, name: str) -> tuple[HostOperand, onnx.TensorProto | None]:
    """The tensor of a name, and its constant in the file."""
    value = scope.read(name)
    if not isinstance(value, Value | HostTensor):
        raise RefusedError(value.error if isinstance(value, Unknown) else None)
    return value, scope.initializer(name)


def _breaks_rules(text: str) -> bool:
    """Whether an inference message reports a contradiction, rather than a missing inference function."""
    return "[ShapeInferenceError]" in text and "not currently supported" not in text


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "[ShapeInferenceError]" in line]
    return (lines or [str(error)])[-1].rpartition("[ShapeInferenceError]")[2].strip()[:300]


def is_custom(site: Site, custom: frozenset[tuple[str, str]]) -> bool:
    """Whether a node's op is a Python function."""
    return (site.domain, site.node.op_type) in custom


def is_hostable(node: onnx.NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether the host may support an op: it is standard, of a domain of ONNX Runtime, or one that ONNX Runtime adds to
    the standard's domain, which only ppuc's importers know besides."""
    domain = normal_domain(node.domain)
    known = domain in RUNTIME_DOMAINS or (domain, node.op_type) in IMPORTERS
    return known or _has_schema(node, opsets.get(domain, 1))


def _has_schema(node: onnx.NodeProto, opset: int) -> bool:
    try:
        onnx.defs.get_schema(node.op_type, opset, normal_domain(node.domain))
    except onnx.defs.SchemaError:
        return False
    return True


__all__ = ["Handover", "RefusedError", "is_custom", "is_hostable"]
