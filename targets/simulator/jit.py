"""JIT compilation of the simulator's loops.

`helper` functions are compiled into the entry point that calls them. Reference counting of arrays is off (`_nrt`): the
loops allocate nothing, callers own all arrays, and counting made the loops fifty times slower. Only entry points are
cached on disk. Numba does not notice changes to a helper in another file, so the digest of all sources of a loop is in
the entry point's closure and thus part of its cache key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


_COMMON: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}


def helper(function: F) -> F:
    """Inline-compile `function` into every caller."""
    options: dict[str, Any] = _COMMON | {"forceinline": True, "no_cpython_wrapper": True}
    return cast(F, njit(**options)(function))


def array_helper(function: F) -> F:
    """A helper whose loops over arrays are vectorised: it may assume that no NaN arises and ignore the sign of zero,
    which changes no other value."""
    options: dict[str, Any] = _COMMON | {"forceinline": True, "no_cpython_wrapper": True, "fastmath": {"nnan", "nsz"}}
    return cast(F, njit(**options)(function))


def sum_helper(function: F) -> F:
    """An array helper that may also add in any order: for sums that need not be exact."""
    options: dict[str, Any] = _COMMON | {"forceinline": True, "no_cpython_wrapper": True}
    return cast(F, njit(**options, fastmath={"nnan", "nsz", "reassoc"})(function))


def entry(function: F) -> F:
    """Compile and cache on disk."""
    options: dict[str, Any] = _COMMON | {"cache": True}
    return cast(F, njit(**options)(function))


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether an entry point has been compiled, or loaded from disk, in this process."""
    return bool(cast(Any, function).signatures)


def source_digest(*files: str) -> str:
    """sha256 of source files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()
