"""Level 1, the graph: tensors in SSA form.

A Graph is a list of Ops in an order in which every operand is defined before its use; each Value is defined once, as a
parameter or as an op's result. A fused group is the op `group`, whose `body` is a Graph: the body's parameters stand
for the group's operands and the body's results for its results. Everything is frozen; passes build new graphs.

Constants are ops (`const`), so every operand is a Value. The loc of an op is the tuple of names of the ONNX nodes it
came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ppuc.ir.errors import Entity, EntityKind
from ppuc.ir.types import Space, TensorType

if TYPE_CHECKING:
    from ppuc.ir.resource import Resource


@dataclass(frozen=True, slots=True)
class Attrs:
    """Base of every op's attribute dataclass. Fields are int, float, bool, str, DType, Resource, or tuples of those."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: defined once, named uniquely in its graph (`%[A-Za-z0-9_.]+` without the percent sign)."""

    name: str
    type: TensorType
    space: Space | None = None

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `name` is the key of its OpDef record in `ppuc.ir.ops`."""

    name: str
    attrs: Attrs
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    loc: tuple[str, ...] = ()
    body: Graph | None = None

    @property
    def result(self) -> Value:
        """The single result. Raises ValueError when there are several."""
        (only,) = self.results
        return only

    @property
    def entities(self) -> tuple[Entity, ...]:
        """Entities for a Diagnostic about this op: the ONNX nodes that it came from, or its first result if none is
        known."""
        return Entity.each(EntityKind.NODE, self.loc) or (Entity(EntityKind.TENSOR, self.results[0].name),)


@dataclass(frozen=True, slots=True)
class Graph:
    """Ops in definition-before-use order from `params` to `results`."""

    name: str
    params: tuple[Value, ...]
    results: tuple[Value, ...]
    ops: tuple[Op, ...]
    _producers: dict[str, Op] = field(default_factory=dict, init=False, compare=False, repr=False)
    settled: set[object] = field(default_factory=set, init=False, compare=False, repr=False)
    """Rewrite rules that are known to leave this graph as it is (the rewriter records them)."""

    def producer(self, value: Value) -> Op | None:
        """The op that defines `value`; None for a parameter."""
        if not self._producers:
            self._producers.update({r.name: op for op in self.ops for r in op.results})
        return self._producers.get(value.name)

    def constants(self) -> Mapping[str, Resource]:
        """Value name -> data, for every `const` op of this graph (not of nested bodies)."""
        return {op.results[0].name: op.attrs.value for op in self.ops if op.name == "const"}  # type: ignore[attr-defined]

    def with_ops(self, ops: Iterable[Op], **changes: object) -> Graph:
        """This graph with other ops (and other fields, if named)."""
        return replace(self, ops=tuple(ops), **changes)  # type: ignore[arg-type]
