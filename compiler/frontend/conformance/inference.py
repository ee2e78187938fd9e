"""What ONNX's own strict type and shape inference finds.

It knows, for most ops, which types and shapes go together and which attributes fit them, and compares what the file
declares of outputs and inner tensors with what it infers. Sizes that are symbols are taken as any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx
import onnx.shape_inference

from ppuc.compiler.frontend.conformance.findings import Finding, NodeSite

_OP = re.compile(r"\(op_type:([^,)]*)(?:, node name: ([^)]*))?\): ")
_KIND = re.compile(r"\[(?:Shape|Type)InferenceError\] ?")
UNSUPPORTED = ("not currently supported", "not supported", "No Op registered", "unsupported type")
"""Parts of messages about what inference itself cannot do."""


def inference_findings(model: onnx.ModelProto, sites: list[NodeSite]) -> Iterator[Finding]:
    """The first contradiction that strict inference meets."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        found = _OP.findall(text)
        inside = len({op for op, _ in found}) > 1 and not _has_graphs(model, found[0][0])
        if inside or not found:  # inside the body that a schema gives for an op: not the file's
            return
        op, name = found[0]
        reason = _KIND.sub("", text[text.rindex("): ") + 3 :]) if "): " in text else text
        yield Finding(
            _place(op, name, sites), "breaks the rules of its op", reason[:300] or "types or shapes that do not fit"
        )


def _has_graphs(model: onnx.ModelProto, op: str) -> bool:
    return any(n.op_type == op and any(a.HasField("g") for a in n.attribute) for n in model.graph.node)


def _place(op: str, name: str, sites: list[NodeSite]) -> str:
    """The node that a message speaks of: by its name, else the only one of its op."""
    named = [s for s in sites if s.node.op_type == op and (s.node.name == name if name else True)]
    return named[0].place if len(named) == 1 else f"node '{name}' ({op})" if name else f"a node ({op})"
