"""The ONNX graph of a model for reports: nodes, the tensors between them, and the modules that they belong to.

Invariant: weights are not read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import onnx

from ppuc.compiler.frontend.source import ModelSource, read_source
from ppuc.compiler.frontend.tensors import type_text

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node by PyTorch's exporter (since 2.5): names of the modules around it, outermost first."""


def graph_record(model: ModelSource) -> dict[str, Any]:
    """Nodes in the model's order with their op, tensors that they read (weights and omitted inputs aside) and write,
    and module path; inputs and outputs of the model; the type of each tensor that the file gives. Nodes without a name
    are called `OpType_<index>`, as everywhere in ppuc."""
    graph = read_source(model).model.graph
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    weights |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    declared = (*graph.input, *graph.output, *graph.value_info)
    return {
        "nodes": [_node(node, i, weights) for i, node in enumerate(graph.node) if node.op_type != "Constant"],
        "inputs": [v.name for v in graph.input if v.name not in weights],
        "outputs": [v.name for v in graph.output],
        "types": {v.name: type_text(v.type) for v in declared},
    }


def _node(node: onnx.NodeProto, index: int, weights: set[str]) -> dict[str, Any]:
    name = node.name or f"{node.op_type}_{index}"
    return {
        "node": name,
        "op": node.op_type,
        "reads": list(dict.fromkeys(v for v in (*node.input, *_captured(node)) if v and v not in weights)),
        "weights": sum(v in weights for v in node.input),
        "writes": [v for v in node.output if v],
        "path": list(_path(node, name)),
    }


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that the node's bodies read and do not define; nothing for a node without bodies."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            if not body.node:
                continue
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {v for inner in body.node for v in inner.output}
            yield from (v for inner in body.node for v in (*inner.input, *_captured(inner)) if v and v not in own)


def _path(node: onnx.NodeProto, name: str) -> tuple[str, ...]:
    """Modules around a node, outermost first: PyTorch's metadata, or a name such as /layer1/layer1.0/conv1/Conv."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                break
            return tuple(str(scope) for scope in scopes[:-1] if scope)
    return tuple(part for part in name.split("/")[:-1] if part)
