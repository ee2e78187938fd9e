"""Lines, blocks and errors of a text: the reader shared by all parsers of this package.

Invariant: every TextError raised here names file, line and column and shows the line with a caret under the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from ppuc.ir.errors import Diagnostic, TextError
from ppuc.ir.text.nodes import Syntax
from ppuc.ir.text.syntax import LineSyntaxError, parse_line

_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//.*')
_SHOWN = 120


class Line(NamedTuple):
    """A logical line: the number of its first line in the file, and its text without comments."""

    number: int
    text: str


class Reader:
    """Hands out the logical lines of `text` and keeps the open blocks. `filename` is shown in errors."""

    def __init__(self, text: str, filename: str = "") -> None:
        self.filename = filename or "<text>"
        self._raw = text.split("\n")
        self._next = 0
        self._line = Line(0, "")

    def line(self) -> Line | None:
        """The next non-empty logical line, with continuations joined; None at the end."""
        while self._next < len(self._raw):
            number = self._next + 1
            text = self._take()
            if not text or text.isspace():
                continue
            while text.rstrip().endswith((",", "(")) and self._next < len(self._raw):
                text += "\n" + self._take()
            self._line = Line(number, text)
            return self._line
        return None

    def _take(self) -> str:
        text = self._raw[self._next]
        self._next += 1
        return _COMMENT.sub(lambda m: m[1] or "", text) if "//" in text else text

    def block(self, opener: Line) -> Iterator[Line]:
        """The lines up to the brace that closes the block of `opener`."""
        while (line := self.line()) is not None:
            if line.text.strip() == "}":
                return
            yield line
        last = opener.text.split("\n")[-1]
        number = opener.number + opener.text.count("\n")
        raise self.error_at(number, last.rindex("{") + 1, 1, "this block is never closed", expected="a line with '}'")

    def parse(self, line: Line, kind: str) -> Syntax:
        """The syntax of a line of `kind` (a rule of the grammar). Raises TextError."""
        try:
            return parse_line(line.text, kind)
        except LineSyntaxError as failure:
            self._line = line
            number = line.number + failure.line - 1
            error = self.error_at(
                number, failure.column, failure.width, failure.what, got=failure.got, expected=failure.expected
            )
            raise error from None

    def fail(
        self,
        token: Any,
        what: str,
        *,
        line: Line | None = None,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> NoReturn:
        """Raise a TextError that points at `token` of `line` (by default the line handed out last)."""
        number = (line or self._line).number + token.line - 1
        raise self.error_at(number, token.column, len(token), what, got=got, expected=expected, hint=hint)

    def error_at(
        self,
        number: int,
        column: int,
        width: int,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> TextError:
        """The error at a line and column of the file (both from 1), `width` characters wide."""
        source = self._raw[number - 1] if number <= len(self._raw) else ""
        start = max(0, column - 1 - _SHOWN // 2) if len(source) > _SHOWN else 0
        shown = source[start : start + _SHOWN].replace("\t", " ")
        indent = len(shown) - len(shown.lstrip())
        shown, at = shown.strip(), max(0, column - 1 - start - indent)
        caret = " " * at + "^" * max(1, min(width, len(shown) - at))
        where = f"{self.filename}:{number}:{column}"
        return TextError(Diagnostic(where, f"{what}\n    {shown}\n    {caret}", got, expected, hint))
