"""Turns kernels into instruction streams: a mechanical step without decisions.

A statement goes to the queue of its engine, keeping the loops around it. Every buffer becomes a ring whose claims,
pushes, waits and pops follow from where the buffer is written and read (`emit_rings`); every tensor that one step
writes and a later one reads gets counters, which later tensors take over if the machine has too few (`counters.py`).

Invariant: each queue executes its statements in the order of the kernel's sequential reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from ppuc.compiler.passes.base import Pass
from ppuc.compiler.passes.contracts import ALLOCATED, EMITTED, TILED, Contract
from ppuc.compiler.passes.emit.counters import CounterPlan
from ppuc.compiler.passes.emit.rings import RingOwners, Site, claiming_units, ring_uses
from ppuc.compiler.passes.memory.l2_plan import overwritten
from ppuc.compiler.passes.memory.live_ranges import storage_roots, updated_operand
from ppuc.compiler.passes.remarks import Collector, listener
from ppuc.ir.kernel import Buffer, Kernel, Loop, Stmt
from ppuc.ir.module import Module, Placement
from ppuc.ir.program import (
    UNIT_QUEUES,
    Bump,
    Copy,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Queue,
    Ring,
    RingUse,
    Segment,
    StreamLoop,
    StreamNode,
    Wait,
)
from ppuc.ir.types import Space
from ppuc.ir.verify import Finding, VerificationError
from ppuc.targets.isa import mnemonic_of
from ppuc.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Emit(Pass):
    """Turn kernels and stage ops into the instruction streams of a program.

    load %at <- %x[%m, %k]  ->  queue load { ... load.box %at <- %x[%m, %k] {claim(%at, 2), push(%at, 2),
    wait(%x.full)} }
    """

    name: ClassVar[str] = "emit"
    required: ClassVar[str] = "it writes the instructions"
    requires: ClassVar[tuple[Contract, ...]] = (TILED, ALLOCATED)
    ensures: ClassVar[tuple[Contract, ...]] = (EMITTED,)

    def run(self, module: Module, target: Target) -> Module:
        """The module with its program."""
        return replace(module, program=Emission(module, target).program())


class Emission:
    """Emits one module."""

    def __init__(self, module: Module, target: Target) -> None:
        self.module, self.target, self.graph = module, target, module.graph
        self.places = {(p.space, p.name): p for p in module.placement}
        self.over = self._overwriting()
        self.roots = self._roots()
        self.tensors = self._tensors()
        self.kernels = {k.name: k for k in module.kernels}
        self.order: list[tuple[str, str]] = []  # ("kernel" | "stage", name of the kernel or of the staged value)
        for op in self.graph.ops:
            if op.name == "group":
                self.order.append(("kernel", op.attrs.kernel))  # type: ignore[attr-defined]
            elif op.name == "stage":
                self.order.append(("stage", op.results[0].name))

    def program(self) -> Program:
        """The whole program."""
        rooted = {k.name: self._rooted(k) for k in self.module.kernels}
        stages = {op.results[0].name: op for op in self.graph.ops if op.name == "stage"}
        sources = {name: self.roots[op.operands[0].name] for name, op in stages.items()}
        in_place = {
            op.attrs.kernel: self.roots[op.results[0].name]  # type: ignore[attr-defined]
            for op in self.graph.ops
            if updated_operand(op) is not None
        }
        over = {
            op.attrs.kernel: self.roots[op.results[0].name]  # type: ignore[attr-defined]
            for op in self.graph.ops
            if op.name == "group" and any(r.name in self.over for r in op.results)
        }
        tensors = {t.name: t for t in self.tensors}
        self._require_places(tensors, [*rooted.values()], sources)
        plan = CounterPlan(self.order, rooted, sources, tensors, in_place, over, self.target)
        owners = RingOwners()
        programs: list[KernelProgram] = []
        copies: list[Copy] = []
        for kind, name in self.order:
            if kind == "kernel":
                kernel = rooted[name]
                sites, sync = plan.sites[name], partial(plan.sync, kernel)
                programs.append(kernel_program(kernel, sites, self.places, owners, sync, self.target.cu))
            else:
                copies += self._copies(name, sources[name], stages[name].loc, plan, len(copies))
        segment = Segment(self.graph.name, tuple(programs), tuple(copies), plan.groups())
        if (remarks := listener()) is not None:
            _remark(segment, remarks)
        return Program(
            self.graph.name,
            self.module.target,
            self.module.target_hash,
            tuple(self.tensors),
            tuple((onnx, self.roots[value]) for onnx, value in self.module.inputs),
            tuple((onnx, self.roots[value]) for onnx, value in self.module.outputs),
            (segment,),
        )

    def _overwriting(self) -> dict[str, str]:
        """Result -> operand, both by storage root, for pairs placed at one address."""
        found = {}
        for result, operand in overwritten(self.graph).items():
            new, old = self.places.get((Space.L2, result)), self.places.get((Space.L2, operand))
            if new is not None and old is not None and new.address == old.address:
                found[result] = operand
        return found

    def _roots(self) -> dict[str, str]:
        """Value -> the tensor that holds it: its storage root or, if that overwrites an operand, the operand's
        tensor."""
        holder: dict[str, str] = {}
        for result, operand in self.over.items():
            holder[result] = holder.get(operand, operand)
        return {value: holder.get(root, root) for value, root in storage_roots(self.graph).items()}

    def _tensors(self) -> list[MemTensor]:
        """One tensor per name in `roots`, in address order."""
        values = {v.name: v for v in self.graph.params} | {r.name: r for op in self.graph.ops for r in op.results}
        inputs = {v for _, v in self.module.inputs}
        outputs = {self.roots[v] for _, v in self.module.outputs}
        constants = {op.results[0].name for op in self.graph.ops if op.name == "const"}
        found = []
        for placement in self.module.placement:
            name = placement.name
            if placement.space not in (Space.HBM, Space.L2) or self.roots[name] != name:
                continue
            role = (
                "input" if name in inputs else "output" if name in outputs else "const" if name in constants else "temp"
            )
            v = values[name]
            found.append(MemTensor(name, v.type.dtype, v.type.elements, placement.space, placement.address, role, name))
        return found

    def _require_places(
        self, tensors: Mapping[str, MemTensor], kernels: Sequence[Kernel], sources: Mapping[str, str]
    ) -> None:
        """Raise VerificationError unless every tensor that kernels and copies name has an address."""
        used = {*sources, *sources.values(), *(p.tensor for k in kernels for p in k.params)}
        rings = {(b.space, f"{k.name}/{b.name}") for k in kernels for b in k.buffers} - set(self.places)
        homeless = sorted({*(used - set(tensors)), *(name for _, name in rings)})
        if homeless:
            raise VerificationError(Finding("M4", f"'{name}'", "", "has no place") for name in homeless)

    def _rooted(self, kernel: Kernel) -> Kernel:
        """The kernel with its parameters bound to storage roots."""
        return replace(kernel, params=tuple(replace(p, tensor=self.roots[p.tensor]) for p in kernel.params))

    def _copies(self, name: str, source: str, loc: tuple[str, ...], plan: CounterPlan, number: int) -> list[Copy]:
        """Stage copies of one tensor, one per block, distributed over the stage queues."""
        found = []
        for i, (start, count) in enumerate(plan.blocks(name)):
            queue = (number + i) % self.target.stage.queues
            waits, bumps = plan.copy_sync(name, source)
            found.append(Copy(queue, name, source, start, count, waits, bumps, loc))
        return found


def _remark(segment: Segment, remarks: Collector) -> None:
    """A remark on the streams, rings and counters of a segment."""
    remarks.note(
        "streams",
        segment.name,
        emitted=len(segment.kernels),
        rings=sum(len(k.rings) for k in segment.kernels),
        copies=len(segment.copies),
        counters=segment.counters_used,
    )


Sync = Callable[[Site], tuple[tuple[Wait, ...], tuple[Bump, ...]]]
"""Counter waits and bumps of a statement."""


def kernel_program(
    kernel: Kernel,
    sites: Sequence[Site],
    places: Mapping[tuple[Space, str], Placement],
    owners: RingOwners,
    sync: Sync,
    cu: int,
) -> KernelProgram:
    """The streams and rings of one kernel, whose statements are `sites`, on a machine of `cu` units, with buffer
    addresses from `places` (by space and `kernel/buffer`)."""
    uses, queues = ring_uses(kernel, sites)
    units = claiming_units(kernel, sites, uses, cu)
    rings = []
    for buffer in kernel.buffers:
        if buffer.name in queues:
            name = f"{kernel.name}/{buffer.name}"
            place = places[buffer.space, name]
            after = owners.take(buffer.space, place.address, place.bytes, name, units[buffer.name])
            rings.append(_ring(buffer, place, *queues[buffer.name], after))
    streams = tuple((queue, _stream(kernel.body, queue, iter(sites), uses, sync)) for queue in UNIT_QUEUES)
    return KernelProgram(kernel.name, kernel.grid, kernel.params, tuple(rings), streams, kernel.loc, kernel.first)


def _ring(
    buffer: Buffer, place: Placement, producer: Queue, consumers: tuple[Queue, ...], after: tuple[str, ...]
) -> Ring:
    slot = place.bytes // buffer.depth
    return Ring(
        buffer.name,
        buffer.dtype,
        buffer.shape,
        buffer.space,
        place.address,
        slot,
        buffer.depth,
        producer,
        consumers,
        after,
    )


def _stream(
    body: tuple[Stmt, ...], queue: Queue, sites: Iterator[Site], uses: Mapping[int, tuple[RingUse, ...]], sync: Sync
) -> tuple[StreamNode, ...]:
    """The part of `body` that runs on `queue`. Consumes one site for each tile statement."""
    nodes: list[StreamNode] = []
    for stmt in body:
        if isinstance(stmt, Loop):
            inner = _stream(stmt.body, queue, sites, uses, sync)
            if inner:
                nodes.append(StreamLoop(stmt.var, stmt.start, stmt.stop, stmt.step, stmt.over, inner))
            continue
        site = next(sites)
        if site.queue is queue:
            waits, bumps = sync(site)
            nodes.append(Instr(mnemonic_of(stmt), stmt, uses.get(site.number, ()), waits, bumps))
    return tuple(nodes)
