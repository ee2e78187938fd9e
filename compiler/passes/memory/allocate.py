"""Assigns an address to every value and ring.

Kernels use l1 and acc alternately from the bottom and from the top, so that the next kernel can start loading while the
current one runs. Invariant: ranges live at the same step, and the buffers of one kernel, are disjoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import ALLOCATED, SPACES_ASSIGNED, Contract
from ppuc.compiler.passes.memory.l2_plan import overwritten, plan_l2
from ppuc.compiler.passes.memory.live_ranges import assign, live_ranges, storage_roots
from ppuc.compiler.passes.memory.memory_space_assignment import UNREAD, priorities
from ppuc.compiler.passes.memory.minimalloc import max_live
from ppuc.compiler.passes.memory.ranges import Range, padded
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.ir.errors import CapacityError, Diagnostic, Entity, EntityKind, InternalError
from ppuc.ir.graph import Graph
from ppuc.ir.kernel import Kernel
from ppuc.ir.module import Module, Placement
from ppuc.ir.types import Space
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Allocate(Pass):
    """Assign addresses: tensors in hbm and l2 by live range, rings in l1 and acc per kernel."""

    name: ClassVar[str] = "allocate"
    required: ClassVar[str] = "tensors and buffers need addresses"
    requires: ClassVar[tuple[Contract, ...]] = (SPACES_ASSIGNED,)
    ensures: ClassVar[tuple[Contract, ...]] = (ALLOCATED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with addresses assigned."""
        placement = _tensors(module.graph, target)
        for i, kernel in enumerate(module.kernels):
            placement += ring_placements(kernel, target, from_top=bool(i % 2))
        return replace(module, placement=tuple(placement))


def _tensors(graph: Graph, target: Target) -> list[Placement]:
    roots = storage_roots(graph)
    live = live_ranges(graph, roots)
    values = {v.name: v for v in graph.params} | {r.name: r for op in graph.ops for r in op.results}
    ranks = priorities(graph)
    ranges = [Range(n, padded(values[n].type), *live[n], ranks.get(n, UNREAD)) for n in live]
    hbm = [replace(r, rank=0) for r in ranges if values[r.name].space is Space.HBM]
    l2 = {r.name: r for r in ranges if values[r.name].space is Space.L2}
    shared = overwritten(graph)
    at, failed = assign(hbm, target.hbm.bytes)
    at_l2, failed_l2 = plan_l2(l2, shared, target.l2.bytes)
    found: list[Placement] = []
    for space, held, where, left in (
        (Space.HBM, hbm, at, failed),
        (Space.L2, list(l2.values()), at_l2, failed_l2),
    ):
        if left:
            raise InternalError(f"{space} has no room for {left}")
        found += [Placement(r.name, space, where[r.name], r.bytes) for r in held]
    if (remarks := listener()) is not None:
        over = {new: old for new, old in shared.items() if new in at_l2 and old in at_l2}
        _remark_overwritten(graph, over, at_l2, remarks)
        replaced = {old for new, old in over.items() if at_l2[new] == at_l2[old]}
        _remark_extent(Space.HBM, hbm, at, remarks)
        ending = (
            replace(r, end=r.end - (r.name in replaced)) for r in l2.values()
        )  # the overwriting result holds the last step
        _remark_extent(Space.L2, list(ending), at_l2, remarks)
    return sorted(found, key=lambda p: (p.space.value, p.address, p.name))


def _remark_extent(space: Space, held: Sequence[Range], at: Mapping[str, int], remarks: Collector) -> None:
    """A remark on a memory: the bytes of the plan, and a lower bound for any plan."""
    extent = max((at[r.name] + r.bytes for r in held), default=0)
    remarks.note("allocated", str(space), tensors=len(held), extent_bytes=extent, alive_bytes=max_live(held))


def _remark_overwritten(graph: Graph, over: Mapping[str, str], at: Mapping[str, int], remarks: Collector) -> None:
    """A remark on every result that could overwrite an operand; `at` maps values to addresses."""
    producers = {r.name: (op, r) for op in graph.ops for r in op.results}
    for result, operand in over.items():
        op, value = producers[result]
        if at[result] == at[operand]:
            remarks.applied("overwrites", result, op.loc, operand=operand, bytes=value.type.bytes)
        else:
            why = "their joint live range does not fit the memory"
            remarks.missed("not-overwritten", result, op.loc, why, operand=operand, bytes=value.type.bytes)


def ring_placements(kernel: Kernel, target: Target, from_top: bool) -> list[Placement]:
    """Addresses of a kernel's rings, packed at one end of l1 and acc. Raises CapacityError when they do not fit."""
    found: list[Placement] = []
    for space, capacity in ((Space.L1, target.l1.bytes), (Space.ACC, target.acc.bytes)):
        sizes = [(b.name, slot_bytes(b.bytes, target) * b.depth) for b in kernel.buffers if b.space is space]
        found += _stack(kernel.name, sizes, space, capacity, from_top)
    return found


def slot_bytes(size: int, target: Target) -> int:
    """Bytes of a ring slot, aligned for operand rows."""
    unit = target.alignment_bytes
    return max(unit, -(-size // unit) * unit)


def _stack(
    kernel: str, sizes: Sequence[tuple[str, int]], space: Space, capacity: int, from_top: bool
) -> list[Placement]:
    total = sum(size for _, size in sizes)
    if total > capacity:
        raise CapacityError(
            Diagnostic(
                f"kernel @{kernel}",
                f"its rings do not fit {space}",
                f"{total:,} bytes",
                f"at most {capacity:,} bytes",
                entities=(Entity(EntityKind.KERNEL, kernel),),
            )
        )
    at = capacity - total if from_top else 0
    found = []
    for name, size in sizes:
        found.append(Placement(f"{kernel}/{name}", space, at, size))
        at += size
    return found
