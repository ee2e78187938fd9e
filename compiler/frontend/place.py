"""Locations in an ONNX model for errors: their text for users, and their entity for code.

Invariant: a location always has the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.ir.errors import Diagnostic, Entity, EntityKind, ModelError


@dataclass(frozen=True, slots=True)
class Place:
    """A node, tensor, input or output of a model."""

    text: str
    entity: Entity

    def diagnostic(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        about: Sequence[Entity] = (),
    ) -> Diagnostic:
        """A finding at this location; `about` are further entities."""
        texts = [None if x is None else str(x) for x in (got, expected)]
        return Diagnostic(self.text, what, texts[0], texts[1], hint, (self.entity, *about))

    def error(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        about: Sequence[Entity] = (),
    ) -> ModelError:
        """The error of one such finding."""
        return ModelError(self.diagnostic(what, got=got, expected=expected, hint=hint, about=about))


def node_place(where: str, label: str, op_type: str) -> Place:
    """Node `label` of the model called `where` in messages."""
    return Place(f"{where}: node '{label}' ({op_type})", Entity(EntityKind.NODE, label))


def tensor_place(where: str, name: str) -> Place:
    """An initializer, or another tensor of a model."""
    return Place(f"{where}: tensor '{name}'", Entity(EntityKind.TENSOR, name))


def input_place(where: str, name: str) -> Place:
    """A declared input of a model."""
    return Place(f"{where}: input '{name}'", Entity(EntityKind.INPUT, name))


def output_place(where: str, name: str) -> Place:
    """A declared output of a model."""
    return Place(f"{where}: output '{name}'", Entity(EntityKind.OUTPUT, name))


__all__ = ["Place", "input_place", "node_place", "output_place", "tensor_place"]
