"""Loads a model with host nodes: one graph for the PPU, and the host's nodes.

Invariant: results of host nodes are parameters of the graph, and their inputs from it are its results; dead nodes and
ops are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from ppuc.compiler.frontend.enter import (
    EnteredModel,
    Overridden,
    Sizes,
    enter,
    fixing_values,
    graph_name,
    model_digest,
    model_name,
    unreported,
    with_overrides,
)
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.inlining import Tensor
from ppuc.compiler.frontend.offload.hosting import HostNode, HostOperand, HostTensor
from ppuc.compiler.frontend.offload.policy import Examine, Offload
from ppuc.compiler.frontend.offload.probe import Probe
from ppuc.compiler.frontend.offload.reason import Reason
from ppuc.compiler.frontend.place import output_place
from ppuc.compiler.frontend.source import ModelSource, Source
from ppuc.ir.graph import Graph, Op, Value


@dataclass(frozen=True, slots=True)
class HostedModel:
    """`inputs` and `outputs` pair ONNX names with tensors, in the model's order. `graph` has the model's dense inputs
    and the Values defined by `nodes` as parameters; its results are the values that `nodes` and the outputs read.
    `fixed` and `defaults` are as in ImportedModel."""

    name: str
    graph: Graph
    nodes: tuple[HostNode, ...]
    inputs: tuple[tuple[str, HostOperand], ...]
    outputs: tuple[tuple[str, HostOperand], ...]
    functions: tuple[onnx.FunctionProto, ...]
    dims: Mapping[str, int]
    opset: int
    digest: str
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)


def load_hosted(
    source: ModelSource,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    *,
    forced: Mapping[str, Reason] | None = None,
    custom: frozenset[tuple[str, str]] = frozenset(),
    probe: Probe | None = None,
    examining: bool = False,
) -> HostedModel:
    """As load_model, with nodes that cannot be imported on the host. `forced` are nodes that must run on the host, with
    the reason; `custom` are (domain, op) with Python functions; `probe` determines types of host results that cannot be
    inferred. Raises ModelError for invalid nodes and for nodes that the host does not support either; when `examining`,
    such nodes are among the host's, marked as refused."""
    given = with_overrides(source, Sizes(dims or {}, shapes or {}), values or {})
    read, sizes = given.source, given.sizes
    while True:
        builder = FoldingBuilder()
        policy = (Examine if examining else Offload)(read, builder, forced or {}, custom, probe)
        entered = enter(read, builder, policy, sizes)
        policy.finish()
        more = fixing_values(entered.wanted, values or {}, sizes.fixed)
        if not more:
            return _hosted(given, builder, entered, policy.nodes, sizes.fixed)
        sizes = replace(sizes, fixed={**sizes.fixed, **more})


def _hosted(
    given: Overridden,
    builder: FoldingBuilder,
    entered: EnteredModel,
    nodes: Sequence[HostNode],
    fixed: Mapping[str, np.ndarray],
) -> HostedModel:
    source = given.source
    inputs = {n: v for n, v in entered.inputs.items() if n not in fixed and isinstance(v, Value | HostTensor)}
    names = [o.name for o in source.model.graph.output]
    outputs = [(n, _output(n, v, source)) for n, v in zip(names, entered.results, strict=True)]
    dense = [v for v in inputs.values() if isinstance(v, Value)]
    return HostedModel(
        name=model_name(source),
        graph=_graph(model_name(source), builder, dense, nodes, outputs),
        nodes=_live(nodes, builder.ops, [o for _, o in outputs]),
        inputs=tuple(inputs.items()),
        outputs=tuple(outputs),
        functions=tuple(source.model.functions),
        dims=entered.dims,
        opset=source.opsets.get("", 0),
        digest=model_digest(source.path, source.model),
        fixed=dict(fixed),
        defaults={n: a for n, a in given.defaults.items() if n not in fixed},
    )


def _output(name: str, value: Tensor, source: Source) -> HostOperand:
    if isinstance(value, Value | HostTensor):
        return value
    raise output_place(source.where, name).error("no node defines it") if value is None else unreported(value)


def _live(nodes: Sequence[HostNode], ops: Sequence[Op], outputs: Sequence[HostOperand]) -> tuple[HostNode, ...]:
    """The live nodes: those that outputs need, directly or through ops and other nodes."""
    producers: dict[str, HostNode | Op] = {r.name: op for op in ops for r in op.results}
    producers |= {o.name: node for node in nodes for o in node.outputs if o is not None}
    needed: set[int] = set()
    todo, seen = [o.name for o in outputs], set[str]()
    while todo:
        name = todo.pop()
        maker = producers.get(name)
        if name in seen or maker is None:
            continue
        seen.add(name)
        needed.add(id(maker))
        todo += [v.name for v in (maker.inputs if isinstance(maker, HostNode) else maker.operands)]
    return tuple(n for n in nodes if id(n) in needed)


def _graph(
    name: str,
    builder: FoldingBuilder,
    params: Sequence[Value],
    nodes: Sequence[HostNode],
    outputs: Sequence[tuple[str, HostOperand]],
) -> Graph:
    """A graph of all ops, including dead ones; partitioning removes them later."""
    given = [*params, *(o for node in nodes for o in node.outputs if isinstance(o, Value))]
    read = [i for node in nodes for i in node.inputs if isinstance(i, Value) and i.name not in node.constants]
    results = {v.name: v for v in (*read, *(o for _, o in outputs if isinstance(o, Value)))}
    return Graph(graph_name(name), tuple(given), tuple(results.values()), tuple(builder.ops))
