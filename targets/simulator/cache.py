"""An l2 that is a cache: which loads it serves, what it takes from stores, and what it has to write back.

Tiles are known by their tensor and the first and last element that they touch. Time is bytes that entered: a tile is
held while no more than the cache's size came after it, and dirty bytes are written back when they are that old, on the
account of the transfer that pushes them out.

Invariant: bytes written back never exceed bytes stored; what is still dirty when a launch ends stays.
"""

from __future__ import annotations

from ppuc.targets.simulator.jit import helper
from ppuc.targets.simulator.records import Cached, Core, Numbers, Stream
from ppuc.targets.simulator.tables import MEM_HBM, MEM_L2, Machine, State


@helper
def _slot(st: State, key: int) -> int:
    """Where a tile is remembered."""
    return ((key ^ (key >> 17) ^ (key >> 31)) * 0x5BD1E995 >> 7) & (len(st.cache) - 1)


@helper
def _key(q: Stream, tensor: int) -> int:
    return (tensor * 0x1F3D5B79 + q.low) * 0x2545F491 + q.high


@helper
def served_by(m: Machine, st: State, q: Stream, tensor: int, size: int) -> int:
    """Which memory serves a load of the stream's box: device memory, l2 if some unit read or wrote the tile before, or
    none (-1) if it shares the read of a neighbour in its CE."""
    key, numbers, k = _key(q, tensor), m.numbers[0], st.core[0]
    if numbers.multicast:
        near = key * 0x9E3779B1 + q.ce
        row: Cached = st.cache[_slot(st, near)]
        if row.near == near and row.near_by != q.unit:
            row.near = -1
            return -1
        row.near, row.near_by = near, q.unit
    tile: Cached = st.cache[_slot(st, key)]
    held = tile.key == key and k.entered - tile.at <= numbers.l2_bytes
    if not held:
        k.entered += size
    tile.key, tile.at = key, k.entered
    return MEM_L2 if held else MEM_HBM


@helper
def take_store(st: State, q: Stream, tensor: int, size: int, dirty: bool) -> None:
    """A store's box enters l2, and is dirty with `dirty`."""
    k: Core = st.core[0]
    key = _key(q, tensor)
    k.entered += size
    tile: Cached = st.cache[_slot(st, key)]
    tile.key, tile.at = key, k.entered
    if not dirty:
        return
    row: Cached = st.cache[k.dirty_to & (len(st.cache) - 1)]
    row.dirty_at, row.dirty = k.entered, size
    k.dirty_to += 1


@helper
def write_back(m: Machine, st: State) -> float:
    """Dirty bytes that must leave now."""
    k: Core = st.core[0]
    numbers: Numbers = m.numbers[0]
    size = 0.0
    while k.dirty_from < k.dirty_to:
        row: Cached = st.cache[k.dirty_from & (len(st.cache) - 1)]
        full = k.dirty_to - k.dirty_from >= len(st.cache)
        if k.entered - row.dirty_at <= numbers.l2_bytes and not full:
            break
        size += row.dirty
        k.dirty_from += 1
    return size
