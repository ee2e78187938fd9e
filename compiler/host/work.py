"""Estimates the shares of a model's arithmetic on the PPU and the host.

A contraction counts its multiply-accumulates, any other op its computed points. The work of a host node is unknown: it
counts the elements of its largest tensor, which is exact for elementwise ops and a lower bound for others.

Invariant: results depend only on graphs and nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppuc.compiler.frontend.offload.hosting import HostNode
from ppuc.ir.graph import Graph, Value
from ppuc.ir.ops import OPS, Kind, points

_FREE = (Kind.VIEW, Kind.CONSTANT, Kind.STRUCTURE)


def ppu_work(graph: Graph) -> int:
    """Points that the ops of `graph` compute."""
    return sum(points(op) for op in graph.ops if OPS[op.name].kind not in _FREE)


def host_work(nodes: Sequence[HostNode]) -> int:
    """Elements of the largest known tensor of each node."""
    return sum(_largest(node) for node in nodes)


def _largest(node: HostNode) -> int:
    tensors = (*node.inputs, *node.outputs)
    return max((t.type.elements for t in tensors if isinstance(t, Value)), default=1)
