"""What a run that repeats without pause finds in a cached l2.

Measurements of products repeat them on the same left operand, with weights that change from run to run or are larger
than l2, as layers of a network do: the layer before has just written the left operand.

Invariant: only where operands come from changes, not what is computed; a program without a cached l2 is left as it is.
"""

from __future__ import annotations

from dataclasses import replace

from ppuc.compiler.program.compiled import CompiledProgram
from ppuc.ir.types import Space

LEFT = "x"
"""The left operand of a product, in the models of `operators`."""


def repeated(program: CompiledProgram) -> CompiledProgram:
    """The program of a product with its left operand in l2, if l2 is a cache that holds all operands and results of a
    run: least recently used data leave first, so otherwise nothing stays until it is needed again."""
    target, one = program.target, program.artifact.program
    moved = sum(tensor.bytes for tensor in one.tensors if tensor.role in ("input", "output"))
    if target.l2.managed != "cache" or moved > target.l2.bytes:
        return program
    tensors = tuple(
        replace(tensor, space=Space.L2, address=0) if tensor.role == "input" and tensor.source == LEFT else tensor
        for tensor in one.tensors
    )
    return replace(program, artifact=replace(program.artifact, program=replace(one, tensors=tensors)))


__all__ = ["repeated"]
