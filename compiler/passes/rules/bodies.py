"""Helpers for rebuilding bodies of groups: dependences of an op, and fresh names."""

from __future__ import annotations

from dataclasses import replace

from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.rewrite import Builder


def ancestors(body: Graph, anchor: Op) -> set[str]:
    """Names of the anchor's operands and of all values that they depend on."""
    found = {v.name for v in anchor.operands}
    for op in reversed(body.ops):
        if op.results[0].name in found:
            found |= {v.name for v in op.operands}
    return found


def fresh_body(names: Builder, body: Graph) -> Graph:
    """`body` with every value renamed to a fresh name."""
    renamed: dict[str, Value] = {}

    def fresh(v: Value) -> Value:
        return renamed.setdefault(v.name, replace(v, name=names.fresh(v.name)))

    params = tuple(map(fresh, body.params))
    ops = tuple(
        replace(op, operands=tuple(map(fresh, op.operands)), results=tuple(map(fresh, op.results))) for op in body.ops
    )
    return Graph(body.name, params, tuple(map(fresh, body.results)), ops)
