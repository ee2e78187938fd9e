"""Importing the nodes of a model, one after the other, functions and constant branches inlined.

All nodes are walked even when some cannot be imported: their outputs become `Unknown`, and so do the outputs of
whatever reads these, so that one error can name every unsupported op of the model. With a host side, such nodes are
handed to the host instead (`ppuc.compiler.frontend.offload.handover`).

Invariant: every op of the built graph has the loc of the ONNX node that it came from; without a host side no HostTensor
arises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from ppuc.compiler.frontend.attributes import ignored, plain_value
from ppuc.compiler.frontend.context import IMPORTERS, BrokenRuleError, Importer, NodeContext
from ppuc.compiler.frontend.control import LoopNode, NotUnrolledError
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.functions import (
    DEEPEST_CALL,
    FunctionBody,
    expanded_nodes,
    has_schema_body,
    local_body,
    local_functions,
    schema_body,
)
from ppuc.compiler.frontend.offload.handover import Handover, RefusedError
from ppuc.compiler.frontend.offload.host_ops import why_host
from ppuc.compiler.frontend.offload.hosting import HostSide, HostTensor, may_be_dense
from ppuc.compiler.frontend.offload.products import CONTROL, is_control
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.place import Place, node_place, tensor_place
from ppuc.compiler.frontend.rules import broken_rule
from ppuc.compiler.frontend.scope import ExpansionError, Scope, Site, Tensor, Unknown, UnknownOpsError
from ppuc.compiler.frontend.source import Source, normal_domain
from ppuc.compiler.frontend.tensors import foreign, read_tensor
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, InternalError, ModelError
from ppuc.ir.graph import Value
from ppuc.ir.types import DType

NAMES_SHOWN = 8
SUPPLY = "neither the PPU nor the host knows it: supply it as a Python function with --host-ops FILE.py"

LARGEST_FACTORS = 8
"""Elements of a floating-point input that sizes are computed from: the factors of a resize."""
SIZED = ("Expand", "Pad", "Reshape", "Resize", "Tile", "TopK", "Upsample")
"""Ops whose results have the sizes that an operand says. Others that must know an operand, a Slice say, would be
compiled anew for each of its values, for results of the same sizes."""
TRANSFORMS = ("DFT", "STFT")
MOST_EXPANDED = 50_000
"""Nodes that calls of functions and unrolled loops of a model may become."""


class Walk:
    """Imports into `builder`. Errors are collected; `finish` raises them. `wanted` are the model's inputs whose values
    importers asked for in vain, `transforms` the nodes that are discrete Fourier transforms."""

    def __init__(self, source: Source, builder: FoldingBuilder, host: HostSide | None = None) -> None:
        self.source = source
        self.builder = builder
        self.functions = local_functions(source.model)
        self.unsupported: dict[str, list[str]] = {}
        self.errors: list[ModelError] = []
        self.wanted: set[str] = set()
        self.asked: Value | None = None
        self.transforms: set[str] = set()
        self.expanded = 0
        if expanded_nodes(source.model.graph.node, self.functions, MOST_EXPANDED) > MOST_EXPANDED:
            raise self._too_many()
        self.host = Handover(host, source, builder, tuple(source.model.functions)) if host is not None else None

    def graph(self, graph: onnx.GraphProto, scope: Scope, prefix: str = "", depth: int = 0) -> list[Tensor]:
        """Import the initializers and nodes of `graph` into `scope`; the values of its outputs."""
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise tensor_place(self.source.where, name).error("sparse tensors are not supported")
        for tensor in graph.initializer:
            if tensor.name in scope.tensors or tensor.name in scope.values:
                place = tensor_place(self.source.where, tensor.name)
                raise place.error("the name is taken by an input or another initializer")
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
            raise UnknownOpsError([self._unsupported(op, nodes) for op, nodes in self.unsupported.items()])
        if self.errors and self.host is not None and self.host.side.examining:
            raise ModelError([d for error in self.errors for d in error.diagnostics])
        if self.errors:
            raise self.errors[0]

    def _unsupported(self, op: str, nodes: Sequence[str]) -> Diagnostic:
        shown = ", ".join(f"'{n}'" for n in nodes[:NAMES_SHOWN])
        more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        what, got = f"op {op} is not supported", f"{count}: {shown}{more}"
        entities = (Entity(EntityKind.OP, op), *Entity.each(EntityKind.NODE, nodes))
        hint = SUPPLY if self.host is not None else None
        return Diagnostic(self.source.where, what, got, hint=hint, entities=entities)

    def _node(self, node: onnx.NodeProto, scope: Scope, label: str, depth: int) -> list[Tensor]:
        """The values of the node's outputs, `Unknown` where there was an error."""
        self.builder.loc = (label,)
        if node.op_type in TRANSFORMS:
            self.transforms.add(label)
        site = Site(node, scope, label, depth)
        self._count(depth > 0)
        operands = [self._read(scope, name) if name else None for name in node.input]
        body = local_body(node, self.functions)
        if body is not None:
            return self._call(body, site, operands)
        if (rule := broken_rule(node, scope.opsets, self._place(site))) is not None:
            return self._broken(site, ModelError(rule))
        if self.host is None:
            return self._standard(site, operands)
        hosted = [v for v in operands if isinstance(v, HostTensor)]
        reason = self.host.reason(node, label, hosted)
        if reason:
            return self._hand_over(site, reason, later=self._awaits_sizes(site, hosted))
        mark, wrong = self.host.mark(), (len(self.errors), len(self.unsupported))
        results = self._standard(site, operands)
        reason = self.host.objection(mark, label)
        if reason and wrong == (len(self.errors), len(self.unsupported)):
            self.host.rewind(mark)
            return self._hand_over(site, reason, later=is_control(node, site.scope.opsets))
        return results

    def _awaits_sizes(self, site: Site, hosted: Sequence[HostTensor]) -> bool:
        """Whether a node is the host's only because the sizes of what it reads are not known yet."""
        assert self.host is not None
        node, domain = site.node, normal_domain(site.node.domain)
        if self.host.chosen(node, site.label) or not all(may_be_dense(t.type) for t in hosted):
            return False
        known = (domain, node.op_type) in IMPORTERS or is_control(node, site.scope.opsets)
        return known or has_schema_body(node, site.scope.opsets.get(domain, 1))

    def _count(self, inside: bool) -> None:
        """One more node, `inside` a function."""
        self.expanded += inside
        if self.expanded > MOST_EXPANDED:
            raise self._too_many()

    def _too_many(self) -> ExpansionError:
        what = f"its functions expand to more than {MOST_EXPANDED} nodes"
        return ExpansionError(Diagnostic(self.source.where, what))

    def _standard(self, site: Site, operands: Sequence[Tensor]) -> list[Tensor]:
        """A node that is no call of the model's own functions."""
        node, domain = site.node, normal_domain(site.node.domain)
        if domain == "" and node.op_type == "If":
            return self._branch(site, operands)
        if domain == "" and node.op_type in CONTROL:
            return self._unrolled(site, operands)
        importer = IMPORTERS.get((domain, node.op_type))
        opset = site.scope.opsets.get(domain, 1)
        if importer is None and not has_schema_body(node, opset):
            return self._refuse(site)
        if any(isinstance(v, Unknown) for v in operands):
            return self._unknown(node, operands)
        known = [v for v in operands if isinstance(v, Value) or v is None]
        if importer is not None:
            return self._import(importer, site, known, opset)
        body = schema_body(node, opset, known)
        return self._call(body, site, operands) if body is not None else self._refuse(site)

    def _hand_over(self, site: Site, reason: str, error: ModelError | None = None, later: bool = False) -> list[Tensor]:
        """A node for the host; `error` is what its importer said, `later` as in HostNode."""
        assert self.host is not None
        declared = self.host.side.declared if site.scope.outer is None and site.depth == 0 else {}
        place = (site.node, site.label, site.scope.opsets, self._reader(site.scope))
        try:
            return list(self.host.node(*place, reason, declared, later))
        except RefusedError as refused:
            told = None if refused.unknown else error or refused.error
            if self.host.side.examining and (refused.unknown or told is not None):
                noted = self._noted(site, SUPPLY if told is None else told.diagnostics[0].what, reason)
                if noted is not None:
                    return noted
            if refused.unknown:
                return self._unsupported_op(site)
            self.errors += [e for e in (told,) if e is not None]
            return self._unknown(site.node)

    def _reader(self, scope: Scope) -> Callable[[str], tuple[Value | HostTensor, onnx.TensorProto | None]]:
        """What a name stands for, and the constant of the file that it names."""

        def read(name: str) -> tuple[Value | HostTensor, onnx.TensorProto | None]:
            value = self._read(scope, name)
            if not isinstance(value, Value | HostTensor):
                raise RefusedError(value.error if isinstance(value, Unknown) else None)
            at: Scope | None = scope
            while at is not None and name not in at.tensors:
                at = at.outer
            return value, at.tensors[name] if at is not None else None

        return read

    def _import(self, importer: Importer, site: Site, operands: Sequence[Value | None], opset: int) -> list[Tensor]:
        node, label, place = site.node, site.label, self._place(site)
        self.asked = None
        try:
            ctx = NodeContext(
                b=self.builder,
                op_type=node.op_type,
                name=label,
                opset=opset,
                inputs=operands,
                outputs=list(node.output),
                attributes={a.name: plain_value(a, self.source, place) for a in node.attribute},
                constants=self.builder.array,
                where=self.source.where,
                wanted=self._want,
            )
            results = list(importer(ctx))
        except BrokenRuleError as error:
            return self._broken(site, error)
        except ModelError as error:
            later = node.op_type in SIZED and self._asked_for_sizes(operands)
            return self._failed(site, error, later=later)
        except (ValueError, IndexError, OverflowError, MemoryError) as error:
            wrapped = place.error(str(error) or type(error).__name__)
            wrapped.__cause__ = error
            return self._failed(site, wrapped)
        unread = ignored(node, ctx.used, opset)
        if unread:
            got, about = f"{unread[0]} = {ctx.attributes[unread[0]]}", (Entity(EntityKind.ATTRIBUTE, unread[0]),)
            return self._failed(site, place.error(f"attribute '{unread[0]}' is not supported", got=got, about=about))
        return self._with_missing(results, site)

    def _broken(self, site: Site, error: ModelError) -> list[Tensor]:
        """A node that breaks the rules of its op: nobody's, whatever stands for the op."""
        if self.host is None or not self.host.side.examining:
            self.errors.append(error)
            return self._unknown(site.node)
        return self._noted(site, error.diagnostics[0].what) or self._unknown(site.node)

    def _noted(self, site: Site, why: str, reason: str = "") -> list[Tensor] | None:
        """A node noted as refused in a model that is examined; None when what it reads is unknown as well."""
        assert self.host is not None
        declared = self.host.side.declared if site.scope.outer is None and site.depth == 0 else {}
        place = (site.node, site.label, site.scope.opsets, self._reader(site.scope))
        try:
            return list(self.host.node(*place, reason, declared, refused=why))
        except RefusedError:
            return None

    def _failed(self, site: Site, error: ModelError, later: bool = False) -> list[Tensor]:
        """A node that its importer refused; `later` when it asked for values that nobody knows yet."""
        if self.host is not None:
            return self._hand_over(site, error.diagnostics[0].what, error, later)
        self.errors.append(error)
        return self._unknown(site.node)

    def _asked_for_sizes(self, operands: Sequence[Value | None]) -> bool:
        """Whether an importer failed for want of sizes or axes, rather than of the data that it computes with."""
        asked = self.asked
        return asked is not None and asked is not operands[0] and asked.type.dtype is not DType.BOOL

    def _want(self, value: Value) -> None:
        """Note the parameters that `value` depends on: some importer needs to know its elements. Those that are data
        behind it are not asked for: fixing them would compute the model while compiling."""
        self.asked = value
        producers = {r.name: op for op in self.builder.ops for r in op.results}
        todo, seen = [value], {value.name}
        while todo:
            at = todo.pop()
            op = producers.get(at.name)
            is_data = at is not value and at.type.dtype.is_float and at.type.elements > LARGEST_FACTORS
            if op is None and not is_data:
                self.wanted.add(at.name)
            for operand in op.operands if op is not None else ():
                if operand.name not in seen:
                    seen.add(operand.name)
                    todo.append(operand)

    def _place(self, site: Site) -> Place:
        return node_place(self.source.where, site.label, site.node.op_type)

    def _with_missing(self, results: Sequence[Tensor], site: Site) -> list[Tensor]:
        """One entry for each output; those that the importer does not give are an error only if they are read."""
        node = site.node
        if self.host is not None and any(node.output[len(results) :]):
            return self._hand_over(site, f"output {len(results)} ('{node.output[len(results)]}') has no importer")
        missing = [
            Unknown(
                self._place(site).error(
                    f"output {i} ('{node.output[i]}') is not supported",
                    about=(Entity(EntityKind.TENSOR, node.output[i]),),
                )
            )
            for i in range(len(results), len(node.output))
        ]
        return [*results[: len(node.output)], *missing]

    def _call(self, body: FunctionBody, site: Site, operands: Sequence[Tensor]) -> list[Tensor]:
        """Inline a function body. Inputs that the call omits are known to be absent."""
        node, label, depth, place = site.node, site.label, site.depth, self._place(site)
        if depth >= DEEPEST_CALL:
            raise place.error(f"functions call each other more than {DEEPEST_CALL} levels deep")
        inner = Scope({**self.source.opsets, **body.opsets})
        padded = [*operands, *[None] * (len(body.inputs) - len(operands))]
        inner.values = dict(zip(body.inputs, padded, strict=False))
        given = self.nodes(body.nodes, list(body.outputs)[: len(node.output)], inner, f"{label}/", depth + 1)
        return self._with_missing(given, site)

    def _branch(self, site: Site, operands: Sequence[Tensor]) -> list[Tensor]:
        """If: the branch that a constant condition selects."""
        node, condition = site.node, operands[0] if operands else None
        if not isinstance(condition, Value):
            return self._unknown(node, operands)
        chosen = self.builder.array(condition)
        if chosen is None or chosen.size != 1:
            self._want(condition)
            return self._refuse(site, "If with a condition computed at run time", later=True)
        wanted = "then_branch" if bool(chosen.reshape(-1)[0]) else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == wanted), None)
        if branch is None:
            raise self._place(site).error(f"'{wanted}' is missing", about=(Entity(EntityKind.ATTRIBUTE, wanted),))
        inner = Scope(site.scope.opsets, outer=site.scope)
        return self._with_missing(self.graph(branch, inner, f"{site.label}/", site.depth), site)

    def _unrolled(self, site: Site, operands: Sequence[Tensor]) -> list[Tensor]:
        """Loop and Scan: the body as often as it runs."""
        node, place = site.node, self._place(site)
        if any(isinstance(v, Unknown) for v in operands):
            return self._unknown(node, operands)
        graph = next((a.g for a in node.attribute if a.name == "body"), None)
        if graph is None:
            raise place.error("'body' is missing", about=(Entity(EntityKind.ATTRIBUTE, "body"),))

        before = self.expanded

        def body(inputs: Sequence[Value]) -> list[Value]:
            self.expanded += len(graph.node)
            if self.expanded > MOST_EXPANDED:
                raise NotUnrolledError("it expands to too many nodes")
            inner = Scope(site.scope.opsets, outer=site.scope)
            names = [i.name for i in graph.input]
            if len(names) != len(inputs):
                got, expected = f"{len(inputs)} inputs", f"{len(names)}"
                raise place.error("its body takes another number of inputs", got=got, expected=expected)
            inner.values = dict(zip(names, inputs, strict=True))
            results = [v for v in self.graph(graph, inner, f"{site.label}/", site.depth) if isinstance(v, Value)]
            self.builder.loc = (site.label,)
            if len(results) < len(graph.output):
                raise NotUnrolledError("a part of its body cannot run on the PPU")
            return results

        mark = self.host.mark() if self.host is not None else None
        wrong, unsupported = len(self.errors), {op: list(nodes) for op, nodes in self.unsupported.items()}
        known = [v for v in operands if isinstance(v, Value) or v is None]
        loop = LoopNode(node, site.scope.opsets.get("", 1), known, self.builder, body, graph)
        try:
            results = loop.unrolled()
        except NotUnrolledError as error:
            self.expanded = before
            for value in error.wanted:
                self._want(value)
            if self.host is not None and mark is not None:  # what is wrong inside is now between it and the host
                self.host.rewind(mark)
                del self.errors[wrong:]
                self.unsupported = unsupported
            later = is_control(node, site.scope.opsets)
            return self._refuse(site, f"{node.op_type} ({error.reason})", later=later)
        return self._with_missing(results, site)

    def _refuse(self, site: Site, op: str = "", later: bool = False) -> list[Tensor]:
        """An op without importer: the host's when there is one."""
        if self.host is not None:
            return self._hand_over(site, op or why_host(site.node), later=later)
        return self._unsupported_op(site, op)

    def _unsupported_op(self, site: Site, op: str = "") -> list[Tensor]:
        domain = normal_domain(site.node.domain)
        name = op or (f"{domain}.{site.node.op_type}" if domain else site.node.op_type)
        self.unsupported.setdefault(name, []).append(site.label)
        return self._unknown(site.node)

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

    def _constant(self, tensor: onnx.TensorProto, of_model: bool) -> Tensor:
        if self.host is not None and foreign(tensor.data_type):
            return self.host.constant(tensor)
        try:
            return self.builder.const(read_tensor(tensor, self.source, of_model), tensor.name)
        except ModelError as error:
            self.errors.append(error)
            return Unknown()
