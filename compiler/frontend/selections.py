"""Which outputs of a model are indices that a node chose, and what they choose from.

Invariant: an output counts as a node's choice only if nothing but its shape and integer type changed since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

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
    nodes = model.graph.node
    makers = {name: (i, node) for i, node in enumerate(nodes) for name in node.output if name}
    found = {}
    for output in outputs:
        name = output
        while name in makers and makers[name][1].op_type in _AS_THEY_ARE:
            name = makers[name][1].input[0]
        node = makers[name][1] if name in makers else None
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _CHOOSING:
            continue
        if list(node.output).index(name) == _CHOOSING[node.op_type]:
            data = node.input[1 if node.op_type == "NonMaxSuppression" else 0]
            i, maker = makers.get(data, (0, None))
            label = "" if maker is None else maker.name or f"{maker.op_type}_{i}"
            found[output] = Selection(node.op_type, data, _axis(node), label)
    return found


def _axis(node: onnx.NodeProto) -> int:
    given: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return int(given.get("axis", -1 if node.op_type == "TopK" else 0))
