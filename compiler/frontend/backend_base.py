"""ONNX's backend interface, and helpers to implement it.

Invariant: a model made from a node declares inputs and outputs under the node's names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep


def names_of(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs that have no initializer, and of the outputs."""
    constants = {t.name for t in model.graph.initializer}
    inputs = tuple(i.name for i in model.graph.input if i.name not in constants)
    return inputs, tuple(o.name for o in model.graph.output)


def model_of_node(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray], outputs: Sequence[tuple[np.dtype, tuple[int, ...]]] | None
) -> onnx.ModelProto:
    """A model of one node of the newest opset for `inputs`; `outputs` are dtypes and shapes, if known."""
    names = [n for n in node.input if n]
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    results = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    for info, (dtype, shape) in zip(results, outputs or (), strict=False):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        info.type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
    return helper.make_model(helper.make_graph([node], "node", declared, results))


__all__ = ["Backend", "BackendRep", "model_of_node", "names_of"]
