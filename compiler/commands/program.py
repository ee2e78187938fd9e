"""The program of a command: compiled from an .onnx, or loaded from a .ppu.

Invariant: a compile option that comes too late for a .ppu is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ppuc.compiler.commands.common import note, progress_bar
from ppuc.compiler.commands.options import CompileArguments
from ppuc.compiler.commands.recording import Recorder
from ppuc.compiler.precisions import PRECISIONS, Precision
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    import numpy as np

    from ppuc.compiler.options import CompileOptions
    from ppuc.compiler.program.compiled import CompiledProgram
    from ppuc.targets.description import Target

AT_RUN = ("target", "overrides", "dims", "host_ops")
"""Compile options that apply to a compiled program."""


def is_artifact(path: Path) -> bool:
    """Whether a MODEL argument is a compiled program, by its extension."""
    return path.suffix == ".ppu"


def program_of(
    model: Path, arguments: CompileArguments, arrays: dict[str, np.ndarray], recorder: Recorder | None = None
) -> CompiledProgram:
    """Load a .ppu, or compile an .onnx (dimensions may come from the shapes of `arrays`, sizes from their values).
    Raises PpucError."""
    if is_artifact(model):
        return _loaded(model, arguments, arguments.machine if arguments.names_target else None, arrays)
    from ppuc.compiler.entry import compile_program
    from ppuc.compiler.options import Instrumentation

    options = arguments.options(arrays)
    note_dynamic_scales(options)
    with progress_bar("compile") as progress:
        watch = Instrumentation(progress, warn=note)
        program = compile_program(model, options, watch if recorder is None else recorder.watching(watch, options))
    note_compromises(program)
    return program


def program_for(model: Path, arguments: CompileArguments, machine: Target) -> CompiledProgram:
    """Compile an .onnx for `machine`, or load a .ppu to run on it, without remarks."""
    if is_artifact(model):
        return _loaded(model, arguments, machine, {})
    from ppuc.compiler.entry import compile_program

    return compile_program(model, arguments.options(target=machine))


def _loaded(
    model: Path,
    arguments: CompileArguments,
    machine: Target | Callable[[str], Target] | None,
    arrays: dict[str, np.ndarray],
) -> CompiledProgram:
    from ppuc.compiler.options import HostPolicy
    from ppuc.compiler.program.compiled import load_program

    own = (*AT_RUN, "data", "preprocess") if arguments.data is not None else AT_RUN
    late, hint = "has no effect on a compiled program", "give the .onnx file"
    arguments.refuse_all_but(own, late, got=model, hint=hint)
    program = load_program(model, machine, HostPolicy(ops=arguments.host_ops))
    if program.variants is None:
        arguments.refuse(("dims",), late, got=model, hint=hint)
    return _chosen(program, arguments.sizes(), arrays)


def _chosen(program: CompiledProgram, dims: dict[str, int], arrays: dict[str, np.ndarray]) -> CompiledProgram:
    """The variant that matches sizes or input arrays; padded inputs need all variants."""
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


def note_dynamic_scales(options: CompileOptions) -> None:
    """Print a note if activation scales are computed at run time."""
    precision, how = PRECISIONS[options.precision], options.quantization
    if precision.scales_activations and not precision.per_layer and how.data is None and how.policy is None:
        from ppuc.compiler.quantization.quantize import DYNAMIC

        note(f"note: {DYNAMIC}")


def note_compromises(program: CompiledProgram) -> None:
    """Print notes on fixed inputs and nodes on the host."""
    for name, value in program.fixed.items():
        note(f"note: input '{name}' is fixed to {' '.join(str(value).split())}, because sizes or branches depend on it")
    if program.plan is not None:
        nodes = program.plan.nodes
        names = ", ".join(f"{n.node} ({n.op})" for n in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        if nodes:
            note(f"note: {counted(len(nodes), 'node')} on the host: {names}; `ppuc check` says why")
        if program.plan.deferred:
            waiting = len(program.plan.deferred)
            how = _deferred_formats(PRECISIONS[program.options.precision])
            note(f"note: {waiting} node{'s are' if waiting > 1 else ' is'} compiled at run time{how}")


def _deferred_formats(precision: Precision) -> str:
    """How parts compiled at run time, which samples do not reach, treat 8-bit formats."""
    if precision.per_layer:
        return ", in the model's own precision"
    return ", with scales computed then" if precision.scales_activations else ""
