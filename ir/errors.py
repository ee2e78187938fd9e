"""The one exception tree of ppuc.

    PpucError                  the user's input or call is wrong: exit code 2, no traceback
    |- ModelError              the ONNX model (file, node, shape)
    |- TextError               a .ppir or assembly text (line, column, caret)
    |- TargetError             a target description
    |- ArtifactError           a .ppu file
    |- InputError              arrays given to a program
    |- UsageError              options of a command or call
    |- PluginError             a package that extends ppuc cannot be used
    `- CapacityError           the model does not fit the machine, or a program exceeds its limits
    InternalError              ppuc broke one of its own rules: always with a traceback

Every PpucError carries Diagnostics; its text is `where: what`, then `got`, `expected` and `hint` lines. Code that needs
to know what an error is about reads `entities`, never the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class EntityKind(StrEnum):
    """The kind of an Entity."""

    NODE = "node"  # of the ONNX model, by its name or its path through functions and branches
    OP = "op"  # an ONNX op type, prefixed with its domain unless standard
    ATTRIBUTE = "attribute"
    INPUT = "input"
    OUTPUT = "output"
    DIMENSION = "dimension"  # a key of --dim
    TENSOR = "tensor"  # of the model or of a graph: an initializer or a value
    TYPE = "type"  # an element type
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing that a Diagnostic is about, by its plain, unquoted name."""

    kind: EntityKind
    name: str

    @staticmethod
    def each(kind: EntityKind, names: Iterable[str]) -> tuple[Entity, ...]:
        """Entities of one kind."""
        return tuple(Entity(kind, name) for name in names)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: its location (`where`), the broken rule (`what`), and help for fixing it. `entities` are all things
    it is about, even if the texts name only a few."""

    where: str
    what: str
    got: str | None = None
    expected: str | None = None
    hint: str | None = None
    entities: tuple[Entity, ...] = ()

    def about(self, kind: EntityKind) -> tuple[str, ...]:
        """Names of the entities of one kind."""
        return tuple(e.name for e in self.entities if e.kind is kind)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {key}: {text}" for key in ("got", "expected", "hint") if (text := getattr(self, key)) is not None]
        return printable("\n".join(lines))


def counted(number: int, noun: str) -> str:
    """`1 kernel`, `2 kernels`: a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """`text` with control characters other than line ends escaped: names come from files, and terminals interpret
    them."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class PpucError(Exception):
    """An error that the user can fix. `diagnostics` holds at least one Diagnostic."""

    def __init__(self, diagnostics: Diagnostic | Sequence[Diagnostic]) -> None:
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))

    @classmethod
    def of(
        cls,
        where: str,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        entities: Sequence[Entity] = (),
    ) -> PpucError:
        """Build the error from the parts of its single Diagnostic."""
        texts = [None if x is None else str(x) for x in (got, expected)]
        return cls(Diagnostic(where, what, texts[0], texts[1], hint, tuple(entities)))


class ModelError(PpucError):
    """The ONNX model is malformed or meaningless."""


class TextError(PpucError):
    """A .ppir or assembly text does not parse or does not verify."""


class TargetError(PpucError):
    """A target is unknown or its description malformed."""


class ArtifactError(PpucError):
    """A .ppu file is damaged, of another format or of another version."""


class InputError(PpucError):
    """Arrays given to a program have the wrong name, dtype or shape."""


class UsageError(PpucError):
    """Options contradict each other or name something that does not exist."""


class PluginError(PpucError):
    """A package that extends ppuc does not load, or registers something invalid."""


class CapacityError(PpucError):
    """The model does not fit the machine's memories, or a program exceeds another of its limits."""


class InternalError(Exception):
    """ppuc broke one of its own rules (an IR invariant, a pass contract). Never the user's fault."""
