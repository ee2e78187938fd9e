"""A model of which some nodes run on the host: what the PPU computes as one graph, the host's nodes beside it.

Invariant: results of the host's nodes are parameters of the graph, and what they read of it are its results; nodes and
ops that no output needs are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from ppuc.compiler.frontend.bind import InputDecl, bind_inputs, declared_inputs
from ppuc.compiler.frontend.folding import FoldingBuilder
from ppuc.compiler.frontend.load import (
    entering,
    fixing_values,
    graph_name,
    model_digest,
    model_name,
    register_importers,
)
from ppuc.compiler.frontend.offload.hosting import HostNode, HostOperand, HostSide, HostTensor, bound_type, dense_inputs
from ppuc.compiler.frontend.place import output_place
from ppuc.compiler.frontend.scope import Scope, Unknown
from ppuc.compiler.frontend.source import Source, read_source
from ppuc.compiler.frontend.walk import Walk
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Graph, Op, Value


@dataclass(frozen=True, slots=True)
class HostedModel:
    """`inputs` and `outputs` pair ONNX names with tensors, in the model's order. `graph` takes the model's dense inputs
    and the Values that `nodes` give; its results are what `nodes` and the outputs read of it."""

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


def load_hosted(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    *,
    forced: Mapping[str, str] | None = None,
    custom: frozenset[tuple[str, str]] = frozenset(),
    examining: bool = False,
) -> HostedModel:
    """As load_model, with the host taking what cannot be imported. `forced` are nodes that must be the host's, with the
    reason; `custom` are (domain, op) that Python functions stand for. Raises ModelError for what is wrong, or unknown
    to the host as well; when `examining`, such nodes are among the host's, marked as refused."""
    fixed: dict[str, np.ndarray] = {}
    while True:
        model, wanted = _load(
            source, dims or {}, shapes or {}, fixed, HostSide(forced or {}, custom, examining=examining)
        )
        more = fixing_values(wanted, values or {}, fixed)
        if not more:
            return model
        fixed.update(more)


def _load(
    source: str | Path | onnx.ModelProto,
    dims: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    fixed: Mapping[str, np.ndarray],
    side: HostSide,
) -> tuple[HostedModel, list[str]]:
    """The model, and the inputs whose values importers asked for."""
    register_importers()
    read = read_source(source)
    builder = FoldingBuilder()
    scope = Scope(read.opsets)
    dense, other = _declared(read)
    types, symbols = bind_inputs(dense, dims, {n: s for n, s in shapes.items() if n not in other}, read.where)
    graph = read.model.graph
    side.declared = {i.name: bound_type(i.type, symbols) for i in (*graph.value_info, *graph.output)}
    params = {d.name: Value(builder.fresh(d.name), t) for d, t in zip(dense, types, strict=True)}
    inputs: dict[str, HostOperand] = {}
    for name in _input_names(read):
        if name in params:
            inputs[name] = params[name]
            scope.values[name] = entering(builder, params[name], fixed.get(name))
        else:
            inputs[name] = scope.values[name] = HostTensor(builder.fresh(name), other[name])
    walk = Walk(read, builder, side)
    results = walk.graph(graph, scope)
    walk.finish()
    outputs = []
    for info, value in zip(graph.output, results, strict=True):
        outputs.append((info.name, _output(info, value, builder, read)))
    model = HostedModel(
        name=model_name(read),
        graph=_graph(model_name(read), builder, params, side.nodes, outputs, fixed),
        nodes=_live(side.nodes, builder.ops, [o for _, o in outputs]),
        inputs=tuple((n, o) for n, o in inputs.items() if n not in fixed),
        outputs=tuple(outputs),
        functions=tuple(read.model.functions),
        dims=symbols,
        opset=read.opsets.get("", 0),
        digest=model_digest(read.path, read.model),
        fixed=dict(fixed),
    )
    return model, [name for name, value in params.items() if value.name in walk.wanted]


def _input_names(source: Source) -> list[str]:
    constants = {t.name for t in source.model.graph.initializer}
    return [i.name for i in source.model.graph.input if i.name not in constants]


def _declared(source: Source) -> tuple[tuple[InputDecl, ...], dict[str, onnx.TypeProto]]:
    """Inputs that the machine can hold, and the types of the others."""
    names = set(_input_names(source))
    dense, other = dense_inputs([i for i in source.model.graph.input if i.name in names])
    return declared_inputs(dense, source.where), {i.name: i.type for i in other}


def _output(info: onnx.ValueInfoProto, value: object, builder: FoldingBuilder, source: Source) -> HostOperand:
    if isinstance(value, Value | HostTensor):
        return value
    if isinstance(value, Unknown) and value.error is not None:
        raise value.error
    if value is None:
        raise output_place(source.where, info.name).error("no node defines it")
    raise InternalError("an output is unknown, but no error was reported")


def _live(nodes: Sequence[HostNode], ops: Sequence[Op], outputs: Sequence[HostOperand]) -> tuple[HostNode, ...]:
    """The nodes that outputs need, directly or through ops and other nodes."""
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
    params: Mapping[str, Value],
    nodes: Sequence[HostNode],
    outputs: Sequence[tuple[str, HostOperand]],
    fixed: Mapping[str, np.ndarray],
) -> Graph:
    """All ops, dead ones too; what is cut out of it later has none."""
    given = [v for n, v in params.items() if n not in fixed]
    given += [o for node in nodes for o in node.outputs if isinstance(o, Value)]
    read = [i for node in nodes for i in node.inputs if isinstance(i, Value) and i.name not in node.constants]
    results = {v.name: v for v in (*read, *(o for _, o in outputs if isinstance(o, Value)))}
    return Graph(graph_name(name), tuple(given), tuple(results.values()), tuple(builder.ops))
