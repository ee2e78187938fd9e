"""The .ppu file: a compiled model in the safetensors format, readable by any safetensors tool.

    code          uint8[n, 32]   instruction words
    descriptors   int64[m]       what the words refer to
    const.NAME    the model's weights, by the program's tensor names, in their own dtype
    host.NAME     uint8[k]       models that run on the host, in their owner's format
    note.NAME     uint8[k]       data about the program (remarks), in its owner's format
    metadata      target and its hash, inputs and outputs, symbols (names and origins), the dtypes of the constants,
                  free `meta` (model, digest, compiler version, options), and what `ppuc.targets.container` adds

Unused sections of the metadata are omitted (`shared`: constants stored once under another one's name). A reader refuses
unknown sections, so that new sections need no new format version.

Invariants: equal artifacts give equal bytes (no time, path or insertion order); a file appears under its name only when
complete; everything read is compared with its checksum. Weights are mapped, and checked on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppuc.ir.errors import ArtifactError, InternalError
from ppuc.ir.files import whole_file
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.ir.strict_json import read_json
from ppuc.ir.types import DType, TensorType, parse_type
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify import VerificationError, verify_program
from ppuc.targets.assembler import Encoded, decode, encode
from ppuc.targets.container import Container, Stored, compact, damaged, open_container, write_container
from ppuc.targets.isa import WORD
from ppuc.targets.schema import Target

_CODE, _DESCRIPTORS, _CONST, _HOST, _NOTE = "code", "descriptors", "const.", "host.", "note."
_ALWAYS = {"target", "target_hash", "inputs", "outputs", "constants", "symbols", "meta"}
_OPTIONAL = {"shared"}
_CONTAINERS = {"format", "version", "hashes", "checksum"}
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
"""safetensors' names of types. Types that some of its versions lack are stored as bytes, with their type in the
metadata."""


@dataclass(frozen=True, slots=True)
class IOSpec:
    """An input or output: its ONNX name, the program's tensor, and its type for callers."""

    name: str
    tensor: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled model. `constants` are the weights by tensor name; `meta` is free text about its compilation; `host`
    holds the models that run on the host, by name; `notes` holds data that does not run, such as remarks."""

    program: Program
    vectors: tuple[VectorProgram, ...]
    constants: Mapping[str, np.ndarray | Resource]
    inputs: tuple[IOSpec, ...]
    outputs: tuple[IOSpec, ...]
    meta: Mapping[str, str]
    host: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[str, bytes] = field(default_factory=dict)

    def constant(self, name: str) -> np.ndarray:
        """The values of a constant (mapped from the file if the artifact was loaded). Raises KeyError if unknown."""
        value = self.constants[name]
        return value.array() if isinstance(value, Resource) else value


# Writing.


def save(artifact: Artifact, path: str | Path) -> None:
    """Write a .ppu file, whole or not at all.

    Raises ArtifactError when it cannot be written, InternalError when the constants do not fit the program's tensors.
    """
    _check_constants(artifact)
    encoded = encode(artifact.program, artifact.vectors)
    tensors = {_CODE: _stored(encoded.code), _DESCRIPTORS: _stored(encoded.descriptors)}
    first = _first_of_equals(artifact.constants)
    tensors |= {_CONST + name: _stored(artifact.constants[name]) for name in first.values()}
    for prefix, parts in ((_HOST, artifact.host), (_NOTE, artifact.notes)):
        tensors |= {prefix + name: _stored(np.frombuffer(data, np.uint8)) for name, data in parts.items()}
    with whole_file(path, ArtifactError) as file:
        write_container(file, _metadata(artifact, encoded, first), tensors)


def _check_constants(artifact: Artifact) -> None:
    tensors = {tensor.name: tensor for tensor in artifact.program.tensors}
    for name, value in artifact.constants.items():
        tensor, type = tensors.get(name), _type_of(value)
        if tensor is None or tensor.bytes != type.bytes:
            room = "no tensor" if tensor is None else f"{tensor.bytes} bytes"
            raise InternalError(f"constant '{name}' of {type.bytes} bytes ({type}) for {room} of the program")


def _first_of_equals(constants: Mapping[str, np.ndarray | Resource]) -> dict[str, str]:
    """Constant -> the name that its bytes are stored under: those of one object are stored once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in constants.items()}


def _metadata(artifact: Artifact, encoded: Encoded, first: Mapping[str, str]) -> dict[str, str]:
    shared = {name: other for name, other in first.items() if name != other}
    return {
        "target": artifact.program.target,
        "target_hash": artifact.program.target_hash,
        "inputs": compact([[io.name, io.tensor, str(io.type)] for io in artifact.inputs]),
        "outputs": compact([[io.name, io.tensor, str(io.type)] for io in artifact.outputs]),
        "constants": compact({name: str(_type_of(value)) for name, value in artifact.constants.items()}),
        "symbols": compact(encoded.symbols),
        "meta": compact(dict(artifact.meta)),
        **({"shared": compact(shared)} if shared else {}),
    }


def _type_of(value: np.ndarray | Resource) -> TensorType:
    return value.type if isinstance(value, Resource) else TensorType(DType.of(value.dtype), value.shape)


def _stored(value: np.ndarray | Resource) -> Stored:
    type = _type_of(value)
    array = value.array() if isinstance(value, Resource) else value
    return Stored(_STORED_AS[type.dtype], type.dims, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


# Reading.


def load(path: str | Path, target: Target | None = None) -> Artifact:
    """Read a .ppu file; with `target`, only one that was compiled for it.

    Raises ArtifactError for a file that is missing, of another format, damaged, or of another format version or target.
    """
    container = open_container(Path(path))
    metadata = container.metadata
    keys = set(metadata) - _CONTAINERS
    if unknown := sorted(keys - _ALWAYS - _OPTIONAL):
        what = f"has a section that this version of ppuc does not know: '{unknown[0]}'"
        raise ArtifactError.of(str(path), what, hint="use the version of ppuc that wrote the file, or a later one")
    if not keys >= _ALWAYS:
        raise damaged(container.path, "its header is incomplete")
    if target is not None and target.hash != metadata["target_hash"]:
        raise ArtifactError.of(
            str(path),
            "was compiled for another machine",
            got=f"{metadata['target']} ({metadata['target_hash']})",
            expected=f"{target.name} ({target.hash})",
            hint="compile the model again for this target",
        )
    return _artifact(container)


def check(path: str | Path) -> Artifact:
    """Read a .ppu file, including its weights, and verify its program. Raises ArtifactError on any fault."""
    artifact = load(path)
    for name in artifact.constants:
        artifact.constant(name)
    try:
        verify_program(artifact.program, artifact.vectors)
    except VerificationError as error:
        raise ArtifactError.of(str(path), "holds a program that breaks the rules of the IR", got=error) from error
    return artifact


def _artifact(container: Container) -> Artifact:
    path, metadata = container.path, container.metadata
    try:
        code, descriptors = container.read(_CODE), container.read(_DESCRIPTORS)
        if code.size % WORD.itemsize or descriptors.size % 8:
            raise ValueError(f"{code.size} and {descriptors.size} bytes are not a whole number of words")
        symbols = tuple(read_json(metadata["symbols"]))
        program, vectors = decode(Encoded(code.reshape(-1, WORD.itemsize), descriptors.view(np.int64), symbols))
        constants = _constants(container)
        inputs, outputs = (
            tuple(IOSpec(name, tensor, parse_type(text)) for name, tensor, text in read_json(metadata[key]))
            for key in ("inputs", "outputs")
        )
        host, notes = _parts(container, _HOST), _parts(container, _NOTE)
        return Artifact(program, vectors, constants, inputs, outputs, _texts(read_json(metadata["meta"])), host, notes)
    except OSError as error:
        raise ArtifactError.of(str(path), "cannot be read", got=error.strerror) from None
    except (ArtifactError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ArtifactError) and error.diagnostics[0].where == str(path):
            raise
        raise damaged(path, f"its parts contradict each other ({type(error).__name__}: {error})") from None


def _parts(container: Container, prefix: str) -> dict[str, bytes]:
    """Contents of the tensors whose names begin with `prefix`."""
    names = [name for name in container.tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): container.read(name).tobytes() for name in names}


def _constants(container: Container) -> dict[str, np.ndarray | Resource]:
    """The constants, mapped. Raises ValueError if the metadata and the file disagree."""
    types = _texts(read_json(container.metadata["constants"]))
    shared = _texts(read_json(container.metadata.get("shared", "{}")))
    found: dict[str, np.ndarray | Resource] = {}
    for name, text in types.items():
        type, place = parse_type(text), container.tensors[_CONST + shared.get(name, name)]
        if place.length != type.bytes:
            raise ValueError(f"constant '{name}' has {place.length} bytes, {type} takes {type.bytes}")
        if not place.length:  # an empty range cannot be mapped
            found[name] = Resource(type, array=np.empty(type.dims, type.dtype.numpy), name=name)
        else:
            found[name] = Resource(type, file=place, name=name)
    stored = {name.removeprefix(_CONST) for name in container.tensors if name.startswith(_CONST)}
    if stored != {shared.get(name, name) for name in types}:
        raise ValueError("it holds constants without a type")
    return found


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("expected texts by name")
    return value


__all__ = ["Artifact", "IOSpec", "check", "load", "save"]
