"""The scopes of a model: its main graph, and the functions and branches that are inlined into it.

Invariant: a name denotes one tensor in its scope; unread initializers are never examined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx

from ppuc.compiler.frontend.source import normal_domain
from ppuc.ir.errors import InternalError, ModelError
from ppuc.ir.graph import Value


class ExpansionError(ModelError):
    """Function calls expand to too many nodes."""


class UnknownOpsError(ModelError):
    """Ops that cannot be imported, with one diagnostic per op that lists its nodes."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that could not be computed. `error` is raised at its first use; None if already reported."""

    error: ModelError | None = None


class Elsewhere:
    """A tensor outside the graph being built. A policy creates it, and handles the nodes that read it."""

    __slots__ = ()


Tensor = Value | Elsewhere | Unknown | None
"""The tensor of a name; None is an optional input that the caller of a function omitted."""


@dataclass(slots=True)
class Scope:
    """Names visible in one graph, branch or function body. `constant` makes a tensor from an initializer on first read;
    its second argument is whether that is in the main graph."""

    opsets: Mapping[str, int]
    constant: Callable[[onnx.TensorProto, bool], Tensor]
    outer: Scope | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def inner(self) -> Scope:
        """The scope of a subgraph, in which names of this one are visible."""
        return Scope(self.opsets, self.constant, self)

    def apart(self, opsets: Mapping[str, int]) -> Scope:
        """The scope of a function body, in which no outer names are visible."""
        return Scope(opsets, self.constant)

    def names(self) -> set[str]:
        """All visible names, including outer scopes."""
        own = self.values.keys() | self.tensors.keys()
        return own | self.outer.names() if self.outer is not None else own

    def read(self, name: str) -> Tensor:
        """The tensor of a visible name."""
        at: Scope | None = self
        while at is not None:
            if name in at.values:
                return at.values[name]
            if name in at.tensors:
                at.values[name] = self.constant(at.tensors[name], at.outer is None)
                return at.values[name]
            at = at.outer
        raise InternalError(f"'{name}' is in no scope")

    def initializer(self, name: str) -> onnx.TensorProto | None:
        """The initializer of that name, as in the file."""
        if name in self.tensors:
            return self.tensors[name]
        return self.outer.initializer(name) if self.outer is not None else None


@dataclass(frozen=True, slots=True)
class Site:
    """A node in its context: `label` is its path through functions and branches, `depth` the nesting of function calls;
    `operands` are the tensors of its inputs, None for omitted ones."""

    node: onnx.NodeProto
    scope: Scope
    label: str
    depth: int
    operands: tuple[Tensor, ...]

    @property
    def domain(self) -> str:
        return normal_domain(self.node.domain)

    @property
    def op(self) -> str:
        """The op type, prefixed with its domain unless standard."""
        return f"{self.domain}.{self.node.op_type}" if self.domain else self.node.op_type

    @property
    def of_main_graph(self) -> bool:
        """Whether the node is in the model's main graph."""
        return self.scope.outer is None and self.depth == 0

    def unknown(self) -> list[Tensor]:
        """Outputs that could not be computed, after the error was reported."""
        return [Unknown()] * len(self.node.output)


__all__ = ["Elsewhere", "ExpansionError", "Scope", "Site", "Tensor", "Unknown", "UnknownOpsError"]
