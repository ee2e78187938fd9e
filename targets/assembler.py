"""Programs as bytes and as assembly text.

`encode` produces instruction words (one stream after another), a descriptor pool and the symbols that both refer to;
`decode` restores an equal program. Assembly text is the text form of level 3, preceded by its vector programs.

Invariants: decode(encode(p)) == p and assemble(disassemble(p)) == p; equal programs encode to equal bytes; the layout
of every word comes from the instruction table.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppuc.ir.errors import ArtifactError, CapacityError, Diagnostic, Entity, EntityKind, TextError
from ppuc.ir.kernel import Param
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
from ppuc.ir.text import parse_program, parse_vector, print_program, print_vector
from ppuc.ir.vector import VectorProgram
from ppuc.targets.codec import PoolReader, PoolWriter, fields_of, pool_array
from ppuc.targets.isa import BY_MNEMONIC, BY_OPCODE, WORD, Instruction

_SLOTS = tuple(WORD.names or ())
_RANGES = tuple((int(np.iinfo(WORD[name]).min), int(np.iinfo(WORD[name]).max)) for name in _SLOTS)
_SYNC = _SLOTS.index("sync")


@dataclass(frozen=True, slots=True)
class Encoded:
    """`code` is uint8[n, 32], `descriptors` int64[m]; `symbols` are the strings that descriptors and words refer to by
    index."""

    code: np.ndarray
    descriptors: np.ndarray
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sync:
    """Ring and counter operations of an instruction."""

    rings: tuple[RingUse, ...]
    waits: tuple[Wait, ...]
    bumps: tuple[Bump, ...]


@dataclass(frozen=True, slots=True)
class _Stream:
    """Words `[first, first + words)` of the code."""

    queue: Queue
    first: int
    words: int


@dataclass(frozen=True, slots=True)
class _Kernel:
    """KernelProgram, its streams as ranges of the code."""

    name: str
    grid: tuple[tuple[str, int], ...]
    params: tuple[Param, ...]
    rings: tuple[Ring, ...]
    streams: tuple[_Stream, ...]
    loc: tuple[str, ...]
    first: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """Segment, its copies as a range of the code."""

    name: str
    kernels: tuple[_Kernel, ...]
    copies: _Stream
    counters: tuple[CounterGroup, ...]


@dataclass(frozen=True, slots=True)
class _Root:
    """Program and its vector programs."""

    name: str
    target: str
    target_hash: str
    tensors: tuple[MemTensor, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    segments: tuple[_Segment, ...]
    vectors: tuple[VectorProgram, ...]


def encode(program: Program, vectors: Sequence[VectorProgram]) -> Encoded:
    """Program and vector programs as words, descriptors and symbols.

    Raises CapacityError if a number exceeds its field, TextError for an instruction outside the table (only a text
    names one).
    """
    pool = PoolWriter()
    code = _CodeWriter(pool)
    segments = tuple(_encode_segment(segment, code) for segment in program.segments)
    root = _Root(
        program.name,
        program.target,
        program.target_hash,
        program.tensors,
        program.inputs,
        program.outputs,
        segments,
        tuple(vectors),
    )
    pool.words[0] = pool.put(root, _Root)
    words = np.array(code.words, WORD)
    return Encoded(words.view(np.uint8).reshape(-1, WORD.itemsize), pool_array(pool.words), tuple(pool.symbols))


def decode(encoded: Encoded) -> tuple[Program, tuple[VectorProgram, ...]]:
    """The encoded program and vector programs. Raises ArtifactError for malformed words."""
    try:
        words: Any = np.ascontiguousarray(encoded.code).reshape(-1).view(WORD).tolist()
        pool = PoolReader(encoded.descriptors.tolist(), encoded.symbols)
        root: _Root = pool.get(pool.words[0], _Root)
        segments = tuple(_decode_segment(segment, words, pool) for segment in root.segments)
    except (ValueError, IndexError, TypeError, RecursionError) as error:
        raise ArtifactError.of("code", "the instruction words are malformed", got=error) from None
    program = Program(root.name, root.target, root.target_hash, root.tensors, root.inputs, root.outputs, segments)
    return program, root.vectors


def disassemble(program: Program, vectors: Sequence[VectorProgram]) -> str:
    """Assembly text: the vector programs, then the program."""
    return "\n".join([*(print_vector(vector) for vector in vectors), print_program(program)])


def assemble(text: str, filename: str = "") -> tuple[Program, tuple[VectorProgram, ...]]:
    """Read assembly text: one program and any number of vector programs, in any order. Raises TextError."""
    items = list(_items(text))
    vectors = tuple(parse_vector(item, filename) for kind, item in items if kind == "vector")
    programs = [parse_program(item, filename) for kind, item in items if kind == "program"]
    if len(programs) != 1:
        raise TextError(Diagnostic(filename or "<text>", "assembly holds exactly one program", str(len(programs))))
    return programs[0], vectors


_ITEM = re.compile(r"^[ \t]*(vector|program)[ \t]+@", re.MULTILINE)


def _items(text: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each top-level item. Empty lines replace the preceding text, so that errors give line numbers of
    the whole text. Text before the first item belongs to it."""
    starts = list(_ITEM.finditer(text))
    if not starts:
        yield "program", text
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, start, stop in zip(starts, [0, *ends], ends, strict=False):
        yield match[1], "\n" * text.count("\n", 0, start) + text[start:stop]


# Writing words.


class _CodeWriter:
    """Accumulates instruction words; `about` is what the current stream computes."""

    def __init__(self, pool: PoolWriter) -> None:
        self.pool = pool
        self.about: tuple[Entity, ...] = ()
        self.words: list[tuple[int, ...]] = []

    def stream(self, queue: Queue, nodes: Sequence[StreamNode | Copy]) -> _Stream:
        """Append the words of one stream."""
        first = len(self.words)
        self._nodes(nodes)
        return _Stream(queue, first, len(self.words) - first)

    def _nodes(self, nodes: Sequence[StreamNode | Copy]) -> None:
        for node in nodes:
            if isinstance(node, StreamLoop):
                self._word("loop", node, None)
                self._nodes(node.body)
                self._word("end", node, None)
            elif isinstance(node, Copy):
                self._word("copy", node, _Sync((), node.waits, node.bumps))
            else:
                self._word(node.op, node.stmt, _Sync(node.rings, node.waits, node.bumps))

    def _word(self, mnemonic: str, stmt: Any, sync: _Sync | None) -> None:
        entry = BY_MNEMONIC.get(mnemonic)
        if entry is None or type(stmt) is not entry.statement:
            fitting = [known.mnemonic for known in BY_MNEMONIC.values() if known.statement is type(stmt)]
            raise TextError.of(
                f"instruction '{mnemonic}'",
                f"does not encode a {type(stmt).__name__.lower()}",
                expected=" or ".join(fitting),
                entities=self.about,
            )
        values = [0] * len(_SLOTS)
        values[0] = entry.opcode
        for position, bit, attribute, kind in _layout(entry):
            values[position] |= self.pool.put(getattr(stmt, attribute), kind) << bit
        if sync is not None:
            values[_SYNC] = self.pool.put(sync, _Sync)
        for slot, value, (low, high) in zip(_SLOTS, values, _RANGES, strict=True):
            if not low <= value <= high:
                raise CapacityError.of(
                    f"instruction {mnemonic}",
                    f"field '{slot}' is too narrow",
                    got=value,
                    expected=f"{low} to {high}",
                    entities=self.about,
                )
        self.words.append(tuple(values))


def _encode_segment(segment: Segment, code: _CodeWriter) -> _Segment:
    kernels = []
    for k in segment.kernels:
        code.about = (Entity(EntityKind.KERNEL, k.name), *Entity.each(EntityKind.NODE, k.loc))
        streams = tuple(code.stream(q, body) for q, body in k.streams)
        kernels.append(_Kernel(k.name, k.grid, k.params, k.rings, streams, k.loc, k.first))
    code.about = Entity.each(EntityKind.TENSOR, dict.fromkeys(copy.dst for copy in segment.copies))
    return _Segment(segment.name, tuple(kernels), code.stream(Queue.STAGE, segment.copies), segment.counters)


@functools.cache
def _layout(entry: Instruction) -> tuple[tuple[int, int, str, Any], ...]:
    """(position in the word, bit, attribute, type) of each field of an instruction."""
    kinds = dict(fields_of(entry.statement))
    return tuple(
        (_SLOTS.index(slot), int(bit or 0), field.attribute, kinds[field.attribute])
        for field in entry.fields
        for slot, _, bit in [field.slot.partition(".")]
    )


# Reading words.


def _decode_segment(segment: _Segment, words: Sequence[tuple[int, ...]], pool: PoolReader) -> Segment:
    kernels = tuple(
        KernelProgram(
            k.name,
            k.grid,
            k.params,
            k.rings,
            tuple((s.queue, _decode_stream(s, words, pool)) for s in k.streams),
            k.loc,
            k.first,
        )
        for k in segment.kernels
    )
    copies = _decode_stream(segment.copies, words, pool)
    return Segment(segment.name, kernels, typing.cast(tuple[Copy, ...], copies), segment.counters)


def _decode_stream(stream: _Stream, words: Sequence[tuple[int, ...]], pool: PoolReader) -> tuple[StreamNode, ...]:
    if not 0 <= stream.first <= stream.first + stream.words <= len(words):
        raise ValueError(f"stream [{stream.first}, {stream.first + stream.words}) is outside the code")
    stack: list[tuple[dict[str, Any], list[Any]]] = [({}, [])]
    for word in words[stream.first : stream.first + stream.words]:
        entry = BY_OPCODE.get(word[0])
        if entry is None:
            raise ValueError(f"opcode {word[0]:#x} does not exist")
        if entry.mnemonic == "end":
            if len(stack) == 1:
                raise ValueError("an end without a loop")
            loop, body = stack.pop()
            stack[-1][1].append(StreamLoop(**loop, body=tuple(body)))
            continue
        values = {name: pool.get(_field(word, at, bit, kind), kind) for at, bit, name, kind in _layout(entry)}
        if entry.mnemonic == "loop":
            stack.append((values, []))
        else:
            stack[-1][1].append(_node(entry, values, pool.get(word[_SYNC], _Sync)))
    if len(stack) > 1:
        raise ValueError("a loop without an end")
    return tuple(stack[0][1])


def _field(word: tuple[int, ...], position: int, bit: int, kind: Any) -> int:
    return (word[position] >> bit) & 1 if kind is bool else word[position]


def _node(entry: Instruction, values: dict[str, Any], sync: _Sync) -> Instr | Copy:
    if entry.statement is Copy:
        return Copy(**values, waits=sync.waits, bumps=sync.bumps)
    return Instr(entry.mnemonic, entry.statement(**values), sync.rings, sync.waits, sync.bumps)


__all__ = ["Encoded", "assemble", "decode", "disassemble", "encode"]
