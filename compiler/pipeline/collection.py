"""How often Python looks for garbage while a model is compiled.

Graphs and kernels are large numbers of small live objects, which each collection would visit again: a quarter of the
time of long compilations at Python's own thresholds. Little of what a compilation drops is in cycles.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_AFTER = (50_000, 20, 100)
"""Allocations, and collections of younger generations, between garbage collections."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely inside the context, and as before after it."""
    before = gc.get_threshold()
    if before[0]:  # 0: the caller has disabled collections
        gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


__all__ = ["COLLECT_AFTER", "rare_collections"]
