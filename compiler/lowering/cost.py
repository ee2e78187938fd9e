"""The cost model that tile search minimises: cycles of one compute unit, computed from the target description alone.

Engines overlap, so a kernel takes (iterations of the busiest unit) times (the slowest engine's time for one iteration)
plus what cannot overlap: the first load's latency and the last store. The model is deliberately coarser than the
simulator, which can measure candidates of similar price.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ppuc.ir.kernel import View
from ppuc.ir.types import DType, Space
from ppuc.targets.cost import (
    engine_of,
    group_rows,
    in_order,
    l2_bytes_per_clk,
    layout_weight,
    longer_row,
    mma_cycles,
    mma_operand_bytes,
    mma_shape,
    placed,
    shared_fragments,
)
from ppuc.targets.schema import Target


class Priced(Protocol):
    """A priced object: a candidate of a search, or a lowering with its best candidate."""

    @property
    def price(self) -> float:
        """Expected cycles."""
        ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one transfer, the contiguous rows it consists of, and the bytes by which its layout in device memory
    pads it."""

    bytes: float
    rows: float
    padding: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.rows + other.rows, self.padding + other.padding)

    def __mul__(self, factor: float) -> Traffic:
        return Traffic(self.bytes * factor, self.rows * factor, self.padding * factor)


def box_traffic(view: View, tile: Sequence[int], dtype: DType, target: Target) -> Traffic:
    """Traffic of a box with `tile` extents along the axes of `view`, which are also the axes of the tile in l1. Rows
    are maximal runs that are contiguous in both memories."""
    run, elements = 1, math.prod(tile)
    for stride, extent in zip(reversed(view.strides), reversed(tile), strict=True):
        row = longer_row(run, extent, stride)
        if row == 0:
            break
        run = row
    size = elements * dtype.bytes
    return Traffic(size, elements / run, size * (layout_weight(view.shape, view.strides, target) - 1.0))


def shared_rate(space: Space | None, target: Target, active: int) -> float:
    """Bytes per cycle for each of `active` units that share a memory (l2 while the memory is unknown)."""
    if space is Space.HBM:
        return target.hbm.gbs * target.hbm.efficiency * target.clk_ns / max(active, 1)
    return l2_bytes_per_clk(target) / max(active, 1)


def _moved(traffic: Traffic, target: Target, space: Space | None) -> float:
    """Bytes that a transfer occupies in a memory: device memory moves padding, and whole bursts even for short rows."""
    if space is not Space.HBM:
        return traffic.bytes
    return max(traffic.bytes, traffic.rows * target.hbm.burst_bytes) + traffic.padding


def load_clk(traffic: Traffic, target: Target, active: int, space: Space | None = None, sharers: int = 1) -> float:
    """Cycles of a unit's load queue while `active` units load from `space`, `sharers` of them the same data by one
    read. A cached l2 is assumed to hit for data that other units load too."""
    if target.l2.managed == "cache":
        space = Space.L2
    port = min(target.load.bytes_per_clk, target.l2.bytes_per_clk_per_cu)
    shared = _moved(traffic, target, space) / shared_rate(space, target, active) / sharers
    return max(traffic.bytes / port, shared, traffic.rows * target.load.row_clk)


def store_clk(traffic: Traffic, target: Target, active: int, space: Space | None = None) -> float:
    """Cycles of a unit's store queue while `active` units store to `space`."""
    shared = _moved(traffic, target, space) / shared_rate(space, target, active)
    return max(traffic.bytes / target.store.bytes_per_clk, shared, traffic.rows * target.store.row_clk)


def further_stores_clk(count: int, target: Target) -> float:
    """Cycles that `count` more stores of parts of a tile take, even if nothing of the tile is in their parts."""
    return count * max(overhead_clk(target), store_place_clk(target))


def store_place_clk(target: Target) -> float:
    """Least cycles from one store of many to the next: each holds one of the engine's places until it has landed."""
    return (target.store.start_clk + handover_latency_clk(target)) / target.store.in_flight


def sharers(row_tiles: int, col_tiles: int, tm: int, tn: int, target: Target) -> tuple[int, int]:
    """Units that share one read of a tile of the left and of the right operand: neighbours that multicast serves, if
    tiles are taken in order."""
    if target.l2.managed != "cache" or target.noc.multicast == "none" or not in_order(target):
        return 1, 1
    beside = group_rows_of(row_tiles, col_tiles, tm, tn, target)
    return (1, min(target.cu_per_ce, beside)) if beside > 1 else (min(target.cu_per_ce, col_tiles), 1)


def group_rows_of(row_tiles: int, col_tiles: int, tm: int, tn: int, target: Target) -> int:
    """The height of a group of tiles in grouped ordering; 1 if tiles are not taken in order."""
    return group_rows(tm, tn, row_tiles, col_tiles, target.cu) if in_order(target) else 1


def contraction_traffic(rows: tuple[int, int, float], cols: tuple[int, int, float], target: Target) -> float:
    """Bytes that a cached l2 reads from device memory for a grid of result tiles. `rows`: elements of a tile, number of
    tiles, bytes of the left operand that one of them needs; `cols`: the same for columns.

    `cu` tiles run at a time, in groups of `group_rows` row tiles; they share their reads through l2. If l2 also holds
    what the next tiles share, rows or columns are read once per group, or only once."""
    (tm, row_tiles, a), (tn, col_tiles, b) = rows, cols
    together = group_rows_of(row_tiles, col_tiles, tm, tn, target)
    groups = -(-row_tiles // together)
    if row_tiles * a + col_tiles * b <= target.l2.bytes:
        return row_tiles * a + col_tiles * b
    beside = min(col_tiles, -(-target.cu // together))
    across = 1 if together * a + beside * b <= target.l2.bytes else -(-col_tiles // beside)
    again = 1 if col_tiles * b + together * a <= target.l2.bytes else groups
    return row_tiles * a * across + col_tiles * b * again


def run_elements(dtype: DType, target: Target) -> int:
    """Minimum row length of a tile, in elements: half a burst of device memory, or a whole one where every first use of
    a tile loads from it."""
    if target.l2.managed == "software":
        return 32
    return 1 << (-(-target.hbm.burst_bytes // dtype.bytes) - 1).bit_length()


def latency_clk(target: Target, *spaces: Space | None) -> float:
    """Cycles from the issue of a load to its first byte, from the slowest of `spaces` (l2 while they are unknown).
    Where l2 is a cache, from device memory: the first load of a tile misses."""
    if target.l2.managed == "cache" or Space.HBM in spaces:
        return memory_latency_clk(target)
    return target.load.start_clk + target.l2.latency_ns / target.clk_ns


def memory_latency_clk(target: Target) -> float:
    """Cycles from the issue of a load to its first byte from device memory."""
    return target.load.start_clk + target.hbm.latency_ns / target.clk_ns


def handover_latency_clk(target: Target) -> float:
    """Cycles from the end of a store to l2 to the start of a load that waits for it."""
    return (target.l2.latency_ns + target.sync.counter_bump_ns) / target.clk_ns


def handover_clk(target: Target) -> float:
    """Cycles from a kernel's last store to its reader's first load that the two kernels' prices do not include."""
    return target.store.start_clk + handover_latency_clk(target)


def overhead_clk(target: Target) -> float:
    """Fixed cost of an instruction in its queue, in cycles: issue and two ring operations."""
    return target.issue_clk + 2 * target.sync.ring_op_clk


@functools.lru_cache(maxsize=1 << 16)
def mma_clk(m: int, n: int, k: int, dtype: DType, target: Target) -> float:
    """Cycles of one mma tile in steady state."""
    return max(float(mma_cycles(m, n, k, dtype, target)), overhead_clk(target))


def l1_clk(m: int, n: int, k: int, loaded: float, dtype: DType, target: Target) -> float:
    """Cycles in which l1 takes `loaded` bytes from memory and gives the operands of an mma tile to the engine."""
    s, engine = mma_shape(dtype, target), engine_of(target)
    m, n = placed(m, n, s.m, s.n, *target.tensor.lane_grid, engine)
    read = mma_operand_bytes(m, n, k, s.m, s.n, s.k, *shared_fragments(target), engine, s.element_bytes)
    return float(read + loaded) / target.l1.bytes_per_clk


def beat_clk(work: float, load: float, latency: float, depth: int, ahead: float = math.inf) -> float:
    """Cycles from one step to the next of an engine that takes `work` cycles for what a ring of `depth` slots brings: a
    slot is loaded again only when the engine is through with it, and the data arrive `latency` and `load` later; the
    queue has the loads of no more than `ahead` steps in flight."""
    return max(work, load, (latency + load + work) / depth, (latency + load) / ahead)


def vec_clk(elements: float, steps: int, target: Target) -> float:
    """Cycles of a vector program of `steps` steps over `elements` points."""
    return math.ceil(elements / target.vector.lanes) * max(steps, 1) + overhead_clk(target)


def l1_budget(target: Target) -> int:
    """Bytes of l1 that one kernel may use, leaving room for the next kernel's first loads."""
    return target.l1.bytes // 2


def acc_budget(target: Target) -> int:
    """Bytes of acc that one kernel may use."""
    return target.acc.bytes // 2


def multiply(a: DType, b: DType) -> bool:
    """Whether the tensor engine multiplies operands of these two types: 8-bit integers of either signedness, otherwise
    equal types."""
    return a is b or {a, b} <= {DType.I8, DType.U8}


def tensor_dtype(dtype: DType, target: Target) -> DType:
    """The tensor engine's name for operands stored as `dtype` (u8 runs as i8 with a wider product)."""
    return DType.I8 if dtype is DType.U8 else dtype
