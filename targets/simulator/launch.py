"""Splits a segment into launches: one per segment, or one per kernel on targets that launch kernels individually.

Invariant: the launches of a segment hold each of its kernels and copies once, in order. Waits that an earlier launch
satisfies are removed, because launches do not overlap. Counters begin at zero in each launch, so its groups have
counters of their own: one that takes over from a group of an earlier launch would wait for bumps that are not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ppuc.ir.program import Copy, CounterGroup, Instr, KernelProgram, Ring, Segment, StreamLoop, StreamNode
from ppuc.targets.schema import Target


def launches(segment: Segment, target: Target) -> tuple[Segment, ...]:
    """The launches of `segment`, in order."""
    if target.launch.granularity == "segment" or len(segment.kernels) < 2:
        return (segment,)
    return tuple(_launch(segment, k, copies) for k, copies in enumerate(_copies_of(segment)))


def launch_clk(target: Target, first: bool) -> float:
    """Launch overhead in cycles, for a segment's first launch or a later one."""
    us = target.segment_launch_us if first else target.launch.kernel_us
    return us * 1e3 / target.clk_ns


def _copies_of(segment: Segment) -> list[list[Copy]]:
    """The copies of each launch: those whose counters its kernel is the first to wait for; all others belong to the
    first launch."""
    first: dict[str, int] = {}
    for k, kernel in enumerate(segment.kernels):
        for instr in _instrs(kernel):
            for wait in instr.waits:
                first.setdefault(wait.group, k)
    found: list[list[Copy]] = [[] for _ in segment.kernels]
    for copy in segment.copies:
        found[min((first.get(bump.group, 0) for bump in copy.bumps), default=0)].append(copy)
    return found


def _launch(segment: Segment, k: int, copies: list[Copy]) -> Segment:
    kernel = segment.kernels[k]
    inside = [bump.group for instr in _instrs(kernel) for bump in instr.bumps]
    inside += [bump.group for copy in copies for bump in copy.bumps]
    everywhere = [b.group for other in segment.kernels for instr in _instrs(other) for b in instr.bumps]
    everywhere += [b.group for copy in segment.copies for b in copy.bumps]
    here = {group for group in inside if inside.count(group) == everywhere.count(group)}
    rings = tuple(_without_earlier(ring, kernel) for ring in kernel.rings)
    streams = tuple((queue, _awaiting(body, here)) for queue, body in kernel.streams)
    kept = tuple(replace(c, waits=tuple(w for w in c.waits if w.group in here)) for c in copies)
    counters = _own_counters([group for group in segment.counters if group.name in set(inside)])
    return Segment(segment.name, (replace(kernel, rings=rings, streams=streams),), kept, counters)


def _own_counters(groups: Sequence[CounterGroup]) -> tuple[CounterGroup, ...]:
    """The groups, none of which shares counters with another."""
    firsts = itertools.accumulate((len(group.expect) for group in groups), initial=0)
    return tuple(replace(group, first=first) for group, first in zip(groups, firsts, strict=False))


def _without_earlier(ring: Ring, kernel: KernelProgram) -> Ring:
    """`ring` without other kernels' rings in `after`: they have retired."""
    own = {r.name for r in kernel.rings} - {ring.name}
    return replace(ring, after=tuple(a for a in ring.after if _own_name(a, kernel) in own))


def _own_name(name: str, kernel: KernelProgram) -> str:
    owner, _, bare = name.rpartition("/")
    return bare if owner in ("", kernel.name) else name


def _awaiting(body: tuple[StreamNode, ...], groups: set[str]) -> tuple[StreamNode, ...]:
    """`body` with waits for `groups` only."""
    return tuple(
        replace(node, waits=tuple(w for w in node.waits if w.group in groups))
        if isinstance(node, Instr)
        else replace(node, body=_awaiting(node.body, groups))
        for node in body
    )


def _instrs(kernel: KernelProgram) -> Iterator[Instr]:
    for _, body in kernel.streams:
        yield from _walk(body)


def _walk(body: tuple[StreamNode, ...]) -> Iterator[Instr]:
    for node in body:
        if isinstance(node, StreamLoop):
            yield from _walk(node.body)
        else:
            yield node


__all__ = ["launch_clk", "launches"]
