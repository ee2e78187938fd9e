"""The .ppu file: a compiled model in the safetensors format, readable by any safetensors tool.

    code          uint8[n, 32]   instruction words
    descriptors   int64[m]       what the words refer to
    const.NAME    the model's weights, by the program's tensor names, in their own dtype
    host.NAME     uint8[k]       what runs on the host, as its owner wrote it
    note.NAME     uint8[k]       what is said about the program and does not run, as its owner wrote it
    metadata      format marker and version, target and its hash, inputs and outputs, symbols (names and origins), the
                  dtypes of the constants, free `meta` (model, digest, compiler version, options), checksum

Invariants: equal artifacts give equal bytes (no time, no path, no order of insertion); a file appears under its name
only when it is complete; whatever is loaded had a valid checksum over header, code and descriptors and exactly the
bytes that its header announces. Weights are mapped, not read; they are covered by size only. Tensors are sorted by
element width, widest first, so that each is aligned in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.ir.errors import ArtifactError, Diagnostic, InternalError
from ppuc.ir.program import Program
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.types import DType, TensorType, parse_type
from ppuc.ir.vector import VectorProgram
from ppuc.targets.assembler import Encoded, decode, encode
from ppuc.targets.isa import WORD
from ppuc.targets.schema import Target

FORMAT = "ppu"
VERSION = "1"

_MAX_HEADER = 1 << 30
_CODE, _DESCRIPTORS, _CONST, _HOST, _NOTE = "code", "descriptors", "const.", "host.", "note."
_STORED_AS = {
    DType.F64: "F64",
    DType.F32: "F32",
    DType.F16: "F16",
    DType.BF16: "BF16",
    DType.F8E4M3: "F8_E4M3",
    DType.F8E5M2: "F8_E5M2",
    DType.F8E8M0: "U8",
    DType.F4E2M1: "U8",
    DType.I64: "I64",
    DType.I32: "I32",
    DType.I16: "I16",
    DType.I8: "I8",
    DType.U64: "U64",
    DType.U32: "U32",
    DType.U16: "U16",
    DType.U8: "U8",
    DType.BOOL: "BOOL",
}
"""safetensors' names. Types it cannot name in every version are stored as bytes; the metadata knows better."""


@dataclass(frozen=True, slots=True)
class IOSpec:
    """An input or output: its name in the ONNX model, the program's tensor, and the type that a caller sees."""

    name: str
    tensor: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled model. `constants` are the weights by tensor name; `meta` is free text about its making; `host` holds
    what runs on the host, by name; `notes` what does not run: the compiler's remarks."""

    program: Program
    vectors: tuple[VectorProgram, ...]
    constants: Mapping[str, np.ndarray | Resource]
    inputs: tuple[IOSpec, ...]
    outputs: tuple[IOSpec, ...]
    meta: Mapping[str, str]
    host: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[str, bytes] = field(default_factory=dict)

    def constant(self, name: str) -> np.ndarray:
        """The values of a constant (mapped from the file when the artifact was loaded). KeyError when there is none."""
        value = self.constants[name]
        return value.array() if isinstance(value, Resource) else value


# Writing.


def save(artifact: Artifact, path: str | Path) -> None:
    """Write a .ppu file under a temporary name and rename it.

    Raises ArtifactError when it cannot be written, InternalError when the constants do not fit the program's tensors.
    """
    target = Path(path)
    encoded = encode(artifact.program, artifact.vectors)
    arrays: dict[str, np.ndarray | Resource] = {_CODE: encoded.code, _DESCRIPTORS: encoded.descriptors}
    stored = _stored(artifact.constants)
    arrays.update({_CONST + name: artifact.constants[name] for name in stored.values()})
    for prefix, parts in ((_HOST, artifact.host), (_NOTE, artifact.notes)):
        arrays.update({prefix + name: np.frombuffer(data, np.uint8) for name, data in parts.items()})
    _check_constants(artifact)
    header = _header(artifact, encoded, arrays, stored)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for name in _file_order(arrays):
                    file.write(_bytes_of(arrays[name]))
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise ArtifactError.of(str(target), "cannot be written", got=error.strerror) from None


def _check_constants(artifact: Artifact) -> None:
    tensors = {tensor.name: tensor for tensor in artifact.program.tensors}
    for name, value in artifact.constants.items():
        tensor, type = tensors.get(name), _type_of(value)
        if tensor is None or tensor.bytes != type.bytes:
            room = "no tensor" if tensor is None else f"{tensor.bytes} bytes"
            raise InternalError(f"constant '{name}' of {type.bytes} bytes ({type}) for {room} of the program")


def _stored(constants: Mapping[str, np.ndarray | Resource]) -> dict[str, str]:
    """Constant -> the name under which its bytes are: those of one object are stored once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in constants.items()}


def _header(
    artifact: Artifact, encoded: Encoded, arrays: Mapping[str, np.ndarray | Resource], stored: Mapping[str, str]
) -> bytes:
    table, at = {}, 0
    for name in _file_order(arrays):
        type = _type_of(arrays[name])
        table[name] = {"dtype": _STORED_AS[type.dtype], "shape": list(type.dims), "data_offsets": [at, at + type.bytes]}
        at += type.bytes
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "target": artifact.program.target,
        "target_hash": artifact.program.target_hash,
        "inputs": _json([[io.name, io.tensor, str(io.type)] for io in artifact.inputs]),
        "outputs": _json([[io.name, io.tensor, str(io.type)] for io in artifact.outputs]),
        "constants": _json({name: str(_type_of(value)) for name, value in artifact.constants.items()}),
        "shared": _json({name: first for name, first in stored.items() if name != first}),
        "symbols": _json(encoded.symbols),
        "meta": _json(dict(artifact.meta)),
        "host": _json(_digests(artifact.host)),
    }
    if artifact.notes:
        metadata["notes"] = _json(_digests(artifact.notes))
    metadata["checksum"] = _checksum(metadata, table, encoded.code, encoded.descriptors)
    text = _json({"__metadata__": metadata, **table}).encode()
    return text + b" " * (-len(text) % 8)


def _digests(parts: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def _file_order(arrays: Mapping[str, np.ndarray | Resource]) -> list[str]:
    return sorted(arrays, key=lambda name: (-_type_of(arrays[name]).dtype.bytes, name))


def _type_of(value: np.ndarray | Resource) -> TensorType:
    return value.type if isinstance(value, Resource) else TensorType(DType.of(value.dtype), value.shape)


def _bytes_of(value: np.ndarray | Resource) -> memoryview:
    array = value.array() if isinstance(value, Resource) else value
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(metadata: Mapping[str, Any], table: Mapping[str, Any], code: np.ndarray, descriptors: np.ndarray) -> str:
    """sha256 over header (without checksum), code and descriptors."""
    digest = hashlib.sha256(_json([{k: v for k, v in metadata.items() if k != "checksum"}, table]).encode())
    digest.update(_bytes_of(code))
    digest.update(_bytes_of(descriptors))
    return digest.hexdigest()


# Reading.


def load(path: str | Path, target: Target | None = None) -> Artifact:
    """Read a .ppu file; with `target`, only one that was compiled for it.

    Raises ArtifactError for a file that is missing, foreign, damaged, of another format version or of another target.
    """
    path = Path(path)
    try:
        header, start, size = _read_header(path)
        metadata, table = _checked_header(path, header, size - start)
        code = _read(path, start, table[_CODE], np.uint8).reshape(-1, WORD.itemsize)
        descriptors = _read(path, start, table[_DESCRIPTORS], np.int64)
    except OSError as error:
        raise ArtifactError.of(str(path), "cannot be read", got=error.strerror) from None
    if metadata["checksum"] != _checksum(metadata, table, code, descriptors):
        raise _damaged(path, "the checksum over header, code and descriptors is wrong")
    if target is not None and target.hash != metadata["target_hash"]:
        raise ArtifactError.of(
            str(path),
            "was compiled for another machine",
            got=f"{metadata['target']} ({metadata['target_hash']})",
            expected=f"{target.name} ({target.hash})",
            hint="compile the model again for this target",
        )
    return _artifact(path, start, metadata, table, code, descriptors)


def _artifact(
    path: Path,
    start: int,
    metadata: Mapping[str, str],
    table: Mapping[str, Any],
    code: np.ndarray,
    descriptors: np.ndarray,
) -> Artifact:
    """The artifact behind a header that has passed its checksum."""
    try:
        program, vectors = decode(Encoded(code, descriptors, tuple(json.loads(metadata["symbols"]))))
        constants = {}
        shared = json.loads(metadata["shared"])
        for name, text in json.loads(metadata["constants"]).items():
            constants[name] = _constant(path, start, table[_CONST + shared.get(name, name)], name, parse_type(text))
        inputs, outputs = (
            tuple(IOSpec(name, tensor, parse_type(text)) for name, tensor, text in json.loads(metadata[key]))
            for key in ("inputs", "outputs")
        )
        host = _parts(path, start, table, _HOST, metadata["host"])
        notes = _parts(path, start, table, _NOTE, metadata.get("notes", "{}"))
        return Artifact(program, vectors, constants, inputs, outputs, json.loads(metadata["meta"]), host, notes)
    except (ArtifactError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its parts contradict each other ({type(error).__name__}: {error})") from None


def _parts(path: Path, start: int, table: Mapping[str, Any], prefix: str, digests: str) -> dict[str, bytes]:
    """The bytes of every tensor under `prefix`. Raises ValueError when they are not those that were written."""
    found = {}
    for name, digest in json.loads(digests).items():
        first, last = table[prefix + name]["data_offsets"]
        with path.open("rb") as file:
            file.seek(start + first)
            found[name] = file.read(last - first)
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise ValueError(f"the bytes of '{prefix}{name}' are not those that were written")
    return found


def _constant(path: Path, start: int, entry: Mapping[str, Any], name: str, type: TensorType) -> Resource:
    first, last = entry["data_offsets"]
    if last - first != type.bytes:
        raise ValueError(f"constant '{name}' has {last - first} bytes, {type} takes {type.bytes}")
    if first == last:  # a file cannot be mapped over no bytes
        return Resource(type, array=np.empty(type.dims, type.dtype.numpy), name=name)
    return Resource(type, file=FileRange(path, start + first, last - first), name=name)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, where the data start, and the size of the file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(9)
        length = int.from_bytes(prefix[:8], "little")
        if len(prefix) < 9 or length > _MAX_HEADER or prefix[8:] != b"{":
            raise _foreign(path, f"{size} bytes, the first of them {prefix[:8].hex(' ') or 'missing'}")
        if 8 + length > size:
            raise _damaged(path, f"it ends inside its header (byte {size} of {8 + length})")
        text = prefix[8:] + file.read(length - 1)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    return header, 8 + length, size


def _checked_header(path: Path, header: dict[str, Any], available: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and tensor table of a header whose format, version and sizes are right."""
    table = dict(header)
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _foreign(path, "a safetensors file without a program")
    if metadata.get("version") != VERSION:
        raise ArtifactError.of(
            str(path),
            "has another format version",
            got=metadata.get("version"),
            expected=VERSION,
            hint="compile the model again with this version of ppuc",
        )
    keys = ("target", "target_hash", "inputs", "outputs", "constants", "shared", "symbols", "meta", "host", "checksum")
    if not all(isinstance(metadata.get(key), str) for key in keys) or not {_CODE, _DESCRIPTORS} <= set(table):
        raise _damaged(path, "its header is incomplete")
    end = 0
    for first, last in sorted(_ranges(path, table)):
        if first != end:
            raise _damaged(path, f"its tensors overlap or leave a gap at byte {end} of the data")
        end = last
    if end != available:
        raise _damaged(path, f"it has {available} bytes of data, its header announces {end}")
    return metadata, table


def _ranges(path: Path, table: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for entry in table.values():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int for at in offsets):
            raise _damaged(path, "its header is incomplete")
        first, last = offsets
        if not 0 <= first <= last:
            raise _damaged(path, f"a tensor ends before it begins ({first} to {last})")
        yield first, last


def _read(path: Path, start: int, entry: Mapping[str, Any], dtype: type[np.generic]) -> np.ndarray:
    first, last = entry["data_offsets"]
    if (last - first) % (WORD.itemsize if dtype is np.uint8 else 8):
        raise _damaged(path, f"{last - first} bytes are no whole number of words")
    return np.fromfile(path, dtype, (last - first) // np.dtype(dtype).itemsize, offset=start + first)


def _foreign(path: Path, got: str) -> ArtifactError:
    hint = "make one with `ppuc compile MODEL.onnx`"
    return ArtifactError(Diagnostic(str(path), "is not a .ppu file", got, hint=hint))


def _damaged(path: Path, what: str) -> ArtifactError:
    hint = "copy the file again or compile the model again"
    return ArtifactError(Diagnostic(str(path), f"is damaged: {what}", hint=hint))


__all__ = ["FORMAT", "VERSION", "Artifact", "IOSpec", "load", "save"]
