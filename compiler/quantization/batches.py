"""Batches of samples: files of fewer samples than a batch are joined.

Invariant: rows that only fill up a batch are known as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Stack = Mapping[str, np.ndarray]
"""Arrays by name, samples along the first axis."""
Sample = tuple[Stack, Stack]
"""Inputs and labels."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs and labels of a batch of `size` by name, of which `rows` are of samples of their own, and the others
    fill it up."""

    arrays: Mapping[str, np.ndarray]
    size: int
    rows: int

    def cut(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs or labels of the batch without the rows that fill it up."""
        if self.rows == self.size:
            return dict(arrays)
        mine = {n: isinstance(a, np.ndarray) and a.shape[:1] == (self.size,) for n, a in arrays.items()}
        return {n: a[: self.rows] if mine[n] else a for n, a in arrays.items()}


def joined(stacks: Iterable[Sample], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Sample]:
    """Consecutive stacks of inputs and labels, joined until they fill a batch of inputs of `shapes`. Labels of
    different sizes are filled up, integers with -1 and other numbers with NaN. Stacks are not joined where a label has
    no row for each sample."""
    waiting: list[Sample] = []
    rows = 0
    for inputs, labels in stacks:
        counts = {len(a) for a in (*inputs.values(), *labels.values()) if np.ndim(a)}
        batch = {shapes[n][0] for n in inputs if shapes.get(n)}
        scalar = any(not np.ndim(a) for a in (*inputs.values(), *labels.values()))
        small = len(counts) == len(batch) == 1 and not scalar and min(counts) < min(batch)
        alike = not waiting or _form(inputs, labels) == _form(*waiting[0])
        if waiting and not (small and alike):
            yield _concatenated(waiting)
            waiting, rows = [], 0
        if not small:
            yield inputs, labels
            continue
        waiting.append((inputs, labels))
        rows += min(counts)
        if rows >= min(batch):
            yield _concatenated(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _concatenated(waiting)


def _form(inputs: Stack, labels: Stack) -> tuple[object, ...]:
    """What stacks that are joined have in common."""
    return {n: a.shape[1:] for n, a in inputs.items()}, {n: (a.ndim, a.dtype.kind) for n, a in labels.items()}


def _concatenated(stacks: Sequence[Sample]) -> Sample:
    inputs = {n: np.concatenate([s[0][n] for s in stacks]) for n in stacks[0][0]}
    return inputs, {n: np.concatenate(_alike([s[1][n] for s in stacks])) for n in stacks[0][1]}


def _alike(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`labels` filled up to the largest size along each axis but the first."""
    if len({a.shape[1:] for a in labels}) == 1:
        return list(labels)
    rest = [max(sizes) for sizes in zip(*(a.shape[1:] for a in labels), strict=True)]
    found = []
    for a in labels:
        full = np.full((len(a), *rest), -1 if a.dtype.kind in "iu" else np.nan, a.dtype)
        full[tuple(slice(n) for n in a.shape)] = a
        found.append(full)
    return found
