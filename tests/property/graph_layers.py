"""The layers that random graphs are made of, each a function from a growing graph to the value it adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ppuc.ir.graph import Value
from ppuc.ir.types import DType
from tests.property.growing_graph import FLOATS, INTEGERS, RandomGraph

NUMBERS = (*FLOATS, *INTEGERS)
ANY = (*NUMBERS, DType.BOOL)
Layer = Callable[[RandomGraph], Value | Sequence[Value]]
LAYERS: dict[str, tuple[float, Layer]] = {}
"""Name -> (how likely, the layer)."""


def layer(share: float) -> Callable[[Layer], Layer]:
    def add(function: Layer) -> Layer:
        LAYERS[function.__name__] = (share, function)
        return function

    return add
