"""Maps values of the lowered graph to ONNX nodes' outputs, so that inner tensors can be compared with the model's.

A value stands for a node when the op that computes it, inside the fused group, is the last one that carries the node's
name: earlier ones are intermediate steps, and the output of a node that ends further up in the group is not the group's
result. If that op carries several nodes, the value stands for the last one in model order. Layouts may differ: a value
matches a reference of the same shape, of the channels-last shape, or of a shape that differs only in axes of size 1.

Invariant: keeping layers only adds graph outputs, so every value equals that of the ordinary program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppuc.compiler.passes.base import Pass
from ppuc.ir.graph import Graph, Op
from ppuc.ir.module import Module
from ppuc.targets.description import Target

PLACE = "memory-space-assignment"
"""Kept layers are inserted before this pass: groups are final and outputs have no memory yet."""

_NO_STEPS = ("const", "stage")

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
    """Value name -> the ONNX nodes whose output it may be: those that the op computing it carries and no later op
    does."""
    last: dict[str, Op] = {}
    for op in graph.ops:
        last.update((node, step) for step in _steps(op) for node in step.loc)
    found: dict[str, tuple[str, ...]] = {}
    for op in graph.ops:
        for value, computing in _computing(op).items():
            nodes = tuple(node for node in computing.loc if last.get(node) is computing)
            found |= {value: nodes} if nodes else {}
    return found


def _steps(op: Op) -> Iterator[Op]:
    """The ops of a group; any other op by itself. Constants are no steps, and copies between memories compute
    nothing."""
    for step in op.body.ops if op.body is not None else (op,):
        if step.name not in _NO_STEPS:
            yield step


def _computing(op: Op) -> dict[str, Op]:
    """For each result of a top-level op, by name, the op that computes it: in a group, the last one before the result
    that has a name, because what passes add to convert and store has none."""
    if op.body is None:
        return {op.results[0].name: op} if op.name not in _NO_STEPS and len(op.results) == 1 else {}
    found: dict[str, Op] = {}
    for value, inner in zip(op.results, op.body.results, strict=True):
        step = op.body.producer(inner)
        while step is not None and not step.loc and len(step.operands) == 1:
            step = op.body.producer(step.operands[0])
        found |= {value.name: step} if step is not None else {}
    return found


def final_node(candidates: Iterable[str], order: Sequence[str]) -> str | None:
    """The candidate that comes last in the model; None when no candidate is a node of the main graph."""
    place = {node: i for i, node in enumerate(order)}
    return max((c for c in candidates if c in place), key=lambda c: place[c], default=None)


def node_values(graph: Graph) -> dict[str, str]:
    """ONNX node -> the value of the imported graph that is its output."""
    return {node: value for value, nodes in layer_candidates(graph).items() for node in nodes}


def held_by(
    meant: np.ndarray,
    nodes: Iterable[str],
    wanted: Callable[[str], np.ndarray | None],
    agrees: Callable[[str, np.ndarray, np.ndarray], bool],
) -> str | None:
    """The first of `nodes` whose output a value holds: None when it is none of theirs. `meant` is what the compiled
    graph says the value is, `wanted` gives what the model says a node's output is, and `agrees` compares the two."""
    for node in nodes:
        want = wanted(node)
        reference = matching(want, meant) if want is not None else None
        if reference is not None and agrees(node, meant, reference):
            return node
    return None


def matching(want: np.ndarray, got: np.ndarray) -> np.ndarray | None:
    """`want` in the layout of `got`; the numerically closer one if two layouts fit, None if none does."""
    return min(_layouts(want, got), key=lambda w: _distance(w, got), default=None)


def restored(got: np.ndarray, want: np.ndarray) -> np.ndarray | None:
    """`got` in the layout of `want`, the opposite of `matching`."""
    places = np.arange(want.size).reshape(want.shape)
    pairs = zip(_layouts(want, got), _layouts(places, got), strict=True)
    _, place = min(pairs, key=lambda pair: _distance(pair[0], got), default=(None, None))
    if place is None:
        return None
    back = np.empty(want.size, got.dtype)
    back[place.reshape(-1)] = got.reshape(-1)
    return back.reshape(want.shape)


def _layouts(want: np.ndarray, got: np.ndarray) -> list[np.ndarray]:
    """`want` in every layout that has the shape of `got`."""
    layouts = [want, np.moveaxis(want, 1, -1)] if want.ndim >= 3 else [want]
    squeezed = tuple(n for n in got.shape if n != 1)
    return [w.reshape(got.shape) for w in layouts if tuple(n for n in w.shape if n != 1) == squeezed]


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
