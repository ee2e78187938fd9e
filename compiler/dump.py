"""A dump: the module after every pass as text, its constants once, and a manifest of what was done.

    DIR/manifest.json            passes in order: options, time, op counts, error if it was asked for, file
    DIR/00-import.ppir ...       the module after each pass that changed it
    DIR/constants/index.json     key -> type and place of every constant that the texts name
    DIR/constants/<key>.bin      its bytes: little-endian, row-major

Invariant: a file that is there is complete (each is written under another name and renamed), and a constant is stored
once, whatever the number of texts that use it. Constants that live in external files of the model stay there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.ir.errors import TextError, UsageError
from ppuc.ir.module import Module
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.text import external_resources, print_module
from ppuc.ir.types import parse_type

MANIFEST = "manifest.json"
CONSTANTS = "constants"
INDEX = "index.json"
FORMAT = 1


class ConstantStore:
    """The constants beside the texts of one folder; those that are there already are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CONSTANTS
        self._index: dict[str, dict[str, Any]] = {}
        if (self.folder / INDEX).exists():
            self._index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))

    def add(self, module: Module) -> None:
        """Store every constant that the module's text names and that is not there yet."""
        fresh = {k: r for k, r in external_resources(module).items() if k not in self._index}
        if not fresh:
            return
        self.folder.mkdir(exist_ok=True)
        self._index |= {key: self._store(resource) for key, resource in fresh.items()}
        text = json.dumps({k: self._index[k] for k in sorted(self._index)}, indent=1, ensure_ascii=False)
        write_file(self.folder / INDEX, text.encode() + b"\n")

    def _store(self, resource: Resource) -> dict[str, Any]:
        """Put the bytes in place (unless a file of the model has them) and return the index entry."""
        entry: dict[str, Any] = {"type": str(resource.type), "name": resource.name}
        if resource.file is not None and resource.key.startswith("file:"):
            place = resource.file
            return {**entry, "file": str(place.path.resolve()), "offset": place.offset, "length": place.length}
        name = resource.key.replace(":", "-") + ".bin"
        write_file(self.folder / name, resource.array().reshape(-1).view("u1").data)
        return {**entry, "file": name, "offset": 0, "length": resource.type.bytes}


class DumpFolder:
    """Writes one dump. An earlier dump in the same folder is replaced; a folder that holds anything else is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UsageError.of(str(folder), "is not a folder", expected="a folder for the dump")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._clear()
        except OSError as error:
            raise UsageError.of(str(folder), "cannot hold a dump", got=error.strerror) from error
        self.write_manifest({"passes": [], "failed": None})
        self._constants = ConstantStore(folder)

    def _clear(self) -> None:
        present = sorted(p.name for p in self.folder.iterdir())
        if present and MANIFEST not in present:
            raise UsageError.of(
                str(self.folder),
                "is not empty and holds no earlier dump",
                got=", ".join(present[:3]) + (", ..." if len(present) > 3 else ""),
                hint="give a new or empty folder to --dump",
            )
        for stale in (*self.folder.glob("[0-9][0-9]-*.ppir"), *(self.folder / CONSTANTS).glob("*")):
            stale.unlink()

    def write_module(self, index: int, pass_name: str, module: Module) -> str:
        """Write the module after pass number `index`; returns the file's name."""
        name = f"{index:02d}-{pass_name}.ppir"
        _write_module(self.folder / name, module, self._constants)
        return name

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write the manifest."""
        text = json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False)
        write_file(self.folder / MANIFEST, text.encode() + b"\n")


def write_ppir(path: Path, module: Module) -> None:
    """Write one text with its constants beside it. Raises UsageError when that is not possible."""
    _write_module(path, module, ConstantStore(path.parent))


def _write_module(path: Path, module: Module, constants: ConstantStore) -> None:
    try:
        constants.add(module)
    except OSError as error:
        raise UsageError.of(str(constants.folder), "constants cannot be written", got=error.strerror) from error
    write_file(path, print_module(module).encode())


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write under another name and rename. Raises UsageError when that is not possible."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UsageError.of(str(path), "cannot be written", got=error.strerror) from error


def read_constants(ppir: Path) -> dict[str, Resource]:
    """The constants stored beside a dumped text, by key, mapped when used. Empty when there is no constants folder.
    Raises TextError when the index or a file that it names is damaged or missing."""
    folder = ppir.parent / CONSTANTS
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {key: _resource(key, entry, folder) for key, entry in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TextError.of(str(path), "the index of constants is damaged", got=str(error), hint="dump again") from error


def _resource(key: str, entry: dict[str, Any], folder: Path) -> Resource:
    type = parse_type(entry["type"])
    path = folder / entry["file"]
    place = FileRange(path, int(entry["offset"]), int(entry["length"]))
    if place.length != type.bytes:
        raise ValueError(f"{key}: {place.length} bytes do not make {type}")
    if type.bytes == 0:
        return Resource(type, array=np.zeros(type.dims, type.dtype.numpy), key=key, name=entry["name"])
    if not path.is_file() or path.stat().st_size < place.offset + place.length:
        raise TextError.of(str(path), "a constant of the dump is missing or cut short", expected=f"{type} for {key}")
    if key.startswith("file:"):
        actual = Resource(type, file=place).key
        if actual != key:
            raise TextError.of(str(path), "the model's weights have changed since the dump", got=actual, expected=key)
    return Resource(type, file=place, key=key, name=entry["name"])
