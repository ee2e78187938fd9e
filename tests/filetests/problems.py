"""Errors that a case meets, and those that it expects: each of the one at the line of one of the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppuc.ir.errors import PpucError, TextError
from ppuc.ir.text.literals import DTYPE_NAMES
from ppuc.ir.verify import VerificationError
from tests.filetests.case import Case, CaseError

_PLACE = re.compile(r":(\d+):\d+$")
_COMMENT = re.compile(r"\s*//.*")
_NAME = re.compile(r"\w+(?:[.:]\w+)*")
_FORM = re.compile(r"^(load|store)\.[a-z.]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error that was found: its text, the line it names (None: none), the instruction it shows, and the names of
    what it is about."""

    text: str
    line: int | None = None
    instruction: str = ""
    names: frozenset[str] = frozenset()

    def is_at(self, case: Case, line: int) -> bool:
        """Whether it is about that line of the file (0: about the file)."""
        if self.line is not None or not line:
            return self.line in (None, line)
        source = case.source(line)
        if self.instruction:  # as it is printed: with all attributes, and without the form of a load or store
            return _FORM.sub(r"\1", source).startswith(_FORM.sub(r"\1", self.instruction).split(" {")[0])
        return bool(self.names & _names(source))


def problems_of(error: PpucError | VerificationError) -> list[Problem]:
    """What an error reports: every finding of a verifier, every diagnostic of another error."""
    if isinstance(error, VerificationError):
        return [Problem(str(f), None, f.instruction, _names(f.entity.split()[-1])) for f in error.findings]
    found = []
    for diagnostic in error.diagnostics:
        place = _PLACE.search(diagnostic.where) if isinstance(error, TextError) else None
        line = int(place[1]) if place else None
        text = _COMMENT.sub("", str(diagnostic))  # a text error shows the line, with what is expected of it
        found.append(Problem(text, line, "", _names(f"{diagnostic.where} {diagnostic.got}")))
    return found


def _names(text: str) -> frozenset[str]:
    return frozenset(_NAME.findall(text)) - DTYPE_NAMES


def compare_errors(case: Case, found: Sequence[Problem]) -> None:
    """Raise CaseError unless every problem is expected, at its line, and every expected error is there."""
    left = list(found)
    faults = []
    for expected in case.errors:
        at = next((p for p in left if expected.text in p.text and p.is_at(case, expected.at)), None)
        if at is None:
            faults.append(f"{case.path}:{expected.line}: expected here, and not found: {expected.text}")
        else:
            left.remove(at)
    faults += [f"{case.path}:{p.line or case.first}: not expected:\n{p.text}" for p in left]
    if faults:
        raise CaseError("\n".join(faults))
