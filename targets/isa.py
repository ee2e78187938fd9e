"""The instruction table: one entry per instruction. Encoder, decoder, verifier messages and manual derive from it.

An instruction is one 32-byte word. Index expressions, operand lists, ring and counter operations are in the descriptor
pool, and the word holds their offsets. Besides its own fields every instruction except loop and end has a `sync` field:
the rings it claims, waits for, pushes and pops, and the counters it waits for and bumps. Names in formulas: `ring[x]`
is the current slot of ring x, `tensor[box]` the elements of a tensor that a tile maps onto, `acc[x]` an accumulator
slot. Costs are formulas over the target's numbers and add to `issue_clk` and `ring_op_clk` per ring operation.

Invariants: opcodes and mnemonics are unique; the fields of an entry cover every attribute of its statement class except
`sync` and `body`; a word field holds at most one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppuc.ir.kernel import Load, Mma, Store, Vec
from ppuc.ir.program import Copy, Queue, StreamLoop

WORD = np.dtype(
    [
        ("opcode", "u1"),
        ("flags", "u1"),
        ("mod", "<u2"),
        ("dst", "<u4"),
        ("a", "<u4"),
        ("b", "<u4"),
        ("desc", "<u4"),
        ("sync", "<u4"),
        ("imm", "<i8"),
    ]
)
"""An instruction word, little-endian."""


@dataclass(frozen=True, slots=True)
class Field:
    """Statement attribute `attribute` is encoded in word field `slot` (`flags.N`: bit N of the flags)."""

    slot: str
    attribute: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """`queue` None: stream control, on every queue. `statement` is the IR class that the instruction carries."""

    mnemonic: str
    opcode: int
    queue: Queue | None
    statement: type
    form: str
    semantics: str
    cost: str
    fields: tuple[Field, ...]


_LOAD = (
    Field("dst", "dst", "ring that receives the tile"),
    Field("a", "src", "parameter read"),
    Field("desc", "index", "affine per dimension of the view, over loop variables and tile axes"),
    Field("b", "gather", "dimension, index ring and tile axis of an index list"),
    Field("imm", "pad", "value read outside the view, as f64 bits"),
)
_STORE = (
    Field("dst", "dst", "parameter written"),
    Field("a", "src", "ring that holds the tile"),
    Field("desc", "index", "affine per dimension of the view, over loop variables and tile axes"),
    Field("b", "scatter", "dimension, index ring and tile axis of an index list"),
    Field("imm", "combine", "overwrite, or the name of a read-modify-write operation"),
)

ISA = (
    Instruction(
        "load.box",
        0x10,
        Queue.LOAD,
        Load,
        "load.box %ring <- %tensor[index] {pad}",
        "ring[dst] := tensor[box], pad where the box leaves the view",
        "start_clk, bytes at a fair share of unit and CE port, NoC and memory (a row at most every row_clk), latency",
        _LOAD,
    ),
    Instruction(
        "load.gather",
        0x11,
        Queue.LOAD,
        Load,
        "load.gather %ring <- %tensor[index] {pad, gather = (dim, %rows, axis)}",
        "ring[dst][.., i, ..] := tensor[.., ring[rows][i], ..], pad where the row is outside the dimension",
        "as load.box, every index starting a new row",
        _LOAD,
    ),
    Instruction(
        "load.window",
        0x12,
        Queue.LOAD,
        Load,
        "load.window %ring <- %tensor[index] {pad}",
        "ring[dst][.., p, k, ..] := tensor[.., s p + d k + offset, ..]: two tile axes walk one dimension",
        "as load.box, bytes counted as written to l1",
        _LOAD,
    ),
    Instruction(
        "store.box",
        0x20,
        Queue.STORE,
        Store,
        "store.box %tensor[index] <- %ring",
        "tensor[box] := ring[src], clipped at the bounds of the view",
        "start_clk, bytes at a fair share of unit and CE port, NoC and memory (a row at most every row_clk), latency",
        _STORE,
    ),
    Instruction(
        "store.scatter",
        0x21,
        Queue.STORE,
        Store,
        "store.scatter %tensor[index] <- %ring {scatter = (dim, %rows, axis), combine}",
        "tensor[.., ring[rows][i], ..] (op)= ring[src][.., i, ..] in order of i; op is overwrite, add, mul, max, min",
        "as store.box, every index starting a new row; combining reads the row first",
        _STORE,
    ),
    Instruction(
        "mma",
        0x30,
        Queue.TENSOR,
        Mma,
        "mma %acc <- %a, %b {start, k_axes, transpose_a, transpose_b, continues, valid}",
        "acc[dst] (+)= ring[a] . ring[b], from zero in the first iteration of the loops in start, unless it continues;"
        " sums in f32 or i32",
        "lanes: fill_clk + max(ii_clk x ceil(M / m rows) x ceil(N / n cols) x ceil(K / k), operand bytes / l1 rate);"
        " systolic: its folds, as in ppuc.targets.cost; serial output-stationary arrays fill and drain once a sum",
        (
            Field("dst", "dst", "accumulator ring"),
            Field("a", "a", "left operand: ring, or an affine sub-tile of one"),
            Field("b", "b", "right operand: ring, or an affine sub-tile of one"),
            Field("imm", "start", "loops in whose first iteration the sum restarts"),
            Field("mod", "k_axes", "contracted axes"),
            Field("flags.0", "transpose_a", "a is [k, m]"),
            Field("flags.1", "transpose_b", "b is [n, k]"),
            Field("flags.2", "continues", "the sum never restarts"),
            Field("desc", "valid", "valid extents, for time only"),
        ),
    ),
    Instruction(
        "vec",
        0x40,
        Queue.VECTOR,
        Vec,
        "vec %ring, .. <- @program(%ring, ..) {valid, scalars}",
        "ring[outs] := program(ring[ins]) on the valid part of every axis, zero elsewhere",
        "sum over steps of elements / lanes (special functions: / sfu_per_clk; i64: twice), at least bytes / l1 rate",
        (
            Field("dst", "program", "vector program"),
            Field("a", "outs", "rings written"),
            Field("b", "ins", "rings read"),
            Field("desc", "valid", "valid extent of each axis"),
            Field("imm", "scalars", "affines handed to the program"),
        ),
    ),
    Instruction(
        "copy",
        0x50,
        Queue.STAGE,
        Copy,
        "copy %dst <- %src {start, count}",
        "tensor[dst][start .. start + count] := tensor[src][start .. start + count]",
        "start_ns, then bytes at a fair share of both memories, latency",
        (
            Field("mod", "queue", "stage queue"),
            Field("dst", "dst", "tensor written"),
            Field("a", "src", "tensor read"),
            Field("imm", "start", "first element"),
            Field("desc", "count", "elements"),
            Field("b", "loc", "origin, for reports"),
        ),
    ),
    Instruction(
        "loop",
        0x01,
        None,
        StreamLoop,
        "for %var in start..stop step step [over axis] { .. }",
        "run the words up to the matching end for var = start, start + step, ..; over: this unit's share of them",
        "none: the sequencer counts",
        (
            Field("dst", "var", "loop variable"),
            Field("a", "over", "grid axis whose units share the iterations"),
            Field("desc", "start", "first value"),
            Field("imm", "stop", "bound"),
            Field("b", "step", "increment"),
        ),
    ),
    Instruction("end", 0x02, None, StreamLoop, "}", "next iteration, or leave the loop", "none", ()),
)
"""Every instruction, in the manual's order."""

BY_MNEMONIC = {entry.mnemonic: entry for entry in ISA}
BY_OPCODE = {entry.opcode: entry for entry in ISA}


def mnemonic_of(stmt: Load | Store | Mma | Vec | Copy) -> str:
    """The mnemonic of a tile statement or copy."""
    match stmt:
        case Load(gather=None):
            return "load.window" if any(len(index.axes) > 1 for index in stmt.index) else "load.box"
        case Load():
            return "load.gather"
        case Store():
            return "store.box" if stmt.scatter is None else "store.scatter"
        case Mma():
            return "mma"
        case Vec():
            return "vec"
        case Copy():
            return "copy"


__all__ = ["BY_MNEMONIC", "BY_OPCODE", "ISA", "WORD", "Field", "Instruction", "mnemonic_of"]
