"""Surveys an ONNX file node by node, without importing it.

Invariant: surveying needs no sizes, reads no weights and raises only for files that are not ONNX models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from ppuc.compiler.frontend.bind import InputDecl, declared_inputs
from ppuc.compiler.frontend.enter import model_name
from ppuc.compiler.frontend.functions import has_schema_body, local_functions
from ppuc.compiler.frontend.offload.deferred import is_control
from ppuc.compiler.frontend.offload.handover import is_hostable
from ppuc.compiler.frontend.offload.host_ops import why_host
from ppuc.compiler.frontend.offload.hosting import is_dense
from ppuc.compiler.frontend.offload.reason import Cause, Reason
from ppuc.compiler.frontend.registry import IMPORTERS, near_op, register_importers
from ppuc.compiler.frontend.source import ModelSource, normal_domain, read_source
from ppuc.compiler.frontend.tensors import type_text


@dataclass(frozen=True, slots=True)
class NodeSurvey:
    """`where` is ppu if there is an importer or an expansion, host if only the host supports the op, refused if neither
    does; `how` gives details."""

    node: str
    op: str
    where: str
    how: Reason


@dataclass(frozen=True, slots=True)
class ModelSurvey:
    """A model as declared in its file. `host_inputs` are those that only the host can hold, as text; `open_dims` are
    the `--dim` keys of unbound dimensions."""

    name: str
    producer: str
    opsets: dict[str, int]
    inputs: tuple[InputDecl, ...]
    host_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: int
    parameters: int
    nodes: tuple[NodeSurvey, ...]

    @property
    def open_dims(self) -> tuple[str, ...]:
        keys = [
            dim or f"{i.name}:{axis}"
            for i in self.inputs
            for axis, dim in enumerate(i.shape or ())
            if not isinstance(dim, int)
        ]
        return tuple(dict.fromkeys(keys))

    def op_counts(self) -> dict[str, int]:
        """ONNX ops by frequency."""
        return dict(Counter(n.op for n in self.nodes).most_common())

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "name": self.name,
            "producer": self.producer,
            "opsets": {domain or "ai.onnx": version for domain, version in self.opsets.items()},
            "inputs": [*(str(i) for i in self.inputs), *self.host_inputs],
            "outputs": list(self.outputs),
            "open_dims": list(self.open_dims),
            "initializers": self.initializers,
            "parameters": self.parameters,
            "ops": self.op_counts(),
        }


def survey(model: ModelSource, custom: Collection[tuple[str, str]] = ()) -> ModelSurvey:
    """Survey a model; `custom` are ops with Python functions. Raises ModelError if it is not a model."""
    register_importers()
    source = read_source(model)
    graph = source.model.graph
    dense = [i for i in source.inputs if is_dense(i)]
    other = [i for i in source.inputs if not is_dense(i)]
    return ModelSurvey(
        name=model_name(source),
        producer=" ".join(filter(None, (source.model.producer_name, source.model.producer_version))),
        opsets=source.opsets,
        inputs=declared_inputs(dense, source.where),
        host_inputs=tuple(f"{i.name}: {type_text(i.type)}" for i in other),
        outputs=tuple(o.name for o in graph.output),
        initializers=len(graph.initializer),
        parameters=sum(_elements(t) for t in (*graph.initializer, *_constants(graph))),
        nodes=tuple(_node(n, i, source.model, source.opsets, custom) for i, n in enumerate(graph.node)),
    )


def _constants(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Tensors of Constant nodes, in which some exporters store weights."""
    return [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _node(
    node: onnx.NodeProto,
    index: int,
    model: onnx.ModelProto,
    opsets: dict[str, int],
    custom: Collection[tuple[str, str]],
) -> NodeSurvey:
    domain = normal_domain(node.domain)
    op = f"{domain}:{node.op_type}" if domain else node.op_type
    where, cause, how = "ppu", Cause.UNSUPPORTED, "imported"
    if (domain, node.op_type, node.overload) in local_functions(model):
        how = "expanded: a function of the model"
    elif (domain, node.op_type) in IMPORTERS:
        how = "imported"
    elif is_control(node, opsets):
        how = "expanded when its condition or trips are known at compile time, else its bodies are compiled"
    elif has_schema_body(node, opsets.get(domain, 1)):
        how = "expanded: ONNX's own definition"
    elif (domain, node.op_type) in custom:
        where, cause, how = "host", Cause.CUSTOM, "it is a Python function"
    elif is_hostable(node, opsets):
        where, how = "host", why_host(node)
    else:
        how = near_op(op) + "neither the PPU nor the host supports it"
        where, cause = "refused", Cause.UNKNOWN
    return NodeSurvey(node.name or f"{node.op_type}_{index}", op, where, Reason(how, cause))
