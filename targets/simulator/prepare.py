"""The launches of a program as arrays, kept for the program that ran last: its next run on the same machine begins at
once.

Invariant: what is kept belongs to the very same program and to an equal target; records of both are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.program import Program
from ppuc.ir.vector import VectorProgram
from ppuc.targets.limits import check_limits
from ppuc.targets.schema import Target
from ppuc.targets.simulator.decode import FlatSegment, flatten
from ppuc.targets.simulator.launch import launches


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of the segment of a number, the `first` one of it or a later one."""

    segment: int
    first: bool
    flat: FlatSegment


@dataclass(frozen=True, slots=True)
class _Kept:
    program: Program
    vectors: tuple[VectorProgram, ...]
    target: Target
    launches: tuple[Launch, ...]


_last: list[_Kept] = []


def prepare(program: Program, vectors: tuple[VectorProgram, ...], target: Target) -> tuple[Launch, ...]:
    """The launches of `program` on `target`, in order. Raises CapacityError if it exceeds a limit of `target`."""
    for kept in _last[:1]:
        if kept.program is program and kept.vectors is vectors and kept.target == target:
            return kept.launches
    check_limits(program, target)
    by_name = {v.name: v for v in vectors}
    found = tuple(
        Launch(number, i == 0, flatten(program, part, by_name, target))
        for number, segment in enumerate(program.segments)
        for i, part in enumerate(launches(segment, target))
    )
    _last[:] = [_Kept(program, vectors, target, found)]
    return found


__all__ = ["Launch", "prepare"]
