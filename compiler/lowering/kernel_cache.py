"""Lowers each distinct group once: networks repeat their layers.

Bodies are canonicalised (values numbered, constants by content). The kernel is built under placeholder names and
renamed for every group of the same form. Invariant: up to names, the renamed kernel equals the one that lowering the
group itself would build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from ppuc.compiler.lowering.kinds import lower_group, packages_of, searched_group
from ppuc.compiler.lowering.limits import may_lack_axes, may_lack_rings, require_limits
from ppuc.compiler.lowering.records import decoded, encoded
from ppuc.compiler.lowering.search_store import SearchStore, key_of, package_digest
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.kernel import Kernel, Load, Loop, Mma, Param, Stmt, Store, Vec
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.types import Space
from ppuc.ir.user_cache import user_cache
from ppuc.ir.vector import VectorProgram
from ppuc.targets.schema import Target

PLACEHOLDER = "kernel"

T = TypeVar("T")


BodyKey = tuple[tuple[object, ...], tuple[tuple[Any, ...], ...], tuple[str, ...]]
"""Types and memories of parameters and results; name, attributes, operands and type of each op; results."""

Settle = Callable[[Kernel, tuple[VectorProgram, ...]], float]
"""Measures a kernel; returns cycles."""


Outcome = tuple[Kernel, tuple[VectorProgram, ...], float | None]
"""A kernel, its vector programs, and its expected cycles if it has a price."""


@dataclass(frozen=True, slots=True)
class GroupKernel:
    """The kernel of a group, its vector programs, and its expected cycles (None if its kind has no cost model).
    `pattern` is the kernel under placeholder names that groups of the same form share."""

    kernel: Kernel
    vectors: tuple[VectorProgram, ...]
    price_clk: float | None
    pattern: Kernel


class KernelCache:
    """Kernels of one target by the canonical form of their body. With `settle`, the `tries` cheapest candidates under
    the cost model are built and measured, and the fastest wins (the first of equals). The store
    (`lowering.search_store`) keeps outcomes, including failures."""

    def __init__(self, target: Target, settle: Settle | None = None, tries: int = 1) -> None:
        self.target, self.settle, self.tries = target, settle, tries
        self._known: dict[object, Outcome | NotFusable] = {}
        self._obstacles: dict[tuple[str, object], str] = {}
        self._prices: dict[object, float | NotFusable] = {}
        self._store = SearchStore(user_cache())
        self._context = key_of(target)

    def kernel(
        self, kind: str, name: str, body: Graph, tensors: Mapping[str, str], loc: tuple[str, ...]
    ) -> GroupKernel:
        """The kernel of a group; `tensors` maps body parameters and results to graph values. Raises NotFusable."""
        canonical, key = canonical_body(body)
        found = self._outcome(kind, canonical, key)
        if isinstance(found, NotFusable):
            raise found
        pattern, vectors, price = found
        outer = [tensors[v.name] for v in (*body.params, *body.results)]
        inner = [v.name for v in (*canonical.params, *canonical.results)]
        made, programs = renamed(pattern, vectors, name, dict(zip(inner, outer, strict=True)), loc)
        return GroupKernel(made, programs, price, pattern)

    def obstacle(self, kind: str, body: Graph) -> str:
        """Why no kernel of the group fits the target; "" if one does. Bodies that differ in the values of their numbers
        have the same tilings; code of other packages may look at values."""
        canonical, key = canonical_body(body)
        form = key if packages_of(kind, body) else without_numbers(key)
        if (kind, form) not in self._obstacles:
            found = self._outcome(kind, canonical, key)
            self._obstacles[kind, form] = str(found) if isinstance(found, NotFusable) else ""
        return self._obstacles[kind, form]

    def _outcome(self, kind: str, canonical: Graph, key: object) -> Outcome | NotFusable:
        """The kernel of a canonical body, or why there is none."""
        found = self._known.get((kind, key))
        if found is None:
            tries = self.tries if self.settle is not None else 1
            asked = ("kernel", tries, *_identity(kind, canonical), key)
            found = self._known[kind, key] = self._kept(asked, lambda: self._fastest(kind, canonical))
        return found

    def price(self, group: Op, body: Graph | None = None) -> float:
        """Expected cycles of the kernel of a group, or of `body` as a kernel of the group's kind (see `price_group`).
        Raises NotFusable."""
        assert isinstance(group.attrs, GroupAttrs)
        assert group.body is not None
        kind = group.attrs.kind
        canonical, key = canonical_body(group.body if body is None else body)
        found = self._prices.get((kind, key))
        if found is None:
            asked = ("price", *_identity(kind, canonical), key)
            found = self._kept(asked, lambda: self._priced(kind, canonical))
            self._prices[kind, key] = found
        if isinstance(found, NotFusable):
            raise found
        return found

    def _priced(self, kind: str, body: Graph) -> float:
        searched = searched_group(kind, body, self.target)
        price = searched.price
        if may_lack_rings(body, self.target) or may_lack_axes(body):
            require_limits(searched.lower().finish()[0], self.target)
        return price

    def _kept(self, asked: tuple[object, ...], search: Callable[[], T]) -> T | NotFusable:
        """The outcome of `search` or the reason for its failure, from the store if known."""
        key = key_of(self._context, asked)
        text = self._store.get(key)
        if text is not None:
            with suppress(ValueError, KeyError, TypeError):  # a damaged record is recomputed
                outcome, reason = decoded(text)
                return NotFusable(reason) if reason else cast(T, outcome)
        found: T | NotFusable
        try:
            found = search()
        except NotFusable as error:
            found = error
        failed = isinstance(found, NotFusable)
        self._store.put(key, encoded((None, str(found)) if failed else (found, "")))
        return found

    def _fastest(self, kind: str, body: Graph) -> Outcome:
        best, least = self._candidate(kind, body, 0), 0.0
        if self.settle is None or self.tries < 2:
            return best
        for rank in range(1, self.tries):
            try:
                other = self._candidate(kind, body, rank)
            except NotFusable:
                break
            least = least or self.settle(*best[:2])
            cycles = self.settle(*other[:2])
            if cycles < least:
                best, least = other, cycles
        return best

    def _candidate(self, kind: str, body: Graph, rank: int) -> Outcome:
        values = (*body.params, *body.results)
        names = {v.name: v.name for v in values}
        builder = lower_group(kind, PLACEHOLDER, body, names, (), self.target, rank)
        kernel, vectors = builder.finish()
        require_limits(kernel, self.target)
        spaces = {v.name: v.space or Space.L2 for v in values}
        params = tuple(replace(p, space=spaces[p.tensor]) for p in kernel.params)
        return replace(kernel, params=params), vectors, builder.price_clk


def _identity(kind: str, body: Graph) -> tuple[str, ...]:
    """The kind, and digests of other packages' sources that an outcome depends on."""
    return kind, *map(package_digest, packages_of(kind, body))


def canonical_body(body: Graph) -> tuple[Graph, BodyKey]:
    """`body` with numbered values and without locations, and its hashable key."""
    names: dict[str, Value] = {}

    def number(value: Value) -> Value:
        return names.setdefault(value.name, Value(f"v{len(names)}", value.type, value.space))

    params = tuple(number(p) for p in body.params)
    ops = tuple(
        Op(op.name, op.attrs, tuple(number(v) for v in op.operands), tuple(number(r) for r in op.results))
        for op in body.ops
    )
    results = tuple(number(r) for r in body.results)
    graph = Graph("body", params, results, ops)
    key = (
        tuple((str(v.type), str(v.space)) for v in (*params, *results)),
        tuple((op.name, _attrs_key(op), tuple(v.name for v in op.operands), str(op.results[0].type)) for op in ops),
        tuple(r.name for r in results),
    )
    return graph, key


def without_numbers(key: BodyKey) -> BodyKey:
    """`key` with constants told apart only by which of them are equal: a vector program holds an immediate once."""
    types, ops, results = key
    seen: dict[object, int] = {}
    kept = ((name, seen.setdefault(a, len(seen)) if name == "const" else a, *more) for name, a, *more in ops)
    return types, tuple(kept), results


def _attrs_key(op: Op) -> object:
    return op.attrs.value.key if op.name == "const" else op.attrs  # type: ignore[attr-defined]


def renamed(
    kernel: Kernel, vectors: tuple[VectorProgram, ...], name: str, tensors: Mapping[str, str], loc: tuple[str, ...]
) -> tuple[Kernel, tuple[VectorProgram, ...]]:
    """`kernel` and its vector programs under `name`, on other tensors. Parameters are named after their tensors."""
    taken = {b.name for b in kernel.buffers}
    params: dict[str, Param] = {}
    for p in kernel.params:
        hint, n = tensors[p.tensor], 1
        fresh = hint
        while fresh in taken:
            fresh, n = f"{hint}.{n}", n + 1
        taken.add(fresh)
        params[p.name] = replace(p, name=fresh, tensor=tensors[p.tensor])
    programs = {v.name: name + v.name.removeprefix(PLACEHOLDER) for v in vectors}

    def walk(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(one(s) for s in body)

    def one(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Loop):
            return replace(stmt, body=walk(stmt.body))
        if isinstance(stmt, Load):
            return replace(stmt, src=params[stmt.src].name)
        if isinstance(stmt, Store):
            return replace(stmt, dst=params[stmt.dst].name)
        if isinstance(stmt, Vec):
            return replace(stmt, program=programs[stmt.program])
        assert isinstance(stmt, Mma)
        return stmt

    made = replace(kernel, name=name, params=tuple(params.values()), body=walk(kernel.body), loc=loc)
    return made, tuple(replace(v, name=programs[v.name]) for v in vectors)
