"""What stands in the braces of lines that are no ops: one dataclass each, printed and read like an op's attributes."""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.graph import Attrs
from ppuc.ir.types import DType


@dataclass(frozen=True, slots=True)
class StepFields(Attrs):
    """Of a step of a vector program; only what differs from the default is printed."""

    ints: tuple[int, ...] = ()
    number: int | float = 0.0
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class CounterFields(Attrs):
    """Of a group of counters."""

    kind: str
    first: int
    block: int
    expect: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProgramFields(Attrs):
    """Of a program: the machine it is for."""

    target: str
    hash: str
