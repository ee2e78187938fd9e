"""Where the samples of a batch lie in a tensor, and how reshapes and constants follow when their number changes.

An axis that holds a batch of B samples is `outer * B * inner` long: outermost the parts of a concatenation or of merged
axes, innermost what each sample adds to it (heads, windows, frames).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """The axis of a tensor with the samples of a batch, and the factors of its size beside the batch."""

    axis: int
    outer: int = 1
    inner: int = 1

    def size(self, batch: int) -> int:
        """The length of the axis with a batch of this size."""
        return self.outer * batch * self.inner

    def resized(self, shape: Shape, batch: int) -> Shape:
        """`shape` with a batch of this size."""
        return (*shape[: self.axis], self.size(batch), *shape[self.axis + 1 :])

    def samples(self, array: np.ndarray, batch: int) -> np.ndarray:
        """The samples in front: [batch, ..., outer, inner, ...], the axis split in two."""
        shape = array.shape
        split = array.reshape(*shape[: self.axis], self.outer, batch, self.inner, *shape[self.axis + 1 :])
        return np.moveaxis(split, self.axis + 1, 0)

    def joined(self, samples: np.ndarray) -> np.ndarray:
        """The inverse of `samples`."""
        split = np.moveaxis(samples, 0, self.axis + 1)
        shape = split.shape
        return split.reshape(*shape[: self.axis], -1, *shape[self.axis + 3 :])


def reshaped(place: Place, old: Sequence[int], new: Sequence[int], batch: int) -> Place | None:
    """Where the samples of a tensor of shape `old` lie after a reshape to `new`; None if no axis holds them.

    In row-major order, consecutive samples are `stride` elements apart; an axis holds them if its own stride divides
    that and it is long enough. Axes of one element leave a choice: the tensor's own axis is preferred, then one with no
    outer factor, then the first.
    """
    stride = place.inner * math.prod(old[place.axis + 1 :])
    found = []
    for axis, size in enumerate(new):
        own = math.prod(new[axis + 1 :])
        if own and stride and stride % own == 0 and size * own % (stride * batch) == 0:
            found.append(Place(axis, size * own // (stride * batch), stride // own))
    if not found:
        return None
    return min(found, key=lambda p: (p.outer != place.outer, p.axis != place.axis or p.inner != place.inner, p.axis))


def repeated(array: np.ndarray, place: Place, old: int, new: int) -> np.ndarray | None:
    """A constant that holds the same for each of `old` samples, for `new` ones; None if it tells them apart."""
    samples = place.samples(array, old)
    if not all(np.array_equal(samples[0], s, equal_nan=array.dtype.kind == "f") for s in samples[1:]):
        return None
    return place.joined(np.repeat(samples[:1], new, axis=0))


def renumbered(numbers: np.ndarray, place: Place, old: int, new: int) -> tuple[np.ndarray, int] | None:
    """Constant numbers of elements along the axis of a batch of `old` samples, that pick the same of every sample, for
    `new` samples, and the axis of `numbers` that runs over samples (of those of one element the first); None if they
    pick some samples."""
    if place.outer != 1:
        return None
    counted = np.where(numbers < 0, numbers + place.size(old), numbers)
    for axis in (i for i, n in enumerate(numbers.shape) if n == old):
        picks = Place(axis)
        samples = picks.samples(counted, old)
        first = np.arange(old).reshape(-1, *(1 for _ in samples.shape[1:])) * place.inner
        if np.array_equal(samples, samples[:1] + first) and np.all((samples[0] >= 0) & (samples[0] < place.inner)):
            more = np.arange(new).reshape(-1, *(1 for _ in samples.shape[1:])) * place.inner
            return picks.joined((samples[:1] + more).astype(numbers.dtype)), axis
    return None


def concatenated(places: Sequence[Place]) -> Place | None:
    """The place in a concatenation along the axis of the batch; None if the parts hold their samples differently."""
    if len({p.inner for p in places}) > 1:
        return None
    return replace(places[0], outer=sum(p.outer for p in places))
