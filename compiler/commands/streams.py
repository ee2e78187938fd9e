"""Standard output and error that say when they cannot be written, as an error of their own.

Invariant: whatever becomes of the streams (a full disk, a descriptor that is closed), a command ends with an exit code
of its own and leaves them as they were.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class StreamError(Exception):
    """A standard stream cannot be written."""


class _Checked:
    """A text stream whose failures are StreamErrors. A pipe that nobody reads stays a BrokenPipeError."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StreamError(f"{self._name}: cannot be written\n  got: {error.strerror}") from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StreamError(f"{self._name}: cannot be written\n  got: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def checked_streams() -> Iterator[None]:
    """Inside, standard output and error raise StreamError; one that is closed takes everything and keeps nothing."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        out, err = (nowhere if stream is None else stream for stream in before)
        sys.stdout, sys.stderr = _Checked(out, "standard output"), _Checked(err, "standard error")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def discard_unwritten() -> None:
    """Give up what the streams hold and cannot write: Python would try again when it ends, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
