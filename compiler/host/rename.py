"""Renames programs, for joining several into one and separating them again.

Invariant: only names of tensors, kernels, vector programs and segments change, all by the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ppuc.ir.kernel import Vec
from ppuc.ir.program import KernelProgram, Segment, StreamLoop, StreamNode

Rename = Callable[[str], str]


def renamed_segment(segment: Segment, rename: Rename) -> Segment:
    """`segment` with `rename` applied to every name that is unique in a program."""
    copies = tuple(replace(c, dst=rename(c.dst), src=rename(c.src)) for c in segment.copies)
    counters = tuple(replace(c, tensor=rename(c.tensor)) for c in segment.counters)
    return Segment(rename(segment.name), tuple(_kernel(k, rename) for k in segment.kernels), copies, counters)


def _kernel(kernel: KernelProgram, rename: Rename) -> KernelProgram:
    params = tuple(replace(p, tensor=rename(p.tensor)) for p in kernel.params)
    rings = tuple(replace(r, after=tuple(rename(a) if "/" in a else a for a in r.after)) for r in kernel.rings)

    def each(body: tuple[StreamNode, ...]) -> tuple[StreamNode, ...]:
        return tuple(one(node) for node in body)

    def one(node: StreamNode) -> StreamNode:
        if isinstance(node, StreamLoop):
            return replace(node, body=each(node.body))
        if isinstance(node.stmt, Vec):
            return replace(node, stmt=replace(node.stmt, program=rename(node.stmt.program)))
        return node

    streams = tuple((queue, each(body)) for queue, body in kernel.streams)
    return replace(kernel, name=rename(kernel.name), params=params, rings=rings, streams=streams)
