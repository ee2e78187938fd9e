"""The container of a .ppu file: a safetensors file whose every byte is under a checksum.

    bytes 0 .. 8        length of the header, little-endian
    header              JSON: `__metadata__`, then dtype, shape, range of each tensor; space-padded to a multiple of 8
    the rest            the tensors, one after another, without gaps

The metadata begin with `checksum`, which covers everything before the tensors except its own digits, and hold one
checksum per tensor in `hashes`. All are XXH3-128. Tensors are sorted by element width, widest first, so that each is
aligned.

Invariant: an open file has an intact header and exactly the bytes that the header declares; data read or mapped is
compared with its checksum first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ppuc.ir.checksum import DIGITS, checksum
from ppuc.ir.errors import ArtifactError, Diagnostic
from ppuc.ir.resource import FileRange
from ppuc.ir.strict_json import read_json

FORMAT = "ppu"
VERSION = "3"

_PREFIX = b'{"__metadata__":{"checksum":"'
_AT = 8 + len(_PREFIX)
"""Offset of the digits of the header's checksum."""

_MAX_HEADER = 1 << 30
_WIDTHS = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes per element of safetensors' types."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to write: safetensors' name of its type, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def write_container(file: BinaryIO, metadata: Mapping[str, str], tensors: Mapping[str, Stored]) -> None:
    """Write a whole file. `metadata` excludes format, version and checksums, which are added."""
    order = sorted(tensors, key=lambda name: (-_WIDTHS[tensors[name].dtype], name))
    table, at = {}, 0
    for name in order:
        tensor = tensors[name]
        size = tensor.data.nbytes
        table[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    hashes = {name: checksum(tensors[name].data) for name in order}
    about = {**metadata, "format": FORMAT, "version": VERSION, "hashes": compact(hashes), "checksum": "0" * DIGITS}
    text = compact({"__metadata__": about, **table}).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    digits = _header_checksum(header).encode()
    file.write(header[:_AT] + digits + header[_AT + DIGITS :])
    for name in order:
        file.write(tensors[name].data)


def compact(value: object) -> str:
    """The canonical JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _header_checksum(header: bytes) -> str:
    return checksum(header[:_AT], header[_AT + DIGITS :])


@dataclass(frozen=True, slots=True)
class Container:
    """An open file: its metadata, and ranges and checksums of its tensors."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, FileRange]

    def read(self, name: str) -> np.ndarray:
        """The bytes of a tensor. Raises ArtifactError if the checksum does not match."""
        place = self.tensors[name]
        data = np.fromfile(self.path, np.uint8, place.length, offset=place.offset)
        if data.size != place.length:
            raise damaged(self.path, f"it ends inside '{name}'")
        place.check(data, name)
        return data


def open_container(path: Path) -> Container:
    """Open the file at `path` and check its header. Raises ArtifactError for a file that cannot be read, is not a .ppu
    file, is damaged, or has another version."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(path, file, size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        got = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError.of(str(path), "cannot be read", got=got) from None
    try:
        table = read_json(header[8:])
    except ValueError as error:
        raise damaged(path, f"its header is not as it was written ({error})") from None
    metadata = table.pop("__metadata__") if isinstance(table, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise damaged(path, "its header is incomplete")
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise _other_version(path, metadata)
    try:
        hashes = read_json(metadata["hashes"])
        places = dict(_places(table, len(header)))
        if hashes.keys() != places.keys():
            raise ValueError("not every tensor has a checksum")
        tensors = {n: FileRange(path, at, length, str(hashes[n])) for n, (at, length) in places.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"its header contradicts itself ({error})") from None
    end = max((place.offset + place.length for place in tensors.values()), default=len(header))
    if end != size:
        raise damaged(path, f"it has {size - len(header)} bytes of data, its header declares {end - len(header)}")
    return Container(path, metadata, tensors)


def _read_header(path: Path, file: BinaryIO, size: int) -> bytes:
    """Length and header. Raises ArtifactError unless the checksum is right."""
    start = file.read(8 + len(_PREFIX))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > _MAX_HEADER or start[8:9] != b"{":
        raise foreign(path, f"{size} bytes, the first of them {start[:8].hex(' ') or 'missing'}")
    if 8 + length > size:
        raise damaged(path, f"it ends inside its header (byte {size} of {8 + length})")
    header = start + file.read(max(0, 8 + length - len(start)))
    if start[8:] != _PREFIX or header[_AT + DIGITS : _AT + DIGITS + 2] != b'",':
        raise _other_version(path, _metadata_of(header))
    if _header_checksum(header) != header[_AT : _AT + DIGITS].decode("latin-1"):
        raise damaged(path, "the checksum of its header is wrong")
    return header


def _metadata_of(header: bytes) -> Mapping[str, Any]:
    """The metadata of a header that does not begin like those of this version."""
    try:
        metadata = read_json(header[8:])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        metadata = None
    if not isinstance(metadata, dict):  # damaged, or another format
        return {"format": FORMAT, "version": VERSION} if b'"format":"ppu"' in header else {}
    return metadata


def _other_version(path: Path, metadata: Mapping[str, Any]) -> ArtifactError:
    """The error for a header with these metadata."""
    if metadata.get("format") != FORMAT:
        return foreign(path, "a safetensors file without a program")
    if metadata.get("version") == VERSION:
        return damaged(path, "its header is not as it was written")
    hint = "compile the model again with this version of ppuc"
    return ArtifactError(
        Diagnostic(str(path), "has another format version", str(metadata.get("version")), VERSION, hint)
    )


def _places(table: Mapping[str, Any], start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, file offset and size of each tensor. Raises ValueError if they overlap, leave a gap or contradict their
    shapes, and other errors if something is missing."""
    end = 0
    for name, entry in sorted(table.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = entry["data_offsets"]
        shape, width = entry["shape"], _WIDTHS[entry["dtype"]]
        numbers = [first, last, *shape]
        if not all(type(n) is int and n >= 0 for n in numbers) or last - first != math.prod(shape) * width:
            raise ValueError(f"'{name}' does not have the bytes of its shape")
        if first != end:
            raise ValueError(f"tensors overlap or leave a gap at byte {end} of the data")
        yield name, (start + first, last - first)
        end = last


def foreign(path: Path, got: str) -> ArtifactError:
    """The error for a file of another format."""
    hint = "make one with `ppuc compile MODEL.onnx`"
    return ArtifactError(Diagnostic(str(path), "is not a .ppu file", got, hint=hint))


def damaged(path: Path, what: str) -> ArtifactError:
    """The error for a damaged file."""
    hint = "copy the file again or compile the model again"
    return ArtifactError(Diagnostic(str(path), f"is damaged: {what}", hint=hint))


__all__ = ["FORMAT", "VERSION", "Container", "Stored", "compact", "damaged", "open_container", "write_container"]
