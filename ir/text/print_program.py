"""Prints programs: tensors, then segments with counters, copies and one block of instructions per queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ppuc.ir.program import (
    Bump,
    Copy,
    CounterGroup,
    Instr,
    KernelProgram,
    MemTensor,
    Program,
    Ring,
    Segment,
    StreamLoop,
    StreamNode,
    Wait,
)
from ppuc.ir.text.fields import CounterFields, ProgramFields
from ppuc.ir.text.literals import format_attrs, quote, symbol
from ppuc.ir.text.print_kernel import format_loc, format_loop, format_statement, kernel_header
from ppuc.ir.types import TensorType


def print_program(program: Program) -> str:
    """A program; ends in a newline."""
    head = format_attrs(ProgramFields(program.target, program.target_hash))
    lines = [f"program {symbol(program.name)}{head} {{"]
    lines += [f"  {_tensor(t)}" for t in program.tensors]
    lines += [f"  input {quote(name)} = %{tensor}" for name, tensor in program.inputs]
    lines += [f"  output {quote(name)} = %{tensor}" for name, tensor in program.outputs]
    for segment in program.segments:
        lines += _segment(segment)
    return "\n".join([*lines, "}", ""])


def _tensor(tensor: MemTensor) -> str:
    t = tensor
    return (
        f"tensor %{t.name}: {TensorType(t.dtype, (t.elements,))} @{t.space} at {t.address} {t.role} {quote(t.source)}"
    )


def _segment(segment: Segment) -> Iterator[str]:
    yield f"  segment {symbol(segment.name)} {{"
    yield from (f"    {_counter(c)}" for c in segment.counters)
    yield from (f"    {print_copy(c)}" for c in segment.copies)
    for kernel in segment.kernels:
        yield from _kernel(kernel)
    yield "  }"


def _counter(group: CounterGroup) -> str:
    fields = CounterFields(group.kind, group.first, group.block, group.expect)
    return f"counter %{group.name} of %{group.tensor}{format_attrs(fields)}"


def print_copy(copy: Copy) -> str:
    """A stage-queue instruction on one line."""
    c = copy
    counters = [*_counters("wait", c.waits), *_counters("bump", c.bumps)]
    opts = f" {{{', '.join(counters)}}}" if counters else ""
    return f"copy %{c.dst} <- %{c.src}[{c.start}..{c.start + c.count}] queue {c.queue}{opts}{format_loc(c.loc)}"


def _counters(key: str, items: tuple[Wait, ...] | tuple[Bump, ...]) -> Iterator[str]:
    for item in items:
        yield f"{key}(%{item.group} {'touched' if item.touched else 'all'})"


def print_kernel_program(kernel: KernelProgram) -> str:
    """The rings and streams of a kernel, as they stand in its program; ends in a newline."""
    return "\n".join([*_kernel(kernel), ""])


def _kernel(kernel: KernelProgram) -> Iterator[str]:
    yield from kernel_header(kernel, "    ")
    yield from (f"      {_ring(r)}" for r in kernel.rings)
    ranks = {r.name: len(r.shape) for r in kernel.rings}
    for queue, nodes in kernel.streams:
        yield f"      queue {queue} {{"
        yield from _nodes(nodes, ranks, "        ")
        yield "      }"
    yield "    }"


def _ring(ring: Ring) -> str:
    r = ring
    consumers = ", ".join(map(str, r.consumers))
    after = f" after ({', '.join(f'%{name}' for name in r.after)})" if r.after else ""
    return (
        f"ring %{r.name}: {TensorType(r.dtype, r.shape)} @{r.space} at {r.base} slot {r.slot_bytes} depth {r.depth} "
        f"by {r.producer} to ({consumers}){after}"
    )


def _nodes(nodes: tuple[StreamNode, ...], ranks: Mapping[str, int], indent: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, StreamLoop):
            yield indent + format_loop(node.var, node.start, node.stop, node.step, node.over)
            yield from _nodes(node.body, ranks, indent + "  ")
            yield indent + "}"
        else:
            yield indent + print_instr(node, ranks)


def print_instr(instr: Instr, ranks: Mapping[str, int]) -> str:
    """An instruction on one line; `ranks` gives the tile rank of each ring."""
    rings = tuple(f"{use.kind}(%{use.ring}, {use.level})" for use in instr.rings)
    counters = (*_counters("wait", instr.waits), *_counters("bump", instr.bumps))
    return format_statement(instr.op, instr.stmt, ranks, rings + counters)
