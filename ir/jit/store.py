"""Where compiled entry points are kept: files of the package's own folder (a wheel brings them along, `make` writes
them), then of the user's cache directory.

A file is named after an entry point and the key of its code (decorators.py) and begins with the sha256 of the rest.

Invariant: a file that is missing, cut short or altered is as good as none: its entry point is compiled again. Where
neither folder can be written, entry points are compiled in every process that calls them, which is announced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ppuc.ir.errors import UsageError
from ppuc.ir.files import write_file
from ppuc.ir.user_cache import user_cache

SUFFIX = ".loop"
KEPT = 24
"""Files of a folder; older ones are removed. There are six entry points, and a new key after each change of one."""

PACKAGED = Path(__file__).with_name("compiled")
"""The package's own folder."""

_DIGEST = 32
_listeners: list[Callable[[str], None]] = []


@contextmanager
def announced(show: Callable[[str], None]) -> Iterator[None]:
    """Within the block, the first compilation is announced by `show`, before it starts."""
    told: list[str] = []

    def once(text: str) -> None:
        if not told:
            told.append(text)
            show(text)

    _listeners.append(once)
    try:
        yield
    finally:
        _listeners.remove(once)


def announce_compilation() -> None:
    """Tell whom `announced` named that an entry point is being compiled, and whether the result can be kept."""
    if _listeners:
        text = "compiling loops of the simulator and compiler to machine code, which takes up to half a minute"
        if any(map(_writable, _folders())):
            text += "; they are kept"
        else:
            text += f"; they are not kept: {' and '.join(map(str, _folders()))} cannot be written"
        for show in list(_listeners):
            show(text)


def load(name: str, key: str) -> bytes | None:
    """The code stored for an entry point, None if there is none."""
    for folder in _folders():
        with suppress(OSError):
            data = (folder / file_name(name, key)).read_bytes()
            digest, code = data[:_DIGEST], data[_DIGEST:]
            if hashlib.sha256(code).digest() == digest:
                return code
    return None


def save(name: str, key: str, code: bytes) -> bool:
    """Keep the code of an entry point in the first folder that can be written; whether there is one."""
    for folder in _folders():
        with suppress(OSError, UsageError):
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / file_name(name, key), hashlib.sha256(code).digest() + code)
            with suppress(OSError):  # another process may be doing the same
                _prune(folder)
            return True
    return False


def find(file: str) -> Path:
    """Where a file of this name is. Raises FileNotFoundError if it is in no folder."""
    for folder in _folders():
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(file)


def file_name(name: str, key: str) -> str:
    """The file of an entry point."""
    return f"{name}-{key[:_DIGEST]}{SUFFIX}"


def _folders() -> list[Path]:
    shared = user_cache()
    return [PACKAGED] if shared is None else [PACKAGED, shared / "compiled"]


def _writable(folder: Path) -> bool:
    existing = next((f for f in (folder, *folder.parents) if f.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files[KEPT:]:
        file.unlink(missing_ok=True)


__all__ = ["PACKAGED", "announce_compilation", "announced", "file_name", "find", "load", "save"]
