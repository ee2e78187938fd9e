"""Targets from TOML files: strict loading, override of single numbers, and the checks that keep a target consistent.

A file is `name` and `description`, then the tree of `ppuc.targets.schema` whose leaves are inline tables
`{ value = 64, unit = "CU", mark = "F", source = "..." }`. `peak_tops.<dtype>` are published peaks: not part of the
machine (the peak follows from lanes, fragment, initiation interval and clock) but checked against it to 2 %.

Invariant: a Target that leaves this module has every leaf of the schema, no other, and passes `_check`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppuc.ir.errors import Diagnostic, TargetError
from ppuc.targets.schema import MARKS, TENSOR_DTYPES, Leaf, Target

_FOLDER = Path(__file__).parent
_LEAF_KEYS = ("value", "unit", "mark", "source")
_NOT_IN_FILE = ("name", "description", "hash", "provenance")
_PEAKS = "peak_tops"
_PEAK_TOLERANCE = 0.02
_LARGEST = 1e15
"""Beyond any machine, and what the simulator's 64-bit sums of products still hold exactly."""

Slot = tuple[Any, str, bool]
"""What the schema says of a leaf: its Python type, unit, and whether it may be 0."""


def builtin_targets() -> list[str]:
    """Names of the machines that come with ppuc, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def default_target() -> str:
    """The machine that is compiled for when none is named."""
    return "zhenwu-m890"


def load_target(name_or_path: str | Path) -> Target:
    """The builtin machine of that name, or the one described by a `.toml` file.

    Raises TargetError for an unknown name, an unreadable file and any deviation from the schema, naming file and key.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        return _load_file(Path(text))
    if text not in builtin_targets():
        raise TargetError.of(
            f"target '{text}'",
            "no builtin target has this name",
            expected=f"one of {', '.join(builtin_targets())}, or the path of a .toml file",
            hint=_closest(text, builtin_targets()),
        )
    return _load_builtin(text)


@functools.cache
def _load_builtin(name: str) -> Target:
    return _load_file(_FOLDER / f"{name}.toml")


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


def _assigned(target: Target, leaves: Mapping[str, Leaf], assignment: str) -> Leaf:
    where = f"--set {assignment}"
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not (key and equals and text):
        raise TargetError.of(where, "is not an assignment", expected="KEY=VALUE, as in tensor.ii_clk.bf16=32")
    if key.split(".")[0] == _PEAKS:
        raise TargetError.of(where, "peaks follow from the machine", hint=_peak_hint(target, key, text))
    path = _resolve(key, [p for p in leaves if not p.startswith(_PEAKS)], where)
    old = leaves[path]
    value = _checked(_read_value(text), _slots()[_generic(path)], where, path)
    return Leaf(path, value, old.unit, "D", f"override of {_show(old.value)}")


# Reading a file.


def _load_file(path: Path) -> Target:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError.of(str(path), "cannot be read", got=error.strerror) from None
    except UnicodeDecodeError as error:
        raise TargetError.of(str(path), "is not UTF-8 text", got=error.reason) from None
    except tomllib.TOMLDecodeError as error:
        raise TargetError.of(str(path), "is not TOML", got=error) from None
    texts = [_text_of(tree, key, str(path)) for key in ("name", "description")]
    if texts[0] != path.stem:
        raise TargetError.of(f"{path}: name", "is not the file's name", got=texts[0], expected=path.stem)
    leaves = dict(_read_leaves(tree, str(path)))
    return _build(texts[0], texts[1], leaves, str(path), drop_stale_peaks=False)


def _text_of(tree: dict[str, Any], key: str, where: str) -> str:
    value = tree.pop(key, None)
    if not isinstance(value, str) or not value:
        raise TargetError.of(f"{where}: {key}", "is missing" if value is None else "is not text", expected="a string")
    return value


def _read_leaves(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, Leaf]]:
    """Leaves of a file in schema order. Raises TargetError with every unknown or missing key and malformed leaf."""
    given = dict(_flatten(tree, ()))
    paths = _expected_paths(given)
    findings = [_unknown(where, path, paths) for path in given if path not in paths]
    findings += [
        Diagnostic(f"{where}: {path}", "is missing", expected=_shape_of(path)) for path in paths if path not in given
    ]
    if findings:
        raise TargetError(findings)
    for path in paths:
        yield path, _read_leaf(given[path], path, where)


def _flatten(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(dotted path, what stands there) for everything that is not a table of tables."""
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
    if given["unit"] != slot[1]:
        raise TargetError.of(at, "has the wrong unit", got=given["unit"], expected=slot[1])
    if given["mark"] not in MARKS:
        raise TargetError.of(at, "has an unknown mark", got=given["mark"], expected=", ".join(MARKS))
    if not isinstance(given["source"], str) or not given["source"].strip():
        raise TargetError.of(
            at, "has no source", got=_show(given["source"]), expected="a sentence saying where it is from"
        )
    value = _checked(given["value"], slot, where, path)
    return Leaf(path, value, slot[1], given["mark"], given["source"])


def _checked(value: Any, slot: Slot, where: str, path: str) -> Any:
    """`value` as the schema's type. Raises TargetError when type or sign do not fit."""
    kind, unit, zero = slot
    at = f"{where}: {path}"
    result = _coerced(value, kind)
    if result is None:
        raise TargetError.of(at, "has the wrong type", got=_show(value), expected=f"{_kind_name(kind)} in {unit}")
    if kind is str and "|" in unit and result not in unit.split("|"):
        raise TargetError.of(at, "is none of the choices", got=_show(value), expected=unit.replace("|", " or "))
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
    """`value` as `kind` (int, float, bool, str or a tuple of ints), None when it is something else."""
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
    """Every leaf path of the schema and what it holds, in order."""
    return {**dict(_slots_of(Target, "")), f"{_PEAKS}.*": (float, "TOPS", False)}


def _slots_of(cls: type, above: str) -> Iterator[tuple[str, Slot]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.name in _NOT_IN_FILE and cls is Target:
            continue
        kind, path = hints[item.name], above + item.name
        if dataclasses.is_dataclass(kind):
            yield from _slots_of(typing.cast(type, kind), path + ".")
        elif typing.get_origin(kind) is Mapping:
            yield f"{path}.*", (typing.get_args(kind)[1], item.metadata["unit"], item.metadata["zero"])
        else:
            yield path, (kind, item.metadata["unit"], item.metadata["zero"])


def _expected_paths(given: Iterable[str]) -> list[str]:
    """Leaf paths that a file must have: an element type that one per-type table names must be in all of them."""
    tables = [path.removesuffix("*") for path in _slots() if path.endswith(".*") and not path.startswith(_PEAKS)]
    present = set(given)
    dtypes = [d for d in TENSOR_DTYPES if any(table + d in present for table in tables)] or ["bf16"]
    peaks = [d for d in TENSOR_DTYPES if f"{_PEAKS}.{d}" in present]
    return [
        path.replace("*", dtype)
        for path in _slots()
        for dtype in ((peaks if path.startswith(_PEAKS) else dtypes) if path.endswith(".*") else ("",))
    ]


def _generic(path: str) -> str:
    """The schema path of a file's path."""
    return path if path in _slots() else path.rpartition(".")[0] + ".*"


def _shape_of(path: str) -> str:
    kind, unit, _ = _slots()[_generic(path)]
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
    content = {path: leaf.value for path, leaf in leaves.items() if not path.startswith(_PEAKS) and leaf.unit != "text"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    fixed = {"name": name, "description": description, "hash": digest, "provenance": tuple(leaves.values())}
    target: Target = _instance(Target, "", leaves, fixed)
    findings = [Diagnostic(f"{where}: {path}", what, got, expected) for path, what, got, expected in _check(target)]
    if findings:
        raise TargetError(findings)
    stale = {d.where: d for d in _check_peaks(target, where)}
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


def _check(t: Target) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(path, rule, got, expected) of every inconsistency between leaves."""
    if not t.clock.min_mhz <= t.clock.base_mhz <= t.clock.max_mhz:
        clocks = (t.clock.min_mhz, t.clock.base_mhz, t.clock.max_mhz)
        yield "clock", "must ascend from min to base to max", str(clocks), None
    if t.clock.sustained > 1:
        yield "clock.sustained", "must be at most 1", str(t.clock.sustained), None
    if t.cu % t.cu_per_ce:
        yield "cu_per_ce", "does not divide cu", f"{t.cu} units in groups of {t.cu_per_ce}", None
    if t.tensor.organisation == "lanes" and t.tensor.dataflow != "output":
        yield "tensor.dataflow", "must be output for lanes: they keep the accumulator", t.tensor.dataflow, "output"
    if t.tensor.organisation == "systolic":
        yield from _check_arrays(t)
    if math.prod(t.tensor.lane_grid) != t.tensor.lanes:
        yield "tensor.lane_grid", "does not multiply to tensor.lanes", str(t.tensor.lane_grid), str(t.tensor.lanes)
    for flag, dtypes in (("native_fp8", ("f8e4m3", "f8e5m2")), ("native_mx", ("f4e2m1",))):
        claimed = getattr(t.tensor, flag)
        for dtype in dtypes:
            if t.tensor.supports(dtype) != claimed:
                state = "listed" if t.tensor.supports(dtype) else "not listed"
                yield f"tensor.{flag}", f"disagrees with tensor.ii_clk.{dtype}", f"{_show(claimed)}, {state}", None
    if t.l2.bytes_per_clk_total > t.l2.slices * t.l2.bytes_per_clk_per_slice:
        limit = f"at most {t.l2.slices * t.l2.bytes_per_clk_per_slice} (slices x bytes_per_clk_per_slice)"
        yield "l2.bytes_per_clk_total", "is more than the slices give", str(t.l2.bytes_per_clk_total), limit
    for name in ("efficiency", "refresh", "turnaround"):
        value = getattr(t.hbm, name)
        if value > 1:
            yield f"hbm.{name}", "must be at most 1", str(value), None
    if t.alignment_bytes & (t.alignment_bytes - 1):
        yield "alignment_bytes", "must be a power of two", str(t.alignment_bytes), None
    if t.instruction_bytes != 32:
        yield "instruction_bytes", "is the width of the only encoding", str(t.instruction_bytes), "32"
    limits = (t.thermal.ambient_c, *dataclasses.astuple(t.temperature))
    if list(limits) != sorted(limits):
        yield "temperature", "must ascend from ambient to sw_limit, hw_slow and shutdown", str(limits), None
    if t.power.idle_w > t.power.tdp_w:
        yield "power.idle_w", "is above power.tdp_w", str(t.power.idle_w), f"at most {t.power.tdp_w}"


def _check_arrays(t: Target) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Fragments of a systolic engine are [1, C, R] (weights stay) or [R, C, 1] (results stay)."""
    streamed = 0 if t.tensor.dataflow == "weight" else 2
    for dtype, fragment in t.tensor.fragment.items():
        if fragment[streamed] != 1:
            expected = "[1, C, R]" if streamed == 0 else "[R, C, 1]"
            yield f"tensor.fragment.{dtype}", "is not one step of a systolic array", str(list(fragment)), expected


def _check_peaks(target: Target, where: str) -> Iterator[Diagnostic]:
    for leaf in target.provenance:
        root, _, dtype = leaf.path.partition(".")
        if root != _PEAKS:
            continue
        if not target.tensor.supports(dtype):
            yield Diagnostic(f"{where}: {leaf.path}", f"the tensor engine has no ii_clk for {dtype}", str(leaf.value))
        elif abs(leaf.value / target.peak_tops(dtype) - 1) > _PEAK_TOLERANCE:
            formula = "2 x cu x lanes x m x n x k / ii_clk x max_mhz"
            expected = f"{target.peak_tops(dtype):.4g} within 2 % ({formula})"
            yield Diagnostic(
                f"{where}: {leaf.path}", "disagrees with the tensor engine's timing", str(leaf.value), expected
            )


# Overrides.


def _resolve(key: str, paths: list[str], where: str) -> str:
    """The one path that `key` names, exactly or with words cut off at an underscore."""
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
            return tomllib.loads(f"v = {attempt}")["v"]
        except tomllib.TOMLDecodeError:
            continue
    return text


def _peak_hint(target: Target, key: str, text: str) -> str:
    """Which interval gives the peak that the user asked for."""
    dtype, value = key.partition(".")[2], _read_value(text)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not usable or not target.tensor.supports(dtype):
        return "set tensor.ii_clk.<dtype>, tensor.lanes, cu or clock.max_mhz instead"
    interval = max(1, round(target.tensor.ii_clk[dtype] * target.peak_tops(dtype) / value))
    peak = target.peak_tops(dtype) * target.tensor.ii_clk[dtype] / interval
    return f"set tensor.ii_clk.{dtype}={interval} for {peak:.4g} TOPS"


__all__ = ["Leaf", "Target", "builtin_targets", "default_target", "load_target", "override"]
