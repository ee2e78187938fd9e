"""Optimisation remarks: what a pass did, what it refused, and why, recorded while it runs.

A caller opens a collector around a pass. The pass looks it up and records nothing without one:

    if (remarks := listener()) is not None:
        remarks.missed("not-fused", value.name, op.loc, f"'{op.name}' starts a kernel of its own")

Invariants: remarks do not affect what a pass does; they depend only on the module, the pass and the target (no times,
no set order); without a collector no text is formatted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from ppuc.compiler.passes.locs import listed
from ppuc.ir.graph import Op

Kind = Literal["applied", "missed", "note"]
KINDS: tuple[Kind, ...] = ("applied", "missed", "note")
"""Done; considered and refused; found."""

Detail = int | float | str

FIRST_NODES = 3
"""Maximum ONNX nodes that the remark on a rewrite rule names."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One decision of a pass.

    `entity` is the value, op or kernel it is about, `nodes` its ONNX nodes, `decision` a short code that is stable
    between versions, `reason` a text for people. Where the cost model decided, `before_clk` and `after_clk` are the
    expected cycles without and with the considered change; None otherwise. `details` are a few numbers or short codes.
    Reports interpret these: `kernels` (change in the number of kernels), `bytes` (size of the tensor), `lost_clk`
    (lower bound on the cycles that a refusal costs). `segment` is the index of the program in a model that has
    several."""

    pass_name: str
    kind: Kind
    decision: str
    entity: str
    nodes: tuple[str, ...] = ()
    reason: str = ""
    before_clk: float | None = None
    after_clk: float | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    segment: int = 0

    @property
    def lost_clk(self) -> float:
        """Lower bound on the cycles that a refusal costs; 0 if nothing was refused or the change would be slower."""
        lost = self.details.get("lost_clk")
        if self.kind == "missed":
            return float(lost) if lost is not None else self._saving_clk
        return 0.0

    @property
    def gained_clk(self) -> float:
        """Cycles that an applied change is expected to save; 0 if it was not priced."""
        return self._saving_clk if self.kind == "applied" else 0.0

    @property
    def _saving_clk(self) -> float:
        if self.before_clk is None or self.after_clk is None:
            return 0.0
        return max(0.0, self.before_clk - self.after_clk)

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "pass": self.pass_name,
            "kind": self.kind,
            "decision": self.decision,
            "entity": self.entity,
            "nodes": list(self.nodes),
            "reason": self.reason,
            "before_clk": self.before_clk,
            "after_clk": self.after_clk,
            "details": dict(self.details),
            "segment": self.segment,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Remark:
        """The remark in a record. Raises KeyError or TypeError if malformed."""
        values = dict(record)
        return cls(pass_name=values.pop("pass"), nodes=tuple(values.pop("nodes")), **values)


class Collector:
    """Collects the remarks of one pass in order."""

    def __init__(self, pass_name: str) -> None:
        self.pass_name = pass_name
        self._made: list[Remark] = []
        self._counts: dict[str, tuple[int, str, tuple[str, ...]]] = {}

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """The recorded remarks, plus one remark per counted rule whose applications have no remarks of their own."""
        told = {remark.decision for remark in self._made}
        counted = (
            Remark(self.pass_name, "applied", rule, entity, nodes, details={"count": count})
            for rule, (count, entity, nodes) in self._counts.items()
            if rule not in told
        )
        return (*self._made, *counted)

    def applied(
        self,
        decision: str,
        entity: str,
        nodes: Sequence[str] = (),
        reason: str = "",
        *,
        before: float | None = None,
        after: float | None = None,
        **details: Detail,
    ) -> None:
        """Record a change, which takes `after` cycles instead of `before`."""
        self._add("applied", decision, entity, nodes, reason, before, after, details)

    def missed(
        self,
        decision: str,
        entity: str,
        nodes: Sequence[str] = (),
        reason: str = "",
        *,
        before: float | None = None,
        after: float | None = None,
        **details: Detail,
    ) -> None:
        """Record a refused change, which would take `after` cycles instead of `before`."""
        self._add("missed", decision, entity, nodes, reason, before, after, details)

    def note(self, decision: str, entity: str, nodes: Sequence[str] = (), reason: str = "", **details: Detail) -> None:
        """Record an observation."""
        self._add("note", decision, entity, nodes, reason, None, None, details)

    def count(self, rule: str, op: Op) -> None:
        """Count an application of a rewrite rule to `op`; all applications make one remark."""
        count, entity, nodes = self._counts.get(rule, (0, op.results[0].name, ()))
        if len(nodes) < FIRST_NODES:
            nodes = tuple(dict.fromkeys((*nodes, *listed(op.loc))))[:FIRST_NODES]
        self._counts[rule] = count + 1, entity, nodes

    def _add(
        self,
        kind: Kind,
        decision: str,
        entity: str,
        nodes: Sequence[str],
        reason: str,
        before: float | None,
        after: float | None,
        details: Mapping[str, Detail],
    ) -> None:
        rounded = {name: round(v, 1) if isinstance(v, float) else v for name, v in details.items()}
        prices = (_cycles(before), _cycles(after))
        self._made.append(Remark(self.pass_name, kind, decision, entity, tuple(nodes), reason, *prices, rounded))


def _cycles(price: float | None) -> float | None:
    """The price rounded to a tenth of a cycle; None if infinite."""
    return None if price is None or not math.isfinite(price) else round(float(price), 1)


def code(rule: Callable[..., object]) -> str:
    """The decision code of a rewrite rule: `merge-casts` for `merge_casts`."""
    return rule.__name__.strip("_").replace("_", "-")


_LISTENER: ContextVar[Collector | None] = ContextVar("remarks", default=None)


def listener() -> Collector | None:
    """The collector of the running pass; None without one."""
    return _LISTENER.get()


@contextmanager
def collecting(pass_name: str) -> Iterator[Collector]:
    """A context in which a new collector receives the remarks."""
    collector = Collector(pass_name)
    token = _LISTENER.set(collector)
    try:
        yield collector
    finally:
        _LISTENER.reset(token)


@contextmanager
def unheard() -> Iterator[None]:
    """Do not collect remarks inside the context: its passes run speculatively, and their results are discarded."""
    token = _LISTENER.set(None)
    try:
        yield
    finally:
        _LISTENER.reset(token)
