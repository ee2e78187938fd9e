"""The scopes of a model: its main graph, and the functions and branches that are inlined into it.

Invariant: a name stands for one tensor in its scope; an initializer that nobody reads is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx

from ppuc.compiler.frontend.source import normal_domain
from ppuc.ir.errors import InternalError, ModelError
from ppuc.ir.graph import Value


class ExpansionError(ModelError):
    """Functions that expand to more nodes than anybody meant."""


class UnknownOpsError(ModelError):
    """Ops that cannot be imported; one diagnostic for each, with its nodes."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that could not be computed. `error` is raised at its first use; None when it is reported already."""

    error: ModelError | None = None


class Elsewhere:
    """A tensor that is not part of the graph being built. A policy makes it, and takes the nodes that read it."""

    __slots__ = ()


Tensor = Value | Elsewhere | Unknown | None
"""What a name stands for; None is an optional input that the caller of a function left out."""


@dataclass(slots=True)
class Scope:
    """Names visible in one graph, branch or function body. `constant` makes a tensor of an initializer when it is first
    read; it is told whether that is one of the main graph."""

    opsets: Mapping[str, int]
    constant: Callable[[onnx.TensorProto, bool], Tensor]
    outer: Scope | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def inner(self) -> Scope:
        """The scope of a subgraph, which sees what this one sees."""
        return Scope(self.opsets, self.constant, self)

    def apart(self, opsets: Mapping[str, int]) -> Scope:
        """The scope of a function body, which sees nothing else."""
        return Scope(opsets, self.constant)

    def names(self) -> set[str]:
        """Everything visible, outer scopes included."""
        own = self.values.keys() | self.tensors.keys()
        return own | self.outer.names() if self.outer is not None else own

    def read(self, name: str) -> Tensor:
        """What a visible name stands for."""
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
        """The initializer of that name, as the file has it."""
        if name in self.tensors:
            return self.tensors[name]
        return self.outer.initializer(name) if self.outer is not None else None


@dataclass(frozen=True, slots=True)
class Site:
    """A node where it stands: `label` is its path through functions and branches, `depth` that of function calls;
    `operands` are what its inputs stand for, None for an omitted one."""

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
        """The op type, with its domain in front unless it is of the standard."""
        return f"{self.domain}.{self.node.op_type}" if self.domain else self.node.op_type

    @property
    def of_main_graph(self) -> bool:
        """Whether the node stands in the model's graph itself."""
        return self.scope.outer is None and self.depth == 0

    def unknown(self) -> list[Tensor]:
        """Outputs that could not be computed; why is reported."""
        return [Unknown()] * len(self.node.output)


__all__ = ["Elsewhere", "ExpansionError", "Scope", "Site", "Tensor", "Unknown", "UnknownOpsError"]
