"""The benchmark networks, built from models in the onnx wheel.

Invariant: models are deterministic, and every output depends on every weight (the wheel's own weights are all the same
constant, which would hide errors).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
"""The wheel's networks: well-known models without weights."""

_RESIDUAL = "branch2c"
"""In the names of ResNet's last normalisation of each block; a small scale there keeps residual sums bounded."""


def resnet50(seed: int = 50) -> onnx.ModelProto:
    """ResNet-50, input f32[1, 3, 224, 224], output 1000 class probabilities: filters are He-normal (He et al. 2015,
    section 2.2), BatchNorm statistics plausible, and the classifier small enough to keep the softmax off one-hot."""
    model = onnx.load(LIGHT / "light_resnet50.onnx")
    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    omitted = {
        n.output[0]: tuple(map(int, shapes[n.input[0]])) for n in model.graph.node if n.op_type == "ConstantOfShape"
    }
    made: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in omitted and name not in made:
                made[name] = _weight(node.op_type, position, name, omitted[name], rng).astype(np.float32)
    return _with_weights(model, made)


def _weight(op: str, position: int, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The weight that a node of type `op` reads as input `position`."""
    if op == "BatchNormalization":
        if position == 1:
            return rng.uniform(0.05, 0.2, shape) if _RESIDUAL in name else rng.uniform(0.8, 1.2, shape)
        return rng.uniform(0.5, 1.5, shape) if position == 4 else rng.normal(0, 0.1, shape)
    if len(shape) == 1:
        return rng.normal(0, 0.1, shape)
    return rng.normal(0, 0.02 if op == "Gemm" else (2 / np.prod(shape[1:])) ** 0.5, shape)


def _with_weights(model: onnx.ModelProto, made: dict[str, np.ndarray]) -> onnx.ModelProto:
    """`model` with the named tensors as initializers in place of the nodes that computed them."""
    graph = model.graph
    nodes = [n for n in graph.node if n.output[0] not in made]
    used = {name for n in nodes for name in n.input}
    initializers = [t for t in graph.initializer if t.name in used]
    initializers += [numpy_helper.from_array(array, name) for name, array in made.items()]
    inputs = [i for i in graph.input if i.name in used and i.name not in made]
    for field, kept in ((graph.node, nodes), (graph.initializer, initializers), (graph.input, inputs)):
        del field[:]  # type: ignore[attr-defined]
        field.extend(kept)  # type: ignore[attr-defined]
    return model


def image(seed: int = 1) -> np.ndarray:
    """f32[1, 3, 224, 224]: noise in patches of 32 x 32 pixels, so that pooling does not average it out."""
    noise = np.random.default_rng(seed).normal(0, 1, (1, 3, 7, 7))
    return np.kron(noise, np.ones((1, 1, 32, 32))).astype(np.float32)
