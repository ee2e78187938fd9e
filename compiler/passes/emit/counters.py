"""Counters that order accesses to tensors in l2 and hbm.

  full   per block of a tensor: bumped by every store or copy that touches the block, on completion; a load waits for
         the blocks that its box touches.
  done   one counter for a tensor whose bytes are reused: bumped once by each unit after its last load (store or copy)
         of it; the next writer of the bytes waits for it.
  read   one counter for a tensor that a kernel overwrites with its result, tile by tile: bumped by the loads of earlier
         readers; the kernel's stores wait for it. Rings order the kernel's own loads and stores.

Expected counts are enumerated with the span formula that the simulator uses (`ppuc.ir.tile.BoxPlan.span`).

A program that has more groups than the machine has counters uses them several times (`counter_allocation.py`).

Invariant: a wait is for a counter's full count, so it orders the waiter after every access that bumps the counter.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ppuc.compiler.passes.emit.counter_allocation import DISTANCE, Allocation, LiveGroup, separate, shared
from ppuc.compiler.passes.emit.rings import Site, sites_of
from ppuc.compiler.passes.emit.spans import box_span, iterations
from ppuc.compiler.passes.emit.takeovers import find_takeovers
from ppuc.ir.errors import InternalError
from ppuc.ir.kernel import Gather, Kernel, Load, Param, Store
from ppuc.ir.program import Bump, CounterGroup, MemTensor, Wait
from ppuc.targets.schema import Target

MOST_BLOCKS = 64
"""Maximum counters of one tensor: more would be finer than tiles."""

ENOUGH_BLOCKS = 8
"""Counters of one tensor below which groups take over each other's counters: with fewer, readers wait for much more
than they read."""

SHARED_BLOCKS = 16
"""Maximum counters of one tensor if counters are taken over. More made programs of hundreds of kernels 0.1 % faster and
gave them three times as many copies."""

COPY_BYTES = 1 << 18
"""Bytes that one stage copy moves: large enough to amortise its start-up, small enough that readers start early."""


class CounterPlan:
    """All counters of a segment. `kernels` have parameters bound to storage roots; `stages` maps staged tensors to
    their sources; `in_place` maps kernels that update a tensor in place to that tensor, `over` those that write a
    result over an operand, tile by tile."""

    def __init__(
        self,
        order: Sequence[tuple[str, str]],
        kernels: Mapping[str, Kernel],
        stages: Mapping[str, str],
        tensors: Mapping[str, MemTensor],
        in_place: Mapping[str, str],
        over: Mapping[str, str],
        target: Target,
    ) -> None:
        self.over = over
        self.kernels, self.stages, self.tensors, self.in_place, self.target = kernels, stages, tensors, in_place, target
        self.step = {name: i for i, (_, name) in enumerate(order)}
        self.sites = {k.name: sites_of(k) for k in kernels.values()}
        self.writers: dict[str, list[str]] = {}  # tensor -> the kernels or stages that write it, in order
        self.readers: dict[str, list[str]] = {}
        for kind, name in order:
            if kind == "stage":
                self.writers.setdefault(name, []).append(name)
                self.readers.setdefault(stages[name], []).append(name)
            else:
                for param in kernels[name].params:
                    users = self.writers if param.written else self.readers
                    if users.setdefault(param.tensor, [])[-1:] != [name]:
                        users[param.tensor].append(name)
        self._write_steps, self._read_steps = (
            {tensor: [self.step[user] for user in users] for tensor, users in of.items()}
            for of in (self.writers, self.readers)
        )
        self._update_numbers = {  # tensor -> which of its writers update it
            tensor: [i for i, w in enumerate(writers) if self._updates(tensor, w)]
            for tensor, writers in self.writers.items()
        }
        first = {tensor: steps[0] for tensor, steps in self._write_steps.items()}
        once = {tensor for tensor, writers in self.writers.items() if len(writers) == 1}
        self._takeovers = find_takeovers([t for t in tensors.values() if t.name in first], first, once)
        self._watched = {old for earlier in self._takeovers.values() for old in earlier}
        self._covered: dict[str, bool] = {}
        for kernel, tensor in over.items():
            self._require_same_boxes(tensor, kernel)
        self._share = 0
        self._allocation = self._allocate(target.sync.counters_per_chip)

    def _allocate(self, limit: int) -> Allocation:
        """Create the groups and give them counters below `limit`: of their own as long as tensors have enough, else
        shared ones, of few blocks rather than with little distance. If all that needs more, it exceeds the limit."""
        share = max(1, min(MOST_BLOCKS, (limit - len(self._watched)) // max(len(self.writers), 1)))
        while share >= ENOUGH_BLOCKS:
            found = separate(self._live_groups(share))
            if found.used <= limit:
                return found
            share = min(share - 1, share * limit // found.used)
        share, distance = SHARED_BLOCKS, DISTANCE
        while True:
            live = self._live_groups(share)
            own, found = separate(live), shared(live, distance)
            if own.used <= limit or share == distance == 1:
                return own if own.used <= limit else found
            if found.used <= limit:
                return found
            share, distance = (share // 2, distance) if share > 1 else (1, distance // 2)

    def _live_groups(self, share: int) -> list[LiveGroup]:
        """Create all groups, with at most `share` counters for each set of writers of a tensor; their live ranges."""
        if share != self._share:
            self._create(share)
        steps: dict[str, list[int]] = {name: [] for name in self._groups}
        for (_, writer), group in self._full.items():
            steps[group.name].append(self.step[writer])
        for group, readers in self._read.values():
            steps[group.name] += [self.step[reader] for reader in readers]
        for tensor, group in self._done.items():
            steps[group.name] += [self.step[reader] for reader in self.readers.get(tensor, ())]
        return [
            LiveGroup(name, len(group.expect), min(steps[name], default=0), max(steps[name], default=0))
            for name, group in self._groups.items()
        ]

    def _create(self, share: int) -> None:
        """Create all groups, without counters."""
        self._share = share
        self._groups: dict[str, CounterGroup] = {}
        self._full: dict[tuple[str, str], CounterGroup] = {}
        self._done: dict[str, CounterGroup] = {}
        for tensor, writers in self.writers.items():
            for together in self._shared_counters(tensor, writers):
                group = self._full_group(tensor, together)
                self._full.update({(tensor, writer): group for writer in together})
        self._read: dict[tuple[str, str], tuple[CounterGroup, frozenset[str]]] = {}
        self._counts_reads: dict[tuple[str, str], list[CounterGroup]] = {}  # (tensor, reader) -> what its loads bump
        for kernel, tensor in self.over.items():
            self._add_read_group(tensor, kernel)
        for tensor in sorted(self._watched):
            self._done[tensor] = self._done_group(tensor)

    def _updates(self, tensor: str, writer: str) -> bool:
        """Whether the writer itself waits for earlier writes to the tensor."""
        return tensor in (self.in_place.get(writer), self.over.get(writer))

    def _require_same_boxes(self, tensor: str, kernel: str) -> None:
        """Raise InternalError unless the kernel loads `tensor` once, at the same points at which it stores to it."""
        loads, stores = self._accesses(tensor, kernel, Load), self._accesses(tensor, kernel, Store)
        if len(loads) == 1 == len(stores):
            (load, source), (store, result) = loads[0], stores[0]
            at = source.view, load.loops, load.stmt.index  # type: ignore[union-attr]
            if at == (result.view, store.loops, store.stmt.index):  # type: ignore[union-attr]
                return
        raise InternalError(f"kernel @{kernel} writes its result over %{tensor} at other points than it reads")

    def _shared_counters(self, tensor: str, writers: Sequence[str]) -> list[tuple[str, ...]]:
        """Writers of a tensor, in sets that share counters. Writers of parts share them if all precede every reader, so
        that a reader waits once. Otherwise each has its own, so that no reader waits for a later writer."""
        parts = all(w not in self.stages and not self._updates(tensor, w) for w in writers)
        last = max(self.step[w] for w in writers)
        if parts and all(self.step[r] > last for r in self.readers.get(tensor, ())):
            return [tuple(writers)]
        return [(w,) for w in writers]

    # groups

    def _add_read_group(self, tensor: str, kernel: str) -> None:
        """Add the counter of reads of `tensor` between its last writer before `kernel` and `kernel`."""
        number = self._number(tensor, kernel)
        since = self._write_steps[tensor][number - 1] if number else -1
        steps = self._read_steps[tensor]
        others = self.readers[tensor][bisect_right(steps, since) : bisect_left(steps, self.step[kernel])]
        visits = sum(self._visits(tensor, r, Load) for r in others)
        if others:
            group = self._new(f"{tensor}.read.{number}", tensor, "done", 1, [visits])
            self._read[tensor, kernel] = group, frozenset(others)
            for reader in others:
                self._counts_reads.setdefault((tensor, reader), []).append(group)

    def _new(self, name: str, tensor: str, kind: str, block: int, expect: Sequence[int]) -> CounterGroup:
        group = self._groups[name] = CounterGroup(name, tensor, kind, 0, block, tuple(expect))
        return group

    def _full_group(self, tensor: str, writers: Sequence[str]) -> CounterGroup:
        memory = self.tensors[tensor]
        every = self.writers[tensor]
        name = f"{tensor}.full" if len(writers) == len(every) else f"{tensor}.full.{self._number(tensor, writers[0])}"
        if writers[0] in self.stages:
            block = max(
                1, min(memory.elements, max(COPY_BYTES // memory.dtype.bytes, -(-memory.elements // self._share)))
            )
            return self._new(name, tensor, "full", block, [1] * -(-memory.elements // block))
        if any(self._unordered(tensor, writer) for writer in writers):
            visits = sum(self._visits(tensor, writer, Store) for writer in writers)
            return self._new(name, tensor, "done", max(memory.elements, 1), [visits])
        block = max(self._block(memory, writer) for writer in writers)
        counts = np.zeros(-(-max(memory.elements, 1) // block) + 1, np.int64)
        for writer in writers:
            for site, param in self._accesses(tensor, writer, Store):
                first, last = self._spans(writer, site, param)
                keep = last >= first
                np.add.at(counts, first[keep] // block, 1)
                np.add.at(counts, last[keep] // block + 1, -1)
        return self._new(name, tensor, "full", block, [int(c) for c in np.cumsum(counts)[:-1]])

    def _unordered(self, tensor: str, writer: str) -> bool:
        """Whether the writer scatters, so that the blocks a store touches are unknown at compile time."""
        return any(s.stmt.scatter is not None for s, _ in self._accesses(tensor, writer, Store))  # type: ignore[union-attr]

    def _block(self, memory: MemTensor, writer: str) -> int:
        """Elements per counter: a multiple of the stores' step, such that the tensor stays within its share of
        counters."""
        advance = 1
        for site, param in self._accesses(memory.name, writer, Store):
            for loop in reversed(site.loops):
                step = sum(param.view.strides[d] * e.coefficient(loop.var) for d, e in enumerate(site.stmt.index))  # type: ignore[union-attr]
                advance = max(advance, abs(step) * loop.step)
        least = -(-max(memory.elements, 1) // self._share)
        return max(1, -(-least // advance) * advance) if advance < memory.elements else max(memory.elements, 1)

    def _done_group(self, tensor: str) -> CounterGroup:
        count = 0
        for reader in self.readers.get(tensor, ()):
            count += len(self.blocks(reader)) if reader in self.stages else self._visits(tensor, reader, Load)
        return self._new(f"{tensor}.done", tensor, "done", max(self.tensors[tensor].elements, 1), [count])

    def _visits(self, tensor: str, kernel: str, kind: type[Load] | type[Store]) -> int:
        """Number of (statement, unit) pairs of a kernel that access a tensor. A unit whose coordinate exceeds the trip
        count of a loop distributed over that axis never runs the statement."""
        total = 0
        for site, _ in self._accesses(tensor, kernel, kind):
            trips = {loop.over: loop.trips for loop in site.loops if loop.over is not None}
            total += math.prod(min(n, trips.get(axis, n)) for axis, n in self.kernels[kernel].grid)
        return total

    # accesses

    def _accesses(self, tensor: str, kernel: str, kind: type[Load] | type[Store]) -> list[tuple[Site, Param]]:
        params = {p.name: p for p in self.kernels[kernel].params if p.tensor == tensor}
        found = []
        for site in self.sites[kernel]:
            if isinstance(site.stmt, Load | Store) and isinstance(site.stmt, kind):
                name = site.stmt.src if isinstance(site.stmt, Load) else site.stmt.dst
                if name in params:
                    found.append((site, params[name]))
        return found

    def _spans(self, kernel: str, site: Site, param: Param) -> tuple[np.ndarray, np.ndarray]:
        """First and last element of every instance of a load or store, as flat arrays."""
        stmt = site.stmt
        assert isinstance(stmt, Load | Store)
        buffers = {b.name: b for b in self.kernels[kernel].buffers}
        tile = buffers[stmt.dst if isinstance(stmt, Load) else stmt.src].shape
        gather: Gather | None = stmt.gather if isinstance(stmt, Load) else stmt.scatter
        grids = iterations(site.loops)
        offsets = []
        for expression in stmt.index:
            at = np.asarray(expression.const)
            for name, factor in expression.loops.terms:
                at = at + factor * grids[name]
            offsets.append(at)
        first, last = box_span(
            param.view.offset,
            param.view.shape,
            param.view.strides,
            stmt.index,
            tile,
            offsets,
            gather.dim if gather is not None else None,
        )
        shape = tuple(loop.trips for loop in site.loops)
        return np.broadcast_to(first, shape).reshape(-1), np.broadcast_to(last, shape).reshape(-1)

    # instructions

    def groups(self) -> tuple[CounterGroup, ...]:
        """All groups, in the order in which they use counters."""
        return tuple(replace(self._groups[name], first=first) for name, first in self._allocation.first.items())

    def blocks(self, stage: str) -> list[tuple[int, int]]:
        """(first element, count) of each copy of a staged tensor."""
        total = self.tensors[stage].elements
        block = self._full[stage, stage].block
        return [(start, min(block, total - start)) for start in range(0, total, block)]

    def sync(self, kernel: Kernel, site: Site) -> tuple[tuple[Wait, ...], tuple[Bump, ...]]:
        """Waits and bumps of a load or store; empty for other statements."""
        stmt = site.stmt
        if not isinstance(stmt, Load | Store):
            return (), ()
        name = stmt.src if isinstance(stmt, Load) else stmt.dst
        tensor = next(p.tensor for p in kernel.params if p.name == name)
        if isinstance(stmt, Load):
            done = self._done.get(tensor)
            last = [done] if done is not None else []
            last += self._counts_reads.get((tensor, kernel.name), [])
            bumps = tuple(Bump(group.name, touched=False) for group in last)
            return self._with_counters(self._full_waits(tensor, kernel.name, stmt.gather is None), bumps)
        group = self._full[tensor, kernel.name]
        first = self.writers[tensor][0] == kernel.name
        waits = self._takeover_waits(tensor) if first or not self._updates(tensor, kernel.name) else ()
        if (tensor, kernel.name) in self._read:
            waits = (*waits, Wait(self._read[tensor, kernel.name][0].name, touched=False))
        if self.in_place.get(kernel.name) == tensor:
            waits = (*waits, *self._full_waits(tensor, kernel.name, False))
        return self._with_counters(waits, (Bump(group.name, touched=group.kind == "full"),))

    def copy_sync(self, name: str, source: str) -> tuple[tuple[Wait, ...], tuple[Bump, ...]]:
        """Waits and bumps of the copies of a staged tensor."""
        done = self._done.get(source)
        bumps = [Bump(self._full[name, name].name, touched=True)]
        if done is not None:
            bumps.append(Bump(done.name, touched=False))
        return self._with_counters((*self._full_waits(source, name, False), *self._takeover_waits(name)), bumps)

    def _with_counters(
        self, waits: tuple[Wait, ...], bumps: Sequence[Bump]
    ) -> tuple[tuple[Wait, ...], tuple[Bump, ...]]:
        """`waits`, and those for the groups whose counters the groups of `bumps` take over; `bumps`."""
        before = (self._allocation.before.get(bump.group) for bump in bumps)
        return tuple(dict.fromkeys((*waits, *(Wait(name, touched=False) for name in before if name)))), tuple(bumps)

    def _full_waits(self, tensor: str, reader: str, touched: bool) -> tuple[Wait, ...]:
        """Waits for everything written before `reader`."""
        before = self._number(tensor, reader)
        groups = {g.name: g for g in (self._full[tensor, w] for w in self._from_last_update(tensor, before))}
        return tuple(Wait(g.name, touched=touched and g.kind == "full") for g in groups.values())

    def _takeover_waits(self, tensor: str) -> tuple[Wait, ...]:
        waits = []
        for old in self._takeovers.get(tensor, ()):
            if self._done[old].expect != (0,):
                waits.append(Wait(self._done[old].name, touched=False))
            if not self._read_whole(old):
                waits += [Wait(self._full[old, w].name, touched=False) for w in self.writers[old]]
        return tuple(waits)

    def _read_whole(self, tensor: str) -> bool:
        """Whether some reader waits for each block of `tensor`, so that "done" implies that all stores have
        completed."""
        if tensor not in self._covered:
            awaited = self._from_last_update(tensor, len(self.writers[tensor]))
            last = {self._full[tensor, w].name: w for w in awaited}  # of the writers that share counters
            self._covered[tensor] = all(self._waited_for(tensor, writer) for writer in last.values())
        return self._covered[tensor]

    def _from_last_update(self, tensor: str, count: int) -> Sequence[str]:
        """Of the first `count` writers of the tensor, the last that updates it in place (it waits for earlier ones) and
        all after it."""
        updates = self._update_numbers.get(tensor, ())
        last = bisect_left(updates, count)
        return self.writers.get(tensor, ())[updates[last - 1] if last else 0 : count]

    def _number(self, tensor: str, name: str) -> int:
        """How many writers of the tensor come before a kernel or stage; of a writer, its place among them."""
        return bisect_left(self._write_steps.get(tensor, ()), self.step[name])

    def _waited_for(self, tensor: str, writer: str) -> bool:
        """Whether some reader waits for each block that `writer` counts."""
        group = self._full[tensor, writer]
        seen = np.zeros(len(group.expect) + 1, np.int64)
        for reader in self.readers.get(tensor, ()):
            if self.step[reader] <= self.step[writer]:
                continue
            if reader in self.stages:
                seen[0] += 1
                continue
            for site, param in self._accesses(tensor, reader, Load):
                if site.stmt.gather is not None or group.kind == "done":  # type: ignore[union-attr]
                    seen[0] += 1
                    continue
                first, last = self._spans(reader, site, param)
                keep = last >= first
                np.add.at(seen, first[keep] // group.block, 1)
                np.add.at(seen, last[keep] // group.block + 1, -1)
        return bool((np.cumsum(seen)[:-1] > 0).all())
