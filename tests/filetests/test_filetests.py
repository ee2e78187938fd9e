"""The runner of `.ppir` cases: what it lets pass, what it reports, and that there is a case for everything."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ppuc.compiler.passes.normalise.fold import Fold
from ppuc.compiler.pipeline.default import PIPELINE
from ppuc.ir.module import Module
from ppuc.targets.description import Target
from tests.filetests.case import Case, CaseError, read_cases
from tests.filetests.run_case import run_case
from tools.generate_docs import invariants

HERE = Path(__file__).parent
READ_AS_ERRORS = {"G2", "G3", "G4", "G5", "G6", "V1"}
"""Rules that no text can break: the parser reports what does."""

NEGATED = """\
// RUN: fold
// A title.
graph @test(%x: f32[2]) -> (%y: f32[2]) {
  %a: f32[2] = neg(%x)
  %b: f32[2] = neg(%x)
  %y: f32[2] = mul(%a, %b)
}
"""

File = Callable[[str], list[Case]]


@pytest.fixture
def cases(tmp_path: Path) -> File:
    """Reads the cases of a text as those of a file."""

    def read(text: str) -> list[Case]:
        path = tmp_path / "test.ppir"
        path.write_text(text, encoding="utf-8")
        return read_cases(path)

    return read


@pytest.mark.parametrize(
    "expectation",
    [
        "// CHECK: neg(%x)\n// CHECK-NEXT: mul(%a, %a)\n// CHECK-NOT: neg",
        "// CHECK-NOT: mul\n// CHECK: %a: f32[2] = neg\n// CHECK: mul({{%a, %[ab]}})",
        "// run: (f32[2] {3, -1}) == (f32[2] {9, 1})",
        "// OUTPUT graph\n"
        "graph @test(%x: f32[2]) -> (%y: f32[2]) {\n  %a: f32[2] = neg(%x)\n  %y: f32[2] = mul(%a, %a)\n}",
    ],
)
def test_what_is_expected_passes(cases: File, expectation: str) -> None:
    (case,) = cases(NEGATED + expectation)
    assert case.title == "A title"
    run_case(case)


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ("// CHECK: mul\n// CHECK: neg", "test.ppir:9: not found in what follows: neg"),
        ("// CHECK: graph\n// CHECK-NEXT: mul", "test.ppir:9: not found in the line after 'graph"),
        ("// CHECK: graph\n// CHECK-NOT: neg\n// CHECK: mul", "test.ppir:9: found, and should not be: neg"),
        ("// CHECK: mul\n// CHECK-NOT: }", "test.ppir:9: found, and should not be: }"),
        ("// UNCHANGED", "test.ppir:1: expected that the last pass changes nothing"),
        ("// OUTPUT\ngraph", "test.ppir:1: expected another output\n--- expected\n+++ now\n"),
        ("// error: G8", "test.ppir:8: expected here, and not found: G8"),
        ("// run: (f32[2] {3, -1}) == (f32[2] {9, 2})", "test.ppir:8: %y before the passes is wrong"),
        ("// run: (f32[2] {3, -1}, f32[] {0}) == (f32[2] {9, 1})", "test.ppir:8: the graph has 1 inputs and 1 outputs"),
        ("// run: 3 == 9", "test.ppir:8: expected `// run: (constants) == (constants)`"),
        ("// run: (3) == (9)", "test.ppir:8: expected constants like f32[2] {1, 2}"),
    ],
)
def test_anything_else_is_reported(cases: File, expectation: str, message: str) -> None:
    (case,) = cases(NEGATED + expectation)
    with pytest.raises(CaseError, match=re.escape(message)):
        run_case(case)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NEGATED, "test.ppir:1: the case expects nothing"),
        (NEGATED + "// CHEKC: neg", "test.ppir:8: there is no directive 'CHEKC'"),
        (
            NEGATED + "// OUTPUT kernels",
            "OUTPUT names parts of graph, kernel, vector, placement, program; got 'kernels'",
        ),
        (NEGATED.replace("// RUN: fold\n", "") + "// CHECK: neg", "the first case of a file needs a line `// RUN:"),
        (NEGATED.replace("RUN: fold", "RUN: precision=bf16") + "// CHECK: neg", "test.ppir:1: RUN names no pass"),
    ],
)
def test_what_is_no_case_is_refused(cases: File, text: str, message: str) -> None:
    with pytest.raises(CaseError, match=re.escape(message)):
        cases(text)


WRONG = """\
// RUN: verify
graph @test(%x: f32[2]) -> (%b: f32[2]) {
  %a: f32[3] = neg(%x)FIRST
  %b: f32[2] = exp(%x)SECOND
}
"""


def test_errors_are_expected_at_their_lines(cases: File) -> None:
    def run(here: str = "", there: str = "") -> None:
        (case,) = cases(WRONG.replace("FIRST", here).replace("SECOND", there) + "// UNCHANGED")
        run_case(case)

    place = re.escape("test.ppir:")
    run("  // error: G8 @test %a: results have types (f32[3]), expected (f32[2])")
    run("\n  // error: G8")
    with pytest.raises(CaseError, match=place + "1: not expected:\nG8 @test %a: results"):
        run()
    with pytest.raises(CaseError, match=place + "4: expected here, and not found: G8"):
        run(there="  // error: G8")
    with pytest.raises(CaseError, match=place + "4: expected here, and not found: G8"):
        run("  // error: G8", "  // error: G8")
    with pytest.raises(CaseError, match=place + "3: expected here, and not found: G9"):
        run("  // error: G9")


def test_values_are_compared_whatever_is_expected(cases: File, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Fold, module: Module, target: Target) -> Module:
        ops = [replace(op, name="abs") if op.name == "neg" else op for op in module.graph.ops]
        return replace(module, graph=module.graph.with_ops(ops))

    monkeypatch.setattr(Fold, "run", wrong)
    (case,) = cases(NEGATED.replace("mul", "add") + "// CHECK: abs")
    with pytest.raises(CaseError, match="pass fold: changes the value of %"):
        run_case(case)


def test_a_program_is_simulated(cases: File, monkeypatch: pytest.MonkeyPatch) -> None:
    text = NEGATED.replace("fold", "pipeline") + "// OUTPUT program\n"
    (case,) = cases(text)
    with pytest.raises(CaseError, match=r'\+program @test \{target = "ppu-tiny", hash = ""\}'):
        run_case(case)

    def hazardous(*args: object) -> None:
        raise AssertionError("1 hazards")

    monkeypatch.setattr("tests.filetests.run_case.check_program", hazardous)
    with pytest.raises(AssertionError, match="1 hazards"):
        run_case(case)


def test_blessing_writes_the_outputs_that_differ(cases: File) -> None:
    second, third = (NEGATED.replace("A title", title) for title in ("Another", "A third"))
    parts = (f"{NEGATED}// OUTPUT graph\nwas\n", f"{second}// CHECK: mul\n", f"{third}// OUTPUT\n")
    text = "// -----\n".join(parts)
    found = cases(text)
    for case in found:
        run_case(case, bless=True)
    output = "graph @test(%x: f32[2]) -> (%y: f32[2]) {\n  %a: f32[2] = neg(%x)\n  %y: f32[2] = mul(%a, %a)\n}\n"
    blessed = text.replace("was\n", output) + output
    assert found[0].path.read_text("utf-8") == blessed
    for case in read_cases(found[0].path):
        run_case(case)
        run_case(case, bless=True)
    assert found[0].path.read_text("utf-8") == blessed


def all_cases() -> list[Case]:
    return [case for path in sorted(HERE.rglob("*.ppir")) for case in read_cases(path)]


def test_every_pass_has_a_case_that_ends_with_it() -> None:
    shown = {case.recipe.passes[-1].name for case in all_cases() if case.recipe.passes}
    assert {step.name for step in PIPELINE} <= shown


def test_every_invariant_that_text_can_break_is_shown_broken() -> None:
    documented = {number for _, rules in invariants()[0] for number, _ in rules}
    shown = {error.text.split()[0] for case in all_cases() for error in case.errors}
    assert documented - shown == READ_AS_ERRORS | {"P10"}  # P10: the K rules


def test_every_case_has_a_title_of_its_own_and_is_short() -> None:
    for path in sorted(HERE.rglob("*.ppir")):
        titles = [case.title for case in read_cases(path)]
        assert all(titles), path
        assert len(set(titles)) == len(titles), path
    longest = max(all_cases(), key=lambda case: case.text.count("\n"))
    assert longest.text.count("\n") < 40, longest.title
