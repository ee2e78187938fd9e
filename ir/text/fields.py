"""Options in braces of lines other than ops: one dataclass each, printed and parsed like op attributes."""

from __future__ import annotations

from dataclasses import dataclass

from ppuc.ir.graph import Attrs
from ppuc.ir.types import DType


@dataclass(frozen=True, slots=True)
class StepFields(Attrs):
    """Options of a step of a vector program; only non-defaults are printed."""

    ints: tuple[int, ...] = ()
    number: int | float = 0.0
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class CounterFields(Attrs):
    """Options of a counter group."""

    kind: str
    first: int
    block: int
    expect: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProgramFields(Attrs):
    """Options of a program: its target."""

    target: str
    hash: str
