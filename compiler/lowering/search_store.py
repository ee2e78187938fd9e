"""A disk cache of tile search results: compiling the same shapes again needs no search.

One SQLite file in the user's cache directory (ir/user_cache.py). A key is the
sha256 of everything that an outcome depends on: the target's numbers, the group's canonical body, the query, and the
sources of the compiler and of packages that add kernels or ops, so changed code invalidates the cache.

Invariant: a compilation gives the same bytes with and without the store. A store that cannot be opened, read or written
is ignored: it only saves time.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import sys
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

LARGEST = 256 << 20
"""Size in bytes at which a store is emptied."""

AT_ONCE = 64
"""Texts of one transaction, each of which costs a few milliseconds."""

_SOURCES = ("compiler/lowering", "compiler/passes", "targets", "ir")


@cache
def sources_digest() -> str:
    """sha256 of the sources that a search result depends on."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def package_digest(name: str) -> str:
    """sha256 of the sources of another imported package (or top-level module). Without source files, the digest is
    unique to this process, so outcomes are not reused."""
    module, digest = sys.modules[name], hashlib.sha256()
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))] or [Path(module.__file__ or "")]
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else secrets.token_bytes())
    return digest.hexdigest()


class SearchStore:
    """Texts by key, in a file that is opened when it is first used. They are written many at a time, the last ones when
    the store is closed or no longer used."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._connection: sqlite3.Connection | None = None
        self._pending: dict[str, str] = {}

    def _used(self) -> sqlite3.Connection | None:
        """The open file; None without one."""
        if self._folder is not None:
            self._connection, self._folder = _opened(self._folder), None
            if self._connection is not None:
                self._finish = weakref.finalize(self, _finished, self._connection, self._pending)
        return self._connection

    def get(self, key: str) -> str | None:
        """The text stored under `key`; None if there is none."""
        connection = self._used()
        if connection is None:
            return None
        if key in self._pending:
            return self._pending[key]
        try:
            row = connection.execute("select text from outcomes where key = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        """Keep `text` under `key`."""
        connection = self._used()
        if connection is None:
            return
        self._pending[key] = text
        if len(self._pending) >= AT_ONCE:
            try:
                _write(connection, self._pending)
            except sqlite3.Error:
                self._connection = None

    def close(self) -> None:
        """Write what is pending and release the file."""
        self._folder = None
        if self._connection is not None:
            self._finish()
            self._connection = None


def _write(connection: sqlite3.Connection, texts: dict[str, str]) -> None:
    """Move `texts` into the file, in one transaction."""
    written = list(texts.items())
    texts.clear()
    with connection:
        connection.executemany("insert or replace into outcomes values (?, ?)", written)


def _finished(connection: sqlite3.Connection, texts: dict[str, str]) -> None:
    with suppress(sqlite3.Error):
        _write(connection, texts)
        connection.close()


def key_of(*parts: object) -> str:
    """sha256 of `parts`, by their representations."""
    digest = hashlib.sha256(sources_digest().encode())
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _opened(folder: Path) -> sqlite3.Connection | None:
    """The store in `folder`, recreated if damaged or too large; None on failure."""
    path = folder / "tilings.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LARGEST:
            path.unlink()
        try:
            return _connected(path)
        except sqlite3.OperationalError:  # locked by another compilation or read-only: not damaged
            return None
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            return _connected(path)
    except (OSError, sqlite3.Error):
        return None


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=2.0)
    connection.execute("pragma journal_mode = truncate")  # not wal: its mapped index dies of a file that shrinks
    connection.execute("pragma synchronous = off")
    connection.execute("create table if not exists outcomes (key text primary key, text text) without rowid")
    return connection
