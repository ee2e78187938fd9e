"""Targets from TOML files: strict loading, overrides of single numbers, and consistency checks.

A file is `name` and `description`, then the tree of `ppuc.targets.schema` whose leaves are inline tables `{ value = 64,
unit = "CU", mark = "F", source = "..." }`. With `like = "h100-class"`, a file states only its differences from that
built-in target, or from a file beside it (`like = "./mine.toml"`). `peak_tops.<dtype>` are published peaks: they are
not part of the target (the peak follows from lanes, fragment, initiation interval and clock) but checked against it to
2 %, and not inherited.

Invariant: a loaded Target has exactly the leaves of the schema and passes `ppuc.targets.consistency`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppuc.ir.errors import Diagnostic, TargetError
from ppuc.ir.plugins import Extensible
from ppuc.ir.strict_toml import parse_toml, read_toml
from ppuc.targets.consistency import contradicted_peaks, contradictions
from ppuc.targets.schema import INFORMATIONAL_DTYPES, MARKS, PEAKS, TENSOR_DTYPES, Leaf, Target

_FOLDER = Path(__file__).parent
_VALIDATION = _FOLDER / "validation"
_LEAF_KEYS = ("value", "unit", "mark", "source")
_NOT_IN_FILE = ("name", "description", "hash", "provenance")
_LARGEST = 1e15
"""Upper bound of numbers: beyond any machine, and small enough for exact 64-bit sums of products in the simulator."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """Schema of a leaf: its Python type, unit, whether it may be 0, whether it is informational, the value where a file
    leaves it out (None: it must not), and whether a target's hash includes that value."""

    kind: Any
    unit: str
    zero: bool
    informational: bool = False
    usual: Any = None
    hashed: bool = False

    def counts(self, value: Any) -> bool:
        """Whether a target's hash includes `value`."""
        return self.unit != "text" and (self.hashed or self.usual is None or value != self.usual)


def builtin_targets() -> list[str]:
    """Names of the built-in PPUs, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def validation_targets() -> list[str]:
    """Names of the other built-in accelerators, whose published measurements validate the timing model; sorted."""
    return sorted(path.stem for path in _VALIDATION.glob("*.toml"))


def _file(name: str, found: Any) -> dict[str, Path]:
    path = Path(str(found))
    if path.name != f"{name}.toml":
        raise ValueError(f"is not the path of {name}.toml")
    return {name: path}


_FILES: Extensible[str, Path] = Extensible("ppuc.targets", _file)
"""Target files of packages by name: entry points of group `ppuc.targets` give their paths."""


def known_targets() -> list[str]:
    """Names of all known targets: built-in PPUs, other built-in accelerators, then those of packages, each sorted."""
    return [*builtin_targets(), *validation_targets(), *_FILES.complete()]


def default_target() -> str:
    """The default target of a compilation."""
    return "zhenwu-m890"


def resolve_target(target: str | Target = "") -> Target:
    """The target of that name or file; the default target for "". Raises TargetError as load_target does."""
    return target if isinstance(target, Target) else load_target(target or default_target())


def load_target(name_or_path: str | Path) -> Target:
    """The target of that name, or the one described by a `.toml` file.

    Raises TargetError for an unknown name, an unreadable file and any deviation from the schema, naming file and key.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        return _load_file(Path(text))
    return _load_named(text)


@functools.cache
def _load_named(name: str) -> Target:
    return _load_file(_named_file(name, f"target '{name}'"))


def _named_file(name: str, where: str) -> Path:
    """The file of a named target; `where` is the location for errors."""
    if name in builtin_targets():
        return _FOLDER / f"{name}.toml"
    if name in validation_targets():
        return _VALIDATION / f"{name}.toml"
    if name in _FILES:
        return _FILES[name]
    raise TargetError.of(
        where,
        "no target has this name",
        expected=f"one of {', '.join(known_targets())}, or the path of a .toml file",
        hint=_closest(name, known_targets()),
    )


def override(target: Target, *assignments: str) -> Target:
    """`target` with some numbers changed, as in `tensor.ii_clk.bf16=32`; the result is checked once, after all of them.

    A key may be shortened where `_` stands (`tensor.ii.bf16`, `clock.max`). The number's mark becomes D and published
    peaks that no longer follow from the machine are dropped. Raises TargetError when a key or value does not fit the
    schema.
    """
    leaves = {leaf.path: leaf for leaf in target.provenance}
    for assignment in assignments:
        leaf = _assigned(target, leaves, assignment)
        leaves[leaf.path] = leaf
    where = " ".join(f"--set {assignment}" for assignment in assignments)
    return _build(target.name, target.description, leaves, where, drop_stale_peaks=True)


def leaf_of(target: Target, key: str, where: str) -> Leaf:
    """The number of `target` at `key`, which may be shortened as in `override`. Raises TargetError at `where`."""
    leaves = {leaf.path: leaf for leaf in target.provenance if not leaf.path.startswith(PEAKS)}
    return leaves[_resolve(key, list(leaves), where)]


def _assigned(target: Target, leaves: Mapping[str, Leaf], assignment: str) -> Leaf:
    where = f"--set {assignment}"
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not (key and equals and text):
        raise TargetError.of(where, "is not an assignment", expected="KEY=VALUE, as in tensor.ii_clk.bf16=32")
    if key.split(".")[0] == PEAKS:
        raise TargetError.of(where, "peaks follow from other numbers", hint=_peak_hint(target, key, text))
    path = _resolve(key, [p for p in leaves if not p.startswith(PEAKS)], where)
    old = leaves[path]
    value = _checked(_read_value(text), _slots()[_generic(path)], where, path)
    return dataclasses.replace(old, value=value, mark="D", source=f"override of {_show(old.value)}")


# Reading a file.


def _load_file(path: Path, above: tuple[Path, ...] = ()) -> Target:
    """The target that a file describes; `above` are the files that inherit from this one."""
    tree = read_toml(path, TargetError)
    texts = [_text_of(tree, key, str(path)) for key in ("name", "description")]
    begun = _model_of(path, _text_of(tree, "like", str(path)), (*above, path)) if "like" in tree else {}
    leaves = dict(_read_leaves(tree, str(path), begun))
    return _build(texts[0], texts[1], leaves, str(path), drop_stale_peaks=False)


def _model_of(path: Path, like: str, above: tuple[Path, ...]) -> dict[str, Leaf]:
    """The numbers that the file at `path` inherits, without published peaks. Raises TargetError."""
    other = path.parent / like if like.endswith(".toml") else _named_file(like, f"{path}: like = '{like}'")
    if other.resolve() in {file.resolve() for file in above}:
        raise TargetError.of(f"{path}: like", "leads back to the file itself", got=like)
    model = _load_file(other, above)
    return {leaf.path: leaf for leaf in model.provenance if not leaf.path.startswith(PEAKS)}


def _text_of(tree: dict[str, Any], key: str, where: str) -> str:
    value = tree.pop(key, None)
    if not isinstance(value, str) or not value:
        raise TargetError.of(f"{where}: {key}", "is missing" if value is None else "is not text", expected="a string")
    return value


def _read_leaves(tree: Mapping[str, Any], where: str, begun: Mapping[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Leaves of a file in schema order, with omitted ones from `begun`, else as usual. Raises TargetError with every
    unknown or missing key and malformed leaf."""
    given = dict(_flatten(tree, ()))
    begun = {**_usual_leaves(), **begun}
    paths = _expected_paths({**begun, **given})
    findings = [_unknown(where, path, paths) for path in given if path not in paths]
    findings += [
        Diagnostic(f"{where}: {path}", "is missing", expected=_shape_of(path))
        for path in paths
        if path not in given and path not in begun
    ]
    if findings:
        raise TargetError(findings)
    for path in paths:
        yield path, _read_leaf(given[path], path, where) if path in given else begun[path]


@functools.cache
def _usual_leaves() -> dict[str, Leaf]:
    """The leaves that a file may leave out."""
    return {
        path: Leaf(
            path, slot.usual, slot.unit, "D", "not given: the machine has nothing of the kind", slot.informational
        )
        for path, slot in _slots().items()
        if slot.usual is not None
    }


def _flatten(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is not a table of tables."""
    for key, value in tree.items():
        inner = isinstance(value, dict) and not set(value) & set(_LEAF_KEYS)
        if inner and value:
            yield from _flatten(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def _read_leaf(given: Any, path: str, where: str) -> Leaf:
    at = f"{where}: {path}"
    slot = _slots()[_generic(path)]
    if not isinstance(given, dict) or set(given) != set(_LEAF_KEYS):
        got = ", ".join(given) if isinstance(given, dict) else _show(given)
        raise TargetError.of(at, "is not a number with its provenance", got=got, expected=_shape_of(path))
    if given["unit"] != slot.unit:
        raise TargetError.of(at, "has the wrong unit", got=given["unit"], expected=slot.unit)
    if given["mark"] not in tuple(MARKS):  # which may be of any TOML type
        raise TargetError.of(at, "has an unknown mark", got=_show(given["mark"]), expected=", ".join(MARKS))
    if not isinstance(given["source"], str) or not given["source"].strip():
        raise TargetError.of(
            at, "has no source", got=_show(given["source"]), expected="a sentence saying where it is from"
        )
    value = _checked(given["value"], slot, where, path)
    informational = slot.informational or path.rpartition(".")[2] in INFORMATIONAL_DTYPES
    return Leaf(path, value, slot.unit, given["mark"], given["source"], informational)


def _checked(value: Any, slot: Slot, where: str, path: str) -> Any:
    """`value` as the schema's type. Raises TargetError when type or sign do not fit."""
    kind, unit, zero = slot.kind, slot.unit, slot.zero
    at = f"{where}: {path}"
    result = _coerced(value, kind)
    if result is None:
        raise TargetError.of(at, "has the wrong type", got=_show(value), expected=f"{_kind_name(kind)} in {unit}")
    if kind is str and "|" in unit and result not in unit.split("|"):
        raise TargetError.of(at, "is not one of the choices", got=_show(value), expected=unit.replace("|", " or "))
    numbers = result if isinstance(result, tuple) else (result,)
    for number in numbers:
        if isinstance(number, str | bool):
            continue
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise TargetError.of(at, f"must be {'at least' if zero else 'above'} 0", got=_show(value))
        if number > _LARGEST:
            raise TargetError.of(at, "is too large", got=_show(value), expected=f"at most {_LARGEST:g}")
    return result


def _coerced(value: Any, kind: Any) -> Any:
    """`value` as `kind` (int, float, bool, str or a tuple of ints); None if it does not fit."""
    if kind is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind in (int, bool, str):
        return value if type(value) is kind else None
    size = len(typing.get_args(kind))
    fits = isinstance(value, list) and len(value) == size and all(type(v) is int for v in value)
    return tuple(value) if fits else None


# The schema, as paths. `*` stands for an element type.


@functools.cache
def _slots() -> dict[str, Slot]:
    """Every leaf path of the schema with its slot, in order."""
    return {**dict(_slots_of(Target, "")), f"{PEAKS}.*": Slot(float, "TOPS", False, informational=True)}


def _slots_of(cls: type, above: str) -> Iterator[tuple[str, Slot]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.name in _NOT_IN_FILE and cls is Target:
            continue
        kind, path = hints[item.name], above + item.name
        if dataclasses.is_dataclass(kind):
            yield from _slots_of(typing.cast(type, kind), path + ".")
        elif typing.get_origin(kind) is Mapping:
            yield f"{path}.*", Slot(typing.get_args(kind)[1], **item.metadata)
        else:
            yield path, Slot(kind, **item.metadata)


def _expected_paths(given: Iterable[str]) -> list[str]:
    """Leaf paths that a file must have: an element type in one per-type table must be in all of them."""
    tables = [path.removesuffix("*") for path in _slots() if path.endswith(".*") and not path.startswith(PEAKS)]
    present = set(given)
    dtypes = [d for d in TENSOR_DTYPES if any(table + d in present for table in tables)] or ["bf16"]
    peaks = [d for d in TENSOR_DTYPES if f"{PEAKS}.{d}" in present]
    return [
        path.replace("*", dtype)
        for path in _slots()
        for dtype in ((peaks if path.startswith(PEAKS) else dtypes) if path.endswith(".*") else ("",))
    ]


def _generic(path: str) -> str:
    """The schema path of a path in a file."""
    return path if path in _slots() else path.rpartition(".")[0] + ".*"


def _shape_of(path: str) -> str:
    slot = _slots()[_generic(path)]
    kind, unit = slot.kind, slot.unit
    if "|" in unit:
        return f'{{ value = "{unit.split("|")[0]}", unit = "{unit}", mark = "E", source = "..." }}'
    example = {int: "64", float: "1.5", bool: "true", str: '"..."'}.get(kind, "[16, 16, 16]")
    return f'{{ value = {example}, unit = "{unit}", mark = "E", source = "..." }}'


def _unknown(where: str, path: str, paths: list[str]) -> Diagnostic:
    return Diagnostic(f"{where}: {path}", "is not a key of the schema", hint=_closest(path, paths))


def _closest(word: str, words: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(words), 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else None


def _kind_name(kind: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, f"{len(typing.get_args(kind))} integers")


def _show(value: Any) -> str:
    return json.dumps(value, default=str)


# Building and checking.


def _build(name: str, description: str, leaves: Mapping[str, Leaf], where: str, *, drop_stale_peaks: bool) -> Target:
    slots = _slots()
    content = {
        path: leaf.value
        for path, leaf in leaves.items()
        if not path.startswith(PEAKS) and slots[_generic(path)].counts(leaf.value)
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    fixed = {"name": name, "description": description, "hash": digest, "provenance": tuple(leaves.values())}
    target: Target = _instance(Target, "", leaves, fixed)
    findings = [
        Diagnostic(f"{where}: {path}", what, got, expected) for path, what, got, expected in contradictions(target)
    ]
    if findings:
        raise TargetError(findings)
    stale = {d.where: d for d in contradicted_peaks(target, where)}
    if stale and not drop_stale_peaks:
        raise TargetError(list(stale.values()))
    kept = tuple(leaf for leaf in leaves.values() if f"{where}: {leaf.path}" not in stale)
    return dataclasses.replace(target, provenance=kept) if stale else target


def _instance(cls: Any, above: str, leaves: Mapping[str, Leaf], fixed: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = dict(fixed)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.name in fixed:
            continue
        kind, path = hints[item.name], above + item.name
        if dataclasses.is_dataclass(kind):
            values[item.name] = _instance(kind, path + ".", leaves, {})
        elif typing.get_origin(kind) is Mapping:
            prefix = path + "."
            values[item.name] = {p.removeprefix(prefix): v.value for p, v in leaves.items() if p.startswith(prefix)}
        else:
            values[item.name] = leaves[path].value
    return cls(**values)


# Overrides.


def _resolve(key: str, paths: list[str], where: str) -> str:
    """The unique path that `key` names, exactly or with words omitted at underscores."""
    if key in paths:
        return key
    parts = key.split(".")
    matches = [path for path in paths if _abbreviates(parts, path.split("."))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise TargetError.of(where, "the key is ambiguous", got=key, expected=f"one of {', '.join(matches)}")
    raise TargetError.of(where, "the target has no such key", got=key, hint=_closest(key, paths))


def _abbreviates(parts: list[str], full: list[str]) -> bool:
    return len(parts) == len(full) and all(f == p or f.startswith(p + "_") for p, f in zip(parts, full, strict=True))


def _read_value(text: str) -> Any:
    """A TOML value; a bare list of numbers may omit its brackets and text its quotes."""
    for attempt in (text, f"[{text}]" if "," in text else text):
        try:
            return parse_toml(f"v = {attempt}")["v"]
        except ValueError:
            continue
    return text


def _peak_hint(target: Target, key: str, text: str) -> str:
    """A hint with the interval that gives the requested peak."""
    dtype, value = key.partition(".")[2], _read_value(text)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not usable or not target.tensor.supports(dtype):
        return "set tensor.ii_clk.<dtype>, tensor.lanes, cu or clock.max_mhz instead"
    interval = max(1, round(target.tensor.ii_clk[dtype] * target.peak_tops(dtype) / value))
    peak = target.peak_tops(dtype) * target.tensor.ii_clk[dtype] / interval
    return f"set tensor.ii_clk.{dtype}={interval} for {peak:.4g} TOPS"


__all__ = [
    "Leaf",
    "Target",
    "builtin_targets",
    "default_target",
    "known_targets",
    "load_target",
    "override",
    "validation_targets",
]
