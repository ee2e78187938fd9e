"""Merges the profiles of a program and of programs compiled at run time.

A program that ran `calls` times appears once, with the work and time of all calls. These programs follow the main
program's segments, regardless of the order in which they ran.

Invariant: cycles, bytes, instructions and energy are the sums over everything that ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ppuc.compiler.host.deferred import DeferredRun
from ppuc.compiler.host.rename import renamed_segment
from ppuc.ir.program import Program
from ppuc.targets.schema import Target
from ppuc.targets.simulator.power import steady_power
from ppuc.targets.simulator.result import KernelStats, Profile

_SUMS = ("start", "end", "macs", "ideal_tensor", "shaped_tensor", "ideal_vector")
_MAPS = ("busy", "instructions", "read_bytes", "write_bytes", "engine", "operand_wait", "transfer")


def merged_profile(profile: Profile, runs: Sequence[DeferredRun], target: Target) -> Profile:
    """The profile of the program itself with those of `runs`."""
    for run in runs:
        if run.result is not None:
            profile = _with(profile, run.result.profile, run, target)
    return profile


def merged_program(program: Program, runs: Sequence[DeferredRun]) -> Program:
    """All programs that ran, as one, for reports."""
    tensors, segments = list(program.tensors), list(program.segments)
    for run in runs:
        if run.result is not None:
            rename = partial(str.__add__, f"{run.name}/")
            tensors += [replace(t, name=rename(t.name)) for t in run.result.program.tensors]
            segments += [renamed_segment(s, rename) for s in run.result.program.segments]
    return replace(program, tensors=tuple(tensors), segments=tuple(segments))


def merged_nodes(nodes: Mapping[str, str], runs: Sequence[DeferredRun]) -> dict[str, str]:
    """Kernel -> ONNX node, for all programs that ran."""
    found = dict(nodes)
    for run in runs:
        if run.result is not None:
            found |= {f"{run.name}/{kernel}": node for kernel, node in run.result.nodes.items()}
    return found


def launches(runs: Sequence[DeferredRun]) -> dict[str, int]:
    """Segment -> launch count, for those of `runs`."""
    found: dict[str, int] = {}
    for run in runs:
        if run.result is not None:
            for segment in run.result.program.segments:
                found[f"{run.name}/{segment.name}"] = run.calls * run.result.launches.get(segment.name, 1)
    return found


def _with(profile: Profile, other: Profile, run: DeferredRun, target: Target) -> Profile:
    calls, prefix = run.calls, f"{run.name}/"
    energy = Counter(profile.energy_joules)
    energy.update({part: joules * calls for part, joules in other.energy_joules.items()})
    on_chip = sum(energy.values()) - energy["static"] - energy["host"]
    cycles = profile.cycles + calls * other.cycles
    return replace(
        profile,
        cycles=cycles,
        kernels=(*profile.kernels, *(_kernel(k, prefix, calls, profile.cycles) for k in other.kernels)),
        copies=(*profile.copies, *(
            replace(
                c,
                tensor=prefix + c.tensor,
                bytes=calls * c.bytes,
                start=profile.cycles + calls * c.start,
                end=profile.cycles + calls * c.end,
            )
            for c in other.copies
        )),
        read_bytes=_sum(profile.read_bytes, other.read_bytes, calls),
        write_bytes=_sum(profile.write_bytes, other.write_bytes, calls),
        instructions=profile.instructions + calls * other.instructions,
        launch_cycles=profile.launch_cycles + calls * other.launch_cycles,
        energy_joules=dict(energy),
        hazards=(*profile.hazards, *other.hazards),
        host_seconds=profile.host_seconds + calls * other.host_seconds,
        tensor_read=_prefixed(profile.tensor_read, other.tensor_read, prefix, calls),
        tensor_write=_prefixed(profile.tensor_write, other.tensor_write, prefix, calls),
        power=steady_power(target, on_chip, cycles * target.clk_ns * 1e-9),
    )  # fmt: skip


def _kernel(kernel: KernelStats, prefix: str, calls: int, begin: float) -> KernelStats:
    """The kernel with the work of all calls."""
    sums: dict[str, Any] = {name: calls * getattr(kernel, name) for name in _SUMS}
    sums |= {name: {k: calls * v for k, v in getattr(kernel, name).items()} for name in _MAPS}
    sums |= {"start": begin + sums["start"], "end": begin + sums["end"], "name": prefix + kernel.name}
    stall = {queue: {cause: calls * v for cause, v in causes.items()} for queue, causes in kernel.stall.items()}
    return replace(kernel, stall=stall, **sums)


def _sum(ours: Mapping[Any, int], others: Mapping[Any, int], calls: int) -> dict[Any, int]:
    return {k: ours.get(k, 0) + calls * others.get(k, 0) for k in (*ours, *(k for k in others if k not in ours))}


def _prefixed(ours: Mapping[str, int], others: Mapping[str, int], prefix: str, calls: int) -> dict[str, int]:
    return {**ours, **{prefix + name: calls * moved for name, moved in others.items()}}


__all__ = ["launches", "merged_nodes", "merged_profile", "merged_program"]
