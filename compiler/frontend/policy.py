"""Policies for nodes that cannot be imported. The importer reports them; a policy decides.

`Strict` is the policy of a compiler without a host: every node must be imported, and errors are collected, so that one
error names all unsupported ops of a model. `ppuc.compiler.frontend.offload.policy` has the others.

Invariant: a policy returns one tensor per output of a node; if one is `Unknown`, `finish` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx

from ppuc.compiler.frontend.inlining import Elsewhere, Site, Tensor, Unknown, UnknownOpsError
from ppuc.compiler.frontend.place import node_place
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, ModelError, counted
from ppuc.ir.graph import Value

NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node is not imported. `error` is its error; None if its op has no importer, which messages describe as
    `what` ("": the op's name). `wanted` is a tensor whose value is needed; `invalid`: the node violates the rules of
    its op."""

    what: str = ""
    error: ModelError | None = None
    wanted: Value | None = None
    invalid: bool = False


class Faults:
    """Errors about a model (called `where` in messages), collected while its nodes are imported."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.errors: list[ModelError] = []
        self.unsupported: dict[str, list[str]] = {}

    def add(self, error: ModelError | None) -> None:
        """Collect an error; None stands for one already collected."""
        if error is not None:
            self.errors.append(error)

    def add_unsupported(self, op: str, label: str) -> None:
        """Collect a node with an unsupported op."""
        self.unsupported.setdefault(op, []).append(label)

    @property
    def count(self) -> int:
        return len(self.errors) + sum(map(len, self.unsupported.values()))

    def mark(self) -> Callable[[], None]:
        """A checkpoint: returns a function that discards errors collected after it."""
        errors, unsupported = len(self.errors), {op: list(nodes) for op, nodes in self.unsupported.items()}

        def back() -> None:
            del self.errors[errors:]
            self.unsupported = unsupported

        return back

    def finish(self, hint: Callable[[str], str] | None = None) -> None:
        """Raise UnknownOpsError for all unsupported ops together (each with its `hint`), else the first error."""
        if self.unsupported:
            raise UnknownOpsError(
                [self._diagnostic(op, nodes, hint and hint(op)) for op, nodes in self.unsupported.items()]
            )
        if self.errors:
            raise self.errors[0]

    def _diagnostic(self, op: str, nodes: Sequence[str], hint: str | None) -> Diagnostic:
        shown = ", ".join(f"'{n}'" for n in nodes[:NAMES_SHOWN])
        more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
        got = f"{counted(len(nodes), 'node')}: {shown}{more}"
        entities = (Entity(EntityKind.OP, op), *Entity.each(EntityKind.NODE, nodes))
        return Diagnostic(self.where, f"op {op} is not supported", got, hint=hint, entities=entities)


class Policy(Protocol):
    """Decides about nodes that cannot be imported, and tensors that no Value can hold."""

    faults: Faults

    def input(self, info: onnx.ValueInfoProto) -> Elsewhere | None:
        """The tensor of a model input; None for a Value."""

    def bound(self, sizes: Mapping[str, int], error: ModelError | None) -> None:
        """Called with the sizes of the model's symbols, or the `error` about unbound inputs, which it may raise."""

    def constant(self, tensor: onnx.TensorProto) -> Elsewhere | None:
        """The tensor of an initializer; None for a Value."""

    def node(self, site: Site, imported: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The outputs of a node: `imported()`, or replacements."""

    def loop(self, unrolled: Callable[[], list[Value]]) -> list[Value]:
        """`unrolled()`; the policy handles its NotUnrolledError, including nodes of the loop's body."""

    def refused(self, site: Site, refusal: Refusal) -> list[Tensor]:
        """The outputs of a node that cannot be imported."""

    def incomplete(self, site: Site, results: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of a node whose first `results` outputs only were imported."""

    def finish(self) -> None:
        """Raise the collected errors."""


class Strict:
    """Every node must be imported."""

    def __init__(self, where: str) -> None:
        self.faults = Faults(where)

    def input(self, info: onnx.ValueInfoProto) -> Elsewhere | None:
        """None: an input that no Value can hold is an error where it is declared."""
        return None

    def bound(self, sizes: Mapping[str, int], error: ModelError | None) -> None:
        """Does not raise `error`, so that unsupported ops are reported even with unbound dimensions."""

    def constant(self, tensor: onnx.TensorProto) -> Elsewhere | None:
        """None: an initializer that no Value can hold is an error where it is read."""
        return None

    def node(self, site: Site, imported: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The outputs as imported."""
        return imported()

    def loop(self, unrolled: Callable[[], list[Value]]) -> list[Value]:
        """A loop that cannot be unrolled is an error, as are errors in its body."""
        return unrolled()

    def refused(self, site: Site, refusal: Refusal) -> list[Tensor]:
        """Collects the error."""
        if refusal.error is None:
            self.faults.add_unsupported(refusal.what or site.op, site.label)
        self.faults.add(refusal.error)
        return site.unknown()

    def incomplete(self, site: Site, results: Sequence[Tensor]) -> list[Tensor]:
        """Outputs that are not imported are errors only if they are read."""
        place = node_place(self.faults.where, site.label, site.node.op_type)
        missing = [
            Unknown(place.error(f"output {i} ('{name}') is not supported", about=(Entity(EntityKind.TENSOR, name),)))
            for i, name in enumerate(site.node.output)
        ]
        return [*results, *missing[len(results) :]]

    def finish(self) -> None:
        """Raises the collected errors."""
        self.faults.finish()


__all__ = ["Faults", "Policy", "Refusal", "Strict"]
