"""Invariants of a module as a whole: references between levels are correct.

M1  inputs name distinct graph parameters, all of them; outputs name graph results.
M2  kernel names and vector program names are distinct.
M3  a group that names a kernel names one of the module's.
M4  a placement has a size and an address of at least 0, no name is placed twice in one memory, and what is placed is
    a value of the graph or, in l1 and acc, a buffer of a kernel.
M5  the program is for the module's target, and has the module's inputs and outputs.
"""

from __future__ import annotations

from collections import Counter

from ppuc.ir.module import Module
from ppuc.ir.program import Program
from ppuc.ir.types import Space
from ppuc.ir.verify.findings import Findings


def check_module(module: Module, findings: Findings) -> None:
    """Check references between the levels of `module`; each level has its own check."""
    params = Counter(value for _, value in module.inputs)
    known = {p.name for p in module.graph.params}
    for name, value in module.inputs:
        if params[value] > 1 or value not in known:
            findings.add("M1", f"input '{name}'", f"%{value} is not a parameter of the graph, or already an input")
    for param in module.graph.params:
        if param.name not in params:
            findings.add("M1", f"{param}", "is a parameter of the graph but not an input")
    results = {r.name for r in module.graph.results}
    for name, value in module.outputs:
        if value not in results:
            findings.add("M1", f"output '{name}'", f"%{value} is not a result of the graph")
    for kind, names in (("kernel", [k.name for k in module.kernels]), ("vector", [v.name for v in module.vectors])):
        for name, count in Counter(names).items():
            if count > 1:
                findings.add("M2", f"{kind} @{name}", "the name is defined twice")
    _check_groups(module, findings)
    _check_placement(module, findings)
    if module.program is not None:
        _check_program_of(module, module.program, findings)


def _check_program_of(module: Module, program: Program, findings: Findings) -> None:
    entity = f"program @{program.name}"
    if (program.target, program.target_hash) != (module.target, module.target_hash):
        findings.add("M5", entity, f"is for target {program.target}, the module for {module.target}")
    if any(finding.rule == "M1" for finding in findings.items):
        return
    for kind in ("inputs", "outputs"):
        has, wanted = ([name for name, _ in getattr(part, kind)] for part in (program, module))
        if has != wanted:
            findings.add(
                "M5", entity, f"has {kind} {', '.join(has) or 'none'}, the module {', '.join(wanted) or 'none'}"
            )


def _check_groups(module: Module, findings: Findings) -> None:
    kernels = {k.name for k in module.kernels}
    for op in module.graph.ops:
        name = getattr(op.attrs, "kernel", "") if op.name == "group" else ""
        if name and name not in kernels:
            findings.add("M3", f"{op.results[0]}", f"there is no kernel @{name}")


def _check_placement(module: Module, findings: Findings) -> None:
    if not module.placement:
        return
    placed: set[tuple[str, str]] = set()
    values = {v.name for v in module.graph.params} | {r.name for op in module.graph.ops for r in op.results}
    buffers = {(b.space, f"{kernel.name}/{b.name}") for kernel in module.kernels for b in kernel.buffers}
    for place in module.placement:
        key = (place.name, place.space.value)
        if key in placed:
            findings.add("M4", f"'{place.name}'", f"is placed twice in {place.space}")
        placed.add(key)
        if place.space in (Space.L1, Space.ACC):
            if (place.space, place.name) not in buffers:
                findings.add("M4", f"'{place.name}'", f"is not a buffer of a kernel in {place.space}")
        elif place.name not in values:
            findings.add("M4", f"'{place.name}'", "is not a value of the graph")
        if place.address < 0 or place.bytes < 0:
            findings.add("M4", f"'{place.name}'", f"{place.bytes} bytes at {place.address} is an invalid placement")
