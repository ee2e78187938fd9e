"""Models of one ONNX node with any number of outputs, run by ppuc's importer and references and by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from ppuc.compiler.frontend.expose import serialised
from ppuc.compiler.frontend.load import load_model
from ppuc.compiler.validation.oracle import exact_products
from ppuc.ir.graph import Attrs
from ppuc.ir.interpret import run_graph
from ppuc.ir.ops import OPS, Indexing
from ppuc.ir.types import DType, TensorType

RNG_SEED = 7
F32_STEP = float(np.finfo(np.float32).eps)


def onnx_node(
    op_type: str,
    *inputs: np.ndarray | None,
    opset: int = 18,
    domain: str = "",
    constant: tuple[int, ...] = (),
    outputs: int = 1,
    ir_version: int = 8,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node and its feeds; inputs at the positions in `constant` become initializers."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], name="node", domain=domain, **attributes)
    given = {n: np.asarray(x) for n, x in zip(names, inputs, strict=True) if x is not None}
    fixed = [f"x{i}" for i in constant]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in given.items()
        if n not in fixed
    ]
    results = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)]
    weights = [onnx.numpy_helper.from_array(given[n], n) for n in fixed]
    graph = helper.make_graph([node], "one", infos, results, weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return model, {n: x for n, x in given.items() if n not in fixed}


def both(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(what ppuc's importer and references compute, what ONNX Runtime computes), one array for each output."""
    imported = load_model(model)
    results = run_graph(imported.graph, {value.name: feeds[name] for name, value in imported.inputs})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # DynamicQuantizeLSTM gives every thread scales of its own
    session = onnxruntime.InferenceSession(
        serialised(exact_products(model)), options, providers=["CPUExecutionProvider"]
    )
    return [results[value.name] for _, value in imported.outputs], session.run(None, feeds)


def assert_agrees(model: onnx.ModelProto, feeds: dict[str, np.ndarray], steps: float = 0) -> None:
    """Equal up to `steps` units in the last place of the result's dtype, relative to each element or to 1, whichever is
    larger; exactly equal for 0."""
    ours, theirs = both(model, feeds)
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if steps == 0:
            np.testing.assert_array_equal(got, expected)
        else:
            tolerance = steps * float(np.finfo(expected.dtype).eps)
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def floats(*shape: int, low: float = -4.0, high: float = 4.0) -> np.ndarray:
    """Uniform f32 numbers, always the same."""
    return np.random.default_rng(RNG_SEED).uniform(low, high, shape).astype(np.float32)


def type_of(array: np.ndarray) -> TensorType:
    """The type that a value holding `array` has."""
    return TensorType(DType.of(array.dtype), array.shape)


def computed(name: str, attrs: Attrs, *arrays: np.ndarray) -> np.ndarray:
    """The only result of a record's reference, checked against its infer."""
    record = OPS[name]
    assert record.reference is not None
    (result,) = record.reference(attrs, *arrays)
    assert record.infer(attrs, [type_of(a) for a in arrays]) == (type_of(result),)
    return result


def indexing_of(name: str, attrs: Attrs, *types: TensorType) -> Indexing:
    """The access pattern that a record claims."""
    pattern = pattern_of(name, attrs, *types)
    assert pattern is not None
    return pattern


def pattern_of(name: str, attrs: Attrs, *types: TensorType) -> Indexing | None:
    """The access pattern that a record claims; None when the access is not affine."""
    indexing = OPS[name].indexing
    assert indexing is not None
    return indexing(attrs, types)
