"""The user's cache directory: what ppuc keeps there only saves time."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PPUC_CACHE_DIR"
"""Environment variable: the folder; "" stands for none."""


def user_cache() -> Path | None:
    """The folder; None if disabled."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    from platformdirs import user_cache_path

    return user_cache_path("ppuc", appauthor=False)
