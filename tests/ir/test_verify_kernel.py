"""Invariants of kernels and vector programs, each violated once and reported under its number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppuc.ir.affine import affine, axis, var
from ppuc.ir.kernel import Buffer, Gather, Kernel, Load, Loop, Mma, Param, Stmt, Store, TileRef, Vec, View
from ppuc.ir.text import parse_kernel
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import Step, VectorProgram
from ppuc.ir.verify import VerificationError, verify_kernel, verify_vector
from tests.ir.rules import VECTORS, rules
from tests.support.text_samples import KERNEL


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("K1", "grid = (cm = 2)", "grid = (cm = 2, cm = 1)"),
        ("K1", "grid = (cm = 2)", "grid = (cm = 2, cn = 0)"),
        ("K1", "grid = (cm = 2)", "grid = (cm = 2), first = -1"),
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
        ("K5", Mma("c", TileRef("at"), TileRef("bt"), ("k",), continues=True)),
        ("K5", Mma("c", TileRef("at"), TileRef("bt"), (), continues=True)),
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
