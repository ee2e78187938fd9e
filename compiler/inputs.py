"""Arrays for a program's inputs: read, generated, and checked.

Invariant: arrays from `checked_inputs` have exactly the program's names, dtypes and shapes; anything else is an
InputError that names the input, the actual and the expected type.
"""

from __future__ import annotations

import base64
import difflib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ppuc.compiler.alias import declared_type, grown
from ppuc.ir.errors import Diagnostic, Entity, EntityKind, InputError
from ppuc.ir.files import whole_file
from ppuc.ir.graph import Graph, Op
from ppuc.ir.interpret import OutOfRangeError
from ppuc.ir.module import Module
from ppuc.ir.types import DType, TensorType

FILLS = ("random", "ones", "zeros")
RANGE_OPTION = "range."
"""Module options and artifact metadata of this prefix, by input name: the bound below which random integers are
drawn."""

_LONGEST_NAME = 65_000
"""Bytes of a name in a zip archive."""

INITIALIZER_HINT = "an initializer of the model is a constant unless its value is given when compiling"

_FOLLOWED = ("cast", "reshape", "expand", "transpose", "slice", "concat")
FIXED = "fixed:"
"""Prefix of options that hold the values of inputs fixed when compiling, as `fixed_text` writes them."""
DEFAULT = "default:"
"""Prefix of options that hold default values of inputs, as `default_text` writes them."""


def fixed_text(array: np.ndarray) -> str:
    """A small array as JSON: dtype, shape, elements (floats exactly, in hexadecimal)."""
    flat = array.reshape(-1)
    kind = DType.of(array.dtype)
    elements = [float(x).hex() for x in flat] if kind.is_float else [int(x) for x in flat]
    return json.dumps([str(kind), list(array.shape), elements])


def fixed_array(text: str) -> np.ndarray:
    """The array behind `fixed_text`."""
    kind, shape, elements = json.loads(text)
    dtype = DType(kind)
    if dtype.is_float:
        return np.array([float.fromhex(x) for x in elements], np.float64).astype(dtype.numpy).reshape(shape)
    return np.array(elements, dtype.numpy).reshape(shape)


def default_text(array: np.ndarray) -> str:
    """An array of any size as JSON: dtype, shape, bytes in base64."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return json.dumps([str(DType.of(array.dtype)), list(array.shape), data])


def default_array(text: str) -> np.ndarray:
    """The array behind `default_text`."""
    kind, shape, data = json.loads(text)
    return np.frombuffer(base64.b64decode(data), DType(kind).numpy).reshape(shape)


def values_text(fixed: Mapping[str, np.ndarray], defaults: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The options that record values of inputs: those fixed when compiling, and defaults."""
    found = {FIXED + name: fixed_text(array) for name, array in fixed.items()}
    return found | {DEFAULT + name: default_text(array) for name, array in defaults.items()}


def fixed_values(options: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inputs that were fixed, by ONNX name, as a module's options or an artifact's metadata hold them."""
    return {key.removeprefix(FIXED): fixed_array(text) for key, text in options.items() if key.startswith(FIXED)}


def default_values(options: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Default values of inputs by ONNX name, from a module's options or an artifact's metadata."""
    return {k.removeprefix(DEFAULT): default_array(text) for k, text in options.items() if k.startswith(DEFAULT)}


def without_fixed(fixed: Mapping[str, np.ndarray], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` without fixed inputs. Raises InputError for one with a different value."""
    for name, value in fixed.items():
        if name in given and not _same(np.asarray(given[name]), value):
            raise InputError.of(
                where,
                f"input '{name}' was fixed when the program was compiled, because sizes or branches depend on it",
                got=_shown(np.asarray(given[name])),
                expected=_shown(value),
                hint="compile again with this value",
            )
    return {name: array for name, array in given.items() if name not in fixed}


def _same(array: np.ndarray, value: np.ndarray) -> bool:
    return array.shape == value.shape and array.dtype == value.dtype and array.tobytes() == value.tobytes()


def _shown(array: np.ndarray) -> str:
    return " ".join(np.array2string(array, threshold=8).split())


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input as the model names it. Random integers are drawn from `[0, high)`."""

    name: str
    type: TensorType
    high: int = 2


def input_ranges(graph: Graph) -> dict[str, int]:
    """Parameter name -> exclusive upper bound for integers that index something: the size of the smallest axis that the
    parameter indexes through casts and views."""
    source = {p.name: p.name for p in graph.params if p.type.dtype.is_integer}
    bounds: dict[str, int] = {}
    for op in graph.ops:
        reached = [source[v.name] for v in op.operands if v.name in source]
        if op.name in _FOLLOWED and len(reached) == 1:
            source[op.results[0].name] = reached[0]
        elif (sizes := _indexed_sizes(op)) and op.operands[1].name in source:
            name = source[op.operands[1].name]
            bounds[name] = min(*sizes, bounds.get(name, sizes[0]))
    return bounds


def _indexed_sizes(op: Op) -> tuple[int, ...]:
    """The sizes of the axes that an op's second operand indexes; none for ops without indices."""
    if op.name in ("gather", "gather_elements", "scatter_elements"):
        return (op.operands[0].type.dims[op.attrs.axis],)  # type: ignore[attr-defined]
    if op.name in ("gather_nd", "scatter_nd"):
        first: int = getattr(op.attrs, "batch_dims", 0)
        return op.operands[0].type.dims[first : first + op.operands[1].type.dims[-1]]
    return ()


def out_of_range(error: OutOfRangeError, graph: Graph, names: Mapping[str, str], where: str) -> InputError:
    """`error` of running `graph`, with the inputs that its indices are computed from; `names` maps parameters to them.
    `where` they came from."""
    behind, produced = {error.indices.name}, {r.name: op for op in graph.ops for r in op.results}
    todo = [error.indices.name]
    while todo:
        op = produced.get(todo.pop())
        new = {v.name for v in op.operands} - behind if op is not None else set()
        behind |= new
        todo += new
    inputs = [name for value, name in names.items() if value in behind]
    (found,) = error.diagnostics
    computed = ", computed from " + ", ".join(f"input '{name}'" for name in inputs) if inputs else ""
    what, hint = f"{found.what} at {found.where}{computed}", "give other numbers with --inputs FILE.npz"
    return InputError(replace(found, where=where, what=what, hint=hint, entities=tuple(map(_input, inputs))))


def input_specs(module: Module) -> tuple[InputSpec, ...]:
    """The module's inputs in the model's order."""
    types, options = {p.name: p.type for p in module.graph.params}, dict(module.options)
    return tuple(
        InputSpec(name, declared_type(name, types[value], options), int(options.get(RANGE_OPTION + name, "2")))
        for name, value in module.inputs
    )


def feeds_of(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by graph parameter, from arrays by ONNX name; an aliased input is laid out in its buffer."""
    dims = {p.name: p.type.dims for p in module.graph.params}
    return {value: grown(inputs[name], dims[value]) for name, value in module.inputs}


def generate(spec: InputSpec, fill: str, seed: int = 0) -> np.ndarray:
    """An array for `spec`: `ones`, `zeros` or `random` (floats normal; integers in `[0, high)`; masks all ones). The
    same seed and spec give the same array."""
    shape, dtype = spec.type.dims, spec.type.dtype
    if fill in ("ones", "zeros"):
        return np.full(shape, int(fill == "ones")).astype(dtype.numpy)
    is_mask = "mask" in spec.name.lower()
    if is_mask and not dtype.is_float:
        return np.ones(shape, dtype.numpy)
    rng = np.random.default_rng([seed, *spec.name.encode()])
    if dtype.is_float:
        return rng.standard_normal(shape, np.float32).astype(dtype.numpy)
    high = 2 if dtype is DType.BOOL else max(spec.high, 1)
    return rng.integers(0, high, shape).astype(dtype.numpy)


def generate_all(specs: Sequence[InputSpec], fill: str = "random", seed: int = 0) -> dict[str, np.ndarray]:
    """`generate` for every input, by name."""
    return {spec.name: generate(spec, fill, seed) for spec in specs}


def given_arrays(specs: Sequence[InputSpec], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` with numbers and nested lists of numbers for inputs of `specs` as arrays of the declared dtype. Raises
    InputError for what is not a mapping, and for lists that are no array of that dtype."""
    if not isinstance(given, Mapping):
        expected = f"a dict from names to arrays: {', '.join(spec.name for spec in specs)}"
        raise InputError.of(where, "inputs are not given by name", got=type(given).__name__, expected=expected)
    types = {spec.name: spec.type for spec in specs}
    return {
        name: _listed_array(name, value, types[name], where) if name in types and _is_listed(value) else value
        for name, value in given.items()
    }


def _is_listed(value: Any) -> bool:
    return isinstance(value, list | tuple | bool | int | float)


def _listed_array(name: str, value: Any, type: TensorType, where: str) -> np.ndarray:
    """An array of `type`'s dtype with the numbers of a Python list. Floats do not become integers."""
    try:
        plain = np.asarray(value)
        kind, dtype = plain.dtype.kind, type.dtype
        fits = kind == "b" or (kind in "iu" and dtype is not DType.BOOL) or (kind == "f" and dtype.is_float)
        if plain.size and not fits:
            raise ValueError(f"its elements are {plain.dtype}")
        with np.errstate(all="ignore"):
            array = plain.astype(dtype.numpy)
        if kind in "iu" and not dtype.is_float and not np.array_equal(array, plain):
            raise ValueError(f"numbers beyond the range of {dtype}")
    except (ValueError, TypeError, OverflowError) as error:
        got = str(error).splitlines()[0]
        raise InputError.of(where, f"input '{name}' is not an array", got=got, expected=str(type)) from None
    return array


def checked_inputs(
    specs: Sequence[InputSpec], given: Mapping[str, np.ndarray], where: str, hint: str | None = None
) -> dict[str, np.ndarray]:
    """`given` in the program's order, contiguous. Raises InputError listing every input that is missing (with `hint`),
    unknown or of another type."""
    known = {spec.name: spec for spec in specs}
    given = {n: as_declared(np.asarray(a), known[n].type.dtype) if n in known else a for n, a in given.items()}
    faults = [_unknown(name, known, where) for name in given if name not in known]
    for spec in specs:
        if spec.name not in given:
            what, about = f"input '{spec.name}' is missing", _about(spec.name)
            faults.append(Diagnostic(where, what, None, str(spec.type), hint, entities=about))
        elif fault := _type_fault(spec, np.asarray(given[spec.name]), where):
            faults.append(fault)
    if faults:
        raise InputError(faults)
    return {spec.name: np.asarray(given[spec.name], order="C") for spec in specs}


def as_declared(array: np.ndarray, dtype: DType) -> np.ndarray:
    """`array` as one of `dtype` where numpy has no name for that: of its bytes, which an .npz gives back without a
    type, or of f32 that is exactly so; else as it is."""
    narrow = dtype.numpy
    if narrow.isbuiltin != 2 or array.dtype == narrow:
        return array
    if array.dtype.type is np.void and array.dtype.names is None and array.dtype.itemsize == narrow.itemsize:
        return array.view(narrow)
    if array.dtype == np.float32:
        with np.errstate(all="ignore"):
            rounded = array.astype(narrow)
        if np.array_equal(rounded.astype(np.float32), array, equal_nan=True):
            return rounded
    return array


def _unknown(name: str, known: Mapping[str, InputSpec], where: str) -> Diagnostic:
    close = difflib.get_close_matches(name, known, 1)
    names = ", ".join(f"{s.name}: {s.type}" for s in known.values()) or "no inputs"
    hint = f"did you mean '{close[0]}'?" if close else INITIALIZER_HINT
    return Diagnostic(where, f"no input is called '{name}'", None, names, hint, _about(name))


def _about(name: str) -> tuple[Entity, ...]:
    return (_input(name),)


def _input(name: str) -> Entity:
    return Entity(EntityKind.INPUT, name)


def _type_fault(spec: InputSpec, array: np.ndarray, where: str) -> Diagnostic | None:
    try:
        dtype = str(DType.of(array.dtype))
    except KeyError:
        dtype = str(array.dtype)
    got = f"{dtype}[{', '.join(map(str, array.shape))}]"
    if got == str(spec.type):
        return None
    if array.shape != spec.type.shape:
        what, hint = "has the wrong shape", "shapes are fixed when a model is compiled; compile again with other --dim"
    else:
        what, hint = "has the wrong dtype", f"convert it with x.astype('{spec.type.dtype.numpy}')"
    return Diagnostic(where, f"input '{spec.name}' {what}", got, str(spec.type), hint, _about(spec.name))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises InputError when it is missing, damaged or pickled."""
    loaded = _load_numpy(Path(path))
    if isinstance(loaded, np.ndarray):
        raise InputError.of(
            str(path), "is a single array", expected="an .npz of named arrays", hint="use --input NAME=FILE.npy"
        )
    return loaded


def read_npy(path: str | Path) -> np.ndarray:
    """The array of an .npy file. Raises InputError when it is missing, damaged or pickled."""
    loaded = _load_numpy(Path(path))
    if isinstance(loaded, dict):
        raise InputError.of(str(path), "is an .npz of several arrays", expected="an .npy", hint="use --inputs FILE.npz")
    return loaded


def _elements(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """An output's arrays: itself, or those of a sequence or a map."""
    if isinstance(value, list | dict):
        for key, element in enumerate(value) if isinstance(value, list) else value.items():
            yield from _elements(f"{name}[{key}]", element)
    elif value is not None:
        yield name, np.asarray(value)


def _plain(array: np.ndarray) -> np.ndarray:
    """As numpy's files can hold it without pickling; what numpy has no name for as bytes, which `as_declared` reads."""
    if array.dtype.kind == "O":
        return array.astype(np.str_)
    return array.view(f"V{array.dtype.itemsize}") if array.dtype.isbuiltin == 2 else array


def _load_numpy(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise InputError.of(str(path), "is not a file" if os.path.exists(path) else "no such file")
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if not start.startswith((b"PK", b"\x93NUMPY")):  # numpy would treat anything else as a pickle
            raise ValueError(f"{path.stat().st_size} bytes that begin with {start!r}")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(set(loaded.files)) < len(loaded.files):
                raise ValueError("it holds two arrays of one name")
            _check_sizes(path)
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # numpy raises many kinds for damaged files: zip, EOF, value, key, OS errors
        raise InputError.of(
            str(path),
            "cannot be read as numpy data",
            got=str(error).split("\n")[0],
            expected=".npy or .npz without pickles",
        ) from error


def _check_sizes(path: Path) -> None:
    """Raise ValueError when an array of an archive is of another size than the archive announces, before anything is
    unpacked."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                announced, promised = entry.file_size - member.tell(), math.prod(shape) * dtype.itemsize
            if announced != promised and not dtype.hasobject:
                raise ValueError(f"{entry.filename} has {announced:,} bytes of data, its shape asks for {promised:,}")


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays; those of formats that numpy has no name for (bf16, f8) as bytes (V2, V1), to which
    `a.view(ml_dtypes.bfloat16)` gives the type back; the elements of sequences and maps are called `name[0]`,
    `name[key]` and so on. Raises InputError when `path` cannot be written."""
    write_arrays(path, {n: _plain(a) for name, value in arrays.items() for n, a in _elements(name, value)})


class _Stream:
    """A write-only stream: a device claims to be seekable, but is not."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush = file.write, file.flush


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz of arrays of numpy's own types, under any names. Raises InputError on failure."""
    for name in arrays:
        if "\0" in name or len(name.encode()) > _LONGEST_NAME:
            shown, wanted = repr(name[:40]), f"at most {_LONGEST_NAME} bytes, no NUL among them"
            raise InputError.of(str(path), "cannot hold an array of this name", got=shown, expected=wanted)
    with whole_file(path, InputError) as file, zipfile.ZipFile(cast(BinaryIO, _Stream(file)), "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
