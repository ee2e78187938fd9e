"""How often Python looks for garbage while a model is compiled.

Graphs and kernels are large numbers of small live objects, which each collection would visit again: a quarter of the
time of long compilations at Python's own thresholds. Little of what a compilation drops is in cycles.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_AFTER = (50_000, 20, 100)
"""Allocations, and collections of younger generations, between garbage collections."""

_LOCK = threading.Lock()
_inside: list[None] = []
_before: list[int] = []
"""The thresholds outside the contexts."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely inside the context, and as before after it. Threads that compile at the same time share
    the thresholds: the last one to leave restores them."""
    with _LOCK:
        if not _inside:
            _before[:] = gc.get_threshold()
            if _before[0]:  # 0: the caller has disabled collections
                gc.set_threshold(*COLLECT_AFTER)
        _inside.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _inside.pop()
            if not _inside:
                gc.set_threshold(*_before)


__all__ = ["COLLECT_AFTER", "rare_collections"]
