"""Other models made of a model, to ask the oracle what its tensors depend on.

Invariant: nodes, weights and opsets stay what they are; only the tensors that a function names get other values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.frontend.order import subgraphs

LENGTHS = "GroupQueryAttention"
"""The op of com.microsoft that leaves rows behind a sequence's length undefined: of its output in a prompt, whose rows
are padded to the longest one, and of the caches of keys and values."""

GIVEN = "ppuc:given:"
"""Prefix of the inputs that stand for inner tensors. No exporter names a tensor so."""


def leaves_undefined(source: str | Path | onnx.ModelProto) -> bool:
    """Whether a node of the main graph leaves elements of its outputs undefined."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
    return any(_has_lengths(node) for node in model.graph.node)


def disturb(model: onnx.ModelProto) -> None:
    """Put other numbers where nodes of the main graph leave elements undefined: what depends on them changes."""
    nodes = []
    for number, node in enumerate(model.graph.node):
        nodes.append(node)
        if _has_lengths(node):
            nodes += _other_rows(node, f"ppuc:undefined:{number}:")
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _has_lengths(node: onnx.NodeProto) -> bool:
    return node.op_type == LENGTHS and node.domain == "com.microsoft" and len(node.input) > 6


def _other_rows(node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    """Nodes that replace rows of the outputs of `node`, which is made to give others under new names. Row m of the
    output is behind a sequence of n tokens when m >= n and the node computes a whole prompt; row m of a cache when
    m >= n."""
    made: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes: int) -> str:
        name = f"{prefix}{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [name], **attributes))  # type: ignore[arg-type]
        return name

    def constant(*values: int, scalar: bool = False) -> str:
        array = np.array(values[0] if scalar else values, np.int64)
        name = f"{prefix}{len(made)}"
        made.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    int64 = onnx.TensorProto.INT64
    zero, one = constant(0, scalar=True), constant(1, scalar=True)
    lengths = op("Add", op("Cast", node.input[5], to=int64), one)
    total = op("Reshape", op("Cast", node.input[6], to=int64), constant())
    for place, (rank, axis) in enumerate(((3, 1), (4, 2), (4, 2))):
        if place >= len(node.output) or not node.output[place]:
            continue
        raw, name = f"{prefix}raw:{place}", node.output[place]
        node.output[place] = raw
        rows = op("Gather", op("Shape", raw), constant(axis, scalar=True))
        along = [-1 if i == axis else 1 for i in range(rank)]
        number = op("Reshape", op("Range", zero, rows, one), constant(*along))
        defined = op("Less", number, op("Reshape", lengths, constant(-1, *[1] * (rank - 1))))
        if place == 0:
            defined = op("Or", defined, op("Not", op("Equal", total, rows)))
        made.append(helper.make_node("Where", [defined, raw, op("Sigmoid", raw)], [name]))
    return made


def from_given(source: str | Path | onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model, weights included, with everything that reads one of `tensors` reading an input GIVEN + its name
    instead, of the type of the array; each of them is an output as well, so that it is computed from the others."""
    model = _whole(source)
    _read_given(model.graph.node, set(tensors))
    present = {o.name for o in model.graph.output}
    for name, array in tensors.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(GIVEN + name, kind, array.shape))
        if name not in present:
            model.graph.output.append(helper.make_tensor_value_info(name, kind, array.shape))
    return model


def with_indices(source: str | Path | onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model, weights included, with tensors `names` of i64 as further outputs."""
    model = _whole(source)
    present = {o.name for o in model.graph.output}
    kind = onnx.TensorProto.INT64
    model.graph.output.extend(helper.make_tensor_value_info(n, kind, None) for n in names if n not in present)
    return model


def _whole(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(onnx.load(source) if isinstance(source, str | Path) else source)
    return model


def _read_given(nodes: Iterable[onnx.NodeProto], names: set[str]) -> None:
    for node in nodes:
        node.input[:] = [GIVEN + name if name in names else name for name in node.input]
        for graph in subgraphs(node):
            own = {i.name for i in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            _read_given(graph.node, names - own)
            for output in graph.output:  # a body may give a tensor of the outer graph as it is
                output.name = GIVEN + output.name if output.name in names - own else output.name
