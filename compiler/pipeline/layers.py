"""Comparing inner tensors with the model's: which value of the lowered graph is which ONNX node's output.

A value stands for a node when it is the result of the last op that the node's name reached (an earlier one is a step on
the way), and, of several such nodes fused into one op, for the last in the model's order. Layouts may differ: a value
matches a reference of the same shape, of the same shape with channels last, or of one that differs in axes of size 1
only.

Invariant: keeping layers adds graph outputs and changes nothing else, so the values are those of the ordinary program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.targets.description import Target

PLACE = "memory-space-assignment"
"""The pass before which the graph's fused groups are final and its outputs not yet given memory."""

PREFIX = "ppuc:layer:"
"""Output names of kept layers are this and the value's name. No value of a graph has a colon in its name."""


@dataclass(frozen=True)
class KeepLayers(Pass):
    """Make the result of every fused group an output, so that it can be compared with the model's own tensor.

    (%x) -> (%y) { %h = group(%x) ...; %y = group(%h) ... }      ->      (%x) -> (%y, %h) { ... }
    """

    name: ClassVar[str] = "keep-layers"
    before: ClassVar[str] = PLACE

    def run(self, module: Module, target: Target) -> Module:
        """The module with more outputs; itself when every candidate is one already."""
        present = {v.name for v in module.graph.results}
        known = layer_candidates(module.graph)
        values = [r for op in module.graph.ops for r in op.results if r.name in known and r.name not in present]
        if not values:
            return module
        graph = replace(module.graph, results=(*module.graph.results, *values))
        outputs = tuple((PREFIX + v.name, v.name) for v in values)
        return replace(module, graph=graph, outputs=(*module.outputs, *outputs))


def layer_candidates(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Value name -> the ONNX nodes whose output it may be: those that no later op mentions."""
    last: dict[str, str] = {}
    for op in graph.ops:
        if op.name != "const" and len(op.results) == 1:
            last.update((node, op.results[0].name) for node in op.loc)
    found: dict[str, list[str]] = {}
    for node, value in last.items():
        found.setdefault(value, []).append(node)
    return {value: tuple(nodes) for value, nodes in found.items()}


def final_node(candidates: Iterable[str], order: Sequence[str]) -> str | None:
    """The candidate that comes last in the model; None when none of them is a node of the model's main graph."""
    place = {node: i for i, node in enumerate(order)}
    return max((c for c in candidates if c in place), key=lambda c: place[c], default=None)


def node_values(graph: Graph) -> dict[str, str]:
    """ONNX node -> the value of the imported graph that is its output."""
    return {node: value for value, nodes in layer_candidates(graph).items() for node in nodes}


def matching(want: np.ndarray, got: np.ndarray) -> np.ndarray | None:
    """`want` in the layout of `got`; None when no layout that is tried fits. Of two that fit, the closer one."""
    layouts = [want]
    if want.ndim >= 3:
        layouts.append(np.moveaxis(want, 1, -1))
    squeezed = tuple(n for n in got.shape if n != 1)
    fitting = [w.reshape(got.shape) for w in layouts if tuple(n for n in w.shape if n != 1) == squeezed]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda w: _distance(w, got))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        error = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.nan_to_num(error).sum())


def kept_name(part: int, value: str) -> str:
    """The output that keeps `value` of one of several graphs."""
    return f"{PREFIX}{part}:{value}"


def kept_layers(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kept layers among a program's outputs, by value name."""
    return {name.removeprefix(PREFIX): array for name, array in outputs.items() if name.startswith(PREFIX)}
