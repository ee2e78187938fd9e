"""Rewrites 8-bit products for ONNX Runtime on a CPU that saturates them: with unsigned weights, which it sums exactly.

x86 processors without VNNI multiply u8 by s8 with an instruction that adds pairs of products in 16 bits, with
saturation, and ONNX Runtime uses it (https://github.com/microsoft/onnxruntime/pull/12088, whose session option
`session.x64quantprecision` mends constant weights only, at an optimisation level that also fuses nodes).

Invariant: weights and their zero points are raised by 128 alike, so every node computes the same sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from ppuc.compiler.frontend.expose import NEWEST_IR, model_copy
from ppuc.compiler.frontend.order import subgraphs
from ppuc.compiler.frontend.shape_inference import infer_shapes
from ppuc.compiler.frontend.widened import Types, element_types

_RAISE = 128
"""What an s8 number lacks to be a u8 one."""


@dataclass(frozen=True, slots=True)
class _Product:
    """Positions of inputs: pairs of (weights, their zero point), and the left factor, None if the op quantizes it to u8
    itself."""

    weights: tuple[tuple[int, int], ...]
    left: int | None = 0


_PRODUCTS = {
    "MatMulInteger": _Product(((1, 3),)),
    "ConvInteger": _Product(((1, 3),)),
    "QLinearMatMul": _Product(((3, 5),)),
    "QLinearConv": _Product(((3, 5),)),
    "QGemm": _Product(((3, 5),)),
    "MatMulIntegerToFloat": _Product(((1, 5),)),
    "QAttention": _Product(((1, 7),)),
    "DynamicQuantizeMatMul": _Product(((1, 3),), left=None),
    "DynamicQuantizeLSTM": _Product(((1, 9), (2, 11)), left=None),
}


def with_unsigned_weights(source: str | Path | onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of the model whose products of u8 and s8 have u8 weights; None for a model without such products, or one
    that ONNX's inference rejects. External data stay in place."""
    try:
        model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
        if not _has_products(model):
            return None
        model = model_copy(model)
        model.ir_version = min(model.ir_version, NEWEST_IR)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        types = infer_shapes(model)
    except Exception:  # a damaged file, or a C++ error of onnx
        return None
    return model if _rewrite(model.graph, types.graph, {}) else None


def _has_products(model: onnx.ModelProto) -> bool:
    return any(_any_product(nodes) for nodes in (model.graph.node, *(f.node for f in model.functions)))


def _any_product(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(n.op_type in _PRODUCTS or any(_any_product(g.node) for g in subgraphs(n)) for n in nodes)


def _rewrite(graph: onnx.GraphProto, inferred: onnx.GraphProto, outer: Types) -> bool:
    """Rewrite a graph and its subgraphs in place; `inferred` is the same graph with types, `outer` are types of
    captured tensors. Returns whether anything changed."""
    types = {**outer, **element_types(inferred)}
    nodes: list[onnx.NodeProto] = []
    raised: dict[str, str] = {}
    changed = False
    for node, typed in zip(graph.node, inferred.node, strict=True):
        for output in node.output:
            if output and not types.get(output) and node.input and types.get(node.input[0]):
                types[output] = types[node.input[0]]  # inference does not know ONNX Runtime's ops; QLinear ones keep it
        for inner, known in zip(subgraphs(node), subgraphs(typed), strict=True):
            changed |= _rewrite(inner, known, types)
        product = _PRODUCTS.get(node.op_type)
        if product is not None and (product.left is None or types.get(node.input[product.left]) == TensorProto.UINT8):
            for at, zero in product.weights:
                if types.get(node.input[at]) == TensorProto.INT8:
                    _raise(node, at, zero, nodes, raised)
                    changed = True
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]  # the field is emptied next
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _raise(node: onnx.NodeProto, at: int, zero: int, nodes: list[onnx.NodeProto], raised: dict[str, str]) -> None:
    """Make a node read its weights and their zero point raised; `nodes` takes what computes them, once per tensor."""
    node.input.extend([""] * (zero + 1 - len(node.input)))
    for position in (at, zero):
        name = node.input[position]
        if name not in raised:
            raised[name] = f"{name}:unsigned"
            nodes += _constant(raised[name]) if not name else _raising(name, raised[name])
        node.input[position] = raised[name]


def _constant(result: str) -> list[onnx.NodeProto]:
    """The zero point of weights that have none."""
    value = numpy_helper.from_array(np.array(_RAISE, np.uint8))
    return [helper.make_node("Constant", [], [result], value=value)]


def _raising(name: str, result: str) -> list[onnx.NodeProto]:
    wide, amount, total = (f"{result}:{part}" for part in ("wide", "amount", "total"))
    return [
        helper.make_node("Cast", [name], [wide], to=TensorProto.INT32),
        helper.make_node("Constant", [], [amount], value=numpy_helper.from_array(np.array(_RAISE, np.int32))),
        helper.make_node("Add", [wide, amount], [total]),
        helper.make_node("Cast", [total], [result], to=TensorProto.UINT8),
    ]


@functools.cache
def saturates(run: Callable[[bytes, Mapping[str, np.ndarray]], np.ndarray]) -> bool:
    """Whether `run` (a serialised model of one output and its inputs by name) saturates sums of u8 x s8 products on
    this CPU."""
    left, right = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in (("left", left), ("right", right))
    ]
    result = helper.make_tensor_value_info("sum", TensorProto.INT32, (1, 1))
    node = helper.make_node("MatMulInteger", ["left", "right"], ["sum"])
    graph = helper.make_graph([node], "probe", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = run(bytes(model.SerializeToString()), {"left": left, "right": right})
    return int(found[0, 0]) != 4 * 255 * 127
