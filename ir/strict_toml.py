"""TOML files, parsed with bounds that the standard library's parser lacks.

Invariant: any malformed file is an error with a reason, in time and memory linear in its size.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from ppuc.ir.errors import PpucError

_MOST_PARTS = 64
_LONG_KEY = re.compile(rf"""(?:[\w"'-]+[ \t]*\.[ \t]*){{{_MOST_PARTS}}}""")
"""Maximum parts of a key: tomllib's memory is quadratic in their number."""


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises ValueError."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has {_MOST_PARTS} parts or more")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_toml(path: Path, refusal: type[PpucError]) -> dict[str, Any]:
    """The table in a TOML file. Raises `refusal` if it cannot be read."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device may have no end
        raise refusal.of(str(path), "cannot be read", got="it is not a file")
    try:
        return parse_toml(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise refusal.of(str(path), "cannot be read", got=error.strerror) from None
    except UnicodeDecodeError as error:
        raise refusal.of(str(path), "is not UTF-8 text", got=error.reason) from None
    except ValueError as error:  # also of a path with a NUL in it
        raise refusal.of(str(path), "is not TOML", got=error) from None
