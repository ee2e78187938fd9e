"""Results that are kept with a segment: they depend on its code, not on the numbers of the machine, so runs on other
machines share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from ppuc.targets.simulator.decode import FlatSegment

T = TypeVar("T")


def once_a_segment(function: Callable[[FlatSegment], T]) -> Callable[[FlatSegment], T]:
    """`function` of a segment's code, evaluated once for a segment and its copies for other machines."""
    key = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def remembered(flat: FlatSegment) -> T:
        if key not in flat.found:
            flat.found[key] = function(flat)
        return cast(T, flat.found[key])

    return remembered


__all__ = ["once_a_segment"]
