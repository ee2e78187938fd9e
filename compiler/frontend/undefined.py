"""Finds what a model leaves undefined: another model with other numbers there.

Two kinds of elements: rows behind the length of a sequence, and rows of equal numbers that are normalised to nothing
over nothing. Whatever changes with them is undefined as well.

Invariant: nodes, weights and opsets stay what they are; only elements that a node leaves undefined get other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppuc.compiler.frontend.order import subgraphs

STANDARD = ("", "ai.onnx")
NodeList: TypeAlias = MutableSequence[onnx.NodeProto]


def leaves_undefined(source: str | Path | onnx.ModelProto) -> bool:
    """Whether a node of the model, of its functions or of a body leaves elements of its outputs undefined."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
    lists = (model.graph.node, *(f.node for f in model.functions))
    return any(_filling(node) is not None for nodes in lists for part in _with_bodies(nodes) for node in part)


def disturb(model: onnx.ModelProto) -> None:
    """Put other numbers where nodes leave elements undefined, in functions and bodies too: what depends on them
    changes."""
    lists = [*_with_bodies(model.graph.node)]
    for function in model.functions:
        own = [*_with_bodies(function.node)]
        if any(_filling(node) is not None for nodes in own for node in nodes):
            _with_standard_ops(function, model)
        lists += own
    for number, nodes in enumerate(lists):
        _disturb(nodes, f"ppuc:undefined:{number}")


def _disturb(nodes: NodeList, prefix: str) -> None:
    changed = []
    for number, node in enumerate(nodes):
        changed.append(node)
        if (fill := _filling(node)) is not None:
            made = _Made(f"{prefix}:{number}:")
            fill(node, made)
            changed += made.nodes
    if len(changed) > len(nodes):
        del nodes[:]
        nodes.extend(changed)


def _with_bodies(nodes: NodeList) -> Iterator[NodeList]:
    """`nodes`, and those of all bodies within, innermost first."""
    for node in nodes:
        for graph in subgraphs(node):
            yield from _with_bodies(graph.node)
    yield nodes


def _with_standard_ops(function: onnx.FunctionProto, model: onnx.ModelProto) -> None:
    """Let a function use the standard ops in the model's version, if it has none of its own."""
    if not any(own.domain in STANDARD for own in function.opset_import):
        function.opset_import.extend(o for o in model.opset_import if o.domain in STANDARD)


@dataclass(slots=True)
class _Made:
    """Nodes that are added, whose tensors have names that begin with `prefix`."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: int) -> str:
        """The tensor that an op gives."""
        name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))  # type: ignore[arg-type]
        return name

    def constant(self, *values: int, scalar: bool = False) -> str:
        """A constant of i64."""
        array = np.array(values[0] if scalar else values, np.int64)
        name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def renamed(self, node: onnx.NodeProto, place: int) -> tuple[str, str]:
        """The new name of an output of `node`, and the one that it had."""
        raw, name = f"{self.prefix}raw:{place}", node.output[place]
        node.output[place] = raw
        return raw, name

    def where(self, condition: str, yes: str, no: str, name: str) -> None:
        """The tensor `name`, chosen between two."""
        self.nodes.append(helper.make_node("Where", [condition, yes, no], [name]))


Filling: TypeAlias = Callable[[onnx.NodeProto, _Made], None]
"""Makes nodes that put other numbers where a node leaves elements undefined: the node gives its outputs under new
names."""


def _filling(node: onnx.NodeProto) -> Filling | None:
    """How to fill what a node leaves undefined; None when it defines everything."""
    if node.op_type == "GroupQueryAttention" and node.domain == "com.microsoft" and len(node.input) > 6:
        return _fill_rows
    return _fill_quotients if node.op_type == "MeanVarianceNormalization" and node.domain in STANDARD else None


def _fill_quotients(node: onnx.NodeProto, made: _Made) -> None:
    """Rows of equal numbers, whose deviation is 0. The specification adds 1e-9 to it, which is less than the rounding
    error of most means, and ONNX Runtime adds nothing: NaN, where the inputs have none."""
    raw, name = made.renamed(node, 0)
    total = made.op("ReduceSum", node.input[0], keepdims=0)
    undefined = made.op("And", made.op("IsNaN", raw), made.op("Not", made.op("IsNaN", total)))
    made.where(undefined, made.op("Sigmoid", total), raw, name)


def _fill_rows(node: onnx.NodeProto, made: _Made) -> None:
    """Rows behind a sequence's length. Row m of the output is behind a sequence of n tokens when m >= n and the node
    computes a whole prompt; row m of a cache when m >= n."""
    int64 = onnx.TensorProto.INT64
    zero, one = made.constant(0, scalar=True), made.constant(1, scalar=True)
    lengths = made.op("Add", made.op("Cast", node.input[5], to=int64), one)
    total = made.op("Reshape", made.op("Cast", node.input[6], to=int64), made.constant())
    for place, (rank, axis) in enumerate(((3, 1), (4, 2), (4, 2))):
        if place >= len(node.output) or not node.output[place]:
            continue
        raw, name = made.renamed(node, place)
        rows = made.op("Gather", made.op("Shape", raw), made.constant(axis, scalar=True))
        along = [-1 if i == axis else 1 for i in range(rank)]
        number = made.op("Reshape", made.op("Range", zero, rows, one), made.constant(*along))
        defined = made.op("Less", number, made.op("Reshape", lengths, made.constant(-1, *[1] * (rank - 1))))
        if place == 0:
            defined = made.op("Or", defined, made.op("Not", made.op("Equal", total, rows)))
        made.where(defined, raw, made.op("Sigmoid", raw), name)
