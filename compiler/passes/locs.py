"""Joins the names of ONNX nodes that an op came from.

Invariant: an op outside of a walk has a plain tuple of names, in order of their first occurrence.
"""

from __future__ import annotations

Loc = tuple[str, ...]

_SHORT = 32
"""Names that are listed right away."""


class _Joined(tuple[str, ...]):
    """Locs joined into one, whose names `listed` finds. A chain of n ops that merge one after the other makes n of
    these; listing the names each time would take n^2 / 2 steps."""

    parts: tuple[Loc, ...]


def joined(first: Loc, *others: Loc) -> Loc:
    """The names in locs, each once: `first` itself if it has them all. A long loc is empty until it is `listed`."""
    others = tuple(loc for loc in others if loc is not first)
    if not others:
        return first
    locs = (first, *others)
    if any(isinstance(loc, _Joined) for loc in locs) or sum(map(len, locs)) > _SHORT:
        made = _Joined()
        made.parts = locs
        return made
    names = tuple(dict.fromkeys(name for loc in locs for name in loc))
    return first if len(names) == len(first) else names


def listed(loc: Loc) -> Loc:
    """A loc with its names listed; `loc` itself if they are."""
    if not isinstance(loc, _Joined):
        return loc
    names: dict[str, None] = {}
    seen: set[int] = set()
    pending: list[Loc] = [loc]
    while pending:
        part = pending.pop()
        if not isinstance(part, _Joined):
            names.update(dict.fromkeys(part))
        elif id(part) not in seen:
            seen.add(id(part))
            pending.extend(reversed(part.parts))
    return tuple(names)
