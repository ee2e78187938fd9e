"""Types of the results of one node, from the types and constants that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import helper, numpy_helper

from ppuc.compiler.validation.oracle import Session
from ppuc.ir.errors import ModelError

LARGEST_DATA = 1 << 16
"""Elements of a constant that inference may read: shapes, axes, pads."""
Type = tuple[int, tuple[int, ...]]
"""ONNX element type and shape."""


@dataclass(slots=True)
class NodeTypes:
    """Infers nodes of a model with these opsets. `constants` holds its initializers by name."""

    opsets: list[onnx.OperatorSetIdProto]
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def of(self, node: onnx.NodeProto, types: Mapping[str, Type]) -> dict[str, Type] | None:
        """Types by output; None where the node rejects its inputs, or sizes depend on the elements of a tensor that is
        not constant. Ops that ONNX does not know, and pools whose sizes its inference rounds wrongly, are run."""
        if any(n and n not in types for n in node.input):
            return None
        domain = node.domain if node.domain != "ai.onnx" else ""
        version = next((o.version for o in self.opsets if o.domain in (domain, domain or "ai.onnx")), 0)
        rounds_up = any(a.name == "ceil_mode" and a.i for a in node.attribute)
        if rounds_up or not version or not onnx.defs.has(node.op_type, version, domain):
            return self._run(node, types)
        read = [n for n in node.input if n]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, version, domain),
                node,
                {n: helper.make_tensor_type_proto(*types[n]) for n in read},
                {n: self.constants[n] for n in read if n in self.constants and self._is_small(n)},
                opset_imports=self.opsets,
                ir_version=onnx.IR_VERSION,
            )
        except Exception:  # a C++ error of onnx, of no exported kind
            return None
        results = {name: _static(type) for name, type in found.items()}
        known = {name: type for name, type in results.items() if type is not None}
        return known if all(name in known for name in node.output if name) else None

    def _is_small(self, name: str) -> bool:
        return bool(np.prod(self.constants[name].dims, dtype=np.int64) <= LARGEST_DATA)

    def _run(self, node: onnx.NodeProto, types: Mapping[str, Type]) -> dict[str, Type] | None:
        """The types of what ONNX Runtime computes from zeros."""
        read = list(dict.fromkeys(n for n in node.input if n))
        free = [n for n in read if n not in self.constants]
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(n, *types[n]) for n in free],
            [helper.make_empty_tensor_value_info(n) for n in node.output if n],
            [self.constants[n] for n in read if n in self.constants],
        )
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=8)
        feeds = {n: np.zeros(types[n][1], helper.tensor_dtype_to_np_dtype(types[n][0])) for n in free}
        try:
            arrays = Session(model.SerializeToString(), node.name).run(feeds)
        except ModelError:
            return None
        names = [n for n in node.output if n]
        return {n: (numpy_helper.from_array(a).data_type, a.shape) for n, a in zip(names, arrays, strict=True)}


def _static(type: onnx.TypeProto) -> Type | None:
    """The type of a tensor whose sizes are all known."""
    tensor = type.tensor_type
    if (
        not tensor.elem_type
        or not tensor.HasField("shape")
        or not all(d.HasField("dim_value") for d in tensor.shape.dim)
    ):
        return None
    return int(tensor.elem_type), tuple(int(d.dim_value) for d in tensor.shape.dim)
