"""Rule M11: stored tensors have as many bytes as their shapes need, where the file says that they are.

Sparse tensors and element types that the PPU lacks are left to whoever reads them, and so are large tensors of elements
below a byte, which reading unpacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import onnx

from ppuc.compiler.frontend.conformance.model_rules import stored_tensors
from ppuc.compiler.frontend.order import captured, ordered, subgraphs
from ppuc.compiler.frontend.source import Source
from ppuc.compiler.frontend.tensors import foreign, packed_range, read_tensor

LARGEST_UNPACKED = 1 << 20
"""Elements."""


def check_contents(source: Source) -> None:
    """Check the names and the order of the nodes of every graph and function, and every stored tensor. Raises
    ModelError."""
    graph = source.model.graph
    _check_nodes(graph.node, _own_names(graph), [o.name for o in graph.output], source.where)
    for function in source.model.functions:
        _check_nodes(function.node, set(function.input), function.output, source.where)
    for index, (_, tensor) in enumerate(stored_tensors(source.model)):
        large = packed_range(tensor.data_type) is not None and math.prod(tensor.dims) > LARGEST_UNPACKED
        if not foreign(tensor.data_type) and not large:
            read_tensor(tensor, source, of_model=index < len(graph.initializer))


def _own_names(graph: onnx.GraphProto) -> set[str]:
    """What a graph defines beside the results of its nodes."""
    stored = (*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer))
    return {*stored, *(i.name for i in graph.input)}


def _check_nodes(nodes: Sequence[onnx.NodeProto], defined: Set[str], outputs: Sequence[str], where: str) -> None:
    """Check nodes and the graphs inside them, which see `defined` and results of all these nodes, unless they define
    the same name."""
    ordered(nodes, defined, outputs, where)
    visible = defined | {name for node in nodes for name in node.output}
    for node in nodes:
        for graph in subgraphs(node):
            seen = _own_names(graph) | (captured(graph) & visible)
            _check_nodes(graph.node, seen, [o.name for o in graph.output], where)
