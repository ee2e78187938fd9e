"""Run-time compilation: nodes whose sizes are known only at run time, and bodies of loops that the host counts.

A model is compiled once per combination of sizes (and of small values that sizes depend on); programs are cached for
the lifetime of the process. Models that cannot be compiled, and sizes beyond the first MOST_FORMS, run on the host,
with the reason. The caller passes in the compiler (`Compile`): this module decides what to compile, not how.

Invariant: the side that computes a step depends on the model, the sizes and their order, never on timing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ppuc.compiler.frontend.offload.deferred import Body, control_node, machine_type, of_elements, typed
from ppuc.compiler.frontend.offload.hosting import PREFIX
from ppuc.compiler.host.client import HostWorker
from ppuc.compiler.host.control import OnHostError, run_control
from ppuc.compiler.host.plan import DeferredStep, Plan
from ppuc.compiler.inputs import InputSpec
from ppuc.compiler.options import CompileOptions, Quantization
from ppuc.compiler.precisions import PRECISIONS
from ppuc.ir.errors import PpucError
from ppuc.ir.program import Program
from ppuc.ir.types import DType, Space, TensorType
from ppuc.targets.artifact import Artifact
from ppuc.targets.simulator.result import Profile

if TYPE_CHECKING:
    import onnx

MOST_FORMS = 16
"""Maximum programs of one model in a process."""
LARGEST_SHAPE, LARGEST_FACTORS = 64, 8
"""Maximum elements of integers and floats that determine sizes."""


class DeferredResult(Protocol):
    """The result of a DeferredProgram: outputs by ONNX name, the profile, and its programs."""

    @property
    def outputs(self) -> Mapping[str, Any]: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def program(self) -> Program: ...
    @property
    def nodes(self) -> Mapping[str, str]: ...
    @property
    def launches(self) -> Mapping[str, int]: ...
    @property
    def deferred(self) -> tuple[DeferredRun, ...]: ...
    @property
    def host_measured_seconds(self) -> float | None: ...


class DeferredProgram(Protocol):
    """A model compiled at run time; `fixed` are inputs fixed to one value."""

    @property
    def artifact(self) -> Artifact: ...
    @property
    def source(self) -> str | Path | onnx.ModelProto | None: ...
    @property
    def options(self) -> CompileOptions: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def fixed(self) -> Mapping[str, np.ndarray]: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    def run(self, inputs: Mapping[str, Any], /) -> DeferredResult: ...


class Compile(Protocol):
    """Compiles a model with static types. Raises PpucError."""

    def __call__(self, source: onnx.ModelProto, options: CompileOptions, /) -> DeferredProgram: ...


@dataclass(frozen=True, slots=True)
class DeferredRun:
    """What ran for a step: a program, `calls` times, with the result of its first call; or the host, with a reason.
    `name` is unique among the runs of a program and prefixes its kernels. `feeds` are the program's inputs in its last
    call. `host_seconds` is the measured wall time of the host's part of all calls; 0.0 if there was none."""

    step: int
    name: str
    calls: int
    program: DeferredProgram | None = None
    result: DeferredResult | None = None
    reason: str = ""
    host_seconds: float = 0.0
    feeds: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Forms:
    """The programs of one model by input types."""

    programs: dict[object, list[DeferredProgram]] = field(default_factory=dict)
    refused: dict[object, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.programs.values())) + len(self.refused)


_FORMS: dict[tuple[str, ...], _Forms] = {}


class DeferredSteps:
    """The deferred steps of one run of `artifact`, compiled by `compile`. `runs` records what ran, by name, in order of
    first calls; `asked` counts evaluated conditions of each If, `trips` the trips of each Loop and Scan."""

    def __init__(self, artifact: Artifact, options: CompileOptions, worker: HostWorker, compile: Compile) -> None:
        self.artifact, self.options, self.worker = artifact, deferred_options(options), worker
        self.compile = compile
        self.runs: dict[str, DeferredRun] = {}
        self.asked: dict[int, int] = {}
        self.trips: dict[int, int] = {}
        self._taken = device_bytes(artifact.program)
        self._names: dict[tuple[int, int], str] = {}
        self._forms: Counter[str] = Counter()

    def run(self, number: int, step: DeferredStep, held: Mapping[str, Any]) -> dict[str, Any]:
        """The results of step `number`, by names of the plan. Raises HostError."""
        model = self.artifact.host[step.model]
        feeds = {PREFIX + name: held[name] for name in step.inputs}
        outputs = [PREFIX + name for name in step.outputs]
        try:
            if step.control:
                found = self._control(number, step, model, feeds)
            else:
                found = self._computed(number, step.name, model, feeds, feeds)
        except OnHostError as reason:
            found = self._on_host(number, step.name, str(reason), model, feeds, outputs)
        return {name: found[PREFIX + name] for name in step.outputs}

    def _control(self, number: int, step: DeferredStep, model: bytes, feeds: Mapping[str, Any]) -> dict[str, Any]:
        node, label = control_node(model), step.name
        count = self.asked if node.kind == "If" else self.trips
        count[number] = 0

        def call(attribute: str, body: Body, arrays: Mapping[str, Any]) -> list[Any]:
            count[number] += 1
            name = f"{label}/{attribute}"
            try:
                found = self._computed(number, name, body.model, arrays, {n: arrays[n] for n in body.outer})
            except OnHostError as reason:
                outputs = list(dict.fromkeys(body.outputs))
                found = self._on_host(number, name, str(reason), body.model, arrays, outputs)
            return [found[output] for output in body.outputs]

        return dict(zip(node.outputs, run_control(node, feeds, call), strict=False))

    def _on_host(
        self, number: int, name: str, reason: str, model: bytes, feeds: Mapping[str, Any], outputs: list[str]
    ) -> dict[str, Any]:
        started = perf_counter()
        values = self.worker.run(of_elements(model, feeds), feeds, name)
        key, seconds = f"{name}~host", perf_counter() - started
        known = self.runs.get(key, DeferredRun(number, name, 0))
        self.runs[key] = replace(known, calls=known.calls + 1, reason=reason, host_seconds=known.host_seconds + seconds)
        return dict(zip(outputs, values, strict=True))

    def _computed(
        self, number: int, name: str, model: bytes, feeds: Mapping[str, Any], settled: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The outputs of a program for `model` by name. `settled` are the inputs that may determine sizes: not those
        that change between trips. Raises OnHostError."""
        program = self._program(model, feeds, settled)
        result = program.run(feeds)
        key = (number, id(program))
        if key not in self._names:
            self._forms[name] += 1
            self._names[key] = f"{name}~{self._forms[name]}" if self._forms[name] > 1 else name
        first = DeferredRun(number, self._names[key], 0, program, result)
        run = self.runs.get(first.name, first)
        seconds = run.host_seconds + (result.host_measured_seconds or 0.0)
        self.runs[run.name] = replace(run, calls=run.calls + 1, host_seconds=seconds, feeds=feeds)
        return dict(result.outputs)

    def _program(self, model: bytes, feeds: Mapping[str, Any], settled: Mapping[str, Any]) -> DeferredProgram:
        types = {name: machine_type(value) for name, value in feeds.items()}
        foreign = [name for name, type in types.items() if type is None]
        if foreign:
            raise OnHostError("it reads data that only the host can hold")
        options = self.options
        recorded = (f"{key}={value}" for key, value in sorted(options.recorded().items()))
        passes = (options.pipeline, *options.disabled)
        place = (hashlib.sha256(model).hexdigest(), options.target.hash, *recorded, *passes, *self.worker.files)
        forms = _FORMS.setdefault(place, _Forms())
        key = tuple((name, str(type)) for name, type in sorted(types.items()))
        for program in forms.programs.get(key, ()):
            if all(np.array_equal(feeds[n], v, equal_nan=v.dtype.kind == "f") for n, v in program.fixed.items()):
                return self._fitting(program)
        if key in forms.refused:
            raise OnHostError(forms.refused[key])
        if forms.count >= MOST_FORMS:
            raise OnHostError(f"it was compiled for {MOST_FORMS} other sizes already")
        try:
            program = self._compiled(model, {n: t for n, t in types.items() if t is not None}, settled)
        except OnHostError as reason:
            forms.refused[key] = str(reason)
            raise
        forms.programs.setdefault(key, []).append(program)
        return self._fitting(program)

    def _compiled(self, model: bytes, types: Mapping[str, TensorType], settled: Mapping[str, Any]) -> DeferredProgram:
        source = typed(model, types)
        sizes = {name: value for name, value in settled.items() if _may_be_sizes(types[name])}
        options = replace(self.options, values=sizes)
        try:
            program = self.compile(source, options)
        except PpucError as error:
            raise OnHostError(error.diagnostics[0].what) from error
        everything = settled.keys() == types.keys()
        if everything and program.plan is not None and _waits_again(program.plan, len(source.graph.node)):
            raise OnHostError("its sizes depend on values with too many elements to fix")
        return program

    def _fitting(self, program: DeferredProgram) -> DeferredProgram:
        """`program` if it fits device memory beside its caller."""
        if self._taken + device_bytes(program.artifact.program) > self.options.target.hbm.bytes:
            raise OnHostError("it does not fit the device memory beside the rest of the model")
        return program


def deferred_options(options: CompileOptions) -> CompileOptions:
    """The options for run-time compilation in a program compiled with `options`: the same, without what refers to its
    inputs, outputs and layers. Layers that would need a policy are not quantized."""
    precision = "model" if PRECISIONS[options.precision].per_layer else options.precision
    return replace(
        options,
        precision=precision,
        dims={},
        shapes={},
        values={},
        aliases={},
        quantization=Quantization(),
        keep_layers=False,
        lenient=False,
    )


def _may_be_sizes(type: TensorType) -> bool:
    """Whether an input may be fixed to its value: a shape, an axis, or factors of a resize."""
    most = LARGEST_FACTORS if type.dtype.is_float else LARGEST_SHAPE
    return type.elements <= most and type.dtype is not DType.BOOL


def _waits_again(plan: Plan, nodes: int) -> bool:
    """Whether all nodes of a program are deferred again, which would recur without end."""
    return any(isinstance(s, DeferredStep) and not s.control and len(s.nodes) >= nodes for s in plan.steps)


def device_bytes(program: Program) -> int:
    """End address of a program's tensors in device memory."""
    return max((t.address + t.bytes for t in program.tensors if t.space is Space.HBM), default=0)


__all__ = ["Compile", "DeferredProgram", "DeferredRun", "DeferredSteps"]
