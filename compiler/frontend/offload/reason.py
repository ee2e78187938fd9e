"""Reasons why a node does not run on the PPU: a text for users, and a cause for code.

Invariant: code never parses a reason's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ppuc.ir.errors import Diagnostic, EntityKind
from ppuc.ir.types import DType


class Cause(Enum):
    """Causes, distinguished by their remedies."""

    UNSUPPORTED = "the PPU lacks the op, or this form of it"
    DOUBLE = "it computes on f64, or reads it"
    RUNTIME_VALUE = "it needs a value that is computed at run time"
    HOST_OPERAND = "it reads data that only the host can hold"
    CUSTOM = "the user supplies it as a Python function"
    UNKNOWN = "the host lacks it as well"


REMEDIES = {
    Cause.DOUBLE: "convert it to float32 before exporting",
    Cause.RUNTIME_VALUE: "give the values with --inputs, or export with constant sizes",
    Cause.HOST_OPERAND: "its inputs come from the host; fix that node first",
    Cause.UNKNOWN: "supply it with --host-ops FILE.py: a Python function marked @ppuc.host_op('DOMAIN::OP')",
}
"""Remedies that move a node to the PPU, or to the host, by cause."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence without a full stop, and its cause."""

    text: str
    cause: Cause = Cause.UNSUPPORTED

    def __str__(self) -> str:
        return self.text

    def within(self, text: str) -> Reason:
        """The reason, prefixed with `text`."""
        return Reason(f"{text}: {self.text}", self.cause)

    @staticmethod
    def of(diagnostic: Diagnostic) -> Reason:
        """The reason in a Diagnostic of a pass that refuses nodes."""
        double = str(DType.F64) in diagnostic.about(EntityKind.TYPE)
        return Reason(diagnostic.what, Cause.DOUBLE if double else Cause.UNSUPPORTED)


__all__ = ["REMEDIES", "Cause", "Reason"]
