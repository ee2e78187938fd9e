"""Cycles of tile statements on a target: the one set of formulas used by the simulator and by lowering's cost model.

The functions are plain arithmetic on ints, floats or numpy arrays, so the search evaluates thousands of candidates at
once and the simulator compiles the very same functions. All times are cycles of the target's maximum clock.

Invariant: nothing here knows a program, a graph or the state of a run; a cost never falls when work grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target

Number = Any
"""An int, a float or an array of them."""

BURST_BYTES = 128
"""A contiguous run of at least this many bytes uses device memory at its full efficiency (two 64-byte bursts)."""
SECTOR_BYTES = 32
"""The smallest piece of device memory that is fetched: a shorter run pays for a whole one."""


@dataclass(frozen=True, slots=True)
class MmaShape:
    """What an mma of one element type costs: fragment (m, n, k), interval between fragments of one lane, bytes of an
    operand element."""

    m: int
    n: int
    k: int
    ii_clk: int
    element_bytes: int


def mma_shape(dtype: DType, target: Target) -> MmaShape:
    """The tensor engine's row for operands of `dtype` (u8 multiplies as i8). Raises InternalError when it has none."""
    name = "i8" if dtype is DType.U8 else str(dtype)
    if not target.tensor.supports(name):
        raise InternalError(f"mma on {dtype}, which the tensor engine of {target.name} does not take")
    m, n, k = target.tensor.fragment[name]
    return MmaShape(m, n, k, target.tensor.ii_clk[name], dtype.bytes)


def mma_steps(m: Number, n: Number, k: Number, fm: int, fn: int, fk: int, rows: int, cols: int) -> Number:
    """Steps of all lanes together: the grid of lanes covers `rows` x `cols` fragments of the result at a time."""
    mf, nf, kf = -(-m // fm), -(-n // fn), -(-k // fk)
    return -(-mf // rows) * -(-nf // cols) * kf


def mma_operand_bytes(
    m: Number, n: Number, k: Number, fm: int, fn: int, fk: int, rows: int, cols: int, element_bytes: int
) -> Number:
    """Bytes read from l1: lanes in a row share A fragments and lanes in a column share B fragments, so an A fragment
    is read once per group of `cols` columns and a B fragment once per group of `rows` rows."""
    mf, nf, kf = -(-m // fm), -(-n // fn), -(-k // fk)
    a = mf * (-(-nf // cols)) * kf * fm * fk
    b = nf * (-(-mf // rows)) * kf * fn * fk
    return (a + b) * element_bytes


def mma_cycles(m: Number, n: Number, k: Number, dtype: DType, target: Target) -> Number:
    """Cycles that an mma of valid extents m x n x k occupies the tensor engine (issue and fill not included)."""
    s, (rows, cols) = mma_shape(dtype, target), target.tensor.lane_grid
    steps = mma_steps(m, n, k, s.m, s.n, s.k, rows, cols)
    read = mma_operand_bytes(m, n, k, s.m, s.n, s.k, rows, cols, s.element_bytes)
    return np.maximum(steps * s.ii_clk, read / target.l1.bytes_per_clk)


def flow_cap(fetched: Number, moved: Number, rows: Number, row_clk: float, bytes_per_clk: float) -> Number:
    """Largest rate, in bytes of memory per cycle, of a transfer of `fetched` bytes in `rows` contiguous runs that fill
    `moved` bytes of a tile (more than fetched when an axis is broadcast)."""
    return bytes_per_clk * fetched / np.maximum(np.maximum(moved, rows * row_clk * bytes_per_clk), 1e-9)


def burst_weight(run_bytes: Number) -> Number:
    """Bytes of device-memory time that one useful byte costs in contiguous runs of `run_bytes`: 1 from BURST_BYTES
    on, growing inversely below, until a run is shorter than a sector."""
    return np.minimum(np.maximum(BURST_BYTES / np.maximum(run_bytes, 1), 1.0), BURST_BYTES / SECTOR_BYTES)


def hbm_bytes_per_clk(target: Target) -> float:
    """What long bursts sustain, in bytes per cycle."""
    return target.hbm.gbs * target.hbm.efficiency * target.clk_ns


def latency_clk(space: Space, target: Target) -> float:
    """From a request to the first byte of a memory of the chip. The host's memory answers as late as device memory."""
    return (target.l2.latency_ns if space is Space.L2 else target.hbm.latency_ns) / target.clk_ns


def transfer_cycles(
    fetched: Number, run_bytes: Number, space: Space, target: Target, *, store: bool = False, sharers: int = 1
) -> Number:
    """Data-phase cycles of one box of `fetched` bytes in runs of `run_bytes` when `sharers` units move one like it at
    the same time. Start and latency come on top but overlap with other transfers of the queue."""
    mover = target.store if store else target.load
    cap = flow_cap(fetched, fetched, fetched / np.maximum(run_bytes, 1), mover.row_clk, mover.bytes_per_clk)
    cap = np.minimum(cap, target.l2.bytes_per_clk_per_cu)
    cap = np.minimum(cap, target.noc.ce_port_bytes_per_clk / min(sharers, target.cu_per_ce))
    if space is Space.L2:
        cap = np.minimum(cap, target.l2.bytes_per_clk_total / sharers)
    else:
        cap = np.minimum(cap, hbm_bytes_per_clk(target) / (sharers * burst_weight(run_bytes)))
    return fetched / np.maximum(cap, 1e-9)


def transfer_latency_clk(space: Space, target: Target, *, store: bool = False) -> float:
    """Issue, start and latency of one transfer."""
    mover = target.store if store else target.load
    return target.issue_clk + mover.start_clk + latency_clk(space, target)


__all__ = [
    "BURST_BYTES",
    "SECTOR_BYTES",
    "MmaShape",
    "burst_weight",
    "flow_cap",
    "hbm_bytes_per_clk",
    "latency_clk",
    "mma_cycles",
    "mma_operand_bytes",
    "mma_shape",
    "mma_steps",
    "transfer_cycles",
    "transfer_latency_clk",
]
