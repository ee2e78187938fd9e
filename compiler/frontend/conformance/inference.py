"""Findings of ONNX's own strict type and shape inference.

For most ops it checks that types, shapes and attributes are consistent, and that declared types of outputs and inner
tensors match the inferred ones. Symbolic sizes match any size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.conformance.findings import Finding, NodeSite
from ppuc.compiler.frontend.conformance.node_rules import schema_of
from ppuc.compiler.frontend.functions import DEEPEST_CALL, FunctionKey, expanded_nodes, local_functions
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.source import normal_domain

_OP = re.compile(r"\(op_type:([^,)]*)(?:, node name: ([^)]*))?\): ")
_KIND = re.compile(r"\[(?:Shape|Type)InferenceError\] ?")
UNDEFINED = "expected to have type but instead is null"
"""Part of messages about a node that reads an undefined tensor."""
UNREADABLE = "ParseData type mismatch"
"""Part of messages about a constant that inference reads only as i64, where the schema also allows i32."""
MOST_EXPANDED = 20_000
"""Maximum nodes that function calls may expand to for inference."""


def inference(model: onnx.ModelProto, sites: list[NodeSite]) -> tuple[onnx.ModelProto, list[Finding]]:
    """The model with what strict inference knows (as it is, where that fails), and the first contradiction that it
    meets. Models whose functions call each other in circles, too deeply or too often are left to the importer, which
    refuses them: inference would follow every call."""
    functions = local_functions(model)
    if expanded_nodes(model.graph.node, functions, MOST_EXPANDED) > MOST_EXPANDED or too_deep(functions):
        return model, []
    try:
        return infer_shapes(model, check_type=True, strict=True, data_prop=True), []
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        parts = str(error).split("\n(op_type:")  # of one node each, and what follows from it at later ones
        texts = [parts[0], *(f"(op_type:{part}" for part in parts[1:])]
        found = (_finding(model, sites, " ".join(text.split())) for text in texts)
        return model, [finding for finding in found if finding is not None][:1]


def _finding(model: onnx.ModelProto, sites: list[NodeSite], text: str) -> Finding | None:
    """What inference says about one node; None if it is not about the file, or others say it better."""
    found, local = _OP.findall(text), {f.name for f in model.functions}
    while len(found) > 1 and found[0][0] in local:  # a node in the body of a function of the file
        del found[0]
    inside = len({op for op, _ in found}) > 1 and not _has_graphs(model, found[0][0])
    if inside or not found:  # inside a function body from a schema, not from the file
        return None
    if UNDEFINED in text:  # ordering the nodes reports undefined names, with suggestions
        return None
    if UNREADABLE in text:  # i32 axes, which Pad allows
        return _of_wrong_type(model, sites, text)
    op, name = found[0]
    reason = _KIND.sub("", text[text.rindex("): ") + 3 :]) if "): " in text else text
    what = reason[:300] or "inconsistent types or shapes"
    return Finding(_place(op, name, sites), "breaks the rules of its op", what)


def _of_wrong_type(model: onnx.ModelProto, sites: list[NodeSite], text: str) -> Finding | None:
    """The node that reads the constant that `text` names, if its op allows no elements of that type."""
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type).lower() for t in model.graph.initializer}
    name = next(iter(re.findall(re.escape(UNREADABLE) + r" for tensor: (.*?)\. Expected", text)), "")
    for site in sites:
        domain = normal_domain(site.node.domain)
        schema = schema_of(site.node.op_type, site.opsets.get(domain, 1), domain)
        for given, formal in zip(site.node.input, schema.inputs if schema is not None else (), strict=False):
            if given == name and name in types and f"tensor({types[name]})" not in formal.types:
                what = f"input '{formal.name}' has elements of the wrong type"
                return site.broken(what, types[name], ", ".join(sorted(formal.types)))
    return None


def too_deep(functions: Mapping[FunctionKey, onnx.FunctionProto]) -> bool:
    """Whether function calls are nested deeper than the importer follows, or recursive."""
    depth: dict[FunctionKey, int] = {}

    def of(key: FunctionKey, level: int) -> int:
        if level > DEEPEST_CALL:
            return level
        if key not in depth:
            depth[key] = DEEPEST_CALL + 1  # while open: a call from inside is recursive
            called = ((normal_domain(n.domain), n.op_type, n.overload) for n in functions[key].node)
            depth[key] = 1 + max((of(k, level + 1) for k in called if k in functions), default=0)
        return depth[key]

    return any(of(key, 0) > DEEPEST_CALL for key in functions)


def _has_graphs(model: onnx.ModelProto, op: str) -> bool:
    return any(n.op_type == op and any(a.HasField("g") for a in n.attribute) for n in model.graph.node)


def _place(op: str, name: str, sites: list[NodeSite]) -> str:
    """The node that a message is about: by its name, else the only node of its op."""
    named = [s for s in sites if s.node.op_type == op and (s.node.name == name if name else True)]
    return named[0].place if len(named) == 1 else f"node '{name}' ({op})" if name else f"a node ({op})"
