"""Runs single host nodes on synthetic inputs at compile time: to infer result types of ops without shape inference, and
to refuse nodes that the host would refuse whenever the program runs.

Invariant: a type is accepted only if several different inputs give the same one; ops with data-dependent shapes are
never probed. A run still checks the host's results against the type. A node is refused only if every input fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from ppuc.compiler.frontend.offload.hosting import (
    HostNode,
    HostTensor,
    host_name,
    innermost_element,
    node_model,
    type_of,
)
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.source import normal_domain
from ppuc.ir.errors import ModelError

Run = Callable[[bytes, Mapping[str, Any]], Sequence[Any]]
"""Runs a serialised model on inputs by name. Raises ModelError when it cannot."""
Types = dict[str, onnx.TypeProto]


class Probe(Protocol):
    """Runs nodes of a model with these functions."""

    def types_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> Types:
        """Types of the node's outputs by their names in its proto, where known."""

    def refusal_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> str:
        """Why the node cannot run on inputs of its types; "" if it can, or if that is unknown."""


FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
LARGEST = 1 << 24
"""Maximum total elements of the inputs of a probed node."""
DATA_DECIDE = frozenset({"BeamSearch", "GreedySearch", "Range", "Sampling", "Tokenizer", "Unique", "WhisperBeamSearch"})
"""Ops of ONNX Runtime's domains with data-dependent result shapes."""


class NoProbe:
    """A probe without results."""

    def types_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> Types:
        """Nothing."""
        return {}

    def refusal_of(self, node: HostNode, functions: Sequence[onnx.FunctionProto]) -> str:
        """Nothing."""
        return ""


def probed_types(node: HostNode, functions: Sequence[onnx.FunctionProto], run: Run) -> Types:
    """What `run` says of the outputs of `node`: nothing for control flow, for ops of the standard (whose rules say what
    can be known), and where an input is no tensor of known size."""
    names = [host_name(o.name) for o in node.outputs if o is not None]
    if not normal_domain(node.proto.domain) or node.proto.op_type in DATA_DECIDE or not _may_run(node):
        return {}
    try:
        found = [_types(names, run(*sample)) for sample in _trials(node, functions)]
    except ModelError:  # an op may refuse synthetic numbers
        return {}
    return {n: found[0][n] for n in names if all(n in f and f[n] == found[0][n] for f in found)}


def refusal(node: HostNode, functions: Sequence[onnx.FunctionProto], run: Run) -> str:
    """Why `run` fails on every sample of the inputs of `node`; "" if it accepts one, or if inputs have unknown sizes or
    are neither floats nor constants: other data may decide whether a node is valid."""
    free = [i for i in node.inputs if i.name not in node.constants]
    if not _may_run(node) or not all(innermost_element(type_of(i)) in FLOATS for i in free):
        return ""
    text = ""
    for sample in _trials(node, functions):
        try:
            run(*sample)
        except ModelError as error:
            text = error.diagnostics[0].got or error.diagnostics[0].what
        else:
            return ""
    return text


def _may_run(node: HostNode) -> bool:
    """Whether a node has no subgraphs and reads tensors of known, moderate sizes."""
    types = [type_of(i) for i in node.inputs]
    sized = all(map(has_sizes, types)) and sum(map(_elements, types)) <= LARGEST
    return sized and not any(True for _ in subgraphs(node.proto))


def _trials(node: HostNode, functions: Sequence[onnx.FunctionProto]) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    """A model of the node alone, and samples of its inputs."""
    outputs = [HostTensor(o.name) for o in node.outputs if o is not None]
    model = node_model([replace(node, outputs=tuple(outputs))], outputs, functions)
    data = model.SerializeToString(deterministic=True)
    free = {i.name: type_of(i) for i in node.inputs if i.name not in node.constants}
    yield from ((data, feeds) for feeds in _samples(free))


def _samples(types: Mapping[str, onnx.TypeProto | None]) -> Iterator[dict[str, Any]]:
    """Inputs of unrelated numbers, small enough to be indices."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        yield {host_name(n): _sample(t.tensor_type, seed, rng) for n, t in types.items() if t is not None}


def _sample(type: onnx.TypeProto.Tensor, seed: int, rng: np.random.Generator) -> Any:
    shape = [d.dim_value for d in type.shape.dim]
    if type.elem_type == TensorProto.STRING:
        return np.full(shape, str(seed), object)
    dtype = helper.tensor_dtype_to_np_dtype(type.elem_type)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype) if seed else np.zeros(shape, dtype)
    return (rng.standard_normal(shape) * 10.0 ** (seed - 1)).astype(dtype)


def has_sizes(type: onnx.TypeProto | None) -> bool:
    """Whether a type is a tensor with a fully known shape."""
    if type is None or type.WhichOneof("value") != "tensor_type" or not type.tensor_type.HasField("shape"):
        return False
    return all(d.HasField("dim_value") for d in type.tensor_type.shape.dim)


def _elements(type: onnx.TypeProto | None) -> int:
    return math.prod(d.dim_value for d in type.tensor_type.shape.dim) if type is not None else 0


def _types(names: Sequence[str], values: Sequence[Any]) -> Types:
    """The types of the values that are tensors."""
    found = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, np.ndarray):
            text = value.dtype.kind in "OUS"
            element = TensorProto.STRING if text else helper.np_dtype_to_tensor_dtype(value.dtype)
            found[name] = helper.make_tensor_type_proto(element, value.shape)
    return found
