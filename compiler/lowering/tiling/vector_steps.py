"""Fuses steps of a vector program that a lane computes in one operation.

Invariant: fused steps compute bit-identical results: a `mac` rounds its product, and a `clip` between ordered bounds
does not depend on which bound is applied first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ppuc.ir.vector import Step


def combined(steps: Sequence[Step], results: Iterable[str]) -> tuple[Step, ...]:
    """`steps` with products that only feed an addition as `mac`, and lower and upper bounds as `clip`."""
    read = Counter(name for step in steps for name in step.args)
    read.update(results)
    made: dict[str, Step] = {}
    for step in steps:
        made[step.result] = step
        for other, first in _pairs(step):
            before = made.get(first)
            if before is None or read[first] > 1:
                continue
            if step.op == "add" and before.op == "mul":
                made[step.result] = replace(step, op="mac", args=(*before.args, other))
                del made[first]
                break
            if _clips(made, before, step, other, first):
                break
    return tuple(made.values())


def _pairs(step: Step) -> list[tuple[str, str]]:
    """(argument, other argument) of a binary step, in both orders."""
    if len(step.args) != 2 or step.args[0] == step.args[1]:
        return []
    x, y = step.args
    return [(y, x), (x, y)]


def _clips(made: dict[str, Step], before: Step, step: Step, bound: str, first: str) -> bool:
    """Fuse two steps that bound a value by immediates from either side into one `clip`; returns whether that was
    possible."""
    outer = made.get(bound)
    if outer is None or outer.op != "const" or step.op not in ("min", "max"):
        return False
    if before.op == "relu" and step.op == "min" and outer.number >= 0:
        made[first] = replace(outer, result=first, number=0.0)
        made[step.result] = replace(step, op="clip", args=(before.args[0], first, bound))
        return True
    if {before.op, step.op} != {"min", "max"}:
        return False
    for inner, x in _pairs(before):
        known = made.get(inner)
        if known is None or known.op != "const":
            continue
        low, high = (inner, bound) if before.op == "max" else (bound, inner)
        if made[low].number <= made[high].number:
            del made[first]
            made[step.result] = replace(step, op="clip", args=(x, low, high))
            return True
    return False
