"""What ONNX's own strict type and shape inference finds.

It knows, for most ops, which types and shapes go together and which attributes fit them, and compares what the file
declares of outputs and inner tensors with what it infers. Sizes that are symbols are taken as any size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.conformance.findings import Finding, NodeSite
from ppuc.compiler.frontend.functions import DEEPEST_CALL, FunctionKey, expanded_nodes, local_functions
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.source import normal_domain

_OP = re.compile(r"\(op_type:([^,)]*)(?:, node name: ([^)]*))?\): ")
_KIND = re.compile(r"\[(?:Shape|Type)InferenceError\] ?")
UNDEFINED = "expected to have type but instead is null"
"""In messages about a node that reads what nothing defines."""
UNREADABLE = "ParseData type mismatch"
"""In messages about a constant that inference reads as i64 only, where the schema allows i32 too."""
MOST_EXPANDED = 20_000
"""Nodes that calls of functions may become where inference is asked."""


def inference(model: onnx.ModelProto, sites: list[NodeSite]) -> tuple[onnx.ModelProto, list[Finding]]:
    """The model with what strict inference knows (as it is, where that fails), and the first contradiction that it
    meets. Models whose functions call each other in circles, too deeply or too often are left to the importer, which
    refuses them: inference would follow every call."""
    functions = local_functions(model)
    if expanded_nodes(model.graph.node, functions, MOST_EXPANDED) > MOST_EXPANDED or too_deep(functions):
        return model, []
    try:
        return infer_shapes(model, check_type=True, strict=True), []
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        found = _OP.findall(text)
        inside = len({op for op, _ in found}) > 1 and not _has_graphs(model, found[0][0])
        if inside or not found:  # inside the body that a schema gives for an op: not the file's
            return model, []
        if UNDEFINED in text:  # ordering the nodes names what is never defined, and what may have been meant
            return model, []
        if UNREADABLE in text:  # axes in i32, which Pad allows
            return model, []
        op, name = found[0]
        reason = _KIND.sub("", text[text.rindex("): ") + 3 :]) if "): " in text else text
        what = reason[:300] or "types or shapes that do not fit"
        return model, [Finding(_place(op, name, sites), "breaks the rules of its op", what)]


def too_deep(functions: Mapping[FunctionKey, onnx.FunctionProto]) -> bool:
    """Whether functions call each other deeper than importing follows them, or in a circle."""
    depth: dict[FunctionKey, int] = {}

    def of(key: FunctionKey, level: int) -> int:
        if level > DEEPEST_CALL:
            return level
        if key not in depth:
            depth[key] = DEEPEST_CALL + 1  # as long as it is open: a call from inside is a circle
            called = ((normal_domain(n.domain), n.op_type, n.overload) for n in functions[key].node)
            depth[key] = 1 + max((of(k, level + 1) for k in called if k in functions), default=0)
        return depth[key]

    return any(of(key, 0) > DEEPEST_CALL for key in functions)


def _has_graphs(model: onnx.ModelProto, op: str) -> bool:
    return any(n.op_type == op and any(a.HasField("g") for a in n.attribute) for n in model.graph.node)


def _place(op: str, name: str, sites: list[NodeSite]) -> str:
    """The node that a message speaks of: by its name, else the only one of its op."""
    named = [s for s in sites if s.node.op_type == op and (s.node.name == name if name else True)]
    return named[0].place if len(named) == 1 else f"node '{name}' ({op})" if name else f"a node ({op})"
