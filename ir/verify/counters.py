"""Invariants P8 and P12 of programs: counter groups, and the order in which they use the same counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ppuc.ir.program import (
    COUNTER_MAX,
    Copy,
    CounterGroup,
    Instr,
    KernelProgram,
    MemTensor,
    Segment,
    StreamLoop,
    StreamNode,
)
from ppuc.ir.verify.findings import Findings


def check_counters(segment: Segment, tensors: Mapping[str, MemTensor], findings: Findings) -> None:
    """Check the counter groups of a segment, and everything that bumps them."""
    for group in segment.counters:
        _check_group(group, tensors.get(group.tensor), findings)
    earlier = _take_over(segment.counters, findings)
    if earlier:
        _check_order(segment, earlier, findings)


def _check_group(group: CounterGroup, tensor: MemTensor | None, findings: Findings) -> None:
    entity = f"counter %{group.name}"
    if tensor is None:
        findings.add("P8", entity, f"there is no tensor %{group.tensor}")
    elif group.block < 1:
        findings.add("P8", entity, f"its block has {group.block} elements")
    else:
        blocks = 1 if group.kind == "done" else -(-tensor.elements // group.block)
        if len(group.expect) != blocks:
            findings.add("P8", entity, f"has {len(group.expect)} counters for {blocks} blocks")
    if group.first < 0:
        findings.add("P8", entity, f"starts at counter {group.first}")
    if min(group.expect, default=0) < 0:
        findings.add("P8", entity, "a counter cannot reach a negative number")


def _take_over(groups: Sequence[CounterGroup], findings: Findings) -> dict[str, tuple[str, ...]]:
    """Group -> the groups whose counters it takes over. Reports counters that count too far."""
    owner: dict[int, str] = {}
    value: dict[int, int] = {}
    found: dict[str, tuple[str, ...]] = {}
    for group in groups:
        mine = range(group.first, group.first + len(group.expect))
        before = dict.fromkeys(owner[counter] for counter in mine if counter in owner)
        if before:
            found[group.name] = tuple(before)
        for counter, expect in zip(mine, group.expect, strict=True):
            owner[counter] = group.name
            value[counter] = value.get(counter, 0) + expect
        reached = max((value[counter] for counter in mine), default=0)
        if reached > COUNTER_MAX:
            message = f"a counter reaches {reached:,}, the highest value is {COUNTER_MAX:,}"
            findings.add("P8", f"counter %{group.name}", message)
    return found


def _check_order(segment: Segment, earlier: Mapping[str, Sequence[str]], findings: Findings) -> None:
    """P12, for each copy and instruction."""
    for copy in segment.copies:
        _check_bumps(copy, f"copy to %{copy.dst}", earlier, findings, partial(_show_copy, copy))
    for kernel in segment.kernels:
        outside, findings.where = findings.where, f"{findings.where}@{kernel.name} "
        for _, nodes in kernel.streams:
            for instr in _instructions(nodes):
                _check_bumps(instr, instr.op, earlier, findings, partial(_show_instr, instr, kernel))
        findings.where = outside


def _check_bumps(
    item: Copy | Instr,
    entity: str,
    earlier: Mapping[str, Sequence[str]],
    findings: Findings,
    show: Callable[[], str],
) -> None:
    awaited = {wait.group for wait in item.waits if not wait.touched}
    for bump in item.bumps:
        for before in earlier.get(bump.group, ()):
            if before not in awaited:
                message = f"bumps %{bump.group} without waiting for all of %{before}, whose counters that takes over"
                findings.add("P12", entity, message, show)


def _instructions(nodes: Sequence[StreamNode]) -> Iterator[Instr]:
    for node in nodes:
        if isinstance(node, StreamLoop):
            yield from _instructions(node.body)
        else:
            yield node


def _show_copy(copy: Copy) -> str:
    from ppuc.ir.text.print_program import print_copy

    return print_copy(copy)


def _show_instr(instr: Instr, kernel: KernelProgram) -> str:
    from ppuc.ir.text.print_program import print_instr

    return print_instr(instr, {r.name: len(r.shape) for r in kernel.rings})
