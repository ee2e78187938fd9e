"""Statistics of layers' operands on data: ranges over all samples, and a subsample of values.

Invariant: memory does not grow with the number of samples: ranges are updated in place, and at most KEPT numbers per
tensor are kept, at regular strides, deterministically.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppuc.compiler.quantization.layers import Layer
from ppuc.compiler.validation.emulate import Emulator
from ppuc.ir.graph import Graph

KEPT = 1 << 16
"""Maximum values kept per tensor."""
RUN_BYTES = 1 << 29
"""Maximum bytes of operands that one run returns; further layers are observed in further runs."""


@dataclass(slots=True)
class Observation:
    """`low`, `high`: the range over all samples. `channels` f32[c]: the largest magnitude of each channel. `kept`
    f32[c, n]: a subsample of each channel. `axis`: the channel axis."""

    low: float
    high: float
    channels: np.ndarray
    kept: np.ndarray
    samples: int
    axis: int

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


class _Running:
    def __init__(self, axis: int) -> None:
        self.axis, self.samples = axis, 0
        self.low, self.high = np.inf, -np.inf
        self.channels: np.ndarray | None = None
        self.kept: list[np.ndarray] = []
        self.stride = 1

    def add(self, array: np.ndarray) -> None:
        rows = np.moveaxis(array, self.axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        high, low = rows.max(1, initial=-np.inf), rows.min(1, initial=np.inf)
        self.high, self.low = max(self.high, float(high.max())), min(self.low, float(low.min()))
        largest = np.maximum(np.abs(high), np.abs(low))
        self.channels = largest if self.channels is None else np.maximum(self.channels, largest)
        if self.samples % self.stride == 0:
            most = max(1, KEPT // (8 * rows.shape[0]))
            step = max(1, -(-rows.shape[1] // most))
            step += step % 2 == 0 and step > 1  # an odd stride does not alias with the width of an image
            self.kept.append(np.ascontiguousarray(rows[:, self.samples % step :: step][:, :most], dtype=np.float32))
            if sum(k.shape[1] for k in self.kept) * rows.shape[0] > KEPT and len(self.kept) > 8:
                self.kept, self.stride = self.kept[::2], self.stride * 2
        self.samples += 1

    def observation(self) -> Observation:
        assert self.channels is not None
        return Observation(self.low, self.high, self.channels, np.concatenate(self.kept, 1), self.samples, self.axis)


def observe(
    graph: Graph,
    layers: Sequence[Layer],
    samples: Iterable[Mapping[str, np.ndarray]],
    each: Callable[[int], None] | None = None,
) -> dict[str, Observation]:
    """Value name -> observation, for every activation operand of `layers`, over `samples` (feeds by parameter name).
    `each` is called with the index of every finished sample."""
    axes: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for layer in layers:
        for i, value in enumerate(layer.inputs):
            axes.setdefault(value.name, layer.input_axis if i == 0 else value.type.rank - 1)
            sizes[value.name] = value.type.bytes
    running = {name: _Running(axis) for name, axis in axes.items()}
    emulators = [Emulator(graph, names) for names in _parts(sizes)]
    for i, sample in enumerate(samples):
        for emulator in emulators:
            for name, array in emulator.run(sample).items():
                running[name].add(array)
        if each is not None:
            each(i)
    return {name: r.observation() for name, r in running.items()}


def _parts(sizes: Mapping[str, int]) -> list[list[str]]:
    """Groups of names whose tensors have at most RUN_BYTES together."""
    parts: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if parts[-1] and total + size > RUN_BYTES:
            parts.append([])
            total = 0
        parts[-1].append(name)
        total += size
    return [p for p in parts if p]
