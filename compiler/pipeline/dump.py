"""A dump: the module's text after every pass, its constants, and a manifest.

    DIR/manifest.json            passes in order: options, time, op counts, error with --check-passes, file, remarks
    DIR/00-import.ppir ...       the module after each pass that changed it
    DIR/constants/index.json     key -> type, file and checksum of every stored constant
    DIR/constants/<key>.bin      its bytes: little-endian, row-major
    DIR/quantization.toml, .npz  formats and scales of layers, at precisions that quantize, as a policy
    DIR/constants/recipes.ppir   constants derived from others, as a graph: %<key> = transpose(...)
    DIR/segment1/ ...            the same for the second segment of a program with host steps, and so on

Invariants: every file is complete (written under a temporary name, then renamed); a dump is self-contained; a constant
is stored once for all texts, and constants derivable from stored ones are kept as recipes only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppuc.compiler.passes.remarks import Remark
from ppuc.compiler.passes.rules.constants import Derived
from ppuc.ir.checksum import checksum
from ppuc.ir.errors import TextError, UsageError
from ppuc.ir.files import read_text, whole_file, write_file
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.resource import FileRange, Resource
from ppuc.ir.rewrite import Builder
from ppuc.ir.strict_json import read_json
from ppuc.ir.text import external_resources, parse_graph, print_graph, print_module
from ppuc.ir.types import TensorType, parse_type

MANIFEST = "manifest.json"
CONSTANTS = "constants"
INDEX = "index.json"
RECIPES = "recipes.ppir"
QUANTIZATION = "quantization.toml"
FORMAT = 1


class ConstantStore:
    """The constants stored beside the texts of one folder. Constants already stored are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CONSTANTS
        self._index = _read_index(self.folder)
        known = read_constants(folder)
        self._recipes = {key: r for key, r in known.items() if isinstance(r, Derived)}

    def add(self, module: Module) -> None:
        """Store every constant that the module's text names and the folder lacks."""
        before = len(self._index), len(self._recipes)
        for resource in external_resources(module).values():
            self._add(resource)
        if before == (len(self._index), len(self._recipes)):
            return
        text = json.dumps({k: self._index[k] for k in sorted(self._index)}, indent=1, ensure_ascii=False)
        write_file(self.folder / INDEX, text.encode() + b"\n")
        if self._recipes:
            write_file(self.folder / RECIPES, print_graph(_recipe_graph(self._recipes)).encode())

    def _add(self, resource: Resource) -> None:
        if resource.key in self._index or resource.key in self._recipes:
            return
        if isinstance(resource, Derived):
            for source in resource.recipe[3]:
                self._add(source)
            self._recipes[resource.key] = resource
            return
        self.folder.mkdir(exist_ok=True)
        name = resource.key.replace(":", "-") + ".bin"
        data = resource.array().reshape(-1).view("u1").data
        write_file(self.folder / name, data)
        digits = checksum(_salt(resource.key, resource.type), data)
        entry = {"type": str(resource.type), "name": resource.name, "file": name, "checksum": digits}
        self._index[resource.key] = entry


def _recipe_graph(recipes: Mapping[str, Derived]) -> Graph:
    """A graph whose results are the constants of `recipes` (inputs first), named after their keys."""
    builder = Builder()
    values: dict[str, Value] = {}
    for key, derived in recipes.items():
        name, attrs, type, sources = derived.recipe
        for source in sources:
            if source.key not in values:
                values[source.key] = builder.const(source, source.key)
        operands = [values[source.key] for source in sources]
        (values[key],) = builder.emit(name, operands, attrs, hint=key, types=(type,))
    return Graph("recipes", (), tuple(values[key] for key in recipes), tuple(builder.ops))


class DumpFolder:
    """Writes one dump. Writing the first module replaces an earlier dump in the same folder, so a model that fails to
    import leaves it untouched. A folder that holds anything else is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._constants: ConstantStore | None = None
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError.of(str(folder), "is not a folder", expected="a folder for the dump")
            present = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        except OSError as error:
            raise UsageError.of(str(folder), "cannot hold a dump", got=error.strerror) from error
        if "\0" in str(folder):
            raise UsageError.of(str(folder), "cannot hold a dump", got="a NUL character in its name")
        if present and MANIFEST not in present:
            raise UsageError.of(
                str(self.folder),
                "is not empty and holds no earlier dump",
                got=", ".join(present[:3]) + (", ..." if len(present) > 3 else ""),
                hint="give a new or empty folder to --dump",
            )

    def _begun(self) -> ConstantStore:
        """The constants of this dump. The first call creates or clears the folder."""
        if self._constants is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clear()
            except OSError as error:
                raise UsageError.of(str(self.folder), "cannot hold a dump", got=error.strerror) from error
            self.write_manifest({"passes": [], "failed": None})
            self._constants = ConstantStore(self.folder)
        return self._constants

    def _clear(self) -> None:
        own = ("[0-9][0-9]-*.ppir", f"{CONSTANTS}/*", f"{Path(QUANTIZATION).stem}.*")
        for stale in (path for pattern in own for path in self.folder.glob(pattern)):
            stale.unlink()
        for _, folder in later_segments(self.folder):
            shutil.rmtree(folder)

    def write_module(self, index: int, pass_name: str, module: Module) -> str:
        """Write the module after pass number `index`; returns the file's name."""
        name = f"{index:02d}-{pass_name}.ppir"
        _write_module(self.folder / name, module, self._begun())
        return name

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write the manifest with a checksum of its contents."""
        record = {"format": FORMAT, **manifest}
        write_file(self.folder / MANIFEST, _manifest_text({**record, "checksum": _record_checksum(record)}).encode())


def segment_folder(number: int) -> str:
    """Subfolder of a segment in the dump of its program; "" for the first one, which is at the top."""
    return f"segment{number}" if number else ""


def later_segments(folder: Path) -> list[tuple[int, Path]]:
    """Number and folder of each later segment in a dump, in order."""
    named = ((re.fullmatch(r"segment([1-9]\d*)", path.name), path) for path in folder.glob("segment*"))
    return sorted((int(match[1]), path) for match, path in named if match and (path / MANIFEST).is_file())


def _record_checksum(record: Mapping[str, Any]) -> str:
    """Checksum of a record's values, independent of JSON formatting."""
    return checksum(json.dumps(record, sort_keys=True).encode())


def _manifest_text(manifest: dict[str, Any]) -> str:
    """The manifest as JSON, with one line for each remark."""
    passes = [{**p, "remarks": f"@{i}"} for i, p in enumerate(manifest["passes"])]
    text = json.dumps({**manifest, "passes": passes}, indent=2, ensure_ascii=False)
    for i, p in enumerate(manifest["passes"]):
        lines = ",\n".join(f"        {json.dumps(remark, ensure_ascii=False)}" for remark in p["remarks"])
        text = text.replace(f'"remarks": "@{i}"', f'"remarks": [\n{lines}\n      ]' if lines else '"remarks": []', 1)
    return text + "\n"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest of a dump: target, precision, and for each pass its file in the dump ("" when it changed
    nothing) and its remarks."""

    target: str
    precision: str
    passes: tuple[tuple[str, tuple[Remark, ...]], ...]

    def remarks_until(self, file: str = "") -> tuple[Remark, ...]:
        """The remarks of the passes up to the text `file` (or the first of a step of that name), or of all passes; ()
        for a text of another dump."""
        files = [name for name, _ in self.passes]
        file = next((name for name in files if name.partition("-")[2] == f"{file}.ppir"), file)
        end = files.index(file) + 1 if file in files else 0
        return tuple(remark for _, remarks in self.passes[: end if file else None] for remark in remarks)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder; None when there is none. Raises TextError when it is damaged."""
    file = folder / MANIFEST
    if not os.path.isfile(file):
        return None
    try:
        record = read_json(file.read_bytes())
        if record.pop("checksum") != _record_checksum(record):
            raise ValueError("its contents do not match its checksum")
        passes = ((p["file"] or "", tuple(map(Remark.of, p.get("remarks", ())))) for p in record["passes"])
        return Manifest(record["target"], record["options"].get("precision", "model"), tuple(passes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "dump again, or delete the manifest: resuming from a text does not need it"
        raise TextError.of(str(file), "the manifest of the dump is damaged", got=error, hint=hint) from error


def write_ppir(path: Path, module: Module) -> None:
    """Write one text with its constants beside it. Raises UsageError when that is not possible."""
    _write_module(path, module, ConstantStore(path.parent))


def _write_module(path: Path, module: Module, constants: ConstantStore) -> None:
    """The text is opened first: nothing is written beside a name that no file can have."""
    with whole_file(path) as file:
        try:
            constants.add(module)
        except (OSError, UsageError) as error:
            with suppress(OSError):
                constants.folder.rmdir()  # if nothing is in it
            if isinstance(error, UsageError):
                raise
            raise UsageError.of(str(constants.folder), "cannot be written", got=error.strerror) from error
        file.write(print_module(module).encode())


def read_constants(folder: Path) -> dict[str, Resource]:
    """The constants stored in a folder of dumped texts, by key, mapped when used. Empty when there are none. Raises
    TextError when the index, the recipes or a file that they name is damaged or missing."""
    place = folder / CONSTANTS
    try:
        found = {key: _resource(key, entry, place) for key, entry in _read_index(place).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        where = str(place / INDEX)
        raise TextError.of(where, "the index of constants is damaged", got=error, hint="dump again") from error
    if (place / RECIPES).exists():
        text = read_text(place / RECIPES, TextError)
        graph = parse_graph(text, found, str(place / RECIPES))
        for op in graph.ops:
            value = op.result.name
            found[value] = op.attrs.value if isinstance(op.attrs, ConstAttrs) else _derived(op, found)
        found = {resource.key: resource for resource in found.values()}
    return found


def _derived(op: Op, found: Mapping[str, Resource]) -> Derived:
    """The constant that `op` derives from those in `found`, keyed by operand name."""
    sources = [found[v.name] for v in op.operands]
    return Derived(op, sources, next((s.name for s in sources if s.name), ""))


def _read_index(place: Path) -> dict[str, dict[str, Any]]:
    path = place / INDEX
    return dict(read_json(path.read_bytes())) if path.exists() else {}


def _resource(key: str, entry: dict[str, Any], place: Path) -> Resource:
    type, name = parse_type(entry["type"]), str(entry["name"])
    path = place / entry["file"]
    if path.parent != place:
        raise ValueError(f"{entry['file']} is missing")
    if not path.is_file() or path.stat().st_size != type.bytes:
        raise TextError.of(str(path), "a constant of the dump is missing or cut short", expected=f"{type} for {key}")
    if type.bytes == 0:
        return Resource(type, array=np.zeros(type.dims, type.dtype.numpy), key=key, name=name)
    place_of = FileRange(path, 0, type.bytes, str(entry["checksum"]), _salt(key, type))
    return Resource(type, file=place_of, key=key, name=name)


def _salt(key: str, type: TensorType) -> bytes:
    """The part of an index entry that a constant's checksum covers in addition to its bytes."""
    return f"{key} {type} ".encode()
