"""Algorithms on directed graphs: cycles, orders and minimum cuts.

A graph maps each node to its successors; what is found depends on the order of nodes and successors only.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any, TypeVar

from ppuc.ir.errors import InternalError

N = TypeVar("N", bound=Hashable)


def strong_components(graph: Mapping[N, Collection[N]]) -> Iterator[list[N]]:
    """Sets of nodes that reach each other, each after those that it leads to (Tarjan 1972). Every successor is a node
    of the graph."""
    number: dict[N, int] = {}
    low: dict[N, int] = {}
    waiting: list[N] = []  # nodes of components that are not complete
    done: set[N] = set()
    for start in graph:
        path = [] if start in number else [(start, iter(graph[start]))]
        while path:
            node, following = path[-1]
            if node not in number:
                number[node] = low[node] = len(number)
                waiting.append(node)
            new = next((n for n in following if n not in number), None)
            if new is not None:
                path.append((new, iter(graph[new])))
                continue
            path.pop()
            low[node] = min((number[node], *(low[n] for n in graph[node] if n not in done)))
            if low[node] == number[node]:
                found = [waiting.pop()]
                while found[-1] != node:
                    found.append(waiting.pop())
                done.update(found)
                yield found


def topological_order(graph: Mapping[N, Collection[N]], key: Callable[[N], Any]) -> list[N]:
    """Every node after those that lead to it, the one with the least key first (Kahn 1962). Keys are distinct. Raises
    InternalError if there is a cycle."""
    before = dict.fromkeys(graph, 0)
    for following in graph.values():
        for node in following:
            before[node] += 1
    ready = [(key(node), node) for node, count in before.items() if not count]
    heapq.heapify(ready)
    found: list[N] = []
    while ready:
        _, node = heapq.heappop(ready)
        found.append(node)
        for after in graph[node]:
            before[after] -= 1
            if not before[after]:
                heapq.heappush(ready, (key(after), after))
    if len(found) < len(before):
        raise InternalError(f"{next(n for n, count in before.items() if count)} depends on itself")
    return found


class Flow:
    """A network whose edges have capacities."""

    def __init__(self) -> None:
        self._left: dict[Hashable, dict[Hashable, float]] = {}  # node -> successor -> what the edge can still carry

    def add(self, tail: Hashable, head: Hashable, capacity: float) -> None:
        """Add an edge, or capacity to the one that exists."""
        if capacity:
            self._left.setdefault(tail, {}).setdefault(head, 0)
            self._left.setdefault(head, {}).setdefault(tail, 0)
            self._left[tail][head] += capacity

    def source_side(self, source: Hashable, sink: Hashable) -> set[Hashable]:
        """The nodes on the side of `source` in the minimum cut that has the fewest there (Dinic 1970). Uses up the
        capacities."""
        while sink in (levels := self._levels(source)):
            self._fill(source, sink, levels)
        return set(levels)

    def _levels(self, source: Hashable) -> dict[Hashable, int]:
        """The distance of every node that more can flow to."""
        found = {source: 0}
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for head, left in self._left.get(node, {}).items():
                if left and head not in found:
                    found[head] = found[node] + 1
                    queue.append(head)
        return found

    def _fill(self, source: Hashable, sink: Hashable, levels: Mapping[Hashable, int]) -> None:
        """Send what can flow along edges from one level to the next."""
        heads = {n: [h for h in self._left[n] if levels.get(h, 0) == at + 1] for n, at in levels.items()}
        path = [source]
        while path:
            node = path[-1]
            if node == sink:
                path = path[: self._send(path) + 1]
                continue
            while heads[node] and not self._left[node][heads[node][-1]]:
                heads[node].pop()
            if heads[node]:
                path.append(heads[node][-1])
                continue
            path.pop()
            if path:
                heads[path[-1]].pop()  # a dead end

    def _send(self, path: list[Hashable]) -> int:
        """Send as much as `path` carries; returns the position of the first node whose edge is full then."""
        edges = list(itertools.pairwise(path))
        most = min(self._left[tail][head] for tail, head in edges)
        for tail, head in edges:
            self._left[tail][head] -= most
            self._left[head][tail] += most
        return next(i for i, (tail, head) in enumerate(edges) if not self._left[tail][head])


__all__ = ["Flow", "strong_components", "topological_order"]
