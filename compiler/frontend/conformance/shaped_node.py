"""A node as rules about shapes see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.compiler.frontend.conformance.findings import NodeSite

Shape = tuple[int | None, ...]
Broken = tuple[str, object, str]
"""What is wrong, what stands there, and what is expected."""


@dataclass(frozen=True, slots=True)
class ShapedNode:
    """A node, the shapes of its operands and results (None: not even the rank is known), and those operands that are
    constants."""

    site: NodeSite
    attributes: Mapping[str, Any]
    shapes: Sequence[Shape | None]
    constants: Mapping[int, np.ndarray]
    results: Sequence[Shape | None] = ()
    types: Sequence[int] = ()
    """Element types of the operands; 0 where they are not known."""
    length: int | None = None
    """Tensors in the sequence that is operand 0, where it is known."""

    def shape(self, index: int) -> Shape | None:
        """Shape of operand `index`; None when it is not given or not known."""
        return self.shapes[index] if index < len(self.shapes) else None

    def ints(self, name: str, rank: int, default: int) -> list[int]:
        """Attribute `name`, with `default` for each of `rank` entries when it is not given."""
        return list(self.attributes.get(name, [default] * rank))

    @property
    def explicit_padding(self) -> bool:
        return self.attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


def contradicts(shape: Shape, wanted: Sequence[int | None]) -> bool:
    """Whether a shape cannot be `wanted`; sizes that are None may be any."""
    return len(shape) != len(wanted) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(shape, wanted, strict=True)
    )


Rule = Callable[[ShapedNode], Iterator[Broken]]
