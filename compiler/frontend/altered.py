"""Other models made of a model, to ask the oracle what its tensors depend on.

Invariant: nodes, weights and opsets stay what they are; only the tensors that a function names get other values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.frontend.order import subgraphs

LENGTHS = "GroupQueryAttention"
"""The op of com.microsoft that leaves rows behind a sequence's length undefined: of its output in a prompt, whose rows
are padded to the longest one, and of the caches of keys and values."""

STANDARD = ("", "ai.onnx")
NodeList: TypeAlias = MutableSequence[onnx.NodeProto]

GIVEN = "ppuc:given:"
"""Prefix of the inputs that stand for inner tensors. No exporter names a tensor so."""


def leaves_undefined(source: str | Path | onnx.ModelProto) -> bool:
    """Whether a node of the model, of its functions or of a body leaves elements of its outputs undefined."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
    lists = (model.graph.node, *(f.node for f in model.functions))
    return any(_has_lengths(node) for nodes in lists for part in _with_bodies(nodes) for node in part)


def disturb(model: onnx.ModelProto) -> None:
    """Put other numbers where nodes leave elements undefined, in functions and bodies too: what depends on them
    changes."""
    lists = [*_with_bodies(model.graph.node)]
    for function in model.functions:
        own = [*_with_bodies(function.node)]
        if any(_has_lengths(node) for nodes in own for node in nodes):
            _with_standard_ops(function, model)
        lists += own
    for number, nodes in enumerate(lists):
        _disturb(nodes, f"ppuc:undefined:{number}")


def _disturb(nodes: NodeList, prefix: str) -> None:
    changed = []
    for number, node in enumerate(nodes):
        changed.append(node)
        if _has_lengths(node):
            changed += _other_rows(node, f"{prefix}:{number}:")
    if len(changed) > len(nodes):
        del nodes[:]
        nodes.extend(changed)


def _with_bodies(nodes: NodeList) -> Iterator[NodeList]:
    """`nodes`, and those of all bodies within, innermost first."""
    for node in nodes:
        for graph in subgraphs(node):
            yield from _with_bodies(graph.node)
    yield nodes


def _with_standard_ops(function: onnx.FunctionProto, model: onnx.ModelProto) -> None:
    """Let a function use the standard ops in the model's version, if it has none of its own."""
    if not any(own.domain in STANDARD for own in function.opset_import):
        function.opset_import.extend(o for o in model.opset_import if o.domain in STANDARD)


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
