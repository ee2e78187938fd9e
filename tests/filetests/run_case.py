"""Runs a case: parse, verify, execute, run the passes, execute again; then compare with what the file expects.

Invariant: whatever a case expects of the text, the values before and after its passes are computed and compared, with
the tolerance of the number formats; a program is simulated, equals its kernels to the bit and has no hazard.
"""

from __future__ import annotations

import re

import numpy as np

from ppuc.compiler.inputs import feeds_of, generate_all, input_specs
from ppuc.compiler.pipeline.execute import run_module
from ppuc.compiler.pipeline.manager import Run
from ppuc.compiler.pipeline.recheck import Recheck
from ppuc.compiler.validation.judge import Judge
from ppuc.ir.errors import PpucError
from ppuc.ir.module import Module
from ppuc.ir.ops.structure import ConstAttrs
from ppuc.ir.text import parse_graph
from ppuc.ir.verify import VerificationError, verify_module
from tests.filetests.case import Case, CaseError, Expected
from tests.filetests.problems import compare_errors, problems_of
from tests.filetests.reading import read_module
from tests.filetests.texts import check_text, compare_output, different, text_of
from tests.support.whole_pipeline import check_program

_CALL = re.compile(r"\((.*)\) == \((.*)\)")


def run_case(case: Case, bless: bool = False) -> None:
    """Do what the case asks for. Raises CaseError when the outcome is not what it expects; with `bless`, an output text
    that differs is written into the file instead."""
    try:
        module = read_module(case)
        verify_module(module)
    except (PpucError, VerificationError) as error:
        compare_errors(case, problems_of(error))
        return
    inputs = generate_all(input_specs(module))
    run = Run(case.recipe.target, case.recipe.passes)
    run.recheck = Recheck(module, inputs, module.option("precision", "model"))
    if module.kernels or module.program is not None:
        run.recheck.check("(none: the input itself)", module, case.recipe.target)
    try:
        done = run.run(module)
    except PpucError as error:
        compare_errors(case, problems_of(error))
        return
    compare_errors(case, [])
    if done.program is not None:
        check_program(done, case.recipe.target, inputs)
    for call in case.calls:
        _check_call(case, call, module, done)
    if case.unchanged and run.records and run.records[-1].changed:
        before = Run(case.recipe.target, run.passes[:-1]).run(module)
        raise different(case, "that the last pass changes nothing", text_of(before), text_of(done))
    if case.checks:
        check_text(case, text_of(done))
    if case.output is not None:
        compare_output(case, text_of(done, case.parts), bless)


def _check_call(case: Case, call: Expected, *modules: Module) -> None:
    """`// run: (arguments) == (results)`: what the graph's results are for these parameters, before and after."""
    found = _CALL.fullmatch(call.text)
    where = f"{case.path}:{call.line}"
    if found is None:
        raise CaseError(f"{where}: expected `// run: (constants) == (constants)`")
    before = modules[0]
    given, wanted = (_constants(side, where) for side in found.groups())
    if (len(given), len(wanted)) != (len(before.inputs), len(before.outputs)):
        raise CaseError(f"{where}: the graph has {len(before.inputs)} inputs and {len(before.outputs)} outputs")
    inputs = {name: array for (name, _), array in zip(before.inputs, given, strict=True)}
    judge = Judge(before.graph, before.option("precision", "model"), feeds_of(before, inputs))
    for module, when in zip(modules, ("before", "after"), strict=True):
        results = run_module(module, case.recipe.target, inputs)
        for (name, value), want in zip(before.outputs, wanted, strict=True):
            result = judge.compare(name, value, results[name], want)
            if not result.ok:
                raise CaseError(
                    f"{where}: %{name} {when} the passes is wrong: {result.reason}\n"
                    f"  got {results[name].tolist()}\n  expected {want.tolist()}"
                )


def _constants(text: str, where: str) -> list[np.ndarray]:
    """Arrays from `f32[2] {1, 2}, i64[] {3}`."""
    items = re.findall(r"[a-z]\w*\[[^]]*\] \{[^}]*\}", text)
    if ", ".join(items) != text:
        raise CaseError(f"{where}: expected constants like f32[2] {{1, 2}}, separated by commas; got '{text}'")
    types = [item.split(" {")[0] for item in items]
    ops = [f"  %c{i}: {types[i]} = const() {{value = {item}}}" for i, item in enumerate(items)]
    graph = parse_graph("\n".join(["graph @run() -> () {", *ops, "}"]), {}, where)
    return [op.attrs.value.array() for op in graph.ops if isinstance(op.attrs, ConstAttrs)]
