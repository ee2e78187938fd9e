"""The program that a command works on: the options that say how it is made, and compiling or loading it.

Invariant: an option that can have no effect on the model given is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppuc.compiler.commands.common import (
    GIVE_ONNX,
    alias_option,
    chosen_target,
    compile_options,
    dim_sizes,
    host_options,
    is_artifact,
    note,
    pairs,
    progress_bar,
    quantization_options,
    tune_option,
)
from ppuc.compiler.precisions import PRECISIONS, Precision

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.pipeline.manager import Progress
    from ppuc.compiler.quantization.quantize import Quantization
    from ppuc.compiler.runtime import CompiledProgram
    from ppuc.targets.description import Target

Studied = Callable[[dict[str, Any]], None]
"""Called with the record of what a quantization costs and brings."""


@dataclass(frozen=True, slots=True)
class ProgramOptions:
    """What `program_options` collect, as given."""

    target: str
    overrides: tuple[str, ...]
    precision: str
    dims: tuple[str, ...]
    calibrate: Path | None
    preprocess: Path | None
    method: str
    policy: Path | None
    no_repair: bool
    alias: tuple[str, ...]
    tune: int
    host_ops: tuple[Path, ...]
    no_host: bool

    def quantization(self, progress: Progress | None = None, studied: Studied | None = None) -> Quantization | None:
        """What the quantization options say. Raises UsageError when they do not go with the precision."""
        how = quantization(self.precision, self.calibrate, self.preprocess, self.policy, self.method, progress)
        self._check_repair()
        return how and replace(how, repair=not self.no_repair, studied=studied)

    def _check_repair(self) -> None:
        from ppuc.ir.errors import UsageError

        if self.no_repair and (self.calibrate is None or PRECISIONS[self.precision].weights_only):
            got = f"precision {self.precision}" + ("" if self.calibrate is not None else " without --calibrate")
            wanted = "fp8 or int8 with --calibrate"
            raise UsageError.of("--no-repair", "has no effect where nothing is repaired", got=got, expected=wanted)

    def program(self, model: Path, arrays: dict[str, np.ndarray]) -> CompiledProgram:
        """Load a .ppu, or compile an .onnx (dimensions may come from the shapes of `arrays`, sizes from their values).
        Raises PpucError."""
        if is_artifact(model):
            return self._loaded(model, arrays)
        from ppuc.compiler.driver import compile_model
        from ppuc.compiler.runtime import CompiledProgram

        machine = chosen_target(self.target, self.overrides)
        with progress_bar("compile") as progress:
            made = compile_model(
                model,
                target=machine,
                precision=self.precision,
                dims=dim_sizes(self.dims),
                shapes={name: array.shape for name, array in arrays.items()},
                values=arrays,
                quantization=self.quantization(progress),
                aliases=pairs(self.alias, "--alias"),
                tune=self.tune,
                progress=progress,
                host=not self.no_host,
                host_ops=self.host_ops,
            )
        program = CompiledProgram(
            made.artifact, made.target, model, made.passes, self.host_ops, quantized=made.quantized
        )
        note_compromises(program)
        return program

    def _loaded(self, model: Path, arrays: dict[str, np.ndarray]) -> CompiledProgram:
        late = (
            ("--alias", bool(self.alias)),
            ("--tune", self.tune > 1),
            ("--calibrate", self.calibrate is not None),
            ("--policy", self.policy is not None),
            ("--no-repair", self.no_repair),
            ("--no-host", self.no_host),
        )
        for name, given in late:
            if given:
                from ppuc.ir.errors import UsageError

                raise UsageError.of(name, "has no effect on a compiled program", got=str(model), hint=GIVE_ONNX)
        machine = chosen_target(self.target, self.overrides) if self.target or self.overrides else None
        loaded = replace(_loaded(model, machine, self.precision, self.dims), host_ops=self.host_ops)
        return _chosen(loaded, dim_sizes(self.dims), arrays)


def program_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ProgramOptions; the command gets them as one argument, `options`."""
    names = [f.name for f in fields(ProgramOptions)]

    @wraps(function)
    def command(**given: Any) -> Any:
        options = ProgramOptions(**{name: given.pop(name) for name in names})
        return function(options=options, **given)

    return compile_options(quantization_options(alias_option(tune_option(host_options(command)))))


def quantization(
    precision: str,
    calibrate: Path | None,
    preprocess: Path | None,
    policy: Path | None,
    method: str = "max",
    progress: Progress | None = None,
) -> Quantization | None:
    """What the quantization options say. Raises UsageError when they do not go with the precision."""
    from ppuc.ir.errors import UsageError

    chosen = PRECISIONS[precision]
    if not chosen.quantized:
        for name, given in (("--calibrate", calibrate), ("--policy", policy)):
            if given is not None:
                quantized = ", ".join(p.name for p in PRECISIONS.values() if p.quantized)
                raise UsageError.of(name, "has no effect at this precision", got=precision, expected=quantized)
        return None
    from ppuc.compiler.quantization.calibrate import Calibration
    from ppuc.compiler.quantization.data import Data
    from ppuc.compiler.quantization.images import read_preprocessing
    from ppuc.compiler.quantization.quantize import DYNAMIC, Quantization

    if calibrate is not None and policy is not None:
        raise UsageError.of("--policy", "decides the scales, so there is nothing to calibrate", hint="leave out one")
    data = None
    needs_scales = chosen.scales_activations and not chosen.per_layer
    if calibrate is not None:
        data = Data(calibrate, read_preprocessing(preprocess) if preprocess is not None else None)
    elif policy is None and needs_scales:
        note(f"note: {DYNAMIC}")

    def each(what: str) -> None:
        if progress is not None:
            progress(f"quantize: {what}", 0, 0)

    return Quantization(data, policy, None, Calibration(method), each)


def _later_formats(precision: Precision) -> str:
    """What becomes of 8-bit formats in what no samples reach when a program is compiled."""
    if precision.per_layer:
        return ", in the model's own precision"
    return ", with scales of that moment" if precision.scales_activations else ""


def note_compromises(program: CompiledProgram) -> None:
    """Say which inputs were fixed, and what runs on the host."""
    for name, value in program.fixed.items():
        note(f"note: input '{name}' is fixed to {' '.join(str(value).split())}, because sizes or branches depend on it")
    if program.plan is not None:
        nodes = program.plan.nodes
        names = ", ".join(f"{n.node} ({n.op})" for n in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        if nodes:
            note(f"note: {count} on the host: {names}; `ppuc check` says why")
        if program.plan.later:
            waiting = len(program.plan.later)
            how = _later_formats(PRECISIONS[program.artifact.meta.get("precision", "model")])
            note(
                f"note: {waiting} node{'s are' if waiting > 1 else ' is'} compiled when the program runs on inputs{how}"
            )


def _chosen(program: CompiledProgram, dims: dict[str, int], arrays: dict[str, np.ndarray]) -> CompiledProgram:
    """Of a program with variants the one that sizes or input arrays ask for; padded inputs need all of them."""
    if program.variants is None:
        return program
    if dims:
        return program.variant(dims)
    if arrays:
        variant, padded = program.variants.choose({n: a.shape for n, a in arrays.items()}, program.name)
        return program if padded else program.variant(variant.dims)
    first = program.variants.every[0]
    note(f"note: taking the variant {first} of {len(program.variants.every)}; --dim chooses another")
    return program.variant(first.dims)


def program_for(model: Path, machine: Target, precision: str, dims: Sequence[str]) -> CompiledProgram:
    """Compile an .onnx for `machine`, or load a .ppu to run on it."""
    if is_artifact(model):
        return _chosen(_loaded(model, machine, precision, dims), dim_sizes(dims), {})
    from ppuc.compiler.entry import compile

    return compile(model, machine, precision, dim_sizes(dims))


def _loaded(model: Path, machine: Target | None, precision: str, dims: Sequence[str]) -> CompiledProgram:
    """A .ppu, for which compile options come too late."""
    from ppuc.compiler.runtime import load_program
    from ppuc.ir.errors import UsageError

    if precision != "model":
        raise UsageError.of("--precision", "has no effect on a compiled program", got=str(model), hint=GIVE_ONNX)
    program = load_program(model, machine)
    if dims and program.variants is None:
        raise UsageError.of("--dim", "has no effect on a compiled program", got=str(model), hint=GIVE_ONNX)
    return program
