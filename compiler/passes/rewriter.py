"""The pattern rewriter of all graph passes: applies rules, keyed by op name, until none fires.

A Walk rebuilds a graph in one traversal. Every op, with its operands already renamed, is offered to the rules of its
name. A rule emits the replacement and returns the value that stands for the op's result (or values, for several
results), or returns None. Emitted ops are offered to the rules in turn, so one walk follows a chain of rewrites to its
end. Rewrites that later ops enable (a value losing its second user) are left to the next walk; `to_fixpoint` walks
until nothing changes.

Invariants: a replacement has exactly the type of the value it replaces; equal ops on equal operands are merged; an op
made from several carries the locs of all of them; a walk that changes nothing returns the same graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ppuc.compiler.passes.locs import joined, listed
from ppuc.compiler.passes.remarks import code, listener
from ppuc.compiler.passes.rules.constants import identity_of, splat
from ppuc.ir.analysis import use_counts
from ppuc.ir.errors import InternalError
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.resource import Resource
from ppuc.ir.rewrite import Builder, all_names, without_dead_ops
from ppuc.ir.types import DType

Rule = Callable[["Walk", Op], Value | Sequence[Value] | None]
"""Remarks use its name."""
Rules = Mapping[str, Sequence[Rule]]
"""Op name -> rules, tried in order; the first that fires wins. The rules under "*" are tried for every op after
those."""

_MERGE = "merge-equal"
_SERIAL = re.compile(r"(\.\d+)+$")
_MAX_ROUNDS = 50
_MAX_CHAIN = 10_000
"""Limits that only rules undoing each other can reach."""


class Walk:
    """One rebuild of `graph` under `rules`. Rules read the ops built so far through it and emit new ones."""

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.builder = Builder(all_names(graph))
        self._rules = {name: (*own, *rules.get("*", ())) for name, own in rules.items() if name != "*"}
        self._every = tuple(rules.get("*", ()))
        self._uses = use_counts(graph)
        self._renamed: dict[str, Value] = {}
        self._position: dict[str, int] = {}
        self._seen: dict[Any, Op] = {}
        self._rewriting = ""
        self._numbers: dict[str, Any] = {}
        self._remarks = listener()

    def run(self) -> Graph:
        """The rebuilt graph; `graph` itself when no rule fired and no two ops were equal."""
        changed = False
        for op in self.graph.ops:
            changed |= self._settle(op)
        if not changed:
            return self.graph
        results = tuple(self._resolve(v) for v in self.graph.results)
        graph = without_dead_ops(Graph(self.graph.name, self.graph.params, results, tuple(self.builder.ops)))
        locs = [listed(op.loc) for op in graph.ops]
        return graph.with_ops(
            op if loc is op.loc else replace(op, loc=loc) for op, loc in zip(graph.ops, locs, strict=True)
        )

    def _settle(self, op: Op) -> bool:
        """Offer `op` and all ops emitted in its place to the rules; returns whether anything changed."""
        pending, steps = [op], 0
        while pending:
            current = self._with_renamed_operands(pending.pop())
            if self._merged(current):
                steps += 1
                continue
            self.builder.loc, start = current.loc, len(self.builder.ops)
            self._rewriting = current.results[0].name
            outcome = self._rewritten(current)
            if outcome is None:
                self._append(current)
                continue
            steps += 1
            values = [outcome] if isinstance(outcome, Value) else list(outcome)
            _check_types(current, values)
            if steps > _MAX_CHAIN:
                raise InternalError(f"rewriting {op.name} ({', '.join(op.loc)}) does not end: last op {current.name}")
            self._drop_uses(current)
            self._uses.update(v.name for emitted in self.builder.ops[start:] for v in emitted.operands)
            for result, value in zip(current.results, values, strict=True):
                self._rename(result, value)
            pending.extend(reversed(self.builder.ops[start:]))
            del self.builder.ops[start:]
        return steps > 0

    def _rewritten(self, op: Op) -> Value | Sequence[Value] | None:
        for rule in self._rules.get(op.name, self._every):
            if (outcome := rule(self, op)) is not None:
                if self._remarks is not None:
                    self._remarks.count(code(rule), op)
                return outcome
        return None

    def _append(self, op: Op) -> None:
        for result in op.results:
            self._position[result.name] = len(self.builder.ops)
        self.builder.ops.append(op)

    def _merged(self, op: Op) -> bool:
        """Replace `op` by an equal earlier one."""
        if op.body is not None:
            return False
        attrs: Any = identity_of(op.attrs.value) if op.name == "const" else op.attrs  # type: ignore[attr-defined]
        key = (op.name, attrs, tuple(v.name for v in op.operands))
        first = self._seen.setdefault(key, op)
        if first is op or first.results[0].name not in self._position:
            self._seen[key] = op
            return False
        if self._remarks is not None:
            self._remarks.count(_MERGE, op)
        self._drop_uses(op)
        for old, new in zip(op.results, first.results, strict=True):
            self._rename(old, new)
        if op.name != "const" and (loc := joined(first.loc, op.loc)) is not first.loc:
            at = self._position[first.results[0].name]
            self.builder.ops[at] = self._seen[key] = replace(first, loc=loc)
        return True

    def _drop_uses(self, op: Op) -> None:
        self._uses.subtract(v.name for v in op.operands)

    def _rename(self, old: Value, new: Value) -> None:
        self._renamed[old.name] = new
        self._uses[new.name] += self._uses[old.name]

    def _resolve(self, value: Value) -> Value:
        while (new := self._renamed.get(value.name)) is not None:
            value = new
        return value

    def _with_renamed_operands(self, op: Op) -> Op:
        if not self._renamed:
            return op
        operands = tuple(self._resolve(v) for v in op.operands)
        return op if operands == op.operands else replace(op, operands=operands)

    def emit(self, name: str, *operands: Value, attrs: Attrs | None = None) -> Value:
        """Append an op with one result, named after the result being replaced."""
        return self.builder(name, *operands, attrs=attrs, hint=_SERIAL.sub("", self._rewriting))

    def const(self, array: np.ndarray | Resource) -> Value:
        """Append a constant."""
        return self.builder.const(array, "c")

    def scalar(self, number: float, dtype: DType) -> Value:
        """Append a rank-0 constant."""
        return self.builder.scalar(number, dtype)

    def absorb(self, *ops: Op) -> None:
        """Ops emitted from now on also carry the locs of `ops`, which they replace; these come first, as they are
        earlier in the model."""
        self.builder.loc = joined(*(op.loc for op in ops), self.builder.loc)

    def producer(self, value: Value, *names: str) -> Op | None:
        """The op that defines `value`, if it is one of `names` (any op when none is given)."""
        at = self._position.get(value.name)
        if at is None:
            return None
        op = self.builder.ops[at]
        return op if not names or op.name in names else None

    def sole(self, value: Value, *names: str) -> Op | None:
        """Like `producer`, but None if `value` has users other than the op being rewritten."""
        return self.producer(value, *names) if self._uses[value.name] <= 1 else None

    def uses(self, value: Value) -> int:
        """Number of uses of `value` as an operand or graph result, including ops yet to be rewritten."""
        return self._uses[value.name]

    def resource(self, value: Value) -> Resource | None:
        """The data of a constant."""
        op = self.producer(value, "const")
        return None if op is None else op.attrs.value  # type: ignore[attr-defined]

    def number(self, value: Value) -> Any | None:
        """The number that all elements of a constant share (a Python scalar); None otherwise."""
        if value.name in self._numbers:
            return self._numbers[value.name]
        resource = self.resource(value)
        if resource is None:
            return None
        self._numbers[value.name] = splat(resource)
        return self._numbers[value.name]


def _check_types(op: Op, values: Sequence[Value]) -> None:
    """Raises InternalError if `values` do not match the results of `op` in number and type."""
    old, new = (", ".join(str(v.type) for v in side) for side in (op.results, values))
    if old != new:
        raise InternalError(f"a rewrite of {op.name} turned {old} into {new}")


def _offered(graph: Graph, rules: Rules) -> set[object]:
    """What a walk of `graph` tries: the rules with the names of the ops that they see, and the merging of equal ops."""
    every = rules.get("*", ())
    names = {op.name for op in graph.ops}
    return {_MERGE, *((name, rule) for name in names for rule in (*rules.get(name, ()), *every))}


def to_fixpoint(graph: Graph, rules: Rules) -> Graph:
    """Walk until nothing changes and remove dead ops. Returns `graph` itself if it is a fixpoint already, without a
    walk if earlier walks of the same graph have shown this for every rule that has ops to look at."""
    graph = without_dead_ops(graph)
    for _ in range(_MAX_ROUNDS):
        offered = _offered(graph, rules)
        if offered <= graph.settled:
            return graph
        after = Walk(graph, rules).run()
        if after is graph:
            graph.settled.update(offered)
            return graph
        graph = after
    raise InternalError(f"rewriting @{graph.name} did not reach a fixpoint in {_MAX_ROUNDS} walks")


def with_graph(module: Module, graph: Graph) -> Module:
    """`module` with a rewritten `graph`; its outputs follow the graph's results, which correspond by position."""
    if graph is module.graph:
        return module
    renamed = {old.name: new.name for old, new in zip(module.graph.results, graph.results, strict=True)}
    outputs = tuple((outside, renamed[name]) for outside, name in module.outputs)
    return replace(module, graph=graph, outputs=outputs)
