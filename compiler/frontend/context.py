"""The interface between an ONNX op importer and its node.

An importer (`ppuc.compiler.frontend.registry`) appends ppuc ops to `ctx.b` and returns one Value per ONNX output that
the node names. Importers handle every opset from 7 on (for example attributes that became inputs) with `ctx.attr` and
`ctx.constant`.

Invariant: an importer either returns values whose types are right or raises ModelError through `ctx.fail`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, overload

import numpy as np

from ppuc.compiler.frontend.place import Place, node_place
from ppuc.ir.errors import Entity, EntityKind, ModelError
from ppuc.ir.graph import Attrs, Value
from ppuc.ir.rewrite import Builder
from ppuc.ir.types import DType, TensorType

T = TypeVar("T")


class BrokenRuleError(ModelError):
    """A node that violates the rules of its op, on any machine."""


@dataclass(slots=True)
class NodeContext:
    """One ONNX node being imported. `inputs` holds None for an omitted optional input; attributes are plain Python
    values (ints, floats, str, lists, np.ndarray for tensors, graphs as onnx.GraphProto)."""

    b: Builder
    op_type: str
    name: str
    opset: int
    inputs: Sequence[Value | None]
    outputs: Sequence[str]
    attributes: dict[str, Any]
    constants: Callable[[Value], np.ndarray | None]
    where: str
    used: set[str] = field(default_factory=set)
    wanted: Callable[[Value], None] = lambda value: None

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def operand(self, index: int) -> Value:
        """Input `index`. Raises ModelError if it is missing."""
        if not self.has(index):
            self.fail(f"input {index} is missing")
        value = self.inputs[index]
        assert value is not None
        return value

    def type(self, index: int) -> TensorType:
        return self.operand(index).type

    def shape(self, index: int) -> tuple[int, ...]:
        """Static shape of input `index`."""
        return self.operand(index).type.dims

    def dtype(self, index: int) -> DType:
        return self.operand(index).type.dtype

    def constant(self, index: int) -> np.ndarray | None:
        """The value of input `index` if known at compile time, else None."""
        return self.constants(self.operand(index)) if self.has(index) else None

    def need_constant(self, index: int, what: str) -> np.ndarray:
        """The value of input `index`. Raises ModelError if it depends on the model's inputs."""
        value = self.constant(index)
        if value is None:
            self.wanted(self.operand(index))
            self.fail(
                f"{what} depends on the model's inputs",
                got=f"{self.operand(index)} computed at run time",
                expected="a value known at compile time",
                hint="bind dynamic dimensions with --dim, or export the model with fixed shapes",
                about=(Entity(EntityKind.TENSOR, self.operand(index).name),),
            )
        return value

    @overload
    def attr(self, name: str) -> Any: ...
    @overload
    def attr(self, name: str, default: T) -> T: ...
    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name`, or `default`."""
        self.used.add(name)
        return self.attributes.get(name, default)

    def ints(self, name: str, index: int, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """A list of ints: attribute `name` in older opsets, constant input `index` in newer ones."""
        if name in self.attributes:
            self.used.add(name)
            return tuple(int(i) for i in np.atleast_1d(self.attributes[name]))
        if self.has(index):
            return tuple(int(i) for i in np.atleast_1d(self.need_constant(index, f"'{name}'")))
        return tuple(default) if default is not None else None

    def op(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value:
        """Append a ppuc op with one result; a type error becomes an error at this node."""
        try:
            return self.b(name, *operands, attrs=attrs, hint=self.hint)
        except ValueError as error:
            self.fail(str(error))

    @property
    def place(self) -> Place:
        """The location of this node."""
        return node_place(self.where, self.name, self.op_type)

    @property
    def hint(self) -> str:
        """Base for value names: the node's first output."""
        return next((o for o in self.outputs if o), self.op_type.lower())

    def scalar_like(self, number: float, value: Value) -> Value:
        """A rank-0 constant of `value`'s dtype."""
        return self.b.scalar(number, value.type.dtype)

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """Attribute `name` as an axis in [0, rank). Raises ModelError if it is out of range."""
        axis = int(self.attr(name, default))
        if not -rank <= axis < max(rank, 1):
            self.breaks(f"{name} is out of range", got=axis, expected=f"between {-rank} and {rank - 1}")
        return axis % rank if rank else 0

    def breaks(self, what: str, *, got: object, expected: object) -> NoReturn:
        """Raise BrokenRuleError at this node: it is invalid on any machine."""
        raise BrokenRuleError(self.place.diagnostic(what, got=got, expected=expected))

    def fail(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        about: Sequence[Entity] = (),
    ) -> NoReturn:
        """Raise ModelError at this node; `about` are further entities."""
        raise self.place.error(what, got=got, expected=expected, hint=hint, about=about)
