"""The compiled program that `compile` and `load` return.

Invariant: a saved and reloaded program runs exactly as the one in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppuc.compiler.alias import grown
from ppuc.compiler.host.plan import PLAN, Plan
from ppuc.compiler.inputs import (
    RANGE_OPTION,
    InputSpec,
    checked_inputs,
    default_values,
    fixed_values,
    generate_all,
    given_arrays,
    without_fixed,
)
from ppuc.compiler.options import CompileOptions, HostPolicy
from ppuc.compiler.program.variants import Variant, Variants, bundle, unbundle
from ppuc.ir.errors import CapacityError, InputError, UsageError, counted
from ppuc.ir.html import html_table
from ppuc.ir.program import Program
from ppuc.ir.resource import Resource
from ppuc.targets.artifact import Artifact
from ppuc.targets.artifact import load as load_artifact
from ppuc.targets.artifact import save as save_artifact
from ppuc.targets.description import Target, load_target
from ppuc.targets.limits import check_limits
from ppuc.targets.simulator.result import Profile

if TYPE_CHECKING:
    import onnx

    from ppuc.compiler.host.deferred import DeferredRun
    from ppuc.compiler.host.transfer import Crossing
    from ppuc.compiler.passes.remarks import Remark
    from ppuc.compiler.pipeline.manager import PassRecord, QuantizedModule
    from ppuc.targets.simulator.run import Progress, RawResult


SHOWN = 4
"""Inputs, and outputs, that the text of a program names."""


@dataclass(frozen=True, slots=True)
class _How:
    """How a program is run; the arguments of `CompiledProgram.run`."""

    trace: bool = False
    progress: Progress | None = None
    hazards: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {"trace": self.trace, "progress": self.progress, "hazards": self.hazards}


EMPTY = Program("", "", "", (), (), (), ())


def _type_text(array: Any) -> str:
    """`float32[1, 10]`; the Python type of anything but an array."""
    return f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else type(array).__name__


@dataclass(frozen=True, slots=True, repr=False)
class ProgramResult:
    """`outputs` by ONNX name (empty for timing-only runs). `trace` is the trace writer's input; None unless
    requested."""

    outputs: Mapping[str, np.ndarray]
    profile: Profile
    trace: RawResult | None = None
    host_seconds: Mapping[int, float] = field(default_factory=dict)
    """Measured wall time of each host step, by its number in the plan; not part of the profile."""
    deferred: tuple[DeferredRun, ...] = ()
    """Parts compiled at run time, which are in the profile, or why they were not compiled."""
    moves: tuple[Crossing, ...] = ()
    """Transfers over the host link between steps."""
    program: Program = EMPTY
    """All programs that ran, as one; the subject of the profile."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Kernel -> the ONNX node that its time is attributed to, for all kernels that ran."""
    launches: Mapping[str, int] = field(default_factory=dict)
    """Launch counts of segments that were launched several times."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {_type_text(array)}" for name, array in self.outputs.items())
        return f"ProgramResult({self.profile!r}; {shapes or 'time only'})"

    def _repr_html_(self) -> str:
        """For notebooks: outputs, and the kernels that take longest."""
        rows = ((name, _type_text(array)) for name, array in self.outputs.items())
        outputs = html_table("outputs", ("output", "type"), rows, text=(0, 1)) if self.outputs else ""
        return outputs + self.profile._repr_html_()

    @property
    def host_measured_seconds(self) -> float | None:
        """Measured wall time of all host computation; None if there was none."""
        ran = [*self.host_seconds.values(), *(r.host_seconds for r in self.deferred if r.host_seconds)]
        return sum(ran) if ran else None


@dataclass(frozen=True, slots=True, repr=False)
class CompiledProgram:
    """An artifact and its compile options, or those that its file records; their target is the one it runs on. `source`
    is the ONNX model if it was compiled in this process; `passes` records the compilation, `quantized` its initial
    module if layers are quantized. With `variants`, the artifact is that of the first one, and a run selects one by
    shape."""

    artifact: Artifact
    options: CompileOptions
    source: str | Path | onnx.ModelProto | None = None
    passes: tuple[PassRecord, ...] = ()
    variants: Variants | None = None
    quantized: QuantizedModule | None = None

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{s.name}: {s.type}" for s in specs[:SHOWN]) + (", ..." if len(specs) > SHOWN else "")
            for specs in (self.artifact.inputs, self.artifact.outputs)
        )
        kernels = sum(len(s.kernels) for s in self.artifact.program.segments)
        where = f"for {self.target.name} at precision {self.options.precision}"
        variants = f", the first of {len(self.variants.every)} variants" if self.variants is not None else ""
        return f"CompiledProgram({self.name} {where}{variants}: {kernels} kernels; {inputs} -> {outputs})"

    def _repr_html_(self) -> str:
        """For notebooks: inputs and outputs, and the kernels in order."""
        specs = [("input", s) for s in self.artifact.inputs] + [("output", s) for s in self.artifact.outputs]
        kernels = [k for s in self.artifact.program.segments for k in s.kernels]
        rows = [(k.name, math.prod(size for _, size in k.grid), ", ".join(k.loc)) for k in kernels]
        ports = ((role, s.name, s.type) for role, s in specs)
        head = html_table(repr(self), ("", "name", "type"), ports, text=(0, 1, 2))
        return head + html_table("kernels", ("kernel", "units", "ONNX nodes"), rows, text=(0, 2))

    @property
    def target(self) -> Target:
        """The target that the program runs on."""
        return self.options.target

    @property
    def options_keeping_layers(self) -> CompileOptions:
        """The options to recompile the program with every kernel's result as an output."""
        shapes = {s.name: s.type.dims for s in self.inputs} | {n: a.shape for n, a in self.fixed.items()}
        return replace(self.options, dims={}, shapes=shapes, values=self.fixed, keep_layers=True)

    @property
    def plan(self) -> Plan | None:
        """The plan of PPU and host steps; None without host steps."""
        text = self.artifact.meta.get(PLAN)
        return Plan.of_json(text) if text else None

    @property
    def fixed(self) -> dict[str, np.ndarray]:
        """Inputs of the model that were fixed at compile time."""
        return fixed_values(self.artifact.meta)

    @property
    def defaults(self) -> dict[str, np.ndarray]:
        """Default values of inputs by name: those that are also initializers of the model."""
        return default_values(self.artifact.meta)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Names and types of the inputs, in the model's order."""
        meta = self.artifact.meta
        return tuple(InputSpec(s.name, s.type, int(meta.get(RANGE_OPTION + s.name, "2"))) for s in self.artifact.inputs)

    @property
    def nodes(self) -> dict[str, str]:
        """Kernel name -> the ONNX node that its time is attributed to."""
        return dict(json.loads(self.artifact.meta.get("nodes", "{}")))

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """The passes' remarks. Raises ArtifactError if they are damaged."""
        from ppuc.compiler.pipeline.packed_remarks import remarks_of

        return remarks_of(self.artifact)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.artifact.program.name

    def save(self, path: str | Path) -> None:
        """Write the program as a `.ppu` file; the same program gives the same bytes. Raises ArtifactError."""
        save_artifact(bundle(self.variants) if self.variants is not None else self.artifact, path)

    def variant(self, dims: Mapping[str, int]) -> CompiledProgram:
        """The program of the variant with these sizes (all, or enough to identify it). Raises UsageError if there is
        none."""
        if self.variants is None:
            expected = "none: the program has fixed sizes"
            raise UsageError.of(self.name, "has no variant with these sizes", got=dict(dims), expected=expected)
        return self._of(self.variants.of_sizes(dims, self.name))

    def variant_for(self, inputs: Mapping[str, np.ndarray]) -> CompiledProgram:
        """The program for a run with `inputs`. Raises InputError if there is none."""
        if self.variants is None:
            return self
        chosen, _ = self.variants.choose({n: np.shape(a) for n, a in inputs.items()}, self.name)
        return self._of(chosen)

    def _of(self, variant: Variant) -> CompiledProgram:
        return replace(
            self, artifact=variant.artifact, passes=variant.passes, quantized=variant.quantized, variants=None
        )

    @np.errstate(all="ignore")
    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        trace: bool = False,
        progress: Progress | None = None,
        hazards: bool = True,
    ) -> ProgramResult:
        """Run on the simulator: `inputs` by ONNX name, arrays of exactly the declared dtypes and shapes, or lists of
        numbers. Inputs with a default may be omitted. Without `hazards`, accesses that nothing orders are not looked
        for, which takes a third of the time. Raises InputError."""
        how = _How(trace, progress, hazards)
        inputs = given_arrays(self.inputs, inputs, self.name)
        if self.variants is not None:
            return self._run_variant(self.variants, inputs, how)
        given = {**self.defaults, **without_fixed(self.fixed, inputs, self.name)}
        plan = self.plan
        if plan is None:
            return self._simulate(checked_inputs(self.inputs, given, self.name), how)
        foreign = {name: given.pop(name) for name, _ in plan.host_inputs if name in given}
        missing = [name for name, _ in plan.host_inputs if name not in foreign]
        if missing:
            raise InputError.of(
                self.name, f"input '{missing[0]}' is missing", expected=dict(plan.host_inputs)[missing[0]]
            )
        feeds = {**checked_inputs(self.inputs, given, self.name), **foreign}
        return self._hosted(plan, feeds, how)

    def time(self, *, trace: bool = False, progress: Progress | None = None) -> ProgramResult:
        """Simulate timing only, without values or weights."""
        plan, how = self.plan, _How(trace, progress)
        return self._simulate(None, how) if plan is None else self._hosted(plan, None, how)

    def random_inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Seeded random inputs valid for the program: integers in range of the tables they index, masks of ones,
        defaults unchanged."""
        return {**generate_all(self.inputs, seed=seed), **self.defaults}

    def _run_variant(self, variants: Variants, inputs: Mapping[str, Any], how: _How) -> ProgramResult:
        variant, sizes = variants.choose({n: np.shape(a) for n, a in inputs.items()}, self.name)
        program = self._of(variant)
        if not sizes:
            return program.run(inputs, **how.arguments)
        result = program.run(variants.padded(inputs, variant), **how.arguments)
        return replace(result, outputs=variants.cut(result.outputs, sizes))

    @property
    def _constants(self) -> dict[str, Resource]:
        return {n: c if isinstance(c, Resource) else Resource.of(c, n) for n, c in self.artifact.constants.items()}

    def _hosted(self, plan: Plan, inputs: Mapping[str, Any] | None, how: _How) -> ProgramResult:
        from ppuc.compiler.host.execute import run_hosted
        from ppuc.compiler.host.merge import launches, merged_nodes, merged_program

        found = run_hosted(
            self.artifact,
            plan,
            self.options,
            self._constants,
            _compiled_deferred,
            inputs,
            trace=how.trace,
            progress=how.progress,
            hazards=how.hazards,
        )
        return ProgramResult(
            found.outputs,
            found.raw.profile,
            found.raw if how.trace else None,
            found.host_seconds,
            found.deferred,
            found.moves,
            merged_program(self.artifact.program, found.deferred),
            merged_nodes(self.nodes, found.deferred),
            launches(found.deferred),
        )

    def _simulate(self, inputs: Mapping[str, np.ndarray] | None, how: _How) -> ProgramResult:
        from ppuc.targets.simulator.run import simulate

        artifact = self.artifact
        feeds = None
        if inputs is not None:
            results = {s.name: s.type.dims for s in artifact.outputs}
            buffers = {s.name: results.get(self.options.aliases.get(s.name, ""), s.type.dims) for s in artifact.inputs}
            feeds = {s.tensor: grown(inputs[s.name], buffers[s.name]) for s in artifact.inputs}
        raw = simulate(
            artifact.program,
            artifact.vectors,
            self.target,
            self._constants,
            feeds,
            check_hazards=how.hazards,
            trace=how.trace,
            progress=how.progress,
        )
        outputs: dict[str, np.ndarray] = {}
        if inputs is not None:
            outputs = {s.name: raw.outputs[s.tensor].reshape(s.type.dims) for s in artifact.outputs}
        kept = raw if how.trace else None
        return ProgramResult(outputs, raw.profile, kept, program=artifact.program, nodes=self.nodes)


def load_program(
    path: str | Path, target: Target | Callable[[str], Target] | None = None, host: HostPolicy | None = None
) -> CompiledProgram:
    """Load a `.ppu` file. `target` overrides the recorded target, for example with other timing numbers, or makes the
    one to run on from the recorded one's name; the program must fit it. `host` lists the files of custom ops. Raises
    ArtifactError, CapacityError, TargetError or UsageError."""
    artifact = load_artifact(path)
    variants = unbundle(artifact)
    if variants is not None:
        artifact = variants.every[0].artifact
    program = artifact.program
    machine = target(program.target) if callable(target) else target or load_target(program.target)
    for made in variants.every if variants is not None and target is not None else ():
        _require_fit(str(path), made.artifact.program, machine)
    if variants is None and target is not None:
        _require_fit(str(path), program, machine)
    if target is None and machine.hash != program.target_hash:
        raise UsageError.of(
            str(path),
            "was compiled for another version of its target",
            got=f"{program.target} {program.target_hash}",
            expected=f"{machine.name} {machine.hash}",
            hint="compile it again, or give the original target file with --target",
        )
    return CompiledProgram(artifact, CompileOptions.of_record(artifact.meta, machine, host), variants=variants)


def _require_fit(where: str, program: Program, machine: Target) -> None:
    """Raise CapacityError, with the first limit exceeded, if another program would be needed for `machine`."""
    try:
        check_limits(program, machine)
    except CapacityError as error:
        first, *others = error.diagnostics
        raise CapacityError.of(
            where,
            f"was compiled for {program.target} and exceeds {counted(1 + len(others), 'limit')} of {machine.name} here",
            got=f"{first.where}: {first.what}: {first.got}",
            expected=first.expected,
            hint="give the .onnx file, which is compiled for the machine",
        ) from None


def _compiled_deferred(source: onnx.ModelProto, options: CompileOptions) -> CompiledProgram:
    """Compile a part of a model at run time."""
    from ppuc.compiler.driver import compile_model

    made = compile_model(source, options)
    return CompiledProgram(made.artifact, options, source, made.passes)
