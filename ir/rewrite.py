"""Building and rewriting graphs in one walk.

A Builder appends ops with fresh names and infers their types. `rewrite` walks a graph once, maps old values to new ones
and passes every op to a callback that may emit a replacement. A rewrite that changes nothing returns the same object.

Invariant: a fresh name is unique in its graph and depends only on what was built before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.ops import OPS
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType

_OTHER = re.compile(r"[^A-Za-z0-9_.]")
"""Characters that names do not have."""


class Builder:
    """Appends ops to a growing list. `taken` are reserved names."""

    def __init__(self, taken: Iterable[str] = (), loc: tuple[str, ...] = ()) -> None:
        self.ops: list[Op] = []
        self.loc = loc
        self._taken: set[str] = set(taken)
        self._counts: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        """A fresh name: `hint` itself if unused, else hint.1, hint.2, ..."""
        hint = _OTHER.sub("_", hint) or "v"
        name = hint
        while name in self._taken:
            self._counts[hint] = self._counts.get(hint, 0) + 1
            name = f"{hint}.{self._counts[hint]}"
        self._taken.add(name)
        return name

    def emit(
        self,
        name: str,
        operands: Sequence[Value],
        attrs: Attrs | None = None,
        *,
        hint: str | None = None,
        types: Sequence[TensorType] | None = None,
        body: Graph | None = None,
    ) -> tuple[Value, ...]:
        """Append op `name`; result types come from the record unless given. Returns the results."""
        attrs = attrs if attrs is not None else OPS[name].attrs()
        types = types if types is not None else OPS[name].infer(attrs, [v.type for v in operands])
        results = tuple(Value(self.fresh(hint or name), t) for t in types)
        self.ops.append(Op(name, attrs, tuple(operands), results, self.loc, body))
        return results

    def __call__(self, name: str, *operands: Value, attrs: Attrs | None = None, hint: str | None = None) -> Value:
        """Append an op with one result and return that result."""
        (result,) = self.emit(name, operands, attrs, hint=hint)
        return result

    def const(self, array: np.ndarray | Resource, hint: str = "c") -> Value:
        """Append a constant."""
        resource = array if isinstance(array, Resource) else Resource.of(np.asarray(array), hint)
        return self("const", attrs=ConstAttrs(resource), hint=hint)

    def scalar(self, number: float, dtype: DType, hint: str = "c") -> Value:
        """Append a rank-0 constant."""
        return self.const(np.asarray(number).astype(dtype.numpy), hint)


def all_names(graph: Graph) -> set[str]:
    """Every value name in `graph`, nested bodies included."""
    names = {p.name for p in graph.params}
    for op in graph.ops:
        names.update([r.name for r in op.results])
        if op.body is not None:
            names |= all_names(op.body)
    return names


def rewrite(graph: Graph, rule: Callable[[Builder, Op], Sequence[Value] | None]) -> Graph:
    """Rebuild `graph` in one walk. For each op (operands already renamed) `rule` returns the values that replace its
    results, or None to keep it. Returns `graph` itself if the rule never fired."""
    builder = Builder(all_names(graph))
    renamed: dict[str, Value] = {}
    fired = False
    for op in graph.ops:
        operands = tuple(renamed.get(v.name, v) for v in op.operands)
        current = op if operands == op.operands else replace(op, operands=operands)
        builder.loc = op.loc
        outcome = rule(builder, current)
        if outcome is None:
            builder.ops.append(current)
            continue
        fired = True
        for old, new in zip(op.results, outcome, strict=True):
            renamed[old.name] = new
    if not fired:
        return graph
    results = tuple(renamed.get(v.name, v) for v in graph.results)
    return Graph(graph.name, graph.params, results, tuple(builder.ops))


def without_dead_ops(graph: Graph) -> Graph:
    """Remove ops with unused results. Returns `graph` itself if there are none."""
    live = {v.name for v in graph.results}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if not live.isdisjoint([r.name for r in op.results]):
            kept.append(op)
            live.update([v.name for v in op.operands])
    return graph if len(kept) == len(graph.ops) else graph.with_ops(reversed(kept))
