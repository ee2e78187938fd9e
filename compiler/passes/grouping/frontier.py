"""The ops that are offered to a growing group, in the order of the graph.

Invariant: every op is offered once. Ops that read results of the group only through ops that are not part of it are
offered, as their readers must not join either, but not once nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush


class Frontier:
    """Ops still to be offered to one group. `users` maps the name of a value to the positions of its readers."""

    def __init__(self, users: Mapping[str, Sequence[int]]) -> None:
        self._users = users
        self._waiting: list[int] = []
        self._open: set[int] = set()
        self._known: set[int] = set()
        self._near: set[int] = set()
        self.offered = 0
        """Ops that were offered so far."""

    def __bool__(self) -> bool:
        """Whether an op waits that reads a result of the group, perhaps through views."""
        return bool(self._near)

    def add(self, names: Iterable[str], *, near: bool) -> None:
        """The readers of `names` wait; `near`: these are results of the group, or views of them."""
        for i in {u for name in names for u in self._users.get(name, ())}:
            if i not in self._known:
                self._known.add(i)
                self._open.add(i)
                heappush(self._waiting, i)
            if near and i in self._open:
                self._near.add(i)

    def pop(self) -> int:
        """The first op that waits."""
        i = heappop(self._waiting)
        self._open.discard(i)
        self._near.discard(i)
        self.offered += 1
        return i

    def put_back(self, i: int) -> None:
        """Let `i`, the op popped last, which reads a result of the group, wait again."""
        heappush(self._waiting, i)
        self._open.add(i)
        self._near.add(i)
        self.offered -= 1

    def copy(self) -> Frontier:
        """A frontier in the same state."""
        made = Frontier(self._users)
        made._waiting, made._open = [*self._waiting], {*self._open}
        made._known, made._near, made.offered = {*self._known}, {*self._near}, self.offered
        return made
