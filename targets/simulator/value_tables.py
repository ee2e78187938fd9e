"""The arrays of the value loop: what an instruction reads and writes (Plans), and what is in progress (Progress).

Rows are classes as in records.py. Sizes: I instructions, T operands, B boxes, ND dimensions of a view, NA axes of
a tile, D loop depths, S streams, U units, F instructions in flight, W columns of a log row from LOG_ENV on, L lanes.

An instruction in flight holds what it has read, or computed, in a block of memory until it completes. Products and
vector programs are computed many at a time: operands gather in the lane of their instruction (`Lane`), one stack for
each operand, until the numbers are needed.

Invariant: addresses are those of arrays that SegmentValues keeps.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ppuc.targets.simulator import records as rec
from ppuc.targets.simulator.tables import IN_FLIGHT

LANES = 16
"""Instructions of other numbers share a lane, one at a time."""

LANE_BYTES = 1 << 20
"""Operands in a lane: as many as stay in a core's cache while they are computed, and at least one set."""

MOST_TOGETHER = 256
"""Instances in a lane."""

MOST_PENDING = 2048
"""Instances in all lanes."""

SMALLEST_BLOCK = 64
"""Bytes of a block of size class 0; those of each class are twice those of the one before."""

CLASSES = 32
"""Size classes of blocks."""

CHUNK = 1 << 20
"""Bytes of memory that blocks are taken from at a time, at least."""


class Step(Protocol):
    """An instruction: `kind` (CALL: executed by a function), the block that it needs (`size` bytes, of size class
    `order`), its operands and those among them that it reads (a load: the slot that it fills), the box that it moves
    (-1: none) in the memory at an address, bits of the padding; the index list's element size, whether it is signed,
    and its length (0: no list). `low` to `high`: addresses that a load reads or a store or call writes. `late`: a load
    that is read on completion, unless a write comes before. Of products and vector programs: the lane, how many fit it,
    loops that restart a sum (as Product), rows of keys and where they lie in the lane, whether operands are in acc, and
    whether sums are of floats."""

    kind: int
    size: int
    order: int
    tile_lo: int
    tile_hi: int
    read_lo: int
    read_hi: int
    box: int
    memory: int
    pad: int
    index_size: int
    index_signed: int
    indices: int
    low: int
    high: int
    late: int
    lane: int
    capacity: int
    restart: int
    key_lo: int
    key_hi: int
    keys: int
    acc: int
    floats: int


class Tile(Protocol):
    """An operand: address of its first slot of unit 0, bytes from unit to unit and from slot to slot, bytes of a tile;
    if it is read, the box that is read (-1: the whole tile), its bytes and, of products and vector programs, where its
    stack begins in the lane."""

    at: int
    unit: int
    slot: int
    size: int
    box: int
    part: int
    stack: int


class Patch(Protocol):
    """A box: dimensions of its view, axes of the tile, bytes of an element and offset of the first in bytes; its runs
    (`Run`), the number of times that the last is repeated; the gathered dimension and axis (-1: none)."""

    dims: int
    axes: int
    width: int
    first: int
    runs: int
    times: int
    gather_dim: int
    gather_axis: int


class Side(Protocol):
    """A dimension of a box's view: constant of the offset, lowest and highest reach of the tile, size, stride in bytes
    of the offset (0 if gathered) and of the index list."""

    const: int
    low: int
    high: int
    size: int
    stride: int
    gathered: int


class Run(Protocol):
    """Axis of a tile, or several that lie in memory like one: size, stride in bytes."""

    size: int
    stride: int


class Key(Protocol):
    """A number on which a vector program depends: an affine of the loops, clamped."""

    const: int
    low: int
    high: int


class Plans(NamedTuple):
    """A segment's instructions."""

    step: np.ndarray  # [I] Step
    tile: np.ndarray  # [T] Tile
    patch: np.ndarray  # [B] Patch
    side: np.ndarray  # [B, ND] Side
    coef: np.ndarray  # [B, ND, D] factors of the loops in a dimension's offset
    axis: np.ndarray  # [B, NA] Run of each axis alone
    factor: np.ndarray  # [B, ND, NA] how axes move along dimensions
    run: np.ndarray  # [B, NA] Run
    key: np.ndarray  # [.] Key
    key_coef: np.ndarray  # [., D]


class Core(Protocol):
    """State of the loop over the log: its next row (`row`), instances in lanes (`pending`), first unused byte of the
    memory for blocks (`free`) and its `end`, bytes that the results in lanes `need`, whether lanes were `computed`, the
    size class of the last block asked for (`order`), and the instruction in flight whose operands are read next: its
    stream (`reader`, -1: none) and its `place` among those of the stream."""

    row: int
    pending: int
    free: int
    end: int
    need: int
    computed: int
    order: int
    reader: int
    place: int


class Lane(Protocol):
    """The instruction that uses it, its instances, whether their keys differ, and the address of the lane."""

    owner: int
    count: int
    mixed: int
    at: int


class Queue(Protocol):
    """Instructions in flight of a stream: place of the oldest, how many."""

    oldest: int
    count: int


class Flight(Protocol):
    """An instruction in flight: its block's address (0: none yet), its row in `pending` (-1: none), and whether it
    begins a sum."""

    instr: int
    block: int
    entry: int
    fresh: int


class Pending(Protocol):
    """An instance in a lane: where it is in flight; whether it has completed, and then the address of its sum and
    whether it begins it. Only products complete before they are computed."""

    instr: int
    index: int
    stream: int
    place: int
    done: int
    acc: int
    fresh: int


class Progress(NamedTuple):
    """What is in progress."""

    core: np.ndarray  # [1] Core
    lane: np.ndarray  # [L] Lane
    result: np.ndarray  # [L, results] addresses of the stacks that a lane's instances computed
    queue: np.ndarray  # [S] Queue
    flight: np.ndarray  # [S, F] Flight
    values: np.ndarray  # [S, F, W] loop values and slots of instructions in flight
    pending: np.ndarray  # [MOST_PENDING] Pending
    sums: np.ndarray  # [U] products of a unit in lanes
    blocks: np.ndarray  # [CLASSES] first free block of each size class (0: none), which holds the address of the next
    position: np.ndarray  # [ND] scratch
    counts: np.ndarray  # [NA] scratch


def new_progress(plans: Plans, streams: int, units: int, width: int, results: int) -> Progress:
    """Nothing in progress; `width` is W, `results` the most results of an instruction."""
    core = rec.rows(Core, 1)
    core["reader"] = -1
    return Progress(
        core=core,
        lane=rec.rows(Lane, LANES),
        result=np.zeros((LANES, max(results, 1)), np.int64),
        queue=rec.rows(Queue, streams),
        flight=rec.rows(Flight, streams, IN_FLIGHT + 1),
        values=np.zeros((streams, IN_FLIGHT + 1, width), np.int64),
        pending=rec.rows(Pending, MOST_PENDING),
        sums=np.zeros(units, np.int64),
        blocks=np.zeros(CLASSES, np.int64),
        position=np.zeros(plans.side.shape[1], np.int64),
        counts=np.zeros(plans.axis.shape[1], np.int64),
    )
