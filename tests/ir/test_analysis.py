"""Users, reachability and live ranges of graph values."""

from __future__ import annotations

from ppuc.ir.analysis import use_counts, users
from ppuc.ir.graph import Graph
from tests.support.pass_graphs import Sketch


class TestAnalysis:
    def graph(self) -> Graph:
        s = Sketch()
        x = s.param(3)
        a = s.op("neg", x)
        b = s.op("exp", x)
        return s.graph(s.op("mul", a, a), b)

    def test_users_and_counts(self) -> None:
        graph = self.graph()
        assert [op.name for op in users(graph)["p"]] == ["neg", "exp"]
        assert [op.name for op in users(graph)["neg"]] == ["mul"]
        assert users(graph)["mul"] == ()
        assert use_counts(graph) == {"p": 2, "neg": 2, "mul": 1, "exp": 1}
