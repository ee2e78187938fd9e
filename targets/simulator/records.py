"""The rows of the event loop's tables, each declared once: as a class that says what the fields mean, and as the numpy
dtype derived from it.

Compiled code reads `table[i].field`; numpy code reads `table["field"][i]`. A row passes between compiled functions as
one pointer, which is what keeps compiling them affordable: a table a field multiplied the arguments of every call.

Invariant: every field is an int64 or a float64, so rows are aligned and have no padding.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

# What a segment is.


class Node(Protocol):
    """One node of a stream: NODE_* and the kernel, loop or instruction it is about."""

    op: int
    arg: int


class Kernel(Protocol):
    """`around` loops stand around a tile that is dealt in order (-1: the grid deals), `slots` such tiles are under way;
    `together` iterations of the last but one of these loops are dealt before the next of the last; `end*` is the first
    node after the kernel, by queue."""

    units: int
    around: int
    slots: int
    together: int
    end_load: int
    end_store: int
    end_tensor: int
    end_vector: int


class Loop(Protocol):
    """A loop of a stream; `axis` of the grid that deals it or -1, `body` its first node, `after` the node after it,
    `root` the node of the outermost loop around it."""

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
    its kind's descriptions. `second` is a copy's destination memory. `done_mask`: the loops that are in their last
    iteration when the kernel's own bump happens. `ends_tile`: the last store of a tile. `*_lo`, `*_hi`: rows of uses,
    syncs and operands."""

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
    """An instruction claims, pushes, waits for or pops (`kind`) a slot of a ring; `mask`: the loops that must be in
    their first or last iteration for it."""

    kind: int
    ring: int
    mask: int


class Sync(Protocol):
    """A wait for, or bump of, a counter group: all of it, or the blocks touched."""

    group: int
    touched: int


class Operand(Protocol):
    """A ring that an instruction reads or writes."""

    ring: int
    written: int


class Box(Protocol):
    """What a load or store moves: dimensions of the view, axes of the tile, bytes and number of the first element,
    the gathered dimension and axis (-1: none), and how many times slower its rows are for meeting in few channels."""

    dims: int
    axes: int
    size: int
    first: int
    gather_dim: int
    gather_axis: int
    channels: float


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
    that restart it, and cycles from the end of its time on the engine to its last result."""

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
    """A counter group: first counter, elements of a block, counters."""

    first: int
    block: int
    count: int


# What the machine is.


class Numbers(Protocol):
    """The target's numbers in cycles and bytes per cycle. `engine` and `gap` as in cost.engine_clk, `shared_*` as in
    cost.shared_fragments; `whole_tiles`: an mma takes the time of a whole tile, whatever part of it is valid;
    `dispatch`: cycles from one unit's begin to the next one's; `open_rows`: cost.stream_rate of one stream a unit."""

    units: int
    ces: int
    cu_per_ce: int
    lane_rows: int
    lane_cols: int
    shared_rows: int
    shared_cols: int
    lanes: int
    sfu: int
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
    """What an instruction kind costs to start and per contiguous row, and its engine's width; `room`: how many of the
    queue of this number may be under way."""

    start: float
    row: float
    rate: float
    room: int


# Where a run stands.


class Core(Protocol):
    """The run as a whole: time, next end of a data phase, rate of device memory now, bytes that entered a cached l2;
    sizes of heap, active flows, stack, log and wakes; streams done; whether shares are outdated, were oversubscribed,
    the log is on; the node of stream 0 to stop at; oldest and next row of dirty bytes."""

    now: float
    finish: float
    hbm_rate: float
    entered: float
    heap: int
    flows: int
    stack: int
    log: int
    wakes: int
    done: int
    stale: int
    over: int
    logging: int
    pause: int
    dirty_from: int
    dirty_to: int


class Stream(Protocol):
    """A queue. `unit` and `ce` (a stage queue: -1 and one beyond the last), `port` and `link` its bandwidth resources;
    `pc` its node, `head` the instruction that tries to issue (-1: to be found) with its masks of loops in their first
    and last iteration, the next ring use and counter wait to satisfy, and its box once `measured`: elements moved and
    fetched, in runs of memory and in rows that are runs of the tile too, first and last, from run to run. `tile` is
    the tile that it is at. `cause` (B_*) and `what` block the head. Instructions under way are numbered `oldest`,
    `data` (in its data phase) to `next`. `mark`: stalls are accounted until then. `l1`: bytes a cycle that a compute
    engine takes of l1.
    The rest is the active data phase."""

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
    flowing: int
    memory: int
    second: int
    free_at: float
    mark: float
    l1: float
    rem: float
    upd: float
    rate: float
    cap: float
    weight: float
    fin: float
    began: float
    fix: float


class Place(Protocol):
    """Where a stream is in one of its loops: value of the variable, iteration, iterations."""

    at: int
    it: int
    trips: int


class Seat(Protocol):
    """A stream's coordinate on a grid axis and the axis' size."""

    coord: int
    radix: int


class Flight(Protocol):
    """An instruction under way: its box, its bytes of memory and of l1, the memory that serves it, when its data may
    flow, its limits, when it lands."""

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
    """Row i of four lists of streams: heads to try, active flows, heads woken, flows that water filling is at."""

    stack: int
    flow: int
    wake: int
    sub: int


class Event(Protocol):
    """An event of the heap: time, kind and stream."""

    time: float
    code: int


class Share(Protocol):
    """A bandwidth resource during water filling: what is left, and the weight of the flows that still grow."""

    left: float
    load: float


class Cached(Protocol):
    """A tile that a cached l2 holds, when it was last read (in bytes entered), and a tile whose read neighbours may
    share with its unit; and a row of the list of dirty bytes: when they were written, how many."""

    key: int
    at: float
    near: int
    near_by: int
    dirty_at: float
    dirty: float


class Stat(Protocol):
    """What the instances of an instruction did: their number, bytes of memory, bytes of l1 and acc read and written,
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
