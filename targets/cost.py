"""Cycles of tile statements on a target: the formulas shared by the simulator and lowering's cost model.

The functions are plain arithmetic on ints, floats or numpy arrays, so the search evaluates thousands of candidates at
once and the simulator compiles the very same functions. All times are cycles of the target's clock.

Invariant: costs do not depend on a program, a graph or the state of a run, and are monotonic in the work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.ir.errors import InternalError
from ppuc.ir.types import DType, Space
from ppuc.targets.schema import Target

Number = Any
"""An int, a float or an array of them."""

LANES, WEIGHT_STATIONARY, OUTPUT_STATIONARY, EITHER_LANES = range(4)
"""Kinds of tensor engines, as numbers for compiled code."""


@dataclass(frozen=True, slots=True)
class MmaShape:
    """Cost parameters of an mma of one element type: fragment (m, n, k), interval between fragments of one lane, bytes
    of an operand element."""

    m: int
    n: int
    k: int
    ii_clk: int
    element_bytes: int


@functools.lru_cache(maxsize=1024)
def mma_shape(dtype: DType, target: Target) -> MmaShape:
    """The tensor engine's row for operands of `dtype` (u8 multiplies as i8). Raises InternalError if unsupported."""
    name = "i8" if dtype is DType.U8 else str(dtype)
    if not target.tensor.supports(name):
        raise InternalError(f"mma on {dtype}, which the tensor engine of {target.name} does not support")
    m, n, k = target.tensor.fragment[name]
    return MmaShape(m, n, k, target.tensor.ii_clk[name], dtype.bytes)


def in_order(target: Target) -> bool:
    """Whether units take tiles from one ordered list, as kernels of a library do, rather than each running its own
    share of the loops. Such libraries order tiles in groups of rows (`group_rows`) and swap the operands of a product,
    which computes the transposed result, if fewer fragments then cover a tile."""
    return target.launch.tiles != "streaming"


def engine_of(target: Target) -> int:
    """LANES, WEIGHT_STATIONARY, OUTPUT_STATIONARY, or EITHER_LANES: lanes that also take the operands in exchange."""
    if target.tensor.organisation == "lanes":
        return EITHER_LANES if in_order(target) else LANES
    return WEIGHT_STATIONARY if target.tensor.dataflow == "weight" else OUTPUT_STATIONARY


def placed(m: Number, n: Number, fm: int, fn: int, rows: int, cols: int, engine: int) -> tuple[Number, Number]:
    """Rows and columns of an mma tile as the engine multiplies them: exchanged where it takes either operand first and
    `rows` x `cols` fragments of fm x fn cover the transposed tile in fewer steps."""
    if engine != EITHER_LANES:
        return m, n
    there, back = -(-m // (fm * rows)) * -(-n // (fn * cols)), -(-n // (fm * rows)) * -(-m // (fn * cols))
    exchanged = (back < there) * 1
    return m + (n - m) * exchanged, n + (m - n) * exchanged


def engine_clk(
    m: Number, n: Number, k: Number, fm: int, fn: int, fk: int, ii: int, rows: int, cols: int, engine: int, gap: int
) -> Number:
    """Cycles that an mma of valid extents m x n x k occupies the engine, excluding operand delivery.

    Lanes start a step every `ii`, and `gap` (the fill of a serial engine) follows. A systolic array works in folds.
    Weight-stationary: ceil(k / R) ceil(n / C) folds that stream m rows, which hide the preload of the next block, a
    cycle for each of its rows, as far as they last; several arrays divide rows, columns and k, whichever way is
    fastest. Output-stationary: ceil(m / R)
    ceil(n / C) folds that stream k. Serial arrays (gap > 0) add preload, skew and drain to every fold, which is
    SCALE-Sim's closed form: 2R + C + m - 2 per weight-stationary fold, R + C + k - 2 per output-stationary fold; its
    last result is one cycle early (`drain_clk`). A sum that the next mma continues is one fold (`continued_clk`).
    """
    mf, nf, kf = -(-m // fm), -(-n // fn), -(-k // fk)
    if engine in (LANES, EITHER_LANES):
        steps = -(-mf // rows) * -(-nf // cols) * kf
        return steps * ii + gap * np.minimum(steps, 1)
    if engine == WEIGHT_STATIONARY:
        arrays, best = rows * cols, np.inf
        last = k - (kf - 1) * fk
        down = arrays
        while down >= 1:
            across = arrays // down
            while across >= 1:
                deep = arrays // (down * across)
                folds, stream = -(-kf // deep), -(-m // down) * ii
                if gap == 0:
                    # an array whose blocks are one more than the others' has the last one, of fewer rows
                    block = fk + (last - fk) * ((kf % deep == 1) | (deep == 1))
                    clk = (folds - 1) * np.maximum(stream, fk) + np.maximum(stream, block)
                else:
                    clk = folds * (stream + 2 * fk + fn - 2)
                best = np.minimum(best, -(-nf // across) * np.minimum(folds, 1) * clk * np.minimum(m, 1))
                across = across // 2
            down = down // 2
        return best
    folds = -(-mf // rows) * -(-nf // cols) * np.minimum(k, 1)
    stream = k * ii
    if gap == 0:
        return folds * stream
    return folds * (stream + fm + fn - 2)


def continued_clk(m: Number, n: Number, fm: int, fn: int, rows: int, cols: int, engine: int, gap: int) -> Number:
    """Cycles that an mma of m x n results saves by continuing the sum of the mma directly before it: a serial
    output-stationary array that holds all of them keeps streaming k, without another skew and drain."""
    if engine != OUTPUT_STATIONARY or gap == 0:
        return 0
    return (fm + fn - 2) * ((m <= fm * rows) & (n <= fn * cols))


def group_rows(rows: int, cols: int, row_tiles: int, col_tiles: int, units: int) -> int:
    """The height, in row tiles, of a group in grouped ordering: tiles of a group are taken column by column, so that
    `units` tiles of rows x cols, running at a time, cover about a square. Groups are nearly even."""
    if col_tiles * row_tiles <= units:
        return row_tiles
    wanted = max(1.0, math.sqrt(units * cols / rows), units / col_tiles)
    return -(-row_tiles // max(1, round(row_tiles / wanted)))


def drain_clk(target: Target, shape: MmaShape, n: int, k: int) -> int:
    """Cycles from the end of the time on the engine of an mma of n columns and a sum of k to its last result: the
    pipeline, and for systolic arrays that do not drain after every fold the first block's preload and the skew over
    rows and columns. Weights of fewer rows and columns than the array has are loaded and left sooner; sums still pass
    all of its rows. The closed form for arrays that drain counts cycles from 0, so their last result arrives a cycle
    before the next fold may begin."""
    if target.tensor.overlap == "serial":
        return 0 if target.tensor.organisation == "lanes" else target.tensor.fill_clk - 1
    skew = {
        LANES: 0,
        EITHER_LANES: 0,
        WEIGHT_STATIONARY: min(k, shape.k) + shape.k + min(n, shape.n) - 2,
        OUTPUT_STATIONARY: shape.m + shape.n - 2,
    }
    return target.tensor.fill_clk + skew[engine_of(target)]


def gap_clk(target: Target) -> int:
    """The `gap` argument of `engine_clk`: 0 on a pipelined engine, the fill of serial lanes, 1 for serial arrays."""
    if target.tensor.overlap == "pipelined":
        return 0
    return target.tensor.fill_clk if target.tensor.organisation == "lanes" else 1


def mma_operand_bytes(
    m: Number, n: Number, k: Number, fm: int, fn: int, fk: int, rows: int, cols: int, engine: int, element_bytes: int
) -> Number:
    """Bytes read from l1: an A fragment is read once per group of `cols` columns of fragments and a B fragment once per
    group of `rows` rows, because lanes of a row or column share them and a lane reuses them (`shared_fragments`).
    Weights that stay in an array are read once."""
    mf, nf, kf = -(-m // fm), -(-n // fn), -(-k // fk)
    a = mf * (-(-nf // cols)) * kf * fm * fk
    groups = np.minimum(mf, rows) if engine == WEIGHT_STATIONARY else -(-mf // rows)
    return (a + nf * groups * kf * fn * fk) * element_bytes


def shared_fragments(target: Target) -> tuple[int, int]:
    """Rows and columns of result fragments that one read of an operand fragment serves."""
    (rows, cols), (down, across) = target.tensor.lane_grid, target.tensor.operand_reuse
    return rows * down, cols * across


def mma_cycles(m: Number, n: Number, k: Number, dtype: DType, target: Target, *, continues: bool = False) -> Number:
    """Cycles that an mma of valid extents m x n x k occupies the tensor engine (issue and drain not included).
    `continues`: it adds to the sum of the mma directly before it."""
    s, (rows, cols), engine = mma_shape(dtype, target), target.tensor.lane_grid, engine_of(target)
    m, n = placed(m, n, s.m, s.n, rows, cols, engine)
    busy = engine_clk(m, n, k, s.m, s.n, s.k, s.ii_clk, rows, cols, engine, gap_clk(target))
    if continues:
        busy = busy - continued_clk(m, n, s.m, s.n, rows, cols, engine, gap_clk(target))
    read = mma_operand_bytes(m, n, k, s.m, s.n, s.k, *shared_fragments(target), engine, s.element_bytes)
    return np.maximum(busy, read / target.l1.bytes_per_clk)


def longer_row(row: int, extent: int, stride: int) -> int:
    """Elements of a transfer's row, contiguous in memory and in the tile, after joining the tile's next outer axis of
    this valid extent and memory stride; 0 if the axis does not join. A clipped axis also ends the row, because it
    leaves a gap in the tile."""
    if extent == 1:
        return row
    return row * extent if stride == row else 0


def flow_cap(fetched: Number, moved: Number, rows: Number, row_clk: float, bytes_per_clk: float) -> Number:
    """Largest rate, in bytes of memory per cycle, of a transfer of `fetched` bytes in `rows` contiguous runs that fill
    `moved` bytes of a tile (more than fetched if an axis is broadcast)."""
    return bytes_per_clk * fetched / np.maximum(np.maximum(moved, rows * row_clk * bytes_per_clk), 1e-9)


def visit_weight(run: Number, pitch: Number, at_random: bool, burst: int, activate: int) -> Number:
    """Bytes of device-memory time that one useful byte costs, in contiguous runs of `run` bytes, `pitch` bytes from one
    to the next.

    A regular stream pays for whole bursts, unless the gaps are so narrow that reading through them is cheaper. Random
    runs pay one activation each, partly hidden by banks: fitted by sqrt(1 + (activate / run)^2) (cycle-accurate HBM2
    and HBM3 simulations: 64 bytes at 0.24 of the rate, 256 bytes at 0.72).
    """
    run = np.maximum(run, 1)
    if at_random:
        return np.sqrt(1.0 + (activate / run) * (activate / run))
    return np.maximum(np.minimum(burst, np.maximum(pitch, run)) / run, 1.0)


def channel_weight(run: int, pitch: int, rows: int, target: Target) -> float:
    """Slowdown factor of a box whose rows conflict in few channels. 1 with hashed addresses; with direct mapping, a
    pitch that is a multiple of channels x interleave puts every row into the same channels."""
    hbm = target.hbm
    if hbm.mapping == "hashed" or rows <= 1:
        return 1.0
    starts = (np.arange(min(rows, 4 * hbm.channels)) * pitch) // hbm.interleave_bytes
    wide = -(-run // hbm.interleave_bytes)
    met = len(np.unique((starts[:, None] + np.arange(min(wide, hbm.channels))[None, :]) % hbm.channels))
    return hbm.channels / met if met < min(hbm.channels, rows * wide) else 1.0


def layout_weight(shape: Sequence[int], strides: Sequence[int], target: Target) -> float:
    """Bytes that an array of these sizes and strides takes in device memory for each of its own: it consists of tiles
    of `hbm.layout_tile` rows and columns. Columns are its last axis or, where that pads less, the one before or the
    first; rows are the axis that pads least."""
    rows, columns = target.hbm.layout_tile
    if rows == columns == 1:
        return 1.0
    order = sorted((i for i, n in enumerate(shape) if n > 1 and strides[i]), key=lambda i: -abs(strides[i]))
    sizes = [shape[i] for i in order]
    if not sizes:
        return 1.0
    across = {0, len(sizes) - 1, max(len(sizes) - 2, 0)}
    return min(
        _padded(sizes[c], columns) * min((_padded(n, rows) for i, n in enumerate(sizes) if i != c), default=1.0)
        for c in across
    )


def _padded(size: int, step: int) -> float:
    """The next multiple of `step` over `size`."""
    return -(-size // step) * step / size


def hbm_bytes_per_clk(target: Target) -> float:
    """Sustained bandwidth of long reads, in bytes per cycle."""
    return target.hbm.gbs * target.hbm.efficiency * (1.0 - target.hbm.refresh) * target.clk_ns


def mixed_rate(rate: float, reads: float, writes: float, turnaround: float) -> float:
    """Rate of device memory when `reads` and `writes` (in any unit) share it: 1 - turnaround at an even mix, in
    proportion to the chance that two neighbouring accesses differ in direction."""
    total = reads + writes
    if total <= 0:
        return rate
    return rate * (1.0 - turnaround * 4.0 * reads * writes / (total * total))


def stream_rate(streams: int, banks: int, interleave: int, activate: int) -> float:
    """Remaining share of device-memory bandwidth with this many live streams of one direction.

    A stream reads `interleave` bytes of a row per visit to a channel. The row is still open if no other stream has used
    the same of the channel's `banks` meanwhile; otherwise the visit pays an activation like random rows
    (`visit_weight`). The sustained rate of long reads is measured with one stream per unit, so the simulator takes this
    share relative to that case."""
    if streams <= 1:
        return 1.0
    closed = (1.0 - (1.0 - 1.0 / banks) ** (streams - 1)) * activate / interleave
    return float(1.0 / np.sqrt(1.0 + closed * closed))


def mesh_of(target: Target) -> tuple[int, int]:
    """Columns and rows of the mesh of CEs: as square as their number allows."""
    ces = target.ces
    width = next(w for w in range(int(ces**0.5), 0, -1) if ces % w == 0)
    return width, ces // width


def mesh_bytes_per_clk(target: Target) -> float:
    """Total on-chip network bandwidth to all CEs, with uniform traffic from distributed memories.

    On a mesh with k routers per side, the busiest link of a row carries k / 4 times the traffic of one CE, (k - 1 / k)
    / 4 for odd k (uniform traffic under dimension-order routing: Dally and Towles 2004, section 3.3). A crossbar or a
    single router is limited only by its ports."""
    if target.noc.kind != "mesh":
        return float(target.noc.ce_port_bytes_per_clk * target.ces)
    load = max((k if k % 2 == 0 else k - 1 / k) / 4 for k in mesh_of(target))
    return target.noc.link_bytes_per_clk * target.ces / load if load else float("inf")


@functools.lru_cache(maxsize=1024)
def l2_bytes_per_clk(target: Target) -> float:
    """Total l2 bandwidth to all units, through the on-chip network."""
    return min(float(target.l2.bytes_per_clk_total), mesh_bytes_per_clk(target))


def hop_offsets(target: Target) -> np.ndarray:
    """Deviation from the mean, in cycles, of each CE's round trip to l2 and the memory controllers, [CEs]. On a mesh,
    slices are hashed over all routers, so a CE's distance is its mean over the grid; elsewhere all distances are
    equal."""
    ces = target.ces
    if target.noc.kind != "mesh":
        return np.zeros(ces)
    y, x = np.divmod(np.arange(ces), mesh_of(target)[0])
    hops = (np.abs(x[:, None] - x) + np.abs(y[:, None] - y)).mean(1)
    return np.asarray(2.0 * target.noc.hop_clk * (hops - hops.mean()))


def latency_clk(space: Space, target: Target) -> float:
    """Cycles from a request to the first byte from a memory. Host memory has the latency of device memory."""
    return (target.l2.latency_ns if space is Space.L2 else target.hbm.latency_ns) / target.clk_ns


__all__ = [
    "EITHER_LANES",
    "LANES",
    "OUTPUT_STATIONARY",
    "WEIGHT_STATIONARY",
    "MmaShape",
    "channel_weight",
    "continued_clk",
    "drain_clk",
    "engine_clk",
    "engine_of",
    "flow_cap",
    "gap_clk",
    "group_rows",
    "hbm_bytes_per_clk",
    "hop_offsets",
    "in_order",
    "latency_clk",
    "layout_weight",
    "longer_row",
    "mixed_rate",
    "mma_cycles",
    "mma_operand_bytes",
    "mma_shape",
    "placed",
    "shared_fragments",
    "stream_rate",
    "visit_weight",
]
