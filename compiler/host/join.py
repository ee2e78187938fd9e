"""Joins programs of one model that run in sequence into one program with a segment for each.

Invariant: every segment keeps its instructions; names of later segments get a prefix, so that tensors, kernels and
vector programs stay distinct; tensors of different segments never share bytes of hbm, except that a later segment reads
a tensor where an earlier one wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ppuc.compiler.host.rename import renamed_segment
from ppuc.ir.errors import CapacityError, Entity, EntityKind
from ppuc.ir.program import MemTensor, Program, Segment
from ppuc.ir.types import Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.artifact import Artifact
from ppuc.targets.schema import Target

ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Joined:
    """`tensors` maps, for each program, its tensor names to names in `artifact`."""

    artifact: Artifact
    tensors: tuple[Mapping[str, str], ...]
    kernels: tuple[Mapping[str, str], ...]


def join(name: str, parts: Sequence[Artifact], target: Target) -> Joined:
    """One artifact with the segments of `parts`; the caller sets inputs, outputs and meta. Raises CapacityError if they
    do not fit device memory together."""
    tensors: list[MemTensor] = []
    segments: list[Segment] = []
    vectors: list[VectorProgram] = []
    constants = {}
    written: dict[str, int] = {}
    reached = 0
    named, kernels = [], []
    for number, part in enumerate(parts):
        prefix = f"s{number}." if number else ""
        own, reached = _placed(part, prefix, written, reached)
        tensors += own
        segments += [renamed_segment(s, partial(str.__add__, prefix)) for s in part.program.segments]
        vectors += [replace(v, name=prefix + v.name) for v in part.vectors]
        constants.update({prefix + n: c for n, c in part.constants.items()})
        named.append({t.name: prefix + t.name for t in part.program.tensors})
        kernels.append({k.name: prefix + k.name for s in part.program.segments for k in s.kernels})
    if reached > target.hbm.bytes:
        raise CapacityError.of(
            name,
            "the segments do not fit the device memory together",
            got=f"{reached} bytes",
            expected=target.hbm.bytes,
            entities=Entity.each(EntityKind.TENSOR, (t.name for t in tensors if t.space is Space.HBM)),
        )
    program = Program(name, target.name, target.hash, tuple(tensors), (), (), tuple(segments))
    return Joined(Artifact(program, tuple(vectors), constants, (), (), {}), tuple(named), tuple(kernels))


def _placed(part: Artifact, prefix: str, written: dict[str, int], reached: int) -> tuple[list[MemTensor], int]:
    """The tensors of a part from byte `reached` of hbm on, and their end. `written` are addresses of outputs."""
    given = {i.tensor: i.name for i in part.inputs}
    taken = {o.tensor: o.name for o in part.outputs}
    placed, end = [], reached
    for tensor in part.program.tensors:
        address = tensor.address
        if tensor.space is Space.HBM:
            address = written.get(given.get(tensor.name, ""), reached + address)
            end = max(end, address + tensor.bytes)
            if tensor.name in taken:
                written[taken[tensor.name]] = address
        placed.append(replace(tensor, name=prefix + tensor.name, address=address))
    return placed, -(-end // ALIGNMENT) * ALIGNMENT


__all__ = ["Joined", "join"]
