"""Invariants of vector programs.

V1  names are well-formed and distinct.
V2  a value is defined before it is used; there is a result.
V3  every step is an elementwise op, a reduction or a structural step, with the right number of arguments.
V4  `ints` and `dtype` fit the step's op.
"""

from __future__ import annotations

from ppuc.ir.ops import OPS, Kind
from ppuc.ir.vector import REDUCTIONS, STRUCTURAL, Step, VectorProgram
from ppuc.ir.verify.findings import Findings

_STRUCTURAL_ARGS = {"const": 0, "scalar": 0, "mac": 3, "clip": 3}


def check_vector(vector: VectorProgram, findings: Findings) -> None:
    """Check one vector program."""
    outside, findings.where = findings.where, f"{findings.where}@{vector.name} "
    findings.names("V1", "value", [*(p.name for p in vector.params), *(s.result for s in vector.steps)])
    known = {p.name for p in vector.params}
    for step in vector.steps:
        for name in step.args:
            if name not in known:
                _add(findings, "V2", step, f"argument %{name} is not defined before this step")
        _check_step(step, findings)
        known.add(step.result)
    for name, _ in vector.results:
        if name not in known:
            findings.add("V2", f"%{name}", "is a result of the program but not defined in it")
    if not vector.results:
        findings.add("V2", f"@{vector.name}", "has no results")
    findings.where = outside


def _add(findings: Findings, rule: str, step: Step, message: str) -> None:
    def show() -> str:
        from ppuc.ir.text.print_kernel import print_step

        return print_step(step)

    findings.add(rule, f"%{step.result}", message, show)


def _check_step(step: Step, findings: Findings) -> None:
    # `cast` and `reduce` are op records too, but steps have their own attributes.
    if step.op in STRUCTURAL or step.op in REDUCTIONS:
        count = _STRUCTURAL_ARGS.get(step.op, 1)
    elif step.op in OPS and OPS[step.op].kind is Kind.ELEMENTWISE:
        count = len(OPS[step.op].operands.split(","))
    else:
        _add(findings, "V3", step, f"there is no step '{step.op}'")
        return
    if len(step.args) != count:
        _add(findings, "V3", step, f"has {len(step.args)} arguments, expected {count}")
    if step.op in ("const", "cast", "halves") and step.dtype is None:
        _add(findings, "V4", step, f"a {step.op} needs a dtype")
    if not _ints_fit(step):
        _add(findings, "V4", step, f"ints {list(step.ints)} do not describe a {step.op}")


def _ints_fit(step: Step) -> bool:
    ints = step.ints
    match step.op:
        case "scalar":
            return len(ints) == 1 and ints[0] >= 0
        case "iota":
            return len(ints) == 2 and min(ints) >= 0
        case "cumsum":
            return len(ints) == 3 and ints[0] >= 0
        case "argmax" | "argmin" | "halves":
            return len(ints) == 1 and ints[0] >= 0
        case "window":
            return len(ints) > 0 and len(ints) == 1 + 3 * ints[0]
        case "transpose":
            return sorted(ints) == list(range(len(ints)))
        case "reshape":
            return min(ints, default=0) >= 0
        case "isinf":
            return len(ints) in (0, 2)
        case op if op in REDUCTIONS:
            return len(ints) > 0 and min(ints) >= 0 and len(set(ints)) == len(ints)
    return not ints
