"""Invariants of programs, each violated once and reported under its number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.ir.affine import affine, axis
from ppuc.ir.kernel import Store
from ppuc.ir.module import Module
from ppuc.ir.program import Bump, Copy, Instr, Program, RingUse, Wait
from ppuc.ir.text import parse_module
from ppuc.ir.verify import VerificationError, verify_module, verify_program
from tests.ir.rules import VECTORS, rules
from tests.support.text_samples import MODULE, RESOURCES, sample_module


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("P1", "queue store {", "queue load {"),
        ("P2", "queue store {", "queue stage {"),
        ("P3", "claim(%o, 1)", "claim(%o, 2)"),
        ("P3", "by vector to (store)", "by load to (store)"),
        ("P4", "claim(%o, 1), ", ""),
        ("P4", ", push(%o, 1)", ""),
        ("P4", "claim(%o, 1)", "claim(%o, 0)"),
        ("P4", "claim(%o, 1)", "claim(%o, 1), claim(%o, 1)"),
        ("P5", "depth 1 by tensor to (vector)", "depth 1 by tensor to (store)"),
        ("P6", "slot 192", "slot 191"),
        ("P6", "@l1 at 10432", "@l1 at 10400"),
        ("P6", "by vector to (store)", "by vector to ()"),
        ("P6", "by vector to (store)", "by vector to (store) after (%zz)"),
        ("P7", "tensor %x: f32[2240] @l2 at 0", "tensor %x: f32[2240] @l2 at -4"),
        ("P7", 'temp "x"', 'tmp "x"'),
        ("P7", "tensor %y: f32[3360]", "tensor %y: f32[3359]"),
        ("P7", "tensor %b: f32[48] @hbm", "tensor %b: f32[48] @l2"),
        ("P8", "expect = [1, 1, 1]", "expect = [1, 1]"),
        ("P8", "first = 3", "first = -1"),
        ("P8", "expect = [2]", "expect = [4294967296]"),
        ("P12", "first = 3", "first = 2"),
        ("P8", "expect = [2]", "expect = [-2]"),
        ("P8", "block = 1024", "block = 0"),
        ("P9", "bump(%y.d all)", "bump(%y.d touched)"),
        ("P10", "load.box %bt <- %w[%k, 0]", "load.box %bt <- %w[$0, $0]"),
        ("P11", "[0..2240]", "[0..2241]"),
        ("P11", "queue 0", "queue -1"),
        ("P11", "tensor %x.h: f32[2240]", "tensor %x.h: f16[2240]"),
    ],
)
def test_program_rules(rule: str, old: str, new: str) -> None:
    assert MODULE.count(old) == 1, old
    program = parse_module(MODULE.replace(old, new), RESOURCES).program
    assert program is not None
    with pytest.raises(VerificationError) as caught:
        verify_program(program, VECTORS)
    expected = "K6" if rule == "P10" else rule
    assert expected in rules(caught.value)


def _program() -> Program:
    program = sample_module().program
    assert program is not None
    return program


def test_names_that_text_cannot_hold() -> None:
    program = _program()
    segment = program.segments[0]
    kernel = segment.kernels[0]
    nowhere = Copy(0, "nowhere", "x", 0, 1, (Wait("none", True),), (Bump("none", True),))
    store = Store("out", "o", (affine(), axis(1)))
    instr = Instr("store.box", store, (RingUse("peek", "o", 0), RingUse("wait", "none", 0)))
    streams = tuple((q, (instr,) if q.value == "store" else nodes) for q, nodes in kernel.streams)
    lost = replace(kernel, params=(replace(kernel.params[0], tensor="nowhere"), *kernel.params[1:]), streams=streams)
    segment = replace(segment, copies=(nowhere,), kernels=(lost, lost))
    broken = replace(program, inputs=(("X:0", "nowhere"),), segments=(segment, segment))
    with pytest.raises(VerificationError) as caught:
        verify_program(broken, VECTORS)
    text = str(caught.value)
    for line in (
        "P1 input 'X:0': there is no tensor %nowhere",
        "P1 segment @s0: the name is defined twice",
        "P1 @s0 kernel @gemm_0: the name is defined twice",
        "P3 @s0 @gemm_0 store.box: peek of %o: no such operation or no such ring",
        "P3 @s0 @gemm_0 store.box: wait of %none: no such operation or no such ring",
        "P7 @s0 @gemm_0 %x: there is no tensor %nowhere",
        "P9 @s0 copy to %nowhere: there is no counter %none",
        "P11 @s0 copy to %nowhere: there is no tensor %nowhere",
    ):
        assert line in text, line


def _two_kernels(after: tuple[str, ...], base: int) -> Module:
    """The sample with a second kernel whose first ring starts at `base`."""
    module = sample_module()
    program = _program()
    segment = program.segments[0]
    first = segment.kernels[0]
    moved = tuple(
        replace(r, base=base if r.name == "at" else r.base + (1 << 20), after=after if r.name == "at" else ())
        for r in first.rings
    )
    second = replace(first, name="gemm_1", rings=moved)
    return replace(module, program=replace(program, segments=(replace(segment, kernels=(first, second)),)))


def test_rings_take_bytes_over_in_order() -> None:
    verify_module(_two_kernels((), 1 << 19))
    verify_module(_two_kernels(("gemm_0/at", "gemm_0/bt"), 2048))
    with pytest.raises(VerificationError) as caught:
        verify_module(_two_kernels(("gemm_0/at",), 2048))
    assert str(caught.value) == ("P6 @s0 @gemm_1 ring %at: reuses bytes of %gemm_0/bt without coming after it")


def test_a_push_in_another_loop_than_its_claim() -> None:
    old = "        for %m in 0..70 step 32 over cm {\n          store.box"
    two = "store.box %out[%m, 0] <- %o {wait(%o, 1)}\n        }\n" + old.split("store")[0] + "store.box"
    text = MODULE.replace(old, old.replace("store.box", two)).replace("{wait(%o, 1), pop", "{pop")
    with pytest.raises(VerificationError) as caught:
        verify_module(parse_module(text, RESOURCES))
    assert [f.message for f in caught.value.findings] == ["pop of %o is in other loops than its wait"]
