"""Parses programs."""

from __future__ import annotations

from typing import Any, TypeVar

from ppuc.ir.program import (
    Bump,
    Copy,
    CounterGroup,
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
from ppuc.ir.text.fields import CounterFields, ProgramFields
from ppuc.ir.text.literals import LiteralError, build_attrs, no_resources
from ppuc.ir.text.nodes import (
    CopyLine,
    CounterLine,
    InOut,
    KernelHeader,
    LoopLine,
    Opt,
    ProgramHeader,
    QueueHeader,
    RingLine,
    SegmentHeader,
    TensorLine,
    Token,
)
from ppuc.ir.text.parse_graph import closest, memory, symbol_name
from ppuc.ir.text.parse_kernel import StatementReader, enter_loop, read_grid, read_params, static_type
from ppuc.ir.text.reader import Line, Reader

_EFFECTS = ("claim", "push", "wait", "pop", "bump")
_QUEUES = {queue.value: queue for queue in Queue}
_Fields = TypeVar("_Fields", ProgramFields, CounterFields)


def read_program(reader: Reader, line: Line, node: ProgramHeader) -> Program:
    """The program that starts at `line`."""
    fields = _fields(reader, ProgramFields, node.attrs, node.name, "a program")
    tensors: dict[str, MemTensor] = {}
    ends: dict[str, list[tuple[str, str]]] = {"input": [], "output": []}
    segments: list[Segment] = []
    for inner in reader.block(line):
        match reader.parse(inner, "program_line"):
            case TensorLine() as found:
                tensor = _read_tensor(reader, found)
                if tensor.name in tensors:
                    reader.fail(found.name, f"{found.name} is defined twice")
                tensors[tensor.name] = tensor
            case InOut(kind, name, value):
                ends[kind].append((name, _known(reader, value, tensors, "tensor")))
            case SegmentHeader(name):
                segments.append(_read_segment(reader, inner, symbol_name(name), tensors))
    return Program(
        symbol_name(node.name),
        fields.target,
        fields.hash,
        tuple(tensors.values()),
        tuple(ends["input"]),
        tuple(ends["output"]),
        tuple(segments),
    )


def _fields(reader: Reader, cls: type[_Fields], given: Any, where: Token, owner: str) -> _Fields:
    try:
        return build_attrs(cls, given, no_resources, where, owner)
    except LiteralError as error:
        reader.fail(error.token, error.what, got=error.got, expected=error.expected)


def _known(reader: Reader, token: Token, known: Any, noun: str) -> str:
    name = str(token[1:])
    if name not in known:
        reader.fail(token, f"{token} is not a {noun} here", hint=closest(token, (f"%{n}" for n in known)))
    return name


def _read_tensor(reader: Reader, node: TensorLine) -> MemTensor:
    type = static_type(reader, node.type)
    if type.rank != 1:
        reader.fail(node.type, "a tensor in memory has one dimension: its elements", got=str(type))
    name = str(node.name[1:])
    space = memory(reader, node.space)
    return MemTensor(name, type.dtype, type.elements, space, node.address, str(node.role), node.source)


def _read_segment(reader: Reader, line: Line, name: str, tensors: dict[str, MemTensor]) -> Segment:
    counters: dict[str, CounterGroup] = {}
    copies: list[Copy] = []
    kernels: list[KernelProgram] = []
    for inner in reader.block(line):
        match reader.parse(inner, "segment_line"):
            case CounterLine() as node:
                group = str(node.name[1:])
                if group in counters:
                    reader.fail(node.name, f"{node.name} is defined twice")
                tensor = _known(reader, node.tensor, tensors, "tensor")
                f = _fields(reader, CounterFields, node.attrs, node.name, "a counter")
                counters[group] = CounterGroup(group, tensor, f.kind, f.first, f.block, f.expect)
            case CopyLine() as node:
                copies.append(_read_copy(reader, node, tensors, counters))
            case KernelHeader() as node:
                kernels.append(_read_kernel(reader, inner, node, counters))
    return Segment(name, tuple(kernels), tuple(copies), tuple(counters.values()))


def _read_copy(
    reader: Reader, node: CopyLine, tensors: dict[str, MemTensor], counters: dict[str, CounterGroup]
) -> Copy:
    dst = _known(reader, node.dst, tensors, "tensor")
    src = _known(reader, node.src, tensors, "tensor")
    if int(node.stop) < node.start:
        reader.fail(node.stop, "the range ends before it starts", expected=f"at least {node.start}")
    for opt in node.opts:
        if opt.form != "counter":
            reader.fail(opt.key, f"unknown option '{opt.key}' of copy", expected="wait, bump")
    _, waits, bumps = _effects(reader, node.opts, {}, counters)
    return Copy(node.queue, dst, src, node.start, int(node.stop) - node.start, waits, bumps, node.loc)


def _read_kernel(reader: Reader, line: Line, node: KernelHeader, counters: dict[str, CounterGroup]) -> KernelProgram:
    params = read_params(reader, node.params)
    rings: list[Ring] = []
    streams: list[tuple[Queue, tuple[StreamNode, ...]]] = []
    statements = StatementReader(reader, (p.name for p in params), {})
    for inner in reader.block(line):
        match reader.parse(inner, "stream_kernel_line"):
            case RingLine() as found:
                ring = _read_ring(reader, found)
                if ring.name in statements.tiles or ring.name in statements.params:
                    reader.fail(found.name, f"{found.name} is defined twice")
                statements.tiles[ring.name] = len(ring.shape)
                rings.append(ring)
            case QueueHeader(token):
                queue = _queue(reader, token)
                streams.append((queue, _read_stream(reader, inner, statements, counters)))
    name, grid, first = symbol_name(node.name), read_grid(node), int(node.first or 0)
    return KernelProgram(name, grid, params, tuple(rings), tuple(streams), node.loc, first)


def _queue(reader: Reader, token: Token) -> Queue:
    if token not in _QUEUES:
        reader.fail(token, f"unknown queue '{token}'", expected=", ".join(_QUEUES))
    return _QUEUES[token]


def _read_ring(reader: Reader, node: RingLine) -> Ring:
    type = static_type(reader, node.type)
    return Ring(
        str(node.name[1:]),
        type.dtype,
        type.dims,
        memory(reader, node.space),
        node.base,
        node.slot,
        node.depth,
        _queue(reader, node.producer),
        tuple(_queue(reader, token) for token in node.consumers),
        tuple(str(token[1:]) for token in node.after),
    )


def _read_stream(
    reader: Reader, line: Line, statements: StatementReader, counters: dict[str, CounterGroup]
) -> tuple[StreamNode, ...]:
    nodes: list[StreamNode] = []
    for inner in reader.block(line):
        node = reader.parse(inner, "statement")
        if isinstance(node, LoopLine):
            over = None if node.over is None else str(node.over)
            var = enter_loop(statements, node)
            body = _read_stream(reader, inner, statements, counters)
            statements.loops.pop()
            nodes.append(StreamLoop(var, node.start, node.stop, node.step, over, body))
        else:
            stmt, others = statements.statement(node, _EFFECTS)
            rings, waits, bumps = _effects(reader, others, statements.tiles, counters)
            nodes.append(Instr(str(node.verb), stmt, rings, waits, bumps))
    return tuple(nodes)


def _effects(
    reader: Reader, opts: Any, rings: dict[str, int], counters: dict[str, CounterGroup]
) -> tuple[tuple[RingUse, ...], tuple[Wait, ...], tuple[Bump, ...]]:
    uses: list[RingUse] = []
    waits: list[Wait] = []
    bumps: list[Bump] = []
    for opt in opts:
        name, argument = opt.value
        if opt.form == "ring":
            if opt.key == "bump":
                reader.fail(opt.key, "a bump is of a counter", expected="bump(%counter touched) or bump(%counter all)")
            uses.append(RingUse(str(opt.key), _known(reader, name, rings, "ring"), int(argument)))
            continue
        touched = _touched(reader, opt)
        group = _known(reader, name, counters, "counter")
        if opt.key == "wait":
            waits.append(Wait(group, touched))
        else:
            bumps.append(Bump(group, touched))
    return tuple(uses), tuple(waits), tuple(bumps)


def _touched(reader: Reader, opt: Opt) -> bool:
    _, word = opt.value
    if opt.key not in ("wait", "bump"):
        reader.fail(opt.key, f"a {opt.key} is of a ring", expected=f"{opt.key}(%ring, level)")
    if word not in ("touched", "all"):
        reader.fail(word, f"unknown word '{word}'", expected="touched, all")
    return bool(word == "touched")
