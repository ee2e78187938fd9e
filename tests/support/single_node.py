"""ONNX models of one node, run by ONNX Runtime and by ppuc's importer and graph interpreter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.frontend.expose import serialised
from ppuc.compiler.frontend.load import ImportedModel, load_model
from ppuc.compiler.validation.oracle import exact_products
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS, Kind
from ppuc.ir.rewrite import Builder, rewrite

Inputs = Mapping[str, np.ndarray | None]
"""Input name -> array, in the node's order; None is an input that is left out."""


def node_model(
    op_type: str,
    inputs: Inputs,
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    domain: str = "",
    constants: Collection[str] = (),
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A model of one node; inputs named in `constants` become initializers."""
    names = ["" if array is None else name for name, array in inputs.items()]
    node = helper.make_node(op_type, names, list(outputs), name="node", domain=domain, **(attributes or {}))
    given = {name: array for name, array in inputs.items() if array is not None}
    first = next(iter(given.values()))
    element = helper.np_dtype_to_tensor_dtype(first.dtype)
    graph = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
            if name not in constants
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
        [numpy_helper.from_array(array, name) for name, array in given.items() if name in constants],
    )
    for output in graph.output:
        output.type.tensor_type.elem_type = element if output.name == outputs[0] else TensorProto.INT64
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        serialised(exact_products(model)), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, dict(feeds))[0]
    return result


def without_composites(graph: Graph) -> Graph:
    """`graph` with every composite replaced by its decomposition."""

    def expand(b: Builder, op: Op) -> Sequence[Value] | None:
        decompose = OPS[op.name].decompose
        return None if decompose is None else decompose(b, op)

    while (expanded := rewrite(graph, expand)) is not graph:
        graph = expanded
    assert all(OPS[op.name].kind is not Kind.COMPOSITE for op in graph.ops)
    return graph


def evaluate(imported: ImportedModel, feeds: Mapping[str, np.ndarray], graph: Graph | None = None) -> np.ndarray:
    """The first output of the imported model, or of `graph` in its place."""
    graph = graph or imported.graph
    named = {value.name: feeds[name] for name, value in imported.inputs}
    return run_graph(graph, named)[graph.results[0].name]


def check(
    op_type: str,
    inputs: Inputs,
    attributes: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 0.0,
    opset: int = 17,
    domain: str = "",
    constants: Collection[str] = (),
) -> ImportedModel:
    """Assert that ONNX Runtime, the imported graph and its decomposition agree to `tolerance` (absolute)."""
    model = node_model(op_type, inputs, attributes, opset=opset, domain=domain, constants=constants)
    feeds = {name: array for name, array in inputs.items() if array is not None and name not in constants}
    want = by_onnxruntime(model, feeds)
    imported = load_model(model)
    for graph in (imported.graph, without_composites(imported.graph)):
        got = evaluate(imported, feeds, graph)
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=tolerance)
    return imported


def uniform(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """Numbers in [-1, 1), the same for the same seed and shape."""
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(dtype)


def sum_tolerance(terms: int, dtype: type = np.float32) -> float:
    """How far two sums of `terms` products of numbers in [-1, 1) may lie apart: either rounds at most once a term, to
    half an epsilon of a partial sum whose size is sqrt(terms) / 3 on average; three times that for the tails."""
    return float(np.finfo(dtype).eps * max(terms, 4) * max(1.0, terms**0.5 / 3))


def directly(name: str, attrs: Any, *arrays: np.ndarray) -> np.ndarray:
    """The only result of a record's reference."""
    reference = OPS[name].reference
    assert reference is not None
    (result,) = reference(attrs, *arrays)
    return result
