"""Every numbered invariant of every level is violated once, and reported under its number."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from text_samples import KERNEL, MODULE, RESOURCES, VECTOR, sample_module

from ppuc.ir import verify
from ppuc.ir.affine import affine, axis, var
from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.kernel import Buffer, Gather, Kernel, Load, Loop, Mma, Param, Stmt, Store, TileRef, Vec, View
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.program import Bump, Copy, Instr, Program, RingUse, Wait
from ppuc.ir.rewrite import Builder
from ppuc.ir.text import parse_kernel, parse_module, parse_vector
from ppuc.ir.types import DType, Space, TensorType
from ppuc.ir.vector import Step, VectorProgram
from ppuc.ir.verify import VerificationError, verify_graph, verify_kernel, verify_module, verify_program, verify_vector

F = TensorType(DType.F32, (2, 3))
X, Y = Value("x", F), Value("y", F)
NONE = Attrs()


def rules(error: VerificationError) -> set[str]:
    return {finding.rule for finding in error.findings}


def test_the_sample_verifies() -> None:
    verify_module(sample_module())


# ------------------------------------------------------------------------------------------------------------- module


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("M1", 'input "X:0" = %x\n', 'input "X:0" = %y\n'),
        ("M1", '  input "X:0" = %x\n', ""),
        ("M1", 'output "Y:0" = %y\n  pipeline', 'output "Y:0" = %x\n  pipeline'),
        ("M2", VECTOR, VECTOR + VECTOR),
        ("M3", 'kernel = "gemm_0"', 'kernel = "gemm_1"'),
        ("M4", '"x" @l2 at 0 bytes 8960', '"x" @l2 at 0 bytes 1\n  "x" @l2 at 4 bytes 1'),
        ("M4", '"x" @l2 at 0 bytes 8960', '"x" @l2 at -1 bytes 1'),
        ("M5", 'program @mlp {target = "ppu-tiny"', 'program @mlp {target = "other"'),
    ],
)
def test_module_rules(rule: str, old: str, new: str) -> None:
    assert MODULE.count(old) == 1
    with pytest.raises(VerificationError) as caught:
        verify_module(parse_module(MODULE.replace(old, new), RESOURCES))
    assert rules(caught.value) == {rule}


# -------------------------------------------------------------------------------------------------------------- graph

BODY = Graph("b", (X,), (Y,), (Op("exp", NONE, (X,), (Y,)),))


@pytest.mark.parametrize(
    ("rule", "op"),
    [
        ("G1", Op("exp", NONE, (X,), (Value("a b", F),))),
        ("G1", Op("group", GroupAttrs(), (), (Value("v", TensorType(DType.F32, (-1,))),), body=Graph("b", (), (), ()))),
        ("G2", Op("exp", NONE, (X,), (X,))),
        ("G3", Op("exp", NONE, (Y,), (Value("v", F),))),
        ("G4", Op("exp", NONE, (Value("x", F, Space.L2),), (Value("v", F),))),
        ("G5", Op("exq", NONE, (X,), (Value("v", F),))),
        ("G6", Op("exp", TransposeAttrs((0, 1)), (X,), (Value("v", F),))),
        ("G6", Op("transpose", TransposeAttrs([0, 1]), (X,), (Value("v", F),))),  # type: ignore[arg-type]
        ("G6", Op("transpose", TransposeAttrs((0, True)), (X,), (Value("v", F),))),
        ("G7", Op("add", NONE, (X,), (Value("v", F),))),
        ("G8", Op("transpose", TransposeAttrs((1, 0)), (X,), (Value("v", F),))),
        ("G9", Op("group", GroupAttrs(), (X,), (Value("v", F),))),
        ("G9", Op("exp", NONE, (X,), (Value("v", F),), body=BODY)),
        ("G9", Op("group", GroupAttrs(), (X, X), (Value("v", F),), body=BODY)),
        ("G9", Op("group", GroupAttrs(), (X,), (Value("v", F.with_dtype(DType.I32)),), body=BODY)),
    ],
)
def test_graph_rules(rule: str, op: Op) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_graph(Graph("g", (X,), (X,), (op,)))
    assert rule in rules(caught.value)
    assert rules(caught.value) <= {rule, "G9"}


@pytest.mark.parametrize(
    ("rule", "result"),
    [("G3", Value("v", F)), ("G4", Value("x", F, Space.L2)), ("G4", Value("x", F.with_dtype(DType.F16)))],
)
def test_graph_results(rule: str, result: Value) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_graph(Graph("g", (X,), (result,), ()))
    assert rules(caught.value) == {rule}


def test_a_body_is_a_scope_of_its_own() -> None:
    inner = Graph("b", (), (Y,), (Op("exp", NONE, (X,), (Y,)),))
    with pytest.raises(VerificationError, match=r"G3 @g @b %y: operand 0 \(%x\) is not defined before this op"):
        verify_graph(Graph("g", (X,), (X,), (Op("group", GroupAttrs(), (), (Value("v", F),), body=inner),)))


def test_all_findings_are_listed() -> None:
    bad = TensorType(DType.F32, (3, 2))
    ops = (
        Op("exp", NONE, (Y,), (Value("a", F),)),
        Op("exp", NONE, (X,), (Value("b", bad),), ("Exp_1",)),
    )
    with pytest.raises(VerificationError) as caught:
        verify_graph(Graph("g", (X,), (), ops))
    assert str(caught.value) == (
        "G3 @g %a: operand 0 (%y) is not defined before this op\n"
        "    %a: f32[2, 3] = exp(%y)\n"
        "G8 @g %b: results have types (f32[3, 2]), expected (f32[2, 3])\n"
        '    %b: f32[3, 2] = exp(%x) loc("Exp_1")'
    )
    assert len(caught.value.findings) == 2


def test_long_lists_are_cut() -> None:
    ops = tuple(Op("exp", NONE, (Y,), (Value(f"v{i}", F),)) for i in range(100))
    with pytest.raises(VerificationError) as caught:
        verify_graph(Graph("g", (), (), ops))
    assert len(caught.value.findings) == 100
    assert str(caught.value).endswith("... and 60 more")


def test_a_graph_of_resnet_size_is_fast() -> None:
    builder = Builder()
    value = builder.const(np.zeros((1, 64), np.float32))
    for _ in range(250):
        value = builder("add", value, builder.scalar(1.0, DType.F32))
    graph = Graph("g", (), (value,), tuple(builder.ops))
    verify_graph(graph)
    start = time.process_time()
    verify_graph(graph)
    assert time.process_time() - start < 0.15


# ------------------------------------------------------------------------------------------------------------- kernel

VECTORS = {"bias_relu": parse_vector(VECTOR)}


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("K1", "grid = (cm = 2)", "grid = (cm = 2, cm = 1)"),
        ("K1", "grid = (cm = 2)", "grid = (cm = 2, cn = 0)"),
        ("K1", "  }\n}\n", "  }\n  for %m in 0..1 step 1 {\n  }\n}\n"),
        ("K2", "%at: f32[32, 16] @l1 ring 2", "%at: f32[32, 16] @l1 ring 0"),
        ("K2", "%w: f32[32, 48] @hbm", "%w: f32[32, 48] @l1"),
        ("K2", "strides [0, 1]", "strides [1]"),
        ("K3", "out %out:", "%out:"),
        ("K4", "load %bias <- %b[0, 0]\n", ""),
        ("K5", "%b[0, 0]", "%b[0, $2]"),
        ("K6", "%b[0, 0]", "%b[$0, $0]"),
        ("K6", "%b[0, 0]", "%b[$1]"),
        ("K7", "%at: f32[32, 16]", "%at: f16[32, 16]"),
        ("K7", "%at: f32[32, 16] @l1", "%at: f32[32, 16] @acc"),
        ("K8", "%at: f32[32, 16]", "%at: f32[32, 8]"),
        ("K8", "%at: f32[32, 16]", "%at: f32[16, 16]"),
        ("K8", "%c: f32[32, 48] @acc", "%c: f32[32, 48] @l1"),
        ("K8", "%c: f32[32, 48]", "%c: i32[32, 48]"),
        ("K8", "valid = (%m < 70, _, _)", "valid = (%m < 70, _)"),
        ("K8", "start = (%k)", "start = (%k), k_axes = 2"),
        ("K8", "<- %at, %bt", "<- %at as [4, 4], %bt"),
        ("K9", "@bias_relu", "@other"),
        ("K9", "(%c, %bias)", "(%c)"),
        ("K9", "%bias: f32[1, 48]", "%bias: f16[1, 48]"),
        ("K9", "valid = (%m < 70, _)}", "valid = (%m < 70)}"),
        ("K10", "over cm", "over cn"),
        ("K10", "step 16 {", "step 16 over cm {"),
        ("K11", "%w[%k, 0]", "%w[0, $1] {gather = (0, %bias, 0)}"),
        ("K12", "over cm ", ""),
        ("K12", "%out[%m, 0]", "%out[0, 0]"),
        ("K12", "in 0..70 step 32 over", "in 0..70 step 16 over"),
    ],
)
def test_kernel_rules(rule: str, old: str, new: str) -> None:
    assert KERNEL.count(old) == 1, old
    with pytest.raises(VerificationError) as caught:
        verify_kernel(parse_kernel(KERNEL.replace(old, new)), VECTORS)
    assert rule in rules(caught.value)
    assert len(rules(caught.value)) <= 2, str(caught.value)


def test_a_descriptor_has_room_for_eight_dimensions() -> None:
    """And a statement stands inside 32 loops at most."""

    def kernel(rank: int, loops: int) -> Kernel:
        index = (*(var(f"l{i}") for i in range(loops)), *(affine() for _ in range(rank)))[:rank]
        view = View.contiguous((2,) * rank)
        params = (Param("x", "x", DType.F32, view, Space.L2), Param("y", "y", DType.F32, view, Space.L2, True))
        body: tuple[Stmt, ...] = (Load("t", "x", index), Store("y", "t", index))
        for i in reversed(range(loops)):
            body = (Loop(f"l{i}", 2, 1, body),)
        return Kernel("k", (), params, (Buffer("t", DType.F32, (1,), Space.L1),), body)

    verify_kernel(kernel(8, 32))
    for broken, rule in ((kernel(9, 32), "K2"), (kernel(8, 33), "K10")):
        with pytest.raises(VerificationError) as caught:
            verify_kernel(broken)
        assert rules(caught.value) == {rule}


def _gather_kernel(gather: Gather, ids: str = "i32[4]", index: str = "[0, $1]") -> Kernel:
    opts = f"{{gather = ({gather.dim}, %{gather.buffer}, {gather.axis})}}"
    return parse_kernel(
        f"""kernel @g {{grid = (c = 1)}}(%x: f32[9, 8] @l2, %i: {ids.split("[")[0]}[4] @l2, out %y: f32[4, 8] @l2) {{
          %ids: {ids} @l1 ring 1
          %r: f32[4, 8] @l1 ring 1
          load %ids <- %i[{"0" if ids.count(",") == 0 else "$0"}]
          load %r <- %x{index} {opts}
          store %y[0, 0] <- %r
        }}"""
    )


def test_index_lists() -> None:
    verify_kernel(_gather_kernel(Gather(0, "ids", 0)))
    broken = (
        _gather_kernel(Gather(2, "ids", 0)),
        _gather_kernel(Gather(0, "ids", 1)),
        _gather_kernel(Gather(0, "ids", 0), "f32[4]"),
        _gather_kernel(Gather(0, "ids", 0), "i32[5]"),
        _gather_kernel(Gather(0, "ids", 0), index="[$0, $1]"),
    )
    for kernel in broken:
        with pytest.raises(VerificationError) as caught:
            verify_kernel(kernel)
        assert rules(caught.value) == {"K11"}


def _with_body(*stmts: Stmt) -> Kernel:
    """The sample kernel's declarations with another body."""
    return replace(parse_kernel(KERNEL), body=stmts)


@pytest.mark.parametrize(
    ("rule", "stmt"),
    [
        ("K3", Load("at", "nothing", (axis(0), axis(1)))),
        ("K3", Load("nothing", "x", (axis(0), axis(1)))),
        ("K3", Store("nothing", "at", (axis(0), axis(1)))),
        ("K5", Load("at", "x", (var("z") + axis(0), axis(1)))),
        ("K5", Mma("c", TileRef("at"), TileRef("bt"), ("z",))),
        ("K5", Vec("bias_relu", ("o",), ("c", "bias"), (), (var("z"),))),
        ("K5", Vec("bias_relu", ("o",), ("c", "bias"), (), (axis(0),))),
        ("K8", Mma("at", TileRef("at"), TileRef("bt"), ())),
        ("K8", Mma("c", TileRef("c"), TileRef("bt"), ())),
        ("K11", Store("out", "o", (axis(0), axis(1)), combine="xor")),
    ],
)
def test_statements_that_text_cannot_hold(rule: str, stmt: Stmt) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_kernel(_with_body(stmt), VECTORS)
    assert rule in rules(caught.value)


def test_tiles_of_six_axes_cannot_be_moved() -> None:
    shape = (1,) * 6
    param = Param("x", "x", DType.F32, View.contiguous(shape), Space.L2)
    text = f"kernel @k {{grid = (c = 1)}}() {{\n  %t: f32{list(shape)} @l1 ring 1\n}}"
    kernel = replace(parse_kernel(text), params=(param,), body=(Load("t", "x", tuple(axis(i) for i in range(6))),))
    with pytest.raises(VerificationError, match="K7 @k %t: the tile has 6 axes, at most 5 can be moved"):
        verify_kernel(kernel)


def test_interleaved_stores_are_disjoint() -> None:
    """Phases of a transposed convolution write every other element."""
    verify_kernel(
        parse_kernel(
            """kernel @k {grid = (c = 2)}(%x: f32[8] @l2, out %y: f32[16] @l2) {
              %t: f32[8] @l1 ring 1
              for %p in 0..2 step 1 over c {
                load %t <- %x[0]
                store %y[%p + $0 * 2] <- %t
              }
            }"""
        )
    )


def test_scalars_and_programs_must_match() -> None:
    vector = replace(VECTORS["bias_relu"], steps=(Step("2", "scalar", ints=(1,)), Step("3", "add", ("0", "1"))))
    with pytest.raises(VerificationError, match="0 scalars, @bias_relu needs 2"):
        verify_kernel(parse_kernel(KERNEL), {"bias_relu": vector})


# ------------------------------------------------------------------------------------------------------------- vector


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("V1", (Step("0", "exp", ("1",)),)),
        ("V1", (Step("a-b", "exp", ("1",)),)),
        ("V2", (Step("2", "exp", ("3",)), Step("3", "exp", ("0",)))),
        ("V3", (Step("2", "exq", ("0",)),)),
        ("V3", (Step("2", "matmul", ("0", "1")),)),
        ("V3", (Step("2", "add", ("0",)),)),
        ("V3", (Step("2", "const", ("0",), dtype=DType.F32),)),
        ("V4", (Step("2", "const"),)),
        ("V4", (Step("2", "cast", ("0",)),)),
        ("V4", (Step("2", "scalar"),)),
        ("V4", (Step("2", "iota", ("0",), (1,)),)),
        ("V4", (Step("2", "window", ("0",), (2, 0, 0, 1, 1, 3)),)),
        ("V4", (Step("2", "transpose", ("0",), (0, 2)),)),
        ("V4", (Step("2", "reduce_sum", ("0",)),)),
        ("V4", (Step("2", "argmax", ("0",), (0, 1)),)),
        ("V4", (Step("2", "cumsum", ("0",), (0,)),)),
        ("V4", (Step("2", "reshape", ("0",), (-1,)),)),
        ("V4", (Step("2", "exp", ("0",), (1,)),)),
    ],
)
def test_vector_rules(rule: str, steps: tuple[Step, ...]) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_vector(VectorProgram("v", VECTORS["bias_relu"].params, (("0", DType.F32),), steps))
    assert rules(caught.value) == {rule}


def test_vector_results() -> None:
    for results in ((), (("9", DType.F32),)):
        with pytest.raises(VerificationError, match="V2"):
            verify_vector(VectorProgram("v", VECTORS["bias_relu"].params, results, ()))


# ------------------------------------------------------------------------------------------------------------ program


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
        ("P8", "first = 3", "first = 2"),
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
    assert str(caught.value) == ("P6 @s0 @gemm_1 ring %at: takes bytes of %gemm_0/bt over without coming after it")


def test_a_push_in_another_loop_than_its_claim() -> None:
    old = "        for %m in 0..70 step 32 over cm {\n          store.box"
    two = "store.box %out[%m, 0] <- %o {wait(%o, 1)}\n        }\n" + old.split("store")[0] + "store.box"
    text = MODULE.replace(old, old.replace("store.box", two)).replace("{wait(%o, 1), pop", "{pop")
    with pytest.raises(VerificationError) as caught:
        verify_module(parse_module(text, RESOURCES))
    assert [f.message for f in caught.value.findings] == ["pop of %o stands in other loops than its wait"]


def test_every_invariant_is_documented_and_tested() -> None:
    """The rule numbers in the module doc are those of this file's tables, P10 standing for the K rules."""
    import re
    from pathlib import Path

    documented = set(re.findall(r"^  ([MGKVP]\d+) ", verify.__doc__ or "", re.M))
    tested = set(re.findall(r'\("([MGKVP]\d+)", ', Path(__file__).read_text("utf-8")))
    assert documented == tested
