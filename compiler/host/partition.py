"""Partitions a hosted model into steps that alternate between PPU and host.

There are three sides: the PPU, the host, and deferred nodes, which are compiled for the PPU at run time. Every op and
node gets a time whose remainder modulo three is its side: the smallest time of that side that is not before its
operands'. So each side runs as early, and sides alternate as rarely, as dependences allow.

Deferrable nodes without a product or convolution among them run on the host: only substantial arithmetic is worth
compiling and the transfer over the link.

Invariant: a part reads only inputs and earlier parts; constants belong to every part that reads them; parts contain no
dead code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from ppuc.compiler.frontend.offload.deferred import is_control
from ppuc.compiler.frontend.offload.hosting import HostNode, HostOperand, node_model
from ppuc.compiler.frontend.offload.load_hosted import HostedModel
from ppuc.compiler.frontend.offload.products import has_products
from ppuc.compiler.frontend.order import subgraphs
from ppuc.ir.graph import Graph, Op

Maker = TypeVar("Maker", bound=Op | HostNode)

SIDES = PPU, HOST, DEFERRED = range(3)
START = HOST - len(SIDES)
"""First time: the host may run before the PPU's first part."""


@dataclass(frozen=True, slots=True)
class PpuPart:
    """A graph for the PPU; its params and results are tensors of the whole model, with their names."""

    graph: Graph


@dataclass(frozen=True, slots=True)
class HostPart:
    """Nodes for the host in one ONNX model; `inputs` and `outputs` are tensors of the whole model."""

    nodes: tuple[HostNode, ...]
    inputs: tuple[HostOperand, ...]
    outputs: tuple[HostOperand, ...]
    model: bytes


@dataclass(frozen=True, slots=True)
class DeferredPart(HostPart):
    """Nodes for the PPU once their sizes are known: one If, Loop or Scan (`control`) whose bodies are compiled, or
    nodes that become one program."""

    control: bool


Part = PpuPart | HostPart


def partition(model: HostedModel) -> tuple[Part, ...]:
    """The parts of `model` in the order in which they run."""
    model = replace(model, nodes=_with_sides(model))
    constants = _constants(model)
    times = _times(model, constants)
    ops = _live_ops(model)
    read = _readers(model, ops, constants)
    parts: list[Part] = []
    ops_at, nodes_at = _by_time(ops, times), _by_time(model.nodes, times)
    for time in sorted({*ops_at, *nodes_at, PPU}):
        if time % len(SIDES) == PPU:
            part = _ppu_part(model, ops_at.get(time, ()), constants, read, time)
            parts += [PpuPart(part)] if part is not None else []
        else:
            parts += [_host_part(nodes, model, read) for nodes in _runs(nodes_at.get(time, ()))]
    return tuple(parts)


def _with_sides(model: HostedModel) -> tuple[HostNode, ...]:
    """The nodes; deferred ones without a product among them are moved to the host."""
    functions = {(f.domain, f.name): f for f in model.functions}
    constants = _constants(model)
    while True:
        at = _by_time(model.nodes, _times(model, constants))
        runs = [run for t, nodes in at.items() if t % len(SIDES) == DEFERRED for run in _runs(nodes)]
        light = {id(n) for run in runs if not has_products([n.proto for n in run], functions) for n in run}
        if not light:
            return model.nodes
        model = replace(model, nodes=tuple(_for_host(n) if id(n) in light else n for n in model.nodes))


def _for_host(node: HostNode) -> HostNode:
    text = f"{node.reason}; without products it is not worth a program of its own"
    return replace(node, deferred=False, reason=replace(node.reason, text=text))


def _constants(model: HostedModel) -> dict[str, Op]:
    return {op.results[0].name: op for op in model.graph.ops if op.name == "const"}


def _by_time(makers: Iterable[Maker], times: Mapping[str, int]) -> dict[int, list[Maker]]:
    """Time -> the ops or nodes that run then, in order."""
    found: dict[int, list[Maker]] = {}
    for maker in makers:
        found.setdefault(times[_key(maker)], []).append(maker)
    return found


def _side(maker: Op | HostNode) -> int:
    if isinstance(maker, Op):
        return PPU
    return DEFERRED if maker.deferred else HOST


def _key(maker: Op | HostNode) -> str:
    """The name of its first result."""
    results = maker.results if isinstance(maker, Op) else [o for o in maker.outputs if o is not None]
    return results[0].name


def _times(model: HostedModel, constants: Mapping[str, Op]) -> dict[str, int]:
    """Time of every op and node by key, dependencies first (the two lists are each in order, but not together)."""
    makers: dict[str, Op | HostNode] = {r.name: op for op in model.graph.ops for r in op.results}
    makers |= {o.name: n for n in model.nodes for o in n.outputs if o is not None}
    times: dict[str, int] = {}
    todo = [*map(_key, model.nodes), *map(_key, _live_ops(model))]
    while todo:
        maker = makers[todo[-1]]
        key = _key(maker)
        if key in times or key in constants:
            todo.pop()
            continue
        sources = [makers[n] for n in _inputs(maker, constants) if n in makers]
        missing = [_key(s) for s in sources if _key(s) not in times]
        if missing:
            todo += missing
            continue
        latest = max((times[_key(s)] for s in sources), default=START)
        times[key] = latest + (_side(maker) - latest) % len(SIDES)
        todo.pop()
    return times


def _inputs(maker: Op | HostNode, constants: Mapping[str, Op]) -> list[str]:
    if isinstance(maker, HostNode):
        return [i.name for i in maker.inputs if i.name not in maker.constants]
    return [v.name for v in maker.operands if v.name not in constants]


def _live_ops(model: HostedModel) -> list[Op]:
    """Ops that an output or a node needs, without constants, in order."""
    live = {i.name for node in model.nodes for i in node.inputs if i.name not in node.constants}
    live |= {o.name for _, o in model.outputs}
    kept: list[Op] = []
    for op in reversed(model.graph.ops):
        if op.name != "const" and any(r.name in live for r in op.results):
            kept.append(op)
            live.update(v.name for v in op.operands)
    return kept[::-1]


def _readers(model: HostedModel, ops: Sequence[Op], constants: Mapping[str, Op]) -> dict[str, set[int]]:
    """Name -> identities of its readers; the model's outputs count as one reader."""
    found: dict[str, set[int]] = {}
    everything: list[Op | HostNode] = [*ops, *model.nodes]
    for maker in everything:
        for name in _inputs(maker, constants):
            found.setdefault(name, set()).add(id(maker))
    for _, output in model.outputs:
        found.setdefault(output.name, set()).add(0)
    return found


def _ppu_part(
    model: HostedModel, ops: Sequence[Op], constants: Mapping[str, Op], read: Mapping[str, set[int]], time: int
) -> Graph | None:
    inside = {id(op) for op in ops}
    defined = {r.name for op in ops for r in op.results}
    known = [c.results[0] for n, c in constants.items() if 0 in read.get(n, ())] if time == 0 else []
    results = [r for op in ops for r in op.results if read.get(r.name, set()) - inside]
    if not ops and not known:
        return None
    used = dict.fromkeys(v.name for op in ops for v in op.operands if v.name in constants)
    used |= dict.fromkeys(v.name for v in known)
    outer = {v.name: v for op in ops for v in op.operands if v.name not in defined and v.name not in constants}
    name = f"{model.graph.name}.{time // len(SIDES)}" if time else model.graph.name
    return Graph(name, tuple(outer.values()), (*results, *known), (*(constants[n] for n in used), *ops))


def _runs(nodes: Sequence[HostNode]) -> Iterable[tuple[HostNode, ...]]:
    """Consecutive nodes that fit one model: equal opsets, and all or none custom or refused. Control flow forms runs of
    its own."""
    alone = {id(n): i for i, n in enumerate(nodes, 1) if n.deferred and is_control(n.proto, n.opsets)}
    for _, run in groupby(nodes, lambda n: (n.custom, bool(n.refused), alone.get(id(n)), sorted(n.opsets.items()))):
        yield tuple(run)


def _host_part(nodes: tuple[HostNode, ...], model: HostedModel, read: Mapping[str, set[int]]) -> HostPart:
    inside = {id(n) for n in nodes}
    defined = {o.name for n in nodes for o in n.outputs if o is not None}
    inputs = {i.name: i for n in nodes for i in n.inputs if i.name not in n.constants and i.name not in defined}
    outputs = [o for n in nodes for o in n.outputs if o is not None and read.get(o.name, set()) - inside]
    functions = model.functions if any(True for n in nodes for _ in subgraphs(n.proto)) else ()
    data = node_model(nodes, outputs, functions).SerializeToString(deterministic=True)
    if nodes[0].deferred:
        return DeferredPart(
            nodes, tuple(inputs.values()), tuple(outputs), data, is_control(nodes[0].proto, nodes[0].opsets)
        )
    return HostPart(nodes, tuple(inputs.values()), tuple(outputs), data)


__all__ = ["DeferredPart", "HostPart", "Part", "PpuPart", "partition"]
