"""Which conflicting accesses of a small program nothing orders: the hazard checker's question, answered by unrolling.

Every instruction instance of every unit is spelled out, with an edge for each signal that it waits for; accesses to the
same slot or the same elements, one of them a write, must be joined by a path, and so must bumps of one counter for
different groups. Time, logs and vector clocks do not exist here, which is what makes this a second opinion.

An instance starts, releases its slots and ends; those of one queue do each of the three in order. A wait or a claim is
an edge to a start, a push or a pop one from an end (from a release for stores, which pop before their data has landed),
a bump one from an end. Gathers and scatters are not modelled.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppuc.compiler.passes.emit.rings import reads, writes
from ppuc.ir.kernel import Load, Param, Store
from ppuc.ir.program import Copy, Instr, KernelProgram, Program, StreamLoop, StreamNode
from ppuc.ir.types import Space


@dataclass(eq=False)
class Event:
    """One instance: where it runs, the loop values it sees, and what it does to slots and tensors. `turn` counts, per
    ring that it uses, the tile it is about."""

    number: int
    queue: tuple[object, ...]
    instr: Instr | Copy
    kernel: str
    unit: int
    turn: dict[str, int] = field(default_factory=dict)
    reads: list[tuple[str, np.ndarray]] = field(default_factory=list)
    writes: list[tuple[str, np.ndarray]] = field(default_factory=list)
    performed: list[tuple[str, str]] = field(default_factory=list)
    last: bool = True


def unroll(
    body: Sequence[StreamNode], coordinates: Mapping[str, int], grid: Mapping[str, int], around: tuple[Step, ...] = ()
) -> Iterator[tuple[Instr, tuple[Step, ...]]]:
    """Instances of a stream on one unit, each with the iterations that it is in."""
    for node in body:
        if isinstance(node, StreamLoop):
            units = grid[node.over] if node.over is not None else 1
            begin = coordinates[node.over] if node.over is not None else 0
            values = range(node.start + begin * node.step, node.stop, node.step * units)
            for value in values:
                step = Step(node.var, value, value == values[0], value == values[-1])
                yield from unroll(node.body, coordinates, grid, (*around, step))
        else:
            yield node, around


@dataclass(frozen=True)
class Step:
    """One iteration of one loop."""

    var: str
    value: int
    first: bool
    last: bool


def elements(stmt: Load | Store, param: Param, tile: Sequence[int], env: Mapping[str, int]) -> np.ndarray:
    """Flat elements that a box touches."""
    axes = np.meshgrid(*(np.arange(n) for n in tile), indexing="ij")
    flat, inside = np.asarray(param.view.offset), np.asarray(True)
    for dim, expression in enumerate(stmt.index):
        at = expression.loops.value(env) + sum((f * axes[a] for a, f in expression.axes), start=np.asarray(0))
        inside = inside & (at >= 0) & (at < param.view.shape[dim])
        flat = flat + at * param.view.strides[dim]
    shape = np.broadcast_shapes(flat.shape, inside.shape)
    return np.unique(np.broadcast_to(flat, shape)[np.broadcast_to(inside, shape)])


class Unrolled:
    """All instances of a program's only segment on a chip of `units` units, and the order that its signals give
    them."""

    def __init__(self, program: Program, units: int) -> None:
        (segment,) = program.segments
        self.units = units
        self.program, self.segment = program, segment
        self.events: list[Event] = []
        self.queues: dict[tuple[object, ...], list[Event]] = defaultdict(list)
        self.tensors = {t.name: t for t in program.tensors}
        self.groups = {g.name: g for g in segment.counters}
        self.order = {k.name: i for i, k in enumerate(segment.kernels)} | {"": -1}
        for copy in segment.copies:
            self._copy(copy)
        for kernel in segment.kernels:
            self._kernel(kernel)

    def _add(self, queue: tuple[object, ...], instr: Instr | Copy, kernel: str, unit: int) -> Event:
        event = Event(len(self.events), queue, instr, kernel, unit)
        self.events.append(event)
        self.queues[queue].append(event)
        return event

    def _copy(self, copy: Copy) -> None:
        event = self._add(("stage", copy.queue), copy, "", -1)
        span = np.arange(copy.start, copy.start + copy.count)
        event.reads.append((copy.src, span))
        event.writes.append((copy.dst, span))

    def _kernel(self, kernel: KernelProgram) -> None:
        grid, params = dict(kernel.grid), {p.name: p for p in kernel.params}
        shapes = {r.name: r.shape for r in kernel.rings}
        for number, point in enumerate(itertools.product(*(range(n) for n in grid.values()))):
            unit = (kernel.first + number) % self.units
            coordinates = dict(zip(grid, point, strict=True))
            for queue, body in kernel.streams:
                turns: dict[tuple[str, str], int] = defaultdict(int)
                for instr, steps in unroll(body, coordinates, grid):
                    event = self._add((unit, queue), instr, kernel.name, unit)
                    self._instance(event, instr, steps, params, shapes, turns)

    def _instance(
        self,
        event: Event,
        instr: Instr,
        steps: Sequence[Step],
        params: Mapping[str, Param],
        shapes: Mapping[str, tuple[int, ...]],
        turns: dict[tuple[str, str], int],
    ) -> None:
        stmt, env = instr.stmt, {s.var: s.value for s in steps}
        event.last = all(s.last for s in steps)
        for use in instr.rings:
            inner = steps[use.level :]
            if all(s.first if use.kind in ("claim", "wait") else s.last for s in inner):
                event.performed.append((use.kind, use.ring))
        for ring in (*reads(stmt), *writes(stmt)):
            event.turn[ring] = turns["read" if ring in reads(stmt) else "write", ring]
        for kind, ring in event.performed:
            if kind in ("push", "pop"):
                turns["write" if kind == "push" else "read", ring] += 1
        if isinstance(stmt, Load | Store):
            param = params[stmt.src if isinstance(stmt, Load) else stmt.dst]
            tile = shapes[stmt.dst if isinstance(stmt, Load) else stmt.src]
            box = (param.tensor, elements(stmt, param, tile, env))
            (event.reads if isinstance(stmt, Load) else event.writes).append(box)

    # order

    def edges(self, mutated: Program) -> list[tuple[int, int]]:
        """Edges between points (3 an event: start, release, end) that the signals of `mutated` give: this program, but
        for what some instruction waits for."""
        changed = _instructions(mutated)
        own = _instructions(self.program)
        replaced = {id(a): b for a, b in zip(own, changed, strict=True)}
        found = [(3 * e.number + i, 3 * e.number + i + 1) for e in self.events for i in range(2)]
        for events in self.queues.values():
            for a, b in itertools.pairwise(events):
                found += [(3 * a.number + i, 3 * b.number + i) for i in range(3)]
        return [*found, *self._ring_edges(replaced, mutated), *self._counter_edges(replaced)]

    def _ring_edges(self, replaced: Mapping[int, Instr | Copy], mutated: Program) -> Iterator[tuple[int, int]]:
        """From pushes to waits, from pops to claims of the slot's next turn, and to first claims from all that was done
        with the rings whose bytes are taken over."""
        done: dict[tuple[int, str], dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        for e in self.events:
            for kind, ring in e.performed:
                if kind in ("push", "pop"):
                    point = 3 * e.number + (1 if isinstance(e.instr, Instr) and isinstance(e.instr.stmt, Store) else 2)
                    done[e.unit, f"{e.kernel}/{ring}"][kind, e.turn[ring]].append(point)
        rings = {f"{k.name}/{r.name}": r for k in mutated.segments[0].kernels for r in k.rings}
        for e in self.events:
            instr = replaced[id(e.instr)]
            kept = {(u.kind, u.ring) for u in instr.rings} if isinstance(instr, Instr) else set()
            for kind, name in e.performed:
                if (kind, name) not in kept or kind not in ("wait", "claim"):
                    continue
                key, turn = f"{e.kernel}/{name}", e.turn[name]
                sources = done[e.unit, key]["push", turn] if kind == "wait" else []
                if kind == "claim":
                    sources = list(done[e.unit, key]["pop", turn - rings[key].depth])
                    for old in rings[key].after if turn == 0 else ():
                        sources += [p for points in done[e.unit, old].values() for p in points]
                yield from ((source, 3 * e.number) for source in sources)

    def _counter_edges(self, replaced: Mapping[int, Instr | Copy]) -> Iterator[tuple[int, int]]:
        for e in self.events:
            for wait in replaced[id(e.instr)].waits:
                for block in self._blocks(e, wait.group, wait.touched, e.reads if e.reads else e.writes):
                    yield from ((3 * b.number + 2, 3 * e.number) for b in self.bumpers[wait.group, block])

    @functools.cached_property
    def bumpers(self) -> dict[tuple[str, int], list[Event]]:
        """What bumps each block of each group."""
        found: dict[tuple[str, int], list[Event]] = defaultdict(list)
        for e in self.events:
            for bump in e.instr.bumps:
                if bump.touched or e.last:
                    for block in self._blocks(e, bump.group, bump.touched, e.writes):
                        found[bump.group, block].append(e)
        return found

    def _blocks(self, e: Event, group: str, touched: bool, accesses: Sequence[tuple[str, np.ndarray]]) -> Sequence[int]:
        counters = self.groups[group]
        if not touched:
            return range(len(counters.expect))
        spans = [at for _, at in accesses if at.size]
        return [b for at in spans for b in range(at.min() // counters.block, at.max() // counters.block + 1)]

    # conflicts

    @functools.cached_property
    def conflicts(self) -> list[Conflict]:
        """Accesses of different queues to the same bytes, one of them a write, and bumps of the same counters."""
        return [*self._slot_conflicts(), *self._tensor_conflicts(), *self._counter_conflicts()]

    def _slot_conflicts(self) -> Iterator[Conflict]:
        rings = {f"{k.name}/{r.name}": r for k in self.segment.kernels for r in k.rings}
        uses: dict[tuple[int, Space], list[_Use]] = defaultdict(list)
        for e in self.events:
            if isinstance(e.instr, Instr):
                for name, turn in e.turn.items():
                    ring = rings[f"{e.kernel}/{name}"]
                    low = ring.base + turn % ring.depth * ring.slot_bytes
                    rank = (self.order[e.kernel], turn, name not in writes(e.instr.stmt))
                    uses[e.unit, ring.space].append(_Use(low, low + ring.slot_bytes, rank, name, e))
        for accesses in uses.values():
            for a, b in itertools.combinations(accesses, 2):
                both_read = a.rank[2] and b.rank[2]
                same = a.rank[0] == b.rank[0] and a.ring != b.ring  # rings of one kernel do not share bytes
                if both_read or same or a.low >= b.high or b.low >= a.high or a.event.queue == b.event.queue:
                    continue
                first, second = sorted((a, b), key=lambda u: u.rank)
                point = 3 * first.event.number + (1 if first.rank[2] else 2)
                yield Conflict(first.event, second.event, point, False)

    def _tensor_conflicts(self) -> Iterator[Conflict]:
        boxes = []
        for e in self.events:
            for writing, accesses in ((False, e.reads), (True, e.writes)):
                for name, at in accesses:
                    if at.size:
                        tensor = self.tensors[name]
                        boxes.append((e, tensor, tensor.address + at * tensor.dtype.bytes, writing))
        for (a, one, here, writing), (b, other, there, also) in itertools.combinations(boxes, 2):
            if not (writing or also) or a.queue == b.queue or one.space is not other.space:
                continue
            unit = max(one.dtype.bytes, other.dtype.bytes)
            if here[0] // unit > there[-1] // unit or there[0] // unit > here[-1] // unit:
                continue
            if not np.intersect1d(here // unit, there // unit).size:
                continue
            first, second = (a, b) if self.order[a.kernel] <= self.order[b.kernel] else (b, a)
            reused = one is not other and -1 in (self.order[a.kernel], self.order[b.kernel])
            yield Conflict(first, second, 3 * first.number + 2, reused)

    def _counter_conflicts(self) -> Iterator[Conflict]:
        """A counter's bumps for each group, and those for the group before that it was bumped for."""
        owner: dict[int, list[Event]] = {}
        for group in self.segment.counters:
            for block in range(len(group.expect)):
                bumping = self.bumpers[group.name, block]
                for a, b in itertools.product(owner.get(group.first + block, ()), bumping):
                    yield Conflict(a, b, 3 * a.number + 2, False, 2)
                if bumping:
                    owner[group.first + block] = bumping

    def unordered(self, mutated: Program) -> list[Conflict]:
        """Conflicts that the signals of `mutated` leave unordered."""
        reach = _closure(3 * len(self.events), self.edges(mutated))

        def ordered(c: Conflict) -> bool:
            if reach[3 * c.second.number + c.by] >> c.point & 1:
                return True
            return c.either_way and bool(reach[3 * c.first.number] >> (3 * c.second.number + 2) & 1)

        return [c for c in self.conflicts if not ordered(c)]


@dataclass(frozen=True)
class Conflict:
    """`point` (of the first) must come before point `by` of the second, its start unless said otherwise; with
    `either_way` the second may also end before the first starts (a copy into bytes that something else used: the
    program does not say which was meant first)."""

    first: Event
    second: Event
    point: int
    either_way: bool
    by: int = 0

    def __str__(self) -> str:
        return f"{self.first.kernel}/{self.first.queue[1]} and {self.second.kernel}/{self.second.queue[1]}"


@dataclass(frozen=True)
class _Use:
    """An access to the bytes of a slot; `rank` orders it: (kernel, turn, reading)."""

    low: int
    high: int
    rank: tuple[int, int, bool]
    ring: str
    event: Event


def _instructions(program: Program) -> list[Instr | Copy]:
    def walk(body: Sequence[StreamNode]) -> Iterator[Instr]:
        for node in body:
            if isinstance(node, Instr):
                yield node
            else:
                yield from walk(node.body)

    (segment,) = program.segments
    return [*segment.copies, *(i for k in segment.kernels for _, body in k.streams for i in walk(body))]


def _closure(points: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Per point the set (bits) of points that come before it, itself included. Raises ValueError for a cycle."""
    before: list[list[int]] = [[] for _ in range(points)]
    follow: list[list[int]] = [[] for _ in range(points)]
    for a, b in edges:
        before[b].append(a)
        follow[a].append(b)
    missing = [len(b) for b in before]
    ready = [p for p in range(points) if not missing[p]]
    reach = [1 << p for p in range(points)]
    done = 0
    while ready:
        point = ready.pop()
        done += 1
        for source in before[point]:
            reach[point] |= reach[source]
        for later in follow[point]:
            missing[later] -= 1
            if not missing[later]:
                ready.append(later)
    if done < points:
        raise ValueError("the program waits for itself")
    return reach
