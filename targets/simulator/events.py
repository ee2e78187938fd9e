"""The event heap, heads to retry, and time accounting of queues.

Simultaneous events are ordered by kind, then stream number. A woken head is retried after all events of that time.

Invariant: idle time of a queue is charged once, to its blocked head or its oldest transfer.
"""

from __future__ import annotations

import numpy as np

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.records import Core, Stream
from ppuc.targets.simulator.tables import (
    B_AFTER,
    B_COUNTER,
    B_DATA,
    B_NONE,
    B_ROOM,
    B_SPACE,
    DATA,
    IN_FLIGHT,
    KIND_BITS,
    LATENCY,
    SPACE,
    SYNC,
    TICKS,
    Code,
    State,
)

E_COMPLETE, E_LAND, E_READY, E_START, E_ISSUE = range(5)
"""Event kinds, in their order at equal times."""


@helper
def schedule(st: State, time: float, kind: int, s: int) -> None:
    """Insert an event into the heap."""
    heap, k = st.heap, st.core[0]
    key = (int(time * TICKS) << KIND_BITS | kind) << k.stream_bits | s
    n = k.heap
    k.heap = n + 1
    while n > 0:
        up = np.uint64(n - 1) >> np.uint64(1)
        if heap[up] <= key:
            break
        heap[np.uint64(n)] = heap[up]
        n = int(up)
    heap[np.uint64(n)] = key


@helper
def next_time(st: State) -> float:
    """The time of the first event; inf without any."""
    k = st.core[0]
    return float((st.heap[0] >> (k.stream_bits + KIND_BITS)) / TICKS if k.heap > 0 else np.inf)


@helper
def next_event(st: State) -> tuple[int, int]:
    """Remove the first event and return its kind and stream. The hole moves down to a leaf, along the lesser children,
    before the last key fills it: nearly always near there. So only the end of the way is hard to predict."""
    heap, k = st.heap, st.core[0]
    first, n = heap[0], k.heap - 1
    k.heap = n
    last, at, down = heap[np.uint64(n)], 0, 1
    while down + 1 < n:
        down += heap[np.uint64(down + 1)] < heap[np.uint64(down)]
        heap[np.uint64(at)] = heap[np.uint64(down)]
        at = down
        down = 2 * at + 1
    if down < n:
        heap[np.uint64(at)] = heap[np.uint64(down)]
        at = down
    while at > 0:
        up = np.uint64(at - 1) >> np.uint64(1)
        if heap[up] <= last:
            break
        heap[np.uint64(at)] = heap[up]
        at = int(up)
    heap[np.uint64(at)] = last
    code = first & ((1 << (k.stream_bits + KIND_BITS)) - 1)
    return int(code >> k.stream_bits), int(code & ((1 << k.stream_bits) - 1))


@helper
def put_back(st: State, s: int) -> None:
    """Retry a head after the other events of this time."""
    k = st.core[0]
    st.listed[k.stack].stack = s
    k.stack += 1


@helper
def wake(st: State, s: int) -> None:
    """Retry a blocked head after the current event."""
    q: Stream = st.stream[s]
    if not q.waking:
        q.waking = 1
        k = st.core[0]
        st.listed[k.wakes].wake = s
        k.wakes += 1


@helper
def wake_all(c: Code, st: State) -> None:
    """Unblock the heads that events have woken, in order, charging their waiting time to what blocked them."""
    k: Core = st.core[0]
    for j in range(k.wakes):
        s = st.listed[j].wake
        account(c, st, s)
        q: Stream = st.stream[s]
        q.cause = B_NONE
        q.waking = 0
        put_back(st, s)
    k.wakes = 0


@helper
def wake_unit(st: State, unit: int, ring: int) -> None:
    """Wake the streams of a unit that a push or pop on a ring may unblock."""
    for s in range(4 * unit, 4 * unit + 4):
        q: Stream = st.stream[s]
        if q.cause == B_AFTER or (q.cause in (B_DATA, B_SPACE) and q.what == ring):
            wake(st, s)


@helper
def account(c: Code, st: State, s: int) -> None:
    """Charge the time since `mark` of an idle queue to its blocked head or its oldest transfer. Must run before the
    stream's state changes."""
    q: Stream = st.stream[s]
    now, begin = st.core[0].now, q.mark
    q.mark = now
    i, cause = -1, LATENCY
    if (q.unit < 0 or s % 4 < 2) and q.next > q.oldest:
        if q.flow < 0:
            i = st.flight[s, q.oldest % IN_FLIGHT].instr
    elif q.cause != B_NONE:
        i = q.head
        if q.cause == B_DATA:
            cause = DATA
        elif q.cause == B_COUNTER:
            cause = SYNC
        elif q.cause != B_ROOM:
            cause = SPACE
    if i >= 0:
        begin = max(begin, q.free_at, st.begun[c.ins[i].kernel])
        if begin < now:
            st.stall[i, cause] += now - begin


@helper
def log_end(st: State, s: int, what: int) -> None:
    """Log the end of a stream's oldest unfinished instruction: `what` as in tables.LOG_END."""
    k: Core = st.core[0]
    if k.logging:
        row = k.log
        k.log = row + 1
        st.log_t[row] = k.now
        st.log_i[row, 0], st.log_i[row, 1] = what, s
