"""Strict JSON: rejects texts that readers interpret differently.

Invariant: all readers agree on the value of an accepted text: names in an object are unique, numbers are finite and fit
64 bits, strings can be encoded.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MOST_NESTED = 64
"""Maximum nesting depth of arrays and objects."""


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for invalid or ambiguous JSON."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value, 0)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the name {twice!r} occurs twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check(value: Any, depth: int) -> None:
    if depth > MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for name, item in value.items():
            name.encode()
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, str):
        value.encode()  # surrogates have no encoding: UnicodeEncodeError is a ValueError
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise ValueError("a number is too large")


def plain(value: Any) -> Any:
    """`value` with JSON types: numpy scalars as numbers, paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float):
        return number if math.isfinite(number) else None
    return number if isinstance(number, bool | int | str) or number is None else str(number)
