"""Invariants of programs; P6 is checked in `rings.py`, P8 and P12 in `counters.py`.

P1  names are distinct in their scope, and well-formed unless of kernels or segments; inputs and outputs name tensors.
P2  an instruction is on the queue of its operation.
P3  ring operations name rings of the kernel and levels within the loops around; claims and pushes are on the ring's
    producer queue, waits and pops on one of its consumer queues.
P4  on each queue, claims and pushes, waits and pops alternate, at one level and inside the same loops to that level;
    only a queue that reads what it produces itself, before it pushes, pops without a wait.
P5  an instruction writes rings that its queue produces and reads rings that it consumes.
P6  a ring's slots hold its tile; a ring that takes over bytes of an earlier one comes after it.
P7  a tensor has a place in host, hbm or l2 and a known role; parameters agree with their tensors and stay inside.
P8  a counter group has one counter a block ("done": one), and no counter counts beyond 32 bits.
P9  waits and bumps name counter groups; only groups with blocks are `touched`.
P10 statements obey K2, K3 and K5 to K12.
P11 copies stay inside both tensors, which hold the same element type.
P12 a group that takes over counters of an earlier one counts after it: what bumps the later group waits for all of
    the earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ppuc.ir.kernel import Load, Mma, Param, Store, Vec
from ppuc.ir.program import (
    UNIT_QUEUES,
    Copy,
    CounterGroup,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Queue,
    RingUse,
    Segment,
    StreamLoop,
    StreamNode,
)
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.ir.verify.counters import check_counters
from ppuc.ir.verify.findings import Findings
from ppuc.ir.verify.kernel import StatementChecker, reads_and_writes
from ppuc.ir.verify.rings import check_rings

_QUEUE_OF = {Load: Queue.LOAD, Store: Queue.STORE, Mma: Queue.TENSOR, Vec: Queue.VECTOR}
_ROLES = ("input", "output", "const", "temp")
_OPENS = {"claim": "push", "wait": "pop"}
_CLOSES = {close: open for open, close in _OPENS.items()}


def check_program(program: Program, vectors: Mapping[str, VectorProgram], findings: Findings) -> None:
    """Check a program."""
    tensors = {t.name: t for t in program.tensors}
    findings.names("P1", "tensor", [t.name for t in program.tensors])
    for tensor in program.tensors:
        _check_tensor(tensor, findings)
    for kind, pairs in (("input", program.inputs), ("output", program.outputs)):
        for name, tensor_name in pairs:
            if tensor_name not in tensors:
                findings.add("P1", f"{kind} '{name}'", f"there is no tensor %{tensor_name}")
    for segment in program.segments:
        _check_segment(segment, tensors, vectors, findings)
    _distinct("segment", [s.name for s in program.segments], findings)


def _distinct(kind: str, names: Sequence[str], findings: Findings) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            findings.add("P1", f"{kind} @{name}", "the name is defined twice")


def _check_tensor(tensor: MemTensor, findings: Findings) -> None:
    entity = f"%{tensor.name}"
    if tensor.space in (Space.L1, Space.ACC) or tensor.address < 0 or tensor.elements < 0:
        place = f"{tensor.elements} elements at {tensor.address} of {tensor.space}"
        findings.add("P7", entity, f"invalid placement: {place}")
    if tensor.role not in _ROLES:
        findings.add("P7", entity, f"role is '{tensor.role}', expected one of {', '.join(_ROLES)}")


def _check_segment(
    segment: Segment, tensors: Mapping[str, MemTensor], vectors: Mapping[str, VectorProgram], findings: Findings
) -> None:
    outside, findings.where = findings.where, f"{findings.where}@{segment.name} "
    findings.names("P1", "counter", [c.name for c in segment.counters])
    _distinct("kernel", [k.name for k in segment.kernels], findings)
    check_counters(segment, tensors, findings)
    groups = {c.name: c for c in segment.counters}
    for copy in segment.copies:
        _check_copy(copy, tensors, groups, findings)
    for kernel in segment.kernels:
        _KernelChecker(kernel, tensors, groups, vectors, findings).check()
    check_rings(segment.kernels, findings)
    findings.where = outside


def _check_copy(
    copy: Copy, tensors: Mapping[str, MemTensor], groups: Mapping[str, CounterGroup], findings: Findings
) -> None:
    def show() -> str:
        from ppuc.ir.text.print_program import print_copy

        return print_copy(copy)

    entity = f"copy to %{copy.dst}"
    if copy.queue < 0:
        findings.add("P11", entity, f"there is no stage queue {copy.queue}", show)
    ends = [tensors.get(name) for name in (copy.dst, copy.src)]
    for name, tensor in zip((copy.dst, copy.src), ends, strict=True):
        if tensor is None:
            findings.add("P11", entity, f"there is no tensor %{name}", show)
        elif not 0 <= copy.start <= copy.start + copy.count <= tensor.elements:
            findings.add("P11", entity, f"the range is not inside %{name} of {tensor.elements} elements", show)
    dst, src = ends
    if dst is not None and src is not None and dst.dtype is not src.dtype:
        findings.add("P11", entity, f"%{dst.name} holds {dst.dtype}, %{src.name} {src.dtype}", show)
    _check_groups(copy, groups, entity, findings, show)


def _check_groups(
    item: Copy | Instr, groups: Mapping[str, CounterGroup], entity: str, findings: Findings, show: Callable[[], str]
) -> None:
    uses = [(w.group, w.touched) for w in item.waits] + [(b.group, b.touched) for b in item.bumps]
    for group, touched in uses:
        if group not in groups:
            findings.add("P9", entity, f"there is no counter %{group}", show)
        elif touched and groups[group].kind == "done":
            findings.add("P9", entity, f"counter %{group} has no blocks to be touched", show)


class _KernelChecker:
    """Checks the streams of one kernel."""

    def __init__(
        self,
        kernel: KernelProgram,
        tensors: Mapping[str, MemTensor],
        groups: Mapping[str, CounterGroup],
        vectors: Mapping[str, VectorProgram],
        findings: Findings,
    ) -> None:
        self.kernel, self.tensors, self.groups, self.findings = kernel, tensors, groups, findings
        self.rings = {r.name: r for r in kernel.rings}
        self.statements = StatementChecker(findings, kernel.grid, kernel.first, kernel.params, kernel.rings, vectors)
        self._ranks = {r.name: len(r.shape) for r in kernel.rings}

    def check(self) -> None:
        """Report everything about this kernel except the addresses of its rings."""
        outside, self.findings.where = self.findings.where, f"{self.findings.where}@{self.kernel.name} "
        names = [*(p.name for p in self.kernel.params), *(r.name for r in self.kernel.rings)]
        self.findings.names("P1", "name", names)
        self.findings.names("P1", "grid axis", [axis for axis, _ in self.kernel.grid])
        self.findings.names("P1", "queue", [str(queue) for queue, _ in self.kernel.streams])
        self.statements.declarations()
        for param in self.kernel.params:
            self._param(param)
        for queue, nodes in self.kernel.streams:
            if queue not in UNIT_QUEUES:
                self.findings.add("P1", f"queue {queue}", "is not a queue of a compute unit")
            self._stream(queue, nodes)
        self.findings.where = outside

    def _param(self, param: Param) -> None:
        tensor = self.tensors.get(param.tensor)
        entity = f"%{param.name}"
        if tensor is None:
            self.findings.add("P7", entity, f"there is no tensor %{param.tensor}")
            return
        if (param.dtype, param.space) != (tensor.dtype, tensor.space):
            shown = f"{param.dtype} in {param.space}, the tensor {tensor.dtype} in {tensor.space}"
            self.findings.add("P7", entity, f"is {shown}")
        view = param.view
        if len(view.shape) == len(view.strides) and 0 not in view.shape:
            spans = [(size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)]
            first = view.offset + sum(min(0, s) for s in spans)
            last = view.offset + sum(max(0, s) for s in spans)
            if first < 0 or last >= tensor.elements:
                message = f"its view reaches elements {first} to {last} of a tensor of {tensor.elements}"
                self.findings.add("P7", entity, message)

    def _stream(self, queue: Queue, nodes: tuple[StreamNode, ...]) -> None:
        open_uses: dict[tuple[str, str], tuple[RingUse, tuple[StreamLoop, ...], Instr]] = {}
        for instr, loops in self._instructions(nodes, ()):
            kind = type(instr.stmt).__name__.lower()
            if queue is not _QUEUE_OF[type(instr.stmt)] or instr.op.split(".")[0] != kind:
                self._add("P2", instr, f"a {kind} called {instr.op} is on queue {queue}")
            self.statements.statement(instr.stmt, loops)
            self._operands(queue, instr)
            _check_groups(instr, self.groups, instr.op, self.findings, partial(self._show, instr))
            uses = [u for u in instr.rings if self._use(queue, instr, u, loops)]
            for use in (u for u in uses if u.kind in _OPENS):
                self._open(instr, use, loops, open_uses)
            for use in (u for u in uses if u.kind in _CLOSES):
                self._close(queue, instr, use, loops, open_uses)
        for use, _, instr in open_uses.values():
            self._add("P4", instr, f"{use.kind} of %{use.ring} has no {_OPENS[use.kind]} on queue {queue}")

    def _instructions(
        self, nodes: tuple[StreamNode, ...], loops: tuple[StreamLoop, ...]
    ) -> Iterator[tuple[Instr, tuple[StreamLoop, ...]]]:
        for node in nodes:
            if isinstance(node, StreamLoop):
                self.statements.loop(node, loops)
                if any(other.var == node.var for other in loops):
                    self.findings.add("P1", f"loop %{node.var}", "a loop around it has the same variable")
                yield from self._instructions(node.body, (*loops, node))
            else:
                yield node, loops

    def _operands(self, queue: Queue, instr: Instr) -> None:
        reads, writes = reads_and_writes(instr.stmt)
        for name in writes:
            if name in self.rings and self.rings[name].producer is not queue:
                self._add("P5", instr, f"writes %{name}, which queue {self.rings[name].producer} produces")
        for name in reads:
            if name in self.rings and queue not in self.rings[name].consumers:
                self._add("P5", instr, f"reads %{name}, which queue {queue} does not consume")

    def _use(self, queue: Queue, instr: Instr, use: RingUse, loops: tuple[StreamLoop, ...]) -> bool:
        ring = self.rings.get(use.ring)
        if ring is None or (use.kind not in _OPENS and use.kind not in _CLOSES):
            self._add("P3", instr, f"{use.kind} of %{use.ring}: no such operation or no such ring")
            return False
        if not 0 <= use.level <= len(loops):
            self._add("P3", instr, f"{use.kind} of %{use.ring} at level {use.level} inside {len(loops)} loops")
            return False
        produces = use.kind in ("claim", "push")
        if produces and queue is not ring.producer:
            self._add("P3", instr, f"{use.kind} of %{use.ring}, which queue {ring.producer} produces")
        if not produces and queue not in ring.consumers:
            self._add("P3", instr, f"{use.kind} of %{use.ring}, which queue {queue} does not consume")
        return True

    def _open(self, instr: Instr, use: RingUse, loops: tuple[StreamLoop, ...], open_uses: dict[Any, Any]) -> None:
        key = (use.ring, use.kind)
        if key in open_uses:
            self._add("P4", instr, f"second {use.kind} of %{use.ring} without a {_OPENS[use.kind]}")
        open_uses[key] = (use, loops, instr)

    def _close(
        self, queue: Queue, instr: Instr, use: RingUse, loops: tuple[StreamLoop, ...], open_uses: dict[Any, Any]
    ) -> None:
        opener = _CLOSES[use.kind]
        found = open_uses.pop((use.ring, opener), None)
        if found is None:
            if use.kind != "pop" or self.rings[use.ring].producer is not queue:
                self._add("P4", instr, f"{use.kind} of %{use.ring} without a {opener}")
            return
        opened, around, _ = found
        if opened.level != use.level:
            self._add("P4", instr, f"{use.kind} of %{use.ring} at level {use.level}, its {opener} at {opened.level}")
        elif any(a is not b for a, b in zip(around[: use.level], loops[: use.level], strict=True)):
            self._add("P4", instr, f"{use.kind} of %{use.ring} is in other loops than its {opener}")

    def _add(self, rule: str, instr: Instr, message: str) -> None:
        self.findings.add(rule, instr.op, message, partial(self._show, instr))

    def _show(self, instr: Instr) -> str:
        from ppuc.ir.text.print_program import print_instr

        return print_instr(instr, self._ranks)
