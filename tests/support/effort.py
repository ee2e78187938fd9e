"""Measures work in function calls instead of time, which is the same on every machine under any load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


class Name(str):
    """A name whose comparison or use as a key is a call, which `calls_of` counts."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


def calls_of(work: Callable[[], object]) -> int:
    """Calls of Python and built-in functions that `work` makes."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def assert_linear(work: Callable[[int], Callable[[], object]], size: int) -> None:
    """Check that twice the size is about twice the calls: `work(n)` prepares input of size n and returns what is
    measured on it. A quadratic part that makes a fifth of the calls is found."""
    once, twice = calls_of(work(size)), calls_of(work(2 * size))
    assert twice < 2.2 * once, f"{once:,} calls for size {size}, {twice:,} for {2 * size}"
