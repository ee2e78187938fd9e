"""Standard output and error streams that raise a dedicated error if they cannot be written.

Invariant: if a stream fails (full disk, closed descriptor), a command still ends with its own exit code and restores
the streams.
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
    """A text stream whose failures are StreamErrors, except BrokenPipeError of a closed pipe."""

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
    """A context in which standard output and error raise StreamError; a closed one discards its output."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        out, err = (nowhere if stream is None else stream for stream in before)
        sys.stdout, sys.stderr = _Checked(out, "standard output"), _Checked(err, "standard error")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def discard_unwritten() -> None:
    """Discard unwritable buffered output: Python would retry at exit, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
