"""Candidate tile extents of data-movement kernels, and their l1 bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppuc.ir.types import DType

COPY_DEPTH = 4
"""Slots of a copied tile: one being loaded, one being stored, and one to hide latency."""
_LARGEST = 1 << 17


def cuts(size: int, tile: int) -> int:
    """Number of tiles of `tile` that cover `size`."""
    return -(-size // tile)


def ladder(total: int, units: int) -> list[int]:
    """Candidate tile volumes: powers of two, and the equal share of each unit."""
    shares = {cuts(total, units * rounds) for rounds in (1, 2, 3, 4)}
    powers = {1 << e for e in range(_LARGEST.bit_length())}
    return sorted(v for v in shares | powers if v <= min(total, _LARGEST))


def fill(sizes: Sequence[int], volume: int, given: Mapping[int, int]) -> tuple[int, ...]:
    """Tiles of about `volume` points: extents `given` for some axes, others filled from the innermost axis outwards."""
    tiles = [given.get(i, 1) for i in range(len(sizes))]
    rest = volume // math.prod(tiles)
    for i in reversed(range(len(sizes))):
        if i in given:
            continue
        if rest < sizes[i]:
            tiles[i] = max(1, rest - rest % 32 if rest > 32 else rest)
            break
        tiles[i] = sizes[i]
        rest //= sizes[i]
    return tuple(tiles)


def tile_axes(tiles: Sequence[int]) -> list[int]:
    """Axes of a tile: those with more than one element."""
    return [i for i, t in enumerate(tiles) if t > 1] or [len(tiles) - 1]


def slot_bytes(elements: int, dtype: DType) -> int:
    """Bytes of a ring slot, rounded up to a multiple of 32."""
    return cuts(elements * dtype.bytes, 32) * 32
