"""A second opinion on a whole model: onnx.reference, node by node, with ONNX Runtime for what it does not compute.

ONNX Runtime rewrites a model before it runs it, and has kernels with faults. Where a program differs from its answer,
but not from this one, it is ONNX Runtime that is to be asked.

Invariant: every node reads what this evaluation gave the nodes before it, never what a program computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ppuc.compiler.frontend.order import captured, subgraphs
from ppuc.compiler.validation.compare import Comparison, compare
from ppuc.compiler.validation.oracle import Session
from ppuc.compiler.validation.tolerance import Tolerance
from ppuc.ir.errors import ModelError
from tests.fuzz.judging import INCOMPLETE

DISPUTED = "ONNX Runtime differs from onnx.reference and the program: "
"""How a complaint begins that the program has no part in."""


def agrees_otherwise(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    wrong: Sequence[Comparison],
) -> bool:
    """Whether the program's outputs `got` that are `wrong` by ONNX Runtime's answer are right by the second opinion,
    with no more allowed of them."""
    try:
        want = second_opinion(model, feeds)
    except ModelError:
        return False
    allowed = {c.name: Tolerance(c.tolerance) for c in wrong}
    return all(compare(name, got[name], want[name], tolerance).ok for name, tolerance in allowed.items())


def second_opinion(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `model` on `feeds`, by name. Raises ModelError for a node that nobody computes."""
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | dict(feeds)
    for node in model.graph.node:
        known |= _results(model, node, known)
    return {output.name: known[output.name] for output in model.graph.output}


def _results(model: onnx.ModelProto, node: onnx.NodeProto, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    read = {n for n in node.input if n} | {n for body in subgraphs(node) for n in captured(body)}
    given = {n: known[n] for n in sorted(read) if n in known}
    names = [n for n in node.output if n]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()
    ]
    graph = helper.make_graph([node], "node", infos, [helper.make_empty_tensor_value_info(n) for n in names])
    alone = helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    wanted = Session.exact(alone, "node").run(given)
    arrays = _by_reference(alone, given, node.op_type)
    agreed = arrays is not None and all(
        isinstance(w, np.ndarray) and a.dtype == w.dtype and a.shape == w.shape
        for a, w in zip(arrays, wanted, strict=True)
    )
    return dict(zip(names, arrays if arrays is not None and agreed else wanted, strict=True))


def _by_reference(model: onnx.ModelProto, given: dict[str, np.ndarray], op: str) -> list[np.ndarray] | None:
    """None for what onnx.reference does not compute, or is known to compute otherwise."""
    if op in INCOMPLETE:
        return None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, given)]
    except Exception:  # whatever its numpy code raises
        return None
