"""Attribute values to and from text, driven by the field types of attribute dataclasses.

    int 3 | float 0.5 1e-05 inf -inf nan | bool true false | str "..." | DType f32 | None none | tuple [1, 2] [9 x 1]
    Resource f32[2] {0.5, 1.0} | res("sha256:9f2c...", "w0")

Invariant: a value reads back bit-identical. A constant is written inline only if it has at most INLINE_ELEMENTS
elements, its digits reproduce its bytes (NaNs with a payload do not) and its key is that of its bytes (a constant keyed
by its file has another); any other is referenced by its key.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ppuc.ir.graph import Attrs, Graph
from ppuc.ir.module import Module
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType, parse_type

INLINE_ELEMENTS = 16
"""Constants up to this size are written inline."""

_SHORTEST_RUN = 8
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.]+")

_Attrs = TypeVar("_Attrs", bound=Attrs)

ResourceLookup = Callable[[str], Resource]
"""Finds a constant by key. Raises KeyError if it is missing."""


class Word(str):
    """A bare word in a literal: a dtype, `true`, `false` or `none`."""


class Named(NamedTuple):
    """`res("key", "name")`."""

    key: str
    name: str


class Inline(NamedTuple):
    """`f32[2] {0.5, 1.0}`."""

    type: str
    items: tuple[Literal, ...]


class Literal(NamedTuple):
    """A parsed literal and the token that errors about it point at."""

    token: Any
    value: int | float | str | Named | Inline | tuple[Literal, ...]


class LiteralError(Exception):
    """A literal does not fit its field. `token` is the location; `got` and `expected` give the reason."""

    def __init__(self, token: Any, what: str, got: str | None = None, expected: str | None = None) -> None:
        super().__init__(what)
        self.token, self.what, self.got, self.expected = token, what, got, expected


# ---------------------------------------------------------------------------------------------------- printing


def quote(text: str) -> str:
    """`text` as a string literal on one line, escaped only where necessary."""
    quoted: str = json.dumps(text, ensure_ascii=not text.isprintable())
    return quoted


def symbol(name: str) -> str:
    """`@name`, quoted when the name is not an identifier."""
    return f"@{name}" if _IDENTIFIER.fullmatch(name) else f"@{quote(name)}"


def format_number(number: float) -> str:
    """An int as digits, a float with digits that read back as the same double."""
    return repr(int(number)) if isinstance(number, int | np.integer) else repr(float(number))


def format_literal(value: object) -> str:
    """The text of one attribute value. Raises TypeError for a type that attributes cannot have."""
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | float | np.number):
        return format_number(value)  # type: ignore[arg-type]
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, DType):
        return value.value
    if isinstance(value, tuple):
        return f"[{', '.join(_runs(value))}]"
    if isinstance(value, Resource):
        return format_resource(value)
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")


def _runs(values: tuple[object, ...]) -> Iterator[str]:
    i = 0
    while i < len(values):
        j = i + 1
        while j < len(values) and values[j] == values[i] and isinstance(values[i], int):
            j += 1
        if j - i >= _SHORTEST_RUN:
            yield f"{j - i} x {format_literal(values[i])}"
        else:
            yield from (format_literal(v) for v in values[i:j])
        i = j


def format_resource(resource: Resource) -> str:
    """A small constant inline, a large one by key."""
    text = _inline(resource)
    return text if text is not None else f"res({quote(resource.key)}, {quote(resource.name)})"


def _inline(resource: Resource) -> str | None:
    if not resource.type.is_static or resource.type.elements > INLINE_ELEMENTS:
        return None
    array = resource.array()
    if resource.key != Resource.of(array).key:
        return None
    dtype = resource.type.dtype
    items = [_element(x, dtype) for x in array.reshape(-1)]
    if dtype.is_float and "nan" in items and _array(resource.type, items).tobytes() != array.tobytes():
        return None
    return f"{resource.type} {{{', '.join(items)}}}"


def _element(x: Any, dtype: DType) -> str:
    if dtype is DType.BOOL:
        return "true" if x else "false"
    if dtype.is_integer:
        return str(int(x))
    shortest = str(x)
    if shortest == "-0":  # ml_dtypes prints -0, which would read back as the integer 0
        return "-0.0"
    exact = float(x)
    if math.isfinite(exact) and float(dtype.numpy.type(float(shortest))) != exact:
        return repr(exact)
    return shortest if math.isfinite(exact) else repr(exact)


def _array(type: TensorType, items: list[Any]) -> np.ndarray:
    kind = np.float64 if type.dtype.is_float else object
    return (
        np.array([float(i) if type.dtype.is_float else i for i in items], kind)
        .astype(type.dtype.numpy)
        .reshape(type.dims)
    )


def format_attrs(attrs: Any, skip_defaults: bool = False) -> str:
    """` {a = 1, b = 2}` of a dataclass, with a leading space; empty when it has no fields (or none to show)."""
    shown = [
        f"{name} = {format_literal(value)}"
        for name, default in _fields(type(attrs))  # type: ignore[arg-type] # mypy takes no class as Hashable
        if not (repr(value := getattr(attrs, name)) == default and skip_defaults)
    ]
    return f" {{{', '.join(shown)}}}" if shown else ""


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, str], ...]:
    return tuple((f.name, repr(f.default)) for f in dataclasses.fields(cls))


def external_resources(module: Module) -> dict[str, Resource]:
    """The constants that the module's text references instead of writing inline, by key."""
    found: dict[str, Resource] = {}

    def visit(value: object) -> None:
        if isinstance(value, Resource):
            if _inline(value) is None:
                found.setdefault(value.key, value)
        elif isinstance(value, tuple):
            for item in value:
                visit(item)

    def walk(graph: Graph) -> None:
        for op in graph.ops:
            for name, _ in _fields(type(op.attrs)):  # type: ignore[arg-type] # mypy takes no class as Hashable
                visit(getattr(op.attrs, name))
            if op.body is not None:
                walk(op.body)

    walk(module.graph)
    return found


# ---------------------------------------------------------------------------------------------------- reading


def build_attrs(
    cls: type[_Attrs], given: tuple[tuple[Any, Literal], ...], lookup: ResourceLookup, where: Any, owner: str
) -> _Attrs:
    """An attribute object from parsed `name = literal` pairs. Raises LiteralError; `where` is the token of `owner`."""
    hints = _hints(cls)  # type: ignore[arg-type] # mypy takes no class as Hashable
    values: dict[str, object] = {}
    for name, literal in given:
        if name not in hints:
            known = ", ".join(hints) or "no attributes"
            raise LiteralError(name, f"unknown attribute '{name}' of {owner}", expected=known)
        if name in values:
            raise LiteralError(name, f"attribute '{name}' is given twice")
        values[str(name)] = convert(hints[name], literal, str(name), lookup)
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise LiteralError(where, f"{owner} needs attribute '{field.name}'", expected=_hint_text(hints[field.name]))
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def no_resources(key: str) -> Resource:
    """A lookup for texts without constants."""
    raise KeyError(key)


def convert(hint: Any, literal: Literal, name: str, lookup: ResourceLookup) -> Any:
    """The value of `literal` as a `hint`. Raises LiteralError naming attribute `name`."""
    value = literal.value
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = typing.get_args(hint)
        if isinstance(value, Word) and value == "none" and type(None) in options:
            return None
        for option in options:
            try:
                return convert(option, literal, name, lookup)
            except LiteralError:
                continue
        raise _mismatch(hint, literal, name)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple) and not isinstance(value, Named | Inline):
        return _convert_tuple(hint, literal, value, name, lookup)
    if hint is Resource and isinstance(value, Named | Inline):
        return _resource(literal, value, lookup)
    scalar = _SCALARS.get(hint)
    converted = scalar(value) if scalar is not None else None
    if converted is None:
        raise _mismatch(hint, literal, name)
    return converted


def _convert_tuple(hint: Any, literal: Literal, items: tuple[Literal, ...], name: str, lookup: ResourceLookup) -> Any:
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(convert(arguments[0], item, name, lookup) for item in items)
    if len(items) != len(arguments):
        raise _mismatch(hint, literal, name)
    return tuple(convert(h, item, name, lookup) for h, item in zip(arguments, items, strict=True))


def _to_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _to_float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _to_bool(value: object) -> bool | None:
    return value == "true" if isinstance(value, Word) and value in ("true", "false") else None


def _to_str(value: object) -> str | None:
    return value if isinstance(value, str) and not isinstance(value, Word) else None


def _to_dtype(value: object) -> DType | None:
    return DType(str(value)) if isinstance(value, Word) and value in DTYPE_NAMES else None


DTYPE_NAMES = frozenset(d.value for d in DType)
_SCALARS: dict[Any, Callable[[object], object]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_str,
    DType: _to_dtype,
}
_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: 'a "string"',
    DType: "an element type",
    Resource: "a constant",
    type(None): "none",
}


def _hint_text(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_hint_text(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        return f"[{_hint_text(arguments[0])}, ...]" if many else f"[{', '.join(map(_hint_text, arguments))}]"
    return _NAMES.get(hint, str(hint))


def _mismatch(hint: Any, literal: Literal, name: str) -> LiteralError:
    return LiteralError(literal.token, f"attribute '{name}' has the wrong type", _shown(literal), _hint_text(hint))


def _shown(literal: Literal) -> str:
    value = literal.value
    if isinstance(value, Named):
        return f"res({quote(value.key)}, {quote(value.name)})"
    if isinstance(value, Inline):
        return f"{value.type} {{...}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value) if isinstance(value, Word) else format_literal(value)


def _resource(literal: Literal, value: Named | Inline, lookup: ResourceLookup) -> Resource:
    if isinstance(value, Named):
        try:
            found = lookup(value.key)
        except KeyError:
            what = f"constant {_shown(literal)} is not stored beside this text"
            raise LiteralError(literal.token, what) from None
        if found.name == value.name:
            return found
        return Resource(found.type, file=found.file, loader=found.array, key=found.key, name=value.name)
    try:
        type = parse_type(value.type)
    except ValueError as error:
        raise LiteralError(literal.token, str(error)) from None
    if not type.is_static or type.elements != len(value.items):
        raise LiteralError(literal.token, "wrong number of elements", str(len(value.items)), f"as many as {type} has")
    hint = bool if type.dtype is DType.BOOL else float if type.dtype.is_float else int
    items = [convert(hint, item, "value", lookup) for item in value.items]
    if type.dtype.is_integer:
        limits = np.iinfo(type.dtype.numpy)
        for item, number in zip(value.items, items, strict=True):
            if not limits.min <= number <= limits.max:
                raise LiteralError(item.token, f"{number} does not fit {type.dtype}")
    return Resource.of(_array(type, items))
