"""How the simulator's loops are compiled.

`helper` functions are compiled into the entry point that calls them. Reference counting of arrays is off (`_nrt`): the loops
allocate nothing, their callers own every array, and counting made them fifty times slower. Only entry points are
cached on disk; numba would not notice that a helper in another file changed, so the digest of all sources that end up in a
loop is part of an entry point's closure and thereby of its cache key.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from numba import njit

helper = functools.partial(
    njit, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False
)
entry = functools.partial(njit, error_model="numpy", cache=True, no_cfunc_wrapper=True, _nrt=False)


def source_digest(*files: str) -> str:
    """sha256 of source files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()
