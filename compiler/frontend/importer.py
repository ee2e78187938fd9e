"""Imports the nodes of a model in order, inlining functions and constant branches and unrolling loops.

All nodes are visited even if some cannot be imported: a policy (`ppuc.compiler.frontend.policy`) provides their outputs
and collects errors, so that one error can name every unsupported op of the model.

Invariant: every op of the built graph has the loc of the ONNX node that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ppuc.compiler.frontend.attributes import ignored, plain_value
from ppuc.compiler.frontend.context import BrokenRuleError, NodeContext
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
from ppuc.compiler.frontend.inlining import ExpansionError, Scope, Site, Tensor, Unknown
from ppuc.compiler.frontend.order import ordered
from ppuc.compiler.frontend.place import Place, node_place, tensor_place
from ppuc.compiler.frontend.policy import Policy, Refusal
from ppuc.compiler.frontend.registry import IMPORTERS, Importer
from ppuc.compiler.frontend.source import Source
from ppuc.compiler.frontend.tensors import read_tensor
from ppuc.compiler.frontend.unrolling import CONTROL, LoopNode, NotUnrolledError
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, ModelError
from ppuc.ir.graph import Op, Value

LARGEST_FACTORS = 8
"""Maximum elements of a floating-point input that sizes depend on: the factors of a resize."""
TRANSFORMS = ("DFT", "STFT")
MOST_EXPANDED = 50_000
"""Maximum nodes that function calls and unrolled loops may expand to."""


class ModelImporter:
    """Imports `source` into `builder`. `wanted` are the graph's parameters whose values some importer needs;
    `transforms` are the nodes that are discrete Fourier transforms."""

    def __init__(self, source: Source, builder: FoldingBuilder, policy: Policy) -> None:
        self.source, self.builder, self.policy = source, builder, policy
        self.functions = local_functions(source.model)
        self.wanted: set[str] = set()
        self.transforms: set[str] = set()
        self._asked: Value | None = None
        self._known_producers: dict[str, Op] = {}
        self._followed: set[str] = set()
        """Values whose operands `_want` has followed."""
        self._expanded = 0
        if expanded_nodes(source.model.graph.node, self.functions, MOST_EXPANDED) > MOST_EXPANDED:
            raise self._too_many()

    def scope(self) -> Scope:
        """The scope of the main graph, empty."""
        return Scope(self.source.opsets, self._constant)

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
        return self._nodes(graph.node, [o.name for o in graph.output], scope, prefix, depth)

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], scope: Scope, prefix: str, depth: int
    ) -> list[Tensor]:
        """Import the nodes that `outputs` need; returns the values of `outputs`."""
        for label, node in ordered(nodes, scope.names(), outputs, self.source.where):
            results = self._node(node, scope, prefix + label, depth)
            scope.values.update((name, value) for name, value in zip(node.output, results, strict=True) if name)
        return [scope.read(name) for name in outputs]

    def _node(self, node: onnx.NodeProto, scope: Scope, label: str, depth: int) -> list[Tensor]:
        """The values of the node's outputs, `Unknown` after an error."""
        self.builder.loc = (label,)
        if node.op_type in TRANSFORMS:
            self.transforms.add(label)
        self._count(depth > 0)
        operands = tuple(scope.read(name) if name else None for name in node.input)
        site = Site(node, scope, label, depth, operands)
        body = local_body(node, self.functions)
        if body is not None:
            return self._call(body, site)
        return self.policy.node(site, lambda: self._standard(site))

    def _count(self, inside: bool) -> None:
        """Count one more node, `inside` a function."""
        self._expanded += inside
        if self._expanded > MOST_EXPANDED:
            raise self._too_many()

    def _too_many(self) -> ExpansionError:
        what = f"its functions expand to more than {MOST_EXPANDED} nodes"
        return ExpansionError(Diagnostic(self.source.where, what))

    def _standard(self, site: Site) -> list[Tensor]:
        """Import a node that does not call one of the model's functions."""
        node, domain = site.node, site.domain
        if domain == "" and node.op_type == "If":
            return self._branch(site)
        if domain == "" and node.op_type in CONTROL:
            return self._unrolled(site)
        importer = IMPORTERS.get((domain, node.op_type))
        opset = site.scope.opsets.get(domain, 1)
        if importer is None and not has_schema_body(node, opset):
            return self.policy.refused(site, Refusal())
        if any(isinstance(v, Unknown) for v in site.operands):
            return self._unknown(site)
        if importer is not None:
            return self._import(importer, site, opset)
        body = schema_body(node, opset, _values(site.operands))
        return self._call(body, site) if body is not None else self.policy.refused(site, Refusal())

    def _import(self, importer: Importer, site: Site, opset: int) -> list[Tensor]:
        node, place = site.node, self._place(site)
        self._asked = None
        try:
            ctx = NodeContext(
                b=self.builder,
                op_type=node.op_type,
                name=site.label,
                opset=opset,
                inputs=_values(site.operands),
                outputs=list(node.output),
                attributes={a.name: plain_value(a, self.source, place) for a in node.attribute},
                constants=self.builder.array,
                where=self.source.where,
                wanted=self._want,
            )
            results = list(importer(ctx))
        except BrokenRuleError as error:
            return self.policy.refused(site, Refusal(error=error, invalid=True))
        except ModelError as error:
            return self.policy.refused(site, Refusal(error=error, wanted=self._asked))
        except (ValueError, IndexError, OverflowError, MemoryError) as error:
            wrapped = place.error(str(error) or type(error).__name__)
            wrapped.__cause__ = error
            return self.policy.refused(site, Refusal(error=wrapped))
        unread = ignored(node, ctx.used, opset)
        if unread:
            got, about = f"{unread[0]} = {ctx.attributes[unread[0]]}", (Entity(EntityKind.ATTRIBUTE, unread[0]),)
            fault = place.error(f"attribute '{unread[0]}' is not supported", got=got, about=about)
            return self.policy.refused(site, Refusal(error=fault))
        return self._complete(results, site)

    def _want(self, value: Value) -> None:
        """Record the parameters that `value` depends on, because some importer needs its elements. Data parameters are
        excluded: fixing them would evaluate the model at compile time."""
        self._asked = value
        producers, todo = self._producers(), [value]
        while todo:
            at = todo.pop()
            op = producers.get(at.name)
            is_data = at is not value and at.type.dtype.is_float and at.type.elements > LARGEST_FACTORS
            if op is None and not is_data:
                self.wanted.add(at.name)
            if op is not None and at.name not in self._followed:
                self._followed.add(at.name)
                todo.extend(op.operands)

    def _producers(self) -> Mapping[str, Op]:
        """Value name -> the op that defines it. Of the ops so far, those at the end are new."""
        for op in reversed(self.builder.ops):
            if op.results[0].name in self._known_producers:
                break
            self._known_producers.update((r.name, op) for r in op.results)
        return self._known_producers

    def _place(self, site: Site) -> Place:
        return node_place(self.source.where, site.label, site.node.op_type)

    def _complete(self, results: Sequence[Tensor], site: Site) -> list[Tensor]:
        """One entry per output; the policy provides those that the importer does not return."""
        given = list(results[: len(site.node.output)])
        return given if len(given) == len(site.node.output) else self.policy.incomplete(site, given)

    def _call(self, body: FunctionBody, site: Site) -> list[Tensor]:
        """Inline a function body. Omitted inputs are known to be absent."""
        if site.depth >= DEEPEST_CALL:
            raise self._place(site).error(f"functions call each other more than {DEEPEST_CALL} levels deep")
        inner = site.scope.apart({**self.source.opsets, **body.opsets})
        padded = [*site.operands, *[None] * (len(body.inputs) - len(site.operands))]
        inner.values = dict(zip(body.inputs, padded, strict=False))
        outputs = list(body.outputs)[: len(site.node.output)]
        return self._complete(self._nodes(body.nodes, outputs, inner, f"{site.label}/", site.depth + 1), site)

    def _branch(self, site: Site) -> list[Tensor]:
        """If: the branch that a constant condition selects."""
        condition = site.operands[0] if site.operands else None
        if not isinstance(condition, Value):
            return self._unknown(site)
        chosen = self.builder.array(condition)
        if chosen is None or chosen.size != 1:
            self._want(condition)
            return self.policy.refused(site, Refusal("If with a condition computed at run time", wanted=condition))
        branch = self._subgraph(site, "then_branch" if bool(chosen.reshape(-1)[0]) else "else_branch")
        return self._complete(self.graph(branch, site.scope.inner(), f"{site.label}/", site.depth), site)

    def _subgraph(self, site: Site, name: str) -> onnx.GraphProto:
        """The graph that attribute `name` holds."""
        found: onnx.GraphProto | None = next((a.g for a in site.node.attribute if a.name == name), None)
        if found is None:
            raise self._place(site).error(f"'{name}' is missing", about=(Entity(EntityKind.ATTRIBUTE, name),))
        return found

    def _unrolled(self, site: Site) -> list[Tensor]:
        """Loop and Scan: the body once per trip."""
        if any(isinstance(v, Unknown) for v in site.operands):
            return self._unknown(site)
        graph = self._subgraph(site, "body")
        before = self._expanded

        def body(inputs: Sequence[Value]) -> list[Value]:
            self._expanded += len(graph.node)
            if self._expanded > MOST_EXPANDED:
                raise NotUnrolledError("it expands to too many nodes")
            return self._trip(graph, site, inputs)

        opset = site.scope.opsets.get("", 1)
        loop = LoopNode(site.node, opset, _values(site.operands), self.builder, body, graph)
        try:
            results = self.policy.loop(lambda: self._wanting(loop))
        except NotUnrolledError as error:
            self._expanded = before
            wanted = error.wanted[0] if error.wanted else None
            return self.policy.refused(site, Refusal(f"{site.node.op_type} ({error.reason})", wanted=wanted))
        return self._complete(results, site)

    def _wanting(self, loop: LoopNode) -> list[Value]:
        """Unroll `loop`, or record the values it needs while their ops exist."""
        try:
            return loop.unrolled()
        except NotUnrolledError as error:
            for value in error.wanted:
                self._want(value)
            raise

    def _trip(self, graph: onnx.GraphProto, site: Site, inputs: Sequence[Value]) -> list[Value]:
        """Import the body of a loop once more. Raises NotUnrolledError if an output is not computed."""
        inner = site.scope.inner()
        names = [i.name for i in graph.input]
        if len(names) != len(inputs):
            got, expected = f"{len(inputs)} inputs", f"{len(names)}"
            raise self._place(site).error("its body has a different number of inputs", got=got, expected=expected)
        inner.values = dict(zip(names, inputs, strict=True))
        results = [v for v in self.graph(graph, inner, f"{site.label}/", site.depth) if isinstance(v, Value)]
        self.builder.loc = (site.label,)
        if len(results) < len(graph.output):
            raise NotUnrolledError("a part of its body cannot run on the PPU")
        return results

    def _unknown(self, site: Site) -> list[Tensor]:
        """A node that reads an unknown tensor: raises its error."""
        for operand in site.operands:
            self.policy.faults.add(operand.error if isinstance(operand, Unknown) else None)
        return site.unknown()

    def _constant(self, tensor: onnx.TensorProto, of_model: bool) -> Tensor:
        held = self.policy.constant(tensor)
        if held is not None:
            return held
        try:
            return self.builder.const(read_tensor(tensor, self.source, of_model), tensor.name)
        except ModelError as error:
            self.policy.faults.add(error)
            return Unknown()


def _values(operands: Sequence[Tensor]) -> list[Value | None]:
    """The operands as Values."""
    return [v for v in operands if isinstance(v, Value) or v is None]


__all__ = ["ModelImporter"]
