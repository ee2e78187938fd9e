"""Descriptors: frozen IR records as 64-bit words, derived from their field types.

A value takes one word where it is used: an integer or bool itself, a float its f64 bits, a string or enum member its
index counted from 1, a tuple or record the offset of its descriptor in the pool. A tuple's descriptor is its length
followed by its elements; a record's is its fields in declaration order. 0 stands for None.

Invariants: equal descriptors of one type are stored once, so equal programs give equal pools; word 0 of a pool is the
offset of its root record; offsets point backwards from the descriptor that holds them, so a pool has no cycles.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import struct
import types
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

_F64 = struct.Struct("<d")
_I64 = struct.Struct("<q")


class PoolWriter:
    """Collects descriptors and symbols while a program is encoded."""

    def __init__(self) -> None:
        self.words: list[int] = [0]
        self.symbols: list[str] = []
        self._numbers: dict[str, int] = {}
        self._offsets: dict[tuple[Any, tuple[int, ...]], int] = {}

    def put(self, value: Any, kind: Any) -> int:
        """The word for `value` of the type `kind`."""
        if kind is int or kind is bool:
            return int(value)
        if kind is str:
            return self._symbol(value)
        if kind is float:
            return int(_I64.unpack(_F64.pack(value))[0])
        form, inner = shape_of(kind)
        if form == "optional":
            return 0 if value is None else self.put(value, inner)
        if form == "enum":
            return int(members_of(kind).index(value)) + 1
        if form == "list":
            return self.intern(kind, (len(value), *(self.put(item, inner) for item in value)))
        if form == "tuple":
            words = (len(value), *(self.put(item, k) for item, k in zip(value, inner, strict=True)))
            return self.intern(kind, words)
        return self.intern(kind, tuple(self.put(getattr(value, name), k) for name, k in inner))

    def intern(self, kind: Any, words: tuple[int, ...]) -> int:
        """The offset of a descriptor of type `kind` with these words, stored on first use. Types never share
        descriptors: a number of one type could be an offset of another that does not point backwards."""
        at = self._offsets.get((kind, words))
        if at is None:
            at = self._offsets[kind, words] = len(self.words)
            self.words.extend(words)
        return at

    def _symbol(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            self.symbols.append(text)
            number = self._numbers[text] = len(self.symbols)
        return number


class PoolReader:
    """Reads descriptors back. Raises ValueError or IndexError for malformed words."""

    def __init__(self, words: Sequence[int], symbols: Sequence[str]) -> None:
        self.words = words
        self.symbols = symbols
        self._seen: dict[tuple[Any, int], Any] = {}

    def get(self, word: int, kind: Any, limit: int | None = None) -> Any:
        """The value of type `kind` encoded by `word`; descriptors must lie below offset `limit`."""
        if kind is int:
            return word
        if kind is str:
            return self._item(self.symbols, word)
        if kind is bool:
            return bool(_in_range(word, 0, 2))
        if kind is float:
            number = _F64.unpack(_I64.pack(word))[0]
            return math.nan if math.isnan(number) else number
        form, inner = shape_of(kind)
        if form == "optional":
            return None if word == 0 else self.get(word, inner, limit)
        if form == "enum":
            return self._item(members_of(kind), word)
        at = _in_range(word, 1, len(self.words) if limit is None else limit)
        key = (kind, at)
        if key not in self._seen:
            self._seen[key] = self._record(at, kind, form, inner)
        return self._seen[key]

    def _record(self, at: int, kind: Any, form: str, inner: Any) -> Any:
        words = self.words
        if form == "record":
            _in_range(at + len(inner), 0, len(words) + 1)
            return kind(*(self.get(words[at + i], k, at) for i, (_, k) in enumerate(inner)))
        count = _in_range(words[at], 0, len(words) - at)
        kinds = inner if form == "tuple" else (inner,) * count
        if len(kinds) != count:
            raise ValueError(f"a tuple of {len(kinds)} has {count} elements")
        return tuple(self.get(words[at + 1 + i], k, at) for i, k in enumerate(kinds))

    @staticmethod
    def _item(items: Sequence[Any], number: int) -> Any:
        return items[_in_range(number, 1, len(items) + 1) - 1]


def _in_range(word: int, low: int, high: int) -> int:
    if not low <= word < high:
        raise ValueError(f"word {word} is outside [{low}, {high})")
    return word


@functools.cache
def members_of(kind: type[enum.Enum]) -> tuple[enum.Enum, ...]:
    """Enum members in declaration order."""
    return tuple(kind)


@functools.cache
def shape_of(kind: Any) -> tuple[str, Any]:
    """The encoding of a type: optional, enum, list or tuple with the inner type(s), or record with its (name, type)
    fields."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (arg for arg in args if arg is not type(None))
        return "optional", inner
    if origin is tuple:
        return ("list", args[0]) if len(args) == 2 and args[1] is Ellipsis else ("tuple", args)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "enum", None
    return "record", fields_of(kind)


@functools.cache
def fields_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    """(name, type) of the fields of a dataclass, in declaration order."""
    hints = typing.get_type_hints(kind)
    return tuple((item.name, hints[item.name]) for item in dataclasses.fields(kind))


def pool_array(words: Sequence[int]) -> np.ndarray:
    """A pool as int64[n]."""
    return np.array(words, np.int64)


__all__ = ["PoolReader", "PoolWriter", "fields_of", "pool_array", "shape_of"]
