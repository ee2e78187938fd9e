"""Chains of data movement as networks have them, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st

from ppuc.ir.graph import Value
from tests.support.pass_graphs import Sketch

Move = Callable[[Sketch, Value], Value]


def part(s: Sketch, x: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
    """`size` elements of `x` along `axis`."""
    dims, rank = x.type.dims, x.type.rank
    starts = [start if a == axis else 0 for a in range(rank)]
    sizes = [size if a == axis else d for a, d in enumerate(dims)]
    return s.slice(x, starts, sizes, [step if a == axis else 1 for a in range(rank)])


def rolled(s: Sketch, x: Value, axis: int, by: int) -> Value:
    """`torch.roll(x, by, axis)`."""
    size = x.type.dims[axis]
    cut = -by % size
    if cut == 0:
        return x
    return s.concat(part(s, x, axis, cut, size - cut), part(s, x, axis, 0, cut), axis=axis)


def to_windows(s: Sketch, x: Value, side: int) -> Value:
    """[n, h, w, c] -> [n (h / side) (w / side), side^2, c]."""
    n, h, w, c = x.type.dims
    y = s.transpose(s.reshape(x, n, h // side, side, w // side, side, c), 0, 1, 3, 2, 4, 5)
    return s.reshape(y, n * (h // side) * (w // side), side * side, c)


def from_windows(s: Sketch, x: Value, n: int, h: int, w: int) -> Value:
    """The inverse of `to_windows`."""
    _, points, c = x.type.dims
    side = math.isqrt(points)
    y = s.transpose(s.reshape(x, n, h // side, w // side, side, side, c), 0, 1, 3, 2, 4, 5)
    return s.reshape(y, n, h, w, c)


def focused(s: Sketch, x: Value, axis: int, onto: int) -> Value:
    """Even and odd elements along `axis`, one after the other along `onto`."""
    size = x.type.dims[axis]
    return s.concat(part(s, x, axis, 0, size // 2, 2), part(s, x, axis, 1, size // 2, 2), axis=onto)


def wrapped(s: Sketch, x: Value, axis: int) -> Value:
    """A wrapping pad of one element on either side."""
    size = x.type.dims[axis]
    return s.concat(part(s, x, axis, size - 1, 1), x, part(s, x, axis, 0, 1), axis=axis)


@st.composite
def moves(draw: st.DrawFn, most: int = 5) -> list[tuple[str, int, int, int]]:
    """Steps for `moved`."""
    names = st.sampled_from(("roll", "roll", "split", "turn", "merge", "focus", "flip", "wrap", "cut"))
    number = st.integers(0, 11)
    return draw(st.lists(st.tuples(names, number, number, number), min_size=1, max_size=most))


def moved(s: Sketch, x: Value, steps: list[tuple[str, int, int, int]]) -> Value:
    """`x` after these steps; those that do not fit its shape are left out."""
    for name, a, b, c in steps:
        dims, rank = x.type.dims, x.type.rank
        axis, other = a % rank, b % rank
        size = dims[axis]
        if name == "roll":
            x = rolled(s, x, axis, 1 + c)
        elif name == "split" and rank < 6 and (found := [n for n in range(2, size) if size % n == 0]):
            outer = found[c % len(found)]
            x = s.reshape(x, *dims[:axis], outer, size // outer, *dims[axis + 1 :])
        elif name == "turn" and axis != other:
            perm = list(range(rank))
            perm[axis], perm[other] = other, axis
            x = s.transpose(x, *perm)
        elif name == "merge" and axis + 1 < rank:
            x = s.reshape(x, *dims[:axis], size * dims[axis + 1], *dims[axis + 2 :])
        elif name == "focus" and size % 2 == 0:
            x = focused(s, x, axis, other)
        elif name == "flip":
            x = part(s, x, axis, size - 1, size, -1)
        elif name == "wrap":
            x = wrapped(s, x, axis)
        elif name == "cut" and size > 2:
            x = part(s, x, axis, 1 + c % (size - 2), size - 1 - c % (size - 2))
    return x
