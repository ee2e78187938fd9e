"""What names stand for while a model is imported, and where its nodes stand.

Invariant: a name means what the innermost scope that has it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from ppuc.compiler.frontend.offload.hosting import HostTensor
from ppuc.ir.errors import ModelError
from ppuc.ir.graph import Value


class ExpansionError(ModelError):
    """Functions that expand to more nodes than anybody meant."""


class UnknownOpsError(ModelError):
    """Ops that cannot be imported; one diagnostic for each, with its nodes."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that could not be computed. `error` is raised at its first use; None when it is reported already."""

    error: ModelError | None = None


Tensor = Value | HostTensor | Unknown | None
"""What a name stands for; None is an optional input that the caller of a function left out."""


@dataclass(slots=True)
class Scope:
    """Names visible in one graph, branch or function body. Initializers become constants when they are first read."""

    opsets: Mapping[str, int]
    values: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    outer: Scope | None = None

    def names(self) -> set[str]:
        """Everything visible, outer scopes included."""
        own = self.values.keys() | self.tensors.keys()
        return own | self.outer.names() if self.outer is not None else own


@dataclass(frozen=True, slots=True)
class Site:
    """A node where it stands: `label` is its path through functions and branches, `depth` that of function calls."""

    node: onnx.NodeProto
    scope: Scope
    label: str
    depth: int


__all__ = ["ExpansionError", "Scope", "Site", "Tensor", "Unknown", "UnknownOpsError"]
