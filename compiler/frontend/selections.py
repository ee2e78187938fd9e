"""Which outputs of a model are indices that a node chose, and what they choose from.

Invariant: an output counts as a node's choice only if nothing but its shape and integer type changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from ppuc.compiler.frontend.order import captured, subgraphs

_AS_THEY_ARE = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_CHOOSING = {"ArgMax": 0, "ArgMin": 0, "TopK": 1, "NonMaxSuppression": 0}
"""Op -> which output has the indices."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Node `op` chose indices along `axis` of tensor `data`; those of a NonMaxSuppression are rows of (batch, class,
    box), and `data` are its scores [batch, class, box]. `node` made `data` ("" for an input or a weight)."""

    op: str
    data: str
    axis: int
    node: str


def selections(source: str | Path | onnx.ModelProto, outputs: Iterable[str]) -> dict[str, Selection]:
    """For each of `outputs` that is the choice of a node of the main graph, by name, what it was chosen from."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
    makers = _makers(model.graph)
    found = {}
    for output in outputs:
        name = output
        while name in makers and makers[name][1].op_type in _AS_THEY_ARE:
            name = makers[name][1].input[0]
        if (selection := _selection(makers, name)) is not None:
            found[output] = selection
    return found


def choices(source: str | Path | onnx.ModelProto) -> dict[str, Selection]:
    """The choices of nodes of the main graph that other nodes read, by tensor, in the model's order."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else source
    makers = _makers(model.graph)
    read = {name for node in model.graph.node for name in node.input}
    read |= {name for node in model.graph.node for body in subgraphs(node) for name in captured(body)}
    found = {name: _selection(makers, name) for name in makers if name in read}
    return {name: selection for name, selection in found.items() if selection is not None}


def _makers(graph: onnx.GraphProto) -> dict[str, tuple[int, onnx.NodeProto]]:
    return {name: (i, node) for i, node in enumerate(graph.node) for name in node.output if name}


def _selection(makers: Mapping[str, tuple[int, onnx.NodeProto]], name: str) -> Selection | None:
    """What the tensor of that name was chosen from; None if it was not chosen from anything."""
    node = makers[name][1] if name in makers else None
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _CHOOSING:
        return None
    if list(node.output).index(name) != _CHOOSING[node.op_type]:
        return None
    data = node.input[1 if node.op_type == "NonMaxSuppression" else 0]
    i, maker = makers.get(data, (0, None))
    label = "" if maker is None else maker.name or f"{maker.op_type}_{i}"
    return Selection(node.op_type, data, _axis(node), label)


def _axis(node: onnx.NodeProto) -> int:
    given: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return int(given.get("axis", -1 if node.op_type == "TopK" else 0))
