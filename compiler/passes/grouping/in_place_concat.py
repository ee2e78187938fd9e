"""In-place concatenation: computes each part directly in its slice of the whole.

The group that computes a part gets the whole as an operand and ends in an `insert` into it; other readers of the part
read a slice of the whole. Parts that cannot be computed in place (inputs, constants, rows too short for separate
stores) are copied, each by its own kernel.

Invariant: every part of a whole that starts as `empty` is inserted before anything reads it, and parts are disjoint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.lowering.kernel_cache import KernelCache
from ppuc.compiler.lowering.kinds import check_group
from ppuc.compiler.lowering.tiling.body import NotFusable
from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import GROUPED, Contract
from ppuc.compiler.passes.memory.live_ranges import inserted_operands, updated_operand
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.compiler.passes.rewriter import with_graph
from ppuc.ir.graph import Graph, Op, Value
from ppuc.ir.module import Module
from ppuc.ir.ops.movement import ConcatAttrs, InsertAttrs
from ppuc.ir.ops.structure import EmptyAttrs, GroupAttrs
from ppuc.ir.ops.view import SliceAttrs
from ppuc.ir.rewrite import Builder, all_names
from ppuc.targets.cost import l2_bytes_per_clk
from ppuc.targets.schema import Target

SHORTEST_RUN = 64
"""Minimum contiguous bytes of a part stored in place: a burst of l2 or hbm."""

COPIES = 1
"""Maximum copied parts of one whole: beyond that, one kernel that copies all of them is faster."""


@dataclass(frozen=True, slots=True)
class InPlaceConcat(Pass):
    """Compute the parts of a concatenation in place.

    %a = group(%x); %y = group(%a, %b) { concat }
        ->  %0 = empty(); %1 = group(%x, %0) { ...; insert }; %y = group(%b, %1) { insert }
    """

    name: ClassVar[str] = "in-place-concat"
    requires: ClassVar[tuple[Contract, ...]] = (GROUPED,)
    ensures: ClassVar[tuple[Contract, ...]] = (GROUPED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with parts computed in place."""
        return with_graph(module, Joining(module.graph, target).build())


@dataclass(frozen=True, slots=True)
class Part:
    """One operand of a concatenation: its value, its offset, and the group that can compute it in place (position and
    result; None if it must be copied, for the reason `why_copied`)."""

    value: Value
    starts: tuple[int, ...]
    producer: tuple[int, int] | None
    why_copied: str = ""


class Joining:
    """One rewrite of a grouped graph."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.ops: list[Op] = list(graph.ops)
        self.before: dict[int, list[Op]] = {}  # ops that come before the one at a position
        self.builder = Builder(all_names(graph))
        self.lowered = KernelCache(target)
        self.outputs = {v.name for v in graph.results}
        self.computed = {r.name: (i, k) for i, op in enumerate(graph.ops) for k, r in enumerate(op.results)}
        """Name of a value -> position and result of the op that computes it now."""
        self.readers: dict[str, set[int]] = {}
        """Name of a value -> positions of the ops that read it now."""
        for i, op in enumerate(graph.ops):
            for v in op.operands:
                self.readers.setdefault(v.name, set()).add(i)
        self.copied: set[str] = set()
        """Values that copies made for concatenations read."""

    def build(self) -> Graph:
        """The rewritten graph; the same object when nothing changes."""
        found = False
        for i, op in enumerate(self.graph.ops):
            if op.body is None or [inner.name for inner in op.body.ops] != ["concat"]:
                continue
            if len(op.body.ops[0].operands) < 2:
                continue
            parts = self._parts(i)
            why_not = self._obstacle(i, parts)
            found |= not why_not
            if (remarks := listener()) is not None:
                _remark(op, parts, why_not, l2_bytes_per_clk(self.target), remarks)
        if not found:
            return self.graph
        ops = [op for i, old in enumerate(self.ops) for op in (*self.before.get(i, ()), old) if op.name]
        return self.graph.with_ops(ops)

    # -- candidates -----------------------------------------------------------------------------------------------

    def _parts(self, i: int) -> list[Part]:
        """The parts of concatenation `i`; empty if op `i` is something else."""
        op = self.ops[i]
        if op.body is None or [inner.name for inner in op.body.ops] != ["concat"]:
            return []
        (concat,) = op.body.ops
        assert isinstance(concat.attrs, ConcatAttrs)
        outer = {p.name: v for p, v in zip(op.body.params, op.operands, strict=True)}
        axis, at = concat.attrs.axis, 0
        parts: list[Part] = []
        times = Counter(v.name for v in concat.operands)
        storing: set[int] = set()
        for operand in concat.operands:
            value = outer[operand.name]
            starts = tuple(at if a == axis else 0 for a in range(operand.type.rank))
            at += operand.type.dims[axis]
            run = math.prod(value.type.dims[axis:]) * value.type.dtype.bytes
            producer = self._producer(value)
            if times[operand.name] > 1:
                why_copied = "it is concatenated more than once"
            elif run < SHORTEST_RUN:
                why_copied = f"only {run} bytes of it are contiguous in the whole"
            elif isinstance(producer, str):
                why_copied = producer
            elif producer[0] in storing:
                # A group cannot insert into a whole that holds another of its results before it has run.
                why_copied = "the kernel that computes it stores another part"
            else:
                parts.append(Part(value, starts, producer))
                storing.add(producer[0])
                continue
            parts.append(Part(value, starts, None, why_copied))
        return parts

    def _producer(self, value: Value) -> tuple[int, int] | str:
        """Position and result index of the group that computes `value`, or why that group cannot store elsewhere."""
        if value.name in self.outputs:
            return "it is an output of the model"
        if value.name in self.copied:
            return "a copy for an earlier concatenation reads it in its own memory"
        if value.name not in self.computed:
            return "it is an input of the model"
        i, which = self.computed[value.name]
        op = self.ops[i]
        if op.name != "group":
            return "no kernel computes it"
        if updated_operand(op) is not None or inserted_operands(op):
            return "its kernel stores into other memory already"
        return i, which

    # -- rewriting -----------------------------------------------------------------------------------------------

    def _obstacle(self, i: int, parts: Sequence[Part]) -> str:
        """Replace concatenation `i`; returns why that is impossible, or ""."""
        copied = [p for p in parts if p.producer is None]
        if not parts:
            return "it reads a part of another concatenation in place"
        if len(copied) > COPIES:
            return f"{len(copied)} parts need a copy, which one kernel makes faster"
        return "" if self._join(i, parts) else "no kernel can store or read a part in place"

    def _join(self, i: int, parts: Sequence[Part]) -> bool:
        """Replace concatenation `i`; False if some kernel cannot be built in its new form."""
        op = self.ops[i]
        whole = op.result
        first = min(p.producer[0] for p in parts if p.producer is not None)
        ordered = sorted(parts, key=lambda p: (i, 0) if p.producer is None else p.producer)
        base = Value(self.builder.fresh(f"{whole.name}.whole"), whole.type)
        empty = Op("empty", EmptyAttrs(whole.type.dtype, whole.type.dims), (), (base,), op.loc)
        changed: dict[int, Op] = {}
        copies: list[Op] = []
        current = base
        for number, part in enumerate(ordered):
            last = number == len(ordered) - 1
            result = whole if last else Value(self.builder.fresh(f"{whole.name}.part"), whole.type)
            if part.producer is None:
                copies.append(self._copy(part, current, result, op.loc))
            else:
                at, which = part.producer
                changed[at] = self._inserting(changed.get(at, self.ops[at]), which, part.starts, current, result)
                for reader in sorted(self.readers[part.value.name] - {i}):
                    changed[reader] = self._slicing(changed.get(reader, self.ops[reader]), part, result)
            current = result
        if not all(self._fits(new) for new in (*changed.values(), *copies)):
            return False
        for at, new in changed.items():
            for k, (before, after) in enumerate(zip(self.ops[at].results, new.results, strict=True)):
                self.computed.pop(before.name, None)
                self.computed[after.name] = at, k
            self._replace(at, new)
        self.before.setdefault(first, []).append(empty)
        self.before.setdefault(i, []).extend(copies)
        self.copied.update(v.name for copy in copies for v in copy.operands)
        self._replace(i, replace(op, name="", operands=(), results=()))
        return True

    def _replace(self, at: int, new: Op) -> None:
        """Let `new` be the op at a position."""
        for v in self.ops[at].operands:
            self.readers[v.name].discard(at)
        for v in new.operands:
            self.readers.setdefault(v.name, set()).add(at)
        self.ops[at] = new

    def _inserting(self, op: Op, which: int, starts: tuple[int, ...], base: Value, whole: Value) -> Op:
        """A group whose result number `which` is inserted into `base`."""
        body = op.body
        assert body is not None
        part = body.results[which]
        inner = Value(self.builder.fresh(f"{base.name}.in"), base.type)
        out = Value(self.builder.fresh(f"{whole.name}.out"), whole.type)
        insert = Op("insert", InsertAttrs(starts), (inner, part), (out,))
        results = tuple(out if k == which else r for k, r in enumerate(body.results))
        grown = Graph(body.name, (*body.params, inner), results, (*body.ops, insert))
        return replace(
            op,
            operands=(*op.operands, base),
            results=tuple(whole if k == which else r for k, r in enumerate(op.results)),
            body=grown,
        )

    def _slicing(self, op: Op, part: Part, whole: Value) -> Op:
        """The reader `op`, reading the part as a slice of the whole."""
        if op.body is None:
            return replace(op, name="")  # an alias or a copy to another memory: `_fits` rejects it
        params, slices = list(op.body.params), []
        for k, v in enumerate(op.operands):
            if v.name == part.value.name:
                old, params[k] = params[k], Value(self.builder.fresh(f"{whole.name}.in"), whole.type)
                attrs = SliceAttrs(part.starts, part.value.type.dims, (1,) * part.value.type.rank)
                slices.append(Op("slice", attrs, (params[k],), (old,)))
        body = Graph(op.body.name, tuple(params), op.body.results, (*slices, *op.body.ops))
        operands = tuple(whole if v.name == part.value.name else v for v in op.operands)
        return replace(op, operands=operands, body=body)

    def _copy(self, part: Part, base: Value, whole: Value, loc: tuple[str, ...]) -> Op:
        inner = Value(self.builder.fresh(f"{part.value.name}.in"), part.value.type)
        into = Value(self.builder.fresh(f"{base.name}.in"), base.type)
        out = Value(self.builder.fresh(f"{whole.name}.out"), whole.type)
        body = Graph("body", (inner, into), (out,), (Op("insert", InsertAttrs(part.starts), (into, inner), (out,)),))
        return Op("group", GroupAttrs(check_group(body, self.target)), (part.value, base), (whole,), loc, body)

    def _fits(self, op: Op) -> bool:
        """Whether the group still lowers to a kernel of its kind."""
        if op.name != "group" or op.body is None:
            return False
        kind = op.attrs.kind  # type: ignore[attr-defined]
        try:
            return check_group(op.body, self.target) == kind and not self.lowered.obstacle(kind, op.body)
        except NotFusable:
            return False


def _remark(op: Op, parts: Sequence[Part], why_not: str, rate: float, remarks: Collector) -> None:
    """Remarks on a concatenation and its parts; memory moves `rate` bytes per cycle."""
    whole, copied = op.result, sum(p.producer is None for p in parts)
    if why_not:
        size = whole.type.bytes
        remarks.missed("not-in-place", whole.name, op.loc, why_not, bytes=size, lost_clk=2 * size / rate)
    else:
        remarks.applied("in-place", whole.name, op.loc, parts=len(parts), kernels=copied - 1)
    for p in parts:
        size = p.value.type.bytes
        if p.producer is None:
            lost = 0.0 if why_not else 2 * size / rate  # without it, the whole is moved anyway
            remarks.missed("part-copied", p.value.name, op.loc, p.why_copied, bytes=size, lost_clk=lost)
        elif not why_not:
            remarks.applied("part-in-place", p.value.name, op.loc, into=whole.name, bytes=size)
