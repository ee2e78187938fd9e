"""A Builder that folds constants while the graph is built.

Shape arithmetic (Shape, Gather, Concat, Reshape to a computed shape, ...) thus never reaches the graph: an op with
constant operands and small results becomes a constant at once. So does any op with empty results: an axis of size 0
(such as an empty cache) never reaches a kernel.

A graph that says how numbers come about, not only what they are, keeps the folded ops that compute floats.

Invariant: a folded op's constant is what the op's record computes for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ppuc.ir.graph import Attrs, Graph, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import TensorType

LARGEST_FOLD = 65536
"""Maximum elements of a result folded here; larger ones are left to the folding pass."""

LARGEST_TENSOR = 1 << 40
"""Maximum elements of a plausible tensor, including views of smaller ones."""

KEPT = ("dequantize", "unblock")
"""Ops that are not folded here: weights of at most 8 bits may be multiplied as stored."""


class FoldingBuilder(Builder):
    """`known` maps the names of constants to their data, and with `traced` those of floats that are computed from them,
    whose ops stay in the graph."""

    def __init__(self, taken: Iterable[str] = (), traced: bool = False) -> None:
        super().__init__(taken)
        self.traced = traced
        self.known: dict[str, Resource] = {}

    def emit(
        self,
        name: str,
        operands: Sequence[Value],
        attrs: Attrs | None = None,
        *,
        hint: str | None = None,
        types: Sequence[TensorType] | None = None,
        body: Graph | None = None,
    ) -> tuple[Value, ...]:
        """As Builder.emit, or constants in place of the op."""
        if isinstance(attrs, ConstAttrs):
            results = super().emit(name, operands, attrs, hint=hint, types=types)
            self.known[results[0].name] = attrs.value
            return results
        if body is None and operands and name not in KEPT and all(v.name in self.known for v in operands):
            folded = self._folded(name, operands, attrs, hint or name)
            if folded is not None:
                return folded
        if types is None:
            types = OPS[name].infer(attrs if attrs is not None else OPS[name].attrs(), [v.type for v in operands])
        largest = max(types, key=lambda t: t.elements)
        if largest.elements > LARGEST_TENSOR:
            raise ValueError(f"the result would have {largest.elements} elements")
        if all(t.elements == 0 for t in types):
            return tuple(self.empty(t, hint or name) for t in types)
        return super().emit(name, operands, attrs, hint=hint, types=types, body=body)

    def _folded(self, name: str, operands: Sequence[Value], attrs: Attrs | None, hint: str) -> tuple[Value, ...] | None:
        record = OPS[name]
        attrs = attrs if attrs is not None else record.attrs()
        types = record.infer(attrs, [v.type for v in operands])
        if record.reference is None or any(t.elements > LARGEST_FOLD for t in types):
            return None
        with np.errstate(all="ignore"):
            arrays = record.reference(attrs, *(self.known[v.name].array() for v in operands))
        if not self.traced or not any(t.dtype.is_float for t in types):
            return tuple(self.const(np.asarray(a), hint) for a in arrays)
        results = super().emit(name, operands, attrs, hint=hint, types=types)
        self.known |= {v.name: Resource.of(np.asarray(a)) for v, a in zip(results, arrays, strict=True)}
        return results

    def empty(self, type: TensorType, hint: str) -> Value:
        """A constant without elements."""
        return self.const(np.zeros(type.dims, type.dtype.numpy), hint)

    def array(self, value: Value) -> np.ndarray | None:
        """The data of `value` if it is constant, else None."""
        resource = self.known.get(value.name)
        return resource.array() if resource is not None else None
