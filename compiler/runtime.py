"""A compiled program: what `compile` and `load` return, ready to save and to run.

Invariant: a program that was saved and loaded again runs exactly as the one in memory did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppuc.compiler.alias import grown
from ppuc.compiler.inputs import RANGE_OPTION, InputSpec, checked_inputs, generate_all
from ppuc.ir.errors import UsageError
from ppuc.ir.resource import Resource
from ppuc.targets.artifact import Artifact
from ppuc.targets.artifact import load as load_artifact
from ppuc.targets.artifact import save as save_artifact
from ppuc.targets.description import Target, load_target
from ppuc.targets.simulator.result import Profile

if TYPE_CHECKING:
    import onnx

    from ppuc.compiler.driver import PassRecord
    from ppuc.targets.simulator.run import Progress, RawResult


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """`outputs` by ONNX name (empty for timing-only runs). `trace` is what the trace writer takes; None unless asked
    for."""

    outputs: Mapping[str, np.ndarray]
    profile: Profile
    trace: RawResult | None = None


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """An artifact and the machine it runs on. `source` is the ONNX model it came from, when it was compiled here;
    `passes` tells what the compiler did."""

    artifact: Artifact
    target: Target
    source: str | Path | onnx.ModelProto | None = None
    passes: tuple[PassRecord, ...] = ()

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Names and types of the inputs, in the model's order."""
        meta = self.artifact.meta
        return tuple(InputSpec(s.name, s.type, int(meta.get(RANGE_OPTION + s.name, "2"))) for s in self.artifact.inputs)

    @property
    def nodes(self) -> dict[str, str]:
        """Kernel name -> the ONNX node that its time is booked on."""
        return dict(json.loads(self.artifact.meta.get("nodes", "{}")))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.artifact.program.name

    def save(self, path: str | Path) -> None:
        """Write the program as a `.ppu` file; the same program gives the same bytes. Raises ArtifactError."""
        save_artifact(self.artifact, path)

    def run(
        self, inputs: Mapping[str, np.ndarray], *, trace: bool = False, progress: Progress | None = None
    ) -> ProgramResult:
        """Run on the simulator: `inputs` by ONNX name, of exactly the declared dtypes and shapes (InputError
        otherwise)."""
        return self._simulate(checked_inputs(self.inputs, inputs, self.name), trace, progress)

    def time(self, *, trace: bool = False, progress: Progress | None = None) -> ProgramResult:
        """Simulate time only: no values, no weights."""
        return self._simulate(None, trace, progress)

    def random_inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Seeded random inputs that suit the program: integers within the tables they index, masks of ones."""
        return generate_all(self.inputs, seed=seed)

    def _simulate(
        self, inputs: Mapping[str, np.ndarray] | None, trace: bool, progress: Progress | None
    ) -> ProgramResult:
        from ppuc.targets.simulator.run import simulate

        artifact = self.artifact
        buffers = {s.tensor: s.type.dims for s in (*artifact.inputs, *artifact.outputs)}
        feeds = None
        if inputs is not None:
            feeds = {s.tensor: grown(inputs[s.name], buffers[s.tensor]) for s in artifact.inputs}
        constants = {n: c if isinstance(c, Resource) else Resource.of(c, n) for n, c in artifact.constants.items()}
        raw = simulate(
            artifact.program, artifact.vectors, self.target, constants, feeds, trace=trace, progress=progress
        )
        outputs: dict[str, np.ndarray] = {}
        if inputs is not None:
            outputs = {s.name: raw.outputs[s.tensor].reshape(s.type.dims) for s in artifact.outputs}
        return ProgramResult(outputs, raw.profile, raw if trace else None)


def load_program(path: str | Path, target: Target | None = None) -> CompiledProgram:
    """Load a `.ppu` file. `target` replaces the machine it names (the same one with other timing, say); its structure
    must be one that the program was compiled for. Raises ArtifactError, TargetError or UsageError."""
    artifact = load_artifact(path)
    program = artifact.program
    machine = target or load_target(program.target)
    if target is None and machine.hash != program.target_hash:
        raise UsageError.of(
            str(path),
            "was compiled for another version of its target",
            got=f"{program.target} {program.target_hash}",
            expected=f"{machine.name} {machine.hash}",
            hint="compile it again, or name the target file that it was compiled for with --target",
        )
    return CompiledProgram(artifact, machine)


def for_target(program: CompiledProgram, target: Target) -> CompiledProgram:
    """The same program on another machine description."""
    return replace(program, target=target)
