"""Runs programs with host steps: the simulator runs the PPU segments; the worker and programs compiled at run time run
the steps between them.

Invariant: a tensor passed from the host to the PPU has exactly the compiled type, or the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from ppuc.compiler.alias import grown
from ppuc.compiler.frontend.offload.deferred import machine_type
from ppuc.compiler.frontend.offload.hosting import PREFIX
from ppuc.compiler.host.client import HostError, HostWorker, worker
from ppuc.compiler.host.deferred import Compile, DeferredRun, DeferredSteps
from ppuc.compiler.host.merge import merged_profile
from ppuc.compiler.host.plan import DeferredStep, HostStep, Plan, PpuStep
from ppuc.compiler.host.transfer import Crossing, crossings, decisions
from ppuc.compiler.options import CompileOptions
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.ir.types import DType, TensorType, parse_type
from ppuc.ir.vector import VectorProgram
from ppuc.targets.artifact import Artifact
from ppuc.targets.schema import Target
from ppuc.targets.simulator.memory import ChipMemory
from ppuc.targets.simulator.result import Profile
from ppuc.targets.simulator.run import Progress, RawResult, simulate


@dataclass(frozen=True, slots=True)
class HostedRun:
    """`outputs` by ONNX name: arrays, or other values of the host. `host_seconds` is the measured wall time of each
    host step, by its number in the plan; `deferred` the runs of deferred steps; `moves` the transfers over the link."""

    outputs: Mapping[str, Any]
    raw: RawResult
    host_seconds: Mapping[int, float]
    deferred: tuple[DeferredRun, ...] = ()
    moves: tuple[Crossing, ...] = ()


class Execution:
    """One run of `plan` on inputs by ONNX name."""

    def __init__(
        self, artifact: Artifact, plan: Plan, options: CompileOptions, compile: Compile, inputs: Mapping[str, Any]
    ) -> None:
        self.artifact, self.plan, self.worker = artifact, plan, worker(options.host.ops)
        self.deferred = DeferredSteps(artifact, options, self.worker, compile)
        self.types = {name: parse_type(text) for name, text in plan.types}
        self.held: dict[str, Any] = {value: inputs[name] for name, value in plan.inputs}
        self.seconds: dict[int, float] = {}
        self._next = 0
        self._last: PpuStep | None = None

    def before(self, segment: int, chip: ChipMemory) -> None:
        """Run the steps before a segment and write its inputs."""
        self._fetch(chip)
        self._between()
        step = self.plan.steps[self._next]
        assert isinstance(step, PpuStep)
        assert step.segment == segment
        buffers = {tensor: self.types[name].dims for name, tensor in step.outputs}
        for name, tensor in step.inputs:
            array = np.ascontiguousarray(self.held[name])
            chip.write(tensor, grown(array, buffers.get(tensor, array.shape)))
        self._last, self._next = step, self._next + 1

    def finish(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The model's outputs, given those of the last segment by tensor name."""
        if self._last is not None:
            self.held |= {n: outputs[t].reshape(self.types[n].dims) for n, t in self._last.outputs}
        self._between()
        return {name: self.held[value] for name, value in self.plan.outputs}

    def _fetch(self, chip: ChipMemory) -> None:
        for name, tensor in self._last.outputs if self._last is not None else ():
            self.held[name] = chip.values_of(tensor).reshape(self.types[name].dims)

    def _between(self) -> None:
        while self._next < len(self.plan.steps):
            step = self.plan.steps[self._next]
            if isinstance(step, PpuStep):
                return
            started = perf_counter()
            if isinstance(step, DeferredStep):
                self.held |= checked(
                    self.deferred.run(self._next, step, self.held), self.types, _where(step, self.artifact)
                )
            else:
                self.held |= host_step(step, self.artifact, self.worker, self.held, self.types)
                self.seconds[self._next] = perf_counter() - started
            self._next += 1

    def moves(self) -> tuple[Crossing, ...]:
        """Transfers over the link, given where each step ran."""
        sizes = {name: int(value.nbytes) for name, value in self.held.items() if machine_type(value) is not None}
        runs = self.deferred.runs.values()
        steps = {n for n, s in enumerate(self.plan.steps) if isinstance(s, DeferredStep)}
        asked, made = self.deferred.asked, self.deferred.trips
        on_ppu = {r.step for r in runs if r.program is not None}
        return (*crossings(self.plan, sizes, steps - on_ppu), *decisions(asked, made))


def host_step(
    step: HostStep, artifact: Artifact, worker: HostWorker, held: Mapping[str, Any], types: Mapping[str, TensorType]
) -> dict[str, Any]:
    """The results of a host step, by names of the plan. Raises HostError."""
    where = _where(step, artifact)
    feeds = {PREFIX + name: held[name] for name in step.inputs}
    values = worker.run(artifact.host[step.model], feeds, where)
    return checked(dict(zip(step.outputs, values, strict=True)), types, where)


def _where(step: HostStep | DeferredStep, artifact: Artifact) -> str:
    return f"{artifact.program.name}: nodes {', '.join(n.node for n in step.nodes[:4])}"


def checked(given: dict[str, Any], types: Mapping[str, TensorType], where: str) -> dict[str, Any]:
    """`given`, if its tensors have the compiled types. Raises HostError otherwise."""
    for name, value in given.items():
        if name in types and _type(value) != types[name]:
            what = "the host returned a type that differs from the model's"
            raise HostError.of(where, what, got=_type(value), expected=types[name])
    return given


def _type(value: Any) -> TensorType | str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    try:
        return TensorType(DType.of(value.dtype), value.shape)
    except KeyError:
        return str(value.dtype)


def run_hosted(
    artifact: Artifact,
    plan: Plan,
    options: CompileOptions,
    constants: Mapping[str, Resource],
    compile: Compile,
    inputs: Mapping[str, Any] | None,
    *,
    trace: bool = False,
    progress: Progress | None = None,
    hazards: bool = True,
) -> HostedRun:
    """Run a program with host steps, compiled with `options`, on inputs by ONNX name, with `compile` for run-time
    compilation; without inputs, simulate timing only. `hazards`: look for accesses that nothing orders."""
    program, target = _exposed(artifact.program, plan), options.target
    vectors: tuple[VectorProgram, ...] = artifact.vectors
    if inputs is None:
        raw = simulate(program, vectors, target, constants, None, trace=trace, progress=progress)
        moves = crossings(plan)
        return HostedRun({}, replace(raw, profile=with_link(raw.profile, moves, target)), {}, moves=moves)
    execution = Execution(artifact, plan, options, compile, inputs)
    how: dict[str, Any] = {"check_hazards": hazards, "trace": trace, "progress": progress}
    raw = simulate(program, vectors, target, constants, {}, before=execution.before, **how)
    outputs = execution.finish(raw.outputs)
    runs, moves = tuple(execution.deferred.runs.values()), execution.moves()
    profile = merged_profile(with_link(raw.profile, moves, target), runs, target)
    return HostedRun(outputs, replace(raw, profile=profile), execution.seconds, runs, moves)


def _exposed(program: Program, plan: Plan) -> Program:
    """The program with the results of its last segment as outputs; others are fetched earlier."""
    last = plan.ppu_steps[-1:]
    return replace(program, outputs=tuple(pair for step in last for pair in step.outputs))


def with_link(profile: Profile, found: Sequence[Crossing], target: Target) -> Profile:
    """The profile with the time and energy of the link to the host."""
    joules = dict(profile.energy_joules)
    joules["host"] = joules.get("host", 0.0) + sum(c.bytes for c in found) * target.energy.link_pj_per_byte * 1e-12
    return replace(profile, host_seconds=sum(c.seconds(target) for c in found), energy_joules=joules)
