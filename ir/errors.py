"""The one exception tree of ppuc.

    PpucError                  the user's input or call is wrong: exit code 2, no traceback
    |- ModelError              the ONNX model (file, node, shape)
    |- TextError               a .ppir or assembly text (line, column, caret)
    |- TargetError             a target description
    |- ArtifactError           a .ppu file
    |- InputError              arrays given to a program
    |- UsageError              options of a command or call
    `- CapacityError           the model does not fit the machine, or a program exceeds its limits
    InternalError              ppuc broke one of its own rules: always with a traceback

Every PpucError carries Diagnostics; its text is `where: what`, then `got`, `expected` and `hint` lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: place and entity (`where`), the rule that is broken (`what`), and what helps the reader mend it."""

    where: str
    what: str
    got: str | None = None
    expected: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {key}: {text}" for key in ("got", "expected", "hint") if (text := getattr(self, key)) is not None]
        return printable("\n".join(lines))


def printable(text: str) -> str:
    """`text` with control characters, line ends apart, as escapes: names come from files, and a terminal obeys them."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class PpucError(Exception):
    """An error that the user can mend. `diagnostics` holds at least one Diagnostic."""

    def __init__(self, diagnostics: Diagnostic | Sequence[Diagnostic]) -> None:
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))

    @classmethod
    def of(
        cls, where: str, what: str, *, got: object = None, expected: object = None, hint: str | None = None
    ) -> PpucError:
        """Build the error from the parts of its single Diagnostic."""
        texts = [None if x is None else str(x) for x in (got, expected)]
        return cls(Diagnostic(where, what, texts[0], texts[1], hint))


class ModelError(PpucError):
    """The ONNX model is malformed, or asks for something that has no meaning."""


class TextError(PpucError):
    """A .ppir or assembly text does not parse or does not verify."""


class TargetError(PpucError):
    """A target is unknown or its description malformed."""


class ArtifactError(PpucError):
    """A .ppu file is damaged, foreign or of another version."""


class InputError(PpucError):
    """Arrays given to a program have the wrong name, dtype or shape."""


class UsageError(PpucError):
    """Options contradict each other or name something that does not exist."""


class CapacityError(PpucError):
    """The model does not fit the machine's memories, or a program exceeds another of its limits."""


class InternalError(Exception):
    """ppuc broke one of its own rules (an IR invariant, a pass contract). Never the user's fault."""
