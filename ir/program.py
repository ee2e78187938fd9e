"""Level 3, the program: instruction streams per queue, rings and counters.

A program is a list of segments; a PPU segment is a list of kernel programs, each with one stream for every queue kind
of a compute unit (the same text for every unit: addresses and trip counts depend on loop ordinals and the unit's
coordinates) plus the copies of the chip's stage queues. Each queue runs the streams of all kernels in order, without
barriers between kernels.

Queues synchronise through two kinds of objects:
  Ring     slots of l1 or acc with one producer queue and a read position per consumer queue. A producer claims a free
           slot (waits), writes it and pushes; a consumer waits for a filled slot, reads and pops. A slot is free when
           all consumers popped it. The first claim of a ring also waits until every ring in `after`, whose bytes it
           takes over, is retired (all its slots, for this unit, pushed and popped).
  Counter  per block of a tensor in l2 or hbm: monotonic, zero at segment start. A store or copy bumps the counters of
           the blocks its box touches when it has landed; a wait is satisfied when a counter has its full `expect`.
           A counter may serve several groups one after another, in the order of `Segment.counters`. It is never reset:
           the value that a wait compares it with is the sum of `expect` of the groups up to the one waited for.

RingUse.level: the ring operation happens only in the first (claim, wait) or last (push, pop) iteration of every loop
deeper than `level` (level 0: outside all loops), because the slot lives for one iteration of loop number `level`.

Invariants (checked by ppuc.ir.verify): an instruction sits on a queue that its operation belongs to; each ring is
pushed by one queue; claims and pushes, waits and pops of each queue pair up at the same level; ring bytes that overlap
are ordered by `after`; every tensor lies inside its space.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ppuc.ir.kernel import Load, Loop, Mma, Param, Store, Vec
from ppuc.ir.types import DType, Space


class Queue(enum.Enum):
    """An in-order instruction queue: four kinds in every compute unit, `stage` on the chip."""

    LOAD = "load"
    STORE = "store"
    TENSOR = "tensor"
    VECTOR = "vector"
    STAGE = "stage"

    def __str__(self) -> str:
        return self.value

    def __hash__(self) -> int:
        return hash(self._value_)


UNIT_QUEUES = (Queue.LOAD, Queue.STORE, Queue.TENSOR, Queue.VECTOR)

COUNTER_MAX = (1 << 32) - 1
"""Highest value of a counter, which a segment's bumps of it may reach."""


@dataclass(frozen=True, slots=True)
class MemTensor:
    """A tensor in host-visible memory: `elements` of `dtype` at byte `address` of `space`. `role` is one of input,
    output, const, temp; `source` names the graph value that it holds (for const, the resource)."""

    name: str
    dtype: DType
    elements: int
    space: Space
    address: int
    role: str
    source: str

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class CounterGroup:
    """Counters `first .. first + len(expect)`, one for each `block` elements of `tensor`, bumped `expect` times each.
    A group of `kind` "done" has a single counter that each unit bumps once, after its last access."""

    name: str
    tensor: str
    kind: str
    first: int
    block: int
    expect: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ring:
    """`depth` slots of `slot_bytes` from byte `base` of every unit's `space`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    space: Space
    base: int
    slot_bytes: int
    depth: int
    producer: Queue
    consumers: tuple[Queue, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RingUse:
    """`kind` is claim or push (producer), wait or pop (consumer)."""

    kind: str
    ring: str
    level: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the counters of `group`: of the blocks that this instruction's box touches (`touched`) or of all
    blocks."""

    group: str
    touched: bool


@dataclass(frozen=True, slots=True)
class Bump:
    """Add one to counters of `group` on completion: of the blocks touched, or, for a "done" group, to its counter in
    the last iteration of all loops."""

    group: str
    touched: bool


@dataclass(frozen=True, slots=True)
class Instr:
    """One instruction: a tile statement whose buffers are rings and whose parameters are views of tensors, with its
    ring and counter operations. `op` is the mnemonic in the ISA table."""

    op: str
    stmt: Load | Store | Mma | Vec
    rings: tuple[RingUse, ...] = ()
    waits: tuple[Wait, ...] = ()
    bumps: tuple[Bump, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamLoop:
    """A hardware loop of one queue's stream."""

    var: str
    start: int
    stop: int
    step: int
    over: str | None
    body: tuple[StreamNode, ...]


StreamNode = StreamLoop | Instr


@dataclass(frozen=True, slots=True)
class KernelProgram:
    """The streams of one kernel. `params` bind the names used by loads and stores to views of tensors; `grid` and
    `first` place it on the compute units as in Kernel."""

    name: str
    grid: tuple[tuple[str, int], ...]
    params: tuple[Param, ...]
    rings: tuple[Ring, ...]
    streams: tuple[tuple[Queue, tuple[StreamNode, ...]], ...]
    loc: tuple[str, ...] = ()
    first: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """A stage-queue instruction: elements `[start, start + count)` of tensor `src` to the same place of tensor
    `dst`."""

    queue: int
    dst: str
    src: str
    start: int
    count: int
    waits: tuple[Wait, ...] = ()
    bumps: tuple[Bump, ...] = ()
    loc: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """Work of one launch on the PPU: kernels in order, and concurrent copies of the stage queues."""

    name: str
    kernels: tuple[KernelProgram, ...]
    copies: tuple[Copy, ...]
    counters: tuple[CounterGroup, ...]

    @property
    def counters_used(self) -> int:
        """Number of counters of the machine that the groups occupy: one beyond the last."""
        return max((group.first + len(group.expect) for group in self.counters), default=0)


@dataclass(frozen=True, slots=True)
class Program:
    """A whole model for one chip. `inputs` and `outputs` pair ONNX names with tensor names, in the model's order."""

    name: str
    target: str
    target_hash: str
    tensors: tuple[MemTensor, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    segments: tuple[Segment, ...]


__all__ = [
    "COUNTER_MAX",
    "UNIT_QUEUES",
    "Bump",
    "Copy",
    "CounterGroup",
    "Instr",
    "KernelProgram",
    "Loop",
    "MemTensor",
    "Program",
    "Queue",
    "Ring",
    "RingUse",
    "Segment",
    "StreamLoop",
    "StreamNode",
    "Wait",
]
