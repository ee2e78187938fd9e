"""Constants that may be large: identified by a key, and read only when their bytes are needed.

A Resource wraps either an array in memory or a range of a file (mapped, never copied whole). Its `key` is the sha256 of
dtype, shape and bytes, computed on first use; a constant in a file may instead be keyed by path, offset, size and
mtime, so that compiling a model of many gigabytes does not read its weights.

Invariant: two Resources are equal exactly when their keys are; `array()` never changes between calls.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppuc.ir.checksum import checksum
from ppuc.ir.errors import ArtifactError, PpucError
from ppuc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes `[offset, offset + length)` of a file; little-endian, row-major elements. `checksum` covers `salt` and the
    bytes (`ppuc.ir.checksum`; "" if unknown)."""

    path: Path
    offset: int
    length: int
    checksum: str = ""
    salt: bytes = b""

    def mapped(self) -> np.ndarray:
        """The bytes, mapped read-only. Raises PpucError if they cannot be read."""
        try:
            return np.memmap(self.path, np.uint8, "r", self.offset, (self.length,))
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            got = error.strerror if isinstance(error, OSError) else error
            raise PpucError.of(str(self.path), "cannot be read", got=got) from error

    def check(self, data: np.ndarray, name: str) -> None:
        """Raise ArtifactError unless `data` matches the checksum."""
        if self.checksum and checksum(self.salt, data.data) != self.checksum:
            what = f"is damaged: the bytes of '{name}' are not those that were written"
            raise ArtifactError.of(str(self.path), what, hint="copy the file again, or recreate it")


class Resource:
    """A constant tensor. `name` is for display; `key` is the identity."""

    __slots__ = ("_array", "_checked", "_key", "_loader", "file", "name", "type")

    def __init__(
        self,
        type: TensorType,
        *,
        array: np.ndarray | None = None,
        file: FileRange | None = None,
        loader: Callable[[], np.ndarray] | None = None,
        key: str | None = None,
        name: str = "",
    ) -> None:
        self.type = type
        self.name = name
        self.file = file
        self._array = array
        self._checked = False
        self._loader = loader
        self._key = key

    @classmethod
    def of(cls, array: np.ndarray, name: str = "") -> Resource:
        """Wrap an array, which must not be modified afterwards."""
        data = np.ascontiguousarray(array).reshape(np.shape(array))
        return cls(TensorType(DType.of(data.dtype), data.shape), array=data, name=name)

    def array(self) -> np.ndarray:
        """The values, row-major, of `type`. A file range is memory-mapped read-only, and checked the first time. Raises
        PpucError if the file cannot be read or its checksum does not match."""
        if self._array is None:
            if self.file is not None:
                flat = np.asarray(self.file.mapped())
                if not self._checked:
                    self.file.check(flat, self.name or self.file.path.name)
                    self._checked = True
                return flat.view(self.type.dtype.numpy).reshape(self.type.dims)
            if self._loader is None:
                raise ValueError(f"resource '{self.name}' has neither data nor a file")
            self._array = self._loader()
        return self._array

    @property
    def key(self) -> str:
        """`sha256:<16 hex digits>`, or `file:<16 hex digits>` of path, offset, length, size and mtime."""
        if self._key is None:
            if self.file is not None:
                stat = os.stat(self.file.path)
                place = (self.file.path.resolve(), self.file.offset, self.file.length)
                text = "|".join(map(str, (*place, stat.st_size, stat.st_mtime_ns)))
                self._key = f"file:{hashlib.sha256(f'{text}|{self.type}'.encode()).hexdigest()[:16]}"
            else:
                digest = hashlib.sha256(str(self.type).encode())
                data = self.array()
                digest.update(data.reshape(-1).view(np.uint8).data if data.size else b"")
                self._key = f"sha256:{digest.hexdigest()[:16]}"
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resource) and (self is other or (self.type == other.type and self.key == other.key))

    def __hash__(self) -> int:
        return hash(self.type)

    def __repr__(self) -> str:
        return f"Resource({self.name!r}, {self.type})"
