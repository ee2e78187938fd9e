"""Maps values of the lowered graph to ONNX nodes' outputs, so that inner tensors can be compared with the model's.

A value stands for a node when its op is the last one that carries the node's name (earlier ones are intermediate
steps). If an op carries several such nodes, the value stands for the last one in model order. Layouts may differ: a
value matches a reference of the same shape, of the channels-last shape, or of a shape that differs only in axes of size
1.

Invariant: keeping layers only adds graph outputs, so every value equals that of the ordinary program.
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
"""Kept layers are inserted before this pass: groups are final and outputs have no memory yet."""

PREFIX = "ppuc:layer:"
"""Prefix of a kept layer's output name; the value's name follows. Graph values never contain a colon."""


@dataclass(frozen=True)
class KeepLayers(Pass):
    """Make the result of every fused group an output, so that it can be compared with the model's own tensor.

    (%x) -> (%y) { %h = group(%x) ...; %y = group(%h) ... }      ->      (%x) -> (%y, %h) { ... }
    """

    name: ClassVar[str] = "keep-layers"
    before: ClassVar[str] = PLACE

    def run(self, module: Module, target: Target) -> Module:
        """The module with the added outputs; the same object when all candidates are outputs already."""
        present = {v.name for v in module.graph.results}
        known = layer_candidates(module.graph)
        values = [r for op in module.graph.ops for r in op.results if r.name in known and r.name not in present]
        if not values:
            return module
        graph = replace(module.graph, results=(*module.graph.results, *values))
        outputs = tuple((PREFIX + v.name, v.name) for v in values)
        return replace(module, graph=graph, outputs=(*module.outputs, *outputs))


def layer_candidates(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Value name -> the ONNX nodes whose output it may be: those that no later op carries."""
    last: dict[str, str] = {}
    for op in graph.ops:
        if op.name != "const" and len(op.results) == 1:
            last.update((node, op.results[0].name) for node in op.loc)
    found: dict[str, list[str]] = {}
    for node, value in last.items():
        found.setdefault(value, []).append(node)
    return {value: tuple(nodes) for value, nodes in found.items()}


def final_node(candidates: Iterable[str], order: Sequence[str]) -> str | None:
    """The candidate that comes last in the model; None when no candidate is a node of the main graph."""
    place = {node: i for i, node in enumerate(order)}
    return max((c for c in candidates if c in place), key=lambda c: place[c], default=None)


def node_values(graph: Graph) -> dict[str, str]:
    """ONNX node -> the value of the imported graph that is its output."""
    return {node: value for value, nodes in layer_candidates(graph).items() for node in nodes}


def matching(want: np.ndarray, got: np.ndarray) -> np.ndarray | None:
    """`want` in the layout of `got`; the numerically closer one if two layouts fit, None if none does."""
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
    """The output name that keeps `value` of graph number `part`."""
    return f"{PREFIX}{part}:{value}"


def kept_layers(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kept layers among a program's outputs, by value name."""
    return {name.removeprefix(PREFIX): array for name, array in outputs.items() if name.startswith(PREFIX)}
