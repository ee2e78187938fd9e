"""Atomic writing of files, and reading of texts.

Invariant: the path holds either its previous contents or the complete new ones; a failure leaves no temporary file.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ppuc.ir.errors import PpucError, UsageError

_numbers = itertools.count()


@contextmanager
def whole_file(path: str | Path, refusal: type[PpucError] = UsageError) -> Iterator[BinaryIO]:
    """A file to write, renamed to `path` when the block ends. A non-regular file (a pipe, a device) is written
    directly. Raises `refusal` if the file cannot be written."""
    target = Path(path)
    if "\0" in str(target):
        raise refusal.of(str(target), "cannot be written", got="a NUL character in its name")
    try:
        special = target.exists() and not target.is_file()
        written = target if special else target.with_name(f".ppuc.{os.getpid()}.{next(_numbers)}.tmp")
        file = written.open("wb" if special else "xb")
    except OSError as error:
        raise refusal.of(str(target), "cannot be written", got=error.strerror) from error
    try:
        with file:
            yield file
        if not special:
            os.replace(written, target)
    except OSError as error:
        raise refusal.of(str(target), "cannot be written", got=error.strerror) from error
    finally:
        if not special:
            with suppress(OSError):
                written.unlink()


def write_file(path: str | Path, data: bytes | memoryview, refusal: type[PpucError] = UsageError) -> None:
    """Write a whole file. Raises `refusal` on failure."""
    with whole_file(path, refusal) as file:
        file.write(data)


def read_text(path: str | Path, refusal: type[PpucError], expected: str | None = None) -> str:
    """The text of a file. Raises `refusal` if it cannot be read as text."""
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "no such file"
        raise refusal.of(str(path), what, expected=expected)
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise refusal.of(str(path), "cannot be read", got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise refusal.of(str(path), "is not text", got=error, expected=expected and f"{expected} in UTF-8") from error
