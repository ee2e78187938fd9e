"""Components, orders and cuts of random graphs, compared with networkx."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppuc.compiler.passes.digraph import Flow, strong_components, topological_order
from ppuc.ir.errors import InternalError
from tests.support.effort import assert_linear

NODES = 9
Edges = list[tuple[int, int]]
EDGES = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=24)


def successors(edges: Edges) -> dict[int, dict[int, None]]:
    found: dict[int, dict[int, None]] = {n: {} for n in range(NODES)}
    for tail, head in edges:
        found[tail][head] = None
    return found


def graph_of(edges: Edges) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(NODES))
    graph.add_edges_from(edges)
    return graph


@given(EDGES)
def test_strong_components_come_after_those_they_lead_to(edges: Edges) -> None:
    found = [set(part) for part in strong_components(successors(edges))]
    assert found == list(nx.strongly_connected_components(graph_of(edges)))


@given(EDGES, st.permutations(range(NODES)))
def test_topological_order_takes_the_least_key_first(edges: Edges, keys: list[int]) -> None:
    forward = [(tail, head) for tail, head in edges if tail < head]
    expected = nx.lexicographical_topological_sort(graph_of(forward), key=keys.__getitem__)
    assert topological_order(successors(forward), keys.__getitem__) == list(expected)


def test_a_cycle_has_no_order() -> None:
    with pytest.raises(InternalError, match="1 depends on itself"):
        topological_order(successors([(0, 1), (1, 2), (2, 1)]), lambda node: node)


CAPACITIES = st.one_of(st.integers(0, 9), st.just(math.inf))


@given(st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1), CAPACITIES), max_size=24))
def test_the_minimum_cut_with_the_fewest_nodes(edges: list[tuple[int, int, float]]) -> None:
    """Edges at the source and the sink are finite."""
    source, sink = 0, NODES - 1
    graph, flow = graph_of([]), Flow()
    for tail, head, wanted in edges:
        capacity = min(wanted, 5) if {tail, head} & {source, sink} else wanted
        if tail == head or not capacity:
            continue
        flow.add(tail, head, capacity)
        before = graph.edges[tail, head]["capacity"] if graph.has_edge(tail, head) else 0
        graph.add_edge(tail, head, capacity=before + capacity)
    side = flow.source_side(source, sink)
    assert source in side
    assert sink not in side
    value, _ = nx.minimum_cut(graph, source, sink)
    assert sum(c for tail, head, c in graph.edges.data("capacity") if tail in side and head not in side) == value
    _, (_, far) = nx.minimum_cut(graph.reverse(), sink, source)  # the sink's side there is the smallest one
    assert side == far


def test_work_is_linear() -> None:
    def components(count: int) -> object:
        line: dict[int, list[int]] = {n: [n + 1] for n in range(count)} | {count: []}
        return lambda: (list(strong_components(line)), topological_order(line, lambda node: node))

    assert_linear(components, 500)  # type: ignore[arg-type]

    def cuts(count: int) -> object:
        flow = Flow()
        for n in range(count):
            flow.add("source", n, 3 + n % 2)
            flow.add(n, n + 1, 2)
            flow.add(n, "sink", 3 + (n + 1) % 3)
        return lambda: flow.source_side("source", "sink")

    assert_linear(cuts, 500)  # type: ignore[arg-type]
