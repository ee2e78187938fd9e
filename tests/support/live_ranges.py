"""Live ranges whose best plan is known, and the check of a plan; tests and benchmarks of the allocator share them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from ppuc.compiler.passes.memory.ranges import Range


def assert_legal(ranges: Sequence[Range], offsets: dict[str, int], capacity: int, alignment: int = 1) -> None:
    """Everything placed once, aligned, within the capacity, and disjoint from what is alive at the same step."""
    assert sorted(offsets) == sorted(r.name for r in ranges)
    for r in ranges:
        assert 0 <= offsets[r.name] <= capacity - r.bytes
        assert offsets[r.name] % alignment == 0
    for a, b in itertools.combinations(ranges, 2):
        if a.start <= b.end and b.start <= a.end:
            low, high = sorted((a, b), key=lambda r: offsets[r.name])
            assert offsets[low.name] + low.bytes <= offsets[high.name], f"{low} at {offsets[low.name]} runs into {high}"


def dissected(seed: int, count: int, steps: int = 64, capacity: int = 4096) -> list[Range]:
    """A rectangle of steps x bytes cut in two again and again: a plan without a gap exists, and is hard to find."""
    rng = random.Random(seed)
    pieces = [(0, steps, 0, capacity)]  # first step, end step, address, end address
    while len(pieces) < count:
        pieces.sort(key=lambda p: (p[1] - p[0]) * (p[3] - p[2]))
        first, end, low, high = pieces.pop()
        if end - first > 1 and (rng.random() < 0.5 or high - low < 2):
            cut = rng.randint(first + 1, end - 1)
            pieces += [(first, cut, low, high), (cut, end, low, high)]
        else:
            cut = rng.randint(low + 1, high - 1)
            pieces += [(first, end, low, cut), (first, end, cut, high)]
    rng.shuffle(pieces)
    return [Range(f"t{i}", high - low, first, end - 1) for i, (first, end, low, high) in enumerate(pieces)]
