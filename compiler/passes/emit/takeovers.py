"""Which earlier tensors a tensor takes bytes over from, and so has to wait for.

Invariant: every earlier owner of a byte is complete before the byte is written again: the new tensor waits for the
owner, or for one that has waited for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ppuc.ir.program import MemTensor


def find_takeovers(
    tensors: Sequence[MemTensor], first: Mapping[str, int], written_once: Collection[str]
) -> dict[str, list[str]]:
    """Tensor -> earlier tensors whose bytes it reuses, by address. `first` is the step that first writes a tensor. A
    tensor whose bytes another one in between has reused is omitted, if a single step writes that one: its writer has
    waited."""
    found: dict[str, list[str]] = {}
    for space in {t.space for t in tensors}:
        here = sorted((t for t in tensors if t.space is space), key=lambda t: t.address)
        place = {t.name: i for i, t in enumerate(here)}
        here.sort(key=lambda t: first[t.name])
        start = np.array([t.address for t in here], np.int64)
        end = start + np.array([max(t.bytes, 1) for t in here], np.int64)
        once = np.array([t.name in written_once for t in here])
        open_to = np.ones(len(here), bool)  # whether later tensors may have to wait for this one
        for k, new in enumerate(here):
            shared = open_to[:k] & (start[:k] < end[k]) & (start[k] < end[:k])
            old = np.flatnonzero(shared).tolist()
            kept = [t for i, t in enumerate(old) if not _reused(t, [m for m in old[i + 1 :] if once[m]], start, end)]
            if kept:
                found[new.name] = sorted((here[t].name for t in kept), key=place.__getitem__)
            if once[k]:
                open_to[:k] &= ~shared | (start[:k] < start[k]) | (end[k] < end[:k])
    return found


def _reused(tensor: int, others: Sequence[int], start: np.ndarray, end: np.ndarray) -> bool:
    """Whether one of the others shares bytes with the tensor."""
    return any(start[m] < end[tensor] and start[tensor] < end[m] for m in others)


__all__ = ["find_takeovers"]
