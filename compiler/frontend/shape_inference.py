"""ONNX's shape inference, protected from nodes that it crashes on or misjudges.

The inference functions of some ops read the type of an input without checking that it exists, and crash the process.
Such a node is hidden from inference, under an unknown domain, unless all its inputs have types. Pools with ceil_mode
are hidden always: inference counts windows that begin behind the input, which ONNX Runtime, PyTorch and the text of the
op (opset 22) leave out. Shapes declared for the results of Constant nodes are ignored where the tensor has another one:
onnxruntime-genai declares all of them as scalars, and nothing reads them.

Invariant: the result has the nodes of the model; only types that depend on hidden nodes may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import chain

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.order import subgraphs

HIDDEN = "ppuc.hidden."
CRASHING = ("EyeLike", "RegexFullMatch")
"""Standard ops, found by inferring ONNX's own node tests without the types of their inputs, with onnx 1.23. In
ai.onnx.ml it is LabelEncoder, DictVectorizer and TreeEnsemble; none of that domain gains from being inferred."""


def infer_shapes(
    model: onnx.ModelProto, *, check_type: bool = False, strict: bool = False, data_prop: bool = False
) -> onnx.ModelProto:
    """A copy of `model` with the types that ONNX infers. Raises onnx.shape_inference.InferenceError, with `strict` also
    for a node that breaks the rules of its op, with `check_type` for operands of wrong types."""
    whole = model
    restated = _restated_constants(model.graph)
    if restated or any(_crashes(node) or _misjudged(node) for node in _nodes(model)):
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        for index in restated:
            whole.graph.value_info[index].type.tensor_type.ClearField("shape")
        domains = _hide(whole.graph.node, _typed(whole.graph))
        whole.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(domains))
        for function in whole.functions:
            domains = _hide(function.node, frozenset())
            function.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(domains))
    found = onnx.shape_inference.infer_shapes(whole, check_type, strict, data_prop)
    return _shown(found) if whole is not model else found


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, including those of subgraphs and functions."""
    todo = [*model.graph.node, *chain.from_iterable(f.node for f in model.functions)]
    while todo:
        node = todo.pop()
        yield node
        todo += chain.from_iterable(graph.node for graph in subgraphs(node))


def _restated_constants(graph: onnx.GraphProto) -> list[int]:
    """Indices in value_info of declarations that give the result of a Constant node another shape."""
    held = {
        n.output[0]: a.t.dims for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    }
    declared = ((i, v, v.type.tensor_type) for i, v in enumerate(graph.value_info) if v.name in held)
    return [
        i
        for i, info, type in declared
        if type.HasField("shape") and [d.dim_value for d in type.shape.dim] != list(held[info.name])
    ]


def _crashes(node: onnx.NodeProto) -> bool:
    return node.domain == "ai.onnx.ml" or (node.domain in ("", "ai.onnx") and node.op_type in CRASHING)


def _misjudged(node: onnx.NodeProto) -> bool:
    pools = node.domain in ("", "ai.onnx") and node.op_type in ("AveragePool", "LpPool", "MaxPool")
    return pools and any(a.name == "ceil_mode" and a.i for a in node.attribute)


def _typed(graph: onnx.GraphProto) -> Set[str]:
    """Names of tensors with declared types in a graph."""
    infos = chain(graph.input, graph.value_info)
    return {i.name for i in infos if i.type.WhichOneof("value")} | {t.name for t in graph.initializer}


def _hide(nodes: Iterable[onnx.NodeProto], typed: Set[str]) -> set[str]:
    """Hide nodes that inference would crash on or misjudge; returns their temporary domains."""
    domains: set[str] = set()
    for node in nodes:
        if _misjudged(node) or (_crashes(node) and not set(filter(None, node.input)) <= typed):
            node.domain = HIDDEN + node.domain
            domains.add(node.domain)
        for graph in subgraphs(node):
            domains |= _hide(graph.node, typed | _typed(graph))
    return domains


def _shown(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its hidden nodes restored."""
    for node in _nodes(model):
        if node.domain == HIDDEN:
            node.ClearField("domain")
        elif node.domain.startswith(HIDDEN):
            node.domain = node.domain.removeprefix(HIDDEN)
    for owner in (model, *model.functions):
        kept = [o for o in owner.opset_import if not o.domain.startswith(HIDDEN)]
        del owner.opset_import[:]
        owner.opset_import.extend(kept)
    return model


__all__ = ["infer_shapes"]
