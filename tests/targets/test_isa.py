"""The instruction table and the encoding of programs: bytes and assembly text give back what went in."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppuc.ir.affine import Affine, affine, axis, var
from ppuc.ir.errors import ArtifactError, CapacityError, TextError
from ppuc.ir.kernel import Gather, Load, Mma, Store, TileRef, Vec
from ppuc.ir.program import Copy, Instr, Program, Queue, Segment, StreamLoop
from ppuc.ir.vector import VectorProgram
from ppuc.targets.assembler import Encoded, assemble, decode, disassemble, encode
from ppuc.targets.codec import PoolReader, PoolWriter
from ppuc.targets.isa import BY_MNEMONIC, BY_OPCODE, ISA, WORD, mnemonic_of
from tests.support.effort import assert_linear
from tests.support.program_samples import BIAS_RELU, gemm_program

# The table.


def test_opcodes_and_mnemonics_are_unique() -> None:
    assert len(BY_MNEMONIC) == len(BY_OPCODE) == len(ISA)
    assert all(0 < entry.opcode < 256 for entry in ISA)


def test_words_have_the_width_that_targets_declare() -> None:
    assert WORD.itemsize == 32


@pytest.mark.parametrize("entry", ISA, ids=lambda entry: entry.mnemonic)
def test_every_attribute_of_a_statement_has_its_own_field(entry) -> None:
    slots = Counter(field.slot for field in entry.fields)
    assert max(slots.values(), default=0) <= 1
    assert {slot.partition(".")[0] for slot in slots} <= set(WORD.names) - {"opcode", "sync"}
    if entry.mnemonic == "end":
        assert not entry.fields
        return
    carried_elsewhere = {"body", "waits", "bumps"}
    attributes = {field.name for field in dataclasses.fields(entry.statement)} - carried_elsewhere
    assert {field.attribute for field in entry.fields} == attributes


@pytest.mark.parametrize("entry", ISA, ids=lambda entry: entry.mnemonic)
def test_every_entry_says_form_semantics_and_cost(entry) -> None:
    assert entry.form
    assert entry.semantics
    assert entry.cost
    assert all(field.meaning for field in entry.fields)


@pytest.mark.parametrize(
    ("stmt", "mnemonic"),
    [
        (Load("a", "x", (var("m") + axis(0), axis(1))), "load.box"),
        (Load("a", "x", (axis(0, 2) + axis(1), axis(2))), "load.window"),
        (Load("a", "x", (affine(), axis(1)), gather=Gather(0, "i", 0)), "load.gather"),
        (Load("a", "x", (axis(0) + axis(2), axis(1)), gather=Gather(1, "i", 1)), "load.gather"),
        (Store("y", "a", (axis(0),)), "store.box"),
        (Store("y", "a", (affine(),), scatter=Gather(0, "i", 0)), "store.scatter"),
        (Mma("c", TileRef("a"), TileRef("b"), ()), "mma"),
        (Vec("f", ("o",), ("i",)), "vec"),
        (Copy(0, "y", "x", 0, 8), "copy"),
    ],
)
def test_mnemonic_of(stmt, mnemonic: str) -> None:
    assert mnemonic_of(stmt) == mnemonic
    assert BY_MNEMONIC[mnemonic].statement is type(stmt)


# Bytes.


def test_sample_uses_every_instruction() -> None:
    code = encode(gemm_program(), [BIAS_RELU]).code
    assert set(code[:, 0]) == set(BY_OPCODE)


def test_encoding_gives_back_the_program() -> None:
    program = gemm_program()
    encoded = encode(program, [BIAS_RELU])
    assert encoded.code.shape == (len(encoded.code), 32)
    assert encoded.code.dtype == np.uint8
    assert encoded.descriptors.dtype == np.int64
    assert decode(encoded) == (program, (BIAS_RELU,))


def test_an_empty_program_is_encoded() -> None:
    program = Program("nothing", "t", "0", (), (), (), (Segment("s", (), (), ()),))
    assert decode(encode(program, [])) == (program, ())


def test_equal_programs_give_equal_bytes() -> None:
    first, second = encode(gemm_program(), [BIAS_RELU]), encode(gemm_program(), [BIAS_RELU])
    assert first.code.tobytes() == second.code.tobytes()
    assert first.descriptors.tobytes() == second.descriptors.tobytes()
    assert first.symbols == second.symbols


def test_equal_descriptors_are_stored_once() -> None:
    segment = gemm_program().segments[0]
    once = encode(replace(gemm_program(), segments=(segment,)), [])
    often = encode(replace(gemm_program(), segments=(segment,) * 50), [])
    assert len(often.code) == 50 * len(once.code)
    assert len(often.descriptors) < 50 * len(once.descriptors) / 4


def test_signed_zero_and_infinity_keep_their_bits() -> None:
    for pad in (-0.0, np.inf, -np.inf, 1e-310):
        program = _single(Load("a", "x", (axis(0),), pad=pad))
        stream = decode(encode(program, []))[0].segments[0].kernels[0].streams[0][1]
        assert np.float64(stream[0].stmt.pad).tobytes() == np.float64(pad).tobytes()


def test_encoding_is_linear() -> None:
    def encoding(kernels: int) -> Callable[[], Encoded]:
        segments = tuple(gemm_program(m=1000 + i).segments[0] for i in range(kernels))
        return functools.partial(encode, replace(gemm_program(), segments=segments), [BIAS_RELU])

    assert_linear(encoding, 75)


_INT = st.integers(-(2**63), 2**63 - 1)
_U16, _U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
_NARROW = {(Mma, "k_axes"): _U16, (Copy, "queue"): _U16, (Copy, "count"): _U32}
_NARROW |= {(StreamLoop, "start"): _U32, (StreamLoop, "step"): _U32}
_NAME = st.text(max_size=4).filter(lambda name: not name.startswith("$")) | st.integers(0, 4).map("${}".format)
"""A loop variable or a tile axis."""
_NARROW |= {(Affine, "terms"): st.lists(st.tuples(_NAME, _INT), max_size=2).map(tuple)}
_LEAVES = {int: _INT, bool: st.booleans(), str: st.text(max_size=4), float: st.floats(allow_nan=False)}


@functools.cache
def _any(kind: Any) -> st.SearchStrategy:
    """Any value of a type of the IR; no NaN, which does not equal itself."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in _LEAVES:
        return _LEAVES[kind]
    if kind is Instr:
        stmt = st.one_of(_any(Load), _any(Store), _any(Mma), _any(Vec))
        uses = [_any(hint) for name, hint in typing.get_type_hints(Instr).items() if name not in ("op", "stmt")]
        return st.builds(lambda s, *sync: Instr(mnemonic_of(s), s, *sync), stmt, *uses)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(_any(arg) for arg in args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(st.deferred(lambda: _any(args[0])), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(_any(arg) for arg in args))
    if kind is type(None):
        return st.none()
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: _NARROW.get((kind, name), _any(hint)) for name, hint in hints.items()})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(_any(Program), _any(tuple[VectorProgram, ...]))
def test_any_program_comes_back_equal(program: Program, vectors: tuple[VectorProgram, ...]) -> None:
    encoded = encode(program, vectors)
    assert decode(encoded) == (program, vectors)
    again = encode(*decode(encoded))
    assert again.code.tobytes() == encoded.code.tobytes()
    assert again.descriptors.tobytes() == encoded.descriptors.tobytes()


def test_numbers_too_large_for_their_field_are_refused() -> None:
    copy = Copy(0, "y", "x", 0, 2**32)
    program = replace(gemm_program(), segments=(Segment("s", (), (copy,), ()),))
    with pytest.raises(CapacityError) as caught:
        encode(program, [])
    assert str(caught.value) == (
        "instruction copy: field 'desc' is too narrow\n  got: 4294967296\n  expected: 0 to 4294967295"
    )
    with pytest.raises(CapacityError, match="instruction mma: field 'mod' is too narrow"):
        encode(_single(Mma("c", TileRef("a"), TileRef("b"), (), k_axes=2**16)), [])


@pytest.mark.parametrize("op", ["store.box", "mma.fp4", "loop", ""])
def test_an_instruction_must_carry_its_own_statement(op: str) -> None:
    load = Load("a", "x", (axis(0),))
    with pytest.raises(TextError, match=f"instruction '{op}': does not encode a load"):
        encode(_single(load, op), [])


def _single(stmt: Load | Store | Mma | Vec, op: str | None = None) -> Program:
    """A program of one instruction, in the load queue."""
    stream = (Queue.LOAD, (Instr(mnemonic_of(stmt) if op is None else op, stmt),))
    kernel = replace(gemm_program().segments[0].kernels[0], streams=(stream,))
    return replace(gemm_program(), segments=(Segment("s", (kernel,), (), ()),))


def _damaged(edit: Callable[[np.ndarray, np.ndarray], None]) -> Encoded:
    encoded = encode(gemm_program(), [BIAS_RELU])
    edit(encoded.code, encoded.descriptors)
    return encoded


@pytest.mark.parametrize(
    ("edit", "got"),
    [
        (lambda code, pool: code.__setitem__((0, 0), 0xEE), "opcode 0xee does not exist"),
        (lambda code, pool: code.__setitem__((0, 0), BY_MNEMONIC["end"].opcode), "an end without a loop"),
        (lambda code, pool: code.__setitem__(code[:, 0] == 2, code[0]), "a loop without an end"),
        (lambda code, pool: pool.__setitem__(0, len(pool) + 5), r"word \d+ is outside \[1, \d+\)"),
        (lambda code, pool: pool.__setitem__(0, -1), r"word -1 is outside \[1, \d+\)"),
        (lambda code, pool: pool.__setitem__(slice(1, None), 2**60), "is outside"),
    ],
)
def test_damaged_words_are_an_error_without_a_traceback(edit, got: str) -> None:
    with pytest.raises(ArtifactError, match=got) as caught:
        decode(_damaged(edit))
    assert str(caught.value).startswith("code: the instruction words are malformed\n  got: ")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damaged_pool_decodes_or_raises(data: st.DataObject) -> None:
    encoded = encode(gemm_program(), [BIAS_RELU])
    at = data.draw(st.integers(0, len(encoded.descriptors) - 1))
    encoded.descriptors[at] = data.draw(st.integers(-5, len(encoded.descriptors) + 5) | _INT)
    with suppress(ArtifactError):
        decode(encoded)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damaged_word_decodes_or_raises(data: st.DataObject) -> None:
    encoded = encode(gemm_program(), [BIAS_RELU])
    at = data.draw(st.integers(0, encoded.code.size - 1))
    encoded.code.reshape(-1)[at] = data.draw(st.integers(0, 255))
    with suppress(ArtifactError):
        decode(encoded)


# Assembly text.


def test_assembly_gives_back_the_program() -> None:
    program = gemm_program()
    text = disassemble(program, [BIAS_RELU])
    assert "load.gather %r <- %t[0, $1] {gather = (0, %ids, 0)}" in text
    assert assemble(text) == (program, (BIAS_RELU,))
    assert assemble("// a comment\n\n" + text) == (program, (BIAS_RELU,))


def test_errors_name_the_line_of_the_whole_text() -> None:
    lines = disassemble(gemm_program(), [BIAS_RELU]).split("\n")
    number = next(i for i, line in enumerate(lines) if "vec %o" in line)
    lines[number] = lines[number].replace("vec", "vex")
    with pytest.raises(TextError, match=f"^a.s:{number + 1}:13: unexpected text"):
        assemble("\n".join(lines), "a.s")


def test_assembly_holds_exactly_one_program() -> None:
    text = disassemble(gemm_program(), [])
    with pytest.raises(TextError) as caught:
        assemble(text + text, "a.s")
    assert str(caught.value) == "a.s: assembly holds exactly one program\n  got: 2"
    with pytest.raises(TextError, match=r"a\.s: assembly holds exactly one program\n  got: 0"):
        assemble(disassemble(gemm_program(), [BIAS_RELU]).partition("program")[0], "a.s")
    with pytest.raises(TextError, match=r"a\.s: the text has no program"):
        assemble("", "a.s")


def test_descriptors_of_two_types_with_the_same_words_are_told_apart() -> None:
    """A list of the number 3, and a list of one list that happens to lie at offset 3."""
    writer = PoolWriter()
    writer.put((3,), tuple[int, ...])
    at = writer.put(((),), tuple[tuple[int, ...], ...])
    assert PoolReader(writer.words, writer.symbols).get(at, tuple[tuple[int, ...], ...]) == ((),)
