"""Writing files whole or not at all, and reading texts.

Invariant: under the name that a caller gives, there is what was there before or all of what was written; a failure
leaves no other file behind.
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
    """A file to write, which gets its name when the block ends. What is there and is no regular file (a pipe, a device)
    is written as it is. Raises `refusal` when the file cannot be written."""
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
    """Write a whole file. Raises `refusal` when that is not possible."""
    with whole_file(path, refusal) as file:
        file.write(data)


def read_text(path: str | Path, refusal: type[PpucError], expected: str | None = None) -> str:
    """The text in a file. Raises `refusal` when there is none."""
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "no such file"
        raise refusal.of(str(path), what, expected=expected)
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise refusal.of(str(path), "cannot be read", got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise refusal.of(str(path), "is not text", got=error, expected=expected and f"{expected} in UTF-8") from error
