"""Decides which nodes have enough arithmetic to be worth compiling: products, convolutions and ops that contain them.

Invariant: results depend only on the nodes; sizes are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ppuc.compiler.frontend.offload.product_ops import PRODUCTS
from ppuc.compiler.frontend.order import subgraphs


def has_products(nodes: Sequence[onnx.NodeProto], functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    """Whether one of the nodes sums products, itself, in its bodies or in functions of the model that it calls."""
    todo, seen = list(nodes), set[tuple[str, str]]()
    while todo:
        node = todo.pop()
        key = (node.domain, node.op_type)
        if key in functions:
            todo += list(functions[key].node) if key not in seen else []
            seen.add(key)
        elif node.op_type in PRODUCTS:
            return True
        for graph in subgraphs(node):
            todo += graph.node
    return False
