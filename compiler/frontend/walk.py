"""Importing the nodes of a model, one after the other, functions and constant branches inlined.

All nodes are walked even when some cannot be imported: their outputs become `Unknown`, and so do the outputs of
whatever reads these, so that one error can name every unsupported op of the model.

Invariant: every op of the built graph has the loc of the ONNX node that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from ppuc.compiler.frontend.context import IMPORTERS, Importer, NodeContext
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.functions import FunctionBody, has_schema_body, local_body, local_functions, schema_body
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.source import Source, normal_domain
from ppuc.compiler.frontend.tensors import packed_range, read_tensor
from ppuc.ir.errors import Diagnostic, InternalError, ModelError
from ppuc.ir.graph import Value

DEEPEST_CALL = 64
NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that could not be computed. `error` is raised at its first use; None when it is reported already."""

    error: ModelError | None = None


Tensor = Value | Unknown | None
"""What a name stands for; None is an optional input that the caller of a function left out."""


@dataclass(slots=True)
class Scope:
    """Names visible in one graph, branch or function body. Initializers become constants when they are first read."""

    opsets: Mapping[str, int]
    values: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    outer: Scope | None = None

    def names(self) -> set[str]:
        """Everything visible, outer scopes included."""
        own = self.values.keys() | self.tensors.keys()
        return own | self.outer.names() if self.outer is not None else own


class Walk:
    """Imports into `builder`. Errors are collected; `finish` raises them."""

    def __init__(self, source: Source, builder: FoldingBuilder) -> None:
        self.source = source
        self.builder = builder
        self.functions = local_functions(source.model)
        self.unsupported: dict[str, list[str]] = {}
        self.errors: list[ModelError] = []

    def graph(self, graph: onnx.GraphProto, scope: Scope, prefix: str = "", depth: int = 0) -> list[Tensor]:
        """Import the initializers and nodes of `graph` into `scope`; the values of its outputs."""
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError.of(f"{self.source.where}: tensor '{name}'", "sparse tensors are not supported")
        for tensor in graph.initializer:
            if tensor.name in scope.tensors or tensor.name in scope.values:
                place = f"{self.source.where}: tensor '{tensor.name}'"
                raise ModelError.of(place, "the name is taken by an input or another initializer")
            scope.tensors[tensor.name] = tensor
        return self.nodes(graph.node, [o.name for o in graph.output], scope, prefix, depth)

    def nodes(
        self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], scope: Scope, prefix: str, depth: int
    ) -> list[Tensor]:
        """Import the nodes that `outputs` need; the values of `outputs`."""
        for label, node in ordered(nodes, scope.names(), outputs, self.source.where):
            results = self._node(node, scope, prefix + label, depth)
            scope.values.update((name, value) for name, value in zip(node.output, results, strict=True) if name)
        return [self._read(scope, name) for name in outputs]

    def finish(self) -> None:
        """Raise what was collected: all unsupported ops together, else the first error."""
        if self.unsupported:
            raise ModelError([self._unsupported(op, nodes) for op, nodes in self.unsupported.items()])
        if self.errors:
            raise self.errors[0]

    def _unsupported(self, op: str, nodes: Sequence[str]) -> Diagnostic:
        shown = ", ".join(f"'{n}'" for n in nodes[:NAMES_SHOWN])
        more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        return Diagnostic(self.source.where, f"op {op} is not supported", got=f"{count}: {shown}{more}")

    def _node(self, node: onnx.NodeProto, scope: Scope, label: str, depth: int) -> list[Tensor]:
        """The values of the node's outputs, `Unknown` where there was an error."""
        self.builder.loc = (label,)
        operands = [self._read(scope, name) if name else None for name in node.input]
        if node.op_type == "If" and normal_domain(node.domain) == "":
            return self._branch(node, operands, scope, label, depth)
        body = local_body(node, self.functions)
        if body is not None:
            return self._call(body, node, operands, label, depth)
        domain = normal_domain(node.domain)
        importer = IMPORTERS.get((domain, node.op_type))
        opset = scope.opsets.get(domain, 1)
        if importer is None and not has_schema_body(node, opset):
            return self._refuse(node, label)
        if any(isinstance(v, Unknown) for v in operands):
            return self._unknown(node, operands)
        known = [v for v in operands if not isinstance(v, Unknown)]
        if importer is not None:
            return self._import(importer, node, known, opset, label)
        body = schema_body(node, opset, known)
        return self._call(body, node, operands, label, depth) if body is not None else self._refuse(node, label)

    def _import(
        self, importer: Importer, node: onnx.NodeProto, operands: Sequence[Value | None], opset: int, label: str
    ) -> list[Tensor]:
        place = f"{self.source.where}: node '{label}' ({node.op_type})"
        try:
            ctx = NodeContext(
                b=self.builder,
                op_type=node.op_type,
                name=label,
                opset=opset,
                inputs=operands,
                outputs=list(node.output),
                attributes={a.name: self._attribute(a, place) for a in node.attribute},
                constants=self.builder.array,
                where=self.source.where,
            )
            results = list(importer(ctx))
        except ModelError as error:
            self.errors.append(error)
            return self._unknown(node)
        except (ValueError, IndexError) as error:
            wrapped = ModelError(Diagnostic(place, str(error)))
            wrapped.__cause__ = error
            self.errors.append(wrapped)
            return self._unknown(node)
        return self._with_missing(results, node, place)

    @staticmethod
    def _with_missing(results: Sequence[Tensor], node: onnx.NodeProto, place: str) -> list[Tensor]:
        """One entry for each output; those that the importer does not give are an error only if they are read."""
        missing = [
            Unknown(ModelError(Diagnostic(place, f"output {i} ('{node.output[i]}') is not supported")))
            for i in range(len(results), len(node.output))
        ]
        return [*results[: len(node.output)], *missing]

    def _call(
        self,
        body: FunctionBody,
        node: onnx.NodeProto,
        operands: Sequence[Tensor],
        label: str,
        depth: int,
    ) -> list[Tensor]:
        """Inline a function body. Inputs that the call omits are known to be absent."""
        place = f"{self.source.where}: node '{label}' ({node.op_type})"
        if depth >= DEEPEST_CALL:
            raise ModelError.of(place, f"functions call each other more than {DEEPEST_CALL} levels deep")
        inner = Scope({**self.source.opsets, **body.opsets})
        padded = [*operands, *[None] * (len(body.inputs) - len(operands))]
        inner.values = dict(zip(body.inputs, padded, strict=False))
        given = self.nodes(body.nodes, list(body.outputs)[: len(node.output)], inner, f"{label}/", depth + 1)
        return self._with_missing(given, node, place)

    def _branch(
        self,
        node: onnx.NodeProto,
        operands: Sequence[Tensor],
        scope: Scope,
        label: str,
        depth: int,
    ) -> list[Tensor]:
        """If: the branch that a constant condition selects."""
        condition = operands[0] if operands else None
        if not isinstance(condition, Value):
            return self._unknown(node, operands)
        chosen = self.builder.array(condition)
        if chosen is None or chosen.size != 1:
            return self._refuse(node, label, "If with a condition computed at run time")
        wanted = "then_branch" if bool(chosen.reshape(-1)[0]) else "else_branch"
        place = f"{self.source.where}: node '{label}' ({node.op_type})"
        branch = next((a.g for a in node.attribute if a.name == wanted), None)
        if branch is None:
            raise ModelError(Diagnostic(place, f"'{wanted}' is missing"))
        inner = Scope(scope.opsets, outer=scope)
        return self._with_missing(self.graph(branch, inner, f"{label}/", depth), node, place)

    def _refuse(self, node: onnx.NodeProto, label: str, op: str = "") -> list[Tensor]:
        domain = normal_domain(node.domain)
        self.unsupported.setdefault(op or (f"{domain}.{node.op_type}" if domain else node.op_type), []).append(label)
        return self._unknown(node)

    def _unknown(self, node: onnx.NodeProto, operands: Sequence[Tensor] = ()) -> list[Tensor]:
        self.errors.extend(v.error for v in operands if isinstance(v, Unknown) and v.error is not None)
        return [Unknown()] * len(node.output)

    def _read(self, scope: Scope, name: str) -> Tensor:
        """The value of a name; an initializer becomes a constant now."""
        at: Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            if name in at.tensors:
                at.values[name] = self._constant(at.tensors[name], of_model=at.outer is None)
                return at.values[name]
            at = at.outer
        raise InternalError(f"'{name}' is in no scope")

    def _constant(self, tensor: onnx.TensorProto, of_model: bool) -> Value | Unknown:
        try:
            return self.builder.const(read_tensor(tensor, self.source, of_model), tensor.name)
        except ModelError as error:
            self.errors.append(error)
            return Unknown()

    def _attribute(self, attribute: onnx.AttributeProto, place: str) -> Any:
        """Plain Python values; arrays for tensors."""
        kinds = onnx.AttributeProto
        if attribute.type == kinds.TENSOR and packed_range(attribute.t.data_type) is not None:
            raise ModelError.of(
                place, f"attribute '{attribute.name}' has elements below a byte", expected="an initializer"
            )
        if attribute.type == kinds.TENSOR:
            return read_tensor(attribute.t, self.source).array()
        if attribute.type == kinds.STRING:
            return attribute.s.decode(errors="replace")
        if attribute.type == kinds.STRINGS:
            return [s.decode(errors="replace") for s in attribute.strings]
        if attribute.type in (kinds.FLOAT, kinds.INT, kinds.GRAPH):
            return onnx.helper.get_attribute_value(attribute)
        if attribute.type in (kinds.FLOATS, kinds.INTS):
            return list(onnx.helper.get_attribute_value(attribute))
        kind = kinds.AttributeType.Name(attribute.type).lower().replace("_", " ")
        raise ModelError.of(place, f"attribute '{attribute.name}' is of a kind that is not supported", got=kind)
