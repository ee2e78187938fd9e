"""Why a node is not for the PPU: a text for people, a cause for what acts on it.

Invariant: nothing reads a cause out of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ppuc.ir.errors import Diagnostic, EntityKind
from ppuc.ir.types import DType


class Cause(Enum):
    """Causes that differ in what helps."""

    UNSUPPORTED = "the PPU lacks the op, or this form of it"
    DOUBLE = "it computes on f64, or reads it"
    RUNTIME_VALUE = "it needs to know a value that is computed at run time"
    HOST_OPERAND = "it reads what only the host holds"
    CUSTOM = "the user supplies it as a Python function"
    UNKNOWN = "the host lacks it as well"


REMEDIES = {
    Cause.DOUBLE: "convert it to float32 before exporting",
    Cause.RUNTIME_VALUE: "give the values with --inputs, or export with constant sizes",
    Cause.HOST_OPERAND: "what it reads comes from the host; mend that node first",
    Cause.UNKNOWN: "supply it with --host-ops FILE.py: a Python function marked @ppuc.host_op('DOMAIN::OP')",
}
"""What brings a node to the PPU, or to the host, by the cause."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence without its full stop, and its cause."""

    text: str
    cause: Cause = Cause.UNSUPPORTED

    def __str__(self) -> str:
        return self.text

    def within(self, text: str) -> Reason:
        """The reason, with `text` in front of it."""
        return Reason(f"{text}: {self.text}", self.cause)

    @staticmethod
    def of(diagnostic: Diagnostic) -> Reason:
        """Why a pass refuses nodes, by its Diagnostic."""
        double = str(DType.F64) in diagnostic.about(EntityKind.TYPE)
        return Reason(diagnostic.what, Cause.DOUBLE if double else Cause.UNSUPPORTED)


__all__ = ["REMEDIES", "Cause", "Reason"]
