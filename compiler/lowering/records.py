"""Kernels and vector programs as JSON text and back.

Invariant: `decoded(encoded(x)) == x` for all parts of a kernel: frozen dataclasses and enums of the IR, tuples,
strings, numbers, None. A record names its classes; unknown ones are refused.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

import numpy as np

from ppuc.ir import affine, kernel, types, vector

_CLASSES: dict[str, type] = {
    name: found
    for module in (affine, kernel, types, vector)
    for name, found in vars(module).items()
    if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum))
}


def encoded(value: object) -> str:
    """`value` as JSON. Raises TypeError for values that no kernel contains."""
    return json.dumps(_plain(value), separators=(",", ":"))


def decoded(text: str) -> Any:
    """The value of a record. Raises ValueError, KeyError or TypeError if malformed."""
    return _built(json.loads(text))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return {type(value).__name__: value.value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: [_plain(getattr(value, f.name)) for f in dataclasses.fields(value)]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a kernel contains no {type(value).__name__}")


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_built(v) for v in value)
    if isinstance(value, dict):
        ((name, content),) = value.items()
        found = _CLASSES[name]
        return found(content) if issubclass(found, enum.Enum) else found(*(_built(v) for v in content))
    return value
