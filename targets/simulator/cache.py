"""Model of a cached l2: hits, stores and write-backs.

Tiles are identified by their tensor and their first and last element. Age is counted in bytes that entered later: a
tile stays until its age exceeds the cache's size, and dirty bytes of that age are written back, charged to the transfer
that evicts them.

Invariant: bytes written back never exceed bytes stored; bytes still dirty at the end of a launch stay in the cache.
"""

from __future__ import annotations

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.records import Cached, Core, Numbers, Stream
from ppuc.targets.simulator.tables import MEM_HBM, MEM_L2, Machine, State


@helper
def _slot(st: State, key: int) -> int:
    """The cache entry of a tile."""
    return ((key ^ (key >> 17) ^ (key >> 31)) * 0x5BD1E995 >> 7) & (len(st.cache) - 1)


@helper
def _key(q: Stream, tensor: int) -> int:
    return (tensor * 0x1F3D5B79 + q.low) * 0x2545F491 + q.high


@helper
def served_by(m: Machine, st: State, q: Stream, tensor: int, size: int) -> int:
    """The memory that serves a load of the stream's box: l2 on a hit, else device memory; -1 if it shares the read of a
    neighbour in its CE."""
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
    """Enter a store's box into l2, as dirty if `dirty`."""
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
    """Dirty bytes to write back now."""
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
