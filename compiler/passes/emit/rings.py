"""Derives ring operations from the points at which buffers are written and read.

A slot of a buffer lives for one iteration of the innermost loop that encloses all its accesses; that loop's depth is
the level of every operation on the ring. Within that iteration the producer claims at its first access and pushes at
its last write; each consumer queue waits at its first read and pops at its last one. A queue that reads its own writes
needs a wait only for reads after the push. Loops that follow one another and each write the buffer before they read it
share the ring, but no slot: a slot lives for an iteration of one of them.

Invariant: claims and pushes, waits and pops pair up one to one, for every trip count.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import Kernel, Load, Loop, Mma, Stmt, Store, Vec
from ppuc.ir.program import Queue, RingUse
from ppuc.ir.types import Space

QUEUE_OF: dict[type, Queue] = {Load: Queue.LOAD, Store: Queue.STORE, Mma: Queue.TENSOR, Vec: Queue.VECTOR}


@dataclass(frozen=True, slots=True)
class Site:
    """A tile statement: its number in text order, its queue, and the identities of the loops around it."""

    number: int
    stmt: Load | Store | Mma | Vec
    queue: Queue
    path: tuple[int, ...]
    loops: tuple[Loop, ...]


def sites_of(kernel: Kernel) -> list[Site]:
    """Every tile statement of the kernel in text order."""
    found: list[Site] = []
    counter = iter(range(1 << 30))

    def walk(body: Sequence[Stmt], path: tuple[int, ...], loops: tuple[Loop, ...]) -> None:
        for stmt in body:
            if isinstance(stmt, Loop):
                walk(stmt.body, (*path, next(counter)), (*loops, stmt))
            else:
                found.append(Site(len(found), stmt, QUEUE_OF[type(stmt)], path, loops))

    walk(kernel.body, (), ())
    return found


def reads(stmt: Load | Store | Mma | Vec) -> tuple[str, ...]:
    """Buffers that a statement reads."""
    if isinstance(stmt, Load):
        return (stmt.gather.buffer,) if stmt.gather is not None else ()
    if isinstance(stmt, Store):
        return (stmt.src, stmt.scatter.buffer) if stmt.scatter is not None else (stmt.src,)
    if isinstance(stmt, Mma):
        return (stmt.a.buffer, stmt.b.buffer)
    return stmt.ins


def writes(stmt: Load | Store | Mma | Vec) -> tuple[str, ...]:
    """Buffers that a statement writes."""
    if isinstance(stmt, Store):
        return ()
    return stmt.outs if isinstance(stmt, Vec) else (stmt.dst,)


def ring_uses(
    kernel: Kernel, sites: Sequence[Site]
) -> tuple[dict[int, tuple[RingUse, ...]], dict[str, tuple[Queue, tuple[Queue, ...]]]]:
    """Per statement number its ring operations, and per buffer (producer, consumers)."""
    uses: dict[int, list[RingUse]] = {}
    queues: dict[str, tuple[Queue, tuple[Queue, ...]]] = {}
    accesses: dict[str, list[Site]] = {}
    for site in sites:
        for name in dict.fromkeys((*writes(site.stmt), *reads(site.stmt))):
            accesses.setdefault(name, []).append(site)
    for name in (buffer.name for buffer in kernel.buffers if buffer.name in accesses):
        producers = list(dict.fromkeys(s.queue for s in accesses[name] if name in writes(s.stmt)))
        if not producers:
            continue
        if len(producers) != 1:
            raise InternalError(f"kernel @{kernel.name}: buffer %{name} is written by several queues")
        consumers = {s.queue for s in accesses[name] if name in reads(s.stmt)}
        queues[name] = (producers[0], tuple(q for q in Queue if q in consumers))
        for lifetime in _lifetimes(accesses[name], name):
            _operations(uses, name, lifetime, producers[0])
    return {n: tuple(sorted(u, key=lambda x: ORDER[x.kind])) for n, u in uses.items()}, queues


def _operations(uses: dict[int, list[RingUse]], name: str, sites: Sequence[Site], producer: Queue) -> None:
    """Add the operations on the slots that live through `sites`, all accesses to them in text order."""
    level = _common([s.path for s in sites])
    writers, readers = ([s for s in sites if name in part(s.stmt)] for part in (writes, reads))
    claimed = next(s for s in sites if s.queue is producer)
    uses.setdefault(claimed.number, []).append(RingUse("claim", name, level))
    uses.setdefault(writers[-1].number, []).append(RingUse("push", name, level))
    for queue in Queue:
        own = [s for s in readers if s.queue is queue]
        if not own:
            continue
        late = own if queue is not producer else [s for s in own if s.number > writers[-1].number]
        if late:
            uses.setdefault(late[0].number, []).append(RingUse("wait", name, level))
        uses.setdefault(own[-1].number, []).append(RingUse("pop", name, level))


def _lifetimes(sites: Sequence[Site], name: str) -> list[list[Site]]:
    """The accesses to a buffer, in text order, grouped by the slots that they share: by the loops one level inside what
    encloses all, if every access is in such a loop and each of these starts with a write and reads what it wrote; and
    within each of these in the same way."""
    level = _common([s.path for s in sites])
    if any(len(s.path) == level for s in sites):
        return [list(sites)]
    parts = [list(part) for _, part in itertools.groupby(sites, lambda s: s.path[level])]
    queues = {frozenset(s.queue for s in part if name in reads(s.stmt)) for part in parts}
    if len(queues) > 1 or any(not _starts_anew(part, name, level + 1) for part in parts):
        return [list(sites)]
    return [lifetime for part in parts for lifetime in _lifetimes(part, name)]


def _starts_anew(sites: Sequence[Site], name: str, level: int) -> bool:
    """Whether the first of these accesses, in every iteration of the loop at `level`, overwrites the buffer."""
    first = sites[0]
    if name not in writes(first.stmt) or name in reads(first.stmt):
        return False
    inside = {loop.var for loop in first.loops[level:]}
    return not isinstance(first.stmt, Mma) or (not first.stmt.continues and set(first.stmt.start) <= inside)


ORDER = {"claim": 0, "wait": 1, "push": 2, "pop": 3}


def _common(paths: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix."""
    level = 0
    for step in zip(*paths, strict=False):
        if len(set(step)) > 1:
            break
        level += 1
    return level


def claiming_units(
    kernel: Kernel, sites: Sequence[Site], uses: Mapping[int, Sequence[RingUse]], cu: int
) -> dict[str, frozenset[int]]:
    """Buffer -> the units, of `cu`, that claim its ring: those that run an iteration of every loop around the claim."""
    found: dict[str, frozenset[int]] = {}
    known: dict[tuple[int, ...], frozenset[int]] = {}
    for site in sites:
        rings = [use.ring for use in uses.get(site.number, ()) if use.kind == "claim"]
        if rings:
            trips = {loop.over: loop.trips for loop in site.loops if loop.over is not None}
            limits = tuple(trips.get(axis, n) for axis, n in kernel.grid)
            if limits not in known:
                known[limits] = _units_within(kernel, limits, cu)
            found |= {ring: found.get(ring, frozenset()) | known[limits] for ring in rings}
    return found


def _units_within(kernel: Kernel, limits: Sequence[int], cu: int) -> frozenset[int]:
    """The units, of `cu`, whose coordinate on each grid axis is below its limit."""
    points = itertools.product(*(range(n) for _, n in kernel.grid))
    here = (all(c < n for c, n in zip(point, limits, strict=True)) for point in points)
    return frozenset((kernel.first + number) % cu for number, runs in enumerate(here) if runs)


class RingOwners:
    """Current owner ring of each byte range of l1 and acc, as kernels are walked in order.

    A ring takes ownership only on the units that claim it. On other units, earlier owners remain, and later rings wait
    for them.
    """

    def __init__(self) -> None:
        self._held: dict[Space, list[tuple[int, int, str, frozenset[int]]]] = {}

    def take(self, space: Space, address: int, size: int, ring: str, units: frozenset[int]) -> tuple[str, ...]:
        """Transfer `[address, address + size)` of `units` to `ring`; returns the previous owners, oldest first."""
        end = address + size
        kept: list[tuple[int, int, str, frozenset[int]]] = []
        after: list[str] = []
        for low, high, owner, holders in self._held.get(space, []):
            if high <= address or low >= end:
                kept.append((low, high, owner, holders))
                continue
            if owner not in after:
                after.append(owner)
            if low < address:
                kept.append((low, address, owner, holders))
            if holders - units:
                kept.append((max(low, address), min(high, end), owner, holders - units))
            if high > end:
                kept.append((end, high, owner, holders))
        kept.append((address, end, ring, units))
        self._held[space] = kept
        return tuple(after)
