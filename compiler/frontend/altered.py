"""Other models made of a model, to ask the oracle what its tensors depend on.

Invariant: nodes, weights and opsets stay what they are; only the tensors that a function names get other values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from ppuc.compiler.frontend.order import subgraphs

GIVEN = "ppuc:given:"
"""Prefix of the inputs that stand for inner tensors. No exporter names a tensor so."""


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
