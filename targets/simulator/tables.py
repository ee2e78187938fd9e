"""The arrays of the event loop: a segment (Code), a target (Machine) and the state of a run (State).

Everything is a NamedTuple of numpy arrays, because numba passes those by reference without boxing; rows are those of
records.py. Sizes: S streams (4 per unit, in the order of UNIT_QUEUES, then the stage queues), U units, K kernels,
A grid axes, I instructions, R rings, D loop depths, B boxes, G counter groups.

Invariant: Code and Machine are never written during a run; State holds all of a run, so the loop may return at any
event (to drain a full log) and continue later. All times are multiples of 1/TICKS cycle, so delaying a run by whole
ticks shifts all its times exactly (steady_state/replay.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppuc.targets.schema import MOST_IN_FLIGHT
from ppuc.targets.simulator import records as rec

TICKS = 4096.0
"""Ticks per cycle. Ends are rounded up to ticks, so that equal transfers end in one batch."""

KIND_BITS = 3
"""Bits of an event's kind. With 9 bits for its stream, times fit an int64 up to five minutes."""

LOAD, STORE, MMA, VEC, COPY = range(5)
"""Instruction kinds."""

NODE_KERNEL, NODE_LOOP, NODE_END, NODE_INSTR, NODE_STOP = range(5)
"""Node kinds of a stream."""

CLAIM, PUSH, WAIT, POP = range(4)
"""Ring uses."""

DATA, SPACE, BANDWIDTH, LATENCY, SYNC = range(5)
"""Stall causes, in the order of result.STALL_CAUSES."""

B_NONE, B_DATA, B_SPACE, B_AFTER, B_COUNTER, B_ROOM, B_BLOCK = range(7)
"""Causes that block the head of a stream: a filled slot, a free slot, rings to retire, counters, room in its queue, an
earlier tile of its kernel (on targets that run tiles as blocks)."""

MEM_HBM, MEM_L2, MEM_HOST = range(3)
"""Memories as bandwidth resources; CE ports and unit ports follow."""

F_STREAM, F_CE, F_PORT, F_LINK = range(4)
"""Rows of State.flow: stream, CE, and the CE port and unit port that a flow crosses (the last column of State.resource,
of unlimited bandwidth, where it crosses none)."""

P_CAP, P_HBM, P_L2, P_HOST, P_PORTS = range(5)
"""What limits a flow: its largest rate, its weights on the memories that it crosses (0: none), and its share of its
ports alone."""

F_PATH, F_REM, F_UPD, F_RATE, F_FIN, F_READS, F_WRITES = 0, *range(5, 11)
"""Rows of State.course: five of P_*; remaining bytes at time `upd` (-1: not filled yet), rate since then, time of its
end; bytes per cycle of device memory that it would read and write at its largest rate."""

F_KEPT = F_WRITES + 1
F_FILLED, F_NEW, F_LEFT, F_GROWS, F_AT, F_LIMIT, F_STOPS = F_KEPT, *range(F_KEPT + 5, F_KEPT + 11)
"""Further rows of State.course, scratch of water filling: five of P_* for the flows that are filled, where not all are;
the rates that it gives these; in a round, the share that ports have left for a flow, 0 if it grows
and inf if not, the level and the cap at which it stops, 1 if it stops."""

R_FLOWS, R_LEFT, R_LOAD = range(3)
"""Rows of State.resource: flows of a port, remaining capacity, the weight of growing flows. Between fillings, those of
ports are for all their flows."""

O_CHANGED, O_FILLED, O_GROWING, O_STOPPED = range(4)
"""Rows of State.order: flows whose CE has changed, flows that are filled; of these, those that still grow, and those
that stopped in a round."""

W_LAYERS, W_LOOPS = range(2)
"""Rows of State.watch: those of steady_state.replay and steady_state.loop_replay."""

CACHE_ENTRIES = 1 << 16
"""Entries of a cached l2; a tile evicts another one with the same entry."""

IN_FLIGHT = MOST_IN_FLIGHT + 1
"""Rows for the instructions in flight of one stream, plus the one being issued."""

LOG_END, LOG_STREAM, LOG_INSTR, LOG_FIRST, LOG_LAST, LOG_FROM, LOG_TO, LOG_ENV = range(8)
"""Columns of a log row: 0 for a start, 1 for a completion, 2 when a store has read its slot but not landed (1 and 2:
only the stream follows); stream, instruction, masks of the loops in their first and last iteration, first and last
element of a transfer's box, then loop values, then the slot of each operand."""

NO_BOUND = np.iinfo(np.int64).max
"""Limit of an axis that is always fully valid."""


class Code(NamedTuple):
    """A flattened segment."""

    node: np.ndarray  # [N] Node: the streams of all queues, one after another
    stream_pc: np.ndarray  # [S] first node
    kernel: np.ndarray  # [K] Kernel
    radix: np.ndarray  # [K, A] size of each grid axis (1 where absent)
    trips: np.ndarray  # [K, D] trip counts of the loops around a tile (1 elsewhere)
    loop: np.ndarray  # [L] Loop
    ins: np.ndarray  # [I] Instruction
    use: np.ndarray  # [.] Use
    sync: np.ndarray  # [.] Sync: waits and bumps
    op: np.ndarray  # [.] Operand
    box: np.ndarray  # [B] Box
    dim: np.ndarray  # [B, ND] BoxDim
    axis: np.ndarray  # [B, NA] BoxAxis
    coef: np.ndarray  # [B, ND, D] factors of the loop variables in a dimension's offset
    copy: np.ndarray  # [.] Range
    extent: np.ndarray  # [Q] Extent
    extent_coef: np.ndarray  # [Q, D]
    mma: np.ndarray  # [.] Product
    vec: np.ndarray  # [.] Vector
    term: np.ndarray  # [.] Term
    traffic: np.ndarray  # [.] Moved
    ring: np.ndarray  # [R] Ring
    after: np.ndarray  # [.] rings to retire before a first claim
    total: np.ndarray  # [U, R] pushes that the unit will make
    group: np.ndarray  # [G] Group
    expect: np.ndarray  # [blocks] bumps of a block of a counter group
    place: np.ndarray  # [blocks] its counter
    base: np.ndarray  # [blocks] what its counter has counted when earlier groups are complete
    before: np.ndarray  # [blocks] the last earlier block that its counter has counted for; -1: none

    @property
    def depth(self) -> int:
        """D."""
        return int(self.coef.shape[2])


class Machine(NamedTuple):
    """The target's numbers."""

    numbers: np.ndarray  # [1] Numbers
    mover: np.ndarray  # [5] Mover by instruction kind; `room` by queue
    latency: np.ndarray  # [3] by memory
    hop: np.ndarray  # [U] deviation of a unit's round trip from the mean, in cycles
    capacity: np.ndarray  # [3 + CEs + U] bytes per cycle of each resource

    @property
    def units(self) -> int:
        """U."""
        return len(self.hop)


class State(NamedTuple):
    """A run in progress."""

    core: np.ndarray  # [1] Core
    watch: np.ndarray  # [W_*] Watch
    stream: np.ndarray  # [S] Stream
    place: np.ndarray  # [S, D] Place
    coordinate: np.ndarray  # [S, A] Coordinate
    flight: np.ndarray  # [S, IN_FLIGHT] Flight
    filled: np.ndarray  # [U, R] Filled
    reader: np.ndarray  # [U, R, 4] Reader
    counter: np.ndarray  # [counters]
    waiting: np.ndarray  # [G] first stream that waits for the group
    tiles: np.ndarray  # [U, K] stored tiles
    l1: np.ndarray  # [U] time at which l1 has served all requests
    listed: np.ndarray  # [2 S] Listed
    heap: np.ndarray  # [.] events as integers: time in ticks, kind, stream, from the highest bits down
    cache: np.ndarray  # [CACHE_ENTRIES] or [1] Cached
    flow: np.ndarray  # [F_*, S] active data phases in columns, so that loops over them read neighbouring memory
    course: np.ndarray  # [F_*, S] their progress
    resource: np.ndarray  # [R_*, resources + 1]
    open: np.ndarray  # [2 S + 1] share of device memory's bandwidth left with this many live streams, 0: not needed yet
    demand: np.ndarray  # [3, CEs + 1] of a CE's flows at their largest rates, by memory
    changed: np.ndarray  # [CEs + 1] what happened to a CE's flows since the last filling (bandwidth.py)
    # scratch
    valid: np.ndarray  # [16] valid extents of tile axes
    order: np.ndarray  # [O_*, S + 1]
    # statistics
    begun: np.ndarray  # [K + 1] first start of each kernel, and of the copies
    stat: np.ndarray  # [I] Stat
    stall: np.ndarray  # [I, 5]
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
    s, d, u = len(code.stream_pc), code.depth, machine.units
    r, k, i, g = len(code.ring), len(code.kernel), len(code.ins), len(code.group)
    width = LOG_ENV + d + max(1, int((code.ins["op_hi"] - code.ins["op_lo"]).max(initial=0)))
    core = rec.rows(rec.Core, 1)
    core["finish"], core["logging"], core["stack"] = np.inf, log_rows > 0, s
    core["stream_bits"] = (s - 1).bit_length()
    watch = rec.rows(rec.Watch, W_LOOPS + 1)
    watch["pc"] = len(code.node)
    listed = rec.rows(rec.Listed, 2 * s)
    listed["stack"][:s] = np.arange(s)[::-1]
    coordinate, stat = rec.rows(rec.Coordinate, s, code.radix.shape[1]), rec.rows(rec.Stat, i)
    coordinate["radix"], stat["start"] = 1, np.inf
    cache = rec.rows(rec.Cached, CACHE_ENTRIES if machine.numbers["cached"][0] else 1)
    cache["key"] = cache["near"] = -1
    return State(
        core=core,
        watch=watch,
        stream=_streams(code, machine),
        place=rec.rows(rec.Place, s, d),
        coordinate=coordinate,
        flight=rec.rows(rec.Flight, s, IN_FLIGHT),
        filled=rec.rows(rec.Filled, u, r),
        reader=rec.rows(rec.Reader, u, r, 4),
        counter=ints(int((code.group["first"] + code.group["count"]).max(initial=0))),
        waiting=np.full(g, -1, np.int64),
        tiles=ints(u, k),
        l1=floats(u),
        listed=listed,
        heap=ints(s * (2 * IN_FLIGHT + 4)),
        cache=cache,
        flow=ints(F_LINK + 1, s),
        course=floats(F_STOPS + 1, s),
        resource=_resources(machine),
        open=floats(2 * s + 1),
        demand=floats(3, int(machine.numbers["ces"][0]) + 1),
        changed=ints(int(machine.numbers["ces"][0]) + 1),
        valid=ints(16),
        order=ints(O_STOPPED + 1, s + 1),
        begun=np.full(k + 1, np.inf),
        stat=stat,
        stall=floats(i, 5),
        log_t=floats(max(log_rows, 1)),
        log_i=ints(max(log_rows, 1), width),
    )


def _streams(code: Code, machine: Machine) -> np.ndarray:
    """Every stream at its first node."""
    s, u, ces = len(code.stream_pc), machine.units, int(machine.numbers["ces"][0])
    streams, unit = rec.rows(rec.Stream, s), np.arange(s) // 4
    staged = unit >= u
    ce = np.where(staged, ces, unit // int(machine.numbers["cu_per_ce"][0]))
    streams["unit"], streams["ce"] = np.where(staged, -1, unit), ce
    streams["port"] = np.where(staged, -1, 3 + ce)
    streams["link"] = np.where(staged, -1, 3 + ces + unit)
    streams["pc"], streams["head"], streams["waiter"], streams["flow"] = code.stream_pc, -1, -1, -1
    return streams


def _resources(machine: Machine) -> np.ndarray:
    """All resources idle. The last one is never full: flows that leave it do not change its level."""
    resource = floats(R_LOAD + 1, len(machine.capacity) + 1)
    resource[R_LEFT] = np.append(machine.capacity, np.inf)
    resource[:, -1] = np.where(np.arange(R_LOAD + 1) == R_LEFT, np.inf, float(1 << 60))
    return resource
