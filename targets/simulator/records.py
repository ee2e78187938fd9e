"""The rows of the event loop's tables, each declared once as a class with documented fields; the numpy dtype derives
from it.

Compiled code reads `table[i].field`; numpy code reads `table["field"][i]`. Compiled functions pass a row as one
pointer, which keeps compile time low: one table per field multiplied the arguments of every call.

Invariant: every field is an int64 or a float64, so rows are aligned and have no padding.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

# Segments.


class Node(Protocol):
    """One node of a stream: NODE_* and the kernel, loop or instruction it is about."""

    op: int
    arg: int


class Kernel(Protocol):
    """`units` from unit `first` on run the kernel. `around` loops enclose a tile that is distributed in order (-1: by
    the grid), with `slots` tiles in flight; `group_rows` iterations of the last but one of these loops are taken before
    the next of the last; `end*` is the first node after the kernel, by queue."""

    units: int
    first: int
    around: int
    slots: int
    group_rows: int
    end_load: int
    end_store: int
    end_tensor: int
    end_vector: int


class Loop(Protocol):
    """A loop of a stream; `axis` of the grid that distributes it or -1, `body` its first node, `after` the node after
    it, `root` the node of the outermost loop around it."""

    start: int
    stop: int
    step: int
    axis: int
    depth: int
    body: int
    after: int
    kernel: int
    root: int


class Instruction(Protocol):
    """`kernel` -1: a copy. `queue` is an index into UNIT_QUEUES, 4 for stage queues. `desc` is a row of the table of
    its kind's descriptions. `second` is a copy's destination memory. `done_mask`: the loops in their last iteration at
    the kernel's own bump. `ends_tile`: the last store of a tile. `*_lo`, `*_hi`: rows of uses, syncs and operands."""

    kernel: int
    queue: int
    kind: int
    depth: int
    desc: int
    memory: int
    second: int
    done_mask: int
    tensor: int
    ends_tile: int
    use_lo: int
    use_hi: int
    wait_lo: int
    wait_hi: int
    bump_lo: int
    bump_hi: int
    op_lo: int
    op_hi: int


class Use(Protocol):
    """A claim, push, wait or pop (`kind`) of a ring slot by an instruction; `mask`: the loops that must be in their
    first or last iteration."""

    kind: int
    ring: int
    mask: int


class Sync(Protocol):
    """A wait for, or bump of, a counter group: the whole group, or the touched blocks."""

    group: int
    touched: int


class Operand(Protocol):
    """A ring that an instruction reads or writes."""

    ring: int
    written: int


class Box(Protocol):
    """The box of a load or store: dimensions of the view, axes of the tile, bytes and number of the first element, the
    gathered dimension and axis (-1: none), and what each byte counts in device memory for channel conflicts and the
    padding of the layout."""

    dims: int
    axes: int
    size: int
    first: int
    gather_dim: int
    gather_axis: int
    weight: float


class BoxDim(Protocol):
    """A dimension of a box's view: size and stride, constant of the offset, lowest and highest reach of the tile, and
    up to two tile axes that move along it with their factors (-1: none)."""

    size: int
    stride: int
    const: int
    low: int
    high: int
    axis_1: int
    factor_1: int
    axis_2: int
    factor_2: int


class BoxAxis(Protocol):
    """A tile axis of a box: size and stride in elements, the axis that is i-th by stride, the dimension it moves along
    (-1: none) and by how much."""

    size: int
    stride: int
    order: int
    dim: int
    factor: int


class Range(Protocol):
    """A copy's first element, elements, and bytes of one."""

    first: int
    count: int
    size: int


class Extent(Protocol):
    """A tile axis of an mma or vec: constant of its offset, limit (NO_BOUND: none), size."""

    const: int
    limit: int
    size: int


class Product(Protocol):
    """An mma: its first extent, numbers of m, n and k axes, fragment, interval, bytes of an operand element, the loops
    that restart it, whether it directly follows the mma whose sum it continues (itself, an iteration earlier), and
    cycles from the end of its time on the engine to its last result."""

    extent: int
    m_axes: int
    n_axes: int
    k_axes: int
    m: int
    n: int
    k: int
    interval: int
    size: int
    restart: int
    follows: int
    drain: int


class Vector(Protocol):
    """A vec: its first extent, its axes, rows of terms and traffic."""

    extent: int
    axes: int
    term_lo: int
    term_hi: int
    traffic_lo: int
    traffic_hi: int


class Term(Protocol):
    """A step of a vector program: elements are `count` times the extents of `mask` (two bits an axis)."""

    count: int
    mask: int
    lane_ops: int
    sfu_ops: int
    tail: int


class Moved(Protocol):
    """Traffic of a vector program, `size` bytes an element; `where` is 2 * (space is acc) + written."""

    count: int
    mask: int
    size: int
    where: int


class Ring(Protocol):
    """A ring: slots, its consumers as a mask of queues, its producer, rows of the rings to retire before its first
    claim."""

    depth: int
    consumers: int
    producer: int
    after_lo: int
    after_hi: int


class Group(Protocol):
    """A counter group: first counter, elements of a block, counters, number of its first block (counters.py)."""

    first: int
    block: int
    count: int
    at: int


# Machines.


class Numbers(Protocol):
    """The target's numbers in cycles and bytes per cycle. `engine` and `gap` as in cost.engine_clk, `shared_*` as in
    cost.shared_fragments; `whole_tiles`: an mma takes the time of a whole tile, regardless of valid extents;
    `dispatch`: cycles between the starts of two units; `open_rows`: cost.stream_rate of one stream a unit."""

    units: int
    ces: int
    cu_per_ce: int
    lane_rows: int
    lane_cols: int
    shared_rows: int
    shared_cols: int
    lanes: int
    sfu: int
    sfu_beside_lanes: int
    engine: int
    gap: int
    whole_tiles: int
    burst: int
    activate: int
    banks: int
    interleave: int
    cached: int
    write_back: int
    multicast: int
    issue: float
    ring_op: float
    l1_rate: float
    acc_rate: float
    turnaround: float
    l2_bytes: float
    dispatch: float
    bump: float
    open_rows: float


class Mover(Protocol):
    """Start-up cost of an instruction kind, cost per contiguous row, and its engine's width; `room`: maximum
    instructions in flight in the queue of this number."""

    start: float
    row: float
    rate: float
    room: int


# State of a run.


class Core(Protocol):
    """The run as a whole: time, next end of a data phase, rate of device memory now, bytes that entered a cached l2;
    sizes of heap, active flows, stack, log and wakes; how often active flows cross device memory, and how many of them
    write it; bits of a stream's number in the heap; streams done; whether shares are outdated or oversubscribed and the
    log is on; oldest and next row of dirty bytes."""

    now: float
    finish: float
    hbm_rate: float
    entered: float
    heap: int
    flows: int
    stack: int
    log: int
    wakes: int
    streams: int
    writers: int
    stream_bits: int
    done: int
    stale: int
    over: int
    logging: int
    dirty_from: int
    dirty_to: int


class Watch(Protocol):
    """Where to pause: when `stream` is at node `pc` or later and has issued `next` instructions."""

    stream: int
    pc: int
    next: int


class Stream(Protocol):
    """A queue. `unit` and `ce` (a stage queue: -1 and one beyond the last), `port` and `link` its bandwidth resources;
    `pc` its node, `head` the instruction that tries to issue (-1: to be found) with its masks of loops in their first
    and last iteration, the next ring use and counter wait to satisfy, and its box once `measured`: elements moved and
    fetched, in runs of memory and in rows that are runs of the tile too, first and last, from run to run. `tile` is the
    tile that it is at. `cause` (B_*) and `what` block the head. Instructions in flight are numbered `oldest`, `data`
    (in its data phase) to `next`. `mark`: stalls are accounted up to then. `l1`: bytes per cycle of l1 that a compute
    engine takes. `flow` is the column of its active data phase in the tables of flows (-1: none), begun at `began`."""

    unit: int
    ce: int
    port: int
    link: int
    pc: int
    head: int
    first: int
    last: int
    use: int
    wait: int
    measured: int
    moved: int
    fetched: int
    run: int
    row: int
    low: int
    high: int
    pitch: int
    tile: int
    cause: int
    what: int
    waking: int
    waiter: int
    oldest: int
    data: int
    next: int
    flow: int
    free_at: float
    mark: float
    l1: float
    began: float


class Place(Protocol):
    """Position of a stream in one of its loops: value of the variable, iteration, trip count."""

    at: int
    it: int
    trips: int


class Coordinate(Protocol):
    """A stream's coordinate on a grid axis and the axis' size."""

    coord: int
    radix: int


class Flight(Protocol):
    """An instruction in flight: its box, its bytes of memory and of l1, the memory that serves it, the earliest time of
    its data phase, its limits, its completion time."""

    instr: int
    last: int
    low: int
    high: int
    bytes: int
    l1: int
    memory: int
    ready: float
    cap: float
    weight: float
    land: float


class Filled(Protocol):
    """A ring of a unit: slots claimed, pushes issued, pushes completed."""

    claimed: int
    filled: int
    pushed: int


class Reader(Protocol):
    """A queue's waits, pops issued and pops completed on a ring."""

    waited: int
    released: int
    popped: int


class Listed(Protocol):
    """Row i of two lists: streams whose heads to try, streams whose heads were woken."""

    stack: int
    wake: int


class Cached(Protocol):
    """A tile in a cached l2, its last read (in bytes entered), and a tile whose read neighbours may share with its
    unit; and a row of the list of dirty bytes: time of writing and size."""

    key: int
    at: float
    near: int
    near_by: int
    dirty_at: float
    dirty: float


class Stat(Protocol):
    """Totals over the instances of an instruction: their number, bytes of memory, bytes of l1 and acc read and written,
    multiply-accumulates, engine cycles, fragments of results and of products, bytes that a cached l2 served or took,
    bytes written back for them, lane operations, special functions; cycles busy and of those waiting for l1 and acc;
    first start and last end."""

    n: int
    bytes: int
    l1_read: int
    l1_written: int
    acc_read: int
    acc_written: int
    macs: int
    engine: int
    results: int
    products: int
    held: int
    evicted: int
    lane_ops: int
    sfu_ops: int
    busy: float
    operands: float
    start: float
    end: float


def dtype_of(row: type) -> np.dtype:
    """The numpy dtype of a class of this file."""
    codes = {"int": "i8", "float": "f8"}
    return np.dtype([(name, codes[kind]) for name, kind in row.__annotations__.items()], align=True)


def rows(row: type, *shape: int) -> np.ndarray:
    """Zeros of `row`'s dtype."""
    return np.zeros(shape, dtype_of(row))


def table(row: type, values: list[tuple[float, ...]]) -> np.ndarray:
    """`values` as rows, fields in their order; [0] when there are none."""
    return np.array(values, dtype_of(row))
