"""Checks a program against the limits of a target: rings, counters, units, queues and memories.

`ppuc.ir.verify` checks the target-independent rules of a program.

Invariant: the simulator of a program that passes stays within the target's resources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ppuc.ir.errors import CapacityError, Diagnostic, Entity, EntityKind
from ppuc.ir.program import KernelProgram, Program, Segment
from ppuc.ir.types import Space
from ppuc.targets.schema import Target


def check_limits(program: Program, target: Target) -> None:
    """Raise CapacityError with every limit of `target` that `program` exceeds: the entity, its number, the limit and
    its key."""
    findings = [*_memories(program, target)]
    for segment in program.segments:
        findings += _segment(segment, target)
    if findings:
        raise CapacityError(findings)


def _memories(program: Program, target: Target) -> Iterator[Diagnostic]:
    for space, size in ((Space.L2, target.l2.bytes), (Space.HBM, target.hbm.bytes)):
        ends = {t.name: t.address + t.bytes for t in program.tensors if t.space is space}
        last = max(ends, key=ends.__getitem__, default=None)
        if last is not None and ends[last] > size:
            where, key = f"tensor %{last}", f"{space}.bytes"
            about = Entity.each(EntityKind.TENSOR, (name for name, end in ends.items() if end > size))
            yield _exceeded(where, f"lies beyond {space}", ends[last], "bytes", size, key, target, about)


def _segment(segment: Segment, target: Target) -> Iterator[Diagnostic]:
    counters = segment.counters_used
    if counters > target.sync.counters_per_chip:
        yield _exceeded(
            f"segment @{segment.name}",
            "needs more counters than the chip has",
            counters,
            "counters",
            target.sync.counters_per_chip,
            "sync.counters_per_chip",
            target,
            Entity.each(EntityKind.KERNEL, (kernel.name for kernel in segment.kernels)),
            "split the model into parts compiled separately, or explore more counters with "
            f"--set sync.counters_per_chip={counters}",
        )
    queues = 1 + max((copy.queue for copy in segment.copies), default=-1)
    if queues > target.stage.queues:
        where, limit = f"segment @{segment.name}", target.stage.queues
        beyond = dict.fromkeys(copy.dst for copy in segment.copies if copy.queue >= limit)
        about = Entity.each(EntityKind.TENSOR, beyond)
        what = "copies on more queues than there are"
        yield _exceeded(where, what, queues, "queues", limit, "stage.queues", target, about)
    for kernel in segment.kernels:
        yield from _kernel(kernel, target)


def _kernel(kernel: KernelProgram, target: Target) -> Iterator[Diagnostic]:
    where = f"kernel @{kernel.name}"
    about = (Entity(EntityKind.KERNEL, kernel.name), *Entity.each(EntityKind.NODE, kernel.loc))
    units, rings = math.prod(n for _, n in kernel.grid), len(kernel.rings)
    if units > target.cu:
        yield _exceeded(where, "runs on more units than there are", units, "units", target.cu, "cu", target, about)
    if kernel.first >= target.cu:
        what, allowed = "begins at a unit that does not exist", f"0 to {target.cu - 1} (cu of {target.name})"
        yield Diagnostic(where, what, f"unit {kernel.first}", allowed, None, about)
    if rings > target.sync.rings_per_cu:
        limit = target.sync.rings_per_cu
        what, key = "needs more rings than a unit has", "sync.rings_per_cu"
        yield _exceeded(where, what, rings, "rings", limit, key, target, about)
    for space, size in ((Space.L1, target.l1.bytes), (Space.ACC, target.acc.bytes)):
        end = max((r.base + r.depth * r.slot_bytes for r in kernel.rings if r.space is space), default=0)
        if end > size:
            what, key = f"its rings do not fit {space}", f"{space}.bytes"
            yield _exceeded(where, what, end, "bytes", size, key, target, about)


def _exceeded(
    where: str,
    what: str,
    found: int,
    unit: str,
    limit: int,
    key: str,
    target: Target,
    about: tuple[Entity, ...],
    hint: str | None = None,
) -> Diagnostic:
    return Diagnostic(where, what, f"{found:,} {unit}", f"at most {limit:,} ({key} of {target.name})", hint, about)


__all__ = ["check_limits"]
