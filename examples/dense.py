"""The smallest model that shows every level of the compiler, y = relu(x w + b): `python examples/dense.py FILE.onnx`.

ARCHITECTURE.md follows it from ONNX to instructions. x is f32[64, 32], w f32[32, 16] and b f32[16].
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def model() -> onnx.ModelProto:
    """MatMul, Add and Relu, with weights drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((32, 16), np.float32), "b": np.arange(16, dtype=np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="MatMul_0"),
            helper.make_node("Add", ["p", "b"], ["s"], name="Add_0"),
            helper.make_node("Relu", ["s"], ["y"], name="Relu_0"),
        ],
        "dense",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 32])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model(), sys.argv[1])
