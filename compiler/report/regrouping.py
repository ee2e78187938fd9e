"""What the passes after fusion make of its groups: how many kernels there are, and of which nodes.

Invariant: the last count is the number of kernels that the pipeline builds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ppuc.compiler.passes.cascade import Cascade, Cascading, Decision
from ppuc.compiler.passes.fuse import Fuse
from ppuc.compiler.passes.join import Join
from ppuc.compiler.passes.place import Place
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.compiler.pipeline.manager import Run
from ppuc.ir.graph import Graph
from ppuc.ir.module import Module
from ppuc.targets.description import Target


@dataclass(frozen=True, slots=True)
class Regrouping:
    """A pass that changed the groups: how many there were and are, and, for the nodes that kernels are named after,
    how many kernels more or less each has."""

    name: str
    before: int
    after: int
    nodes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Regrouped:
    """What happened after fusion. `kernels` is the number of groups in the end; `joined` pairs a tensor and the
    concatenation of it that needs no copy, because the tensor is computed in its place."""

    kernels: int
    passes: tuple[Regrouping, ...]
    joined: frozenset[tuple[str, str]]
    cascades: tuple[Decision, ...]


def regrouped(module: Module, target: Target) -> Regrouped:
    """Run the passes from fusion up to placement on `module`, which has been through those before."""
    at, end = (next(i for i, step in enumerate(PIPELINE) if isinstance(step, kind)) for kind in (Fuse, Place))
    module = Run(target, PIPELINE[at : at + 1]).run(module)
    passes: list[Regrouping] = []
    joined: frozenset[tuple[str, str]] = frozenset()
    cascades: tuple[Decision, ...] = ()
    for step in PIPELINE[at + 1 : end]:
        if isinstance(step, Cascade):
            cascades = tuple(Cascading(module.graph, target).decisions())
        before, module = module.graph, Run(target, (step,)).run(module)
        if isinstance(step, Join):
            joined = _joined(before, module.graph)
        old, new = _kernels(before), _kernels(module.graph)
        nodes = {node: new[node] - old[node] for node in old | new if new[node] != old[node]}
        if nodes:
            passes.append(Regrouping(step.name, old.total(), new.total(), nodes))
    return Regrouped(_kernels(module.graph).total(), tuple(passes), joined, cascades)


def _kernels(graph: Graph) -> Counter[str]:
    """Number of kernels by the first node of each."""
    groups = (op for op in graph.ops if op.name == "group")
    return Counter(op.loc[0] if op.loc else op.results[0].name for op in groups)


def _joined(before: Graph, after: Graph) -> frozenset[tuple[str, str]]:
    """(tensor, whole) of what is no tensor of its own any more."""
    left = {r.name for op in after.ops for r in op.results} | {p.name for p in after.params}
    concats = (op for op in before.ops if op.body is not None and [o.name for o in op.body.ops] == ["concat"])
    return frozenset((v.name, op.results[0].name) for op in concats for v in op.operands if v.name not in left)
