"""The arrays that the event loop runs on: what a segment is (Code), what the machine is (Machine), where a run stands
(State).

Everything is a NamedTuple of numpy arrays, because numba passes those by reference without boxing. Sizes: S streams
(4 per unit, in the order of UNIT_QUEUES, then the stage queues), U units, K kernels, I instructions, R rings, D loop
depths, B boxes, G counter groups. `*_ptr` arrays are row starts of ragged tables.

Invariant: Code and Machine are never written during a run; State holds all of a run, so the loop may return at any
event (to hand over a full log) and continue later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LOAD, STORE, MMA, VEC, COPY = range(5)
"""Instruction kinds."""

NODE_KERNEL, NODE_LOOP, NODE_END, NODE_INSTR, NODE_STOP = range(5)
"""Node kinds of a stream."""

CLAIM, PUSH, WAIT, POP = range(4)
"""Ring uses."""

DATA, SPACE, BANDWIDTH, LATENCY, SYNC = range(5)
"""Stall causes, in the order of result.STALL_CAUSES."""

B_NONE, B_DATA, B_SPACE, B_AFTER, B_COUNTER, B_ROOM, B_BLOCK = range(7)
"""What blocks the head of a stream: a filled slot, a free slot, rings to retire, counters, room in its queue, an
earlier tile of its kernel (targets that run tiles as blocks)."""

MEM_HBM, MEM_L2, MEM_HOST = range(3)
"""Memories as bandwidth resources; CE ports and unit ports follow."""

CACHE_ENTRIES = 1 << 16
"""Tiles that a cached l2 remembers; one that falls on another's entry evicts it."""

IN_FLIGHT = 32
"""Most instructions of one stream that are under way."""

LOG_END, LOG_STREAM, LOG_INSTR, LOG_FIRST, LOG_LAST, LOG_FROM, LOG_TO, LOG_ENV = range(8)
"""Columns of a log row: 0 for a start, 1 for a completion, 2 when a store has read its slot but not landed (1 and 2:
only the stream follows); stream, instruction, masks of the loops in their first and last iteration, first and last
element of a transfer's box, then loop values, then the slot of each operand."""

NO_BOUND = np.iinfo(np.int64).max
"""Limit of an axis that is always wholly valid."""


class Code(NamedTuple):
    """A flattened segment."""

    # streams: nodes of all queues, one after another
    node_op: np.ndarray  # [N]
    node_arg: np.ndarray  # [N] kernel, loop or instruction
    stream_pc: np.ndarray  # [S] first node
    # kernels
    k_units: np.ndarray  # [K]
    k_radix: np.ndarray  # [K, A] size of each grid axis (1 where absent)
    k_end: np.ndarray  # [K, 5] first node after the kernel, by queue kind
    k_block: np.ndarray  # [K, 2] loops around a tile that is dealt in order (-1: the grid deals), tiles under way
    k_trips: np.ndarray  # [K, D] iterations of the loops around a tile (1 elsewhere)
    # loops
    # start, stop, step, axis or -1, depth, first node of the body, node after the loop, kernel, node of the outermost
    # loop
    lp: np.ndarray  # [L, 9]
    # instructions
    ins: (
        np.ndarray
    )  # [I, 10] kernel (-1: copy), queue, kind, depth, descriptor, memory, second memory or -1, done-bump mask, tensor
    # of a transfer, whether it is the last store of a tile
    use_ptr: np.ndarray  # [I + 1]
    use: np.ndarray  # [., 3] ring use, ring, loop mask
    wt_ptr: np.ndarray  # [I + 1]
    wt: np.ndarray  # [., 2] group, touched
    bp_ptr: np.ndarray  # [I + 1]
    bp: np.ndarray  # [., 2] group, touched
    op_ptr: np.ndarray  # [I + 1]
    op: np.ndarray  # [., 2] ring, written
    # boxes of loads and stores; copies use bx_copy
    bx: np.ndarray  # [B, 6] view dims, tile axes, element bytes, first element, gathered dim or -1, gathered axis or -1
    bx_dim: np.ndarray  # [B, ND, 5] size, stride, constant of the offset, lowest and highest reach of the tile
    bx_coef: np.ndarray  # [B, ND, D] factors of the loop variables in the offset
    bx_pair: np.ndarray  # [B, ND, 4] up to two tile axes that move along the dim and their factors (-1: none)
    bx_channels: np.ndarray  # [B] how many times slower the box's rows are for meeting in few channels
    bx_axis: np.ndarray  # [B, NA, 5] size, stride in elements, j-th axis by stride, dimension it moves along, factor
    cp: np.ndarray  # [C, 3] copies: first element, elements, element bytes
    # bounds of mma and vec axes
    bd: np.ndarray  # [Q, 3] constant of the offset, limit (NO_BOUND: none), size
    bd_coef: np.ndarray  # [Q, D]
    mma: (
        np.ndarray
    )  # [M, 11] first bound, m axes, k axes, fragment m, n, k, interval, element bytes, start mask, n axes, drain
    vec: np.ndarray  # [V, 6] first bound, axes, first term, end of terms, first traffic, end of traffic
    term: np.ndarray  # [T, 5] constant, axis mask, lane operations, special functions, tail
    traffic: np.ndarray  # [., 4] constant, axis mask, bytes, 2 * (space is acc) + written
    # rings
    rg: np.ndarray  # [R, 3] depth, consumer mask, producer
    af_ptr: np.ndarray  # [R + 1]
    af: np.ndarray  # [.] rings to retire before the first claim
    rg_total: np.ndarray  # [U, R] pushes that the unit will make
    # counters
    gp: np.ndarray  # [G, 3] first counter, block elements, counters
    expect: np.ndarray  # [counters]


class Machine(NamedTuple):
    """The target's numbers in cycles and bytes per cycle."""

    units: int
    ces: int
    cu_per_ce: int
    lane_rows: int
    lane_cols: int
    lanes: int
    sfu: int
    issue: float
    ring_op: float
    engine: int  # cost.LANES, WEIGHT_STATIONARY or OUTPUT_STATIONARY
    gap: int  # cost.gap_clk
    whole_tiles: bool  # an mma takes the time of a whole tile, whatever part of it is valid
    l1_rate: float
    acc_rate: float
    burst: int
    activate: int
    turnaround: float
    cached: bool
    multicast: bool
    l2_bytes: float
    start: np.ndarray  # [5] start cost by instruction kind (load, store, -, -, copy)
    row: np.ndarray  # [5]
    rate: np.ndarray  # [5] engine width
    room: np.ndarray  # [5] instructions in flight, by queue
    latency: np.ndarray  # [3] by memory
    hop: np.ndarray  # [units] cycles that a unit's round trips take beyond the mean
    dispatch: float  # cycles from one unit's begin to the next one's
    bump: float
    capacity: np.ndarray  # [3 + CEs + units] bytes per cycle of each resource


class State(NamedTuple):
    """A run in progress."""

    now: np.ndarray  # [4] time, next flow's finish, rate of device memory now, bytes that entered a cached l2
    # heap size, active flows, stack size, log size, streams done, shares outdated, was oversubscribed, log on, wakes
    num: np.ndarray  # [9]
    pc: np.ndarray  # [S]
    env: np.ndarray  # [S, D] loop variables
    it: np.ndarray  # [S, D] iteration numbers
    trips: np.ndarray  # [S, D]
    tile: np.ndarray  # [S] number of the tile that the stream is at (kernels whose tiles run as blocks)
    coord: np.ndarray  # [S, A] position in the kernel's grid
    radix: np.ndarray  # [S, A] size of its axes
    block: np.ndarray  # [S, 2] cause (B_*), ring or group
    wakes: np.ndarray  # [S] streams whose heads are to try again
    waking: np.ndarray  # [S] whether a stream is among them
    free_at: np.ndarray  # [S] when the engine is free
    mark: np.ndarray  # [S] transfer engines: accounted until
    q: np.ndarray  # [S, 3] in-flight positions: oldest, data phase, next
    q_i: np.ndarray  # [S, IN_FLIGHT, 6] instruction, last-iteration mask, first and last element, bytes, memory
    q_f: np.ndarray  # [S, IN_FLIGHT, 4] ready, cap, weight, landing
    flowing: np.ndarray  # [S]
    rem: np.ndarray  # [S] bytes left, at `upd`
    upd: np.ndarray  # [S]
    rate: np.ndarray  # [S]
    cap: np.ndarray  # [S]
    wgt: np.ndarray  # [S]
    fin: np.ndarray  # [S]
    began: np.ndarray  # [S]
    mem: np.ndarray  # [S, 2]
    act: np.ndarray  # [S] streams with an active flow
    dirty: np.ndarray  # [CEs + 1]
    claimed: np.ndarray  # [U, R]
    filled: np.ndarray  # [U, R] pushes issued
    pushed: np.ndarray  # [U, R] pushes completed
    waited: np.ndarray  # [U, R, 4]
    released: np.ndarray  # [U, R, 4] pops issued
    popped: np.ndarray  # [U, R, 4] pops completed
    counter: np.ndarray  # [counters]
    tiles: np.ndarray  # [U, K] tiles that are stored
    cache_key: np.ndarray  # [CACHE_ENTRIES] or [1]
    cache_at: np.ndarray  # same: now[3] when the tile was last read
    near_key: np.ndarray  # [CACHE_ENTRIES] or [1] tile and CE of a read that neighbours may share
    near_by: np.ndarray  # same: the unit that read
    g_head: np.ndarray  # [G] first stream that waits for the group
    g_next: np.ndarray  # [S]
    stack: np.ndarray  # [2S] streams to try
    heap_t: np.ndarray
    heap_c: np.ndarray
    # scratch
    cnt: np.ndarray  # [16] valid extents
    box: np.ndarray  # [6] moved, fetched, run elements, first and last element, elements from run to run
    left: np.ndarray  # [resources]
    load: np.ndarray  # [resources]
    sub: np.ndarray  # [S]
    fix: np.ndarray  # [S]
    demand: np.ndarray  # [CEs + 1, 3]
    # statistics
    k_start: np.ndarray  # [K + 1]
    # instances, bytes, l1 read, written, acc read, written, macs, engine cycles, fragments of results, of products,
    # bytes that a cached l2 held
    n: np.ndarray  # [I, 11]
    ops: np.ndarray  # [I, 2] lane operations, special functions
    busy: np.ndarray  # [I]
    stall: np.ndarray  # [I, 5]
    span: np.ndarray  # [I, 2] first start, last end
    # log
    log_t: np.ndarray  # [N]
    log_i: np.ndarray  # [N, LOG_ENV + D + operands]


def ints(*shape: int) -> np.ndarray:
    """Zeros, int64."""
    return np.zeros(shape, np.int64)


def floats(*shape: int) -> np.ndarray:
    """Zeros, float64."""
    return np.zeros(shape, np.float64)


def new_state(code: Code, machine: Machine, log_rows: int) -> State:
    """A run at time 0 with every stream ready. `log_rows` 0 keeps no log."""
    s, d = len(code.stream_pc), code.bx_coef.shape[2]
    u, r, k, i = machine.units, len(code.rg), len(code.k_units), len(code.ins)
    g, c = len(code.gp), len(code.expect)
    width = LOG_ENV + d + max(1, int(np.diff(code.op_ptr).max(initial=0)))
    span = floats(i, 2)
    span[:, 0] = np.inf
    num = ints(9)
    num[7] = log_rows > 0
    num[2] = s
    stack = ints(2 * s)
    stack[:s] = np.arange(s)[::-1]
    now = floats(4)
    now[1] = np.inf
    return State(
        now=now,
        num=num,
        pc=code.stream_pc.copy(),
        env=ints(s, d),
        it=ints(s, d),
        trips=ints(s, d),
        tile=ints(s),
        coord=ints(s, code.k_radix.shape[1]),
        radix=np.ones((s, code.k_radix.shape[1]), np.int64),
        block=ints(s, 2),
        wakes=ints(s),
        waking=ints(s),
        free_at=floats(s),
        mark=floats(s),
        q=ints(s, 3),
        q_i=ints(s, IN_FLIGHT, 6),
        q_f=floats(s, IN_FLIGHT, 4),
        flowing=ints(s),
        rem=floats(s),
        upd=floats(s),
        rate=floats(s),
        cap=floats(s),
        wgt=floats(s),
        fin=floats(s),
        began=floats(s),
        mem=ints(s, 2),
        act=ints(s),
        dirty=ints(machine.ces + 1),
        claimed=ints(u, r),
        filled=ints(u, r),
        pushed=ints(u, r),
        waited=ints(u, r, 4),
        released=ints(u, r, 4),
        popped=ints(u, r, 4),
        counter=ints(c),
        tiles=ints(u, k),
        cache_key=np.full(CACHE_ENTRIES if machine.cached else 1, -1, np.int64),
        cache_at=floats(CACHE_ENTRIES if machine.cached else 1),
        near_key=np.full(CACHE_ENTRIES if machine.cached else 1, -1, np.int64),
        near_by=ints(CACHE_ENTRIES if machine.cached else 1),
        g_head=np.full(g, -1, np.int64),
        g_next=np.full(s, -1, np.int64),
        stack=stack,
        heap_t=floats(s * (2 * IN_FLIGHT + 4)),
        heap_c=ints(s * (2 * IN_FLIGHT + 4)),
        cnt=ints(16),
        box=ints(6),
        left=floats(len(machine.capacity)),
        load=floats(len(machine.capacity)),
        sub=ints(s),
        fix=floats(s),
        demand=floats(machine.ces + 1, 3),
        k_start=np.full(k + 1, np.inf),
        n=ints(i, 11),
        ops=ints(i, 2),
        busy=floats(i),
        stall=floats(i, 5),
        span=span,
        log_t=floats(max(log_rows, 1)),
        log_i=ints(max(log_rows, 1), width),
    )
