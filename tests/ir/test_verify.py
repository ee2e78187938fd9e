"""Every numbered invariant of every level is violated once, and reported under its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ppuc.ir.graph import Attrs, Graph, Op, Value
from ppuc.ir.ops.structure import GroupAttrs
from ppuc.ir.ops.view import TransposeAttrs
from ppuc.ir.rewrite import Builder
from ppuc.ir.text import parse_module
from ppuc.ir.types import DType, Space, TensorType
from ppuc.ir.verify import Checked, VerificationError, verify_graph, verify_module
from tests.ir.rules import rules
from tests.support.effort import assert_linear, calls_of
from tests.support.text_samples import MODULE, RESOURCES, VECTOR, sample_module
from tools.generate_docs import invariants

F = TensorType(DType.F32, (2, 3))
X, Y = Value("x", F), Value("y", F)
NONE = Attrs()


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
        ("M4", '"x" @l2 at 0 bytes 8960', '"z" @l2 at 0 bytes 8960'),
        ("M4", '"gemm_0/at" @l1', '"gemm_0/c" @l1'),
        ("M5", 'program @mlp {target = "ppu-tiny"', 'program @mlp {target = "other"'),
        ("M5", 'input "X:0" = %x.h', 'input "X:1" = %x.h'),
        ("M5", '  input "X:0" = %x.h\n', ""),
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


def test_verifying_is_linear() -> None:
    def verifying(ops: int) -> Callable[[], None]:
        builder = Builder()
        value = builder.const(np.zeros((1, 64), np.float32))
        for _ in range(ops):
            value = builder("add", value, builder.scalar(1.0, DType.F32))
        return partial(verify_graph, Graph("g", (), (value,), tuple(builder.ops)))

    assert_linear(verifying, 250)


def test_what_a_pass_leaves_as_it_is_is_checked_once() -> None:
    module, checked = sample_module(), Checked()
    first = calls_of(lambda: verify_module(module, checked))
    again = calls_of(lambda: verify_module(module, checked))
    assert calls_of(lambda: verify_module(module)) > 0.9 * first > 1.3 * again


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("G8", "%t: f32[70, 48] = mul", "%t: f32[70, 47] = mul"),
        ("K5", "load %bias <- %b[0, 0]", "load %bias <- %b[0, $2]"),
    ],
)
def test_what_a_pass_changes_is_checked_again(rule: str, old: str, new: str) -> None:
    checked = Checked()
    verify_module(sample_module(), checked)
    assert old in MODULE
    with pytest.raises(VerificationError) as caught:
        verify_module(parse_module(MODULE.replace(old, new), RESOURCES), checked)
    assert rule in rules(caught.value)


def test_kernels_are_checked_again_with_other_vector_programs() -> None:
    module, checked = sample_module(), Checked()
    verify_module(module, checked)
    wrong = replace(module.vectors[0], params=module.vectors[0].params[:1])
    with pytest.raises(VerificationError) as caught:
        verify_module(replace(module, vectors=(wrong, *module.vectors[1:])), checked)
    assert "K9" in rules(caught.value)


def test_every_invariant_is_documented_and_tested() -> None:
    """The rule numbers in the verifiers' docs are those of the tables in this folder, P10 standing for the K rules."""
    import re
    from pathlib import Path

    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_verify*.py"))
    documented = {number for _, rules in invariants()[0] for number, _ in rules}
    tested = set(re.findall(r'\(\s*"([MGKVP]\d+)",\s', text))
    assert documented == tested
